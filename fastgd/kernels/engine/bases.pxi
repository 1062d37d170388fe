# Matrix steps in the eigenbases of states of pairs, and how these are renewed.
# Included by _engine.pyx, after matrices.pxi, whose words on failing hold here, too.
#
# Eigenvectors are LAPACK's, by functions of NumPy that run bytecode, take memory and may raise.  So
# they are asked for before a step writes anything, and what they found is copied into the states
# when the step begins to write.

@cython.final
cdef class Side:
    """The factor of a matrix's rows or of its columns, its eigenvectors, and room for products."""

    cdef cnp.ndarray factor, basis, basis_t
    cdef cnp.ndarray outer              # of a gradient with itself

    def __cinit__(self, cnp.ndarray factor, cnp.ndarray basis, cnp.ndarray room):
        self.factor, self.basis, self.basis_t = factor, basis, basis.T
        self.outer = room[0, :factor.size].reshape((<object> factor).shape)

    cdef bint is_set(self):
        """Whether there is a basis: one has no column of zeros."""
        cdef Py_ssize_t i
        for i in range(cnp.PyArray_DIM(self.basis, 0)):
            if cnp.PyArray_TYPE(self.basis) == cnp.NPY_DOUBLE:
                if (<double*> cnp.PyArray_GETPTR2(self.basis, i, 0))[0] != 0:
                    return True
            elif (<float*> cnp.PyArray_GETPTR2(self.basis, i, 0))[0] != 0:
                return True
        return False


@cython.final
cdef class Bases:
    """A tensor's kept term as a matrix of (rows, columns), the states that go with it, and room."""

    cdef Workspace room
    cdef dict states
    cdef cnp.ndarray kept, kept_t, other, m, v
    cdef cnp.ndarray flat, flat_t, square     # the kept term as a row and as a column
    cdef Side left, right                     # or None

    def __cinit__(self, Workspace room, matrix, dict states):
        self.room, self.states = room, states
        self.kept, self.other = room.kept, room.other
        if matrix.transposed:
            self.kept, self.other = room.kept_t, room.other_t
        self.kept_t = self.kept.T
        self.flat = room.kept.reshape(1, -1)
        self.flat_t, self.square = self.flat.T, np.empty((1, 1), room.kept.dtype)
        self.m, self.v = states["exp_avg"], states["exp_avg_sq"]
        if "GG_l" in states:
            self.left = Side(states["GG_l"], states["Q_l"], room.pairs)
        if "GG_r" in states:
            self.right = Side(states["GG_r"], states["Q_r"], room.pairs)


cdef list renewals_of(Layout layout, const GroupStep* group_steps):
    """What the rules of tensors want to set before this step: arrays, and what they are to be."""
    cdef Py_ssize_t i
    cdef int j
    cdef Tensor* t
    cdef list found = []
    for i in range(layout.n):
        t = &layout.tensors[i]
        if not t.info.renews or t.g == NULL or t.n == 0:
            continue
        rule = reference.RULES[layout.rules[i]]
        given = {key: group_steps[t.group_step].c64[j] for j, key in enumerate(rule.coefficients)}
        try:
            found += renewed(rule.renew, (<Bases> layout.workspaces[i]).states, given)
        except np.linalg.LinAlgError as error:
            raise np.linalg.LinAlgError(f"params{layout.labels[i]}: {error}") from None
    return found


cdef void renew(list renewals) noexcept:
    """Set these arrays; the new values lie in memory as they do."""
    cdef cnp.ndarray a, new
    for a, new in renewals:
        memcpy(cnp.PyArray_DATA(a), cnp.PyArray_DATA(new), cnp.PyArray_NBYTES(a))


cdef void approach(floating* x, const floating* y, Py_ssize_t n, floating gamma) noexcept nogil:
    """x ← x + γ(y − x)."""
    cdef Py_ssize_t i
    for i in range(n):
        x[i] = x[i] + gamma * (y[i] - x[i])


cdef void adam_quotient(floating* x, floating* m, floating* v, Py_ssize_t n, floating beta1,
                        floating gamma1, floating beta2, floating gamma2,
                        floating eps) noexcept nogil:
    """Adam's averages of a gradient, and m / (√v + ε) in its place."""
    cdef Py_ssize_t i
    for i in range(n):
        m[i] = beta1 * m[i] + gamma1 * x[i]
        v[i] = beta2 * v[i] + gamma2 * (x[i] * x[i])
        x[i] = m[i] / (<floating> sqrt(v[i]) + eps)


# ------------------------------------------------------------------------------------------- SOAP


cdef void take_outer(Bases b, Side side, cnp.ndarray x, cnp.ndarray x_t, double gamma):
    """Let a factor approach the product of a gradient with itself."""
    cdef Py_ssize_t n = cnp.PyArray_SIZE(side.factor)
    product(x, x_t, side.outer)
    if b.room.is_double:
        approach[double](<double*> cnp.PyArray_DATA(side.factor),
                         <double*> cnp.PyArray_DATA(side.outer), n, gamma)
    else:
        approach[float](<float*> cnp.PyArray_DATA(side.factor),
                        <float*> cnp.PyArray_DATA(side.outer), n, <float> gamma)


cdef void turn(Bases b, floating beta1, floating gamma1, floating beta2, floating gamma2,
               floating gamma, floating eps, floating normalize):
    """The NumPy function turned_adam of soap.py."""
    cdef cnp.ndarray x = b.kept, y = b.other
    cdef cnp.ndarray turned = x if b.left is not None and b.right is not None else y
    cdef Py_ssize_t n = cnp.PyArray_SIZE(x)
    cdef bint started = False
    cdef floating mean
    if b.left is not None:
        take_outer(b, b.left, b.kept, b.kept_t, gamma)
        started = b.left.is_set()
    if b.right is not None:
        take_outer(b, b.right, b.kept_t, b.kept, gamma)
        started = b.right.is_set()
    if not started:
        memset(cnp.PyArray_DATA(x), 0, cnp.PyArray_NBYTES(x))
        return
    if b.left is not None:
        product(b.left.basis_t, x, y)
    if b.right is not None:
        product(x if b.left is None else y, b.right.basis, turned)
    with nogil:
        adam_quotient(<floating*> cnp.PyArray_DATA(turned), <floating*> cnp.PyArray_DATA(b.m),
                      <floating*> cnp.PyArray_DATA(b.v), n, beta1, gamma1, beta2, gamma2, eps)
    if b.left is not None:
        product(b.left.basis, turned, x if b.right is None else y)
    if b.right is not None:
        product(y, b.right.basis_t, x)
    if normalize != 0:
        product(b.flat, b.flat_t, b.square)
        mean = (<floating*> cnp.PyArray_DATA(b.square))[0] / <floating> n
        with nogil:
            divide(<floating*> cnp.PyArray_DATA(x), n, <floating> sqrt(mean) + <floating> 1e-30)


cdef void turned_adam(void* bases, double squares, const double* c):
    cdef Bases b = <Bases> bases
    if b.room.is_double:
        turn[double](b, c[0], c[1], c[2], c[3], c[4], c[5], c[6])
    else:
        turn[float](b, <float> c[0], <float> c[1], <float> c[2], <float> c[3], <float> c[4],
                    <float> c[5], <float> c[6])


MATRIX_STEPS |= {name: <size_t> <void*> turned_adam
                 for name in ("soap_between", "soap_left_between", "soap_right_between")}
