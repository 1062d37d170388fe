"""Arrays stored by a codec, whatever their shape."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastgd.kernels.spec.codecs import CODECS

Array = NDArray[Any]


class CodedArray(NamedTuple):
    """An array of any shape, contiguous in some order, and the codec it is stored by.

    ``code`` holds the numbers or their codes, ``aux`` their scales or remainders, in the order of
    memory; ``stochastic`` says how stores round; ``origin`` is the number of elements before this
    array in the one that it is a shard of, from whose start random words are counted.
    """

    code: Array
    aux: Array | None
    codec: str
    stochastic: bool = False
    origin: int = 0

    @property
    def order(self) -> Literal["C", "F"]:
        """The order of memory."""
        return "C" if self.code.flags.c_contiguous else "F"

    def raw(self) -> Array:
        """The codes as a codec takes them: in the order of memory, in its own dtype."""
        return self.code.reshape(-1, order=self.order).view(CODECS[self.codec].code)

    def load(self, dtype: DTypeLike) -> Array:
        """The numbers in the order of memory; a view if they are stored in that dtype."""
        if self.codec == np.dtype(dtype).name:
            return self.raw()
        return CODECS[self.codec].load(self.raw(), self.aux, dtype)

    def store(self, x: Array, words: Array | None = None, shift: int = 0) -> None:
        """Store numbers that are in the order of memory."""
        code = self.raw()
        if not np.may_share_memory(code, x):
            CODECS[self.codec].store(code, self.aux, x, words, shift)


@lru_cache(64)  # NumPy puts a dtype's name together anew each time
def codec_of(dtype: np.dtype[Any]) -> str | None:
    """The codec of an array of some dtype, or None; uint16 counts as the bits of bfloat16."""
    if dtype.kind == "f" and dtype.name in CODECS:
        return dtype.name
    return "bfloat16" if dtype.name in {"bfloat16", "uint16"} else None


@lru_cache(64)
def computed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that parameters of a dtype are computed with."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def as_coded(a: Array | CodedArray) -> CodedArray:
    """An array with the codec of its dtype."""
    if isinstance(a, CodedArray):
        return a
    codec = codec_of(a.dtype)
    assert codec is not None
    return CodedArray(a, None, codec)


def random_bit_offsets(arrays: Sequence[CodedArray]) -> list[int]:
    """Which random bits each array's stores take, counted from the first word's; -1 for none."""
    taken = iter(range(0, 16 * len(arrays), 16))
    return [next(taken) if a.stochastic else -1 for a in arrays]
