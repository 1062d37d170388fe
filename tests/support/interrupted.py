"""A process that trains, is interrupted, and then looks whether all is as some whole calls leave it.

Run by test_faults.py, which sends SIGINT at a random moment after each line that this prints.
"""

from __future__ import annotations

import signal
import sys
import time

import numpy as np

import fastgd


def make(elements):
    """An optimizer that does all that a step can do, and the gradients that its calls go through."""
    rng = np.random.default_rng(0)
    sizes = {"W": np.float32, "V": np.float64, "b": np.float32}
    shapes = {"W": elements, "V": elements // 7, "b": 5}
    params = {k: rng.standard_normal(shapes[k]).astype(sizes[k]) for k in sizes}
    grads = [
        {k: rng.standard_normal(shapes[k]).astype(sizes[k]) for k in sizes if k != "b" or t % 2}
        for t in range(5)
    ]
    for g in grads:
        g.setdefault("b", None)
    opt = fastgd.AdamW(
        params,
        lr=lambda t: 0.1 / (t + 1),
        average=0.99,
        clip_norm=1.0,
        nonfinite="skip",
        copy_to={k: np.zeros(shapes[k], np.float32) for k in sizes},
    )
    return opt, grads


def position(opt):
    """How many steps it has taken, and how many gradients wait for the next one."""
    waiting = opt.stepper.accumulated
    return int(opt.state["W"]["step"]), int(waiting.weight[0]) if waiting else 0


def advance(opt, grads):
    """The next call, which follows from the position alone: each third step takes two gradients."""
    step, waiting = position(opt)
    if step % 3 == 0 and waiting < 2:
        opt.accumulate(grads[(step + waiting) % 5])
    elif waiting:
        opt.step()
    else:
        opt.step(grads[step % 5])


def contents(opt):
    """All that calls change, but gradients' sums that nothing waits in."""
    found = [p.tobytes() for p in opt.param_groups[0]["params"]]
    found += [a.tobytes() for entry in opt.state.values() for a in entry.values()]
    found += [a.tobytes() for a in [*opt.average.averages.values(), opt.average.steps]]
    found += [a.tobytes() for a in opt.stepper.copies]
    if position(opt)[1]:
        found += [
            a.tobytes() for a in [*opt.stepper.accumulated.sums, opt.stepper.accumulated.counts]
        ]
    return found


def main():
    """Train until interrupted, compare with a twin that was not, say so; for ever."""
    elements, threads = map(int, sys.argv[1:])
    # What a shell runs in the background is started with interrupts ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fastgd.set_num_threads(threads)
    (opt, grads), (twin, _) = make(elements), make(elements)
    while True:
        try:
            print("ready", flush=True)
            while True:
                advance(opt, grads)
        except KeyboardInterrupt:
            caught = time.monotonic()
        while position(twin) != position(opt):
            advance(twin, grads)
        same = contents(twin) == contents(opt)
        print(caught, *position(opt), "consistent" if same else "TORN", flush=True)


if __name__ == "__main__":
    main()
