"""Tuning by the running program: what steps have found to be faster here, and how to pin it.

Where arrays don't stay in cache, memory can be prefetched by software.  On one processor that takes
a fifth off a step, on another it adds as much, or more, and loops of one processor differ, too.  No
result depends on it, to the bit.  So steps of more than 2 MiB of parameters and states try both, on
alternate pieces of their own work, and keep the faster one; then smaller portions, where loops
leave these open.  Each kind of loops (rule, storage, stages, backend) has a choice of its own, and
so has each size of what is stepped, in powers of four.  Some 10⁷ elements decide; a hundred times
as many later they look again, as another program may use the memory now.

Likewise whether a step takes one thread or all that it may: that follows from what happens between
steps, as threads that went to sleep have to be woken, and from whether another program has the
processors.  Steps of 8,192 elements and more are timed on one and on all by turns.  Where trying is
dear, as in large steps, the first look waits until it is a small part of what was done.

All optimizers of a process share what is known; a forked child takes it along.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from fastgd.kernels import _engine
from fastgd.kernels.memory.checks import shown

MODES = ("on", "off", "prefetch", "no-prefetch", "fine-prefetch")

# The stages as bits of `flags`, as `_types.pxd` has them; CODED is no stage.
_STAGES = {
    1: "scale",
    512: "centralize",
    256: "scale by units",
    2: "clip value",
    4: "L2 decay",
    8: "weight decay",
    16: "average",
    32: "copy",
    64: "zero gradients",
}

_mode = "on"


class Tuned(NamedTuple):
    """What is known of one kind of loops.

    Attributes
    ----------
    rule, backend : str
        Whose loops they are.
    params, grads : str
        The formats that these are stored in.
    states : tuple of str
        The same of the states.
    stages : tuple of str
        What is done besides the rule.
    bytes : tuple of int
        From how many bytes on, and below how many, parameters and states of all tensors have.
    threads : bool
        Whether there are several threads.
    prefetch : int
        The choice: how many elements are prefetched at a time; 0 without prefetching.
    trying : bool
        Whether others are being tried, for the first time or once again.
    looks : int
        How often there was a verdict.
    pairs : int
        How many pairs of runs the last verdict followed from.
    gain : float
        The time without prefetching over that with it: above 1 prefetching is faster.  1.0 without
        a verdict.  Single pairs count as at most 1.67.
    finer : float
        The time of prefetching 128 elements at a time over that of 64, likewise.  1.0, too, where
        these were not compared, as loops prefetch in portions of their own, or not at all.
    """

    rule: str
    backend: str
    params: str
    grads: str
    states: tuple[str, ...]
    stages: tuple[str, ...]
    bytes: tuple[int, int]
    threads: bool
    prefetch: int
    trying: bool
    looks: int
    pairs: int
    gain: float
    finer: float

    def __str__(self) -> str:
        """One line, as `show_config` prints it."""
        stored = "/".join(dict.fromkeys([self.params, self.grads, *self.states]))
        words = [self.rule, stored, *self.stages, _in_words(self.bytes)]
        words += ["threads"] * self.threads
        choice = "prefetch" if self.prefetch else "no prefetch"
        if self.finer > 1 and self.prefetch:
            choice += f" by {self.prefetch}"
        if self.trying:
            choice += ", trying others"
        why = f"without it {self.gain:.2f} of the time, {self.pairs} pairs" if self.looks else ""
        return f"{', '.join(words)}: {choice}" + f" ({why})" * bool(why)


class TunedThreads(NamedTuple):
    """What is known of steps of one kind and size: whether one thread or all are faster.

    Attributes
    ----------
    rule, backend : str
        Whose loops the first tensor takes.
    params, grads : str
        The formats that these are stored in.
    states : tuple of str
        The same of the states.
    norms : bool
        Whether norms are measured before.
    elements : tuple of int
        From how many elements on, and below how many, all tensors have.
    most : int
        How many threads a step may use; 15 stands for more, too.
    together : bool
        The choice: whether steps take all of these, or one.
    trying : bool
        Whether the other is being tried, for the first time or once again.
    looks : int
        How often there was a verdict.
    pairs : int
        How many pairs of steps the last verdict followed from.
    gain : float
        The time on one thread over that on all: above 1 these are faster.  1.0 without a verdict.
        Single pairs count as at most 1.67.
    """

    rule: str
    backend: str
    params: str
    grads: str
    states: tuple[str, ...]
    norms: bool
    elements: tuple[int, int]
    most: int
    together: bool
    trying: bool
    looks: int
    pairs: int
    gain: float

    def __str__(self) -> str:
        """One line, as `show_config` prints it."""
        stored = "/".join(dict.fromkeys([self.params, self.grads, *self.states]))
        low, high = self.elements
        words = [self.rule, stored, *["norms"] * self.norms, f"{low:,} to {high:,} elements"]
        choice = f"{self.most} threads" if self.together else "one thread"
        if self.trying:
            choice += ", trying others"
        why = "" if self.trying else " (not decided yet)"
        if self.looks:
            ratio = f"{self.gain:.2f}" + " or less" * (self.gain < 0.605)  # pairs are cut there
            why = f" (one takes {ratio} of the time, {self.pairs} pairs)"
        return f"{', '.join(words)}: {choice}{why}"


def get_tuning() -> str:
    """How steps are tuned: what `set_tuning` or ``FASTGD_TUNE`` said, else ``"on"``."""
    return _mode


def set_tuning(mode: str) -> None:
    """Say how steps are tuned from now on.

    Results do not depend on it, to the bit.  The environment variable ``FASTGD_TUNE`` says the same
    for all of a program.  What steps have found is kept for when they are tuned again.

    Parameters
    ----------
    mode : {"on", "off", "prefetch", "no-prefetch", "fine-prefetch"}
        ``"on"``: steps try out what is faster here.  ``"off"``: they do what they do where nothing
        is known, which is to prefetch where arrays don't stay in cache, and to take all threads for
        32,768 elements and more; so it is where there is no clock, too.  ``"prefetch"`` and
        ``"no-prefetch"`` pin prefetching to either there, and ``"fine-prefetch"`` to smaller
        portions, where loops leave that open; threads are taken as by ``"off"``.

    Raises
    ------
    TypeError, ValueError
        If it is none of these; nothing is changed then.

    Examples
    --------
    >>> import fastgd
    >>> fastgd.set_tuning("off")
    >>> fastgd.get_tuning()
    'off'
    >>> fastgd.set_tuning("on")
    """
    global _mode
    if not isinstance(mode, str):
        raise TypeError(f"mode: expected a str, found {shown(mode)}")
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, found {shown(mode)}")
    _engine.use_tuning(MODES.index(mode))
    _mode = str(mode)


def tuning_record() -> list[Tuned]:
    """What steps of this process have found, a `Tuned` for each kind of loops.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> fastgd.set_tuning("on")
    >>> p = np.zeros(1_000_000, np.float32)
    >>> _ = fastgd.Adam(p).step(np.ones_like(p))
    >>> all(kind.bytes[0] >= 2**20 for kind in fastgd.tuning_record())
    True
    """
    record = []
    for rule, loop, p, g, states, flags, magnitude, *rest, gain, finer in _engine.tuning_records():
        stages = tuple(name for flag, name in _STAGES.items() if flags & flag)
        size = (4**magnitude, 4 ** (magnitude + 1))
        stored = (p, g, tuple(states))
        ratios = [(1 + difference) / (1 - difference) for difference in (gain, finer)]
        loops = (rule, _backend_of(rule, loop), *stored, stages, size)
        record.append(Tuned._make((*loops, *rest, *ratios)))
    return record


def threads_record() -> list[TunedThreads]:
    """What steps of this process have found of threads, a `TunedThreads` for each kind and size.

    There is nothing to find where steps may use but one thread: `set_num_threads` is a limit.

    Examples
    --------
    >>> import numpy as np, fastgd
    >>> fastgd.set_num_threads(2)
    >>> p = np.zeros(100_000, np.float32)
    >>> _ = fastgd.Adam(p).step(np.ones_like(p))
    >>> all(steps.most > 1 for steps in fastgd.threads_record())
    True
    >>> fastgd.set_num_threads(None)
    """
    record = []
    for rule, loop, p, g, states, norms, magnitude, *rest, gain in _engine.steps_records():
        elements = (1 << magnitude, 2 << magnitude)
        steps = (rule, _backend_of(rule, loop), p, g, tuple(states), norms, elements)
        record.append(TunedThreads._make((*steps, *rest, (1 + gain) / (1 - gain))))
    return record


def show() -> None:
    """Print mode and record."""
    clock = _engine.clock_name()
    if not clock:
        print("tuning     off: there is no clock")
        return
    found = [*tuning_record(), *threads_record()]
    kept = "; what follows was found before, and is not used now" * bool(found)
    print(f"tuning     {_mode}" + (f", by the {clock}" if _mode == "on" else kept))
    for kind in found:
        print(f"           {kind}")


def _backend_of(rule: str, loop: int) -> str:
    """The backend that has a rule's loop."""
    prefix = "fastgd.kernels._"
    for name, module in list(sys.modules.items()):
        if name.startswith(prefix) and loop in getattr(module, "RULES", {}).get(rule, ()):
            return name.removeprefix(prefix)
    return "?"


def _in_words(size: tuple[int, int]) -> str:
    return f"{size[0] // 2**20} to {size[1] // 2**20} MiB"
