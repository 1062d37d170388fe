"""Rows that catch up with what they missed: equal to dense steps, on every backend, and refusals."""

import copy
import pickle

import numpy as np
import pytest
from support.helpers import COMPILED, same_bits
from support.tables import BF16, F4, F8, LENGTH, N, draws, momentum, table_of, whole

import fastgd
from fastgd import Rows
from fastgd.core.variants import rules_of
from fastgd.kernels.reference import RULES
from fastgd.kernels.spec import catch_up as spec
from fastgd.optimizers import OPTIMIZERS

BACKENDS = [name for name in fastgd.available_backends() if name != "numpy"]

CASES = [
    (fastgd.SGD, {"weight_decay": 0.1}),
    (fastgd.SGD, {"momentum": 0.9}),
    (fastgd.SGD, {"momentum": 0.9, "dampening": 0.5}),
    (fastgd.SGD, {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    (fastgd.SGD, {"momentum": 0.9, "weight_decay": 30.0}),  # whose matrix has complex roots
    (fastgd.Momentum, {"weight_decay": 0.1, "maximize": True}),
    (fastgd.QHM, {"lr": 0.1, "weight_decay": 0.1}),
    (fastgd.QHM, {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (fastgd.SignSGD, {"weight_decay": 0.1}),
    (fastgd.SignSGD, {"momentum": 0.9, "weight_decay": 0.1}),
    (fastgd.Lion, {"lr": 0.01, "weight_decay": 0.1}),
    (fastgd.Lion, {"lr": 0.01, "betas": (0.0, 0.99)}),
    (fastgd.RMSprop, {}),
    (fastgd.RMSprop, {"centered": True, "momentum": 0.9}),
    (fastgd.RMSprop, {"momentum": 0.9}),
    (fastgd.Adadelta, {}),
    (fastgd.Adagrad, {}),
    (fastgd.RowWiseAdagrad, {"lr_decay": 0.1}),
    (fastgd.SGD, {"lr": 1.0, "weight_decay": 1.0}),  # of what was missed nothing is left
    (fastgd.SGD, {"momentum": 1.0}),  # by which velocities stay
]
IDS = [f"{cls.__name__}-{'-'.join(options)}" for cls, options in CASES]


def arrays(opt, table):
    return [table, *(a for key, a in opt.state[0].items() if key != "row_map")]


def assert_close(found, expected, rtol):
    for a, b in zip(found, expected, strict=False):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(np.abs(b).max(), 1e-9))


@pytest.mark.parametrize(("cls", "options"), CASES, ids=IDS)
def test_equals_dense_steps(cls, options):
    """Over 300 steps, amid which all rows are read."""
    for dtype, rtol in ((F8, 1e-12), (F4, 300 * 2.0**-23)):
        tables = [table_of(dtype) for _ in range(2)]
        opt, dense = cls(tables[0], rows="catch_up", **options), cls(tables[1], **options)
        for t, rows in enumerate(draws(300)):
            opt.step(rows)
            dense.step(whole(rows, tables[0].shape, dtype))
            if t == 150:
                opt.catch_up()
                assert_close(arrays(opt, tables[0]), arrays(dense, tables[1]), rtol)
        assert (opt.state[0]["row_steps"] < 300).any()
        opt.catch_up()
        assert_close(arrays(opt, tables[0]), arrays(dense, tables[1]), rtol)
        assert (opt.state[0]["row_steps"] == 300).all()
        before = [a.copy() for a in arrays(opt, tables[0])]
        opt.catch_up()
        for a, b in zip(before, arrays(opt, tables[0]), strict=True):
            assert same_bits(a, b)


def test_a_row_of_the_gradient_has_caught_up_after_its_step():
    """Without `catch_up()`: the row of the last gradient is that of dense steps."""
    tables = [table_of() for _ in range(2)]
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    opt = fastgd.SGD(tables[0], rows="catch_up", **options)
    dense = fastgd.SGD(tables[1], **options)
    for t in range(20):
        rows = Rows([3 if t % 19 else 8], np.ones((1, LENGTH)))
        opt.step(rows)
        dense.step(whole(rows, tables[0].shape))
    np.testing.assert_allclose(tables[0][8], tables[1][8], rtol=1e-13)
    assert (tables[0][0] == table_of()[0]).all()
    assert not np.allclose(tables[0][0], tables[1][0])


# ------------------------------------------------------------------------------------------- bits

KEPT = [
    (F4, {}, LENGTH),
    (F8, {"state_dtype": "bfloat16"}, LENGTH),
    (F4, {"copy_to": ()}, 300),
    (BF16, {"rounding": "stochastic"}, LENGTH),
    (BF16, {"master": True}, LENGTH),
    (BF16, {"master": "split", "state_dtype": "8bit", "min_8bit_size": 0}, 256),
]


def trained(backend, threads, cls, options, dtype, kept, length):
    """Rows, a change of the learning rate, a dense step, all rows: everything there is then."""
    fastgd.set_backend(backend)
    fastgd.set_num_threads(threads)
    table, low = table_of(dtype, (N, length)), np.zeros((N, length), np.float16)
    kept = kept | ({"copy_to": low} if "copy_to" in kept else {})
    opt = cls(table, rows="catch_up", **options, **kept)
    for t, rows in enumerate(draws(9, length=length, dtype=F4)):
        opt.step(rows)
        if t == 4:
            opt.param_groups[0]["lr"] *= 0.5
        if t == 6:
            opt.step(whole(rows, table.shape, F4))
    opt.catch_up()
    return [table, low, *(a for entry in opt.state.values() for a in entry.values())]


@pytest.mark.parametrize(("dtype", "kept", "length"), KEPT, ids=lambda x: str(x)[:30])
def test_same_bits_as_the_numpy_backend(dtype, kept, length):
    for cls, options in (CASES[3], CASES[10], CASES[13], CASES[17]):
        given = cls, options, dtype, kept, length
        if cls is fastgd.RowWiseAdagrad and "8bit" in kept.values():
            continue
        expected = trained("numpy", 1, *given)
        for threads, backend in enumerate(BACKENDS, 1):
            for a, b in zip(trained(backend, threads, *given), expected, strict=True):
                assert same_bits(a, b)


@pytest.mark.parametrize("backend", COMPILED)
def test_threads_make_no_difference(backend):
    fastgd.set_backend(backend)
    results = []
    for threads in (1, 2, 5):
        fastgd.set_num_threads(threads)
        table = table_of(F4, (3000, 32))
        opt = fastgd.SGD(table, lr=0.1, momentum=0.9, weight_decay=0.1, rows="catch_up")
        rng = np.random.default_rng(0)
        for _ in range(6):
            opt.step(Rows(rng.integers(0, 3000, 1500), np.ones((1500, 32), F4)))
        assert (opt.state[0]["row_steps"] < 6).any()
        opt.catch_up()
        results.append([table, opt.state[0]["momentum_buffer"]])
    for other in results[1:]:
        assert all(map(same_bits, results[0], other))


def test_powers_of_every_digit():
    """As `power` has them, by products of the same; up to 2³² − 1 steps."""
    x = (1 - 1e-7, -0.3, 1e-8, 1 - 1e-6)
    matrix = np.array([[x[0], x[1]], [x[2], x[3]]])
    for k in (1, 2, 255, 256, 257, 65_536, 70_001, 2**24 + 3):
        a, b, c, d = spec.power(x, k)
        np.testing.assert_allclose([[a, b], [c, d]], np.linalg.matrix_power(matrix, k), rtol=1e-8)
    assert spec.power((0.5,), 2**32 - 1) == (0.0,)
    table = np.ones((2, 1))
    for backend in ("numpy", *BACKENDS):
        fastgd.set_backend(backend)
        table[...] = 1.0
        opt = fastgd.SGD(table, lr=1e-9, weight_decay=1.0, rows="catch_up")
        opt.step(Rows([0], np.zeros((1, 1))))
        opt.stepper.steps[0] = 2**32 - 2  # as if all others had been of row 0
        opt.step(Rows([0, 1], np.zeros((2, 1))))
        (a,) = spec.power(spec.numbers_of(RULES["sgd"], (1e-9,), 1.0, 1.0, F8), 2**32 - 2)
        assert table[1, 0] == a * (1 - 1e-9)
        assert table[1, 0] == pytest.approx(np.exp(-(2**32) / 1e9), rel=1e-6)
        with pytest.raises(ValueError, match=r"expected at most 4294967295 steps of a table"):
            opt.step(Rows([0], np.zeros((1, 1))))


def test_every_rule_says_whether_rows_can_catch_up():
    """Those that say so are linear, and at most one state moves the parameter; others say why."""
    for cls in OPTIMIZERS.values():
        for name, pick in rules_of(cls).items():
            rule = RULES[name]
            if rule.catch_up not in spec.KNOWN:
                assert rule.catch_up[0].islower()
                continue
            h = {key: h.default for key, h in cls.hypers.items()} | pick.changes
            h |= {"weight_decay": 0.1, "clip_norm": None, "clip_value": None, "clip_ratio": None}
            h |= {"momentum": 0.75} if "momentum" in pick.changes else {}
            _, coefficients, stages = cls.settings(name, h, 2, 1.0)
            l2 = stages[1] if rule.catch_up == spec.LINEAR else 0.0
            numbers = spec.numbers_of(rule, coefficients, l2, stages[2], F8)
            moving = [j for j in range(1, len(numbers), 3) if numbers[j] or numbers[j + 1]]
            assert len(moving) <= 1, name
            if rule.catch_up != spec.LINEAR:
                assert "has no closed form" in spec.numbers_of(rule, coefficients, 0.1, 1.0, F8)


# ------------------------------------------------------------------------------- what is in between


@pytest.mark.parametrize("backend", ["numpy", *COMPILED])
def test_numbers_that_change_and_steps_that_do_not_count(backend):
    """Skipped steps, gradients of None, accumulation, dense gradients, groups and other numbers."""
    fastgd.set_backend(backend)
    results = []
    for rows_are in ("catch_up", "exact"):
        tables = [table_of(seed=k) for k in range(2)]
        layer = table_of(shape=(3, 4))
        groups = [
            {"params": tables, "momentum": 0.8},
            {"params": [layer], "lr": lambda t: 0.1 / (1 + t)},
        ]
        opt = momentum(groups, rows=rows_are, nonfinite="skip", clip_norm=1.0, zero_grads=True)

        def given(rows, like, dense=rows_are == "exact"):
            return whole(rows, like.shape) if dense else rows

        for t, (a, b) in enumerate(zip(draws(30), draws(30, seed=5), strict=True)):
            grads = [[given(a, tables[0]), given(b, tables[1])], [np.full((3, 4), 0.1)]]
            if t % 7 == 3:
                grads[0][0] = None
            if t == 11:
                grads[1][0][0] = np.nan
            if t == 12:
                opt.param_groups[0].update(lr=0.05, weight_decay=0.2)
            if t == 20:
                grads[0][1] = np.ones(tables[1].shape)
            if t == 25:
                opt.accumulate(grads, weight=2.0)
                grads = None
            assert opt.step(grads).skipped == (t == 11)
        assert opt.skipped == 1
        if rows_are == "catch_up":
            opt.catch_up()
        results.append([*tables, layer, *(opt.state[f"0.{k}"]["momentum_buffer"] for k in (0, 1))])
        steps = [int(opt.state[f"0.{k}"]["step"]) for k in (0, 1)]
        assert steps == [25, 29]
    assert_close(*results, 1e-12)


def test_numbers_changed_after_the_last_step_are_for_the_next():
    """Not for what was missed before, also where that is saved, copied or loaded in between."""
    expected = table_of()
    dense = momentum(expected)
    opts = [momentum(table_of(), rows="catch_up")]
    for rows in draws(6):
        opts[0].step(rows)
        dense.step(whole(rows, expected.shape))
    opts[0].lr = dense.lr = 0.01
    opts += [copy.deepcopy(opts[0]), pickle.loads(pickle.dumps(opts[0]))]
    opts.append(momentum(opts[0].param_groups[0]["params"][0].copy(), rows="catch_up"))
    opts[-1].load_state_dict(opts[0].state_dict())
    again = momentum(opts[0].param_groups[0]["params"][0].copy(), rows="catch_up")
    again.step(Rows([1], np.ones((1, LENGTH))))  # of which nothing is left
    again.param_groups[0]["params"][0][...] = opts[0].param_groups[0]["params"][0]
    again.load_state_dict(opts[0].state_dict())
    opts.append(again)
    for rows in draws(3, seed=2):
        dense.step(whole(rows, expected.shape))
        for opt in opts:
            opt.step(rows)
    for opt in opts:
        opt.catch_up()
        np.testing.assert_allclose(opt.param_groups[0]["params"][0], expected, rtol=1e-12)


def test_another_rule_is_refused_until_rows_have_caught_up():
    table, expected = table_of(), table_of()
    opt = fastgd.SGD(table, lr=0.1, weight_decay=0.1, rows="catch_up")
    dense = fastgd.SGD(expected, lr=0.1, weight_decay=0.1)
    rows = Rows([1], np.ones((1, LENGTH)))
    for o in (opt, dense):
        for _ in range(3):
            o.step(rows if o is opt else whole(rows, table.shape))
        o.param_groups[0]["momentum"] = 0.9
    before = table.copy()
    for call in (lambda: opt.step(rows), opt.state_dict):
        with pytest.raises(RuntimeError, match=r"rows missed steps by rule sgd: call catch_up\(\)"):
            call()
    assert same_bits(table, before)
    opt.catch_up()
    for _ in range(4):
        opt.step(rows)
        dense.step(whole(rows, table.shape))
    opt.catch_up()
    np.testing.assert_allclose(table, expected, rtol=1e-13)
    assert (opt.state[0]["row_steps"] == 4).all()  # as SGD counts from a new velocity


def test_killed_and_loaded_amid_missed_steps(tmp_path):
    tables = [table_of() for _ in range(2)]
    opt, twin = (momentum(t, rows="catch_up") for t in tables)
    rows = list(draws(12))
    for r in rows[:6]:
        opt.step(r)
        twin.step(r)
    fastgd.save(tmp_path / "file", opt)
    again = momentum(tables[0].copy(), rows="catch_up")
    fastgd.load(tmp_path / "file", again)
    for r in rows[6:]:
        again.step(r)
        twin.step(r)
    again.catch_up()
    twin.catch_up()
    assert same_bits(again.param_groups[0]["params"][0], tables[1])


@pytest.mark.parametrize("backend", COMPILED)
def test_dense_steps_that_are_alike_note_what_rows_would_miss(backend):
    """The same array as the gradient of several steps, with another learning rate amid them."""

    def kept(use):
        fastgd.set_backend(use)
        p, g = np.ones((6, 4), F4), np.full((6, 4), 0.5, F4)
        opt = momentum(p, rows="catch_up")
        for lr in (0.1, 0.05):
            opt.lr = lr
            for _ in range(3):
                opt.step(g)
        return [p, *opt.state[0].values()]

    assert all(map(np.array_equal, kept(backend), kept("numpy")))


@pytest.mark.parametrize("name", ["Adagrad", "RMSprop", "Lion", "SGD"])
@pytest.mark.parametrize("rows", ["exact", "lazy"])
def test_a_mapped_table_whose_rows_could_not_miss_steps(tmp_path, rows, name):
    """It has missed none when it is opened by who lets rows catch up."""
    optimizer = getattr(fastgd, name)
    with fastgd.Mapped(tmp_path / "table", (4, 2)) as table:
        optimizer(table, rows=rows, lr=0.1).step(np.ones((4, 2), np.float32))
    with fastgd.Mapped(tmp_path / "table") as table:
        opt = optimizer(table, rows="catch_up", lr=0.1)
        assert (opt.state[0]["row_steps"] == 1).all()
        kept = table.array.copy()
        opt.catch_up()
        assert np.array_equal(table.array, kept)


def test_mapped(tmp_path):
    """Tables in files: training goes on amid missed steps, by other numbers than these."""
    expected = np.zeros((500, 4), F4)
    dense = momentum(expected)
    for part in range(3):
        with fastgd.Mapped(tmp_path / "table", (500, 4)) as table:
            dense.lr = 0.1 if part else 0.2
            opt = momentum(table, lr=dense.lr, rows="catch_up")
            for rows in draws(5, seed=part, n=500, length=4, dtype=F4):
                opt.step(rows)
                dense.step(whole(rows, expected.shape, F4))
            if part == 2:
                with pytest.raises(fastgd.CheckpointError, match="has rows that missed steps"):
                    momentum(table, rows="lazy")
                with pytest.raises(fastgd.CheckpointError, match="steps by another rule: open it"):
                    momentum(table, momentum=0.0, rows="catch_up")
                opt.catch_up()
                np.testing.assert_allclose(table.array, expected, rtol=1e-5, atol=1e-7)
    assert (tmp_path / "table" / "row_steps.bin").stat().st_size == 2000
    with fastgd.Mapped(tmp_path / "table") as table:
        lazy = momentum(table, rows="lazy")
        lazy.step(Rows([1], np.ones((1, 4), F4)))
    with fastgd.Mapped(tmp_path / "other", (5, 4)) as table:
        opt = momentum(table, rows="catch_up")
        opt.step(Rows([1], np.ones((1, 4), F4)))
        opt.catch_up()
    with fastgd.Mapped(tmp_path / "other") as table:
        other = momentum(table, momentum=0.0, rows="catch_up")  # nothing is missing
        other.step(Rows([1], np.ones((1, 4), F4)))
        assert other.state[0]["row_map"].shape == (2,)


# ---------------------------------------------------------------------------------- what is refused

ROW = Rows([1], np.ones((1, 8)))
REFUSED = [
    (fastgd.Adagrad, {"weight_decay": 0.1}, "L2 weight_decay has no closed form with rule adagrad"),
    (fastgd.RMSprop, {"weight_decay": 0.1}, "with rule rmsprop; set weight_decay=0"),
    (fastgd.SignSGD, {"weight_decay": 0.1, "decoupled_weight_decay": False}, "L2 weight_decay has"),
    (fastgd.SignSGD, {"momentum": 0.5}, "rule signum takes signs of what factors of 0.5 or less"),
    (fastgd.Lion, {"betas": (0.9, 0.0)}, "rule lion takes signs of what factors of 0.5 or less"),
    (fastgd.Lion, {"betas": (0.5, 0.99)}, "rule lion takes signs"),
    (fastgd.Momentum, {"bias_correction": True}, "bias correction makes each step another"),
    (  # from the third step on they are the same, to the bit
        fastgd.Momentum,
        {"beta": 1e-6, "bias_correction": True},
        "bias correction makes each step another",
    ),
    (
        fastgd.SGD,
        {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1},
        "dampening and weight_decay make the first step another",
    ),
    (
        fastgd.SGD,
        {"lr": 0.0, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1},
        "dampening and weight_decay make the first step another",
    ),
    (fastgd.SGD, {"lr": lambda t: 0.1}, r"schedules \(of lr\) make each step another"),
    (fastgd.SGD, {"clip_ratio": 0.1}, "clip_ratio takes norms of rows that have not caught up"),
]
NEVER = [
    (fastgd.Adam, {}, "rule adam goes on by quotients, whose sum over missed steps has no closed"),
    (fastgd.SparseAdam, {}, "rule adam goes on by quotients"),
    (fastgd.FTRL, {}, "rule ftrl makes weights anew"),
    (fastgd.LAMB, {}, "rule lamb takes sums over the whole parameter"),
    (fastgd.SGD, {"average": 0.9}, "an average of the weights goes on"),
]


@pytest.mark.parametrize(("cls", "options", "words"), NEVER)
def test_refused_when_made_where_it_could_never_be(cls, options, words):
    with pytest.raises(ValueError, match=f'rows: expected "exact" or "lazy", as {words}'):
        cls(np.zeros((4, 8)), rows="catch_up", **options)


@pytest.mark.parametrize("dtype", [F4, F8])
def test_signs_that_stay_for_good(dtype):
    """Factors of just more than 0.5, by which the smallest momentum is rounded to itself."""
    for cls, options in (
        (fastgd.Lion, {"betas": (0.51, 0.51)}),
        (fastgd.SignSGD, {"momentum": 0.51}),
    ):
        tables = [np.zeros((2, 4), dtype) for _ in range(2)]
        opt = cls(tables[0], lr=1.0, rows="catch_up", **options)
        dense = cls(tables[1], lr=1.0, **options)
        for row in (0, *[1] * 1300):
            rows = Rows([row], np.ones((1, 4), dtype))
            opt.step(rows)
            dense.step(whole(rows, (2, 4), dtype))
        opt.catch_up()
        assert same_bits(*tables)
        assert tables[0][0, 0] == -1301


def test_advice_is_what_can_be_had():
    """By a step of rows that would be lazy: to catch up, where the rule can."""
    for cls, options, can in (
        (fastgd.SGD, {"momentum": 0.9, "weight_decay": 0.1}, True),
        (fastgd.Lion, {"weight_decay": 0.1}, True),
        (fastgd.Adagrad, {"weight_decay": 0.1}, False),
        (fastgd.Adam, {}, False),
        (fastgd.RowWiseAdam, {"weight_decay": 0.1}, False),
    ):
        with pytest.raises(ValueError, match='say rows="lazy"') as caught:
            cls(np.zeros((4, 8)), **options).step(ROW)
        assert ('rows="catch_up"' in str(caught.value)) == can
    with pytest.raises(
        TypeError, match=r"indices: .* found builtins.int; np.array\(\[…\], np.int64\)"
    ):
        Rows(7, ROW.values)


@pytest.mark.parametrize("backend", ["numpy", *COMPILED[:1]])
@pytest.mark.parametrize(("cls", "options", "words"), REFUSED)
def test_refused_and_nothing_changed(cls, options, words, backend):
    """A dense gradient is taken, though."""
    fastgd.set_backend(backend)
    table = np.zeros((4, 8))
    opt = cls(table, rows="catch_up", **options)
    for t in range(2):
        before = [a.copy() for a in (table, *opt.state[0].values())]
        with pytest.raises(ValueError, match=f"grads: .*{words}"):
            opt.step(ROW)
        for a, b in zip(before, (table, *opt.state[0].values()), strict=True):
            assert same_bits(a, b)
        opt.step(np.ones((4, 8)))
        opt.catch_up()
        assert int(opt.state[0]["step"]) == t + 1


def test_refused_elsewhere():
    table = np.ones((4, 8))
    opt = momentum(table, rows="catch_up")
    opt.step(ROW)
    for wrapper in (fastgd.Lookahead, fastgd.SAM):
        with pytest.raises(ValueError, match='expected one without rows="catch_up"'):
            wrapper(opt)
    with pytest.raises(ValueError, match='rows: expected "exact", "lazy" or "catch_up"|rows: exp'):
        momentum(table, rows="later")
    saved = opt.state_dict()
    lazy = momentum(np.ones((4, 8)), rows="lazy")
    with pytest.raises(ValueError, match=r'"row_steps"\]: .*found rows that missed steps'):
        lazy.load_state_dict(saved)
    lazy.step(ROW)
    with pytest.raises(ValueError, match='made with rows="catch_up", found rows="lazy"'):
        lazy.catch_up()
    before = table.copy()
    for wrong, words in (
        ({"row_steps": np.full(4, 2, np.uint32)}, "expected at most 1, the steps of all"),
        ({"row_steps": np.zeros(4, np.int64)}, "expected dtype uint32, found int64"),
        ({"row_steps": np.zeros(3, np.uint32)}, r"expected shape \(4,\)"),
        ({"row_map": np.zeros(5)}, "found rows that missed steps"),
        ({"row_map": None}, r"has no \['row_map'\]"),
        ({"step": 2**32}, "step: expected at most 4294967295 steps of a table whose rows catch up"),
        ({"step": 2**32, "row_steps": None, "row_map": None}, "expected at most 4294967295 steps"),
    ):
        entry = {**saved["state"][0], **wrong}
        with pytest.raises((ValueError, TypeError), match=words):
            opt.load_state_dict({**saved, "state": {0: entry}})
    assert same_bits(table, before)
    opt.catch_up()
    lazy.load_state_dict(opt.state_dict())  # nothing is missing


def test_parameters_without_rows_are_as_ever():
    params = [np.ones(3), np.asfortranarray(np.ones((3, 2))), np.ones((3, 2))]
    opt = momentum(params, rows="catch_up")
    opt.step([np.ones(3), np.ones((3, 2), order="F"), np.ones((3, 2))])
    assert [("row_steps" in opt.state[k]) for k in range(3)] == [False, False, True]
    assert "row_steps" not in fastgd.SGD(np.ones((3, 2))).state[0]


@pytest.mark.parametrize("factor", [0.0, 0.9])
def test_what_was_saved_without_counts_has_missed_nothing(factor, tmp_path):
    """By lazy steps, as by dense ones; also where there are no states."""
    table = table_of()
    lazy = momentum(table, momentum=factor, rows="lazy")
    with fastgd.Mapped(tmp_path / "table", table.shape, F8) as mapped:
        mapped.array[...] = table
        other = momentum(mapped, momentum=factor, rows="lazy")
        for rows in draws(5):
            lazy.step(rows)
            other.step(rows)
    loaded = table.copy()
    opt = momentum(loaded, momentum=factor, rows="catch_up")
    opt.load_state_dict(lazy.state_dict())
    with fastgd.Mapped(tmp_path / "table") as mapped:
        again = momentum(mapped, momentum=factor, rows="catch_up")
        for o in (opt, again):
            o.catch_up()
            assert same_bits(o.param_groups[0]["params"][0], table)
            dense = momentum(expected := table.copy(), momentum=factor)
            dense.load_state_dict(lazy.state_dict())
            for rows in draws(5, seed=3):
                o.step(rows)
                dense.step(whole(rows, table.shape))
            o.catch_up()
            assert (o.state[0]["row_steps"] == 10).all()
            np.testing.assert_allclose(o.param_groups[0]["params"][0], expected, rtol=1e-13)
