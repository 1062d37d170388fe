"""Types of the compiled engine; its documentation is in `_engine.pyx`."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Final, final

from numpy import float64, int64
from numpy.typing import NDArray

from fastgd.kernels.spec.coded_array import CodedArray

SIZES: Final[dict[str, int]]

def use_backend(module: ModuleType | None) -> None: ...
def x86_64_level() -> int: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def has_openmp() -> bool: ...
def global_norm(tree: object) -> float: ...

@final
class StepRecord:
    step: int
    skipped: bool
    grad_norm: float | None
    clip_factor: float | None

@final
class Plan:
    steps: NDArray[int64]
    seed: int
    first: int
    bound: list[NDArray[Any] | None] | None
    def __new__(
        cls,
        structure: object,
        params: Sequence[NDArray[Any] | CodedArray],
        labels: list[str],
        groups: list[int],
        states: Sequence[tuple[NDArray[Any] | CodedArray, ...]],
        state_names: list[tuple[str, ...]],
        steps: NDArray[int64],
        grads: object = None,
        *,
        averages: list[NDArray[Any]] | None = None,
        average_steps: NDArray[int64] | None = None,
        copies: Sequence[NDArray[Any] | None] | None = None,
        clip_by: str = "all",
        nonfinite: str = "propagate",
        skipped: NDArray[int64] | None = None,
        seed: int = 0,
        unit_lengths: list[int] | None = None,
    ) -> Plan: ...
    def step(
        self,
        grads: object,
        configure: Callable[[int, int, float], tuple[Any, ...]],
        unscale: float,
        *,
        average: tuple[float, float] | None = None,
        zero: bool = False,
        reset: tuple[NDArray[Any], ...] = (),
        tally: NDArray[float64] | None = None,
        amount: float = 0.0,
        combine: Callable[[NDArray[float64]], object] | None = None,
    ) -> StepRecord: ...
