"""The rule by which weights are averaged."""

from __future__ import annotations

from fastgd.kernels.spec.registry import Array, Scalar, rule


@rule
def ema(p: Array, g: Array, *, beta: Scalar, gamma: Scalar) -> None:
    """The exponentially weighted average of weights: p ← βp + γg, p the average, g the weights."""
    p[...] = beta * p + gamma * g
