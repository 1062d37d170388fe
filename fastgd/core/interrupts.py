"""What has to be done in full, whenever Ctrl-C is pressed."""

from __future__ import annotations

from collections.abc import Callable


def to_the_end(work: Callable[[], object]) -> None:
    """Do what may be done over again; again if interrupted meanwhile, as by a second Ctrl-C.

    The interrupt is raised afterwards.
    """
    interrupt = None
    for _ in range(9):
        try:
            work()
        except KeyboardInterrupt as caught:
            interrupt = caught
        else:
            break
    if interrupt is not None:
        raise interrupt
