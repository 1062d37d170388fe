"""Types of the compiled engine; its documentation is in `_engine.pyx`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, Final, TypeGuard, final

from numpy import dtype, float64, int64, uint32
from numpy.typing import NDArray

from fastgd.kernels.memory.rows import Rows
from fastgd.kernels.spec.coded_array import CodedArray
from fastgd.kernels.spec.lines import Axes, Axis
from fastgd.kernels.spec.matrices import Matrix

SIZES: Final[dict[str, int]]

def use_backend(module: ModuleType | None) -> None: ...
def x86_64_level() -> int: ...
def set_num_threads(n: int) -> None: ...
def hand_out(elements: int, threads: int, asking: Iterable[int]) -> list[int]: ...
def threads_are_set() -> bool: ...
def set_most_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def has_openmp() -> bool: ...
def raised(x: float, n: float) -> float: ...
def logarithm(x: float) -> float: ...
def cospi(x: float) -> float: ...
def clock_name() -> str: ...
def use_tuning(mode: int) -> None: ...
def forget_tuning() -> None: ...
def pretend(off: float, on: float, fine: float = 1e3) -> None: ...
def tuning_records() -> list[tuple[Any, ...]]: ...
def pretend_steps(alone: float, together: float) -> None: ...
def steps_records() -> list[tuple[Any, ...]]: ...

@final
class Chooser:
    policy: Final[int]
    rival: Final[int]
    trying: Final[bool]
    pairs: Final[int]
    def __new__(cls, policy: int = 1, policies: int = 3) -> Chooser: ...
    def run(self, policy: int, rate: float) -> bool: ...
    def count(self, n: int) -> None: ...

@final
class ThreadsChooser:
    together: Final[bool]
    trying: Final[bool]
    looks: Final[int]
    def __new__(cls, together: bool = True, large: bool = False) -> ThreadsChooser: ...
    def begin(self) -> bool: ...
    def end(self, took: float, gap: float = 0.0) -> None: ...

def global_norm(tree: object) -> float: ...
def has_rows(tree: object) -> bool: ...
def summed_rows(
    rows: Rows, n: int, is_double: bool, name: str
) -> tuple[NDArray[int64], NDArray[Any]]: ...
def is_parameter(a: object) -> TypeGuard[NDArray[Any]]: ...
def aligned_zeros(p: NDArray[Any], kind: dtype[Any]) -> NDArray[Any]: ...

# By the names of methods the address of a function in C and how many coefficients it makes; and
# what is in rows: keys, how many numbers of each, and the word that is 1.
_Translation = tuple[dict[str, tuple[int, int]], tuple[tuple[str, int, str | None], ...]]
COEFFICIENTS: Final[dict[tuple[str, str], _Translation]]

@final
class HyperRows:
    def __new__(
        cls,
        groups: Sequence[Mapping[str, Any]],
        functions: dict[str, tuple[int, int]],
        places: tuple[tuple[str, int, str | None], ...],
        decoupled: bool,
        own_decay: bool,
    ) -> HyperRows: ...
    def made(
        self, k: int, name: str, t: int, unscale: float
    ) -> tuple[tuple[float, ...], tuple[float, ...]] | None: ...

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
    torn: bool
    def __new__(
        cls,
        structure: object,
        params: Sequence[NDArray[Any] | CodedArray],
        labels: Sequence[str],
        groups: list[int],
        states: Sequence[tuple[NDArray[Any] | CodedArray, ...]],
        rules: list[str],
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
        units: Sequence[Axis | None] | None = None,
        centralized: list[bool] | None = None,
        numbers: Sequence[tuple[NDArray[float64], ...]] | None = None,
        owners: list[int] | None = None,
        sizes: list[int] | None = None,
        axes: Sequence[Axes | None] | None = None,
        hyper_rows: HyperRows | None = None,
        matrices: list[Matrix] | None = None,
        shapes: list[tuple[tuple[int, ...], bool]] | None = None,
        lazy: bool = False,
        sparse: bool = False,
        missed: list[tuple[NDArray[uint32], NDArray[float64], Any] | None] | None = None,
    ) -> Plan: ...
    wrote: bool
    hyper_rows: HyperRows | None
    def refresh(self) -> None: ...
    def holds(self) -> bool: ...
    def refuse_torn(self) -> None: ...
    def catch_up(self, rows: list[Rows | NDArray[Any] | None] | None = None) -> None: ...
    def refuse_rows(
        self, tables: Iterable[int], configure: Callable[[int, int, float], tuple[Any, ...]]
    ) -> None: ...
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
        combine_sums: Callable[[NDArray[float64]], object] | None = None,
    ) -> StepRecord: ...
