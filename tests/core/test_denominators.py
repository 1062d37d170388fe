"""No denominator is 0: where there is no gradient, elements stand still, whatever ε is."""

from __future__ import annotations

import numpy as np
import pytest
from support import compiled_level
from support.helpers import COMPILED, same_bits

import fastgd
from fastgd.core.domains import positive
from fastgd.optimizers import OPTIMIZERS

WITH_EPS = [name for name in OPTIMIZERS if "eps" in OPTIMIZERS[name].hypers]
REFUSING_0 = [name for name in WITH_EPS if OPTIMIZERS[name].hypers["eps"].domain is positive]
# Muon's and SOAP's steps are of the matrix, and Yogi's momentum starts above 0.  Adadelta steps as far as it
# did before, from ε on; RAdamScheduleFree not at once.
DRIFTING, WAITING = {"Muon", "SOAP", "Yogi"}, {"Adadelta", "RAdamScheduleFree"}
STORED = [{}, {"state_dtype": "bfloat16"}, {"state_dtype": "8bit", "min_8bit_size": 1}]


def walk(name, dtype, eps, shape=(40, 30), **options):
    """Three steps from ones, half of them without a gradient; the second without any."""
    given = OPTIMIZERS[name].hypers["eps"].default
    options |= {"eps": (eps, 1e-3) if isinstance(given, tuple) else eps}
    if "weight_decay" in OPTIMIZERS[name].hypers:
        options["weight_decay"] = 0.0
    p = np.ones(shape, dtype)
    g = np.zeros_like(p)
    g[: shape[0] // 2] = np.linspace(1e-3, 1.0, shape[1])
    opt = OPTIMIZERS[name](p, lr=0.01, **options)
    for gradient in (np.zeros_like(p), g, g):
        opt.step(gradient)
    return p


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
@pytest.mark.parametrize("name", WITH_EPS)
def test_elements_without_a_gradient_stand_still(name, backend):
    fastgd.set_backend(backend)
    shape = (40, 256) if OPTIMIZERS[name].sparse else (40, 30)  # rows of tables are whole tiles
    for dtype in (np.float32, np.float64):
        for eps in (0.0, 1e-44, 5e-324):
            if (eps == 0.0 and name in REFUSING_0) or (eps == 5e-324 and dtype == np.float32):
                continue  # they are refused
            for stored in STORED if eps == 0.0 else STORED[:1]:
                p = walk(name, dtype, eps, shape, **stored)
                assert np.isfinite(p).all(), (dtype, eps, stored)
                if name not in DRIFTING:
                    assert np.all(p[20:] == 1), (dtype, eps, stored)
                assert name in WAITING or np.any(p[:20] != 1)


@pytest.mark.parametrize("name", WITH_EPS)
def test_where_there_is_a_gradient_no_bit_changes(name):
    """An ε that is small, and not 0, has the same bits as what stands in for 0."""
    if name in (*REFUSING_0, "Adafactor", "Muon", "NovoGrad", "SOAP"):
        return  # refuses 0; is lowered by it; is no quotient of each element
    zero, small = walk(name, np.float32, 0.0), walk(name, np.float32, 2e-38)
    assert same_bits(zero[:20], small[:20])


def test_the_c_level_divides_by_as_little():
    for dtype in (np.float32, np.float64):
        p, g, m, v = np.ones(5, dtype), *np.zeros((3, 5), dtype)
        compiled_level.step("adam", p, g, [m, v], [], [0.01, 0.9, 0.1, 0.99, 0.01, 0, 0], None)
        assert np.all(p == 1)


@pytest.mark.parametrize("dtype", [np.float32, "bfloat16"])
def test_what_float32_would_round_to_0_is_refused(dtype):
    options = {"rounding": "stochastic"} if dtype == "bfloat16" else {}
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    p = {"W": np.ones(3, dtype)}
    for key, value in (
        ("eps", 1e-50),
        ("betas", (1e-50, 0.9)),
        ("weight_decay", 2.0**-150),
        ("clip_value", 1e-60),
    ):
        with pytest.raises(ValueError, match=rf'^{key}: .* params\["W"\] is computed, found'):
            fastgd.Adam(p, **{key: value}, **options)
        opt = fastgd.Adam(p, **options)
        with pytest.raises(ValueError, match=f"^{key}: expected 0 or a number that float32"):
            opt.param_groups[0][key] = value
        assert opt.param_groups[0][key] == opt.defaults[key]
        fastgd.Adam(np.ones(3), **{key: value})
    fastgd.Adam(p, eps=2.0**-149, **options)
    opt = fastgd.Adam(p, lr=1e-50, **options)  # a rate that decayed to nothing
    opt.step({"W": np.ones(3, np.float32)})
    assert np.all(p["W"] == 1)
