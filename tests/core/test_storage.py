"""Parameters, gradients and states in fewer bytes: the same bits everywhere, nothing lost or stuck."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from support.helpers import COMPILED, draw, remembered, run_python, same_bits
from support.sampling import optimizers, sampled

import fastgd
from fastgd.averages import EMA
from fastgd.core.storage import Piece
from fastgd.functional import global_norm
from fastgd.kernels.reference import RULES
from fastgd.kernels.spec.codecs import CODECS, TILE
from fastgd.kernels.spec.coded_array import as_coded
from fastgd.kernels.spec.random_words import random_key, random_words
from fastgd.optimizers import OPTIMIZERS

F32, F64, F16, BF16 = np.float32, np.float64, np.float16, ml_dtypes.bfloat16
SIZES = [0, 1, 7, 255, 256, 257, 1000, 4095, 4096, 5000, 70_001]


def bits(a):
    """An array as bits, whatever its dtype."""
    return np.ascontiguousarray(a).view(np.uint8)


def arrays_of(opt):
    kept = [a for entry in opt.state.values() for a in entry.values()]
    averages = list(opt.average.averages.values()) if opt.average else []
    return [*opt.stepper.params().values(), *kept, *averages]


def run(backend, threads, name, p_dtype, g_dtype, steps=3, **options):
    fastgd.set_backend(backend)
    fastgd.set_num_threads(threads)
    opt = OPTIMIZERS[name](draw(0, SIZES, p_dtype), lr=0.01, **options)
    records = [repr(opt.step(draw(k + 1, SIZES, g_dtype))) for k in range(steps)]
    return [bits(a) for a in arrays_of(opt)], records


by_numpy = remembered(partial(run, "numpy", 1))


KINDS = [
    (F32, F32, {"state_dtype": "bfloat16"}),
    (F32, F32, {"state_dtype": "float16"}),
    (F32, F32, {"state_dtype": "8bit", "min_8bit_size": 1}),
    (F32, BF16, {"state_dtype": "8bit"}),
    (F32, F64, {}),
    (F32, F16, {"clip_norm": 1.0}),
    (F64, F32, {"state_dtype": "8bit", "min_8bit_size": 0}),
    (F64, BF16, {"state_dtype": "float32"}),
    (BF16, BF16, {"master": True}),
    (BF16, BF16, {"master": "split", "average": 0.9}),
    (BF16, F32, {"rounding": "stochastic", "seed": 7, "average": 0.9}),
    (BF16, BF16, {"rounding": "stochastic", "state_dtype": "8bit", "clip_norm": 1.0,
                  "nonfinite": "skip", "weight_decay": 0.1, "clip_value": 0.5}),
    (F16, F16, {"rounding": "nearest", "state_dtype": "float16"}),
    (F16, BF16, {"master": True, "state_dtype": {"exp_avg": "8bit", "exp_avg_sq": "bfloat16"}}),
]  # fmt: skip


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_same_bits_on_every_backend(backend, kind):
    p_dtype, g_dtype, options = KINDS[kind]
    expected, said = by_numpy("Adam", p_dtype, g_dtype, **options)
    for threads in (1, 2):
        found, records = run(backend, threads, "Adam", p_dtype, g_dtype, **options)
        assert records == said
        assert all(map(np.array_equal, found, expected))


@pytest.mark.parametrize("name", ["Adam", "RMSprop", "Momentum"])
@pytest.mark.parametrize("tile", range(3))
@pytest.mark.parametrize("backend", COMPILED)
def test_a_tile_of_nan_leaves_the_next_one_alone(backend, tile, name):
    """Each tile's scale is its own, in loops that do several tiles, too."""

    def steps(use):
        fastgd.set_backend(use)
        opt = OPTIMIZERS[name](draw(0, [3 * TILE], F32), state_dtype="8bit", min_8bit_size=1)
        for k in range(3):
            (g,) = draw(k + 1, [3 * TILE], F32)
            if k == 0:
                g[tile * TILE + 7] = np.nan
            opt.step([g])
        return arrays_of(opt)

    for found, expected in zip(steps(backend), steps("numpy"), strict=True):
        assert same_bits(found, expected) if found.dtype == F32 else np.array_equal(found, expected)


@sampled({"name": optimizers(), "state_dtype": ["bfloat16", "float16", "8bit"]})
def test_every_rule_in_every_storage(name, state_dtype):
    many = {"momentum": 0.9} if name in {"SGD", "RMSprop"} else {}
    many |= {"amsgrad": True} if name in {"Adam", "AdamW"} else {}
    many |= {"centered": True} if name == "RMSprop" else {}
    options = {"state_dtype": state_dtype, "min_8bit_size": 0, "rounding": "stochastic", **many}
    expected, _ = by_numpy(name, BF16, BF16, **options)
    found, _ = run(fastgd.get_backend(), 2, name, BF16, BF16, **options)
    again, _ = run(fastgd.available_backends()[0], 3, name, BF16, BF16, **options)
    assert all(map(np.array_equal, found, expected))
    assert all(map(np.array_equal, again, expected))


@pytest.mark.parametrize("backend", COMPILED)
def test_a_first_sweep_takes_scaled_gradients_and_stored_parameters(backend):
    options = {"state_dtype": "bfloat16", "rounding": "stochastic", "clip_norm": 1.0}
    expected, _ = by_numpy("LAMB", BF16, BF16, **options)
    found, _ = run(backend, 1, "LAMB", BF16, BF16, **options)
    assert all(map(np.array_equal, found, expected))


def test_states_show_how_they_are_kept():
    p = [np.ones((64, 64), F32), np.ones(100, F32)]
    opt = fastgd.Adam(p, state_dtype="8bit")
    large, small = opt.state[0], opt.state[1]
    assert list(large) == [
        "step",
        "exp_avg",
        "exp_avg_exponent",
        "exp_avg_sq",
        "exp_avg_sq_exponent",
    ]
    assert large["exp_avg"].dtype == large["exp_avg_exponent"].dtype == np.uint8
    assert large["exp_avg"].shape == (64, 64)
    assert large["exp_avg_exponent"].shape == (16,)
    assert list(small) == ["step", "exp_avg", "exp_avg_sq"]
    assert small["exp_avg"].dtype == F32
    opt = fastgd.Adam(p, state_dtype={"exp_avg": "bfloat16"})
    assert opt.state[0]["exp_avg"].dtype == BF16
    assert opt.state[0]["exp_avg_sq"].dtype == F32
    opt = fastgd.SGD([p[0].astype(BF16)], master="split")
    assert opt.state[0]["master_low"].dtype == np.int16
    assert opt.storage.master == "split"


def test_the_rule_says_which_states_are_squares(monkeypatch):
    """And not the state's name: another rule may keep something of any sign by that name."""
    p, storage = np.zeros(5000, F32), fastgd.Adam(np.zeros(1), state_dtype="8bit").storage
    other = RULES["adam"]._replace(name="other", squares=frozenset())
    monkeypatch.setitem(RULES, "other", other)
    codecs = {rule: storage.kinds(p, rule)["exp_avg_sq"].codec for rule in ("adam", "other")}
    assert codecs == {"adam": "ue6m2", "other": "e5m2"}
    assert storage.kinds(p, "adam")["exp_avg"].codec == "e5m2"


def test_memory_of_8bit_states():
    p = np.zeros(1_000_000, F32)
    opt = fastgd.Adam(p, state_dtype="8bit")
    used = sum(a.nbytes for key, a in opt.state[0].items() if key != "step")
    assert used <= 2.05 * p.size


def test_uint16_is_bfloat16_and_torch_needs_no_copy():
    a = draw(0, [5000], BF16)[0]
    b = a.view(np.uint16).copy()
    g = draw(1, [5000], BF16)[0]
    fastgd.SGD(a, lr=0.1, rounding="stochastic").step(g)
    fastgd.SGD(b, lr=0.1, rounding="stochastic").step(g.view(np.uint16))
    assert np.array_equal(a.view(np.uint16), b)


@pytest.mark.parametrize("option", ["master='split'", "rounding='nearest'"])
def test_the_first_bfloat16_of_a_process_is_a_parameter(option):
    """What number NumPy gives bfloat16 is only known once one was seen."""
    code = (
        "import fastgd, ml_dtypes, numpy as np\n"
        "p = np.zeros(3, ml_dtypes.bfloat16)\n"
        f"fastgd.SGD(p, lr=0.5, {option}).step(np.ones(3, np.float32))\n"
        "assert (p == -0.5).all()\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_16_bits_need_a_choice(dtype):
    p = np.ones(3, dtype)
    with pytest.raises(
        ValueError, match=r'^params\["W"\]: is b?float16, which small updates don\'t'
    ):
        fastgd.Adam({"W": p})
    for options in ({"master": True}, {"rounding": "stochastic"}, {"rounding": "nearest"}):
        fastgd.Adam({"W": p}, **options).step({"W": np.ones(3, dtype)})
    with pytest.raises(ValueError, match="rounding excludes a master"):
        fastgd.Adam(p, master=True, rounding="stochastic")
    with pytest.raises(ValueError, match="copy_to excludes master=True"):
        fastgd.Adam(p, master=True, copy_to=np.ones(3, F32))


def test_bfloat16_parameters_that_are_the_first_bfloat16_of_a_process():
    done = run_python("""
import ml_dtypes, numpy as np, fastgd
p = np.zeros(3, ml_dtypes.bfloat16)
fastgd.SGD(p, lr=1.0, rounding="nearest").step(np.ones(3, np.float32))
assert (p == -1).all()
""")
    assert done.returncode == 0, done.stderr


def test_options_that_are_none():
    p = np.ones(3, F32)
    for given, error, words in (
        ({"state_dtype": "int8"}, ValueError, "state_dtype: expected one of float32, .*8bit"),
        (
            {"state_dtype": {"exp_av": "8bit"}},
            ValueError,
            "state_dtype: expected one of .*exp_avg, ",
        ),
        (
            {"state_dtype": {"momentum_buffer": "8bit"}},  # of other optimizers
            ValueError,
            "state_dtype: expected one of exp_avg, exp_avg_sq, max_exp_avg_sq, found 'momentum_buffer'",
        ),
        (
            {"state_dtype": {"exp_avg": 8}},
            TypeError,
            r"state_dtype\['exp_avg'\]: expected a str, found 8",
        ),
        ({"master": "half"}, ValueError, 'master: expected True, False or "split"'),
        ({"rounding": "up"}, ValueError, "rounding: expected one of nearest, stochastic"),
        ({"seed": -1}, ValueError, "seed: expected a number from 0"),
        ({"seed": 1.5}, TypeError, "seed: expected an integer"),
        ({"min_8bit_size": "4k"}, TypeError, "min_8bit_size: expected an integer"),
    ):
        with pytest.raises(error, match=words):
            fastgd.Adam(p, **given)
    with pytest.raises(ValueError, match='expected bfloat16 for master="split", found float16'):
        fastgd.Adam(p.astype(F16), master="split")


def test_a_master_is_exactly_float32_training():
    """With gradients of 16 bits, both masters follow the float32 run bit for bit."""
    start = draw(0, SIZES, BF16)
    full = [p.astype(F32) for p in start]
    whole, split = [p.copy() for p in start], [p.copy() for p in start]
    runs = [
        fastgd.AdamW(full, lr=1e-4),
        fastgd.AdamW(whole, lr=1e-4, master=True),
        fastgd.AdamW(split, lr=1e-4, master="split"),
    ]
    for k in range(20):
        grads = draw(k + 1, SIZES, BF16)
        for opt in runs:
            opt.step(grads)
    for i, p in enumerate(full):
        assert same_bits(runs[1].state[i]["master"], p)
        assert np.array_equal(bits(whole[i]), bits(p.astype(BF16)))
        low, high = runs[2].state[i]["master_low"], split[i].view(np.uint16)
        assert same_bits(((high.astype(np.int64) << 16) + low).astype(np.uint32).view(F32), p)


def test_small_updates_are_not_lost_on_average():
    """A thousand steps of a thousandth of a unit in the last place: nearest keeps none of them."""
    for rounding, expected in (("nearest", 1.0), ("stochastic", 1.0 - 1000 * 2**-18)):
        p = np.ones(20_000, BF16)
        opt = fastgd.SGD(p, lr=2**-18, rounding=rounding)
        for _ in range(1000):
            opt.step(np.ones(20_000, F32))
        assert np.mean(p.astype(F64)) == pytest.approx(expected, abs=3e-5)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "float16", "8bit"])
def test_second_moments_decay_without_getting_stuck(state_dtype):
    """From 1 to 1e-12 with β₂ = 0.99, as float32 does, within the format's error on average."""
    n, beta = 8192, 0.99
    opt = fastgd.RMSprop(np.zeros(n, F32), alpha=beta, state_dtype=state_dtype)
    opt.step(np.full(n, 10.0, F32))  # v = 1
    zero = np.zeros(n, F32)
    steps = int(np.log(1e-12) / np.log(beta))
    for k in range(1, steps + 1):
        opt.step(zero)
        if k % 250 == 0 or k == steps:
            v = opt.storage.state(zero, "rmsprop", "square_avg", opt.state[0]).load(F64)
            if state_dtype == "float16" and beta**k < 1e-5:
                continue  # below float16's normal numbers, where it has few digits left
            assert np.mean(v) == pytest.approx(beta**k, rel=0.1), k


@pytest.mark.parametrize("backend", [*COMPILED, "numpy"])
def test_what_is_not_finite_stays_so_in_8_bits(backend):
    fastgd.set_backend(backend)
    p, g = np.ones(1024, F32), np.ones(1024, F32)
    g[300] = np.nan
    opt = fastgd.Adam(p, state_dtype="8bit", min_8bit_size=0)
    opt.step(g)
    assert np.flatnonzero(np.isnan(p)).tolist() == [300]
    opt.step(np.ones(1024, F32))
    assert np.flatnonzero(np.isnan(p)).tolist() == list(range(256, 512))  # its block


def test_norms_of_every_dtype():
    for dtype in (F16, BF16):
        (x,) = draw(0, [70_001], dtype)
        expected = np.sqrt(np.sum(x.astype(np.longdouble) ** 2))
        for backend in fastgd.available_backends():
            fastgd.set_backend(backend)
            assert global_norm([x, None]) == pytest.approx(float(expected), rel=1e-13)
            assert global_norm(x) == global_norm(x.astype(F64))


def test_gradients_of_two_dtypes_in_turn():
    p, q = np.zeros(300, F32), np.zeros(300, F32)
    a, b = fastgd.Adam(p, zero_grads=True), fastgd.Adam(q)
    for k, dtype in enumerate((F32, BF16, F64, F16, F32)):
        (g,) = draw(k, [300], dtype)
        b.step(g.astype(F32))
        a.step(g)
        assert not g.astype(F32).any()
    assert same_bits(p, q)


def test_accumulated_and_averaged_in_float32():
    (p,) = draw(0, [300], BF16)
    opt = fastgd.SGD(p, lr=1.0, master=True)
    for _ in range(4):
        opt.accumulate(np.full(300, 2**-9 + 1, BF16))
    opt.step()
    assert opt.state[0]["step"] == 1
    ema = EMA(p, 0.5)
    ema.update()
    assert ema.averages[0].dtype == F32
    before = bits(p).copy()
    with ema.swapped():
        assert np.array_equal(p.astype(F32), ema.averages[0])
    assert np.array_equal(bits(p), before)


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_state_dicts_and_copies_resume_to_the_bit(kind):
    p_dtype, g_dtype, options = KINDS[kind]
    params = draw(0, SIZES, p_dtype)
    opt = fastgd.Adam(params, **options)
    opt.step(draw(1, SIZES, g_dtype))
    saved = opt.state_dict()
    fresh = [p.copy() for p in params]
    twins = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt)), fastgd.Adam(fresh, **options)]
    twins[-1].load_state_dict(saved)
    for o in (opt, *twins):
        o.step(draw(2, SIZES, g_dtype))
    for twin in twins:
        for a, b in zip(arrays_of(opt), arrays_of(twin), strict=True):
            assert np.array_equal(bits(a), bits(b))


@pytest.mark.parametrize("order", ["C", "F"])
def test_states_move_between_storages(order):
    p = np.asarray(np.random.default_rng(0).standard_normal((96, 64)), F32, order=order)
    full = fastgd.Adam(p.copy(order=order))
    for k in range(3):
        full.step(np.asarray(np.random.default_rng(k).standard_normal((96, 64)), F32, order=order))
    for state_dtype, rel in (("bfloat16", 2**-8), ("8bit", 0.12), ("float16", 0.01)):
        other = fastgd.Adam(p.copy(order=order), state_dtype=state_dtype)
        other.load_state_dict(full.state_dict())
        back = fastgd.Adam(p.copy(order=order))
        back.load_state_dict(other.state_dict())
        v, w = full.state[0]["exp_avg_sq"], back.state[0]["exp_avg_sq"]
        if state_dtype != "float16":
            np.testing.assert_allclose(w, v, rtol=rel)
        if state_dtype == "8bit":
            turned = fastgd.Adam(p.copy(order="CF"[order == "C"]), state_dtype=state_dtype)
            with pytest.raises(ValueError, match=f"layouts.*found '{order}'"):
                turned.load_state_dict(other.state_dict())
        m, n = full.state[0]["exp_avg"], back.state[0]["exp_avg"]
        np.testing.assert_allclose(n, m, atol=rel * np.abs(m).max())


def test_saved_states_that_do_not_fit():
    p = np.ones(5000, F32)
    opt = fastgd.Adam(p, state_dtype="8bit")
    opt.step(np.ones(5000, F32))
    for change, error, words in (
        (
            lambda s: s.pop("exp_avg_exponent"),
            ValueError,
            "has no exp_avg_exponent, which its codes need",
        ),
        (
            lambda s: s.update(exp_avg_exponent=np.zeros(3, np.uint8)),
            ValueError,
            r"expected shape \(20,\)",
        ),
        (lambda s: s.update(exp_avg_exponent=np.zeros(20)), TypeError, "expected dtype uint8"),
        (
            lambda s: s.update(exp_avg=np.zeros(5000)),
            TypeError,
            "expected dtype float32, bfloat16 or",
        ),
    ):
        saved = opt.state_dict()
        change(saved["state"][0])
        before = [bits(a).copy() for a in arrays_of(opt)]
        with pytest.raises(error, match=words):
            opt.load_state_dict(saved)
        assert all(map(np.array_equal, map(bits, arrays_of(opt)), before))


def test_random_words_follow_from_seed_step_and_tensor():
    """As docs/formats.md says, so that another implementation can give the same bits."""
    params, grads = draw(0, [300, 1000], BF16), draw(1, [300, 1000], F32)
    expected = [p.astype(F32) for p in params]
    opt = fastgd.SGD(params, lr=0.1, rounding="stochastic", seed=5)
    for step in (1, 2):
        opt.step(grads)
        for tensor, (x, g) in enumerate(zip(expected, grads, strict=True)):
            code, words = np.zeros(x.size, np.uint16), random_key(5, step, tensor)
            CODECS["bfloat16"].store(
                code, None, x - F32(0.1) * g, random_words(words, 0, x.size), 0
            )
            x[...] = code.view(BF16)
            assert same_bits(x.astype(BF16), params[tensor])


def test_a_third_stochastic_array_takes_words_of_its_own():
    """Two 16-bit states take the halves of each first word, their parameter those of a second."""
    params, grads = draw(2, [300, 1000], BF16), draw(3, [300, 1000], F32)
    plain = [p.astype(F32) for p in params]
    fastgd.Adam(plain, lr=0.1).step(grads)
    options = {"rounding": "stochastic", "state_dtype": "bfloat16", "seed": 6}
    fastgd.Adam(params, lr=0.1, **options).step(grads)
    for tensor, (p, x) in enumerate(zip(params, plain, strict=True)):
        code, key = np.zeros(x.size, np.uint16), random_key(6, 1, tensor + (1 << 40))
        CODECS["bfloat16"].store(code, None, x, random_words(key, 0, x.size), 0)
        assert same_bits(code.view(BF16), p)


def test_seeds_differ_and_repeat():
    def train(seed):
        (p,) = draw(0, [5000], BF16)
        opt = fastgd.SGD(p, lr=1e-3, rounding="stochastic", seed=seed)
        for k in range(3):
            opt.step(draw(k, [5000], F32)[0])
        return bits(p)

    saved = fastgd.SGD(np.zeros(1, F32), seed=2**64 - 1).state_dict()
    other = fastgd.SGD(np.zeros(1, F32))
    other.load_state_dict(saved)
    assert other.storage.seed == 2**64 - 1
    assert np.array_equal(train(1), train(1))
    assert not np.array_equal(train(1), train(2))


@pytest.mark.parametrize("backend", ["numpy", *COMPILED])
@pytest.mark.parametrize(("p_dtype", "options"), [
    (F32, {"state_dtype": "8bit"}),
    (F32, {"state_dtype": "bfloat16", "clip_norm": 0.1, "clip_by": "group"}),
    (BF16, {"rounding": "stochastic", "nonfinite": "skip"}),
    (BF16, {"master": "split", "state_dtype": "float16"}),
])  # fmt: skip
def test_pieces_have_the_bits_of_the_whole(backend, p_dtype, options):
    """Optimizers of shards of a parameter do what one of all of it does."""
    fastgd.set_backend(backend)
    (whole,), (own,) = draw(0, [5000], p_dtype), draw(0, [5000], p_dtype)
    one = fastgd.Adam([whole], lr=0.01, **options)
    cuts = [(0, 512), (512, 512), (512, 5000)]
    shards = []
    for low, high in cuts:
        piece = own[low:high]
        shards.append(fastgd.Adam([Piece(piece, low, 5000)], lr=0.01, **options))
    for step in range(3):
        (g,) = draw(1 + step, [5000], F32)
        found = []
        one.stepper.combine = lambda sums, found=found: found.append(sums.copy())
        record = one.step([g])
        for shard, (low, high) in zip(shards, cuts, strict=True):
            # What the others' gradients add, the pieces' own sums do not know.
            shard.stepper.combine = lambda sums, found=found: np.copyto(sums, found[0])
            assert repr(shard.step([g[low:high]])) == repr(record)
    assert (bits(own) == bits(whole)).all()
    for key in set(one.state[0]) - {"step"}:
        pieces = [shard.state[0][key] for shard in shards]
        assert (bits(np.concatenate(pieces)) == bits(one.state[0][key])).all(), key


@pytest.mark.parametrize("backend", ["numpy", *COMPILED])
@pytest.mark.parametrize("states", ["float32", "bfloat16"])
def test_random_words_follow_from_the_place_in_the_whole(backend, states):
    """Where a piece starts amid a tile, and where it starts with one.

    Of the least of 16 random bits one element in 65,536 takes notice.
    """
    fastgd.set_backend(backend)
    n = 300_000
    (whole,), (own,) = draw(0, [n], BF16), draw(0, [n], BF16)
    options = {"lr": 0.01, "rounding": "stochastic", "state_dtype": states}
    one = fastgd.AdamW([whole], **options)
    cuts = [(0, 257), (257, 1300), (1300, 2560), (2560, 3000), (3000, n)]
    shards = [fastgd.AdamW([Piece(own[low:high], low, n)], **options) for low, high in cuts]
    for step in range(3):
        (g,) = draw(1 + step, [n], BF16)
        one.step([g])
        for shard, (low, high) in zip(shards, cuts, strict=True):
            shard.step([g[low:high]])
    assert (bits(own) == bits(whole)).all()


def test_stored_arrays_load_as_numbers():
    """What a user does to look at a state."""
    p = np.ones(5000, F32)
    opt = fastgd.Adam(p, state_dtype="8bit")
    opt.step(np.full(5000, 3.0, F32))
    m = opt.storage.state(p, "adam", "exp_avg", opt.state[0]).load(F32)
    assert np.allclose(m, 0.3, rtol=0.25)  # rounded stochastically
    assert as_coded(p).load(F32) is not None


def test_nonfinite_gradients_in_bits_of_bfloat16_are_told_by_their_numbers():
    w, g = np.full(4, 0x3F80, np.uint16), np.full(4, 0x3F80, np.uint16)
    g[2] = 0xFF80
    opt = fastgd.SGD(w, lr=1.0, rounding="stochastic", nonfinite="raise")
    with pytest.raises(
        FloatingPointError, match="grads: expected finite gradients, found -inf at 2"
    ):
        opt.step(g)


@pytest.mark.parametrize(
    "options", [{"master": True}, {"master": "split"}, {"rounding": "stochastic"}]
)
def test_what_was_accumulated_of_16_bits_comes_back(options):
    opt, twin = (fastgd.AdamW(np.full(5, 0x3F80, np.uint16), **options) for _ in range(2))
    opt.accumulate(np.full(5, 0.3, F32))
    twin.load_state_dict(opt.state_dict())
    opt.step()
    twin.step()
    for a, b in zip(arrays_of(opt), arrays_of(twin), strict=True):
        assert np.array_equal(bits(a), bits(b))


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "8bit"])
@pytest.mark.parametrize("choice", [{}, {"master": "split"}, {"rounding": "stochastic"}])
def test_every_quarter_of_a_tile_is_as_in_numpy(backend, state_dtype, choice):
    """Ways to keep parameter and states together, over some tiles and a rest, for three steps."""
    rng = np.random.default_rng(3)
    dtype = ml_dtypes.bfloat16 if choice else np.float32
    start = rng.standard_normal(1100).astype(dtype)
    grads = [rng.standard_normal(1100).astype(dtype) for _ in range(3)]
    found = []
    for name in ("numpy", backend):
        fastgd.set_backend(name)
        p = start.copy()
        opt = fastgd.AdamW(p, lr=1e-2, state_dtype=state_dtype, min_8bit_size=0, **choice)
        for g in grads:
            opt.step(g, grad_scale=4)
        arrays = [np.asarray(a) for key, a in opt.state_dict()["state"][0].items() if key != "step"]
        found.append([p, *arrays])
    assert len(found[0]) > 2
    assert [a.tobytes() for a in found[0]] == [a.tobytes() for a in found[1]]


def test_copies_of_a_shard_are_of_the_same_elements(rng):
    """A copied optimizer rounds, and stores its states, as elements of the whole parameter."""
    piece = rng.standard_normal(344).astype(ml_dtypes.bfloat16)
    opt = fastgd.Adam([Piece(piece, 256, 5000)], rounding="stochastic", state_dtype="8bit")
    g = rng.standard_normal(344).astype("f4")
    for twin in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        (q,) = twin.param_groups[0]["params"]
        assert list(twin.storage.pieces) == [id(q)]
        twin.step([g])
        own = copy.deepcopy(opt)
        own.step([g])
        assert same_bits(q, own.param_groups[0]["params"][0])
    opt.step([g])
    assert same_bits(piece, q)


@pytest.mark.parametrize("name", ["Adam", "RMSprop", "Adagrad"])
def test_in_8_bits_small_gradients_beside_large_ones_move_parameters_as_far(rng, name):
    """In a block where one gradient is 1 the others may be 10⁻⁷: on average nothing is lost."""
    n, steps = 4 * TILE, 500
    scale = np.full(n, 1e-7)
    scale[::TILE] = 1
    drawn = [(scale * (1 + 0.5 * rng.standard_normal(n))).astype(F32) for _ in range(steps)]
    ends = []
    for options in ({}, {"state_dtype": "8bit", "min_8bit_size": 0}):
        p = np.zeros(n, F32)
        opt = getattr(fastgd, name)(p, lr=1e-3, eps=0.0, **options)
        for g in drawn:
            opt.step(g)
        ends.append(p.astype(np.float64))
    paces = np.delete(ends[1] / ends[0], np.arange(0, n, TILE))
    assert abs(paces.mean() - 1) < 0.06
    assert paces.std() < 0.15
