"""Long work at the command line: progress on a terminal, whole files, an end when interrupted.

Progress bars and tables are rich's, which the extras of the commands bring along; fastgd itself
needs NumPy alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from fastgd.commands import output
from fastgd.core.interrupts import to_the_end

INTERRUPTED = 130  # the exit status of what Ctrl-C ended, 128 and the signal's number
SECONDS = 0.1  # between two drawings of the bar


class Work:
    """Some work that may take long, done in its ``with`` block.

    While it goes on, a bar on stderr shows how far it is, if that is a terminal; no thread draws
    it, so that it takes no time from what is timed.  Ctrl-C ends the block and the program, with
    status 130 and a line that says how far it came and which files it wrote: these are whole.

    Parameters
    ----------
    name : str
        What is done, for the line.
    total : float, optional
        How much there is to do; `expect` says it later.

    Examples
    --------
    >>> with Work("sums", 2) as work:
    ...     for k in range(2):
    ...         work.advance(f"sum {k}")
    >>> work.share
    1.0
    """

    def __init__(self, name: str, total: float = 0.0) -> None:
        self.name = name
        self.total, self.done = total, 0.0
        self.at, self.last = "", ""  # what is under way, and the last that was done
        self.files: dict[Path, None] = {}
        shown = sys.stderr.isatty()
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        # What is printed meanwhile appears above the bar, unless it goes elsewhere.
        self._bar = Progress(
            *columns,
            console=Console(stderr=True),
            disable=not shown,
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._bar.add_task("", total=total or None)
        self._drawn = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        self._bar.refresh()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            print(self.told(), file=sys.stderr, flush=True)
            raise SystemExit(INTERRUPTED) from None

    def expect(self, total: float) -> None:
        """Say how much there is to do."""
        self.total = total
        self._bar.update(self._task, total=total)

    def begin(self, what: str) -> None:
        """Note what is under way from now on, if it has several parts."""
        self.at = what
        self._bar.update(self._task, description=what)

    def advance(self, what: str = "", share: float = 1.0) -> None:
        """Note that a part is done, and what it was, unless it is one of what has begun."""
        self.done += share
        if what:
            self.at, self.last = "", what
        self._bar.update(self._task, advance=share, description=self.at or self.last)
        if monotonic() - self._drawn >= SECONDS:
            self._bar.refresh()
            self._drawn = monotonic()

    @property
    def share(self) -> float:
        """How much is done, of 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    def show(self) -> None:
        """End the bar: all is done, and what follows are results."""
        self.at, self.last = "", self.at or self.last
        self._bar.stop()

    def write(self, path: Path, content: bytes | str) -> str:
        """Replace a file by a whole one, also if interrupted meanwhile; returns path and size."""
        data = content.encode() if isinstance(content, str) else content

        def whole() -> None:
            output.write(path, data)
            self.keep(path)

        to_the_end(whole)
        return output.with_size(path)

    def keep(self, path: Path) -> None:
        """Note a file that was written otherwise, and is whole whenever the work ends."""
        self.files[path] = None

    def told(self) -> str:
        """What is to be said of work that was interrupted."""
        where = f", after {self.last}" if self.last else ""
        if self.at:
            where = f", in {self.at}"
        kept = ", ".join(map(str, self.files))
        wrote = f"kept, each of them whole: {kept}" if kept else "nothing was written"
        return f"{self.name}: interrupted at {self.share:.0%}{where}; {wrote}"
