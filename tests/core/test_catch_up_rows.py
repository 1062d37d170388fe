"""Some rows that catch up, as before a forward pass; rows of zeros; what accumulation refuses."""

import copy
import pickle
from contextlib import nullcontext

import numpy as np
import pytest
from support.helpers import COMPILED, same_bits
from support.tables import BF16, F4, F8, N, draws, momentum, table_of, whole

import fastgd
from fastgd import Rows
from fastgd.kernels import _engine
from fastgd.kernels.reference import RULES
from fastgd.kernels.spec import catch_up as spec

BACKENDS = ["numpy", *COMPILED]
CASES = [
    (fastgd.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    (fastgd.Lion, {"lr": 0.01, "weight_decay": 0.1}),
    (fastgd.RMSprop, {"centered": True, "momentum": 0.9}),
    (fastgd.RowWiseAdagrad, {}),
]
KEPT = [
    (F4, {}, 5),
    (F8, {"state_dtype": "bfloat16"}, 5),
    (BF16, {"rounding": "stochastic"}, 5),
    (BF16, {"master": True}, 5),
    (F4, {"copy_to": ()}, 1100),
]


def arrays_of(opt):
    (table,) = opt.param_groups[0]["params"]
    arrays = [table, *(a for a in opt.state[0].values() if a.shape[:1] == (N,))]
    return arrays + list(opt.stepper.copies or ())


def behind(cls, options, dtype=F8, kept=None, length=5, steps=9):
    """An optimizer of a table most of whose rows missed steps."""
    kept = dict(kept or {})
    if "copy_to" in kept:
        kept["copy_to"] = np.zeros((N, length), np.float16)
    opt = cls(table_of(dtype, (N, length)), rows="catch_up", **options, **kept)
    for rows in draws(steps, length=length, dtype=F4):
        opt.step(rows)
    return opt


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "kept", "length"), KEPT, ids=lambda x: str(x)[:30])
def test_some_rows_get_the_bits_that_all_would(backend, dtype, kept, length):
    fastgd.set_backend(backend)
    fastgd.set_num_threads(2)
    chosen = np.array([[7, 3, 39], [3, 0, 7]], np.int32)
    is_chosen = np.isin(np.arange(N), chosen)
    for cls, options in CASES:
        opt = behind(cls, options, dtype, kept, length)
        every = copy.deepcopy(opt)
        before = [a.copy() for a in arrays_of(opt)]
        assert (opt.state[0]["row_steps"][is_chosen] < 9).any()
        every.catch_up()
        opt.catch_up(chosen)
        for a, full, old in zip(arrays_of(opt), arrays_of(every), before, strict=True):
            assert same_bits(a[is_chosen], full[is_chosen])
            assert same_bits(a[~is_chosen], old[~is_chosen])
        assert (opt.state[0]["row_steps"][is_chosen] == 9).all()
        if length < 100:
            opt.catch_up()
            assert all(map(same_bits, arrays_of(opt), arrays_of(every)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_calls_change_no_bits_of_rows_that_are_stepped_then(backend):
    """And those of others by rounding once more at each call."""
    fastgd.set_backend(backend)
    for dtype, rtol in ((F8, 1e-12), (F4, 1e-6)):
        for cls, options in CASES:
            opts = [cls(table_of(dtype), rows="catch_up", **options) for _ in range(3)]
            for t, rows in enumerate(draws(30, dtype=dtype)):
                opts[1].catch_up(rows if t % 2 else rows.indices)
                opts[2].catch_up([t % N, 3])
                for opt in opts:
                    opt.step(rows)
            assert all(map(same_bits, arrays_of(opts[0]), arrays_of(opts[1])))
            for opt in opts:
                opt.catch_up()
            assert all(map(same_bits, arrays_of(opts[0]), arrays_of(opts[1])))
            for a, b in zip(arrays_of(opts[0]), arrays_of(opts[2]), strict=True):
                np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol * max(np.abs(a).max(), 1e-9))


def test_many_rows_on_several_threads():
    """Those that come again are in the slices of two threads, or next to each other."""
    tables = []
    compiled = fastgd.available_backends()[0]
    for backend, threads in (("numpy", 1), (compiled, 1), (compiled, 5)):
        fastgd.set_backend(backend)
        fastgd.set_num_threads(threads)
        table = table_of(F4, (3000, 32))
        opt = fastgd.SGD(table, lr=0.1, weight_decay=0.1, rows="catch_up")
        for t in range(3):
            opt.step(Rows([t], np.zeros((1, 32), F4)))
        opt.catch_up(np.random.default_rng(0).integers(0, 3000, 4000))
        assert 1000 < (opt.state[0]["row_steps"] == 3).sum() < 2900
        tables.append(table)
    assert same_bits(tables[0], tables[1])
    assert same_bits(tables[0], tables[2])


def test_rows_come_as_gradients_do(tmp_path):
    """Nested, with None for parameters of which none are to catch up; of a table in a file, too."""
    with fastgd.Mapped(tmp_path / "table", (N, 5)) as mapped:
        mapped.array[...] = 1.0
        params = {"layer": np.ones(3), "tables": [mapped, np.ones((N, 5), F4)]}
        opt = momentum(params, rows="catch_up")
        for rows in draws(4, dtype=F4):
            opt.step({"layer": np.ones(3), "tables": [rows, rows]})
        mapped.flush()
        twin = momentum(np.ones((N, 5), F4), rows="catch_up")
        for rows in draws(4, dtype=F4):
            twin.step(rows)
        twin.catch_up([0, 5])
        opt.catch_up({"layer": None, "tables": [[0, 5], None]})
        assert same_bits(mapped.array, twin.param_groups[0]["params"][0])
        assert (opt.state["tables.0"]["row_steps"][[0, 5]] == 4).all()
        assert not (opt.state["tables.1"]["row_steps"][[0, 5]] == 4).all()
        opt.catch_up({"layer": None, "tables": (None, np.zeros(0, np.int64))})


REFUSED = [
    (lambda p: [[1], None], ValueError, r"rows: expected 3 entries as in params, found 2"),
    (
        lambda p: {0: [1]},
        TypeError,
        r"rows: expected a list or tuple of 3 as in params, found dict",
    ),
    (
        lambda p: [[1], None, [0]],
        ValueError,
        r"rows\[2\]: expected None, as its parameter of shape ",
    ),
    (
        lambda p: [[1], [4], None],
        ValueError,
        r"rows\[1\]: expected None, as rows cannot catch up: ",
    ),
    (
        lambda p: [[1, 40], None, None],
        ValueError,
        r"rows\[0\]: expected indices from 0 to below 40",
    ),
    (lambda p: [[1, -1], None, None], ValueError, "found -1 at position 1"),
    (lambda p: [np.ones(2), None, None], TypeError, "expected dtype int32 or int64, found float64"),
    (lambda p: [3, None, None], TypeError, r"rows\[0\]: expected an array, found"),
    (lambda p: [Rows([1], np.ones((1, 4))), None, None], ValueError, r"expected values of shape"),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_rows_are_refused_and_nothing_is_changed(backend):
    fastgd.set_backend(backend)
    params = [table_of(), np.asfortranarray(table_of()), np.ones(4)]
    opt = momentum(params, rows="catch_up")
    for rows in draws(5):
        opt.step([rows, None, np.ones(4)])
    before = [a.copy() for a in (*params, opt.state[0]["row_steps"])]
    for make, error, words in REFUSED:
        with pytest.raises(error, match=words):
            opt.catch_up(make(params))
    assert all(map(same_bits, before, (*params, opt.state[0]["row_steps"])))
    with pytest.raises(
        ValueError, match='expected an optimizer that was made with rows="catch_up"'
    ):
        momentum(np.ones((4, 2)), rows="lazy").catch_up([1])
    with pytest.raises(TypeError, match="rows: expected integers in any shape"):
        momentum(np.ones((4, 2)), rows="catch_up").catch_up([[1], [2, 3]])


@pytest.mark.parametrize("rows", [[4, 1], [1, 4], [2, -1]])
def test_rows_beyond_a_table_are_refused_wherever_they_come(rows):
    opt = momentum(np.ones((4, 2)), rows="catch_up")
    with pytest.raises(ValueError, match="rows: expected indices from 0 to below 4"):
        opt.catch_up(rows)


def test_arrays_are_a_step_of_all_rows_of_each_table():
    opt = momentum([np.ones((4, 2)) for _ in range(3)], rows="catch_up")
    opt.step([np.ones((4, 2)) for _ in range(3)])
    assert all((entry["row_steps"] == 1).all() for entry in opt.state.values())


def test_tables_catch_up_by_random_words_of_their_own():
    tables = [table_of(BF16) for _ in range(2)]
    opt = fastgd.SGD(tables, lr=0.1, weight_decay=0.1, rows="catch_up", rounding="stochastic")
    for _ in range(3):
        opt.step([Rows([0], np.ones((1, 5), F4))] * 2)
    assert same_bits(tables[0][1:], tables[1][1:])
    opt.catch_up()
    assert not same_bits(tables[0][1:], tables[1][1:])


def test_a_table_that_was_moved_does_not_catch_up():
    table = np.ones((40_000, 2))
    opt = momentum(table, rows="catch_up")
    opt.step(Rows([1], np.ones((1, 2))))
    table.resize((39_999, 2), refcheck=False)
    with pytest.raises(ValueError, match="params: was made read-only, or given another"):
        opt.catch_up()


# --------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_number_of_steps_is_missed_to_the_bits_of_its_power(backend):
    """Where the next digit begins, and with several of them, of which each is a product more."""
    fastgd.set_backend(backend)
    options = {"lr": 1e-9, "momentum": 1 - 1e-7, "weight_decay": 1e-3}
    numbers = spec.numbers_of(RULES["momentum"], (1e-9, 1 - 1e-7, 1.0), 1e-3, 1.0, F8)
    opt = momentum(np.ones((2, 3)), rows="catch_up", **options)
    opt.step(Rows([0, 1], np.ones((2, 3))))
    opt.step(Rows([0], np.ones((1, 3))))
    (table,), state = opt.param_groups[0]["params"], opt.state[0]
    assert state["row_map"].tolist() == [1.0, *numbers]
    for k in (1, 255, 256, 257, 511, 512, 65_535, 65_536, 70_001, 2**24 - 1, 2**24, 2**25 + 66_051):
        state["row_steps"][1], opt.stepper.steps[0] = 0, k
        p, v = table[1].copy(), state["momentum_buffer"][1].copy()
        opt.catch_up([1])
        a, b, c, d = spec.power(numbers, k)
        assert same_bits(state["momentum_buffer"][1], c * p + d * v)
        assert same_bits(table[1], a * p + b * v)


@pytest.mark.parametrize(
    ("cls", "options", "key"),
    [
        (fastgd.SGD, {"weight_decay": 0.25, "momentum": 0.5}, "lr"),
        (fastgd.SGD, {"weight_decay": 0.25, "momentum": 0.5}, "momentum"),
        (fastgd.SGD, {"weight_decay": 0.25, "momentum": 0.5}, "weight_decay"),
        (fastgd.Lion, {"weight_decay": 0.25}, "weight_decay"),
    ],
)
def test_each_number_that_changes_is_for_the_steps_from_there_on(cls, options, key):
    """By a sixteenth, which is a change of but one byte, and by one."""
    results = []
    for rows_are in ("catch_up", "exact"):
        table = table_of()
        opt = cls(table, rows=rows_are, lr=0.125, **options)
        for t in range(12):
            if t == 6:
                opt.param_groups[0][key] *= 1.0625
            rows = Rows([t % 4], np.ones((1, table.shape[1])))
            opt.step(rows if rows_are == "catch_up" else whole(rows, table.shape))
        if rows_are == "catch_up":
            opt.catch_up()
        results.append(table)
    np.testing.assert_allclose(*results, rtol=1e-12)


def test_numbers_are_forgotten_where_steps_have_none():
    opt = momentum(np.ones((4, 3)), rows="catch_up")
    for dampening in (0.0, 0.5):
        opt.param_groups[0]["dampening"] = dampening
        opt.step(np.ones((4, 3)))
        assert opt.state[0]["row_map"].any() == (dampening == 0.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cls", [fastgd.SGD, fastgd.Adagrad, fastgd.RowWiseAdagrad])
def test_steps_that_change_nothing_leave_minus_zero(backend, cls):
    """Which, multiplied by 1 and with 0 added, would be 0."""
    fastgd.set_backend(backend)
    table = np.full((4, 3), -0.0)
    opt = cls(table, rows="catch_up")
    for row in (0, 1, 1):
        opt.step(Rows([row], np.ones((1, 3))))
    opt.catch_up()
    assert np.signbit(table).all()
    assert (opt.state[0]["row_steps"] == 3).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_table_of_one_row(backend):
    fastgd.set_backend(backend)
    tables = [table_of(shape=(1, 5)) for _ in range(2)]
    opt, dense = momentum(tables[0], rows="catch_up"), momentum(tables[1])
    for n in (1, 0, 0):
        rows = Rows(np.zeros(n, np.int64), np.ones((n, 5)))
        opt.step(rows)
        dense.step(whole(rows, (1, 5)))
    opt.catch_up()
    np.testing.assert_allclose(*tables, rtol=1e-14)


@pytest.mark.parametrize(
    ("counts", "known"),
    [
        (np.zeros(3, np.int32), np.zeros(5)),
        (np.zeros(6, np.uint32)[::2], np.zeros(5)),
        (np.zeros(3, np.uint32), np.zeros(5, F4)),
        (np.zeros(3, np.uint32), np.zeros(10)[::2]),
        (np.zeros(3, np.uint32), np.zeros(4)),
    ],
)
def test_other_arrays_of_counts_and_numbers_are_refused(counts, known):
    _engine.Missed(np.zeros(3, np.uint32), np.zeros(5), None, RULES["momentum"])
    with pytest.raises(ValueError, match="expected arrays of uint32 and of 5 float64"):
        _engine.Missed(counts, known, None, RULES["momentum"])


# ----------------------------------------------------------------------------------------- zeros

GROWING = [
    (fastgd.SGD, {"lr": 1.0, "weight_decay": 4.0}),
    (fastgd.SGD, {"lr": 1.0, "momentum": 0.9, "weight_decay": 9.0}),
    (fastgd.QHM, {"lr": 1.0, "weight_decay": 9.0}),
    (fastgd.Lion, {"lr": 1.0, "weight_decay": 4.0}),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("cls", "options"), GROWING)
def test_zeros_stay_zeros_where_powers_overflow(backend, cls, options):
    """As dense steps leave them: by weights that decay by more than all of them, all else grows."""
    fastgd.set_backend(backend)
    for dtype, steps in ((F4, 100), (F8, 2000)):
        table, expected = np.zeros((4, 3), dtype), np.zeros((4, 3), dtype)
        opt, dense = cls(table, rows="catch_up", **options), cls(expected, **options)
        for _ in range(steps):
            opt.step(Rows([1], np.zeros((1, 3), dtype)))
            dense.step(np.zeros((4, 3), dtype))
        opt.catch_up([0])
        opt.step(Rows([2], np.zeros((1, 3), dtype)))
        opt.catch_up()
        assert not expected.any()
        assert not table.any()
        assert not any(a.any() for a in opt.state[0].values() if a.shape == table.shape)


# -------------------------------------------------------------------------------- what waits, stays


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": lambda t: 0.1, "rows": "catch_up"}, "schedules .of lr. make each step another"),
        ({"clip_ratio": 0.1, "rows": "catch_up"}, "clip_ratio takes norms of rows"),
        ({"momentum": 0.9}, "rule momentum changes states on rows without a gradient"),
    ],
)
def test_accumulation_refuses_rows_that_no_step_takes(options, words):
    """So that arrays may still be accumulated, which a step takes."""
    p = np.ones((4, 8))
    opt = fastgd.SGD(p, **{"lr": 0.1, **options})
    with pytest.raises(ValueError, match=rf"grads: .*{words}"):
        opt.accumulate(Rows([1], np.ones((1, 8))))
    assert not opt.stepper.pending
    opt.accumulate(np.ones((4, 8)))
    opt.step()
    assert (p < 1.0).all()


def test_accumulation_asks_by_the_hyper_parameters_of_now():
    opt = fastgd.SGD(np.ones((4, 8)), lr=0.1, rows="exact")
    rows = Rows([1], np.ones((1, 8)))
    opt.accumulate(rows)
    opt.step()
    opt.param_groups[0]["momentum"] = 0.9
    with pytest.raises(ValueError, match="rule momentum changes states on rows"):
        opt.accumulate(rows)
    assert "momentum_buffer" not in opt.state[0]
    opt.param_groups[0]["momentum"] = 0.0
    opt.accumulate(rows)


@pytest.mark.parametrize(
    ("shape", "fits"), [((4, 256), True), ((4, 64), False), ((1, 256), True), ((1, 128), False)]
)
def test_accumulation_asks_for_rows_of_whole_scales(shape, fits):
    opt = fastgd.SGD(np.ones(shape), momentum=0.9, rows="lazy", state_dtype="8bit", min_8bit_size=0)
    refused = pytest.raises(ValueError, match="expected rows of a multiple of 256 elements")
    with nullcontext() if fits else refused:
        opt.accumulate(Rows([0], np.ones((1, shape[1]))))


def test_what_cannot_be_saved_is_not_lost():
    """Rows that missed steps of another rule: they catch up first, or the rule is set back."""
    opt = behind(fastgd.SGD, {"lr": 0.1, "weight_decay": 0.1})
    saved = opt.state_dict()
    opt.param_groups[0]["momentum"] = 0.9
    for call in (opt.state_dict, lambda: pickle.dumps(opt), lambda: copy.deepcopy(opt)):
        with pytest.raises(
            RuntimeError, match=r"call catch_up\(\) before .*, or set back what pick"
        ):
            call()
    opt.param_groups[0]["momentum"] = 0.0
    again = opt.state_dict()
    assert all(map(same_bits, saved["state"][0].values(), again["state"][0].values()))
    opt.param_groups[0]["momentum"] = 0.9
    opt.catch_up()
    twin = pickle.loads(pickle.dumps(opt))
    for one in (opt, twin):
        one.step(Rows([1], np.ones((1, 5))))
    assert same_bits(*(one.param_groups[0]["params"][0] for one in (opt, twin)))


def test_a_loop_that_looks_rows_up_is_that_of_dense_steps():
    """The gradient follows from the rows that were looked up, and so has to be of rows of now."""
    table, expected = table_of(), table_of()
    opt, dense = momentum(table, rows="catch_up"), momentum(expected)
    rng = np.random.default_rng(0)
    for _ in range(50):
        words = rng.integers(0, N, 3)
        opt.catch_up(words)
        opt.step(Rows(words, table[words] - 1.0))
        dense.step(whole(Rows(words, expected[words] - 1.0), expected.shape))
    opt.catch_up()
    np.testing.assert_allclose(table, expected, rtol=1e-12, atol=1e-12)
