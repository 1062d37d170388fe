"""The random words of stochastic rounding: from seed, step, tensor and element alone, and random."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from compiled_codecs import Compiled
from helpers import COMPILED

from fastgd.kernels.random_words import TILE, random_key, random_words

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
        for start, n in [(0, 1), (0, 256), (1, 255), (7, 1000), (250, 6), (250, 7), (255, 514),
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


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 16, 64, 255, 256, 257, 512, 4096])
def test_elements_are_independent(lag):
    words = random_words(KEY, 0, N)
    for a, b in itertools.product(halves(words[:-lag]), halves(words[lag:])):
        assert abs(chi_square(pairs(a, b))) < 5


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
            [random_words(random_key(3, step, 2), element, 1)[0] for step in range(1 << 14)]
        )
        for half in halves(words):
            assert abs(chi_square(np.bincount(half >> 8, minlength=256))) < 5
            assert abs(chi_square(pairs(half[:-1], half[1:], 4))) < 5


def test_sums_within_a_tile_spread_as_they_should():
    """Rounding errors of a tile add up like independent ones: the variance of the sum is 256 / 12."""
    words = random_words(KEY, 0, 1 << 22)
    for half in halves(words):
        sums = ((half.reshape(-1, TILE) + 0.5) / 65536 - 0.5).sum(1)
        variance = sums.var() / (TILE / 12)
        assert abs(variance - 1) < 5 * np.sqrt(2 / sums.size)
        assert abs(sums.mean()) < 5 * np.sqrt(TILE / 12 / sums.size)


def test_flipping_a_bit_of_the_place_flips_half_the_bits():
    """Avalanche, over the eight bits of the place within a tile."""
    words = random_words(KEY, 0, N).reshape(-1, TILE)
    place = np.arange(TILE)
    for bit in range(8):
        flipped = words ^ words[:, place ^ (1 << bit)]
        for out in range(32):
            share = np.mean(flipped >> np.uint32(out) & 1)
            assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(words.size / 2), (bit, out)
