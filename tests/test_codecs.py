"""The codecs: the compiled loops against their specification, and that against other libraries."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from compiled_codecs import Compiled
from helpers import COMPILED, SIZES, same_bits

from fastgd.kernels import codecs
from fastgd.kernels.codecs import CODECS, NAN_SCALE, TILE

DTYPES = [np.float32, np.float64]
ALL_16 = np.arange(65536, dtype=np.uint16)
STOCHASTIC = [name for name, codec in CODECS.items() if codec.stochastic]
# The 16-bit formats in libraries that know nothing of fastgd.
ORACLES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}


@pytest.fixture(params=COMPILED)
def compiled(request):
    return Compiled(request.param)


def boundary_floats():
    """Every upper half of a float32, with lower halves on both sides of every rounding boundary."""
    tails = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x1FFF], np.uint32)
    lower = (np.arange(8, dtype=np.uint32)[:, None] << 13 | tails).ravel()
    return (ALL_16.astype(np.uint32)[:, None] << 16 | lower).ravel().view(np.float32)


def midpoints(name, dtype):
    """Midpoints between neighbours of a 16-bit format, one bit less, one more; and their codes."""
    low = np.arange(0x7C00 if name == "float16" else 0x7F80, dtype=np.uint16)
    lower, upper = (codecs.CODECS[name].load(low + k, None, np.float64) for k in (0, 1))
    beyond = upper[-2] + (upper[-2] - lower[-2])  # what infinity would be, were it finite
    middle = (lower + np.where(np.isinf(upper), beyond, upper)) / 2
    x = np.concatenate([middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf)])
    if dtype == np.float32:
        middle = middle.astype(np.float32)
        x = np.concatenate([middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))])  # fmt: skip
    even = low + (low & 1)
    code = np.concatenate([even, low, low + 1]).astype(np.uint16)
    return np.concatenate([x, -x]), np.concatenate([code, code | 0x8000])


def stored(store, name, x, words=None, shift=0):
    """The arrays that a store fills, which hold something else before."""
    code, beside = CODECS[name].new(x.size)
    code[...] = 99
    if beside is not None:
        beside[...] = 99
    store(code, beside, x, words, shift)
    return [code] if beside is None else [code, beside]


def assert_same_store(compiled, name, x, words=None, shift=0):
    expected = stored(CODECS[name].store, name, x, words, shift)
    found = stored(lambda *rest: compiled.store(name, *rest), name, x, words, shift)
    for a, b in zip(expected, found, strict=True):
        if a.dtype.kind == "f":
            assert same_bits(a, b)
        else:
            assert np.array_equal(a, b)


# ------------------------------------------------------------------- compiled = specification


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_compiled_loads_every_code(compiled, name, dtype):
    expected = CODECS[name].load(ALL_16, None, dtype)
    found = compiled.load(name, ALL_16, None, dtype)
    word = f"u{expected.itemsize}"
    signaling = np.isnan(expected)  # conversion to float64 may make a NaN quiet
    assert np.array_equal(expected.view(word)[~signaling], found.view(word)[~signaling])
    assert np.all(np.isnan(found[signaling]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_loads_every_pair(compiled, dtype):
    """All upper halves with remainders at the ends and across zero."""
    for rest in (-0x8000, -0x7FFF, -1, 0, 1, 0x7FFF):
        low = np.full(65536, rest, np.int16)
        assert same_bits(
            CODECS["split"].load(ALL_16, low, dtype), compiled.load("split", ALL_16, low, dtype)
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["e4m3", "ue5m3"])
def test_compiled_loads_every_code_at_every_scale(compiled, name, dtype):
    code = np.tile(np.arange(256, dtype=np.uint8), 256)
    scale = np.arange(256, dtype=np.uint8)
    expected = CODECS[name].load(code, scale, dtype)
    assert same_bits(expected, compiled.load(name, code, scale, dtype))
    assert np.array_equal(np.isnan(expected), scale.repeat(256) > {"e4m3": 239, "ue5m3": 223}[name])


@pytest.mark.parametrize("name", ["bfloat16", "float16", "split", "float32", "float64"])
def test_compiled_stores_at_every_boundary(compiled, name):
    x = boundary_floats()
    with np.errstate(invalid="ignore"):
        wide = x.astype(np.float64)
    for values in (x, wide, np.nextafter(wide, 0), np.nextafter(wide, np.inf)):
        assert_same_store(compiled, name, values)


@pytest.mark.parametrize("shift", [0, 16])
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_compiled_stores_by_chance_at_every_boundary(compiled, rng, name, shift):
    x = boundary_floats()
    words = rng.integers(0, 2**32, x.size, np.uint32)
    for random in (words, words & 0, words | 0xFFFFFFFF):
        assert_same_store(compiled, name, x, random, shift)
    with np.errstate(invalid="ignore"):
        wide = x.astype(np.float64)
    assert_same_store(compiled, name, wide, words, shift)


def special_tiles(name, rng):
    """Tiles of numbers: for each exponent of the largest, with smaller ones of every size."""
    exponents = np.arange(-149, 128)
    spread = rng.uniform(0, 40, (exponents.size, TILE))
    x = np.ldexp(rng.uniform(1, 2, spread.shape), (exponents[:, None] - spread).astype(int))
    x[:, 0] = np.ldexp(1.0, exponents)
    x[:, 1] = np.ldexp(rng.choice([1.0, 1.875, np.nextafter(np.float32(1.875), 2)], exponents.size), exponents)  # fmt: skip
    x[:, 2:6] = 0.0
    x[::3, ::2] = 0.0
    if name == "e4m3":
        x *= rng.choice([-1, 1], x.shape)
    return np.concatenate([x.ravel(), np.zeros(TILE)]).astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["e4m3", "ue5m3"])
def test_compiled_stores_tiles_of_every_size(compiled, rng, name, dtype):
    x = special_tiles(name, rng).astype(dtype)
    if dtype is np.float64:
        x *= 1 + 2.0**-30
    words = rng.integers(0, 2**32, x.size, np.uint32)
    assert_same_store(compiled, name, x)
    for random in (words, words & 0, words | 0xFFFFFFFF):
        for shift in (0, 16):
            assert_same_store(compiled, name, x, random, shift)


@pytest.mark.parametrize("name", ["e4m3", "ue5m3"])
def test_compiled_stores_every_code_and_midpoint(compiled, name):
    """At several scales: all values of the format, what lies between, and the next float32s."""
    for scale in (22, 23, 90, 127, 200, 223):
        codes = np.arange(256, dtype=np.uint8)
        values = CODECS[name].load(codes, np.array([scale], np.uint8), np.float32)
        values = np.sort(values)
        middle = ((values[:-1].astype(float) + values[1:]) / 2).astype(np.float32)
        for x in (values, middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))):  # fmt: skip
            x = np.append(x, values[-1])[-TILE:].copy()
            assert_same_store(compiled, name, x)
            for word in (0, 1, 0x7FFF, 0x8000, 0xFFFF):
                assert_same_store(compiled, name, x, np.full(x.size, word, np.uint32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CODECS)
def test_every_number_of_elements(compiled, rng, name, dtype):
    """No element too many, none too few."""
    for n in [n for n in SIZES if n <= 1025]:
        x = np.abs(rng.standard_normal(n)).astype(dtype)
        choices = [None]
        if CODECS[name].stochastic:
            choices.append(rng.integers(0, 2**32, n, np.uint32))
        for words in choices:
            assert_same_store(compiled, name, x, words)
            code, beside = CODECS[name].new(n + 1)
            compiled.store(name, code[:n], beside, x, words)
            assert code[n] == 0
        CODECS[name].store(code[:n], None if beside is None else beside[: CODECS[name].new(n)[1].size], x)  # fmt: skip
        assert same_bits(
            CODECS[name].load(code[:n], None if beside is None else beside[: CODECS[name].new(n)[1].size], dtype),
            compiled.load(name, code[:n], beside, dtype),
        )  # fmt: skip


def test_every_backend_has_every_codec(compiled):
    assert list(compiled.module.CODECS) == list(CODECS)
    for name, (load, store, stochastic) in compiled.module.CODECS.items():
        assert len(load) == len(store) == 2
        assert (stochastic is not None) == CODECS[name].stochastic


# ---------------------------------------------------------- specification = other libraries


@pytest.mark.parametrize("name", ORACLES)
def test_loads_as_other_libraries_do(name):
    with np.errstate(invalid="ignore"):
        expected = ALL_16.view(ORACLES[name]).astype(np.float32)
    assert same_bits(CODECS[name].load(ALL_16, None, np.float32), expected)


@pytest.mark.parametrize("name", ORACLES)
def test_stores_as_other_libraries_do(name):
    x = boundary_floats()
    with np.errstate(all="ignore"):
        expected = x.astype(ORACLES[name]).view(np.uint16)
    (found,) = stored(CODECS[name].store, name, x)
    nan = np.isnan(x)
    assert np.array_equal(found[~nan], expected[~nan])
    loaded = CODECS[name].load(found[nan], None, np.float32)
    assert np.all(np.isnan(loaded))
    assert np.array_equal(np.signbit(loaded), np.signbit(x[nan]))
    quiet = {"bfloat16": 0x40, "float16": 0x200}[name]
    assert np.all(found[nan] & quiet)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ORACLES)
def test_every_midpoint_goes_to_even_and_its_neighbours_do_not(name, dtype):
    """By construction, so for float64, too: one rounding, not two."""
    x, expected = midpoints(name, dtype)
    (found,) = stored(CODECS[name].store, name, x)
    if dtype is np.float32 and name == "bfloat16":
        # The least midpoint's neighbours, 2^-149 away, are the only ones between two codes.
        assert np.float32(2.0**-134) in x
    assert np.array_equal(found, expected)


def test_float64_rounds_to_float16_as_numpy_does(rng):
    x = np.ldexp(rng.uniform(-2, 2, 200_000), rng.integers(-30, 18, 200_000))
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).view(np.uint16)
    assert np.array_equal(stored(CODECS["float16"].store, "float16", x)[0], expected)


@pytest.mark.parametrize("name", ORACLES)
def test_codes_come_back(name):
    """Load and store every code: the same, but that a NaN is made quiet."""
    x = CODECS[name].load(ALL_16, None, np.float32)
    quiet = np.where(np.isnan(x), {"bfloat16": 0x40, "float16": 0x200}[name], 0).astype(np.uint16)
    for words in (None, np.full(x.size, 0xFFFFFFFF, np.uint32)):
        assert np.array_equal(stored(CODECS[name].store, name, x, words)[0], ALL_16 | quiet)


# ----------------------------------------------------------------------------------- split


def test_split_loses_nothing(rng):
    x = np.concatenate([boundary_floats(), rng.integers(0, 2**32, 10**6, np.uint32).view(np.float32)])  # fmt: skip
    code, rest = stored(CODECS["split"].store, "split", x)
    back = CODECS["split"].load(code, rest, np.float32)
    nan = np.isnan(x)
    assert np.array_equal(back.view(np.uint32)[~nan], x.view(np.uint32)[~nan])
    assert np.all(np.isnan(back[nan]))
    assert np.array_equal(np.signbit(back[nan]), np.signbit(x[nan]))
    assert np.all(np.isnan(CODECS["bfloat16"].load(code[nan], None, np.float32))), (
        "seen in bfloat16"
    )
    # What is seen is the nearest bfloat16: another rounding only where two are as near.
    with np.errstate(all="ignore"):
        nearest = x.astype(ml_dtypes.bfloat16).view(np.uint16)
    differs = (code != nearest) & ~nan
    assert np.all(x.view(np.uint32)[differs] & 0xFFFF == 0x8000)


def test_split_survives_zeros_written_from_outside():
    """Pruning sets the visible half to 0 or -0 and leaves an old remainder."""
    high = np.array([0x0000, 0x8000, 0x0000, 0x8000], np.uint16)
    low = np.array([-5, -5, 7, 7], np.int16)
    x = CODECS["split"].load(high, low, np.float32)
    assert np.array_equal(np.signbit(x), [False, True, False, True])
    assert np.all(np.abs(x) < 1e-43)


# ------------------------------------------------------------------------ stochastic rounding


def every_outcome(name, x, fill):
    """What a number is stored as for each of 65,536 random words, as float64.

    For 8-bit codes `fill` is the largest of the tile, at whose scale the number is stored.
    """
    words = np.arange(65536, dtype=np.uint32)
    if CODECS[name].per == 1:
        numbers = np.full(65536, x, np.float32)
    else:
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
    [("bfloat16", 0.0), ("float16", 2.0**-13), ("e4m3", 2.0**-16), ("ue5m3", 2.0**-16)],
)
def test_stochastic_rounding_is_unbiased(rng, name, resolution):
    """Over all random words the mean is the number, within the words' resolution of a step."""
    fill = np.float32(300.0)
    for exponent in (-20, -16, -10, -9.5, -5, -1, 0, 3, 8):
        x = np.float32(min(2.0**exponent * rng.uniform(1, 2), 298.7))
        outcome = every_outcome(name, x, fill)
        codes = np.unique(outcome)
        assert codes.size == 2
        assert codes[0] < x < codes[1]
        assert abs(outcome.mean() - x) <= resolution * (codes[1] - codes[0]) + 1e-15 * x
        if name != "ue5m3":
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
    """Where rounding to nearest overflows, rounding by chance keeps the largest finite number."""
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


@pytest.mark.parametrize("name", ["e4m3", "ue5m3"])
def test_relative_error_is_as_documented(rng, name):
    binades = {"e4m3": 14, "ue5m3": 30.8}[name]
    x = np.exp2(-rng.uniform(0, binades, 100 * TILE)).astype(np.float32)
    x[::TILE] = 1.0
    words = rng.integers(0, 2**32, x.size, np.uint32)
    for random, bound in ((None, 1 / 17), (words, 1 / 8)):
        code, beside = stored(CODECS[name].store, name, x, random)
        error = np.abs(CODECS[name].load(code, beside, np.float64) / x - 1)
        assert bound / 2 < error.max() <= bound


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf, 3.3e38])
@pytest.mark.parametrize("name", ["e4m3", "ue5m3"])
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
    assert stored(CODECS["ue5m3"].store, "ue5m3", x)[1] == NAN_SCALE
    x[3] = -0.0
    code, scale = stored(CODECS["ue5m3"].store, "ue5m3", x)
    assert scale != NAN_SCALE
    assert code[3] == 0


@pytest.mark.parametrize("name", ["e4m3", "ue5m3"])
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
    code, beside = stored(CODECS["e4m3"].store, "e4m3", x, words)
    assert np.array_equal(
        CODECS["e4m3"].load(code, beside, np.float32).view(np.uint32), x.view(np.uint32)
    )


def test_positive_second_moments_stay_positive():
    """The floor lies 31.7 binades below the tile's largest."""
    x = np.array([1.875, 1e-30, 1e-45, 0.0], np.float32)
    for words in (None, np.zeros(4, np.uint32)):
        code, beside = stored(CODECS["ue5m3"].store, "ue5m3", x, words)
        back = CODECS["ue5m3"].load(code, beside, np.float64)
        assert code.tolist() == [255, 1, 1, 0]
        assert back[1] == 1.125 * 2.0**-31


@pytest.mark.parametrize(
    ("backend", "beta"),
    [("numpy", 0.999), *(pytest.param(*p.values, 0.99, marks=p.marks) for p in COMPILED)],
)
@pytest.mark.parametrize("company", ["alike", "one stays large"])
def test_a_decaying_second_moment_is_followed(backend, beta, company):
    """v ← βv from 1 to 1e-12, on average over a tile; to the floor where one stays large."""
    codec = CODECS["ue5m3"]
    load, store = codec.load, codec.store
    if backend != "numpy":
        compiled = Compiled(backend)

        def load(*rest):
            return compiled.load("ue5m3", *rest)

        def store(*rest):
            compiled.store("ue5m3", *rest)

    n = 8 * TILE
    code, scale = codec.new(n)
    store(code, scale, np.ones(n, np.float32))
    decays = np.ones(n, bool)
    if company == "one stays large":
        decays[::TILE] = False
    floor = 1.125 * 2.0**-31
    exact, step, compared = 1.0, 0, 0
    while exact > 1e-12:
        v = load(code, scale, np.float32)
        v[decays] *= np.float32(beta)
        exact *= float(np.float32(beta))
        step += 1
        store(code, scale, v, codecs.random_words(codecs.random_key(0, step, 0), 0, n))
        if step % int(2 / (1 - beta)) == 0 and (company == "alike" or exact > 100 * floor):
            mean = load(code, scale, np.float64)[decays].mean()
            assert mean == pytest.approx(exact, rel=0.2), step
            compared += 1
    assert compared >= (13 if company == "alike" else 7)
    v = load(code, scale, np.float64)
    assert v.min() > 0
    if company == "one stays large":
        assert np.all(v[~decays] == 1)
        assert np.all(v[decays] == floor)


def test_rounding_to_nearest_would_get_stuck():
    """Why states are rounded by chance."""
    code, scale = CODECS["ue5m3"].new(TILE)
    CODECS["ue5m3"].store(code, scale, np.ones(TILE, np.float32))
    for _ in range(100):
        v = CODECS["ue5m3"].load(code, scale, np.float32)
        CODECS["ue5m3"].store(code, scale, v * np.float32(0.999))
    assert np.all(CODECS["ue5m3"].load(code, scale, np.float32) == 1)
