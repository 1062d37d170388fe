"""A door to the codec loops of a backend: their addresses, called through ctypes."""

from __future__ import annotations

import ctypes
from importlib import import_module

import numpy as np

from fastgd.kernels.spec.codecs import CODECS, TILE

POINTER, SIZE, INT, U64 = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_uint64
LOAD = ctypes.CFUNCTYPE(None, POINTER, POINTER, POINTER, SIZE)
STORE = ctypes.CFUNCTYPE(None, POINTER, POINTER, POINTER, SIZE, POINTER, INT)
WORDS = ctypes.CFUNCTYPE(None, POINTER, POINTER, U64, SIZE, SIZE)
TABLE = ctypes.CFUNCTYPE(None, POINTER, U64, SIZE, SIZE)
KEY = ctypes.CFUNCTYPE(U64, U64, U64, U64)


class Compiled:
    """The codecs of a backend with the signatures of their specification."""

    def __init__(self, backend):
        self.module = import_module(f"fastgd.kernels._{backend}")

    def load(self, name, code, beside, dtype):
        codec = CODECS[name]
        assert code.dtype == codec.code
        out = np.empty(code.size, dtype)
        loop = LOAD(self.module.CODECS[name][0][_fuse(out)])
        for tile in _tiles(codec, code.size):
            loop(_at(out, tile), _at(code, tile), _at(beside, tile, codec.per), _size(tile))
        return out

    def store(self, name, code, beside, x, words=None, shift=0):
        codec = CODECS[name]
        assert code.dtype == codec.code
        assert code.size == x.size
        assert words is None or words.dtype == np.uint32
        loop = STORE(self.module.CODECS[name][2 if words is not None else 1][_fuse(x)])
        for tile in _tiles(codec, x.size):
            loop(_at(code, tile), _at(beside, tile, codec.per), _at(x, tile), _size(tile),
                 _at(words, tile), shift)  # fmt: skip

    def random_words(self, key, start, n):
        words, table = np.empty(n, np.uint32), np.empty(TILE, np.uint32)
        TABLE(self.module.RANDOM[1])(table.ctypes.data, key, start, n)
        WORDS(self.module.RANDOM[0])(words.ctypes.data, table.ctypes.data, key, start, n)
        return words

    def random_key(self, seed, step, tensor):
        return KEY(self.module.RANDOM[2])(seed, step, tensor)


def _fuse(x):
    return [np.dtype(np.float32), np.dtype(np.float64)].index(x.dtype)


def _tiles(codec, n):
    """A tile at a time where there are scales, else everything at once."""
    size = TILE if codec.per == TILE else max(n, 1)
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def _size(tile):
    return tile.stop - tile.start


def _at(array, tile, per=1):
    """The address of a tile's elements, or of what stands beside them."""
    return None if array is None else array.ctypes.data + tile.start // per * array.itemsize


def stored(store, name, x, words=None, shift=0):
    """The arrays that a store fills, which hold something else before."""
    code, beside = CODECS[name].new(x.size)
    code[...] = 99
    if beside is not None:
        beside[...] = 99
    store(code, beside, x, words, shift)
    return [code] if beside is None else [code, beside]
