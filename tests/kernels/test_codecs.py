"""The codecs: the compiled loops against their specification, and that against other libraries."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from support.compiled_codecs import Compiled, stored
from support.helpers import COMPILED, SIZES, same_bits

from fastgd.kernels import _engine
from fastgd.kernels.spec import codecs, sizes
from fastgd.kernels.spec.codecs import CODECS, TILE

DTYPES = [np.float32, np.float64]
ALL_16 = np.arange(65536, dtype=np.uint16)
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
@pytest.mark.parametrize("name", ["e5m2", "ue6m2"])
def test_compiled_loads_every_code_at_every_scale(compiled, name, dtype):
    code = np.tile(np.arange(256, dtype=np.uint8), 256)
    scale = np.arange(256, dtype=np.uint8)
    expected = CODECS[name].load(code, scale, dtype)
    assert same_bits(expected, compiled.load(name, code, scale, dtype))
    assert np.array_equal(np.isnan(expected), scale.repeat(256) > {"e5m2": 223, "ue6m2": 191}[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bfloat16", "float16", "split", "float32", "float64"])
def test_compiled_stores_at_every_boundary(compiled, name):
    x = boundary_floats()
    with np.errstate(invalid="ignore"):
        wide = x.astype(np.float64)
    for values in (x, wide, np.nextafter(wide, 0), np.nextafter(wide, np.inf)):
        assert_same_store(compiled, name, values)


@pytest.mark.slow
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
    spread = rng.uniform(0, 72, (exponents.size, TILE))
    x = np.ldexp(rng.uniform(1, 2, spread.shape), (exponents[:, None] - spread).astype(int))
    x[:, 0] = np.ldexp(1.0, exponents)
    x[:, 1] = np.ldexp(rng.choice([1.0, 1.75, np.nextafter(np.float32(1.75), 2)], exponents.size), exponents)  # fmt: skip
    x[:, 2:6] = 0.0
    x[::3, ::2] = 0.0
    if name == "e5m2":
        x *= rng.choice([-1, 1], x.shape)
    special = np.ones((9, TILE))
    special[:, 17] = [0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, -1.0, 3.3e38, 1e-45]
    special[0] = 0.0
    return np.concatenate([x, special]).astype(np.float32).ravel()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["e5m2", "ue6m2"])
def test_compiled_stores_tiles_of_every_size(compiled, rng, name, dtype):
    x = special_tiles(name, rng).astype(dtype)
    if dtype is np.float64:
        x *= 1 + 2.0**-30
    words = rng.integers(0, 2**32, x.size, np.uint32)
    assert_same_store(compiled, name, x)
    for random in (words, words & 0, words | 0xFFFFFFFF):
        for shift in (0, 16):
            assert_same_store(compiled, name, x, random, shift)


@pytest.mark.parametrize("name", ["e5m2", "ue6m2"])
def test_compiled_stores_every_code_and_midpoint(compiled, name):
    """At several scales: all values of the format, what lies between, and the next float32s."""
    for scale in (32, 33, 90, 127, 190, {"e5m2": 223, "ue6m2": 191}[name]):
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
    codec = CODECS[name]
    for n in [n for n in SIZES if n <= 1025]:
        x = np.abs(rng.standard_normal(n)).astype(dtype)
        words = rng.integers(0, 2**32, n, np.uint32)
        for random in (None, words) if codec.stochastic else (None,):
            assert_same_store(compiled, name, x, random)
        (code, *beside), (guard, _) = stored(codec.store, name, x), codec.new(n + 1)
        compiled.store(name, guard[:n], codec.new(n)[1], x)
        assert guard[n] == 0
        beside = beside[0] if beside else None
        expected = codec.load(code, beside, dtype)
        assert expected.size == n
        assert same_bits(expected, compiled.load(name, code, beside, dtype))


def test_the_sizes_are_the_engines():
    specified = {key: n for key, n in vars(sizes).items() if key.isupper()}
    assert specified == _engine.SIZES


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


@pytest.mark.slow
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
