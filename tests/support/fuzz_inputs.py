"""Arguments drawn from bytes: arrays, trees, hyper-parameters, and what nobody expects there."""

from __future__ import annotations

import array
import copy
import datetime
import decimal
import fractions
from collections import OrderedDict, UserDict, UserList
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np


class Theirs(Exception):  # noqa: N818
    """What odd arguments raise themselves, and everybody lets through."""


def raising(*_, **__):
    raise Theirs


class Refuses:
    """Raises whatever is asked of it."""

    __float__ = __int__ = __index__ = __array__ = __iter__ = __len__ = __getitem__ = raising
    __eq__ = __bool__ = __repr__ = __call__ = raising
    __hash__ = object.__hash__


class Pretends(Mapping):
    """Lists keys that it hasn't got."""

    def __iter__(self):
        return iter(["params", "W"])

    def __len__(self):
        return 1

    def __getitem__(self, key):
        raise KeyError(key)


class Fails(Mapping):
    """Fails when it is read."""

    __iter__ = __len__ = __getitem__ = raising


class Lends:
    """Says of its memory what it was told to."""

    def __init__(self, **interface):
        self.__array_interface__ = interface


class Dlpack:
    """Something else than a capsule."""

    def __dlpack__(self, **_):
        return 3

    def __dlpack_device__(self):
        return self


class Number(float):
    """A number, as some libraries have them."""

    def __repr__(self):
        raise Theirs


class Text(str):
    """A string that says something else."""

    def __str__(self):
        return "lr"

    __repr__ = raising


def endless(kind):
    tree = kind()
    if isinstance(tree, dict):
        tree["a"] = tree
    else:
        tree.append(tree)
    return tree


def deep(n):
    tree = np.zeros(1)
    for _ in range(n):
        tree = [tree]
    return tree


# Made anew each time, as callers may change them.
ODD = [
    lambda: None, lambda: True, lambda: False, lambda: 0, lambda: 1, lambda: -1, lambda: 2**31, lambda: 2**63,
    lambda: 2**64, lambda: 10**400, lambda: -(10**5000), lambda: 0.0, lambda: -0.0, lambda: 0.5, lambda: -0.5,
    lambda: 1.0, lambda: 1e-320, lambda: 1e-40, lambda: 1e39, lambda: 1e308, lambda: float("nan"), lambda: float("inf"),
    lambda: float("-inf"), lambda: 1j, lambda: "", lambda: "0.1", lambda: "lr", lambda: "params", lambda: "é\ud800\0",
    lambda: "x" * 5000, lambda: b"raw", lambda: bytearray(8), lambda: (), lambda: [], lambda: {}, lambda: set(),
    lambda: frozenset({1}), lambda: (0.9, 0.999), lambda: [0.9, 0.999], lambda: (0.9,), lambda: (0.9, "x"),
    lambda: (2, 3), lambda: (-1, 2), lambda: (2**40, 2**40), lambda: range(3), lambda: iter([1.0, 2.0]),
    lambda: {"a": 1}, lambda: {1: {2: 3}}, lambda: {"params": []}, lambda: [{"params": None}], lambda: object(),
    lambda: int, lambda: np.ndarray, lambda: np.float32, lambda: Ellipsis, lambda: NotImplemented, lambda: slice(3),
    lambda: decimal.Decimal("0.1"), lambda: decimal.Decimal("sNaN"), lambda: fractions.Fraction(1, 3),
    lambda: datetime.timedelta(1), lambda: np.float32(0.5), lambda: np.float64("nan"), lambda: np.float16(2),
    lambda: np.longdouble(1) / 3, lambda: np.int64(3), lambda: np.uint8(1), lambda: np.bool(True), lambda: np.str_("a"),
    lambda: np.datetime64("NaT"), lambda: np.array(0.5), lambda: np.array([0.9, 0.99]), lambda: np.array([True]),
    lambda: np.array(None), lambda: np.array(["a"]), lambda: np.zeros((0, 3)), lambda: np.zeros(2, "i4,f4"),
    lambda: np.zeros((1,) * 64), lambda: np.ma.zeros(3), lambda: np.rec.array([(1, 2.0)]), lambda: np.zeros(3, "S4"), lambda: np.zeros(3, "V8"),
    lambda: array.array("f", [1, 2, 3]), lambda: array.array("i", [1]), lambda: memoryview(b"abcd"),
    lambda: memoryview(bytearray(24)).cast("d"), lambda: memoryview(bytearray(24)).cast("f")[::2],
    lambda: Refuses(), lambda: Pretends(), lambda: Fails(), lambda: UserDict(a=1), lambda: UserList([1]),
    lambda: OrderedDict(a=np.zeros(2)), lambda: MappingProxyType({"a": np.zeros(2)}), lambda: Number(0.5), lambda: Text("mean"),
    lambda: Lends(), lambda: Lends(shape=(2,), typestr="<f4", data=None), lambda: Lends(shape=(2,), typestr="<f4", data=b"1234"),
    lambda: Lends(shape=(-1,), typestr="O", data=(0, False)), lambda: Lends(shape=2, typestr=3, data=(1, 2, 3)),
    lambda: Lends(shape=(2,), typestr="<f8", data=bytearray(16), strides=(3,)),
    lambda: Lends(shape=(2,), typestr="", data=bytearray(16), offset=-(2**70)), lambda: Dlpack(),
    lambda: (lambda step: 0.1), lambda: (lambda step: "x"), lambda: (lambda step: -1.0), lambda: (lambda step: float("nan")),
    lambda: (lambda step: 10**400), lambda: raising, lambda: (lambda: 0.1), lambda: (lambda step: (0.9, 0.99)),
    lambda: (lambda step: np.zeros(2)), lambda: (0.9, lambda step: 0.5), lambda: (lambda step: None, 0.9), lambda: print,
    lambda: endless(list), lambda: endless(dict), lambda: deep(50), lambda: deep(300), lambda: deep(5000), lambda: Exception, lambda: type,
]  # fmt: skip

DTYPES = ["f4", "f8", "f4", "f8", "f2", "u2", ">f4", ">f8", "i4", "u1", "?", "c8", "c16", "O", "U2", "S4", "V4", "g",
          "i4,f4", "M8[s]", "m8[s]"]  # fmt: skip
SHAPES = [(3,), (), (2, 3), (0,), (1,), (300,), (2, 0, 3), (1, 1, 1, 1), (5000,)]


class Draws:
    """Choices by bytes; when they have run out, each is the first one.

    Attributes
    ----------
    arrays : list of ndarray
        All arrays that were made, whose bytes nobody may change who fails.
    """

    def __init__(self, data):
        self.data, self.at = data, 0
        self.arrays = []
        self.text = None

    def below(self, n):
        if self.at >= len(self.data) or n < 2:
            return 0
        self.at += 1
        return self.data[self.at - 1] % n

    def one_of(self, values):
        return values[self.below(len(values))]

    def flip(self, n):
        """True once in n times."""
        return self.below(n) == n - 1

    def odd(self):
        value = self.one_of(ODD)()
        if isinstance(value, np.ndarray):
            self.arrays.append(value)
        return value

    def perhaps_odd(self, value, n=6):
        return self.odd() if self.flip(n) else value

    # -------------------------------------------------------------------------------- arrays

    def array(self, shape, dtype, order="C"):
        a = np.empty(shape, dtype, order)
        bits = a.reshape(-1, order="A").view(np.uint8) if a.dtype.kind == "f" else None
        if bits is None:
            a = np.zeros(shape, dtype, order)
        else:
            a[...] = self.one_of([1.0, 0.0, -2.5, 1e-40, 3e4, np.nan, np.inf])
        self.arrays.append(a)
        return a

    def leaf(self, dtype=None, shape=None):
        """An array, mostly a usual one."""
        if self.flip(8):
            return self.odd()
        dtype = dtype or (self.one_of(DTYPES) if self.flip(6) else self.one_of(["f4", "f8"]))
        shape = self.one_of(SHAPES) if shape is None or self.flip(12) else shape
        a = self.array(shape, dtype, self.one_of("CCCF"))
        kind = self.below(24)
        if kind == 23:
            a.flags.writeable = False
        elif kind == 22 and a.ndim:
            a = np.concatenate([a, a])[::2]
        elif kind == 21:
            a = np.broadcast_to(a, (2, *a.shape))
        elif kind == 20 and a.dtype.itemsize > 1 and not a.dtype.hasobject:
            raw = np.zeros(a.nbytes + 1, np.uint8)
            a = raw[1:].view(a.dtype).reshape(a.shape)
        elif kind == 19 and self.arrays:
            a = self.one_of(self.arrays)  # again
        elif kind == 18 and a.ndim == 1:
            a = a[1:]  # overlaps what comes again
        elif kind == 17 and not a.dtype.hasobject and a.ndim == 1 and a.size:
            return memoryview(a) if a.dtype.kind == "f" else a
        self.arrays.append(a)
        return a

    def tree(self, depth=0):
        kind = self.below(8)
        if kind < 3 + depth:
            return self.leaf()
        count = 1 + self.below(3)
        if kind in (3, 4):
            return [self.tree(depth + 2) for _ in range(count)]
        if kind == 5:
            return tuple(self.tree(depth + 2) for _ in range(count))
        keys = ["W", "b", "a.b", 0, 1, (1, 2), None, "params", "é\ud800", 0.5, ""]
        return {self.one_of(keys): self.tree(depth + 2) for _ in range(count)}

    def like(self, tree, dtype=None, form=None, depth=0, rows=None):
        """Arrays as in a tree, some of them by rows if asked; not always."""
        if depth > 20:
            return None
        if depth and self.flip(24):
            return self.one_of([None, self.leaf, self.tree, self.odd]) and self.tree()
        if isinstance(tree, dict):
            tree = tree["params"] if "params" in tree and depth < 2 else tree
        if isinstance(tree, dict):
            return {
                key: self.like(child, dtype, None, depth + 1, rows) for key, child in tree.items()
            }
        if isinstance(tree, (list, tuple)):
            found = [self.like(child, dtype, None, depth + 1, rows) for child in tree]
            more = len(form) - len(found) if isinstance(form, list) else 0
            return found + [None] * more
        if isinstance(tree, np.ndarray):
            if rows is not None and tree.ndim > 1 and self.flip(2):
                return rows(tree)
            if self.flip(6):
                return None if self.flip(2) else self.leaf(None, tree.shape)
            kind = dtype or (tree.dtype if tree.dtype.kind == "f" else "f4")
            order = "F" if tree.flags.f_contiguous and not tree.flags.c_contiguous else "C"
            return self.array(tree.shape, kind, order)
        return self.perhaps_odd(None, 2)

    def tamper(self, tree):
        """Change one place in nested dicts and lists."""
        spots = list(places(tree))
        if not spots:
            return
        holder, key = self.one_of(spots)
        kind = self.below(5)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            holder[key] = self.leaf()
        elif kind == 2 and isinstance(holder, dict):
            holder[self.one_of(["step", "lr", "extra", 7, None, "params"])] = self.odd()
        elif kind == 3:
            holder[key] = copy.copy(self.one_of(spots)[0])
        else:
            holder[key] = self.odd()


def places(tree, depth=0):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield tree, key
        if isinstance(value, (dict, list)) and depth < 9:
            yield from places(value, depth + 1)
