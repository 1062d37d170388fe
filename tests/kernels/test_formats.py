"""What the formats promise: stochastic rounding is unbiased, and states in 8 bits."""

from __future__ import annotations

import numpy as np
import pytest
from support.compiled_codecs import Compiled, stored
from support.helpers import COMPILED

from fastgd.kernels.spec.codecs import CODECS, NAN_SCALE, TILE
from fastgd.kernels.spec.random_words import random_key, random_words

STOCHASTIC = [name for name, codec in CODECS.items() if codec.stochastic]


@pytest.fixture(params=COMPILED)
def compiled(request):
    return Compiled(request.param)


# ------------------------------------------------------------------------ stochastic rounding


def every_outcome(name, x, fill):
    """What a number is stored as for each of 65,536 random words, as float64.

    For 8-bit codes, which take 21 bits, these are the middles of as many equal intervals, and
    `fill` is the largest of the tile, at whose scale the number is stored.
    """
    words = np.arange(65536, dtype=np.uint32)
    if CODECS[name].per == 1:
        numbers = np.full(65536, x, np.float32)
    else:
        words = 32 * words + 16
        numbers = np.full((65536 // 128, TILE), fill, np.float32)
        numbers[:, :128] = x
        spread = np.zeros(numbers.shape, np.uint32)
        spread[:, :128] = words.reshape(-1, 128)
        words, numbers = spread.ravel(), numbers.ravel()
    code, beside = CODECS[name].new(numbers.size)
    CODECS[name].store(code, beside, numbers, words)
    outcome = CODECS[name].load(code, beside, np.float64)
    return outcome if beside is None else outcome.reshape(-1, TILE)[:, :128].ravel()


@pytest.mark.parametrize(
    ("name", "resolution"),
    [("bfloat16", 0.0), ("float16", 2.0**-13), ("e5m2", 2.0**-16), ("ue6m2", 2.0**-16)],
)
def test_stochastic_rounding_is_unbiased(rng, name, resolution):
    """Over all random words the mean is the number, within the words' resolution of a step."""
    fill = np.float32(300.0)
    for exponent in (-26, -23, -16, -10, -9.5, -5, -1, 0, 3, 8):
        x = np.float32(min(2.0**exponent * rng.uniform(1, 2), 298.7))
        outcome = every_outcome(name, x, fill)
        codes = np.unique(outcome)
        assert codes.size == 2
        assert codes[0] < x < codes[1]
        assert abs(outcome.mean() - x) <= resolution * (codes[1] - codes[0]) + 1e-15 * x
        if name != "ue6m2":
            assert np.array_equal(every_outcome(name, -x, -fill), -outcome)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_what_can_be_stored_exactly_is(name):
    if CODECS[name].per == 1:
        return  # test_codes_come_back
    codes = np.arange(256, dtype=np.uint8)
    scale = np.array([127], np.uint8)
    x = CODECS[name].load(codes, scale, np.float32)
    for word in (None, 0, 0xFFFFFFFF):
        words = None if word is None else np.full(TILE, word, np.uint32)
        code, beside = stored(CODECS[name].store, name, x, words)
        assert np.array_equal(code, codes)
        assert beside == scale


def test_finite_stays_finite_by_chance():
    """Where rounding to nearest overflows, stochastic rounding gives the largest finite number."""
    top = np.array([1, -1], np.float32) * np.finfo(np.float32).max
    up = np.full(2, 0xFFFFFFFF, np.uint32)
    assert stored(CODECS["bfloat16"].store, "bfloat16", top)[0].tolist() == [0x7F80, 0xFF80]
    assert stored(CODECS["bfloat16"].store, "bfloat16", top, up)[0].tolist() == [0x7F7F, 0xFF7F]
    x = np.array([65504, 65519.99, 65520, 65535.99, 65536, 1e30, np.inf], np.float32)
    codes = [0x7BFF, 0x7BFF, 0x7C00, 0x7C00, 0x7C00, 0x7C00, 0x7C00]
    assert stored(CODECS["float16"].store, "float16", x)[0].tolist() == codes
    codes[2:4] = [0x7BFF, 0x7BFF]
    up = np.full(x.size, 0xFFFFFFFF, np.uint32)
    assert stored(CODECS["float16"].store, "float16", x, up)[0].tolist() == codes


# ----------------------------------------------------------------------------------- 8 bits


@pytest.mark.parametrize("name", ["e5m2", "ue6m2"])
def test_relative_error_is_as_documented(rng, name):
    binades = {"e5m2": 30, "ue6m2": 62.6}[name]
    x = np.exp2(-rng.uniform(0, binades, 100 * TILE)).astype(np.float32)
    x[::TILE] = 1.0
    words = rng.integers(0, 2**32, x.size, np.uint32)
    for random, bound in ((None, 1 / 9), (words, 1 / 4)):
        code, beside = stored(CODECS[name].store, name, x, random)
        error = np.abs(CODECS[name].load(code, beside, np.float64) / x - 1)
        assert bound / 2 < error.max() <= bound


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf, 3.3e38])
@pytest.mark.parametrize("name", ["e5m2", "ue6m2"])
def test_nan_and_inf_do_not_vanish(name, bad):
    """They make their tile NaN, and no other."""
    x = np.ones(3 * TILE - 5, np.float32)
    x[TILE + 17] = bad
    for words in (None, np.zeros(x.size, np.uint32)):
        code, beside = stored(CODECS[name].store, name, x, words)
        assert beside[1] == NAN_SCALE
        back = CODECS[name].load(code, beside, np.float32)
        assert np.all(np.isnan(back[TILE : 2 * TILE]))
        assert np.all(back[:TILE] == 1)
        assert np.all(back[2 * TILE :] == 1)


def test_a_negative_second_moment_does_not_vanish():
    x = np.ones(TILE, np.float32)
    x[3] = -1e-30
    assert stored(CODECS["ue6m2"].store, "ue6m2", x)[1] == NAN_SCALE
    x[3] = -0.0
    code, scale = stored(CODECS["ue6m2"].store, "ue6m2", x)
    assert scale != NAN_SCALE
    assert CODECS["ue6m2"].load(code, scale, np.float32)[3] == 0


@pytest.mark.parametrize("name", ["e5m2", "ue6m2"])
def test_fresh_memory_is_zero(compiled, name):
    code, scale = CODECS[name].new(TILE)
    assert not code.any()
    assert not scale.any()
    for load in (CODECS[name].load, lambda *rest: compiled.load(name, *rest)):
        x = load(code, scale, np.float32)
        assert not x.any()
        assert not np.signbit(x).any()


def test_zeros_and_their_signs_stay():
    x = np.array([0.0, -0.0, 5.0], np.float32)
    words = np.full(3, 0xFFFFFFFF, np.uint32)
    code, beside = stored(CODECS["e5m2"].store, "e5m2", x, words)
    assert np.array_equal(
        CODECS["e5m2"].load(code, beside, np.float32).view(np.uint32), x.view(np.uint32)
    )


def test_positive_second_moments_stay_positive():
    """The floor lies 63.5 binades below the tile's largest."""
    x = np.array([1.75, 1e-30, np.finfo(np.float32).tiny, 0.0], np.float32)
    for words in (None, np.zeros(4, np.uint32), np.full(4, 0xFFFFFFFF, np.uint32)):
        code, beside = stored(CODECS["ue6m2"].store, "ue6m2", x, words)
        back = CODECS["ue6m2"].load(code, beside, np.float64)
        assert code.tolist() == [255, 1, 1, 0]
        assert back[1] == 1.25 * 2.0**-63


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "beta"),
    [("numpy", 0.999), *(pytest.param(*p.values, 0.99, marks=p.marks) for p in COMPILED)],
)
@pytest.mark.parametrize("company", ["alike", "one stays large"])
def test_a_decaying_second_moment_is_followed(backend, beta, company):
    """v ← βv from 1 to 1e-6, on average over tiles; from 2⁻⁴⁶ to the floor where one stays large.

    Single numbers spread: after 18,000 steps, at 1.5e-8, such means are off by 10 to 50 percent.
    """
    codec = CODECS["ue6m2"]
    load, store = codec.load, codec.store
    if backend != "numpy":
        compiled = Compiled(backend)

        def load(*rest):
            return compiled.load("ue6m2", *rest)

        def store(*rest):
            compiled.store("ue6m2", *rest)

    n = 8 * TILE
    code, scale = codec.new(n)
    decays = np.ones(n, bool)
    exact, end, step, compared = 1.0, 1e-6, 0, 0
    if company == "one stays large":
        decays[::TILE] = False
        exact, end = 2.0**-46, 1e-22
    store(code, scale, np.where(decays, exact, 1.0).astype(np.float32))
    floor = 1.25 * 2.0**-63
    while exact > end:
        v = load(code, scale, np.float32)
        v[decays] *= np.float32(beta)
        exact *= float(np.float32(beta))
        step += 1
        store(code, scale, v, random_words(random_key(0, step, 0), 0, n))
        if step % int(2 / (1 - beta)) == 0 and (company == "alike" or exact > 100 * floor):
            mean = load(code, scale, np.float64)[decays].mean()
            assert mean == pytest.approx(exact, rel=0.35), step
            compared += 1
    assert compared >= (6 if company == "alike" else 3)
    v = load(code, scale, np.float64)
    assert v.min() > 0
    if company == "one stays large":
        assert np.all(v[~decays] == 1)
        assert np.all(v[decays] == floor)


def test_rounding_to_nearest_would_get_stuck():
    """Why states are rounded stochastically."""
    code, scale = CODECS["ue6m2"].new(TILE)
    CODECS["ue6m2"].store(code, scale, np.ones(TILE, np.float32))
    for _ in range(100):
        v = CODECS["ue6m2"].load(code, scale, np.float32)
        CODECS["ue6m2"].store(code, scale, v * np.float32(0.999))
    assert np.all(CODECS["ue6m2"].load(code, scale, np.float32) == 1)
