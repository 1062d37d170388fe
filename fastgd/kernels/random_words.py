"""The random words of stochastic rounding, from seed, step, tensor and element alone.

A word is a function of its element, not of a generator's state, so that a step gives the same bits
in any number of threads, chunks and tiles.  The compiled twins are ``RANDOM`` in ``_codecs.pxi``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Elements that share a key.
TILE = 256

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
    array([2691689713, 2856294780], dtype=uint32)
    """
    key = 0
    for part in (seed, step, tensor):
        key = _mix(((key ^ part) + _GAMMA) & _MASK)
    return key


def random_words(key: int, start: int, n: int) -> Array:
    """The 32 random bits of each of `n` elements from `start` on, whoever asks and in what tiles.

    Each tile of 256 elements has a key of 64 bits, splitmix64's value number tile from the tensor's
    key on.  Within it an integer hash (multipliers by Wellons' hash prospector) takes the element's
    place and both halves of the key.

    Examples
    --------
    >>> key = random_key(0, 1, 0)
    >>> (random_words(key, 0, 300)[250:] == random_words(key, 250, 50)).all()
    np.True_
    """
    first = start // TILE
    blocks = range(first, -(-(start + n) // TILE))
    keys = np.array([_mix((key + (b + 1) * _GAMMA) & _MASK) for b in blocks], np.uint64)
    low, high = keys.astype(np.uint32)[:, None], (keys >> np.uint64(32)).astype(np.uint32)[:, None]
    x = np.arange(TILE, dtype=np.uint32) * np.uint32(0x9E3779B9) + low
    x = (x ^ x >> np.uint32(16)) * np.uint32(0x21F0AAAD) + high
    x = (x ^ x >> np.uint32(15)) * np.uint32(0xD35A2D97)
    x = x ^ x >> np.uint32(15)
    words: Array = x.ravel()[start - first * TILE :][:n]
    return words
