"""``python -m fastgd race``: a table and an animation of what happened, and refused nonsense."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

import fastgd
from fastgd.__main__ import main
from fastgd.surfaces import SURFACES

Image = pytest.importorskip("PIL.Image", reason="the extra `plot` is not installed")
from fastgd.commands import choice, descents, race
from fastgd.commands.images import Palette


def rows(text):
    return [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in text.splitlines()
        if line.startswith("│")
    ]


@pytest.mark.parametrize(("name", "wanted"), [("race.gif", ["classic"]), ("race.png", ["all"])])
def test_the_command(tmp_path, capsys, name, wanted):
    path = tmp_path / "new" / name
    given = ["--optimizer", *wanted, "--surface", "himmelblau", "--steps", "20"]
    assert main(["race", *given, "--output", str(path)]) == 0
    printed, drawn = capsys.readouterr()
    found = rows(printed)
    assert f"The animation is in {path} ({round(path.stat().st_size / 1000)} kB)" in printed
    assert drawn == "", "no bar where there is no terminal"
    assert {row[0] for row in found} == set(descents.contestants(choice.chosen(wanted)))
    arrivals = [math.inf if row[-1] == "never" else int(row[-1]) for row in found]
    assert arrivals == sorted(arrivals)
    assert arrivals[0] <= 20
    with Image.open(path) as animation:
        assert animation.format == name[-3:].upper()
        assert animation.n_frames == 21
        assert animation.info["loop"] == 0
        frames = []
        for k in range(animation.n_frames):
            animation.seek(k)
            frames.append(np.asarray(animation.convert("RGB")).astype(int))
    assert frames[0].shape == (540, 820, 3)
    assert (frames[0][0, 0] == 255).all(), "white paper"
    changed = [np.abs(a - b).any(axis=-1).sum() for a, b in pairwise(frames)]
    assert all(count > 20 for count in changed), "every frame shows a step of its own"
    assert list(tmp_path.rglob(".*")) == [], "nothing is left beside it"


def test_many_steps_make_no_more_frames():
    runs = race.race(SURFACES["quadratic"], 500, rates=[0.01])
    frames = race.animate(SURFACES["quadratic"], runs)
    assert len(frames) == race.frame_count(500) == race.FRAMES
    assert race.frame_count(3) == 4


def test_frames_show_the_paths_so_far():
    runs = {"SGD": descents.tuned(fastgd.SGD, SURFACES["beale"], 60, rates=[0.01])}
    frames = [np.asarray(frame) for frame in race.animate(SURFACES["beale"], runs)]
    blue = [(frame == (0x00, 0x72, 0xB2)).all(axis=-1).sum() for frame in frames]
    assert blue[0] < blue[10] < blue[30] < blue[-1], "lines grow"


def test_of_many_the_best_few_are_named():
    """Twelve copies of the same few: the fast ones in colour, the others faint."""
    runs = {}
    for k in range(12):
        lr = 0.02 if k < 5 else 1e-5
        runs[f"SGD{k}"] = descents.tuned(fastgd.SGD, SURFACES["quadratic"], 30, rates=[lr])
    assert list(race.ranked(runs))[:5] == [f"SGD{k}" for k in range(5)]
    last = np.asarray(race.animate(SURFACES["quadratic"], runs)[-1])
    shown = {tuple(colour) for colour in last.reshape(-1, 3)}
    lines = [(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00), (0x56, 0xB4, 0xE9)]  # 1st, 5th, 6th
    assert [line in shown for line in lines] == [True, True, False]


def test_one_learning_rate_for_all(tmp_path, capsys):
    args = ["race", "--surface", "quadratic", "--lr", "0.25", "--steps", "5", "--tolerance", "1e-9"]
    assert main([*args, "--output", str(tmp_path / "a.gif")]) == 0
    found = rows(capsys.readouterr().out)
    assert {row[1] for row in found} == {"0.25"}
    assert {row[-1] for row in found} == {"never"}
    # 0.25 is too much for an eigenvalue of 10: plain descent is multiplied by −1.5 five times.
    final = next(float(row[2]) for row in found if row[0] == "SGD")
    assert final == pytest.approx(0.5 * (2 * 0.75**5) ** 2 + 5 * (2 * 1.5**5) ** 2, rel=0.01)


def test_what_diverges_is_drawn_as_far_as_it_goes():
    with np.errstate(all="raise"):
        runs = descents.race(SURFACES["rosenbrock"], 40, rates=[10.0])
    assert runs["SGD"].values[-1] == np.inf
    assert runs["SGD"].arrival is None
    assert np.nanmax(np.abs(runs["SGD"].path)) > 1e100
    assert len(race.animate(SURFACES["rosenbrock"], runs)) == 41


def test_descents_are_what_the_optimizer_does():
    surface = SURFACES["beale"]
    path = descents.descend(fastgd.Adam, surface, surface.start, 3, lr=0.1, betas=(0.5, 0.9))
    w = np.array(surface.start)
    opt = fastgd.Adam(w, lr=0.1, betas=(0.5, 0.9))
    for k in range(3):
        assert path[k].tolist() == w.tolist()
        opt.step(surface.gradient(w))
    assert path[3].tolist() == w.tolist()


def test_measures():
    surface = SURFACES["quadratic"]
    path = np.array([[3.0, 0], [0.01, 0], [0, 4], [0, 0.02], [0.03, 0]])
    run = descents.measure(surface, 0.1, path, tolerance=0.05)
    assert run.distances == pytest.approx([3, 0.01, 4, 0.02, 0.03])
    assert run.values == pytest.approx([4.5, 5e-5, 80, 2e-3, 4.5e-4])
    assert run.arrival == 3, "the visit at 1 did not last"
    assert descents.measure(surface, 0.1, path[:3], 0.05).arrival is None
    assert descents.measure(surface, 0.1, path[3:], 0.05).arrival == 0
    # Himmelblau has four minima; the nearest counts.
    near = descents.measure(SURFACES["himmelblau"], 0.1, np.array([[3.6, -1.8]]), 0.05)
    assert near.distances[0] < 0.06


def test_the_best_rate():
    # On ½x² + 5y² plain descent is fastest at 2/11; of these, 0.15 comes nearest, 0.3 diverges.
    best = descents.tuned(fastgd.SGD, SURFACES["quadratic"], 100, rates=[0.001, 0.15, 0.05, 0.3])
    assert best.lr == 0.15
    assert best.arrival is not None
    slow = descents.tuned(fastgd.SGD, SURFACES["quadratic"], 5, rates=[0.001, 0.05, 0.3])
    assert (slow.lr, slow.arrival) == (0.05, None)


def test_the_best_rate_is_one_that_stays_in_sight():
    surface = SURFACES["rosenbrock"]
    far = descents.tuned(fastgd.Adagrad, surface, 30, rates=[3.2])
    assert np.abs(far.path).max() > 2, "beyond the domain"
    best = descents.tuned(fastgd.Adagrad, surface, 30, rates=[3.2, 0.1])
    assert best.values[-1] > far.values[-1]
    assert best.lr == 0.1
    assert np.abs(best.path).max() <= 2


def test_palette_keeps_what_counts():
    # A ground in 180 shades, and of three lines a single pixel each.
    pixels = np.repeat(np.arange(60, 240, dtype=np.uint8), 50)[:, None].repeat(3, axis=1)
    lines = [(0xCC, 0x79, 0xA7), (0, 0x72, 0xB2), (0xD5, 0x5E, 0)]
    image = Image.fromarray(np.concatenate([pixels, np.array(lines, np.uint8)])[None])
    rng = np.random.default_rng(0)
    noisy = np.asarray(image).copy()
    noisy[0, :3000] = rng.integers(0, 255, (3000, 3))
    for source in (image, Image.fromarray(noisy)):
        palette = Palette(source)
        assert len(palette.colours) <= 255
        found = np.asarray(palette.apply(source).convert("RGB"))
        assert (found[0, 3000:] == np.asarray(source)[0, 3000:]).all()
        assert np.abs(found.astype(int) - np.asarray(source)).sum(axis=-1).mean() < 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--surface", "moon"], "no surface is called 'moon'; there are quadratic, saddle"),
        (["--surface", "double_well"], "expected a surface over 2 variables, double_well has 1"),
        (["--surface", "least_squares"], "least_squares has 11; there are quadratic"),
        (["--steps", "0"], "expected an integer from 1 to 100000, not '0'"),
        (["--steps", "1e3"], "not '1e3'"),
        (["--lr", "-1"], "expected a number above 0, not '-1'"),
        (["--lr", "nan"], "expected a number above 0, not 'nan'"),
        (["--lr", "fast"], "not 'fast'"),
        (["--tolerance", "0"], "expected a number above 0"),
        (["--output", "race.mp4"], "expected a file ending in .gif or .png, not 'race.mp4'"),
        (["--output", "/dev/null/race.gif"], "cannot make the folder"),
    ],
)
def test_wrong_options(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["race", *arguments])
    assert caught.value.code == 2
    # argparse breaks no lines in errors, but quotes may differ between versions of Python.
    assert message in capsys.readouterr().err
