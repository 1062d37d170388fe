"""Picture 4: gradients that vanish, explode, or arrive, by the scale of the initial weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from sklearn.datasets import load_digits

import fastgd
from fastgd import init, plot
from fastgd.commands.figures.picture import Picture, number
from fastgd.commands.mlp import Array, Layers, forward, loss_and_grads
from fastgd.data import batches

LAYERS = 30
FACTORS = {"too small": 0.5, "scaled": math.sqrt(2), "too large": 3.0}


class Start(NamedTuple):
    """The measurements of one initialization.

    Attributes
    ----------
    a : float
        The weights' standard deviation is a/√n, of n inputs.
    activations : ndarray, shape (LAYERS,)
        The standard deviation of each layer's output, before the first step.
    gradients, weights : ndarray, shape (LAYERS,)
        The norms of the gradients of each layer's biases, which are the error that arrives there,
        and of its weights.
    losses : ndarray, shape (steps,)
        The loss of each mini-batch in the training that follows, which ends if it overflows.
    """

    a: float
    activations: np.ndarray
    gradients: np.ndarray
    weights: np.ndarray
    losses: np.ndarray

    @property
    def lost(self) -> int | None:
        """The first step with a loss that isn't finite, counted from 0, if there was one."""
        return None if np.isfinite(self.losses).all() else len(self.losses) - 1

    @property
    def decades(self) -> float:
        """How many powers of ten lie between the layers' gradients."""
        return float(np.log10(self.gradients.max() / self.gradients.min()))


Result = dict[str, Start]


def run(seed: int = 0, epochs: int = 10) -> Result:
    """Gradients of a network of 30 layers at its start, and a training from there."""
    digits = load_digits()
    x, y = (digits.data / 16).astype(np.float32), digits.target
    sizes = (64,) * LAYERS + (10,)
    result = {}
    for name, a in FACTORS.items():
        rng = np.random.default_rng(seed)
        params = {
            f"layer{k}": {"W": init.scaled((n, m), a=a, seed=rng), "b": np.zeros(m, np.float32)}
            for k, (n, m) in enumerate(pairwise(sizes), 1)
        }
        grads = loss_and_grads(params, x, y)[1]
        # In float64: squares of float32 numbers may overflow float32.
        norms, weights = (
            np.array([np.linalg.norm(grads[key][kind].astype(np.float64)) for key in params])
            for kind in "bW"
        )
        outputs = [float(h.std(dtype=np.float64)) for h in forward(params, x)[1:]]

        losses = np.array(list(train(params, x, y, epochs, seed)))
        result[name] = Start(a, np.array(outputs), norms, weights, losses)
    return result


def train(params: Layers, x: Array, y: Array, epochs: int, seed: int) -> Iterator[float]:
    """Train with momentum; yields the loss of each mini-batch, up to one that isn't finite."""
    opt = fastgd.SGD(params, lr=0.003, momentum=0.9)
    data = batches((x, y), 64, seed=seed)
    for _ in range(epochs):
        for xb, yb in data:
            with np.errstate(over="ignore", invalid="ignore"):
                loss, grads = loss_and_grads(params, xb, yb)
            yield loss
            if not math.isfinite(loss):
                return
            opt.step(grads)


def by_layer(axes: Axes, result: Result, series: str) -> None:
    layers = np.arange(1, LAYERS + 1)
    for k, (name, start) in enumerate(result.items()):
        look = {**plot.line_style(k), "marker": "v^o"[k], "markersize": 4}
        axes.semilogy(layers, getattr(start, series), label=f"{name}: a = {start.a:.3g}", **look)
    axes.set(xlabel="layer")
    axes.grid(visible=True)
    axes.legend(loc="best")


def draw_gradients(axes: Axes, result: Result) -> None:
    by_layer(axes, result, "gradients")
    axes.set(title="Backwards: the gradients", ylabel="norm of the biases' gradient")


def draw_activations(axes: Axes, result: Result) -> None:
    by_layer(axes, result, "activations")
    axes.set(title="Forwards: the layers' outputs", ylabel="standard deviation")


def draw_losses(axes: Axes, result: Result) -> None:
    for k, (name, start) in enumerate(result.items()):
        steps = np.arange(1, len(start.losses) + 1)
        lost = start.lost
        averaged = fastgd.averages.ewma(start.losses[:lost], 0.9)[0]
        label = name if lost is None else f"{name}: overflows at step {lost + 1}"
        axes.plot(steps[:lost], averaged, label=label, **plot.line_style(k))
    axes.set(title="The training that follows", xlabel="step", ylabel="loss, averaged")
    axes.set_ylim(0, 4.2)
    axes.grid(visible=True)
    axes.legend(loc="best")


def spans(result: Result) -> str:
    return ", ".join(f"{name} {start.decades:.1f}" for name, start in result.items())


def caption(result: Result) -> str:
    between = f"Decades between the smallest and the largest gradient of {LAYERS} layers"
    return f"{between}: {spans(result)}."


def outcome(start: Start) -> str:
    if start.lost is not None:
        return f"overflows at step {start.lost + 1}"
    return f"ends at {number(start.losses[-20:].mean())}"


def alt(result: Result) -> str:
    small, scaled, large = result.values()
    return (
        f"Three charts by layer or step. {caption(result)} From the last layer to the first, the "
        f"gradient goes from {number(small.gradients[-1])} to {number(small.gradients[0])} with "
        f"weights too small, from {number(large.gradients[-1])} to {number(large.gradients[0])} "
        f"with weights too large, and from {number(scaled.gradients[-1])} to "
        f"{number(scaled.gradients[0])} with scaled ones."
    )


def words(result: Result) -> tuple[str, ...]:
    small, scaled, large = result.values()
    return (
        f"A network of {LAYERS} layers of 64 units multiplies {LAYERS} matrices, forwards and "
        "backwards. If each of them shrinks what passes by some factor, little is left at the "
        "other end; if each enlarges it, it explodes.",
        "Weights of standard deviation √(2/n) keep the size of what passes a layer of n inputs "
        "with ReLU, which sets half of it to 0: this is Kaiming's initialisation, "
        "fastgd.init.kaiming.",
        "The gradient of a layer's biases is the error that arrives there. That of its weights is "
        "the error times the layer's input, which shrinks or grows the other way, so that it comes "
        f"out much the same in all layers: about {number(np.median(small.weights), 1)} with "
        f"weights too small, {number(np.median(scaled.weights), 1)} with scaled ones, and "
        f"{number(np.median(large.weights), 1)} with weights too large.",
        f"Trained from there with the same optimizer, the loss {outcome(scaled)} with scaled "
        f"weights, and {outcome(small)}, where guessing is {number(math.log(10))}, with weights "
        f"too small: nothing moves. With weights too large it {outcome(large)}.",
    )


PICTURE = Picture(
    "depth",
    "Exploding and vanishing gradients",
    run,
    (draw_gradients, draw_activations, draw_losses),
    3,
    caption,
    alt,
    words,
)
