"""Parameters that say themselves where their states are to be kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from fastgd.core.storage import Kind

Array = NDArray[Any]


class Home(ABC):
    """What stands in the place of a parameter that keeps its own states: see `fastgd.Mapped`.

    Attributes
    ----------
    array : ndarray
        The parameter.
    """

    array: Array

    @property
    @abstractmethod
    def step(self) -> int:
        """The number of steps that the parameter has taken."""

    @abstractmethod
    def known(self, kinds: Mapping[str, Kind], restarts: bool) -> dict[str, Array]:
        """The states of these kinds that are there, of the steps taken.

        Raises ValueError if one doesn't fit, or is missing of a class that can't make it amid
        steps: one that ``restarts`` counts them from when states were made.
        """

    @abstractmethod
    def new(self, kind: Kind, start: float) -> dict[str, Array]:
        """What `Kind.new` makes of a parameter."""

    @abstractmethod
    def bind(self, entry: Mapping[str, Any], owner: Any) -> None:
        """Take what an optimizer keeps of the parameter, its step count among it.

        From here on ``owner``, which has a ``lock``, steps the parameter, and nobody before it.
        """

    @abstractmethod
    def mark(self, owner: Any = None) -> None:
        """Be told that parameter and states are about to be written, by whom.

        Raises RuntimeError if another owner came since.
        """

    @abstractmethod
    def lend(self) -> None:
        """Be told that the parameter is something else for a while."""

    @abstractmethod
    def take_back(self) -> None:
        """Be told that it is itself again."""
