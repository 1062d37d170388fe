"""Gradients by rows: what a step makes of them, on every backend and number of threads."""

import copy
import pickle

import numpy as np
import pytest
from support.helpers import COMPILED, same_bits

import fastgd
from fastgd import Rows
from fastgd.commands.optimizers import described
from fastgd.kernels._engine import summed_rows
from fastgd.kernels.spec.registry import RULES
from fastgd.kernels.spec.rows import summed
from fastgd.optimizers import OPTIMIZERS

BACKENDS = [name for name in fastgd.available_backends() if name != "numpy"]
F4, F8, F2, BF16 = np.float32, np.float64, np.float16, np.uint16


def floats(rng, shape, dtype):
    """Random numbers; of uint16 the bits of bfloat16."""
    x = rng.standard_normal(shape)
    return (x.astype(F4).view(np.uint32) >> 16).astype(BF16) if dtype is BF16 else x.astype(dtype)


def trained(backend, threads, cls, options, dtype=F4, gradient=F4, shape=(90, 7), k=40):
    """Three steps of a table by rows, with a vector beside it: all arrays, and the norms."""
    fastgd.set_backend(backend)
    fastgd.set_num_threads(threads)
    rng = np.random.default_rng(3)
    table, w = floats(rng, shape, dtype), rng.standard_normal(5)
    if cls is fastgd.FTRL:
        table[...] = 0
    opt = cls([table, w], rows="lazy", **options)
    norms = []
    for t in range(3):
        indices = rng.integers(0, shape[0], k).astype([np.int64, np.int32][t % 2])
        rows = Rows(indices, floats(rng, (k, *shape[1:]), gradient))
        norms.append(opt.step([rows, rng.standard_normal(5)], grad_scale=2.0).grad_norm)
    return [table, w, *(a for entry in opt.state.values() for a in entry.values())], norms


def assert_same(found, expected):
    assert found[1] == expected[1]
    for a, b in zip(found[0], expected[0], strict=True):
        assert same_bits(np.asarray(a), np.asarray(b))


RULES_OF = [
    (fastgd.SGD, {}),
    (fastgd.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    (fastgd.Adagrad, {}),
    (fastgd.AdamW, {}),
    (fastgd.NAdam, {}),  # which counts in a number of its own
    (fastgd.FTRL, {"l1": 0.1}),
    (fastgd.SparseAdam, {}),
    (fastgd.RowWiseAdagrad, {"weight_decay": 0.1}),
    (fastgd.RowWiseAdam, {"weight_decay": 0.1}),
]
STAGES = [{}, {"clip_norm": 1.0, "zero_grads": True}, {"clip_value": 0.5}, {"clip_ratio": 0.1}]
KINDS = [(F4, F4), (F8, F8), (F4, F2), (F8, F4), (F4, BF16)]


@pytest.mark.parametrize(("cls", "options"), RULES_OF, ids=lambda x: getattr(x, "__name__", ""))
def test_same_bits_as_the_numpy_backend(cls, options):
    for i, stages in enumerate(STAGES):
        dtype, gradient = KINDS[i]
        shape = [(90, 7), (30, 3, 2), (90, 1), (60, 1100)][i]
        given = cls, options | stages, dtype, gradient, shape
        expected = trained("numpy", 1, *given)
        for threads, backend in enumerate(BACKENDS, 1):
            assert_same(trained(backend, threads, *given), expected)


KEPT = [
    {"rounding": "stochastic"},
    {"rounding": "nearest", "state_dtype": "bfloat16"},
    {"master": True},
    {"master": "split"},
    {"rounding": "stochastic", "state_dtype": "8bit", "min_8bit_size": 0},
]


@pytest.mark.parametrize("kept", KEPT, ids=str)
@pytest.mark.parametrize("cls", [fastgd.Adam, fastgd.RowWiseAdam])
def test_tables_of_16_bits(cls, kept):
    given = cls, kept, BF16, BF16, (20, 256), 15
    expected = trained("numpy", 1, *given)
    for backend in BACKENDS:
        assert_same(trained(backend, 2, *given), expected)


@pytest.mark.parametrize("backend", COMPILED)
def test_threads_make_no_difference(backend):
    """Of rows that come often, all at once, and once."""
    for cls, n, k in ((fastgd.Adagrad, 1193, 4500), (fastgd.RowWiseAdagrad, 400, 1500)):
        given = cls, {"clip_norm": 1.0}, F4, F4, (n, 32), k
        expected = trained(backend, 1, *given)
        for threads in (2, 3, 7):
            assert_same(trained(backend, threads, *given), expected)


@pytest.mark.parametrize("backend", COMPILED)
def test_sums_are_in_the_order_of_appearance(backend):
    fastgd.set_backend(backend)
    rng = np.random.default_rng(0)
    for k, n, kind in (
        (0, 5, np.int64),
        (1, 1, np.int32),
        (999, 30, np.int32),
        (500, 2**40, np.int64),
    ):
        for dtype, source in ((F4, F4), (F8, F8), (F4, BF16), (F8, F2), (F4, F8)):
            indices = rng.integers(0, n, k).astype(kind)
            values = floats(rng, (k, 3), source)
            ours = summed_rows(Rows(indices, values), n, dtype is F8, "grads")
            for a, b in zip(ours, summed(indices, values, dtype), strict=True):
                assert same_bits(a, b)


@pytest.mark.parametrize("backend", COMPILED)
def test_long_rows_of_another_type_are_added_up_in_parts(backend):
    fastgd.set_backend(backend)
    rng = np.random.default_rng(0)
    for dtype, source in ((F4, BF16), (F8, F2), (F4, F8)):
        indices, values = np.array([2, 0, 2, 2]), floats(rng, (4, 700), source)
        ours = summed_rows(Rows(indices, values), 3, dtype is F8, "grads")
        for a, b in zip(ours, summed(indices, values, dtype), strict=True):
            assert same_bits(a, b)


@pytest.mark.parametrize("backend", COMPILED)
def test_as_many_rows_as_64_bits_tell_apart(backend):
    """Of 3 indices an entry tells the place by 3 bits, which leaves 61 for the row."""
    fastgd.set_backend(backend)
    rows = Rows([2**61 - 1, 0, 2**60], np.arange(3.0).reshape(3, 1))
    distinct, sums = summed_rows(rows, 2**61, True, "grads")
    assert distinct.tolist() == [0, 2**60, 2**61 - 1]
    assert sums.tolist() == [[1], [2], [0]]
    with pytest.raises(ValueError, match="can't tell 3 indices into 2305843009213693953 rows"):
        summed_rows(rows, 2**61 + 1, True, "grads")


def test_each_of_few_long_rows_has_a_thread():
    """Or several share one, of which there are at most 64."""
    rng = np.random.default_rng(0)
    for k, length in ((15, 2200), (100, 400)):
        rows = Rows(np.arange(k) // 2, rng.standard_normal((k, length)))
        expected = summed(rows.indices, rows.values, F8)
        fastgd.set_num_threads(k)
        for a, b in zip(summed_rows(rows, k, True, "grads"), expected, strict=True):
            assert same_bits(a, b)


def test_indices_that_ascend_but_for_one_are_sorted():
    """The one is the last or the first of what a thread looks at; equal ones are next to it."""
    fastgd.set_num_threads(2)
    for place in (0, 19_999, 20_000, 39_999):
        indices = 1 + np.arange(40_000) // 2
        indices[place] = 0 if place in (20_000, 39_999) else 30_000
        rows = Rows(indices, np.arange(40_000.0).reshape(-1, 1))
        expected = summed(rows.indices, rows.values, F8)
        for a, b in zip(summed_rows(rows, 30_001, True, "grads"), expected, strict=True):
            assert same_bits(a, b)


def test_threads_sort_alike():
    rng = np.random.default_rng(0)
    for n in (5, 2**11, 2**21, 2**40):  # by digits of as many bits as there is room for, and less
        rows = Rows(rng.integers(0, n, 40_000), rng.standard_normal((40_000, 1)))
        expected = summed(rows.indices, rows.values, F8)
        for threads in (1, 2, 3):
            fastgd.set_num_threads(threads)
            for a, b in zip(summed_rows(rows, n, True, "grads"), expected, strict=True):
                assert same_bits(a, b)


def test_order_of_rows_that_come_once_makes_no_difference():
    rng = np.random.default_rng(0)
    indices, values = rng.permutation(50)[:20], rng.standard_normal((20, 4))
    tables = []
    for order in (np.arange(20), np.argsort(indices), rng.permutation(20)):
        tables.append(np.ones((50, 4)))
        fastgd.Adagrad(tables[-1]).step(Rows(indices[order], values[order]))
    assert same_bits(tables[0], tables[1])
    assert same_bits(tables[0], tables[2])


EXACT = [
    (fastgd.SGD, {}),
    (fastgd.Adagrad, {"lr_decay": 0.1}),
    (fastgd.SignSGD, {}),
    (fastgd.RowWiseAdagrad, {}),
]


@pytest.mark.parametrize(("cls", "options"), EXACT)
def test_exact_where_it_is_declared(cls, options):
    """The bits of a dense step, without the option; accumulated, too."""
    rng = np.random.default_rng(0)
    tables = [rng.standard_normal((60, 5)).astype(F4)] * 2
    tables = [t.copy() for t in tables]
    by_rows, dense = (cls(t, **options) for t in tables)
    assert RULES[by_rows.stepper.rules[0]].by_rows == "exact"
    for t in range(4):
        for weight in [1.0] if t % 2 else [1.0, 3.0]:
            indices, values = rng.integers(0, 60, 20), rng.standard_normal((20, 5)).astype(F4)
            whole = np.zeros((60, 5), F4)
            np.add.at(whole, indices, values)
            if t % 2:
                by_rows.step(Rows(indices, values))
                dense.step(whole)
            else:
                by_rows.accumulate(Rows(indices, values), weight)
                dense.accumulate(whole, weight)
        if not t % 2:
            by_rows.step()
            dense.step()
    assert same_bits(*tables)
    for a, b in zip(by_rows.state[0].values(), dense.state[0].values(), strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("backend", [*COMPILED[-1:], "numpy"])
def test_rows_are_clipped_as_units_of_a_whole_array(backend):
    """Each to a part of its own norm, also of rows of one huge number, and of several blocks."""
    fastgd.set_backend(backend)
    rng = np.random.default_rng(0)
    for shape, scale in (((9, 5), 1.0), ((9, 1), 1e200), ((4, 40_000), 1e200)):
        level = scale * 10.0 ** rng.permutation(shape[0])[:, None]
        p, rows = rng.standard_normal(shape) * level, rng.permutation(shape[0])[:-1]
        values = rng.standard_normal((len(rows), *shape[1:])) * level[rows] * 10.0
        whole, tables = np.zeros(shape), [p.copy(), p.copy()]
        whole[rows] = values
        for table, g in zip(tables, (whole, Rows(rows, values)), strict=True):
            fastgd.SGD(table, lr=1.0, clip_ratio=0.5).step(g)
        moved = np.linalg.norm((tables[1] - p) / level, axis=1)[rows]
        assert np.allclose(moved, 0.5 * np.linalg.norm(p / level, axis=1)[rows])
        assert same_bits(*tables)


def test_norm_is_that_of_the_summed_rows():
    table = np.zeros((5, 2))
    rows = Rows([3, 1, 3], np.array([[1.0, 0.0], [0.0, 2.0], [2.0, 0.0]]))
    record = fastgd.SGD(table, lr=1.0, clip_norm=1.0).step(rows)
    assert record.grad_norm == pytest.approx(np.hypot(3, 2))
    assert record.clip_factor == pytest.approx(1 / np.hypot(3, 2))
    assert np.linalg.norm(table) == pytest.approx(1.0)
    record = fastgd.SGD(table, clip_norm=1.0).step(Rows([1], np.full((1, 2), 1e200)))
    assert record.grad_norm == pytest.approx(np.sqrt(2) * 1e200)


def test_norms_of_rows_of_several_blocks():
    """Each block of each row has a sum of its own, of which all are kept at once."""
    table = np.ones((6, 4 * 32768 + 1), F4)
    opt = fastgd.SGD(table, lr=1.0, clip_ratio=1.0, clip_norm=1e9)
    record = opt.step(Rows(np.arange(6), np.ones_like(table)))
    assert record.grad_norm == np.sqrt(table.size)
    assert not table.any()


def test_only_touched_rows_are_written():
    """A lazy step leaves all else as it is, also what is not a number."""
    table = np.full((1000, 3), np.nan, F4)
    table[[5, 7]] = 1.0
    opt = fastgd.AdamW(table, rows="lazy", copy_to=(low := np.zeros((1000, 3), F2)))
    low[...] = -1
    opt.step(Rows([7, 5, 7], np.ones((3, 3), F4)))
    assert set(np.nonzero(opt.state[0]["exp_avg"])[0].tolist()) == {5, 7}
    assert np.isfinite(table).sum() == 6
    assert (low != -1).sum() == 6


def test_no_rows_are_a_step():
    table = np.ones((4, 2))
    opt = fastgd.NAdam(table, rows="lazy")
    before = float(opt.state[0]["mu_product"])
    assert opt.step(Rows([], np.zeros((0, 2)))).step == 1
    assert float(opt.state[0]["mu_product"]) != before
    assert (table == 1).all()
    fastgd.SGD(np.ones((4, 0))).step(Rows([1], np.ones((1, 0))))


@pytest.mark.parametrize("backend", ["numpy", *COMPILED])
def test_a_table_among_dense_layers(backend):
    """Groups, a schedule, None, and dense gradients of the same table in turn."""
    fastgd.set_backend(backend)

    def run(by_rows):
        rng = np.random.default_rng(0)
        params = [rng.standard_normal(s) for s in ((3, 4), (50, 4), (4,), (20, 2))]
        opt = fastgd.Adagrad(
            [{"params": params[:2], "lr": lambda t: 0.1 / (1 + t)}, {"params": params[2:]}]
        )
        for t in range(4):
            grads = []
            for p in params:
                i, v = rng.permutation(len(p))[:3], rng.standard_normal((3, *p.shape[1:]))
                whole = np.zeros_like(p)
                whole[i] = v
                rowed = by_rows and p.ndim == 2 and len(p) > 3 and t != 2
                grads.append(Rows(i, v) if rowed else whole)
            grads[t] = None
            opt.step([grads[:2], grads[2:]])
        return params

    for a, b in zip(run(True), run(False), strict=True):
        assert same_bits(a, b)


def test_zero_grads_zeroes_the_values():
    values, w = np.ones((3, 2)), np.ones(2)
    opt = fastgd.SGD([np.zeros((5, 2)), np.zeros(2)], zero_grads=True)
    opt.step([Rows([1, 1, 4], values), w])
    assert not values.any()
    assert not w.any()
    values.flags.writeable = False
    with pytest.raises(ValueError, match="expected a writeable array, which zero_grads"):
        opt.step([Rows([1, 1, 4], values), w])


def test_what_is_zeroed_is_taken_before():
    tables = []
    for zero_grads in (False, True):
        values = np.arange(1.0, 601.0).reshape(3, 200)
        opt = fastgd.SGD(np.zeros((5, 200)), lr=1.0, zero_grads=zero_grads, weight_decay=0.0)
        opt.step(Rows([1, 4, 1], values))
        tables.append(opt.param_groups[0]["params"][0])
        assert values.any() != zero_grads
    assert tables[0].any()
    assert same_bits(*tables)


def test_means_of_gradients_are_not_taken_of_rows():
    p = np.ones((4, 2))
    with pytest.raises(ValueError, match="^grads: .*takes means of whole gradients"):
        fastgd.SGD(p, centralize=True).step(Rows([1], np.ones((1, 2))))
    assert (p == 1).all()


def test_what_is_not_finite():
    table = np.ones((5, 2))
    rows = Rows([4, 2], np.array([[1.0, 1.0], [np.inf, 1.0]]))
    opt = fastgd.SGD(table, nonfinite="skip")
    assert opt.step(rows).skipped
    with pytest.raises(FloatingPointError, match=r"grads.values: .* found inf at \(1, 0\)"):
        fastgd.SGD(table, nonfinite="raise").step(rows)
    large = Rows([1, 1], np.full((2, 2), 1e308))
    with pytest.raises(FloatingPointError, match="found rows whose sum is not"):
        fastgd.SGD(table, nonfinite="raise").step(large)
    assert (table == 1).all()


# ------------------------------------------------------------------------------- what is refused


def test_rows_are_what_was_given():
    indices, values = np.array([1, 2], np.int32), np.ones((2, 3), F2)
    rows = Rows(indices, values)
    assert rows.indices is indices or rows.indices.base is indices
    assert np.shares_memory(rows.values, values)
    assert len(rows) == 2
    assert repr(rows) == "Rows(2 of float16, shape (3,))"
    for action in (lambda: setattr(rows, "values", values), lambda: delattr(rows, "indices")):
        with pytest.raises(AttributeError, match="are fixed"):
            action()
    for again in (copy.copy(rows), pickle.loads(pickle.dumps(rows))):
        assert same_bits(again.values, values)
    assert Rows(np.array([1], np.uint8), values[:1]).indices.dtype == np.int32
    assert Rows([1], values.T[:1, ::1].repeat(2, 1)).indices.dtype == np.int64
    for wrong, error, words in (
        (([1.0], values[:1]), TypeError, "indices: expected dtype int32 or int64, found float64"),
        ((np.array([1], np.uint64), values[:1]), TypeError, "found uint64"),
        (([[1]], values[:1]), ValueError, "indices: expected one axis, found shape"),
        (([1], values), ValueError, r"values: expected shape \(1, …\), a row for each"),
        (([1, 2], np.ones(2)), ValueError, "a row for each index, found"),
        (([1, 2], np.ones((2, 3), int)), TypeError, "values: expected dtype float32"),
    ):
        with pytest.raises(error, match=words):
            Rows(*wrong)


ONE = np.ones((1, 2))
REFUSED = [
    (Rows([5], ONE), "expected indices from 0 to below 5, found 5 at position 0"),
    (Rows([0, -1], np.ones((2, 2))), "found -1 at position 1"),
    (Rows([2**40], ONE), "found 1099511627776"),
    (
        Rows([1], np.ones((1, 3))),
        r"expected values of shape \(1, 2\), rows of a parameter of shape",
    ),
]


@pytest.mark.parametrize("backend", ["numpy", *COMPILED])
def test_refused_and_nothing_changed(backend):
    fastgd.set_backend(backend)
    table, w = np.ones((5, 2)), np.ones(3)
    opt = fastgd.Adam({"w": w, "table": table}, rows="lazy")
    good = Rows([1, 1], np.ones((2, 2)))
    shared = opt.state["table"]["exp_avg"]
    cases = [*REFUSED, (Rows([1], table[:1]), "shares memory with params"),
             (Rows([1], shared[:1]), "shares memory with state")]  # fmt: skip
    for rows, words in cases:
        with pytest.raises(ValueError, match=rf'grads\["table"\]: {words}|{words}'):
            opt.step({"w": np.ones(3), "table": rows})
        with pytest.raises(ValueError, match=r'grads\["table"\]'):
            opt.step({"w": np.ones(3), "table": rows})
    assert (table == 1).all()
    assert (w == 1).all()
    assert not any(int(entry["step"]) for entry in opt.state.values())
    opt.step({"w": np.ones(3), "table": good})
    assert (table[1] != 1).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: fastgd.Adam(p), 'rule adam changes states .* say rows="lazy"'),
        (lambda p: fastgd.SGD(p, weight_decay=0.1), "weight_decay acts on rows without"),
        (lambda p: fastgd.RowWiseAdam(p, weight_decay=0.1), "weight_decay acts on rows without"),
        (lambda p: fastgd.SGD(p, average=0.9), "as an average of the weights goes on"),
        (lambda p: fastgd.LAMB(p, rows="lazy"), "as rule lamb takes sums over the whole parameter"),
        (lambda p: fastgd.Muon(p, rows="lazy"), "as rule muon takes sums over the whole parameter"),
        (lambda p: fastgd.SGDScheduleFree(p, rows="lazy"), "moves every row towards its average"),
        (lambda p: fastgd.MADGRAD(p, rows="lazy"), "keeps what parameters were at the first step"),
        (lambda p: fastgd.FTRL(p, rows="lazy"), "expected a parameter that starts from 0, or an"),
        (lambda p: fastgd.SGD(np.asfortranarray(p)), "expected a parameter in C order"),
        (lambda p: fastgd.SGD(p.ravel()), r"its parameter of shape \(512,\) has no rows"),
        (
            lambda p: fastgd.SGD(p, momentum=0.9, rows="lazy", state_dtype="8bit", min_8bit_size=0),
            "expected rows of a multiple of 256 elements",
        ),
        (lambda p: fastgd.SAM(fastgd.SGD(p)), "as SAM perturbs and restores whole parameters"),
    ],
)
def test_refused_with_the_reason(make, words):
    table = np.ones((4, 128))
    opt = make(table)
    rows = Rows([1], np.ones((1, 128)))
    with pytest.raises(ValueError, match=f"grads: .*{words}"):
        opt.step((lambda: (0.0, rows)) if isinstance(opt, fastgd.SAM) else rows)
    assert (table == 1).all()


def test_every_rule_says_what_it_makes_of_rows():
    """One with two sweeps or a matrix step has to say no; words follow the rule's name."""
    for rule in RULES.values():
        whole = rule.before or rule.matrix or rule.columns
        assert (rule.by_rows not in ("exact", "lazy")) >= bool(whole), rule.name
        assert rule.by_rows[0].islower()
    for name, cls in OPTIMIZERS.items():
        assert "gradients by rows: " in described(cls), name


def test_no_rule_takes_rows_that_sets_states_at_the_first_step():
    """Rows that come later would go without; FTRL asks for weights of 0, whose states are 0."""
    first = {rule.name for rule in RULES.values() if "first" in rule.coefficients}
    taken = {rule.name for rule in RULES.values() if rule.by_rows in ("exact", "lazy")}
    assert first & taken == {"ftrl"}


def test_bound_rows_are_refused():
    with pytest.raises(TypeError, match="expected arrays, found Rows, which can't be bound"):
        fastgd.SGD(np.ones((5, 2)), grads=Rows([1], ONE))


def test_accumulated_rows():
    """No sums of the table's size are made; rows and arrays don't mix; nothing is lost."""
    table = np.ones((5, 2))
    opt = fastgd.SGD(table, lr=1.0)
    opt.accumulate(Rows([1, 1], np.ones((2, 2))))
    assert opt.stepper.accumulated.sums[0].size == 0
    with pytest.raises(ValueError, match="expected Rows, as were accumulated, found an array"):
        opt.accumulate(np.ones((5, 2)))
    with pytest.raises(ValueError, match="expected indices from 0"):
        opt.accumulate(Rows([7], ONE))
    with pytest.raises(RuntimeError, match="Rows were accumulated that no step has taken"):
        opt.state_dict()
    twin = copy.deepcopy(opt)
    opt.accumulate(Rows([2], ONE), weight=3.0)
    opt.step()
    assert table[:3, 0].tolist() == [1.0, 0.5, 0.25]
    twin.step()
    assert twin.param_groups[0]["params"][0][1].tolist() == [-1.0, -1.0]
    opt.accumulate(np.ones((5, 2)))  # of the next step
    with pytest.raises(ValueError, match="expected an array, as was accumulated before"):
        opt.accumulate(Rows([1], ONE))


def test_checkpoints_go_on(tmp_path):
    rng = np.random.default_rng(0)
    draws = [Rows(rng.integers(0, 9, 5), rng.standard_normal((5, 2))) for _ in range(6)]
    for cls in (fastgd.SparseAdam, fastgd.RowWiseAdagrad, fastgd.RowWiseAdam):
        opts = [cls(np.ones((9, 2))) for _ in range(2)]
        for rows in draws:
            opts[0].step(rows)
        for rows in draws[:3]:
            opts[1].step(rows)
        fastgd.save(tmp_path / "file", opts[1])
        again = cls(opts[1].param_groups[0]["params"][0].copy())
        fastgd.load(tmp_path / "file", again)
        for rows in draws[3:]:
            again.step(rows)
        assert same_bits(*(o.param_groups[0]["params"][0] for o in (opts[0], again)))


def test_functional():
    table = np.zeros((5, 2))
    fastgd.functional.sgd(table, Rows([1], ONE), step=1, lr=1.0)
    fastgd.functional.sparseadam(
        table, Rows([2], ONE), np.zeros((5, 2)), np.zeros((5, 2)), step=1, lr=1.0
    )
    assert table[:, 0].round(6).tolist() == [0, -1, -1, 0, 0]


@pytest.mark.skipif(np.intp(0).itemsize < 8, reason="this CPU has 32 bits")
def test_tables_of_more_than_2_to_the_31_elements():
    """Memory that is never touched takes none; rows from all over it are."""
    n, length = 2**20 + 5, 2**11
    try:
        table = np.zeros((n, length), F2)
    except MemoryError:
        pytest.skip("too little memory is promised")
    indices = np.array([0, n - 1, 2**20, n - 1])
    opt = fastgd.SGD(table, lr=1.0, rounding="nearest")
    for backend in BACKENDS:
        fastgd.set_backend(backend)
        table[indices] = 0
        opt.step(Rows(indices, np.ones((4, length), F4)))
        assert table[indices, -1].tolist() == [-1, -2, -1, -2]
        assert not table[[1, n - 2, 2**19]].any()


def test_values_that_were_copied_are_not_zeroed_in_silence():
    table, values = np.zeros((5, 4), np.float32), np.ones((4, 2), np.float32).T
    opt = fastgd.SGD(table, lr=0.1, zero_grads=True)
    with pytest.raises(ValueError, match="a copy of others"):
        opt.step(Rows([1, 2], values))
    assert not table.any()


def test_arrays_that_were_changed_are_looked_at_again():
    indices, values = np.zeros(4, np.int64), np.ones((4, 2))
    rows = Rows(indices, values)
    indices.dtype = np.int32  # that of another view
    fastgd.SGD(np.zeros((5, 2)), lr=0.1).step(rows)
    rows.indices.shape = (2, 2)
    with pytest.raises(ValueError, match="as they were made"):
        fastgd.SGD(np.zeros((5, 2)), lr=0.1).step(rows)


@pytest.mark.parametrize("backend", ["numpy", *COMPILED])
def test_rows_without_elements(backend):
    fastgd.set_backend(backend)
    opt = fastgd.SGD(np.zeros((5, 0)), lr=0.1, clip_ratio=0.1, clip_norm=1.0)
    record = opt.step(Rows([1, 3, 1], np.zeros((3, 0))))
    assert record.grad_norm == 0.0


def test_scales_are_not_shared_by_rows():
    """A dense gradient is stepped row by row, too, where the rule has a number for each."""
    for table in (np.zeros((100, 300), np.float32), np.zeros((4096, 3), np.float32)):
        with pytest.raises(ValueError, match="multiple of 256"):
            fastgd.RowWiseAdam(table, state_dtype="8bit")
    fastgd.RowWiseAdam(np.zeros((100, 512), np.float32), state_dtype="8bit")
