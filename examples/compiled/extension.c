/* An extension in C that steps with fastgd's kernels, without the GIL. */
#include <Python.h>

#include <fastgd.h>

/* descend(x, grad, exp_avg, exp_avg_sq, lr, steps): steps of AdamW on the half of |x - 1| squared;
 * buffers of as many floats each. */
static PyObject *descend(PyObject *self, PyObject *args)
{
    static const double weight_decay = 0.01;
    Py_buffer x, grad, m, v;
    double lr, c[FASTGD_COEFFICIENTS];
    double stages[FASTGD_STAGES] = {1.0, 0.0, 1.0, Py_HUGE_VAL};
    int step, steps;
    ptrdiff_t i, n;
    (void)self;

    if (!PyArg_ParseTuple(args, "w*w*w*w*di", &x, &grad, &m, &v, &lr, &steps))
        return NULL;
    n = x.len / (ptrdiff_t)sizeof(float);
    if (grad.len == x.len && m.len == x.len && v.len == x.len) {
        stages[2] = 1.0 - lr * weight_decay;
        Py_BEGIN_ALLOW_THREADS
        for (step = 1; step <= steps; step++) {
            for (i = 0; i < n; i++)
                ((float *)grad.buf)[i] = ((float *)x.buf)[i] - 1;
            fastgd_adamw_coefficients(lr, 0.9, 0.999, 1e-8, 0.0, step, c);
            fastgd_adam_f32(x.buf, grad.buf, m.buf, v.buf, n, c, stages);
        }
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "descend: expected buffers of one size");
    }
    PyBuffer_Release(&x);
    PyBuffer_Release(&grad);
    PyBuffer_Release(&m);
    PyBuffer_Release(&v);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"descend", descend, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "extension", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_extension(void)
{
    if (fastgd_import() < 0)
        return NULL;
    return PyModule_Create(&definition);
}
