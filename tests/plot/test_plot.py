"""`fastgd.plot`: the style can be read by everybody, and the helpers draw what they were given."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from support.helpers import run_python

import fastgd
from fastgd.surfaces import SURFACES, least_squares

mpl = pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from fastgd import plot


@pytest.fixture
def axes():
    with plot.style():
        yield Figure(layout="constrained").subplots()


def luminance(colour):
    c = np.array(to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ (
        0.2126,
        0.7152,
        0.0722,
    )


def contrast(a, b):
    """The contrast ratio of two colours, by the Web Content Accessibility Guidelines."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast():
    for theme in plot.THEMES.values():
        assert contrast(theme.ink, theme.paper) > 12
    dark = plot.THEMES["dark"]
    assert all(contrast(line, dark.paper) > 4.5 for line in dark.lines)


@pytest.mark.parametrize("theme", plot.THEMES)
def test_no_two_lines_look_alike(theme):
    with plot.style(theme):
        looks = [tuple(sorted(plot.line_style(k).items())) for k in range(29)]
    assert len(set(looks[:28])) == 28
    assert looks[28] == looks[0]
    # Neighbours differ in dashes, too, so that colour is never the only cue.
    assert all(a[1] != b[1] for a, b in pairwise(looks))


def test_the_style_ends_with_its_block():
    before = dict(mpl.rcParams)
    with plot.style("dark"):
        assert mpl.rcParams["text.color"] == plot.THEMES["dark"].ink
    assert dict(mpl.rcParams) == before


def test_contours(axes):
    beale = SURFACES["beale"]
    filled = plot.contours(axes, beale, domain=((0, 4), (-1, 2)), levels=10, resolution=50)
    assert axes.get_xlim() == (0, 4)
    assert axes.get_ylim() == (-1, 2)
    assert len(filled.levels) == 11
    # As many pixels between any two levels but for the finer ones below.
    z = beale.value(np.stack(np.meshgrid(np.linspace(0, 4, 50), np.linspace(-1, 2, 50)), axis=-1))
    shares = np.histogram(z, filled.levels)[0] / z.size
    assert shares == pytest.approx(np.diff(np.linspace(0, 1, 11) ** 1.5), abs=0.01)
    star, cross = axes.lines
    assert star.get_xydata().tolist() == [[3.0, 0.5]]
    assert cross.get_xydata().tolist() == [[0.0, 1.0]], "the other saddle is out of sight"


def test_contours_without_marks_and_of_data(axes):
    plot.contours(axes, least_squares(["bmi"]), marks=False, resolution=20)
    assert not axes.lines


def test_neighbouring_grounds_differ(axes):
    filled = plot.contours(axes, SURFACES["himmelblau"], resolution=40)
    colours = [tuple(c) for c in filled.get_facecolor().tolist()]
    assert len(set(colours)) == len(colours) == 24
    assert [sum(c) for c in colours] == sorted((sum(c) for c in colours), reverse=True)


def test_curve(axes):
    well = SURFACES["double_well"]
    line = plot.curve(axes, well, domain=((-1, 2),), color="red")
    x, y = line.get_data()
    assert (x[0], x[-1], line.get_color()) == (-1, 2, "red")
    assert y == pytest.approx(x**4 - 3 * x**2 + x)


def test_path(axes):
    line = plot.path(axes, [[0, 0], [1, 2], [np.inf, 3], [np.nan, 0]], label="SGD", linewidth=3)
    assert line.get_xydata()[:2].tolist() == [[0, 0], [1, 2]]
    assert np.isnan(line.get_xydata()[2:, 0]).all()
    assert (line.get_label(), line.get_linewidth(), line.get_color()) == ("SGD", 3, "#0072B2")
    _, start, end = axes.lines
    assert start.get_xydata().tolist() == [[0, 0]]
    assert end.get_xydata().tolist() == [[1, 2]], "the last finite point"
    assert start.get_markerfacecolor() != end.get_markerfacecolor()
    second = plot.path(axes, [[0.0, 0.0]], halo=False)
    assert second.get_color() == "#D55E00"
    assert second.get_path_effects() == []
    assert len(line.get_path_effects()) == 2


def test_a_path_that_diverges_can_be_drawn():
    code = (
        "from matplotlib.figure import Figure; from fastgd import plot, surfaces\n"
        "figure = Figure(); axes = figure.subplots()\n"
        "plot.contours(axes, surfaces.beale(), resolution=10)\n"
        "plot.path(axes, [[0, 0], [1, 1], [1e100, -1e100], [0, 1]], linestyle='--')\n"
        "figure.savefig('/dev/null', format='png')"
    )
    # In a process of its own, that a drawing without end be ended.
    assert run_python(code).returncode == 0


def test_loss_curves(axes):
    series = {"a": [4.0, 2.0, 1.0], "b": np.array([3, 2], np.float32), "c": [7]}
    lines = plot.loss_curves(axes, series, unit="epoch", first=1)
    assert list(lines) == ["a", "b", "c"]
    assert lines["a"].get_xydata().tolist() == [[1, 4], [2, 2], [3, 1]]
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel() == "epoch"
    assert lines["c"].get_marker() == "o", "one value alone is no line"
    assert all(a.get_linestyle() != b.get_linestyle() for a, b in combinations(lines.values(), 2))


def test_averaged_loss_curves(axes):
    y = np.random.default_rng(0).random(50) + 1
    line = plot.loss_curves(axes, {"a": y}, beta=0.9, scale="linear")["a"]
    assert line.get_ydata() == pytest.approx(fastgd.averages.ewma(y, 0.9)[0])
    raw = axes.lines[1]
    assert raw.get_ydata().tolist() == y.tolist()
    assert raw.get_alpha() < 0.5
    assert axes.get_yscale() == "linear"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a: plot.style(1), TypeError, "theme: expected a str, found 1"),
        (lambda a: plot.style("blue"), ValueError, "theme: expected one of light, dark, found 'blue'"),
        (lambda a: plot.contours(None, SURFACES["beale"]), TypeError, "axes: expected matplotlib axes, found NoneType"),
        (lambda a: plot.contours(a, "beale"), TypeError, "surface: expected a Surface, found str"),
        (lambda a: plot.contours(a, SURFACES["double_well"]), ValueError, "surface: expected 2 variables, double_well has 1"),
        (lambda a: plot.contours(a, SURFACES["beale"], domain=((0, 1),)), ValueError, "domain: expected 2 intervals"),
        (lambda a: plot.contours(a, SURFACES["beale"], domain=((1, 0), (0, 1))), ValueError, "domain: expected finite intervals"),
        (lambda a: plot.contours(a, SURFACES["beale"], levels=1), ValueError, "levels: expected an integer of at least 2, found 1"),
        (lambda a: plot.contours(a, SURFACES["beale"], resolution=2.5), TypeError, "resolution: expected an integer"),
        (lambda a: plot.contours(a, SURFACES["beale"], marks=1), TypeError, "marks: "),
        (lambda a: plot.curve(a, SURFACES["beale"]), ValueError, "surface: expected 1 variable, beale has 2"),
        (lambda a: plot.path(None, [[0, 0]]), TypeError, "axes: "),
        (lambda a: plot.path(a, [["a", "b"]]), TypeError, "points: expected numbers, found dtype"),
        (lambda a: plot.path(a, [0, 1]), ValueError, "points: expected shape (steps + 1, 2), found (2,)"),
        (lambda a: plot.path(a, np.zeros((0, 2))), ValueError, "found (0, 2)"),
        (lambda a: plot.path(a, [[0, 0]], halo="no"), TypeError, "halo: "),
        (lambda a: plot.loss_curves(None, {}), TypeError, "axes: "),
        (lambda a: plot.loss_curves(a, [1, 2]), TypeError, "losses: expected a dict of series, found list"),
        (lambda a: plot.loss_curves(a, {"a": [1], "b": [[1]]}), ValueError, "losses['b']: expected shape (n,), found (1, 1)"),
        (lambda a: plot.loss_curves(a, {"a": ["x"]}), TypeError, "losses['a']: expected numbers"),
        (lambda a: plot.loss_curves(a, {"a": [1]}, scale="cubic"), ValueError, "scale: expected 'log' or 'linear', found 'cubic'"),
        (lambda a: plot.loss_curves(a, {"a": [1]}, beta=2), ValueError, "beta: "),
    ],
)  # fmt: skip
def test_bad_input_draws_nothing(axes, call, error, message):
    with pytest.raises(error) as caught:
        call(axes)
    assert message in str(caught.value)
    assert not axes.has_data()


def test_it_comes_when_asked_for():
    code = (
        "import sys, fastgd; from fastgd import *; assert 'matplotlib' not in sys.modules\n"
        "assert 'plot' in dir(fastgd); fastgd.plot.style; assert 'matplotlib' in sys.modules"
    )
    assert run_python(code).returncode == 0
    done = run_python("import sys; sys.modules['matplotlib'] = None; import fastgd; fastgd.plot")
    assert 'fastgd.plot needs matplotlib: pip install "fastgd[plot]"' in done.stderr
