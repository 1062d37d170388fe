"""Surfaces: gradients against differences, the known points, dtypes, batches, and the data's own."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import fastgd
from fastgd import surfaces
from fastgd.surfaces import SURFACES, quadratic
from fastgd.surfaces import data as data_surfaces

ROTATION = np.array([[0.6, -0.8], [0.8, 0.6]])
MADE = {
    **{name: (lambda name=name: SURFACES[name]) for name in SURFACES},
    "rotated quadratic": lambda: quadratic([0.5, 200.0], ROTATION, [1.0, -2.0]),
    "quadratic of 5": lambda: quadratic([1, 2, 3, 4, 1e4]),
    "quadratic of 1": lambda: quadratic([3.0]),
    "rosenbrock of 6": lambda: surfaces.rosenbrock(6),
    "rastrigin of 1": lambda: surfaces.rastrigin(1),
    "rastrigin of 5": lambda: surfaces.rastrigin(5),
    "styblinski_tang of 1": lambda: surfaces.styblinski_tang(1),
    "styblinski_tang of 3": lambda: surfaces.styblinski_tang(3),
    "styblinski_tang of 9": lambda: surfaces.styblinski_tang(9),
    "two columns": lambda: surfaces.logistic_regression(["mean radius", 1], l2=0.3),
    "ridge": lambda: surfaces.least_squares(["bmi"], l2=0.3),
}


@pytest.fixture(params=MADE)
def surface(request):
    return MADE[request.param]()


def draw(surface, shape, seed=0):
    low, high = np.array(surface.domain).T
    return np.random.default_rng(seed).uniform(low, high, (*shape, surface.dim))


def differences(f, x, h=1e-5):
    """The gradient of f at x by central differences of fourth order."""
    g = np.zeros(len(x))
    for k, e in enumerate(np.eye(len(x)) * h):
        g[k] = (8 * (f(x + e) - f(x - e)) - (f(x + 2 * e) - f(x - 2 * e))) / (12 * h)
    return g


def curvatures(surface, x, h=1e-5):
    """The eigenvalues of the matrix of second derivatives."""
    rows = [surface.gradient(x + e) - surface.gradient(x - e) for e in np.eye(len(x)) * h]
    matrix = np.array(rows) / (2 * h)
    return np.linalg.eigvalsh((matrix + matrix.T) / 2)


def test_gradients_against_differences(surface):
    for x in (np.array(surface.start), *draw(surface, (20,))):
        expected = differences(surface.value, x)
        scale = max(np.abs(expected).max(), 1e-3 * abs(surface.value(x)), 1e-3)
        assert np.abs(surface.gradient(x) - expected).max() < 1e-7 * scale


def test_known_points(surface):
    assert surface.minima
    for kind, points in (("minimum", surface.minima), ("saddle", surface.saddles)):
        for known in points:
            x = np.array(known.point)
            assert surface.value(x) == pytest.approx(known.value, rel=1e-13, abs=1e-13)
            bends = curvatures(surface, x)
            assert np.abs(surface.gradient(x)).max() < 1e-11 * max(1, bends.max())
            assert bends.max() > 1e-3
            assert bends.min() > 1e-3 if kind == "minimum" else bends.min() < -1e-3
            assert all(low <= v <= high for v, (low, high) in zip(x, surface.domain, strict=True))
    assert len({known.point for known in (*surface.minima, *surface.saddles)}) == len(
        surface.minima
    ) + len(surface.saddles)


def test_nothing_is_lower(surface):
    """The lowest of the known minima is that of the domain, as far as samples can tell."""
    points = draw(surface, (20000 if surface.dim < 10 else 200,))
    assert surface.value(points).min() >= surface.minimum.value - 1e-9
    assert surface.minimum.value == min(known.value for known in surface.minima)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_points_at_once(surface, dtype):
    points = draw(surface, (3, 4)).astype(dtype)
    values, gradients = surface.value(points), surface.gradient(points)
    assert values.shape == (3, 4)
    assert gradients.shape == points.shape
    assert values.dtype == gradients.dtype == dtype
    rel = 1e-3 if dtype == np.float32 else 1e-10
    for k in np.ndindex(3, 4):
        assert surface.value(points[k]) == pytest.approx(values[k], rel=rel, abs=rel)
        assert surface.value(points[k]).dtype == dtype
        assert surface.gradient(points[k]) == pytest.approx(gradients[k], rel=rel, abs=10 * rel)
    none = points[:0]
    assert surface.value(none).shape == (0, 4)
    assert surface.gradient(none).shape == none.shape


def test_points_are_only_read(surface):
    points = draw(surface, (5,))
    before = points.copy()
    for of in (surface.value, surface.gradient):
        assert not np.shares_memory(of(points), points)
    assert np.array_equal(points, before)


def test_descent_goes_down_from_the_start(surface):
    w = np.array(surface.start)
    opt = fastgd.Adam(w, lr=0.01)
    for _ in range(300):
        opt.step(surface.gradient(w))
    assert surface.value(w) < surface.value(surface.start)
    assert len(surface.start) == surface.dim == len(surface.domain)
    assert surface.formula
    assert surface.source


def test_wrong_points(surface):
    d = surface.dim
    for of in (surface.value, surface.gradient):
        for shape in ((d + 1,), (d, d + 1), ()):
            with pytest.raises(ValueError, match=rf"^points: expected shape \(..., {d}\), found"):
                of(np.zeros(shape))
        with pytest.raises(TypeError, match="^points: expected dtype float32 or float64, found co"):
            of(np.zeros(d, complex))
        whole = of(np.ones(d, int))
        assert whole.dtype == of(np.ones(d, np.uint8)).dtype == np.float64
        assert np.array_equal(whole, of([1.0] * d))


# --------------------------------------------------------------------------------- one by one


@pytest.mark.parametrize(
    ("name", "point", "value"),
    [
        ("quadratic", (2, 3), 2 + 45),
        ("double_well", (2,), 16 - 12 + 2),
        ("saddle", (3, 2), 4.5 - 2 + 4),
        ("plateau", (1, -1), 1 - np.exp(-1)),
        ("rosenbrock", (2, 3), 100 + 1),
        ("beale", (1, 2), 2.5**2 + 5.25**2 + 9.625**2),
        ("himmelblau", (1, 2), 64 + 4),
        ("rastrigin", (1, 0.5), 20 + 1 - 10 + 0.25 + 10),
        ("styblinski_tang", (1, -1), -10 - 5),
    ],
)
def test_values_by_hand(name, point, value):
    assert SURFACES[name].value(point) == pytest.approx(value, rel=1e-15)


def test_quadratic_has_the_eigenvalues_it_is_given():
    made = quadratic([0.5, 200.0], ROTATION, [1.0, -2.0])
    assert curvatures(made, np.zeros(2)) == pytest.approx([0.5, 200], rel=1e-6)
    assert made.minimum == ((1.0, -2.0), 0.0)
    assert made.gradient(made.minimum.point + ROTATION[:, 1]) == pytest.approx(200 * ROTATION[:, 1])
    for wrong, error, message in (
        (([1, -1],), ValueError, "^eigenvalues: expected numbers above 0"),
        (([],), ValueError, "^eigenvalues: expected numbers above 0"),
        ((["x"],), TypeError, r"^eigenvalues\[0\]: expected a number"),
        (([1, 2], np.eye(3)), ValueError, r"^basis: expected shape \(2, 2\), found \(3, 3\)"),
        (([1, 2], [[1, 1], [0, 1]]), ValueError, "^basis: expected orthogonal columns"),
        (([1, 2], None, [1]), ValueError, "^center: expected 2 numbers, found 1"),
    ):
        with pytest.raises(error, match=message):
            quadratic(*wrong)


def test_plain_descent_at_the_limit_of_the_learning_rate():
    """Below 2/λ_max it converges, above it doesn't."""
    for lr, below in ((1.99 / 50, True), (2.01 / 50, False)):
        made = quadratic([1, 50])
        w = np.array(made.start)
        opt = fastgd.SGD(w, lr=lr)
        for _ in range(1000):
            opt.step(made.gradient(w))
        assert bool(np.abs(w).max() < 1e-3) is below


def test_starts_of_the_double_well_end_in_both_minima():
    made = SURFACES["double_well"]
    ends = []
    for start in (made.start, (-made.start[0],)):
        w = np.array(start)
        opt = fastgd.SGD(w, lr=0.02)
        for _ in range(500):
            opt.step(made.gradient(w))
        ends.append(w[0])
    assert ends == pytest.approx([made.minima[1].point[0], made.minima[0].point[0]])


def test_dimensions():
    assert [len(surfaces.styblinski_tang(d).minima) for d in (1, 2, 4, 5)] == [2, 4, 16, 1]
    assert len(surfaces.styblinski_tang(2).saddles) == 4
    with pytest.raises(ValueError, match="^d: expected at least 2 variables, found 1"):
        surfaces.rosenbrock(1)
    with pytest.raises(TypeError, match=r"^d: expected an integer, found 2\.5"):
        surfaces.rastrigin(2.5)


def test_registry():
    assert {f"{name}" for name in SURFACES} == set(surfaces.__all__) - {
        "SURFACES",
        "Surface",
        "DataSurface",
        "Known",
    }
    for name in SURFACES:
        assert SURFACES[name].name == name
        assert SURFACES[name] is SURFACES[name]
        assert name in repr(SURFACES)
    assert "x" not in SURFACES
    assert len(SURFACES) == len(list(SURFACES))
    with pytest.raises(KeyError, match="parabola: no such surface; there are quadratic, "):
        SURFACES["parabola"]


# ---------------------------------------------------------------------------------- real data

DATA = ["least_squares", "logistic_regression"]


@pytest.mark.parametrize("name", DATA)
def test_batches(name):
    made = SURFACES[name]
    w = draw(made, (3,))
    order = np.random.default_rng(1).permutation(made.n_samples)
    batches = order[: made.n_samples // 13 * 13].reshape(13, -1)
    assert made.n_samples % 13 == 0 or name == "logistic_regression"
    rest = order[batches.size :]
    for of in (made.value, made.gradient):
        mean = sum(of(w, samples=b) * b.size for b in batches)
        if rest.size:
            mean = mean + of(w, samples=rest) * rest.size
        assert mean / made.n_samples == pytest.approx(of(w), rel=1e-12)
        assert of(w, samples=slice(3, 9)) == pytest.approx(of(w, samples=range(3, 9)), rel=1e-13)
        assert of(w, samples=5) == pytest.approx(of(w, samples=[5]), rel=1e-13)
        assert not np.allclose(of(w, samples=5), of(w, samples=6))
    for k, x in enumerate(w):
        one = differences(lambda p: made.value(p, samples=[4, 7]), x)
        assert made.gradient(w, samples=[4, 7])[k] == pytest.approx(one, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([], ValueError, "expected one sample or a list of them"),
        ([[1]], ValueError, "expected one sample or a list of them"),
        ([0.5], TypeError, "expected a slice or whole numbers, found dtype float64"),
        (np.ones(442, bool), TypeError, "expected a slice or whole numbers, found dtype bool"),
        ([0, 442], ValueError, "expected numbers from 0 to 441, found 0 to 442"),
        (-1, ValueError, "expected numbers from 0 to 441, found -1"),
        (slice(5, 5), ValueError, "expected at least one of 442"),
    ],
)
def test_wrong_samples(samples, error, message):
    made = SURFACES["least_squares"]
    for of in (made.value, made.gradient):
        with pytest.raises(error, match=f"^samples: {message}"):
            of(np.zeros(made.dim), samples)


def test_a_grid_in_parts_is_the_grid(monkeypatch):
    made = MADE["two columns"]()
    points = draw(made, (7, 5))
    whole = made.value(points), made.gradient(points)
    monkeypatch.setattr(data_surfaces, "BLOCK", 3 * made.n_samples)
    parts = made.value(points), made.gradient(points)
    for a, b in zip(whole, parts, strict=True):
        assert a == pytest.approx(b, rel=1e-13)


def test_the_minimum_of_least_squares_is_that_of_scikit_learn():
    from sklearn.linear_model import LinearRegression

    made = SURFACES["least_squares"]
    model = LinearRegression().fit(made.x[:, :-1], made.y)
    expected = [*model.coef_, model.intercept_]
    assert made.minimum.point == pytest.approx(expected, rel=1e-9, abs=1e-12)
    share = 1 - model.score(made.x[:, :-1], made.y)
    assert made.minimum.value == pytest.approx(share / 2, rel=1e-12)


def test_the_minimum_of_logistic_regression_is_that_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    made = SURFACES["logistic_regression"]
    model = LogisticRegression(C=1 / (1e-2 * made.n_samples), tol=1e-10, max_iter=10000)
    model.fit(made.x[:, :-1], made.y)
    expected = [*model.coef_[0], model.intercept_[0]]
    assert made.minimum.point == pytest.approx(expected, abs=1e-5)
    assert made.minimum.value <= made.value(expected) + 1e-12


def test_a_minimum_that_newtons_whole_steps_miss():
    made = surfaces.logistic_regression(l2=1e-12)  # a plane separates the classes
    assert np.abs(made.gradient(made.minimum.point)).max() < 1e-13
    assert made.minimum.value < 1e-4


def test_far_away_no_warning_and_no_infinity():
    made = SURFACES["logistic_regression"]
    far = np.full(made.dim, 1e4)
    assert np.isfinite(made.value(far))
    assert np.isfinite(made.gradient(-far)).all()
    assert np.isfinite(made.value(far.astype(np.float32)))


def test_wrong_columns():
    for make in (surfaces.least_squares, surfaces.logistic_regression):
        for features, error, message in (
            ("bmi", TypeError, "^features: expected a list of columns, found 'bmi'"),
            (3, TypeError, "^features: expected a list of columns, found 3"),
            (
                [0, "weight"],
                ValueError,
                r"^features\[1\]: expected a number below .*found 'weight'",
            ),
            ([30], ValueError, r"^features\[0\]: expected a number below"),
            ([2, 2], ValueError, "^features: expected different columns"),
            ([], ValueError, "^features: expected different columns"),
        ):
            with pytest.raises(error, match=message):
                make(features)
    with pytest.raises(ValueError, match="^l2: expected a number above 0, found 0"):
        surfaces.logistic_regression(l2=0)
    with pytest.raises(ValueError, match="^l2: expected a number of at least 0"):
        surfaces.least_squares(l2=-1)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match="need scikit-learn: pip install"):
        surfaces.least_squares()


def test_imports_need_numpy_alone():
    code = (
        "import sys, fastgd, fastgd.schedules, fastgd.surfaces as s; s.SURFACES['beale'].value([1, 1]);"
        "assert not {'sklearn', 'scipy', 'matplotlib', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
