"""Every codec in NumPy: what the compiled loops must load and store, to the bit.

A codec stores numbers in fewer bytes than they are computed with.  ``load`` gives float32 or
float64 from ``code``, the stored array, and ``aux``, its scales or remainders; ``store`` writes
both, rounding to nearest, or stochastically if given random words.  All arrays are one-dimensional,
in the order of memory.  The compiled twins stand in ``loops/codecs.pxi`` under the same names and
work on a tile of at most `TILE` elements; these take any number of tiles.

``docs/formats.md`` says what each format can hold, how exactly, and what it does at its ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastgd.kernels.spec.sizes import TILE as TILE

Array = NDArray[Any]

NAN_SCALE = 255
INF = 0x7F800000  # the bits of float32's infinity


class Codec(NamedTuple):
    """A row of `CODECS`: what a codec stores, and how.

    ``code`` is the dtype of what is stored for each element; ``aux`` that of the remainders or
    scales, one for `per` elements, or None.  ``load(code, aux, dtype)`` returns an array,
    ``store(code, aux, x, words, shift)`` writes in place.  Where ``stochastic``, a store takes
    random words, of which it uses the lower bits if `shift` is 0, the upper ones if it is 16;
    ``words=None`` rounds to nearest.
    """

    name: str
    code: np.dtype[Any]
    aux: np.dtype[Any] | None
    per: int
    stochastic: bool
    load: Callable[[Array, Array | None, DTypeLike], Array]
    store: Callable[..., None]

    @property
    def aux_name(self) -> str:
        """What `aux` holds: a scale for several elements, or the remainder of each."""
        return "remainder" if self.per == 1 else "scale"

    def new(self, n: int) -> tuple[Array, Array | None]:
        """Zeros for `n` elements: code and aux.

        Examples
        --------
        >>> code, scale = CODECS["e5m2"].new(300)
        >>> code.dtype, scale.size
        (dtype('uint8'), 2)
        """
        aux = None if self.aux is None else np.zeros(-(-n // self.per), self.aux)
        return np.zeros(n, self.code), aux


CODECS: dict[str, Codec] = {}


def _enter(
    code: DTypeLike, aux: DTypeLike | None = None, per: int = 1, stochastic: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Enter ``store_x`` in `CODECS` together with the ``load_x`` before it."""

    def enter(store: Callable[..., None]) -> Callable[..., None]:
        name = store.__name__.removeprefix("store_")
        CODECS[name] = Codec(
            name,
            np.dtype(code),
            None if aux is None else np.dtype(aux),
            per,
            stochastic,
            globals()[f"load_{name}"],
            store,
        )
        return store

    return enter


# ------------------------------------------------------------------------------------- the bits


def _cast(x: Array, dtype: DTypeLike) -> Array:
    """To the nearest number of a type; what is beyond its range is inf."""
    with np.errstate(all="ignore"):
        return x.astype(dtype)


def _to_odd(x: Array) -> Array:
    """Float32 on the way to 16 bits: float64 keeps 14 bits of its fraction, rounded to odd.

    What is cut off leaves its mark in the last bit, so that rounding again gives what rounding once
    would have given (Boldo and Melquiond, 2008).
    """
    if x.dtype == np.float32:
        return x
    cut = np.uint64(2**38 - 1)
    u = x.view(np.uint64)
    odd: Array = (u | ((u & cut) + cut)) & ~cut
    return _cast(odd.view(np.float64), np.float32)


def _bits(x: Array) -> Array:
    """Float32's bits, as numbers that leave room for carries."""
    return x.view(np.uint32).astype(np.int64)


def _float(u: Array) -> Array:
    return u.astype(np.uint32).view(np.float32)


def _random16(words: Array, shift: int) -> Array:
    return (words.astype(np.int64) >> shift) & 0xFFFF


# ----------------------------------------------------------------------------- float32, float64


def load_float32(code: Array, aux: Array | None, dtype: DTypeLike) -> Array:
    """Float32, computed with as it is or as float64."""
    return _cast(code, dtype)


@_enter(np.float32)
def store_float32(
    code: Array, aux: Array | None, x: Array, words: Array | None = None, shift: int = 0
) -> None:
    """Float32, rounded to nearest from float64."""
    code[...] = _cast(x, np.float32)


def load_float64(code: Array, aux: Array | None, dtype: DTypeLike) -> Array:
    """Float64, rounded to nearest where float32 is computed with."""
    return _cast(code, dtype)


@_enter(np.float64)
def store_float64(
    code: Array, aux: Array | None, x: Array, words: Array | None = None, shift: int = 0
) -> None:
    """Float64."""
    code[...] = _cast(x, np.float64)


# ---------------------------------------------------------------------------- bfloat16, float16


def load_bfloat16(code: Array, aux: Array | None, dtype: DTypeLike) -> Array:
    """Bfloat16: the upper half of a float32.

    Examples
    --------
    >>> load_bfloat16(np.array([0x3FC0], np.uint16), None, np.float32)
    array([1.5], dtype=float32)
    """
    return _cast(_float(code.astype(np.int64) << 16), dtype)


@_enter(np.uint16, stochastic=True)
def store_bfloat16(
    code: Array, aux: Array | None, x: Array, words: Array | None = None, shift: int = 0
) -> None:
    """To nearest, ties to even; or up with the probability of the fraction that is cut off.

    A NaN stays one, quiet, with its sign.  Stochastic rounding leaves every finite float32 finite.
    """
    x = _to_odd(x) if words is None else _cast(x, np.float32)
    u = _bits(x)
    a, sign = u & 0x7FFFFFFF, u >> 31
    if words is None:
        q = a + 0x7FFF + (a >> 16 & 1)
    else:
        q = np.maximum(np.minimum(a + _random16(words, shift), INF - 1), a)
    q = np.where(np.isnan(x), a | 0x400000, q)
    code[...] = q >> 16 | sign << 15


def load_float16(code: Array, aux: Array | None, dtype: DTypeLike) -> Array:
    """IEEE's binary16; a NaN keeps sign and payload."""
    h = code.astype(np.int64)
    m, sign = h & 0x7FFF, h >> 15
    normal = (m << 13) + np.where(m < 0x7C00, 112 << 23, 224 << 23)
    subnormal = _bits(m.astype(np.float32) * np.float32(2.0**-24))
    return _cast(_float(np.where(m < 0x400, subnormal, normal) | sign << 31), dtype)


@_enter(np.uint16, stochastic=True)
def store_float16(
    code: Array, aux: Array | None, x: Array, words: Array | None = None, shift: int = 0
) -> None:
    """To nearest, ties to even; or up with the probability of the fraction, to 1 in 8192.

    A NaN stays one, quiet, with its sign and upper payload.  Stochastic rounding leaves finite what
    is below 65536; from there on it is inf, as it is to nearest from 65520 on.
    """
    x = _to_odd(x) if words is None else _cast(x, np.float32)
    u = _bits(x)
    magnitude, sign = u & 0x7FFFFFFF, u >> 31
    zero, normal, end = 112 << 23, 113 << 23, 143 << 23  # 2^-15, 2^-14, 2^16
    a = np.minimum(magnitude, end)
    if words is None:
        b = a - zero
        subnormal = _bits(_float(a) + np.float32(0.5)) - (126 << 23)
        q = np.where(a < normal, subnormal, (b + 0xFFF + (b >> 13 & 1)) >> 13)
    else:
        # A subnormal's value in fixed point; what is normal overtakes it by its logarithm.
        linear = np.minimum(_float(a) * np.float32(2.0**37), np.float32(2.0**23)).astype(np.int64)
        b = np.maximum(a - zero, linear)
        q = np.maximum(np.minimum(b + (_random16(words, shift) >> 3), end - zero - 1), b) >> 13
    q = np.where(np.isnan(x), 0x7E00 | (magnitude >> 13 & 0x3FF), q)
    code[...] = q | sign << 15


# ----------------------------------------------------------- float32 as bfloat16 and a remainder


def load_split(code: Array, aux: Array | None, dtype: DTypeLike) -> Array:
    """The float32 of which `code` is the nearest bfloat16 and `aux` the signed remainder.

    A zero in `code` is zero or below the least bfloat16, whatever its remainder.
    """
    assert aux is not None
    h = code.astype(np.int64)
    a = np.maximum(((h & 0x7FFF) << 16) + aux.astype(np.int64), 0)
    return _cast(_float(a | (h >> 15) << 31), dtype)


@_enter(np.uint16, np.int16)
def store_split(
    code: Array, aux: Array | None, x: Array, words: Array | None = None, shift: int = 0
) -> None:
    """The nearest bfloat16, ties away from zero, and what is left of the bits: nothing is lost.

    A NaN becomes the quiet NaN of its sign without a remainder.

    Examples
    --------
    >>> code, rest = CODECS["split"].new(1)
    >>> store_split(code, rest, np.array([0.1], np.float32))
    >>> load_bfloat16(code, None, np.float32), load_split(code, rest, np.float32)
    (array([0.10009766], dtype=float32), array([0.1], dtype=float32))
    """
    assert aux is not None
    x = _cast(x, np.float32)
    u = _bits(x)
    u = np.where(np.isnan(x), (u & 0x80000000) | 0x7FC00000, u)
    code[...] = (u + 0x8000) >> 16 & 0xFFFF
    aux[...] = ((u + 0x8000) & 0xFFFF) - 0x8000


# -------------------------------------------------------------------- 8 bits, one scale per tile

E5M2_LEAST, E5M2_MOST, E5M2_BINADES = 32, 223, 31
UE6M2_LEAST, UE6M2_MOST, UE6M2_BINADES = 1, 191, 63


def _each(scale: Array, n: int) -> Array:
    """The scale of each of `n` elements, of one for each tile."""
    return np.repeat(scale.astype(np.int64), TILE)[:n]


def _scales(a: Array, binades: int, least: int) -> Array:
    """The scale of each tile of magnitudes: the largest is in the topmost binade.

    It is in the one below if it could be rounded beyond the largest code.
    """
    largest = np.maximum.reduceat(a, np.arange(0, a.size, TILE))
    scale = np.maximum(((largest + 0x1FFFFF) >> 23) - binades, least)
    return np.where(largest > INF - 0x200000, NAN_SCALE, scale)


def _unit(words: Array | None, shift: int) -> Array | int:
    """What is added before 21 bits are cut off: a half, or 21 bits of a word, lower or upper."""
    if words is None:
        return 0x100000
    return words.astype(np.int64) >> 11 if shift else words.astype(np.int64) & 0x1FFFFF


def shuffled(n: int) -> Array:
    """Which of `n` elements each byte of 8-bit codes is: shape (n,), of ints.

    Byte 4j + k of a tile of m elements is element k·q + j, where q = m // 4: loops over words of
    32 bits then meet each quarter's elements side by side.  Up to three left over stand at the end.

    Examples
    --------
    >>> shuffled(10)
    array([0, 2, 4, 6, 1, 3, 5, 7, 8, 9])
    """
    order = np.arange(n)
    for start in range(0, n, TILE):
        tile = order[start : start + TILE]
        quarters = tile[: tile.size // 4 * 4]
        quarters[...] = quarters.reshape(4, -1).T.ravel()
    return order


def load_e5m2(code: Array, aux: Array | None, dtype: DTypeLike) -> Array:
    """Signed: (1 + m/4)·2^e, or (m/4)·2 where e = 0, times 2^(scale − 127); NaN at scale 255.

    Examples
    --------
    >>> code, scale = np.array([1, 0x81, 4, 127], np.uint8), np.array([127], np.uint8)
    >>> load_e5m2(code, scale, np.float64)
    array([ 5.00000000e-01, -5.00000000e-01,  2.00000000e+00,  3.75809638e+09])
    """
    assert aux is not None
    scale, c = _each(aux, code.size), np.empty(code.size, np.int64)
    c[shuffled(code.size)] = code
    zero = np.clip(scale, E5M2_LEAST, E5M2_MOST) << 23
    m, sign = c & 0x7F, c >> 7
    subnormal = _bits(m.astype(np.float32) * _float(zero - (1 << 23)))
    x = _float(np.where(m < 4, subnormal, (m << 21) + zero) | sign << 31)
    return _cast(np.where(scale > E5M2_MOST, np.float32(np.nan), x), dtype)


@_enter(np.uint8, np.uint8, TILE, stochastic=True)
def store_e5m2(
    code: Array, aux: Array | None, x: Array, words: Array | None = None, shift: int = 0
) -> None:
    """To nearest, ties away from zero, or stochastic.  An inf or NaN makes its whole tile NaN."""
    assert aux is not None
    if x.size == 0:
        return
    u = _bits(_cast(x, np.float32))
    a, sign = u & 0x7FFFFFFF, u >> 31
    aux[...] = _scales(a, E5M2_BINADES, E5M2_LEAST)
    scale = _each(aux, x.size)
    zero = np.minimum(scale, E5M2_MOST) << 23
    unit = _unit(words, shift)
    # The bits of a sum with 2 are fixed point, 2^21 for each step between subnormals, up to
    # where the number's own bits, its logarithm, overtake them: at the first normal code.
    fixed = np.array([2.0], np.float32)
    with np.errstate(all="ignore"):
        linear = _float(a) * _float((254 << 23) - zero) + fixed
    q = (np.maximum(a - zero, _bits(linear) - _bits(fixed)) + unit) >> 21
    code[...] = np.where(scale == NAN_SCALE, 0, q | sign << 7)[shuffled(x.size)]


def load_ue6m2(code: Array, aux: Array | None, dtype: DTypeLike) -> Array:
    """Unsigned: (1 + m/4)·2^(e + scale − 127), but 0 for code 0; NaN at scale 255.

    Examples
    --------
    >>> code, scale = np.array([0, 1, 4, 255], np.uint8), np.array([127], np.uint8)
    >>> load_ue6m2(code, scale, np.float64)
    array([0.00000000e+00, 1.25000000e+00, 2.00000000e+00, 1.61409011e+19])
    """
    assert aux is not None
    scale, c = _each(aux, code.size), np.empty(code.size, np.int64)
    c[shuffled(code.size)] = code
    zero = np.clip(scale, UE6M2_LEAST, UE6M2_MOST) << 23
    x = _float(np.where(c == 0, 0, (c << 21) + zero))
    return _cast(np.where(scale > UE6M2_MOST, np.float32(np.nan), x), dtype)


@_enter(np.uint8, np.uint8, TILE, stochastic=True)
def store_ue6m2(
    code: Array, aux: Array | None, x: Array, words: Array | None = None, shift: int = 0
) -> None:
    """To nearest, ties up, or stochastic; a positive normal float32 never becomes zero.

    An inf, a NaN or a negative number makes its whole tile NaN.
    """
    assert aux is not None
    if x.size == 0:
        return
    x = _cast(x, np.float32)
    a = np.where(x < 0, 0x7FFFFFFF, _bits(x) & 0x7FFFFFFF)
    aux[...] = _scales(a, UE6M2_BINADES, UE6M2_LEAST)
    scale = _each(aux, x.size)
    unit = _unit(words, shift)
    q = (np.maximum(a - (scale << 23), np.minimum(a, 1 << 21)) + unit) >> 21
    code[...] = np.where(scale == NAN_SCALE, 0, q)[shuffled(x.size)]
