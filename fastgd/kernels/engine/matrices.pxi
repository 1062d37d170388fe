# Matrix steps between the sweeps, and where they compute.  Included by _engine.pyx.
#
# A step's first write comes before its matrices are done, and from there on nothing may fail.  So
# all memory is there since the layout; products are NumPy's, by BLAS, whose function is called from
# C: no bytecode runs in which an interrupt could arrive, and `Plan.step` told NumPy to be silent
# about infinities beforehand.  If NumPy lacks the few bytes that a call takes, plain loops do it.

from cython cimport floating

cdef extern from "Python.h":
    PyObject* PyObject_Vectorcall(object, PyObject**, size_t, PyObject*)
    void Py_XDECREF(PyObject*)
    void PyErr_Clear()

matmul = np.matmul
# In the place of how many pairs a matrix step has: it takes no states at all.
cdef enum:
    NO_STATES = -1


@cython.final
cdef class Workspace:
    """The kept term of a tensor as a matrix in memory, and what its matrix step computes in.

    Tensors that are alike share one, and all share the memory, as their turns come one by one.
    """

    cdef Py_ssize_t lines, length, rows, columns
    cdef bint is_double
    cdef cnp.ndarray kept, other        # (lines, length)
    cdef cnp.ndarray gram, factor       # squares of the shorter side, if there are no states
    cdef cnp.ndarray kept_t, other_t, gram_t
    cdef cnp.ndarray pairs              # else the numbers of the largest of its states of pairs

    def __cinit__(self, matrix, dtype, Py_ssize_t pairs, list sections):
        self.lines, self.length, transposed = matrix
        self.rows, self.columns = self.lines, self.length
        if transposed:
            self.rows, self.columns = self.length, self.lines
        self.is_double = dtype == np.float64
        side = min(self.lines, self.length) if pairs == NO_STATES else 0
        shapes = [(self.lines, self.length)] * 2 + [(side, side)] * 2 + [(1, max(pairs, 0))]
        self.kept, self.other, self.gram, self.factor, self.pairs = [
            section[:shape[0] * shape[1] * dtype.itemsize].view(dtype).reshape(shape)
            for section, shape in zip(sections, shapes)]
        self.kept_t, self.other_t, self.gram_t = self.kept.T, self.other.T, self.gram.T


cdef list sections_for(list wanted):
    """Memory for the arrays of any of these matrices.

    Each comes with the bytes of a number, and how many its largest state of pairs has, if its step
    takes states.
    """
    sizes = [0, 0, 0]
    for matrix, itemsize, pairs in wanted:
        sizes[0] = max(sizes[0], matrix.lines * matrix.length * itemsize)
        if pairs == NO_STATES:
            sizes[1] = max(sizes[1], min(matrix.lines, matrix.length) ** 2 * itemsize)
        else:
            sizes[2] = max(sizes[2], pairs * itemsize)
    whole, square, pairs = [-(-size // 64) * 64 for size in sizes]
    memory = np.empty(2 * (whole + square) + pairs + 64, np.uint8)
    start = -<size_t> cnp.PyArray_BYTES(memory) % 64
    sections = []
    for size in (whole, whole, square, square, pairs):
        sections.append(memory[start:start + size])
        start += size
    return sections


cdef void product(cnp.ndarray a, cnp.ndarray b, cnp.ndarray out):
    """The product of two matrices, in memory of its own."""
    cdef PyObject* given[3]
    cdef PyObject* found
    given[0], given[1], given[2] = <PyObject*> a, <PyObject*> b, <PyObject*> out
    found = PyObject_Vectorcall(matmul, given, 3, NULL)
    if found == NULL:
        PyErr_Clear()
        if cnp.PyArray_TYPE(out) == cnp.NPY_DOUBLE:
            plain_product(<double*> cnp.PyArray_DATA(out), out, a, b)
        else:
            plain_product(<float*> cnp.PyArray_DATA(out), out, a, b)
    Py_XDECREF(found)


cdef void plain_product(floating* start, cnp.ndarray out, cnp.ndarray a,
                        cnp.ndarray b) noexcept:
    cdef Py_ssize_t i, j, k, n = cnp.PyArray_DIM(b, 1)
    cdef floating x
    for i in range(cnp.PyArray_SIZE(out)):
        start[i] = 0
    for i in range(cnp.PyArray_DIM(a, 0)):
        for k in range(cnp.PyArray_DIM(a, 1)):
            x = (<floating*> cnp.PyArray_GETPTR2(a, i, k))[0]
            for j in range(n):
                (<floating*> cnp.PyArray_GETPTR2(out, i, j))[0] += (
                    x * (<floating*> cnp.PyArray_GETPTR2(b, k, j))[0])


cdef void divide(floating* x, Py_ssize_t n, floating divisor) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        x[i] = x[i] / divisor


cdef void multiply(floating* out, const floating* x, Py_ssize_t n, floating factor) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = x[i] * factor


cdef void polynomial(floating* square, const floating* x, Py_ssize_t side, floating a, floating b,
                     floating c) noexcept nogil:
    """aI + bx + cx², in the place of x²."""
    cdef Py_ssize_t i
    for i in range(side * side):
        square[i] = c * square[i] + b * x[i]
    for i in range(side):
        square[i * side + i] += a


# ------------------------------------------------------------------------------------------- Muon


cdef void iterate(Workspace w, double squares, floating a, floating b, floating c, floating eps,
                  floating steps,
                  floating rms):
    """The NumPy function newton_schulz of muon.py, in two buffers that take turns."""
    cdef cnp.ndarray x = w.kept, y = w.other, x_t = w.kept_t, y_t = w.other_t
    cdef Py_ssize_t n = w.lines * w.length, side = min(w.lines, w.length)
    cdef double norm = sqrt(squares), factor
    cdef int k
    with nogil:
        divide(<floating*> cnp.PyArray_DATA(x), n, <floating> (eps if norm < eps else norm))
    for k in range(<int> steps):
        if w.lines <= w.length:
            product(x, x_t, w.gram)
        else:
            product(x_t, x, w.gram)
        product(w.gram, w.gram_t, w.factor)
        with nogil:
            polynomial(<floating*> cnp.PyArray_DATA(w.factor),
                       <floating*> cnp.PyArray_DATA(w.gram), side,
                       a, b, c)
        if w.lines <= w.length:
            product(w.factor, x, y)
        else:
            product(x, w.factor, y)
        x, y, x_t, y_t = y, x, y_t, x_t
    if rms != 0:
        factor = <double> rms * sqrt(<double> max(w.rows, w.columns))
    else:
        factor = sqrt(max(1.0, <double> w.rows / <double> w.columns))
    with nogil:
        multiply(<floating*> cnp.PyArray_DATA(w.kept), <floating*> cnp.PyArray_DATA(x), n,
                 <floating> factor)


cdef void newton_schulz(void* workspace, double squares, const double* c):
    cdef Workspace w = <Workspace> workspace
    if w.is_double:
        iterate[double](w, squares, c[0], c[1], c[2], c[3], c[4], c[5])
    else:
        iterate[float](w, squares, <float> c[0], <float> c[1], <float> c[2], <float> c[3],
                       <float> c[4], <float> c[5])


# The compiled twins of rules' matrix steps, by the names of these.
cdef dict MATRIX_STEPS = {"newton_schulz": <size_t> <void*> newton_schulz}


cdef void matrix_steps(Layout layout, const Batch* batch):
    """The matrix steps of a batch, whose first sweep is done."""
    cdef double c[MAX_COEFFICIENTS]
    cdef Py_ssize_t i
    cdef int j, place
    cdef Tensor* t
    for i in range(batch.tensor, batch.end):
        t = &layout.tensors[i]
        if t.info.matrix == NULL or t.g == NULL or t.n == 0:
            continue
        for j in range(t.info.n_matrix_c):
            place = t.info.matrix_c[j]
            c[j] = t.own.c64[place] if t.is_double else t.own.c32[place]
        t.info.matrix(<void*> layout.workspaces[i], t.own.sums[0], c)
