"""How a sweep is handed out to threads: in shares, and these in pieces, so that none waits for a slow one."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from support.helpers import same_bits

import fastgd
from fastgd.kernels import _engine

PIECE = 131_072


@pytest.mark.parametrize("threads", [1, 2, 5, 256, 300])
@pytest.mark.parametrize("elements", [0, 40_000, PIECE, 10 * PIECE, 512 * PIECE, 10**8])
def test_each_piece_is_handed_out_once(elements, threads):
    shares = min(threads, 256)
    pieces = shares * max(elements // (shares * PIECE), 1)
    asking = [k % threads for k in range(pieces)]
    found = _engine.hand_out(elements, threads, [*asking, *range(threads)])
    assert sorted(found[:pieces]) == list(range(pieces))
    assert set(found[pieces:]) == {-1}


def test_a_thread_begins_with_its_own_share_and_goes_on_with_what_is_left():
    # Two shares of four pieces.  In step with each other, each thread has its own.
    elements = 8 * PIECE
    assert _engine.hand_out(elements, 2, [0, 1] * 4) == [0, 4, 1, 5, 2, 6, 3, 7]
    # A slow one is held up by a piece at most: the other takes what it has not begun.
    assert _engine.hand_out(elements, 2, [1] + [0] * 7 + [1]) == [4, 0, 1, 2, 3, 5, 6, 7, -1]
    # As does one alone, if OpenMP has no other.
    assert _engine.hand_out(elements, 2, [1] * 8) == [4, 5, 6, 7, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AdamW", {"clip_norm": 1.0, "average": 0.9}),
        ("LAMB", {}),
        ("Adam", {"state_dtype": "8bit"}),
    ],
)
def test_who_does_a_piece_changes_no_bit(name, options):
    """With more threads than processors, beside one that computes, pieces change hands."""
    sizes, ended = [7 * PIECE + 5, 1000, 3 * PIECE], threading.Event()

    def compute():
        x = np.ones(20_000)
        while not ended.is_set():
            np.sqrt(x, out=x)

    def train(threads):
        fastgd.set_num_threads(threads)
        rng = np.random.default_rng(0)
        params = [rng.standard_normal(n, np.float32) for n in sizes]
        opt = getattr(fastgd, name)(params, lr=0.01, **options)
        for _ in range(3):
            opt.step([rng.standard_normal(n, np.float32) for n in sizes])
        return params

    rival = threading.Thread(target=compute)
    rival.start()
    try:
        expected = train(1)
        for threads in (2, 7):
            assert all(map(same_bits, train(threads), expected))
    finally:
        ended.set()
        rival.join()
