"""Types of the compiled series; its documentation is in `_series.pyx`."""

from typing import Any

from numpy.typing import NDArray

def ewma(
    x: NDArray[Any],
    out: NDArray[Any],
    v: NDArray[Any],
    weight: float,
    beta: float,
    correct: bool,
) -> float: ...
def ewma_of_observed(
    x: NDArray[Any],
    out: NDArray[Any],
    v: NDArray[Any],
    weights: NDArray[Any],
    past: NDArray[Any],
    gamma: float,
    correct: bool,
    ignore: bool,
) -> None: ...
