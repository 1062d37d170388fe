# The rules: one loop per optimizer, in the letters of its paper.  Included by every backend.
#
# What a rule computes is specified by the function of the same name in reference.py; states `s` and
# coefficients `c` come in that function's order, and so do the operations, bit for bit.  The loops
# are plain: the compiler vectorises them for each backend, and tests/kernels/test_vectorised.py
# watches it.

cdef inline floating root(floating x) noexcept nogil:
    if floating is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef inline floating positive_part(floating x) noexcept nogil:
    return <floating> 0 if x < 0 else x


cdef void sgd(floating* restrict p, const floating* restrict g, floating** s, Py_ssize_t n,
              const floating* c) noexcept nogil:
    cdef floating alpha = c[0]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = p[i] - alpha * g[i]


# What a rule does to one element, by itself, as _fused.pxi wants it, too.

cdef inline floating momentum_of(floating p, floating g, floating* V, floating alpha, floating beta,
                                 floating gamma) noexcept nogil:
    V[0] = beta * V[0] + gamma * g
    return p - alpha * V[0]


cdef inline floating nesterov_of(floating p, floating g, floating* V, floating alpha, floating beta,
                                 floating gamma, floating mu) noexcept nogil:
    V[0] = beta * V[0] + gamma * g
    return p - alpha * (g + mu * V[0])


cdef inline floating adagrad_of(floating p, floating g, floating* nu, floating alpha, floating eps,
                                floating eps_root) noexcept nogil:
    nu[0] = nu[0] + g * g
    return p - alpha * g / (root(nu[0] + eps_root) + eps)


cdef inline floating rmsprop_of(floating p, floating g, floating* nu, floating alpha, floating beta,
                                floating gamma, floating eps, floating eps_root) noexcept nogil:
    nu[0] = beta * nu[0] + gamma * (g * g)
    return p - alpha * g / (root(nu[0] + eps_root) + eps)


cdef inline floating adam_of(floating p, floating g, floating* m, floating* v, floating alpha,
                             floating beta1, floating gamma1, floating beta2, floating gamma2,
                             floating eps, floating eps_root) noexcept nogil:
    m[0] = beta1 * m[0] + gamma1 * g
    v[0] = beta2 * v[0] + gamma2 * (g * g)
    return p - alpha * m[0] / (root(v[0] + eps_root) + eps)


cdef void momentum(floating* restrict p, const floating* restrict g, floating** s, Py_ssize_t n,
                   const floating* c) noexcept nogil:
    cdef floating* restrict V = s[0]
    cdef floating alpha = c[0], beta = c[1], gamma = c[2]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = momentum_of(p[i], g[i], &V[i], alpha, beta, gamma)


cdef void nesterov(floating* restrict p, const floating* restrict g, floating** s, Py_ssize_t n,
                   const floating* c) noexcept nogil:
    cdef floating* restrict V = s[0]
    cdef floating alpha = c[0], beta = c[1], gamma = c[2], mu = c[3]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = nesterov_of(p[i], g[i], &V[i], alpha, beta, gamma, mu)


cdef void adagrad(floating* restrict p, const floating* restrict g, floating** s, Py_ssize_t n,
                  const floating* c) noexcept nogil:
    cdef floating* restrict nu = s[0]
    cdef floating alpha = c[0], eps = c[1], eps_root = c[2]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = adagrad_of(p[i], g[i], &nu[i], alpha, eps, eps_root)


cdef void rmsprop(floating* restrict p, const floating* restrict g, floating** s, Py_ssize_t n,
                  const floating* c) noexcept nogil:
    cdef floating* restrict nu = s[0]
    cdef floating alpha = c[0], beta = c[1], gamma = c[2], eps = c[3], eps_root = c[4]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = rmsprop_of(p[i], g[i], &nu[i], alpha, beta, gamma, eps, eps_root)


cdef void rmsprop_momentum(floating* restrict p, const floating* restrict g, floating** s,
                           Py_ssize_t n, const floating* c) noexcept nogil:
    cdef floating* restrict nu = s[0]
    cdef floating* restrict V = s[1]
    cdef floating alpha = c[0], beta = c[1], gamma = c[2], eps = c[3], eps_root = c[4], mu = c[5]
    cdef Py_ssize_t i
    for i in range(n):
        nu[i] = beta * nu[i] + gamma * (g[i] * g[i])
        V[i] = mu * V[i] + g[i] / (root(nu[i] + eps_root) + eps)
        p[i] = p[i] - alpha * V[i]


cdef void rmsprop_centered(floating* restrict p, const floating* restrict g, floating** s,
                           Py_ssize_t n, const floating* c) noexcept nogil:
    cdef floating* restrict nu = s[0]
    cdef floating* restrict mean = s[1]
    cdef floating alpha = c[0], beta = c[1], gamma = c[2], eps = c[3], eps_root = c[4]
    cdef Py_ssize_t i
    for i in range(n):
        nu[i] = beta * nu[i] + gamma * (g[i] * g[i])
        mean[i] = beta * mean[i] + gamma * g[i]
        p[i] = p[i] - alpha * g[i] / (
            root(positive_part(nu[i] - mean[i] * mean[i]) + eps_root) + eps)


cdef void rmsprop_centered_momentum(floating* restrict p, const floating* restrict g, floating** s,
                                    Py_ssize_t n, const floating* c) noexcept nogil:
    cdef floating* restrict nu = s[0]
    cdef floating* restrict mean = s[1]
    cdef floating* restrict V = s[2]
    cdef floating alpha = c[0], beta = c[1], gamma = c[2], eps = c[3], eps_root = c[4], mu = c[5]
    cdef Py_ssize_t i
    for i in range(n):
        nu[i] = beta * nu[i] + gamma * (g[i] * g[i])
        mean[i] = beta * mean[i] + gamma * g[i]
        V[i] = mu * V[i] + g[i] / (
            root(positive_part(nu[i] - mean[i] * mean[i]) + eps_root) + eps)
        p[i] = p[i] - alpha * V[i]


cdef void adam(floating* restrict p, const floating* restrict g, floating** s, Py_ssize_t n,
               const floating* c) noexcept nogil:
    cdef floating* restrict m = s[0]
    cdef floating* restrict v = s[1]
    cdef floating alpha = c[0], beta1 = c[1], gamma1 = c[2], beta2 = c[3], gamma2 = c[4]
    cdef floating eps = c[5], eps_root = c[6]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = adam_of(p[i], g[i], &m[i], &v[i], alpha, beta1, gamma1, beta2, gamma2, eps, eps_root)


cdef void amsgrad(floating* restrict p, const floating* restrict g, floating** s, Py_ssize_t n,
                  const floating* c) noexcept nogil:
    cdef floating* restrict m = s[0]
    cdef floating* restrict v = s[1]
    cdef floating* restrict largest = s[2]
    cdef floating alpha = c[0], beta1 = c[1], gamma1 = c[2], beta2 = c[3], gamma2 = c[4]
    cdef floating eps = c[5], eps_root = c[6]
    cdef Py_ssize_t i
    for i in range(n):
        m[i] = beta1 * m[i] + gamma1 * g[i]
        v[i] = beta2 * v[i] + gamma2 * (g[i] * g[i])
        largest[i] = largest[i] if largest[i] > v[i] else v[i]
        p[i] = p[i] - alpha * m[i] / (root(largest[i] + eps_root) + eps)


cdef void ema(floating* restrict p, const floating* restrict g, floating** s, Py_ssize_t n,
              const floating* c) noexcept nogil:
    cdef floating beta = c[0], gamma = c[1]
    cdef Py_ssize_t i
    for i in range(n):
        p[i] = beta * p[i] + gamma * g[i]


# name: (float32 loop, float64 loop), as addresses; the engine and nobody else calls them.
RULES = {
    "sgd": (<size_t> <void*> sgd[float], <size_t> <void*> sgd[double]),
    "momentum": (<size_t> <void*> momentum[float], <size_t> <void*> momentum[double]),
    "nesterov": (<size_t> <void*> nesterov[float], <size_t> <void*> nesterov[double]),
    "adagrad": (<size_t> <void*> adagrad[float], <size_t> <void*> adagrad[double]),
    "rmsprop": (<size_t> <void*> rmsprop[float], <size_t> <void*> rmsprop[double]),
    "rmsprop_momentum": (
        <size_t> <void*> rmsprop_momentum[float], <size_t> <void*> rmsprop_momentum[double]),
    "rmsprop_centered": (
        <size_t> <void*> rmsprop_centered[float], <size_t> <void*> rmsprop_centered[double]),
    "rmsprop_centered_momentum": (
        <size_t> <void*> rmsprop_centered_momentum[float],
        <size_t> <void*> rmsprop_centered_momentum[double]),
    "adam": (<size_t> <void*> adam[float], <size_t> <void*> adam[double]),
    "amsgrad": (<size_t> <void*> amsgrad[float], <size_t> <void*> amsgrad[double]),
    "ema": (<size_t> <void*> ema[float], <size_t> <void*> ema[double]),
}
