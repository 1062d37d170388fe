"""The class of the gallery's pictures: a run that returns numbers, and panels that draw them."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fastgd import plot

Result = TypeVar("Result")

PANEL = (4.4, 3.7)  # inches: at a phone's width, 10 points are still read with ease


# The height of a line of a legend in inches, and the lines for which the panels have room.
LINE, ROOM = 0.22, 3


@dataclass(frozen=True)
class Picture(Generic[Result]):
    """A picture of the gallery.

    Attributes
    ----------
    name, title : str
        The names of its file and of its section.
    run : callable
        Computes the result: does the descents, draws nothing.
    panels : tuple of callables
        From axes and the result; each draws a panel.
    columns : int
        The number of panels side by side where there is room.
    caption, alt : callable
        From the result to the caption, and to the text for readers who can't see the picture.
    words : callable
        From the result to the explanation, in paragraphs.
    shared_legend : bool
        Whether the first panel's lines get one legend for all, under them.
    height : float
        How high panels are, as a multiple of what is usual.
    """

    name: str
    title: str
    run: Callable[[], Result]
    panels: tuple[Callable[[Axes, Result], None], ...]
    columns: int
    caption: Callable[[Result], str]
    alt: Callable[[Result], str]
    words: Callable[[Result], tuple[str, ...]]
    shared_legend: bool = False
    height: float = 1.0

    def draw(self, result: Result, *, narrow: bool = False, theme: str = "light") -> Figure:
        """Draw the panels: side by side, or in one column for a phone."""
        columns = 1 if narrow else self.columns
        rows = math.ceil(len(self.panels) / columns)
        layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
        with plot.style(theme):
            figure = Figure(
                figsize=(PANEL[0] * columns, PANEL[1] * self.height * rows), layout=layout
            )
            grid = figure.subplots(rows, columns, squeeze=False).flat
            for axes, panel in zip(grid, self.panels, strict=True):
                panel(axes, result)
            if self.shared_legend:
                handles, labels = figure.axes[0].get_legend_handles_labels()
                lines = math.ceil(len(labels) / (2 * columns))
                figure.set_figheight(figure.get_figheight() + LINE * max(lines - ROOM, 0))
                figure.legend(handles, labels, loc="outside lower center", ncols=2 * columns)
        return figure

    @property
    def source(self) -> str:
        """The code of the module that made it."""
        return inspect.getsource(sys.modules[self.run.__module__])

    @property
    def file(self) -> str:
        """The name of that module's file."""
        return Path(str(sys.modules[self.run.__module__].__file__)).name


def number(value: Any, digits: int = 2) -> str:
    """A number as it is written in a sentence.

    >>> number(0.0312), number(-12345.6), number(3.1e-9), number(4.5e12)
    ('0.031', '−12,000', '3.1·10⁻⁹', '4.5·10¹²')
    """
    value = float(value)
    if value < 0:
        return f"−{number(-value, digits)}"
    if value == 0 or not math.isfinite(value):
        return str(value).removesuffix(".0")
    power = math.floor(math.log10(abs(value)))
    if -4 < power < 6:
        rounded = round(value, digits - 1 - power)
        return f"{rounded:,.{max(0, digits - 1 - power)}f}"
    exponent = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{value / 10**power:.{digits - 1}f}·10{exponent}"
