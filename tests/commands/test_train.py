"""``python -m fastgd``: the main job reaches its accuracies, repeats itself, and refuses nonsense."""

from __future__ import annotations

import numpy as np
import pytest
from support.helpers import run_python
from support.sampling import optimizers_by_sweeps

from fastgd.__main__ import main
from fastgd.commands import choice, mlp
from fastgd.optimizers import OPTIMIZERS

train = pytest.importorskip("fastgd.commands.train", reason="the extra `train` is not installed")
from matplotlib.figure import Figure


@pytest.mark.parametrize("name", optimizers_by_sweeps())
def test_every_optimizer_reaches_95_percent(name):
    outcome = train.train(name, epochs=30, batch_size=32, seed=0, advance=lambda: None)
    assert outcome.accuracy >= 0.95
    low = 0.1 if name == "Rprop" else 0.05  # which is made for gradients of all data
    assert outcome.losses[-1] < low < outcome.losses[0]
    assert outcome.accuracies[-1] == outcome.accuracy
    assert len(outcome.accuracies) == len(outcome.losses) == 30
    assert outcome.accuracies[0] < 0.95
    assert outcome.same_bits, "the compiled kernels gave what NumPy gives"


def test_same_seed_same_numbers():
    a, b, c = (train.train("Adam", 3, 32, seed, lambda: None) for seed in (5, 5, 6))
    assert a.losses == b.losses
    assert a.losses != c.losses


def test_gradients_of_the_network_are_right(rng):
    params = {
        name: {key: a.astype(np.float64) for key, a in layer.items()}
        for name, layer in mlp.init_layers((5, 7, 4, 3), rng).items()
    }
    x, y = rng.standard_normal((6, 5)), rng.integers(0, 3, 6)
    _, grads = mlp.loss_and_grads(params, x, y)
    for name, layer in params.items():
        for key, a in layer.items():
            for at in np.ndindex(a.shape):
                kept, h = a[at], 1e-6
                a[at] = kept + h
                above = mlp.loss_and_grads(params, x, y)[0]
                a[at] = kept - h
                below = mlp.loss_and_grads(params, x, y)[0]
                a[at] = kept
                assert grads[name][key][at] == pytest.approx((above - below) / (2 * h), abs=1e-7)


def test_the_command(tmp_path, capsys):
    picture = tmp_path / "new" / "loss.png"
    assert main(["train", "--epochs", "2", "--output", str(picture), "--batch-size", "64"]) == 0
    text = capsys.readouterr().out
    rows = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    assert [row[0].strip() for row in rows] == list(choice.CLASSIC)
    assert all(row[-1].strip() == "yes" for row in rows)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_curves():
    outcomes = [
        train.Outcome("SGD", 0.97, [2.0, 0.5], [0.4, 0.97], 1.0, 2.0, True),
        train.Outcome("Adam", 0.98, [1.0, 0.1], [0.9, 0.98], 1.0, 2.0, True),
    ]
    left, right = Figure().subplots(1, 2)
    train.draw_losses(left, outcomes)
    train.draw_accuracies(right, outcomes)
    assert [line.get_ydata().tolist() for line in left.lines] == [[2.0, 0.5], [1.0, 0.1]]
    assert [line.get_ydata().tolist() for line in right.lines] == [[0.4, 0.97], [0.9, 0.98]]
    assert [text.get_text() for text in left.get_legend().texts] == ["SGD (97.0%)", "Adam (98.0%)"]
    low, high = right.get_ylim()
    assert 0 <= low < 0.4 < 1 < high
    assert left.lines[0].get_xdata().tolist() == [1, 2]


def test_all_optimizers_in_one_picture(tmp_path, capsys):
    """In a batch of all digits, so that it is quick: each gets a row, and a small chart."""
    args = ["train", "--optimizer", "all", "--epochs", "1", "--batch-size", "1437"]
    assert main([*args, "--output", str(tmp_path / "all.png")]) == 0
    rows = [line.split("│")[1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [row.strip() for row in rows] == list(OPTIMIZERS)
    one = train.Outcome("A", 0.9, [1.0, 0.1], [0.9, 0.98], 1.0, 2.0, True)
    outcomes = [one._replace(optimizer=f"{k}", accuracy=0.9 + k / 1000) for k in range(20)]
    best = train.ranked(outcomes)
    assert [o.optimizer for o in best] == [f"{k}" for k in reversed(range(20))]
    left, right, small = Figure().subplots(1, 3)
    train.draw_best(left, right, best)
    assert [t.get_text() for t in left.get_legend().texts] == [
        f"{o.optimizer} ({o.accuracy:.1%})" for o in best[: choice.BEST]
    ]
    assert len(left.lines) == len(right.lines) == 20
    train.draw_one(small, best, best[7])
    assert len(small.lines) == 21
    assert (small.get_title(), small.texts[0].get_text()) == ("12", "91.2%")


@pytest.mark.parametrize(
    ("given", "trained"),
    [
        (["--optimizer", "Momentum"], ["Momentum"]),
        (["--optimizer", "Lion", "SGD", "--optimizer", "Momentum"], ["SGD", "Momentum", "Lion"]),
    ],
)
def test_optimizers_by_name(tmp_path, capsys, given, trained):
    args = ["train", *given, "--epochs", "1", "--seed", "3"]
    assert main([*args, "--output", str(tmp_path / "m.png")]) == 0
    text = capsys.readouterr().out
    rows = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    assert rows == trained


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "expected an integer of at least 1, below 2^32, not '0'"),
        (["--batch-size", "x"], "not 'x'"),
        (["--seed", "5000000000"], "below 2^32"),
        (["--seed", "-1"], "expected an integer of at least 0"),
        (["--optimizer", "adamm"], "found adamm; did you mean Adam?"),
        (["--output", "curve.bmp"], "ending in .png"),
        (["--output", "/dev/null/curve.png"], "cannot make the folder"),
    ],
)
def test_wrong_options(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_without_the_extra():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from fastgd.__main__ import main; sys.exit(main(['train']))"
    )
    done = run_python(code)
    assert done.returncode == 1
    assert "`train` needs matplotlib" in done.stderr
    assert "pip install 'fastgd[train]'" in done.stderr


def test_config(capsys):
    assert main(["config"]) == 0
    assert capsys.readouterr().out.startswith("fastgd ")
