"""The style of `fastgd.plot`: its colours on light and on dark pages, and its lines.

The public names are in `fastgd.plot`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import matplotlib as mpl
from cycler import cycler

from fastgd.core.domains import one_of

# 4 dashes and 7 colours have no common factor: so no two of the first 28 lines look alike.
DASHES = ("-", "--", "-.", ":")


class Theme(NamedTuple):
    """The colours of a style.

    Attributes
    ----------
    paper, ink, faint : str
        The colours of the background, of text and axes, and of the grid.
    lines : tuple of str
        The colours of lines, in order.
    """

    paper: str
    ink: str
    faint: str
    lines: tuple[str, ...]


# Okabe and Ito's colours, which colour-blind readers can tell apart, without the yellow, which is
# too pale on white; and the same hues in lighter shades, all with a contrast of at least 4.5 to the
# dark paper.
THEMES = {
    "light": Theme(
        "#ffffff", "#1d2126", "#d5d9de",
        ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    ),
    "dark": Theme(
        "#15191e", "#e6e9ed", "#3a424b",
        ("#3FA2E0", "#F5793A", "#1FC795", "#E79CC6", "#F2B233", "#9BD8FA", "#FFFFFF"),
    ),
}  # fmt: skip


def style(theme: str = "light") -> AbstractContextManager[None]:
    """A context manager in whose block the style is in force.

    Lines differ in colour and in dashes, so that colour is never the only cue.

    Parameters
    ----------
    theme : {"light", "dark"}
        The theme, for light or for dark pages.

    Raises
    ------
    TypeError, ValueError
        If there is no such theme.

    Examples
    --------
    >>> import matplotlib
    >>> with style("dark"):
    ...     print(matplotlib.rcParams["figure.facecolor"])
    #15191e
    """
    paper, ink, faint, lines = THEMES[one_of(THEMES, theme, "theme")]
    n = len(lines) * len(DASHES)
    cycle = cycler(
        color=[lines[k % len(lines)] for k in range(n)],
        linestyle=[DASHES[k % len(DASHES)] for k in range(n)],
    )
    settings: Any = {
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), paper),
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink),
        "axes.edgecolor": ink,
        "grid.color": faint,
        "axes.prop_cycle": cycle,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "axes.labelsize": 10,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
        "legend.fontsize": 9.5,
        "legend.frameon": False,
        "legend.handlelength": 2.6,
        "lines.linewidth": 1.8,
    }
    return mpl.rc_context(settings)


def line_style(k: int) -> dict[str, Any]:
    """Colour and dashes of the k-th line in the style in force, as keywords of matplotlib.

    >>> with style():
    ...     line_style(1)
    {'color': '#D55E00', 'linestyle': '--'}
    """
    entries = list(mpl.rcParams["axes.prop_cycle"])
    return dict(entries[k % len(entries)])
