"""fastgd.sklearn: scikit-learn's own trajectories, and all that an estimator has to stand."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import fastgd
from fastgd.schedules import Linear

pytest.importorskip("sklearn")

from scipy import sparse
from sklearn import neural_network as theirs
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fastgd.sklearn as ours

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

KINDS = ["MLPClassifier", "MLPRegressor"]
SMALL = {"hidden_layer_sizes": (12, 7), "random_state": 0, "batch_size": 16, "max_iter": 30}


def data(dtype=np.float64):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((150, 5)).astype(dtype)
    return x, (np.abs(x[:, 0]) + x[:, 1] > 1).astype(int)


def weights(model):
    return [*model.coefs_, *model.intercepts_]


def assert_same(a, b, tolerance=1e-9):
    for v, w in zip(weights(a), weights(b), strict=True):
        assert v.dtype == w.dtype
        assert np.allclose(v, w, rtol=tolerance, atol=tolerance)
    assert np.allclose(a.loss_curve_, b.loss_curve_, rtol=tolerance)
    assert a.n_iter_ == b.n_iter_
    assert a.t_ == b.t_


def both(kind, **params):
    params = SMALL | params
    return getattr(theirs, kind)(**params), getattr(ours, kind)(**params)


TRAJECTORIES = [
    {"solver": "adam"},
    {"solver": "adam", "epsilon": 0.1, "beta_1": 0.5, "beta_2": 0.8, "learning_rate_init": 0.03},
    {"solver": "sgd"},
    {"solver": "sgd", "nesterovs_momentum": False, "learning_rate_init": 0.05},
    {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.1},
    {"solver": "sgd", "momentum": 0, "nesterovs_momentum": False},
    {"solver": "sgd", "learning_rate": "invscaling", "power_t": 0.2, "learning_rate_init": 0.3},
    {"solver": "sgd", "learning_rate": "invscaling", "power_t": 0.2, "learning_rate_init": 0.3,
     "nesterovs_momentum": False},
    {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.1, "tol": 0.02,
     "n_iter_no_change": 2, "max_iter": 60},
    {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.1, "tol": 0.02,
     "n_iter_no_change": 2, "nesterovs_momentum": False, "early_stopping": True},
    {"solver": "adam", "early_stopping": True, "n_iter_no_change": 3, "learning_rate_init": 0.02},
    {"solver": "adam", "alpha": 0.5, "activation": "tanh", "shuffle": False},
    {"solver": "adam", "alpha": 0, "activation": "logistic", "batch_size": 64},
    {"solver": "lbfgs"},
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("params", TRAJECTORIES)
def test_trajectories_are_theirs(kind, params):
    a, b = both(kind, **params)
    x, y = data()
    a.fit(x, y)
    b.fit(x, y)
    if params["solver"] == "lbfgs":
        assert all(np.array_equal(v, w) for v, w in zip(weights(a), weights(b), strict=True))
        return
    assert_same(a, b)
    if params.get("learning_rate") == "adaptive" and not params.get("early_stopping"):
        assert a._optimizer.learning_rate < 0.1  # it did adapt
    if params["solver"] == "sgd":
        assert b._optimizer._rates.learning_rate == a._optimizer.learning_rate


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_float32_and_sparse_inputs(solver):
    x, y = data(np.float32)
    a, b = both("MLPClassifier", solver=solver, max_iter=10)
    assert_same(a.fit(x, y), b.fit(x, y), 1e-4)
    assert b.coefs_[0].dtype == np.float32
    x, y = data()
    x = sparse.csr_matrix(np.where(np.abs(x) > 0.5, x, 0))
    assert_same(a.fit(x, y), b.fit(x, y))


def test_gradients_are_theirs_to_the_bit_and_their_memory_is_kept():
    x, y = data()
    a, b = both("MLPRegressor", max_iter=1, alpha=0.1, batch_size=150, shuffle=False)
    taken = []

    class Spy:
        def update_params(self, params, grads):
            taken.append(([*grads], [g.copy() for g in grads]))

        def iteration_ends(self, time_step):
            pass

    for model in (a, b):
        model.partial_fit(x, y)  # the weights differ by rounding from here on
        for v, w in zip(weights(model), weights(a), strict=True):
            v[...] = w
        vars(model)["_updates" if model is b else "_optimizer"] = Spy()
        model.partial_fit(x, y)
        model._fit_stochastic  # noqa: B018  # theirs: that it is there is what all rests on
    for g, h in zip(taken[0][1], taken[1][1], strict=True):
        assert np.array_equal(g, h)
    b.max_iter = 2
    b.set_params(batch_size=75)
    b.partial_fit(x, y)
    assert taken[2][0][0] is taken[3][0][0]  # one array for two batches


def test_gradients_of_layers_larger_than_a_block(monkeypatch):
    x, y = data()
    monkeypatch.setattr(ours, "BLOCK", 20)
    a, b = both("MLPRegressor", alpha=0.3)
    assert_same(a.fit(x, y), b.fit(x, y))


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_partial_fit_goes_on_with_its_states(solver):
    x, y = data()
    a, b = both("MLPClassifier", solver=solver)
    for model in (a, b):
        for _ in range(5):
            model.partial_fit(x, y, classes=[0, 1])
    assert_same(a, b)
    c = clone(b)
    c.partial_fit(x, y, classes=[0, 1])
    assert c.n_iter_ == 1
    with pytest.raises(AttributeError):
        both("MLPClassifier", solver="lbfgs")[1].partial_fit  # noqa: B018


@pytest.mark.parametrize("params", [{}, {"solver": "sgd", "learning_rate": "invscaling"}])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles_go_on_where_it_stopped(copied, params):
    x, y = data()
    a, b = both("MLPRegressor", learning_rate_init=0.1, **params)
    for model in (a, b):
        model.partial_fit(x, y).partial_fit(x, y)
    before = [w.copy() for w in weights(b)]
    c = copied(copied(b))  # twice: also what has not been used in between
    for model in (a, c):
        model.partial_fit(x, y).partial_fit(x, y)
    assert_same(a, c)
    assert all(np.array_equal(v, w) for v, w in zip(weights(b), before, strict=True))
    assert_same(b.partial_fit(x, y).partial_fit(x, y), c)
    assert len(pickle.dumps(c)) < 1.2 * len(pickle.dumps(a))  # the weights are in it once


def test_replaced_weights_keep_their_states():
    x, y = data()
    a, b = both("MLPRegressor")
    for model in (a, b):
        model.partial_fit(x, y)
        model.coefs_ = [w.copy() * 0.5 for w in model.coefs_]
        model.partial_fit(x, y)
    assert_same(a, b)
    b.coefs_[0] = np.asfortranarray(b.coefs_[0])
    assert_same(a.partial_fit(x, y), b.partial_fit(x, y))


def test_warm_start():
    x, y = data()
    a, b = both("MLPClassifier", warm_start=True, max_iter=4, early_stopping=True)
    for _ in range(3):
        assert_same(a.fit(x, y), b.fit(x, y))


def test_cloning_grid_search_pipelines_and_parameters():
    x, y = data()
    params = {"max_iter": 30, "random_state": 0, "learning_rate_init": 0.02}
    model = ours.MLPClassifier((12,), "tanh", optimizer="rmsprop", **params)
    assert model.get_params() == clone(model).get_params()
    added = set(model.get_params()) - set(theirs.MLPClassifier().get_params())
    assert added == {"optimizer", "optimizer_params"}
    assert (model.hidden_layer_sizes, model.activation) == ((12,), "tanh")
    assert "optimizer='rmsprop'" in repr(model)
    grid = {
        "mlpclassifier__optimizer": [None, "adamw"],
        "mlpclassifier__optimizer_params": [None, {"weight_decay": 0.3}],
    }
    search = GridSearchCV(make_pipeline(StandardScaler(), model), grid, cv=2).fit(x, y)
    assert len({*search.cv_results_["mean_test_score"]}) > 1
    assert isinstance(search.best_estimator_[-1], ours.MLPClassifier)
    assert search.score(x, y) > 0.8
    assert isinstance(model, theirs.MLPClassifier)
    assert pickle.loads(pickle.dumps(search)).predict(x).shape == (150,)


PLAIN = {key.lower() for key, cls in fastgd.optimizers.OPTIMIZERS.items() if not cls.averages()}


def test_averages_that_nothing_would_read_are_refused():
    x, y = data()
    with pytest.raises(ValueError, match="^optimizer: expected one whose parameters"):
        ours.MLPRegressor(**SMALL, optimizer="sgdschedulefree").fit(x, y)


@pytest.mark.parametrize("name", sorted(PLAIN))
@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_every_optimizer_by_name(name, solver):
    x, y = data()
    params = {"solver": solver, "optimizer": name, "learning_rate_init": 0.01}
    model = ours.MLPRegressor(**SMALL, **params).partial_fit(x, y)
    w = [v.copy() for v in weights(model)]
    kind = {known.lower(): known for known in fastgd.optimizers.OPTIMIZERS}[name]
    opt = getattr(fastgd, kind)(w, lr=0.01)
    opt.load_state_dict(pickle.loads(pickle.dumps(model._optimizer))._states())
    assert opt.state_dict()["state"][0]["step"] == 10  # batches of 16 of 150
    for k in range(3):
        grads = [np.cos(v + k) for v in w]
        model._optimizer.update_params(weights(model), grads)
        opt.step(grads)
    for v, u in zip(weights(model), w, strict=True):
        assert np.array_equal(v, u)


def test_optimizer_params_are_used():
    x, y = data()
    base = SMALL | {"max_iter": 1, "batch_size": 150}
    clipped = ours.MLPRegressor(
        **base,
        solver="sgd",
        momentum=0,
        learning_rate_init=1.0,
        optimizer_params={"clip_norm": 0.1},
    )
    clipped.partial_fit(x, y)
    before = [w.copy() for w in weights(clipped)]
    clipped.partial_fit(x, y)
    moved = [v - w for v, w in zip(weights(clipped), before, strict=True)]
    assert fastgd.functional.global_norm(moved) == pytest.approx(0.1)
    still = ours.MLPRegressor(**base, optimizer="sgd", optimizer_params={"lr": Linear(1.0, 0.0, 1)})
    still.partial_fit(x, y)
    before = [w.copy() for w in weights(still)]
    still.partial_fit(x, y)
    assert all(np.array_equal(v, w) for v, w in zip(weights(still), before, strict=True))
    centered = ours.MLPRegressor(
        **base, optimizer="sgd", optimizer_params={"centralize": True, "clip_ratio": 0.1}
    )
    centered.partial_fit(x, y)
    before = [w.copy() for w in centered.coefs_]
    centered.partial_fit(x, y)
    for v, w in zip(centered.coefs_, before, strict=True):  # of the weights of each output
        assert np.abs(v - w).max() > 0
        assert np.allclose((v - w).mean(axis=0), 0, atol=1e-12)
    ams = ours.MLPRegressor(**SMALL, optimizer_params={"amsgrad": True}).fit(x, y)
    assert "max_exp_avg_sq" in ams._optimizer._states()["state"][0]


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ({"optimizer": "adamm"}, ValueError, "^optimizer: expected one of sgd, .*, found 'adamm'"),
        ({"optimizer": 3}, ValueError, "'optimizer' parameter of MLPRegressor must be"),
        ({"optimizer_params": [1]}, ValueError, "'optimizer_params' parameter of MLPRegressor"),
        ({"optimizer_params": {"betas": (0, 0)}}, TypeError, "^optimizer_params: .* found 'betas', which is given by the est"),
        ({"optimizer_params": {"average": 0.9}}, TypeError, "^optimizer_params: .* found 'average', which is not taken"),
        ({"optimizer_params": {"clip_norm": -1}}, ValueError, "^clip_norm: "),
        ({"optimizer_params": {"layout": "out_in"}}, TypeError, "^optimizer_params: .* found 'layout', which is not taken"),
        ({"optimizer_params": {"lr": 0.1}}, ValueError, "^optimizer_params: expected an 'lr' that is a schedule"),
        ({"optimizer_params": {"lr": lambda t: 1}, "solver": "sgd", "learning_rate": "adaptive"}, ValueError, "^optimizer_params: .*'adaptive'"),
        ({"solver": "lbfgs", "optimizer": "adam"}, ValueError, "^optimizer, optimizer_params: expected with solver"),
        ({"solver": "rmsprop"}, ValueError, "'solver' parameter of MLPRegressor must be"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_before_anything_is_changed(params, error, words):
    x, y = data()
    model = ours.MLPRegressor(**SMALL, warm_start=True).fit(x, y)
    before, content = [w.copy() for w in weights(model)], set(vars(model))
    model.set_params(**params)
    with pytest.raises(error, match=words):
        model.fit(x, y)
    assert all(np.array_equal(v, w) for v, w in zip(weights(model), before, strict=True))
    assert set(vars(model)) == content


def test_it_warns_and_fails_as_theirs_does():
    x, y = data()
    with pytest.warns(ConvergenceWarning, match="hasn't converged yet"):
        ours.MLPRegressor(**SMALL).fit(x, y)
    with pytest.raises(ValueError, match="non-finite parameter weights"), np.errstate(all="ignore"):
        ours.MLPRegressor(**SMALL, solver="sgd", learning_rate_init=1e200).fit(x, y)
    with pytest.raises(ValueError, match="partial_fit does not support early_stopping"):
        ours.MLPRegressor(early_stopping=True).partial_fit(x, y)
