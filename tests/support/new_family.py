"""A made-up family of optimizers, and what is asked of a package that was built with it.

Run in the package's copy, as a program: it prints every place where the family was found.
"""

from __future__ import annotations

MODULE = '''"""Drift: descent along an average of the gradients, of which large ones count for less."""

from __future__ import annotations

from math import sqrt

import numpy as np

from fastgd.core.contract import Hyper, hyper
from fastgd.core.domains import flag, fraction, nonnegative
from fastgd.core.optimizer import Optimizer
from fastgd.kernels._engine import raised
from fastgd.kernels.spec.registry import (
    Array,
    Fused,
    Number,
    Read,
    Scalar,
    Size,
    Squares,
    Sum,
    SumOfSquares,
    rule,
    sets,
)


class Drift(Optimizer):
    """Descent along an average of the gradients, of which large ones count for less."""

    year = 2030
    lr = hyper(nonnegative, 1e-2)
    beta = hyper(fraction, 0.9)
    weight_decay = hyper(nonnegative, 0.0)
    tamed = hyper(flag, False)
    eps = hyper(nonnegative, 1e-8, keyword=True)
    shared = hyper(flag, False, keyword=True)

    @staticmethod
    def rule(h: Hyper, shape: tuple[int, ...]) -> str:
        if h["shared"]:
            return "shared_drift"
        return "tamed_drift" if h["tamed"] else "drift"

    @staticmethod
    def initial(h: Hyper) -> dict[str, float]:
        return {"drifted": 1.0} if h["shared"] else {}

    @staticmethod
    def coefficients(h: Hyper, t: int) -> tuple[float, ...]:
        beta = h["beta"]
        return h["lr"] / sqrt(1.0 - raised(beta, t)), beta, 1.0 - beta, h["eps"]


@rule(fused=Fused(params=("float32", "bfloat16"), states=("float32", "8bit"), gain="made up"))
def drift(
    p: Array, g: Array, drift_avg: Array, *, alpha: Scalar, beta: Scalar, gamma: Scalar
) -> None:
    """m ← βm + γg; p ← p − αm (nobody, 2030)."""
    drift_avg[...] = beta * drift_avg + gamma * g
    p[...] = p - alpha * drift_avg


@rule
def tamed_drift(
    p: Array,
    g: Array,
    drift_avg: Array,
    drift_sq: Squares,
    *,
    alpha: Scalar,
    beta: Scalar,
    gamma: Scalar,
    eps: Scalar,
) -> None:
    """m ← βm + γg; v ← v + g²; p ← p − αm / (√v + ε) (nobody, 2030)."""
    drift_avg[...] = beta * drift_avg + gamma * g
    drift_sq[...] = drift_sq + g * g
    p[...] = p - alpha * drift_avg / (np.sqrt(drift_sq) + eps)


@sets("drifted", "delta")
def drift_begin(drifted: Number, *, beta: Scalar) -> tuple[Scalar, ...]:
    """Π ← βΠ; δ = 1 + Π."""
    product = drifted * beta
    return product, 1.0 + product


def drift_before(
    p: Array, g: Array, drift_avg: Array, *, beta: Scalar, gamma: Scalar, delta: Scalar
) -> tuple[Array, Array]:
    """m ← βm + γδg; returns m, and p."""
    drift_avg[...] = beta * drift_avg + gamma * (delta * g)
    return drift_avg, p


@sets("mean", "rms")
def drift_settle(
    total: Sum, squares: SumOfSquares, n: Size, *, alpha: Scalar
) -> tuple[Scalar, ...]:
    """The mean of m, and the step for the root of the mean square of p."""
    mean = total / n if n > 0.0 else 0.0
    return mean, alpha * np.sqrt(squares / n) if squares > 0.0 else alpha


@rule(begin=drift_begin, before=drift_before, settle=drift_settle)
def shared_drift(p: Array, drift_avg: Read, *, mean: Scalar, rms: Scalar) -> None:
    """p ← p − α√(Σp²/n) (m + Σm/n) (nobody, 2030)."""
    p[...] = p - rms * (drift_avg + mean)
'''

LOOPS = """# One element of each rule of drift.py.

cdef inline floating drift_element(floating p, floating g, floating* m, floating alpha,
                                   floating beta, floating gamma) noexcept nogil:
    m[0] = beta * m[0] + gamma * g
    return p - alpha * m[0]


cdef inline floating tamed_drift_element(floating p, floating g, floating* m, floating* v,
                                         floating alpha, floating beta, floating gamma,
                                         floating eps) noexcept nogil:
    m[0] = beta * m[0] + gamma * g
    v[0] = v[0] + g * g
    return p - alpha * m[0] / (root(v[0]) + eps)


cdef inline void drift_before_element(floating p, floating g, floating* m, floating* w,
                                      floating* x, floating beta, floating gamma,
                                      floating delta) noexcept nogil:
    m[0] = beta * m[0] + gamma * (delta * g)
    w[0] = m[0]
    x[0] = p


cdef inline floating shared_drift_element(floating p, floating m, floating mean,
                                           floating rms) noexcept nogil:
    return p - rms * (m + mean)
"""


def places() -> dict[str, bool]:
    """Everywhere an optimizer is to be found without anybody listing it."""
    import inspect
    import subprocess
    import sys
    from importlib import import_module
    from pathlib import Path

    import numpy as np
    import scipy.optimize
    from sklearn.datasets import make_blobs

    import fastgd
    import fastgd.scipy
    import fastgd.sklearn
    from fastgd.core.variants import rules_of, variants
    from fastgd.kernels import _baseline, c_api
    from fastgd.kernels.reference import RULES

    rules = ("drift", "tamed_drift", "shared_drift")
    header = Path(fastgd.get_include(), "fastgd.h").read_text("utf-8")
    found = {
        "fastgd": "Drift" in fastgd.__all__ and hasattr(fastgd, "Drift"),
        "optimizers": list(fastgd.optimizers.OPTIMIZERS)[-1] == "Drift",
        "signature": str(inspect.signature(fastgd.Drift)).startswith(
            "(params: 'object', lr: 'Scalar' = 0.01, beta: 'Scalar' = 0.9, "
        ),
        "types": "class Drift(Optimizer):"
        in Path(fastgd.optimizers.__file__).with_suffix(".pyi").read_text("utf-8"),
        "rules": all(rule in RULES and rule in _baseline.RULES for rule in rules),
        "fused loops": len(_baseline.FUSED["drift"]) == 4 and "tamed_drift" not in _baseline.FUSED,
        "rules of a class": list(rules_of(fastgd.Drift)) == list(rules),
        "option sets": len(variants(fastgd.Drift)) >= 4,
        "header": all(f"fastgd_{name}_f64" in header for name in rules)
        and "fastgd_shared_drift_settle" in header,
        "coefficients from C": fastgd.Drift.in_c() is not None,
        "C level": "fastgd_drift_coefficients" in c_api.ADDRESSES,
    }

    # A step of every kind, against the formula.
    for kind in ("float32", "float64"):
        p, g = np.ones(300, kind), np.full(300, 0.5, kind)
        fastgd.Drift(p, lr=0.5, beta=0.75).step(g)
        found[f"step in {kind}"] = bool(np.allclose(p, 1 - 0.5 / np.sqrt(0.25) * 0.25 * 0.5))
    q, m = np.ones(300), np.zeros(300)
    fastgd.functional.drift(q, np.full(300, 0.5), m, step=1, lr=0.5, beta=0.75)
    found["functional"] = bool(np.array_equal(q, p))

    x = scipy.optimize.minimize(
        lambda w: ((w - 1) ** 2).sum(), np.zeros(3), jac=lambda w: 2 * (w - 1),
        method=fastgd.scipy.drift, options={"lr": 0.1, "maxiter": 300},
    ).x  # fmt: skip
    found["SciPy"] = bool(np.allclose(x, 1, atol=1e-2))
    points, labels = make_blobs(60, centers=2, random_state=0)
    net = fastgd.sklearn.MLPClassifier(
        (4,), optimizer="drift", learning_rate_init=0.05, random_state=0
    )
    net.fit(points, labels)
    found["scikit-learn"] = bool(net.loss_curve_[-1] < 0.5 * net.loss_curve_[0])

    import torch

    import fastgd.torch

    w = torch.nn.Parameter(torch.ones(300, dtype=torch.float64))
    w.grad = torch.full_like(w, 0.5)
    fastgd.torch.Drift([w], lr=0.5, beta=0.75).step()
    found["torch"] = bool(np.array_equal(w.detach().numpy(), q))

    def printed(*words: str) -> str:
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        return done.stdout + done.stderr

    table = printed("-m", "fastgd", "optimizers", "Drift")
    found["table"] = all(f"  {rule}" in table for rule in rules) and "nobody, 2030" in table
    trained = printed("-m", "fastgd", "train", "--optimizer", "Drift", "--epochs", "1")
    found["command line"] = "Drift" in trained and "Traceback" not in trained
    mutants = printed("tests/tools/mutate.py", "--list", "--all", "--only", "drift")
    found["mutation tool"] = all(f"drift.pxi: {rule}_element" in mutants for rule in rules)
    sys.path.insert(0, "bench")
    contestants = import_module("contestants")
    found["bench"] = any(case.optimizer == "Drift" for case in contestants.CASES.values())
    sys.path.insert(0, "tests/tools/sanitizers")
    smoke = import_module("smoke")
    found["sanitizer smoke"] = any(cls is fastgd.Drift for cls, _ in smoke.MADE)
    sys.path.insert(0, "tests")
    fuzzed = import_module("tools.fuzz_arguments")
    found["fuzz"] = "Drift" in fuzzed.OPTIMIZERS
    return found


if __name__ == "__main__":
    import json

    print(json.dumps(places()))
