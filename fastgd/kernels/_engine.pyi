"""Types of the compiled engine; its documentation is in `_engine.pyx`."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, final

from numpy import int64
from numpy.typing import NDArray

def use_backend(module: ModuleType | None) -> None: ...
def x86_64_level() -> int: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def has_openmp() -> bool: ...

@final
class Plan:
    params: list[NDArray[Any]]
    labels: list[str]
    states: list[tuple[NDArray[Any], ...]]
    steps: NDArray[int64]
    bound: list[NDArray[Any] | None] | None
    def __new__(
        cls,
        structure: object,
        params: list[NDArray[Any]],
        labels: list[str],
        groups: list[int],
        states: list[tuple[NDArray[Any], ...]],
        state_names: list[tuple[str, ...]],
        steps: NDArray[int64],
        grads: object = None,
    ) -> Plan: ...
    def step(
        self,
        grads: object,
        configure: Callable[[int, int, float], tuple[Any, ...]],
        unscale: float,
    ) -> None: ...
