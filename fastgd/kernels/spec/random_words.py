"""The random words of stochastic rounding, from seed, step, tensor and element alone.

A word is a function of its element, not of a generator's state, so that a step gives the same bits
in any number of threads, chunks and tiles.  The compiled twins are ``RANDOM`` in
``loops/codecs.pxi``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd.kernels.spec.sizes import TILE

Array = NDArray[Any]

_MASK = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15


def _mix(z: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014), with Stafford's constants."""
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _MASK
    return z ^ z >> 31


def random_key(seed: int, step: int, tensor: int) -> int:
    """What a step's random words of one tensor follow from; 64 bits.

    Examples
    --------
    >>> random_words(random_key(seed=0, step=1, tensor=0), start=0, n=2)
    array([3770242540, 3941146721], dtype=uint32)
    """
    key = 0
    for part in (seed, step, tensor):
        key = _mix(((key ^ part) + _GAMMA) & _MASK)
    return key


def random_words(key: int, start: int, n: int) -> Array:
    """The 32 random bits of each of `n` elements from `start` on, in whatever tiles they are drawn.

    A word is the exclusive or of two: one for the element's tile of 256, one for its position in
    that (tabulation hashing: Zobrist, 1970; Pătraşcu and Thorup, 2012).  Any three elements' words
    are independent if the two tables' are; all of these follow from the tensor's key, so that each
    step has others.  The tiles' are values of splitmix64, the positions' an integer hash
    (multipliers by Wellons' hash prospector) of position and key.

    Examples
    --------
    >>> key = random_key(0, 1, 0)
    >>> (random_words(key, 0, 300)[250:] == random_words(key, 250, 50)).all()
    np.True_
    """
    split = _mix((key + _GAMMA) & _MASK)
    low, high = np.uint32(split & 0xFFFFFFFF), np.uint32(split >> 32)
    x = np.arange(TILE, dtype=np.uint32) * np.uint32(0x9E3779B9) + low
    x = (x ^ x >> np.uint32(16)) * np.uint32(0x21F0AAAD) + high
    x = (x ^ x >> np.uint32(15)) * np.uint32(0xD35A2D97)
    positions = x ^ x >> np.uint32(15)
    first = start // TILE
    numbers = range(first, -(-(start + n) // TILE))
    tiles = np.array([_mix((key + (t + 2) * _GAMMA) & _MASK) >> 32 for t in numbers], np.uint32)
    words: Array = (tiles[:, None] ^ positions).ravel()[start - first * TILE :][:n]
    return words
