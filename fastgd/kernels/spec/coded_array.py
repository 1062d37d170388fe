"""Arrays as they are kept, whatever their shape and codec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastgd.kernels.spec.codecs import CODECS

Array = NDArray[Any]


class Stored(NamedTuple):
    """An array of any shape, contiguous in some order, and how it is kept.

    ``code`` holds the numbers or their codes, ``beside`` what stands beside them, in the order of
    memory; ``stochastic`` says how stores round; ``origin`` is the number of elements before this
    array in the one that it is a piece of, from whose start random words are counted.
    """

    code: Array
    beside: Array | None
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
        """The numbers in the order of memory; where they are if they are of that type."""
        if self.codec == np.dtype(dtype).name:
            return self.raw()
        return CODECS[self.codec].load(self.raw(), self.beside, dtype)

    def store(self, x: Array, words: Array | None = None, shift: int = 0) -> None:
        """Keep numbers in the order of memory."""
        code = self.raw()
        if not np.may_share_memory(code, x):
            CODECS[self.codec].store(code, self.beside, x, words, shift)


def codec_of(dtype: np.dtype[Any]) -> str | None:
    """The codec of an array of some dtype, or None; uint16 counts as the bits of bfloat16."""
    if dtype.kind == "f" and dtype.name in CODECS:
        return dtype.name
    return "bfloat16" if dtype.name in {"bfloat16", "uint16"} else None


def computed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that parameters of a dtype are computed with."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def as_stored(a: Array | Stored) -> Stored:
    """An array as it is kept by its dtype."""
    if isinstance(a, Stored):
        return a
    codec = codec_of(a.dtype)
    assert codec is not None
    return Stored(a, None, codec)


def shifts(arrays: Sequence[Stored]) -> list[int]:
    """Which random bits each array's stores take, counted from the first word's; -1 for none."""
    taken = iter(range(0, 16 * len(arrays), 16))
    return [next(taken) if a.stochastic else -1 for a in arrays]
