"""A multi-layer perceptron in plain NumPy, and the loop that trains it: how to embed fastgd.

The parameters are a dict of layers, each a dict with weights ``"W"`` and biases ``"b"``;
`loss_and_grads` returns gradients in the same form, and `fit` hands them to the optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastgd
from fastgd import init
from fastgd.data import batches

Array = NDArray[Any]
Layers = dict[str, dict[str, Array]]


def init_layers(sizes: Sequence[int], rng: np.random.Generator) -> Layers:
    """Layers of the given sizes; weights are scaled for ReLU, biases 0."""
    return {
        f"layer{k}": {"W": init.kaiming((n, m), seed=rng), "b": init.constant(m, value=0.0)}
        for k, (n, m) in enumerate(pairwise(sizes), 1)
    }


def forward(params: Layers, x: Array) -> list[Array]:
    """The activations of every layer: ReLU in the hidden layers, class scores in the last."""
    activations = [x]
    for k, layer in enumerate(params.values(), 1):
        z = activations[-1] @ layer["W"] + layer["b"]
        activations.append(z if k == len(params) else np.maximum(z, 0))
    return activations


def loss_and_grads(params: Layers, x: Array, y: Array) -> tuple[float, Layers]:
    """Mean cross-entropy of a batch, and its gradients in the form of `params`.

    Parameters
    ----------
    params : dict of dict of ndarray
        The layers.
    x : ndarray of float32, shape (batch, features)
        The inputs.
    y : ndarray of int, shape (batch,)
        The classes.
    """
    activations = forward(params, x)
    scores = activations[-1] - activations[-1].max(axis=1, keepdims=True)
    p = np.exp(scores)
    total = p.sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    loss = float(np.mean(np.log(total[:, 0]) - scores[rows, y]))

    delta = p / total
    delta[rows, y] -= 1
    delta /= len(y)
    grads: Layers = {}
    for (name, layer), a in zip(reversed(params.items()), reversed(activations[:-1]), strict=True):
        grads[name] = {"W": a.T @ delta, "b": delta.sum(axis=0)}
        delta = (delta @ layer["W"].T) * (a > 0)
    return loss, grads


def fit(
    params: Layers,
    opt: fastgd.Optimizer,
    x: Array,
    y: Array,
    epochs: int,
    batch_size: int,
    rng: np.random.Generator,
) -> Iterator[tuple[float, list[int]]]:
    """Train in place; yields each epoch's mean loss, and nanoseconds of its optimizer steps."""
    data = batches((x, y), batch_size, seed=rng)
    for _ in range(epochs):
        losses, times = [], []
        for xb, yb in data:
            loss, grads = loss_and_grads(params, xb, yb)
            before = perf_counter_ns()
            opt.step(grads)
            times.append(perf_counter_ns() - before)
            losses.append(loss)
        yield float(np.mean(losses)), times


def accuracy(params: Layers, x: Array, y: Array) -> float:
    """The share of inputs whose highest score is their class's."""
    return float(np.mean(forward(params, x)[-1].argmax(axis=1) == y))
