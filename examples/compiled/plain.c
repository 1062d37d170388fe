/* A library in C without Python; the program that loads it passes fastgd's table. */
#include <fastgd.h>

const char *use_fastgd(const fastgd_table *table)
{
    return fastgd_bind(table);
}

/* Take steps of Adam on the half of |x - 1| squared, in place. */
void descend(double *x, double *grad, double *exp_avg, double *exp_avg_sq, ptrdiff_t n, double lr,
             int steps)
{
    double c[FASTGD_COEFFICIENTS];
    int step;
    ptrdiff_t i;
    for (step = 1; step <= steps; step++) {
        for (i = 0; i < n; i++)
            grad[i] = x[i] - 1;
        fastgd_adam_coefficients(lr, 0.9, 0.999, 1e-8, 0.0, step, c);
        fastgd_adam_f64(x, grad, exp_avg, exp_avg_sq, n, c, NULL);
    }
}
