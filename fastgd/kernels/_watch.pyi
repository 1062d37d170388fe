"""Types of the compiled watch over tensors; its documentation is in `_watch.pyx`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, final

from numpy import int64
from numpy.typing import NDArray

RETURN_ARGUMENT: Final[int]

def flat(api: Any, tensor: object, owner: object) -> NDArray[Any] | None: ...

@final
class Watch:
    members: list[list[Any]]
    tensors: list[Any]
    stepped: list[Any]
    odds: dict[int, Any]
    def __new__(
        cls,
        api: Any,
        members: list[list[Any]],
        tensors: list[list[Any]],
        local: Callable[[int, int, Any], Any],
        odd: Callable[[int, int, Any], Any],
        handles: tuple[Callable[[Sequence[Any]], list[int]], tuple[int, ...], type, int],
    ) -> Watch: ...
    def count(self, i: int, count: NDArray[int64]) -> None: ...
    def show(
        self,
        i: int,
        entry: dict[Any, Any],
        keys: tuple[str, ...],
        memory: tuple[Any, ...],
        complete: bool,
    ) -> None: ...
    def note(self, state: dict[Any, Any]) -> None: ...
    def read(
        self, groups: Sequence[Mapping[str, Any]] | None, state: dict[Any, Any] | None
    ) -> object | None: ...
    def lent(self) -> list[Any]: ...
    def tick(self, skipped: bool = False) -> list[int]: ...
