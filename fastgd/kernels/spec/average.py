"""The rules by which weights are averaged, and gradients added up."""

from __future__ import annotations

from fastgd.kernels.spec.registry import Array, Scalar, rule


@rule
def ema(p: Array, g: Array, *, beta: Scalar, gamma: Scalar) -> None:
    """The exponentially weighted average of weights: p ← βp + γg, p the average, g the weights.

    As a step from the nearer of the two, p + γ(g − p) or g + β(p − g), which keeps a level: β and
    γ are each rounded, so that βp + γg would have weights whose sum isn't 1.
    """
    p[...] = p + gamma * (g - p) if gamma < beta else g + beta * (p - g)


@rule(by_rows="exact")
def weighted_sum(p: Array, g: Array, *, weight: Scalar) -> None:
    """The sum of gradients by weights: p ← p + wg, p the sum."""
    p[...] = p + weight * g
