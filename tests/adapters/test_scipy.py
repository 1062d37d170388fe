"""fastgd.scipy: every optimizer as a method of `scipy.optimize.minimize`."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest

import fastgd
from fastgd.schedules import Linear

pytest.importorskip("scipy.optimize")

from scipy.optimize import Bounds, OptimizeWarning, basinhopping, minimize, rosen, rosen_der

import fastgd.scipy

NAMES = sorted(name.lower() for name in fastgd.optimizers.GENERAL)
SCALES = np.array([1.0, 3.0, 0.5, 2.0])


def quadratic(x):
    return 0.5 * float(SCALES @ (x * x)), SCALES * x


def start():
    return np.array([2.0, -1.0, 3.0, 0.5])


def run(method=fastgd.scipy.sgd, fun=quadratic, x0=None, jac=True, options=None, **kwargs):
    options = {"lr": 0.1, **(options or {})}
    x0 = start() if x0 is None else x0
    return minimize(fun, x0, jac=jac, method=method, options=options, **kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_takes_the_steps_that_its_class_takes(name):
    x0, w = start(), start()
    kinds = {known.lower(): getattr(fastgd, known) for known in fastgd.optimizers.GENERAL}
    opt = kinds[name](w, lr=0.01)
    for _ in range(25):
        opt.step(quadratic(w)[1])
    if averaged := opt.average is not None:
        w = opt.average.averages[0]  # what the schedule-free ones have learned
    result = run(getattr(fastgd.scipy, name), x0=x0, options={"lr": 0.01, "maxiter": 25})
    assert np.array_equal(result.x, w)
    assert np.array_equal(x0, start())  # which is the caller's
    assert result.fun == quadratic(w)[0]
    assert np.array_equal(result.jac, quadratic(w)[1])
    assert (result.nit, result.nfev, result.njev) == (25, 26 + averaged, 26 + averaged)
    assert (result.success, result.status) == (False, 1)
    assert "Maximum number of iterations" in result.message


def test_methods_are_those_of_the_registry():
    assert set(dir(fastgd.scipy)) >= {"Method", *NAMES}
    with pytest.raises(AttributeError, match="has no attribute 'bfgs'; it has"):
        fastgd.scipy.bfgs  # noqa: B018
    adam = fastgd.scipy.adam
    assert pickle.loads(pickle.dumps(adam)) is adam
    assert copy.deepcopy(adam) is adam
    assert repr(adam) == "fastgd.scipy.adam"
    assert "betas" in adam.__doc__
    assert "clip_norm" in adam.__doc__


def test_it_converges_to_gtol_and_says_so():
    result = run(options={"gtol": 1e-3})
    assert (result.success, result.status) == (True, 0)
    assert np.abs(result.jac).max() <= 1e-3
    assert np.abs(result.jac).max() > 5e-4  # and not much later
    assert result.message == "Optimization terminated successfully."
    assert run(tol=1e-3).nit == result.nit
    assert run(tol=1e-7, options={"gtol": 1e-3}).nit == result.nit
    assert np.abs(run().jac).max() <= 1e-5
    assert run(options={"gtol": 0, "maxiter": 7}).nit == 7


def test_gtol_finds_the_one_element_that_is_large_wherever_it_moves():
    n = 3 * fastgd.scipy.BLOCK + 5
    small = fastgd.scipy.Smallness(0.5, None)
    x = np.zeros(n)
    for k in (n - 1, 0, fastgd.scipy.BLOCK, n // 2):
        for value in (-0.6, 0.6, np.nan):
            g = np.full(n, 0.5)
            g[k] = value
            assert not small(x, g)
    assert small(x, np.full(n, -0.5))
    assert small(np.zeros(0), np.zeros(0))


def test_bounds_are_kept_and_count_in_the_gradient():
    seen = []

    def fun(x):
        seen.append(x.copy())
        return quadratic(x)

    pairs = [(1, None), (None, -0.25), (-1, 1), (None, None)]
    result = run(fun=fun, bounds=pairs)
    assert result.success
    assert np.allclose(result.x, [1, -0.25, 0, 0], atol=1e-4)
    low, high = [1, -np.inf, -1, -np.inf], [np.inf, -0.25, 1, np.inf]
    assert all(np.all(x >= low) and np.all(x <= high) for x in seen)
    again = run(bounds=Bounds(low, high))
    assert np.array_equal(again.x, result.x)
    assert np.array_equal(run(bounds=Bounds(0.5, 4)).x.round(4), [0.5] * 4)
    theirs = minimize(quadratic, start(), jac=True, method="L-BFGS-B", bounds=pairs)
    assert np.allclose(theirs.x, result.x, atol=1e-4)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ([(0, 1)], "bounds: expected 4 pairs"),
        ([(1, 0)] * 4, "bounds: expected lower ones no higher"),
        ([(np.nan, 0)] * 4, "bounds: expected lower ones no higher"),
        (Bounds([0, 0], [1, 1]), "bounds: expected 4 as of x"),
    ],
)
def test_bounds_that_do_not_fit_are_refused(bounds, words):
    with pytest.raises(ValueError, match=words):
        run(bounds=bounds)


def test_callbacks_of_both_styles():
    points, values = [], []

    def style(intermediate_result):
        values.append((intermediate_result.fun, intermediate_result.x))

    result = run(callback=points.append, options={"maxiter": 4})
    run(callback=style, options={"maxiter": 4})
    assert len(points) == 4
    assert np.array_equal(points[-1], result.x)
    assert not np.array_equal(points[0], points[1])
    for x, (f, y) in zip(points, values, strict=True):
        assert np.array_equal(x, y)
        assert f == quadratic(x)[0]


def test_callback_ends_the_descent():
    def stop(x):
        if len(points) == 3:
            raise StopIteration
        points.append(x)

    points = []
    result = run(callback=stop)
    assert (result.success, result.status, result.nit) == (False, 99, 4)
    assert result.message == "`callback` raised `StopIteration`."


def test_a_separate_gradient_asks_for_values_only_where_they_are_needed():
    asked = []

    def value(x, scale):
        asked.append(x.copy())
        return scale * quadratic(x)[0]

    def gradient(x, scale):
        return scale * quadratic(x)[1]

    options = {"maxiter": 5}
    result = run(fun=value, jac=gradient, args=(2.0,), options=options)
    assert (result.nfev, result.njev, len(asked)) == (1, 6, 1)
    assert result.fun == 2 * quadratic(result.x)[0]
    assert np.array_equal(asked[0], result.x)
    assert np.allclose(result.x, run(options={"lr": 0.2, **options}).x)
    again = run(fun=value, jac=gradient, args=2.0, options={**options, "ftol": 0})
    assert again.nfev == 6
    assert np.array_equal(again.x, result.x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_differences_stand_in_for_a_gradient(dtype):
    seen = []

    def value(x):
        seen.append(x.copy())
        return quadratic(x)[0]

    bounds = [(None, 2.0), (-1, None), (None, 3.0), (0.5, None)]  # the start is at all of them
    options = {"maxiter": 30}
    result = run(fun=value, x0=start().astype(dtype), jac=None, bounds=bounds, options=options)
    exact = run(bounds=bounds, options=options)
    assert result.x.dtype == dtype
    assert np.allclose(result.x, exact.x, atol=2e-3 if dtype == np.float32 else 1e-6)
    assert result.nfev == len(seen) == 31 * 5
    assert all(x[0] <= 2 and x[1] >= -1 and x[2] <= 3 and x[3] >= 0.5 for x in seen)
    relative = run(fun=value, jac=None, options={**options, "finite_diff_rel_step": 0.5})
    assert not np.allclose(relative.x, exact.x, atol=1e-3)  # a step so wide is felt


def test_unknown_options_are_warned_about_in_the_callers_line():
    with pytest.warns(
        OptimizeWarning, match="^Unknown solver options: mommentum, zero_grads$"
    ) as caught:
        result = run(options={"mommentum": 0.9, "zero_grads": True, "maxiter": 3})
    assert caught[0].filename == __file__
    assert np.array_equal(result.x, run(options={"maxiter": 3}).x)
    with pytest.warns(RuntimeWarning, match="sgd does not use Hessian") as caught:
        run(hess=lambda x: np.diag(SCALES))
    with pytest.raises(ValueError, match="^constraints: expected none"):
        run(constraints={"type": "eq", "fun": lambda x: x[0]})


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"lr": -1}, ValueError, "^lr: expected a number of at least 0"),
        ({"lr": "fast"}, TypeError, "^lr: expected a number"),
        ({"maxiter": 2.5}, TypeError, "^maxiter: expected an integer"),
        ({"maxiter": -1}, ValueError, "^maxiter: "),
        ({"gtol": -1}, ValueError, "^gtol: "),
        ({"ftol": "low"}, TypeError, "^ftol: "),
        ({"patience": 0}, ValueError, "^patience: "),
        ({"best": 1}, TypeError, "^best: "),
        ({"copy": 1}, TypeError, "^copy: "),
        ({"disp": 1}, TypeError, "^disp: "),
        ({"return_all": 1}, TypeError, "^return_all: "),
        ({"best": True, "average": 0.9}, ValueError, "^best excludes average"),
        ({"clip_norm": 0}, ValueError, "^clip_norm: "),
    ],
)
def test_options_out_of_range_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        run(options=options)


@pytest.mark.parametrize(
    ("fun", "error", "words"),
    [
        (lambda x: (0.0, x[:2]), ValueError, r"^jac: expected shape \(4,\) as of x, found \(2,\)"),
        (
            lambda x: (0.0, x + 1j),
            TypeError,
            "^jac: expected an array of numbers, found dtype comp",
        ),
        (lambda x: ("low", x), TypeError, "^fun: expected a number, found 'low'"),
        (lambda x: (x, x), ValueError, "^fun: expected one number, found 4"),
    ],
)
def test_what_a_function_returns_is_checked(fun, error, words):
    with pytest.raises(error, match=words):
        run(fun=fun)


def test_gradients_of_any_kind_and_place():
    expected = run(fun=lambda x: (0.0, x.copy()), options={"maxiter": 9}).x
    for gradient in (
        lambda x: x,  # the parameter's own memory
        lambda x: x[:],
        lambda x: list(x),
        lambda x: np.stack([x, x], 1)[:, 0],
        lambda x: x.astype(">f8"),
    ):
        assert np.array_equal(
            run(fun=lambda x, g=gradient: (0.0, g(x)), options={"maxiter": 9}).x, expected
        )
    ones = run(fun=lambda x: (0.0, np.ones(4, int)), options={"lr": 1.0, "maxiter": 2}).x
    assert np.array_equal(ones, start() - 2)


def test_the_function_sees_x_read_only_or_a_copy():
    def careless(x):
        x *= 2
        return 0.0, np.ones(4)

    with pytest.raises(ValueError, match="read-only"):
        run(fun=careless)
    kept = []

    def keeping(x):
        kept.append(x)
        x.flags.writeable = True
        x += 0.0
        return quadratic(x)

    result = run(fun=keeping, options={"copy": True, "maxiter": 3})
    assert np.array_equal(result.x, run(options={"maxiter": 3}).x)
    assert not np.array_equal(kept[0], kept[-1])


def test_best_and_ftol_with_values_that_rise():
    values = iter([5.0, 3.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    x = []

    def fun(at):
        x.append(at.copy())
        return next(values), np.full(4, 1.0 + len(x))

    result = run(fun=fun, options={"best": True, "maxiter": 6})
    assert result.fun == 1.0
    assert np.array_equal(result.x, x[2])
    assert np.array_equal(result.jac, np.full(4, 4.0))
    values = iter([5.0, 3.0, 1.0, 2.0, 4.0, 0.999, 6.0, 7.0])
    result = run(fun=fun, options={"ftol": 0.1, "patience": 3})
    assert (result.nit, result.success, result.status) == (5, True, 0)
    assert "ftol" in result.message
    values = iter([5.0, 3.0, 1.0, 2.0, 4.0, 0.999, 6.0, 7.0])
    assert run(fun=fun, options={"ftol": 1e-6, "patience": 3, "maxiter": 7}).status == 1
    values = iter([-5e6, -5e6 - 1, -5e6 - 2, -5e6 - 3])  # falls by less than 1e-6 of itself
    assert run(fun=fun, options={"ftol": 1e-6, "patience": 3}).nit == 3


def test_a_noisy_function_is_asked_anew_where_it_was_asked_before():
    rng = np.random.default_rng(0)
    seen = []

    def fun(x):
        seen.append(rng.standard_normal())
        return quadratic(x)[0] + seen[-1], quadratic(x)[1]

    result = run(fun=fun, options={"lr": 0.0, "maxiter": 4, "best": True})  # it stays where it is
    assert len(seen) == 5
    assert result.fun == quadratic(start())[0] + min(seen)


def test_a_value_that_is_not_finite_ends_the_descent():
    def fun(x):
        return (np.nan if x[0] < 1 else quadratic(x)[0]), quadratic(x)[1]

    result = run(fun=fun)
    assert (result.success, result.status) == (False, 3)
    assert "not finite" in result.message
    assert result.nit < 10
    result = run(fun=fun, options={"best": True})
    assert result.x[0] >= 1
    assert np.isfinite(result.fun)
    alone = run(fun=lambda x: np.nan, jac=lambda x: quadratic(x)[1])
    assert (alone.success, alone.status) == (False, 3)
    skipping = run(
        fun=lambda x: (np.nan, quadratic(x)[1]), options={"nonfinite": "skip", "maxiter": 5}
    )
    assert skipping.nit == 5
    with pytest.raises(FloatingPointError, match="expected finite gradients"):
        run(fun=lambda x: (1.0, np.full(4, np.inf)), options={"nonfinite": "raise"})


@pytest.mark.parametrize("bounds", [None, [(None, 0.5)] * 4])
def test_the_average_is_of_the_points_that_were_taken(bounds):
    points = []
    result = run(
        bounds=bounds, callback=points.append, options={"average": 0.75, "lr": 0.3, "maxiter": 6}
    )
    reference = fastgd.averages.EMA(w := points[0].copy(), 0.75)
    for x in points:
        w[...] = x
        reference.update()
    assert np.allclose(result.x, next(iter(reference.averages.values())), rtol=1e-15)
    assert not np.array_equal(result.x, points[-1])
    assert result.fun == quadratic(result.x)[0]
    assert np.array_equal(result.jac, quadratic(result.x)[1])


def test_fastgd_options_and_schedules():
    clipped = run(options={"clip_norm": 0.1, "lr": 1.0, "maxiter": 1})
    assert np.isclose(np.linalg.norm(clipped.x - start()), 0.1)
    line = Linear(0.2, 0.0, 4)
    w = start()
    opt = fastgd.SGD(w, lr=line)
    for _ in range(4):
        opt.step(quadratic(w)[1])
    assert np.array_equal(run(options={"lr": line, "maxiter": 4}).x, w)
    low = run(fastgd.scipy.adam, x0=np.ones(5000, np.float32), fun=lambda x: (0.0, x.copy()),
              options={"state_dtype": "8bit", "maxiter": 3})  # fmt: skip
    full = run(fastgd.scipy.adam, x0=np.ones(5000, np.float32), fun=lambda x: (0.0, x.copy()),
               options={"maxiter": 3})  # fmt: skip
    assert not np.array_equal(low.x, full.x)
    assert np.allclose(low.x, full.x, atol=0.1)


def test_disp_return_all_and_small_things(capsys):
    result = run(options={"disp": True, "return_all": True, "maxiter": 2})
    assert "Maximum number of iterations" in capsys.readouterr().out
    assert len(result.allvecs) == 3
    assert np.array_equal(result.allvecs[0], start())
    assert np.array_equal(result.allvecs[-1], result.x)
    assert run(options={"maxiter": 0}).nit == 0
    assert run(x0=[3, 4], fun=lambda x: (x @ x, 2 * x)).x.dtype == np.float64
    assert run(x0=3.0, fun=lambda x: (x[0] ** 2, 2 * x)).success


def test_rosenbrock_and_basin_hopping():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = {"lr": 0.05, "maxiter": 5000}
        result = run(fastgd.scipy.adam, rosen, np.array([-1.0, 2.0]), rosen_der, options)
        assert result.success
        assert np.allclose(result.x, 1, atol=1e-4)

        def waves(x):
            return np.cos(14.5 * x[0] - 0.3) + (x[0] + 0.2) * x[0]

        minimizer = {"method": fastgd.scipy.adam, "options": {"lr": 0.01}}
        found = basinhopping(waves, [1.0], niter=30, minimizer_kwargs=minimizer, rng=0)
    assert abs(found.x[0] + 0.195) < 1e-3
