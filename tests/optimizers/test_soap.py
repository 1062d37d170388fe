"""SOAP, whose matrix step has states of its own, which are renewed before a step writes anything."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from support.helpers import same_bits

import fastgd
from fastgd.commands.optimizers import described
from fastgd.core.storage import Piece, saved_as
from fastgd.kernels.reference import RULES, TensorStep
from fastgd.kernels.spec.coded_array import as_coded
from fastgd.kernels.spec.matrices import as_matrix, matrix_of
from fastgd.optimizers import GENERAL, OPTIMIZERS


def drawn(shapes, seed=0, dtype=np.float32, order="C"):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), dtype, order=order) for shape in shapes]


class Authors:
    """One matrix by the authors' implementation, soap.py of nikhilvyas/SOAP, told in NumPy.

    It keeps m in the eigenbases, and takes it back and forth at each step.
    """

    def __init__(self, p, lr=3e-3, betas=(0.95, 0.95), shampoo_beta=-1, eps=1e-8, weight_decay=0.01,
                 precondition_frequency=10, max_precond_dim=10000, normalize_grads=False,
                 correct_bias=True):  # fmt: skip
        self.p, self.lr, self.betas, self.eps = p, lr, betas, eps
        self.decay, self.frequency = weight_decay, precondition_frequency
        self.normalize, self.correct = normalize_grads, correct_bias
        self.beta = betas[1] if shampoo_beta < 0 else shampoo_beta
        self.m, self.v, self.t = np.zeros_like(p), np.zeros_like(p), 0
        self.factors = [np.zeros((n, n)) if n <= max_precond_dim else None for n in p.shape]
        self.bases = None

    def project(self, x, back=False):
        for k, basis in enumerate(self.bases):
            if basis is not None:
                turn = basis if back else basis.T
                x = turn @ x if k == 0 else x @ turn.T
        return x

    def step(self, g):
        if self.bases is not None:
            self.t += 1
            turned, (beta1, beta2) = self.project(g), self.betas
            self.m = beta1 * self.m + (1 - beta1) * turned
            self.v = beta2 * self.v + (1 - beta2) * turned**2
            size = self.lr
            if self.correct:
                size *= (1 - beta2**self.t) ** 0.5 / (1 - beta1**self.t)
            update = self.project(self.m / (np.sqrt(self.v) + self.eps), back=True)
            if self.normalize:
                update = update / (1e-30 + np.mean(update**2) ** 0.5)
            self.p -= size * update
            self.p -= self.lr * self.decay * self.p
            self.m = self.project(self.m, back=True)
        for factor, outer in zip(self.factors, (g @ g.T, g.T @ g), strict=True):
            if factor is not None:
                factor += (1 - self.beta) * (outer - factor)
        if self.bases is None:
            self.bases = [
                None if factor is None else np.linalg.eigh(factor)[1][:, ::-1]
                for factor in self.factors
            ]
            return
        if self.t % self.frequency == 0:
            for k, (factor, basis) in enumerate(zip(self.factors, self.bases, strict=True)):
                if factor is not None:
                    order = np.argsort(-np.diag(basis.T @ factor @ basis), kind="stable")
                    self.v = np.take(self.v, order, axis=k)
                    self.bases[k] = np.linalg.qr(factor @ basis[:, order])[0]
        self.m = self.project(self.m)


OPTIONS = {
    "defaults": {},
    "often": {"precondition_frequency": 1, "betas": (0.8, 0.9), "weight_decay": 0.5},
    "factors of their own": {"shampoo_beta": 0.5, "precondition_frequency": 3, "eps": 1e-3},
    "normalized": {"normalize_grads": True, "correct_bias": False, "precondition_frequency": 7},
}
# A square; and matrices that are longer than wide and the other way: a factor for one side alone.
MATRICES = {"soap": (5, 5), "soap_right": (7, 4), "soap_left": (4, 7)}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rule", MATRICES)
def test_is_as_the_authors_write_it(rule, options):
    """To 1e-12 of the way in float64, over 100 steps with bases that turn."""
    given = {"lr": 0.1, "max_precond_dim": 5, **OPTIONS[options]}
    ((p,), (q,)) = (drawn([MATRICES[rule]], 0, np.float64) for _ in range(2))
    start = p.copy()
    ours, theirs = fastgd.SOAP(p, **given), Authors(q, **given)
    rng = np.random.default_rng(1)
    for _ in range(100):
        # A valley whose axes are not those of the matrix, so that bases have something to find.
        g = rng.standard_normal(p.shape) + 3 * (p.sum() + p[0, 0])
        ours.step(g)
        theirs.step(g)
        np.testing.assert_allclose(p, q, rtol=0, atol=1e-12 * np.abs(q - start).max())
    assert ours.stepper.rules == [rule]
    assert np.abs(p - start).max() > 0.5


def test_a_vector_is_a_row_if_so_wanted():
    (p,), q = drawn([4], 0, np.float64), drawn([4], 0, np.float64)[0][None]
    given = {"lr": 0.1, "precondition_frequency": 2, "max_precond_dim": 4}
    ours, theirs = fastgd.SOAP(p, precondition_1d=True, **given), Authors(q, **given)
    theirs.factors[0] = None  # the authors' have one factor for one axis
    for seed in range(20):
        (g,) = drawn([4], seed + 1, np.float64)
        ours.step(g)
        theirs.step(g[None])
    np.testing.assert_allclose(p, q[0], rtol=1e-9)
    assert ours.state[0]["GG_r"].shape == (4, 4)


# ------------------------------------------------------------------- backends, threads, layouts

SHAPES = [(5, 3), (3, 5), (4, 4), (1, 7), (7, 1), (1, 1), (0, 3), (3, 0), (70, 33), (3,), (2, 3, 4)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_all_backends_and_threads_are_the_specification(order, dtype):
    """To the bit on one machine, with all that goes around a rule and bases that turn."""
    found = []
    for backend, threads in [("numpy", 1), *((b, 2) for b in fastgd.available_backends())]:
        fastgd.set_backend(backend)
        fastgd.set_num_threads(threads)
        params = drawn(SHAPES, 0, dtype, order)
        opt = fastgd.SOAP(
            [{"params": params[:-3]},
             {"params": params[-3:], "normalize_grads": True, "lr": 0.1, "eps": 1e30}],
            precondition_frequency=2, max_precond_dim=33, clip_norm=1.0, clip_value=0.3,
            average=0.9, betas=(0.9, 0.8), shampoo_beta=0.7,
        )  # fmt: skip
        for seed in range(5):
            grads = drawn(SHAPES, seed + 1, dtype, order)
            opt.step([grads[:-3], [None, *grads[-2:]] if seed == 2 else grads[-3:]], grad_scale=8.0)
        states = [a for s in opt.state.values() for a in s.values()]
        found.append([*params, *states, *opt.average.averages.values()])
    for other in found[1:]:
        assert all(map(same_bits, found[0], other))


def test_columns_first_is_the_same_but_for_rounding():
    a, b = drawn([(6, 4)], 0, np.float64)[0], drawn([(6, 4)], 0, np.float64, "F")[0]
    one, other = (
        fastgd.SOAP(x, lr=0.1, precondition_frequency=2, max_precond_dim=4) for x in (a, b)
    )
    for seed in range(9):
        (g,) = drawn([(6, 4)], seed + 1, np.float64)
        one.step(g)
        other.step(np.asfortranarray(g))
    np.testing.assert_allclose(a, b, rtol=1e-10)
    assert one.state[0]["Q_r"].shape == other.state[0]["Q_r"].shape == (4, 4)


def test_sixteen_bits_and_masters():
    """Parameters may be of 16 bits; what a matrix step takes stays in what is computed with."""
    (start,) = drawn([(8, 8)])
    p, q = start.astype(np.float16), start.astype(np.float16).astype(np.float32)
    one = fastgd.SOAP(p, master=True, state_dtype="bfloat16")
    other = fastgd.SOAP(q)
    for seed in range(4):
        (g,) = drawn([(8, 8)], seed)
        one.step(g.astype(np.float16))
        other.step(g.astype(np.float16).astype(np.float32))
    assert same_bits(one.state[0]["master"], q)
    for key in RULES["soap"].states:
        assert one.state[0][key].dtype == np.float32
        assert same_bits(one.state[0][key], other.state[0][key])


def test_matrices_are_views_in_the_order_of_memory():
    a = np.arange(6.0)
    m = as_matrix(a, matrix_of((2, 3), "F"))
    assert m.shape == (2, 3)
    assert m[1, 0] == 1
    assert np.shares_memory(a, m)
    assert as_matrix(np.zeros(9), matrix_of((2, 3), "F"), "column_pairs").shape == (3, 3)
    assert as_matrix(np.zeros(4), matrix_of((2, 3), "C"), "row_pairs").shape == (2, 2)


# ----------------------------------------------------------------------- the first step, failures


def test_room_is_made_for_the_largest_of_all_matrices():
    shapes = [(3, 4), (40, 20), (2, 2)]
    params = drawn(shapes)
    alone = [p.copy() for p in params]
    opt, others = fastgd.SOAP(params), [fastgd.SOAP(p) for p in alone]
    for seed in (1, 2, 3):
        grads = drawn(shapes, seed)
        opt.step(grads)
        for other, g in zip(others, grads, strict=True):
            other.step(g)
    assert all(map(same_bits, params, alone))


def test_the_first_step_only_looks():
    p = np.full((3, 2), 7.0)
    opt = fastgd.SOAP(p, weight_decay=0.5)
    opt.step(np.arange(6.0).reshape(3, 2))
    state = opt.state[0]
    assert (p == 7).all()
    assert not any(state[key].any() for key in ("exp_avg", "exp_avg_sq", "Q_l", "Q_r"))
    assert state["GG_r"].any()
    opt.step(np.ones((3, 2)))
    assert (p != 7).all()
    np.testing.assert_allclose(state["Q_l"].T @ state["Q_l"], np.eye(3), atol=1e-12)


def test_a_first_gradient_of_zeros_leaves_the_axes():
    p, q = np.ones((3, 2)), np.ones((3, 2))
    opt, adam = fastgd.SOAP(p, weight_decay=0.0), fastgd.Adam(q, 3e-3, (0.95, 0.95), 0.0)
    opt.param_groups[0]["eps"] = 0.0
    opt.step(np.zeros((3, 2)))
    for seed in range(3):
        (g,) = drawn([(3, 2)], seed, np.float64)
        opt.step(g)
        adam.step(g)
    np.testing.assert_allclose(p, q, rtol=1e-12)


class Snapshot:
    """All that a step may write, as it was."""

    def __init__(self, opt):
        self.opt = opt
        self.before = [a.copy() for a in self.arrays()]

    def arrays(self):
        params = self.opt.stepper.params().values()
        return [*params, *(a for entry in self.opt.state.values() for a in entry.values())]

    def unchanged(self):
        return all(map(same_bits, self.before, self.arrays()))


@pytest.mark.parametrize("backend", ["numpy", *fastgd.available_backends()])
@pytest.mark.parametrize(
    ("name", "error", "steps", "words"),
    [("eigh", np.linalg.LinAlgError("no"), 1, r"params\[1\]: no"),
     ("eigh", KeyboardInterrupt(), 1, None), ("qr", MemoryError(), 2, None)],
)  # fmt: skip
def test_what_fails_in_lapack_fails_before_anything_is_written(
    monkeypatch, backend, name, error, steps, words
):
    fastgd.set_backend(backend)
    params, twins = drawn([(3,), (4, 4)]), drawn([(3,), (4, 4)])
    opt, other = (fastgd.SOAP(ps, precondition_frequency=1) for ps in (params, twins))
    for seed in range(steps):
        opt.step(drawn([(3,), (4, 4)], seed))
    before = Snapshot(opt)

    def fails(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(np.linalg, name, fails)
        with pytest.raises(type(error), match=words):
            opt.step(drawn([(3,), (4, 4)], 8))
    assert before.unchanged()
    # And the step can be taken again.
    opt.step(drawn([(3,), (4, 4)], 8))
    for seed in (*range(steps), 8):
        other.step(drawn([(3,), (4, 4)], seed))
    assert all(map(same_bits, params, twins))


@pytest.mark.parametrize("backend", ["numpy", *fastgd.available_backends()])
@pytest.mark.parametrize("when", [0, 3])
def test_a_nan_poisons_its_matrix_and_no_more(backend, when):
    fastgd.set_backend(backend)
    shapes = [(4, 4), (5, 5), (3,)]
    params, alone = drawn(shapes), drawn(shapes)[1]
    opt, twin = (fastgd.SOAP(x, precondition_frequency=1) for x in (params, alone))
    for seed in range(5):
        grads = drawn(shapes, seed)
        if seed == when:
            grads[0][1, 2] = np.nan if when else np.inf
        opt.step(grads)
        twin.step(grads[1])
        if seed == when == 0:
            assert np.isfinite(params[0]).all()  # as nothing moves yet
    assert np.isnan(params[0]).all()
    assert np.isnan(opt.state[0]["Q_l"]).all() == (when == 0)  # else it stays as it was
    assert same_bits(params[1], alone)


@pytest.mark.parametrize("backend", ["numpy", *fastgd.available_backends()])
def test_a_factor_that_overflows_leaves_its_basis_alone(backend):
    """Of a gradient that is finite, but whose squares are not in float32."""
    fastgd.set_backend(backend)
    (p,) = drawn([(4, 6)])
    opt = fastgd.SOAP(p, precondition_frequency=2, nonfinite="raise")
    for seed in range(9):
        (g,) = drawn([(4, 6)], seed)
        opt.step(g * np.float32(1e20 if seed == 3 else 1.0))
    state = opt.state[0]
    assert not np.isfinite(state["GG_l"]).all()
    assert not np.isfinite(state["GG_r"]).all()
    assert all(np.isfinite(state[key]).all() for key in ("Q_l", "Q_r", "exp_avg"))
    assert np.isfinite(p).all()


@pytest.mark.parametrize("backend", ["numpy", *fastgd.available_backends()])
def test_a_step_that_is_skipped_renews_nothing(backend):
    fastgd.set_backend(backend)
    (p,) = drawn([(4, 4)])
    opt = fastgd.SOAP(p, nonfinite="skip")
    opt.step(drawn([(4, 4)], 1)[0])
    before = Snapshot(opt)
    assert opt.step(np.full((4, 4), np.nan, np.float32)).skipped
    assert before.unchanged()
    opt.step(drawn([(4, 4)], 2)[0])
    assert opt.state[0]["Q_l"].any()


# ----------------------------------------------------------------------------- what is no matrix


def test_others_take_the_steps_of_adamw():
    shapes = [(), (3,), (2, 3, 4), (30, 20)]
    params, twins = drawn(shapes), drawn(shapes)
    given = {"lr": 0.1, "betas": (0.9, 0.8), "eps": 1e-3, "weight_decay": 0.5}
    opt = fastgd.SOAP([{"params": params[:3]}, {"params": params[3:], "use_soap": False}], **given)
    adamw = fastgd.AdamW(twins, **given)
    for seed in range(3):
        grads = drawn(shapes, seed)
        opt.step([grads[:3], grads[3:]])
        adamw.step(grads)
    assert all(map(same_bits, params, twins))
    assert fastgd.SOAP(np.ones((9, 8)), max_precond_dim=7).stepper.rules == ["adam"]


def test_without_corrections_adamw_has_none_either():
    p = np.zeros(1)
    fastgd.SOAP(p, lr=1.0, betas=(0.5, 0.75), eps=1.0, correct_bias=False).step(np.ones(1))
    assert p[0] == -0.5 / (0.5 + 1.0)


def test_a_change_of_mind_goes_on_along_the_axes():
    """Adam's averages are those of bases of axes, from which SOAP then turns away."""
    (p,) = drawn([(3, 3)], 0, np.float64)
    q = p.copy()
    opt = fastgd.SOAP(p, use_soap=False, weight_decay=0.0, eps=0.0)
    adam = fastgd.Adam(q, 3e-3, (0.95, 0.95), 0.0)
    for t in range(60):
        (g,) = drawn([(3, 3)], t, np.float64)
        if t == 51:
            np.testing.assert_allclose(p, q, rtol=1e-4)
        opt.param_groups[0]["use_soap"] = t > 45
        opt.step(g)
        adam.step(g)
    assert opt.state[0]["Q_l"].any()


# ------------------------------------------------------------------- what goes with optimizers


@pytest.mark.parametrize("way", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_checkpoints_and_state_dicts_go_on(way, tmp_path):
    shapes = [(5, 3), (6, 6), (4,)]
    params = drawn(shapes)
    params[1] = np.asfortranarray(params[1])
    opt = fastgd.SOAP(params, precondition_frequency=1)
    grads = [drawn(shapes, seed) for seed in range(6)]
    for own in grads:
        own[1] = np.asfortranarray(own[1])
    for own in grads[:3]:
        opt.step(own)
    other = way(opt)
    loaded, read = (fastgd.SOAP([p.copy("K") for p in params]) for _ in range(2))
    loaded.load_state_dict(opt.state_dict())
    fastgd.save(tmp_path / "run", opt)
    fastgd.load(tmp_path / "run", read)
    for one in (opt, other, loaded, read):
        for own in grads[3:]:
            one.step(own)
        assert all(map(same_bits, params, one.stepper.params().values()))


def test_functional_is_the_class():
    (p, q), states = drawn([(6, 4)] * 2), [np.zeros((6, 4), np.float32) for _ in range(2)]
    q[...] = p
    states += [np.zeros((n, n), np.float32) for n in (6, 4, 6, 4)]
    opt = fastgd.SOAP(p, lr=0.1, precondition_frequency=1)
    for t in range(1, 5):
        (g,) = drawn([(6, 4)], t)
        opt.step(g)
        fastgd.functional.soap(q, g, *states, step=t, lr=0.1, precondition_frequency=1)
    assert same_bits(p, q)


def test_the_specification_alone_takes_the_same_steps():
    """`reference.step` renews, too."""
    p, q = drawn([(4, 4)])[0], drawn([(4, 4)])[0]
    opt = fastgd.SOAP(p, precondition_frequency=1)
    states = [np.zeros((4, 4), np.float32) for _ in RULES["soap"].states]
    for t in range(1, 5):
        (g,) = drawn([(4, 4)], t)
        opt.step(g)
        _, coefficients, _ = opt.settings("soap", opt.param_groups[0], t, 1.0)
        one = TensorStep("soap", as_coded(q), as_coded(g), [*map(as_coded, states)], coefficients)
        for part in (one.renew, one.begin, one.lines, one.first, one.settle, one.last):
            part()
    assert same_bits(p, q)


def test_schedules_of_what_may_be_scheduled():
    shapes = [(3, 3), (4, 4)]
    params, alone = drawn(shapes), drawn(shapes)
    opt = fastgd.SOAP(
        params, lr=lambda t: 0.1 / (t + 1), shampoo_beta=lambda t: 0.5 + 0.1 * (t % 2)
    )
    one = fastgd.SOAP(alone)
    for t in range(4):
        one.param_groups[0].update(lr=0.1 / (t + 1), shampoo_beta=0.5 + 0.1 * (t % 2))
        opt.step(drawn(shapes, t))
        one.step(drawn(shapes, t))
    assert all(map(same_bits, params, alone))


@pytest.mark.parametrize("options", OPTIONS)
def test_c_makes_the_coefficients_of_both_rules(options):
    opt = fastgd.SOAP(drawn([(4, 4), (3,)]), **OPTIONS[options])
    rows = opt.stepper.plan.hyper_rows
    for k, rule in opt.stepper.owners:
        for t in (1, 2, 3, 7, 12, 5001):
            _, coefficients, stages = opt.settings(rule, opt.param_groups[k], t, 0.5)
            assert rows.made(k, rule, t, 0.5) == (coefficients, stages)


@pytest.mark.parametrize(("key", "value", "error"), [
    ("precondition_frequency", 0, ValueError), ("precondition_frequency", 2.0, TypeError),
    ("max_precond_dim", -1, ValueError), ("shampoo_beta", 1.0, ValueError),
    ("use_soap", 1, TypeError), ("eps", -1e-8, ValueError),
])  # fmt: skip
def test_bad_hyper_parameters(key, value, error):
    with pytest.raises(error, match=key):
        fastgd.SOAP(np.ones((2, 2)), **{key: value})


def test_what_is_declared_is_read():
    rule = RULES["soap"]
    assert (rule.exact, rule.shards, rule.own_decay) == (False, False, True)
    words = described(fastgd.SOAP)
    assert "GG_l (a number for each pair of rows)" in words
    assert "whole parameters" in words
    assert set(OPTIMIZERS) - set(GENERAL) >= {"SOAP"}
    with pytest.raises(ValueError, match="as rule soap does not step shards"):
        fastgd.SOAP(Piece(np.ones(6), 6, 12, shape=(4, 3)))
    fastgd.SOAP(Piece(np.ones(6), 6, 12, shape=(4, 3)), use_soap=False)
    p = np.ones((4, 3))
    with pytest.raises(ValueError, match="as rule soap takes sums over the whole parameter"):
        fastgd.SOAP(p, rows="lazy").step(fastgd.Rows([0], np.ones((1, 3))))


@pytest.mark.parametrize("given", ["bfloat16", "8bit"])
def test_states_are_kept_as_the_rule_of_now_keeps_them(given):
    """Once a group's ``max_precond_dim`` has another say on who has factors, the values stay."""
    p = drawn([(8, 40)], 0, np.float32)[0]
    opt = fastgd.SOAP(p, max_precond_dim=4, state_dtype=given, min_8bit_size=0)

    def values(key):
        return saved_as(opt.state[0], opt.stepper.rules[0], key).load(np.float32)

    opt.step(drawn([(8, 40)], 1, np.float32)[0])
    before = {key: values(key) for key in ("exp_avg", "exp_avg_sq")}
    for most, dtype in ((40, "float32"), (4, {"8bit": "uint8"}.get(given, given))):
        opt.param_groups[0]["max_precond_dim"] = most
        opt.load_state_dict(opt.state_dict())
        assert opt.state[0]["exp_avg"].dtype == dtype
        assert ("exp_avg_exponent" in opt.state[0]) == (dtype == "uint8")
        for key, found in before.items():
            assert same_bits(values(key), found)
    assert before["exp_avg"].any()
    opt.step(drawn([(8, 40)], 2, np.float32)[0])


def test_sharded_refuses_before_anything_is_changed():
    MPI = pytest.importorskip("mpi4py.MPI")
    from fastgd.mpi import Sharded

    p = np.ones((4, 3))
    with pytest.raises(ValueError, match="expected a whole parameter, as rule soap does not step"):
        Sharded(fastgd.SOAP, p, comm=MPI.COMM_SELF)
    assert (p == 1).all()


@pytest.mark.slow
def test_it_learns_the_digits():
    train = pytest.importorskip("fastgd.commands.train")
    outcome = train.train("SOAP", epochs=10, batch_size=32, seed=0, advance=lambda: None)
    assert outcome.accuracy >= 0.95
    assert outcome.same_bits


# ---------------------------------------------------------------------------------------- torch


def test_torch_steps_a_whole_model_and_goes_on_from_a_state_dict():
    torch = pytest.importorskip("torch")
    import fastgd.torch

    shapes = [(6, 6), (5, 3), (4,), (2, 3, 2)]
    arrays = drawn(shapes, 0, np.float64)
    tensors = [torch.nn.Parameter(torch.tensor(a)) for a in arrays]
    # One whose rows are not contiguous.
    tensors[1] = torch.nn.Parameter(torch.tensor(arrays[1].T.copy()).t())
    given = {"lr": 0.1, "precondition_frequency": 2, "max_precond_dim": 6}
    opt, twin = fastgd.torch.SOAP(tensors, **given), fastgd.SOAP(arrays, **given)
    for t in range(7):
        grads = drawn(shapes, t + 1, np.float64)
        for p, g in zip(tensors, grads, strict=True):
            p.grad = torch.empty_like(p).copy_(torch.tensor(g))
        if t == 4:
            saved = copy.deepcopy(opt.state_dict())
            assert saved["state"][1]["GG_l"].shape == (5, 5)
            opt = fastgd.torch.SOAP(tensors)
            opt.load_state_dict(saved)
        opt.step()
        twin.step(grads)
    for k, (p, a) in enumerate(zip(tensors, arrays, strict=True)):
        # The wide side of a matrix has more axes than gradients have shown at first.
        np.testing.assert_allclose(p.detach().numpy(), a, rtol=0, atol=1e-9 if k != 1 else 0.5)
