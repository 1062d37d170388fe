"""Adafactor against torch's and its formula, at its edges, and rows and columns in every layout."""

from __future__ import annotations

import copy
import pickle
from functools import lru_cache, partial

import ml_dtypes
import numpy as np
import pytest
from support.helpers import COMPILED, remembered, same_bits
from support.sampling import sampled

import fastgd
from fastgd.core.storage import Piece
from fastgd.functional import adafactor
from fastgd.kernels import reference
from fastgd.kernels.reference import BLOCK, RULES
from fastgd.kernels.spec.lines import Axes, Axis, axes_of, spread, sums_over
from fastgd.kernels.spec.registry import Array, Columns, Rows, rule

F32, F64, BF16 = np.float32, np.float64, ml_dtypes.bfloat16
SMALL = [(5, 7), (2, 3, 4), (1, 9), (9, 1), (6,), (), (1, 1), (3, 1, 1), (2, 1, 5), (2, 5, 1)]
# Lines around a tile, a block of slices and a block; matrices small and many, wide and tall.
LARGE = [(300, 700), (129, 64), (64, 130), (65, 257), (3, BLOCK + 7), (130, BLOCK + 100),
         (BLOCK + 7, 3), (70, 3, 3), (5, 6, 7), (4, 300, 5), (50, 60, 3, 3), (1, 70_000),
         (70_000, 1), (2, 70_000, 1), (2, 1, 70_000), (66, 2, 2), (0, 5), (5, 0), (17, 256)]  # fmt: skip
OPTIONS = {
    "defaults": {},
    "decay": {"weight_decay": 0.1, "lr": 0.3},
    "all": {"weight_decay": 0.1, "beta2_decay": -0.3, "eps": (0.5, 2.0), "d": 1.5, "lr": 0.1},
    "no floor": {"eps": (0.0, 0.0)},
    "ascent": {"maximize": True},
}


@lru_cache(maxsize=4)
def normal(seed, shapes):
    """Numbers near 0.1; drawing them takes longer than compiled steps."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s) + 0.1 for s in shapes]


def drawn(seed, shapes=SMALL, dtype=F64, order="C"):
    return [np.array(a, dtype, order=order) for a in normal(seed, tuple(shapes))]


def kept(opt):
    """All parameters and states."""
    states = [a for entry in opt.state.values() for a in entry.values()]
    return [*opt.stepper.params().values(), *states]


def formula(p, g, state, t, lr=1e-2, beta2_decay=-0.8, eps=(None, 1e-3), d=1.0, weight_decay=0.0,
            maximize=False):  # fmt: skip
    """The step of the paper, as torch has it, in float64."""
    g = -g if maximize else g
    a, floor = t**beta2_decay, np.finfo(p.dtype).eps if eps[0] is None else eps[0]
    alpha = max(eps[1], np.sqrt(np.mean(p * p))) * min(lr, 1 / np.sqrt(t))
    if p.ndim > 1:
        R = state["R"] = (1 - a) * state.get("R", 0.0) + a * np.mean(g * g, -1, keepdims=True)
        C = state["C"] = (1 - a) * state.get("C", 0.0) + a * np.mean(g * g, -2, keepdims=True)
        V = R * C / np.maximum(np.mean(R, -2, keepdims=True), floor)
    else:
        V = state["V"] = (1 - a) * state.get("V", 0.0) + a * g * g
    U = g / np.sqrt(np.maximum(V, floor**2))
    rms = np.sqrt(np.mean(U * U))
    p[...] = (1 - lr * weight_decay) * p - alpha * U / max(1.0, rms / d)


# ------------------------------------------------------------------------------------ trajectories


@sampled({"options": OPTIONS, "order": ["C", "F"], "backend": [*COMPILED, "numpy"]})
def test_is_the_formula(options, order, backend):
    fastgd.set_backend(backend)
    params = drawn(0, order=order)
    theirs, states = [p.copy() for p in params], [{} for _ in params]
    opt = fastgd.Adafactor(params, **OPTIONS[options])
    for t in range(1, 101):
        grads = drawn(t, order=order)
        opt.step(grads)
        for q, g, state in zip(theirs, grads, states, strict=True):
            formula(q, g, state, t, **OPTIONS[options])
        for p, q in zip(params, theirs, strict=True):
            np.testing.assert_allclose(p, q, rtol=1e-12, atol=1e-14)


class Torch:
    """The same parameters under torch."""

    def __init__(self, params, **options):
        self.torch = pytest.importorskip("torch", reason="torch is not installed")
        self.params = [self.torch.nn.Parameter(self.torch.tensor(p)) for p in params]
        self.opt = self.torch.optim.Adafactor(self.params, **options)

    def step(self, grads):
        for p, g in zip(self.params, grads, strict=True):
            p.grad = self.torch.tensor(g)
        self.opt.step()

    def assert_close(self, opt, params):
        for p, q, own in zip(params, self.params, opt.state.values(), strict=True):
            np.testing.assert_allclose(p, q.detach().numpy(), rtol=1e-12, atol=1e-14)
            theirs = self.opt.state[q]
            assert set(own) == set(theirs)
            for key in set(own) - {"step"}:
                assert own[key].shape == tuple(theirs[key].shape)
                np.testing.assert_allclose(own[key], theirs[key].numpy(), rtol=1e-12)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("options", [o for o in OPTIONS if o != "no floor"])
def test_is_torchs(options, order):
    params = drawn(0, order=order)
    theirs = Torch(params, **OPTIONS[options])
    opt = fastgd.Adafactor(params, **OPTIONS[options])
    for t in range(1, 101):
        grads = drawn(t, order=order)
        opt.step(grads)
        theirs.step(grads)
    theirs.assert_close(opt, params)


@pytest.mark.parametrize("order", ["C", "F"])
def test_state_dicts_go_both_ways(order):
    params = drawn(0, order=order)
    theirs = Torch(params)
    for t in (1, 2, 3):
        theirs.step(drawn(t))
    for p, q in zip(params, theirs.params, strict=True):
        p[...] = q.detach().numpy()
    opt = fastgd.Adafactor(params, lr=0.5)
    opt.load_state_dict(theirs.opt.state_dict())
    assert opt.lr == 0.01
    for t in (4, 5):
        grads = drawn(t, order=order)
        opt.step(grads)
        theirs.step(grads)
    theirs.assert_close(opt, params)
    back = Torch(params)
    state = opt.state_dict()
    entries = {
        i: {key: back.torch.tensor(np.array(a)).to(back.torch.float64) for key, a in entry.items()}
        for i, entry in state["state"].items()
    }
    groups = [{**back.opt.state_dict()["param_groups"][0], "lr": 0.01}]
    back.opt.load_state_dict({"state": entries, "param_groups": groups})
    for t in (6, 7):
        grads = drawn(t, order=order)
        opt.step(grads)
        back.step(grads)
    back.assert_close(opt, params)


def test_float32_takes_the_epsilon_of_float32():
    """Where gradients are small, it is all that the step is divided by."""
    steps = {}
    for dtype in (F32, F64):
        p = np.ones((2, 2), dtype)
        fastgd.Adafactor(p, d=100.0).step(np.full((2, 2), 1e-6, dtype))
        steps[dtype] = 1.0 - float(p[0, 0])
    assert steps[F32] == pytest.approx(0.01 * 1e-6 / 2.0**-23, rel=1e-5)
    assert steps[F64] == pytest.approx(0.01, rel=1e-5)  # squares are far above that of float64


# -------------------------------------------------------------------------------------- every layout


AROUND = {
    "plain": {},
    "value": {"clip_value": 0.3, "maximize": True},
    "norm": {"clip_norm": 0.5, "average": 0.9},
    "ratio": {"clip_ratio": 0.05, "weight_decay": 0.1},
    "tensor": {"clip_norm": 0.5, "clip_by": "tensor", "zero_grads": True},
}


def large_steps(backend, threads, around, dtype, order):
    fastgd.set_backend(backend)
    fastgd.set_num_threads(threads)
    opt = fastgd.Adafactor(drawn(0, LARGE, dtype, order), **AROUND[around])
    for t in (1, 2):
        opt.step(drawn(t, LARGE, dtype, order))
    return kept(opt)


by_numpy = remembered(partial(large_steps, "numpy", 1))


@sampled({
    "around": AROUND, "dtype": [F32, F64], "order": ["C", "F"], "backend": COMPILED,
    "threads": [1, 2, 3],
})  # fmt: skip
def test_same_bits_as_numpy(around, dtype, order, backend, threads):
    chosen = "tensor" if around == "ratio" and order == "F" else around
    expected = by_numpy(chosen, dtype, order)
    for a, b in zip(large_steps(backend, threads, chosen, dtype, order), expected, strict=True):
        assert same_bits(a, b) if a.dtype.kind == "f" else a == b, a.shape


@sampled({
    "kind, options": [
        (F32, {"state_dtype": "8bit", "min_8bit_size": 0}),
        (F32, {"state_dtype": "bfloat16"}),
        (F64, {"state_dtype": "float32"}),
        (BF16, {"master": True}),
        (BF16, {"master": "split", "state_dtype": "bfloat16"}),
        (BF16, {"rounding": "stochastic", "seed": 3}),
    ],
    "backend": COMPILED,
    "threads": [1, 2],
})  # fmt: skip
def test_storage_is_that_of_other_states(kind, options, backend, threads):
    """Numbers of rows and columns are kept as they are computed; bits equal NumPy's."""
    shapes = [(130, 70), (3, 5, 300), (300,), (4, 4)]
    results = []
    for use, n in (("numpy", 1), (backend, threads)):
        fastgd.set_backend(use)
        fastgd.set_num_threads(n)
        opt = fastgd.Adafactor(drawn(0, shapes, kind), **options, weight_decay=0.1)
        for t in (1, 2, 3):
            opt.step(drawn(t, shapes, F32 if t == 2 else kind))
        results.append([np.asarray(a, order="K") for a in kept(opt)])
    for a, b in zip(*results, strict=True):
        assert a.tobytes() == b.tobytes()
    computed = F64 if kind is F64 else F32
    assert {opt.state[0][key].dtype for key in ("row_var", "col_var")} == {np.dtype(computed)}
    assert "row_var_exponent" not in opt.state[0]


@pytest.mark.parametrize("backend", COMPILED)
def test_lines_that_threads_share(backend):
    """Of many small matrices, of lines of one element or apart, and where a matrix ends amid tiles."""
    shapes = {"C": [(7500, 3, 3), (200, 300, 1), (12, 66, 520)], "F": [(3, 100_000, 2)]}
    found = []
    for use, threads in (("numpy", 1), (backend, 1), (backend, 2), (backend, 8)):
        fastgd.set_backend(use)
        fastgd.set_num_threads(threads)
        params = [p for order in shapes for p in drawn(0, shapes[order], F64, order)]
        opt = fastgd.Adafactor(params)
        for t in (1, 2):
            opt.step([g for order in shapes for g in drawn(t, shapes[order], F64, order)])
        found.append(kept(opt))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert same_bits(a, b) if a.dtype.kind == "f" else a == b, a.shape


def test_state_dtype_names_no_rows():
    with pytest.raises(ValueError, match="state_dtype"):
        fastgd.Adafactor(np.ones((2, 2)), state_dtype={"row_var": "bfloat16"})
    opt = fastgd.Adafactor(np.ones(5, F32), state_dtype={"variance": "bfloat16"})
    assert opt.state[0]["variance"].dtype == BF16


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 4, 3, 5), (4, 1), (1, 4), (3, 1, 2)])
@pytest.mark.parametrize("seed", range(4))
def test_lines_lie_where_axes_say(shape, seed):
    """Of arrays whose axes lie in any order in memory."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(shape))
    memory = rng.standard_normal([shape[k] for k in order])
    x = memory.transpose(np.argsort(order))
    axes = axes_of(x.shape, x.strides, x.itemsize)
    assert x.shape == shape
    for axis, kind in ((-1, "rows"), (-2, "columns")):
        own = getattr(axes, kind)
        sums = x.sum(axis, keepdims=True)
        flat = sums.transpose(order).ravel()
        np.testing.assert_allclose(sums_over(memory.ravel(), own), flat, rtol=1e-13)
        everywhere = np.broadcast_to(sums, shape).transpose(order).ravel()
        np.testing.assert_array_equal(spread(flat, own), everywhere)
    rows = x.sum(-1, keepdims=True)
    total = rows.sum(-2, keepdims=True).transpose(order).ravel()
    flat = rows.transpose(order).ravel()
    np.testing.assert_allclose(sums_over(flat, axes.matrices), total, rtol=1e-13)


def test_axes_of_what_has_no_rows():
    assert axes_of((), ()) is None
    assert axes_of((3,), (1,)) is None
    assert axes_of((1, 1), (1, 1)) == Axes(*4 * [Axis(1, 1)])


def test_tensors_in_any_order_of_axes():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    import fastgd.torch

    def parameters():
        make = torch.Generator().manual_seed(0)
        drawn = [torch.randn(s, dtype=torch.float64, generator=make) for s in [(4, 3, 2, 2)] * 3]
        laid = [
            drawn[0],
            drawn[1].to(memory_format=torch.channels_last),
            drawn[2].permute(2, 0, 3, 1),
            drawn[0][0, 0].clone().t(),
        ]
        return [torch.nn.Parameter(p) for p in laid]

    ours, theirs = parameters(), parameters()
    opt, other = fastgd.torch.Adafactor(ours), torch.optim.Adafactor(theirs)
    make = torch.Generator().manual_seed(1)
    for t in range(6):
        for p, q in zip(ours, theirs, strict=True):
            q.grad = torch.randn(p.shape, dtype=p.dtype, generator=make)
            p.grad = torch.empty_like(p).copy_(q.grad)
        opt.step()
        other.step()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(dict(opt.state[p]), dict(other.state[q]))
        if t == 2:
            opt.load_state_dict(copy.deepcopy(other.state_dict()))
        if t == 3:
            opt.load_state_dict(copy.deepcopy(opt.state_dict()))


# -------------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_edges(backend, dtype):
    fastgd.set_backend(backend)
    for shape in ((3, 300), (300, 3), (3, 4)):
        p = np.ones(shape, dtype)
        opt = fastgd.Adafactor(p)
        opt.step(np.zeros_like(p))
        assert np.all(p == 1), "no gradient, no step"
        assert all(np.all(opt.state[0][key] == 0) for key in ("row_var", "col_var"))
    g = np.zeros_like(p)
    g[1, 2] = 2.0
    opt.step(g)
    assert np.count_nonzero(p != 1) == 1, "rows and columns without gradient stand still"
    one = np.full((1, 1), 2.0, dtype)
    fastgd.Adafactor(one, lr=0.1).step(np.full((1, 1), -5.0, dtype))
    np.testing.assert_allclose(one, 2.2, rtol=1e-6)
    for empty in ((0,), (0, 3), (3, 0), (0, 2, 3)):
        nothing = fastgd.Adafactor(np.ones(empty, dtype))
        nothing.step(np.ones(empty, dtype))
        assert all(np.all(a == 0) for k, a in nothing.state[0].items() if k != "step")
    for bad in (np.nan, np.inf):
        q, g = np.ones((2, 3), dtype), np.ones((2, 3), dtype)
        g[0, 0] = bad
        other = fastgd.Adafactor(q)
        other.step(g)
        assert np.isnan(q).any()
        with pytest.raises(FloatingPointError):
            fastgd.Adafactor(np.ones((2, 3), dtype), nonfinite="raise").step(g)
        skipping = fastgd.Adafactor(np.ones((2, 3), dtype), nonfinite="skip")
        assert skipping.step(g).skipped
        assert np.all(skipping.state[0]["row_var"] == 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beta2_decay": 0.1}, "beta2_decay: expected a number of at most 0, found 0.1"),
        ({"d": 0.5}, "d: expected a number of at least 1, found 0.5"),
        ({"eps": (-1.0, 1.0)}, r"eps\[0\]: expected a number of at least 0"),
        ({"eps": (None, None)}, r"eps\[1\]: expected a number, found None"),
        ({"eps": (1.0,)}, "eps: expected two numbers, found 1"),
        ({"eps": 1.0}, "eps: expected two numbers, found 1.0"),
    ],
)
def test_what_hyper_parameters_may_be(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fastgd.Adafactor(np.ones(1), **given)


def test_shards_are_refused():
    with pytest.raises(ValueError, match="rule adafactor does not step shards"):
        fastgd.Adafactor([Piece(np.ones(6), 6, 12, shape=(4, 3))])
    fastgd.Adafactor([Piece(np.ones(6), 6, 12, shape=(12,))]).step([np.ones(6)])


def test_saved_states_that_do_not_fit():
    opt = fastgd.Adafactor(np.ones((4, 3)))
    opt.step(np.ones((4, 3)))
    state = copy.deepcopy(opt.state_dict())
    state["state"][0]["row_var"] = np.ones((4, 3))
    with pytest.raises(ValueError, match=r'"row_var"\]: expected shape \(4, 1\)'):
        opt.load_state_dict(state)
    del state["state"][0]["row_var"]
    with pytest.raises(ValueError, match="row_var"):
        opt.load_state_dict(state)


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "checkpoint"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_copies_and_checkpoints_go_on(way, order, tmp_path):
    shapes = [(5, 7), (2, 3, 4), (6,)]
    opt = fastgd.Adafactor(drawn(0, shapes, order=order))
    opt.step(drawn(1, shapes, order=order))
    if way == "checkpoint":
        fastgd.save(tmp_path / "run", opt)
        other = fastgd.Adafactor(drawn(9, shapes, order=order))
        fastgd.load(tmp_path / "run", other)
    else:
        other = copy.deepcopy(opt) if way == "deepcopy" else pickle.loads(pickle.dumps(opt))
    for one in (opt, other):
        one.step(drawn(2, shapes, order=order))
    for a, b in zip(kept(opt), kept(other), strict=True):
        assert np.array_equal(a, b)


def test_groups_and_accumulated_gradients():
    first, second = drawn(0)[:2], drawn(1)[:2]
    opt = fastgd.Adafactor([{"params": first}])
    opt.step([drawn(2)[:2]])
    opt.add_param_group({"params": second, "lr": 0.5})
    for weight in (1.0, 3.0):
        opt.accumulate([drawn(3)[:2], drawn(4)[:2]], weight)
    opt.step()
    assert [int(opt.state[f"{k}.{i}"]["step"]) for k in (0, 1) for i in (0, 1)] == [2, 2, 1, 1]


@pytest.mark.parametrize("order", ["C", "F"])
def test_functional(order):
    for shape in ((5, 7), (2, 3, 4), (6,)):
        (p,), (q,) = drawn(0, [shape], order=order), drawn(0, [shape], order=order)
        opt = fastgd.Adafactor(p, weight_decay=0.1)
        states = [np.zeros_like(a) for k, a in opt.state[0].items() if k != "step"]
        for t in (1, 2):
            (g,) = drawn(t, [shape], order=order)
            opt.step(g)
            adafactor(q, g, *states, step=t, weight_decay=0.1)
        assert same_bits(p, q)
    p, row, column = np.ones((2, 3)), np.zeros((2, 1)), np.zeros((1, 3))
    with pytest.raises(ValueError, match=r"row_var: expected shape \(2, 1\), found \(1, 3\)"):
        adafactor(p, p.copy(), column, row, step=1)
    with pytest.raises(ValueError, match=r"col_var: expected contiguous memory"):
        adafactor(np.ones((2, 3, 4)), np.ones((2, 3, 4)), np.zeros((2, 3, 1)),
                  np.zeros((2, 4, 1)).transpose(0, 2, 1)[..., ::-1], step=1)  # fmt: skip


# --------------------------------------------------------------------------------- what rules declare


def test_every_coefficient_shows():
    """The comparison has teeth: each coefficient, changed a little, changes the result."""
    right = [0.7, 0.3, 0.2, 0.1, 3.0, 1.5]  # β₂, γ₂, ε₁, ρ, ε₂, d
    g = np.arange(1.0, 13.0).reshape(3, 4) / 10
    states = {
        "adafactor": [np.full((3, 1), 0.02), np.full((1, 4), 0.01)],
        "adafactor_vector": [np.full((3, 4), 0.01)],
    }

    def result(name, coefficients):
        arrays = [0.1 + g / 4, *(a.copy() for a in states[name])]
        reference.step(name, arrays[0], g, arrays[1:], coefficients)
        return np.concatenate([a.ravel() for a in arrays])

    for name in states:
        assert RULES[name].coefficients == ("beta2", "gamma2", "eps", "rho", "least", "d")
        for k in range(len(right)):
            wrong = [c * (1 + 1e-9 * (j == k)) for j, c in enumerate(right)]
            assert not np.array_equal(result(name, right), result(name, wrong)), (name, k)


def test_rows_and_columns_come_together():
    with pytest.raises(TypeError, match="expected Rows, Columns, lines, rows and columns"):

        @rule
        def halves(p: Array, g: Array, row_var: Rows) -> None: ...

    with pytest.raises(TypeError, match="or none of them"):

        @rule(lines=lambda p, g: None)
        def others(p: Array, g: Array, row_var: Rows, col_var: Columns) -> None: ...

    assert not RULES["adafactor"].shards
    assert RULES["adafactor_vector"].shards
