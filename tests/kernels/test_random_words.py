"""The random words of stochastic rounding: from seed, step, tensor and element alone, and random."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from support.compiled_codecs import Compiled
from support.helpers import COMPILED

from fastgd.kernels.spec.random_words import TILE, random_key, random_words

N = 1 << 20
KEY = random_key(0, 1, 0)


def chi_square(counts):
    """How far counts that should be alike are from it, in standard deviations of chi-square."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return (np.sum((counts - expected) ** 2) / expected - freedom) / np.sqrt(2 * freedom)


def pairs(a, b, bits=8):
    """How often each pair of top bits occurs in two arrays of 16-bit numbers."""
    shift = 16 - bits
    joint = (a.astype(np.int64) >> shift) << bits | b >> shift
    return np.bincount(joint, minlength=1 << 2 * bits)


def halves(words):
    return words & 0xFFFF, words >> 16


@pytest.mark.parametrize("backend", COMPILED)
def test_compiled_equals_the_specification(backend):
    compiled = Compiled(backend)
    huge = 2**64 - 1
    for seed, step, tensor in [(0, 0, 0), (1, 2, 3), (huge, 2**40, 5), (12345, huge, huge)]:
        key = random_key(seed, step, tensor)
        assert compiled.random_key(seed, step, tensor) == key
        for start, n in [(0, 1), (0, 256), (1, 255), (1, 300), (7, 1000), (250, 6), (250, 7), (255, 514),
                         (2**31 - 100, 300), (2**32 - 5, 300), (2**40 + 3, 256)]:  # fmt: skip
            expected = random_words(key, start, n)
            assert expected.size == n
            assert np.array_equal(compiled.random_words(key, start, n), expected)


def test_they_follow_from_the_element_alone():
    whole = random_words(KEY, 0, 3000)
    for start, n in itertools.product((0, 1, 255, 256, 257, 1000), (0, 1, 256, 300, 2000)):
        assert np.array_equal(random_words(KEY, start, n), whole[start : start + n])


def test_keys_differ():
    keys = {random_key(*parts) for parts in itertools.product(range(30), repeat=3)}
    assert len(keys) == 30**3


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_each_bit_is_a_coin(seed):
    words = random_words(random_key(seed, 1, 0), 0, N)
    for bit in range(32):
        ones = np.count_nonzero(words >> np.uint32(bit) & 1)
        assert abs(ones - N / 2) < 5 * np.sqrt(N) / 2, bit


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_both_halves_are_uniform_and_independent(seed):
    low, high = halves(random_words(random_key(seed, 1, 0), 0, N))
    for half in (low, high):
        assert abs(chi_square(np.bincount(half, minlength=65536))) < 5
    assert abs(chi_square(pairs(low, high))) < 5
    assert abs(chi_square(pairs(low << 8 & 0xFFFF, high << 8 & 0xFFFF))) < 5


def over_steps(*elements, steps=1 << 14):
    """The words of some elements in each of many steps: one row for each element."""
    last = max(elements) // TILE + 1
    assert last < 100
    rows = [
        random_words(random_key(3, step, 2), 0, last * TILE)[list(elements)]
        for step in range(steps)
    ]
    return np.array(rows).T


@pytest.mark.parametrize(
    "elements", [(0, 1, 2), (0, 128, 255), (0, 256, 512), (0, 1, 256), (5, 261, 300), (0, 257, 770)]
)
def test_any_three_elements_are_independent(elements):
    """Of each half, four bits from the top and four from below; over many steps."""
    words = over_steps(*elements)
    for down in (28, 12, 24, 8):
        bits = words >> np.uint32(down) & 15
        joint = bits[0] << 8 | bits[1] << 4 | bits[2]
        assert abs(chi_square(np.bincount(joint, minlength=4096))) < 5


def test_four_may_not_be():
    """What a step's words are made of: known, and harmless to means and variances of sums."""
    words = random_words(KEY, 0, 1000)
    assert words[3] ^ words[7] ^ words[256 + 3] ^ words[256 + 7] == 0


@pytest.mark.parametrize(
    "other", [random_key(0, 2, 0), random_key(0, 1, 1), random_key(1, 1, 0), random_key(0, 257, 0)]
)
def test_steps_tensors_and_seeds_are_independent(other):
    for a, b in itertools.product(
        halves(random_words(KEY, 0, N)), halves(random_words(other, 0, N))
    ):
        assert abs(chi_square(pairs(a, b))) < 5


def test_one_element_over_the_steps():
    """What a state sees: the words of one element, step after step."""
    for element in (0, 1, 255, 256, 10**9):
        words = np.array(
            [random_words(random_key(3, step, 2), element, 1)[0] for step in range(1 << 13)]
        )
        for half in halves(words):
            assert abs(chi_square(np.bincount(half >> 8, minlength=256))) < 5
            assert abs(chi_square(pairs(half[:-1], half[1:], 4))) < 5


def rounding(halves):
    """Rounding errors, as parts of a step, that 16 random bits make."""
    return (halves + 0.5) / 65536 - 0.5


@pytest.mark.parametrize("elements", [range(TILE), range(0, 64 * TILE, TILE), range(64 * TILE)])
def test_sums_spread_as_they_should(elements):
    """Rounding errors add up like independent ones: over a tile, over the same place of many tiles,
    over many tiles, the variance of the sum is n / 12.
    """
    sums = []
    for step in range(1000):
        words = random_words(random_key(1, step, 0), 0, elements[-1] + 1)[
            elements.start :: elements.step
        ]
        sums.append([rounding(half.astype(float)).sum() for half in halves(words)])
    for one in np.array(sums).T:
        variance = one.var() / (len(elements) / 12)
        assert abs(variance - 1) < 5 * np.sqrt(2 / one.size)
        assert abs(one.mean()) < 5 * np.sqrt(len(elements) / 12 / one.size)


def test_flipping_a_bit_of_the_place_flips_half_the_bits():
    """Avalanche, over the eight bits of the place within a tile."""
    words = np.array([random_words(random_key(2, step, 0), 0, TILE) for step in range(4096)])
    place = np.arange(TILE)
    for bit in range(8):
        flipped = words ^ words[:, place ^ (1 << bit)]
        for out in range(32):
            share = np.mean(flipped >> np.uint32(out) & 1)
            assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(words.size / 2), (bit, out)
