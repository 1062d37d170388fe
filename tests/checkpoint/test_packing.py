"""Packing: every value comes back as it was, and what was not packed is refused."""

from __future__ import annotations

import json
import math
import sys

import ml_dtypes
import numpy as np
import pytest
from support.helpers import same_bits

from fastgd.checkpoint.packing import CODES, FOREIGN, checksum, pack, unpack


def identical(a, b):
    """Whether two values are the same in type, value and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, np.generic):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            identical(k, j) and identical(v, w)
            for (k, v), (j, w) in zip(a.items(), b.items(), strict=True)
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(identical, a, b))
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or a.hex() == b.hex()
    return a == b


def round_trip(value):
    arrays = {}
    packed = pack(value, ("value",), arrays)
    for a, _, text, gap in arrays.values():
        assert text is packed
        text[gap] = checksum(a.data)
    left = {name: stored[0].copy() for name, stored in arrays.items()}

    def take(name, dtype, shape):
        a = left.pop(name)
        assert (a.dtype, a.shape) == (np.dtype(dtype), shape)
        assert a.flags.c_contiguous
        return a, checksum(a.data)

    result = unpack(json.loads("".join(packed)), take)
    assert not left
    return result


VALUES = {
    "none": None,
    "bools": [True, False],
    "ints": [0, -1, 2**53 + 1, 2**128 - 1, -(10**300)],
    "floats": [0.0, -0.0, 0.1, 1.0, 1e22, 5e-324, sys.float_info.max, math.inf, -math.inf, math.nan],
    "strings": ["", "é", "\0\n\"\\", "\U0001f600", "\ud800", "$array", "nan"],
    "lists and tuples": [[], (), [()], ((1,), [2, (3, [4])])],
    "dicts": {"a": {"b": {}}, "": 1, "a.b": 2, "é.\ud800": 3},
    "keys": {0: "int", "0": "str", 1.5: "float", None: "none", (1, "a"): "tuple", -1: {1: {2: 3}}},
    "a key twice by value": [{True: 1}, {1: 1}, {1.0: 1}],
    "our own words": {"$tuple": [1], "$dict": [], "$float": "nan", "$array": "x", "$x": {"$y": 1}},
    "scalars": [np.float64(0.1), np.float32(0.1), np.int64(3), np.bool(True), np.uint8(255)],
    "dtypes": [np.arange(6).astype(dtype) for dtype in CODES],
    "shapes": [np.zeros(()), np.zeros((0, 3)), np.zeros((2, 0, 5), np.int8), np.ones((1, 1, 1, 1))],
    "bits": np.array([0x7FC00001, 0x7F800001, 0xFF800000, 0x80000000, 1], "u4").view("f4"),
    "names alike": {"a": {"b": np.ones(1)}, "a.b": np.ones(2), "a.b#2": np.ones(3)},
    "names no name": {"\ud800": np.ones(1), 1: np.ones(2), "1": np.ones(3), "": np.ones(4)},
    "a generator's state": np.random.PCG64(5).state,
    "another's": np.random.MT19937(5).state,
}  # fmt: skip


@pytest.mark.parametrize("what", VALUES)
def test_round_trip(what):
    assert identical(round_trip(VALUES[what]), VALUES[what])


def test_random_nesting(rng):
    def draw(depth):
        kind = rng.integers(8 if depth else 5)
        if kind == 0:
            return int(rng.integers(-(2**62), 2**62))
        if kind == 1:
            return float(np.uint64(rng.integers(2**63)).view(np.float64))
        if kind == 2:
            return "".join(map(chr, rng.integers(1, 0xD800, 4)))
        if kind == 3:
            return [None, True, False][rng.integers(3)]
        if kind == 4:
            dtype = list(CODES)[rng.integers(len(CODES))]
            return rng.integers(0, 2, rng.integers(0, 4, rng.integers(4))).astype(dtype)
        inner = [draw(depth - 1) for _ in range(rng.integers(4))]
        keys = [draw(0) for _ in inner]
        if kind == 7:
            return {key: v for key, v in zip(keys, inner, strict=True) if key.__hash__}
        return inner if kind == 5 else tuple(inner)

    for _ in range(2000):
        value = draw(4)
        assert identical(round_trip(value), value)


@pytest.mark.parametrize(
    "a",
    [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(12.0).reshape(3, 4)[::2, ::-1],
        np.broadcast_to(np.float32(2), (3, 4)),
        np.arange(5, dtype=">f8"),
        np.arange(5, dtype=">u2")[::2],
    ],
    ids=["F order", "strides", "broadcast", "big endian", "big endian strides"],
)
def test_layout_and_byte_order_do_not_matter(a):
    back = round_trip(a)
    assert np.array_equal(back, a)
    assert back.dtype == a.dtype.newbyteorder("=")


def test_read_only_arrays():
    a = np.arange(3.0)
    a.flags.writeable = False
    assert same_bits(round_trip(a), a)


def test_arrays_are_not_copied_without_need():
    a, arrays = np.arange(3.0), {}
    pack({"a": a, "b": a[::-1]}, ("x",), arrays)
    assert list(arrays) == ["x.a", "x.b"]
    assert arrays["x.a"][0] is a
    assert arrays["x.b"][0].flags.c_contiguous


@pytest.mark.parametrize("dtype", FOREIGN)
def test_dtypes_of_ml_dtypes_come_back_where_it_is(dtype, monkeypatch):
    a = np.array([[0.5, -2.0, np.nan], [0.0, 1.0, -0.0]]).astype(getattr(ml_dtypes, dtype))
    assert identical(round_trip([a, a.T, a[0, 0]]), [a, a.T, a[0, 0]])
    arrays = {}
    text = pack(a, ("x",), arrays)
    stored = arrays["x"][0]
    assert stored.dtype == FOREIGN[dtype]
    text[arrays["x"][3]] = checksum(stored.data)
    node = json.loads("".join(text))
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ValueError, match=f"^x: dtype {dtype} needs the package ml_dtypes"):
        unpack(node, lambda *args: (stored, checksum(stored.data)))


ENDLESS: list[object] = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"a": {"b": {1, 2}}}, TypeError, r'^x\["a.b"\]: expected numbers.*found set \{1, 2\}'),
        ([b"bytes"], TypeError, r"^x\[0\]: .*found bytes"),
        (1j, TypeError, "^x: .*found complex"),
        (print, TypeError, "^x: .*found builtin_function"),
        (object(), TypeError, "^x: .*found object"),
        ({"a": np.zeros(2, complex)}, TypeError, r'^x\["a"\]: expected an array of .*complex128'),
        (np.array([None]), TypeError, "^x: expected an array of .*found dtype object"),
        (np.array(["s"]), TypeError, "^x: expected an array of .*found dtype str"),
        (np.zeros(2, "M8[s]"), TypeError, "^x: expected an array of .*found dtype datetime64"),
        (np.zeros(2, "i4,f4"), TypeError, "^x: expected an array of .*found dtype void"),
        (np.ma.zeros(2), TypeError, "^x: expected an array of .*found a masked array"),
        ({b"k": 1}, TypeError, r'^x\["key"\]: .*found bytes'),
        (ENDLESS, ValueError, "^x: nested without end"),
    ],
)
def test_what_cannot_be_packed(value, error, message):
    with pytest.raises(error, match=message):
        pack(value, ("x",), {})


NODE = {"$array": "x", "dtype": "float32", "shape": [2], "crc32": "4128908e"}


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        ({"$new": 1}, "expected a value that was packed"),
        ({"$tuple": [], "more": 1}, "expected a value that was packed"),
        ({"$tuple": 3}, "expected a value that was packed"),
        ({"$float": "1.5"}, "expected a value that was packed"),
        ({"$float": []}, "expected a value that was packed"),
        ({"$dict": [[1]]}, "expected a key and a value"),
        ({"$dict": [3]}, "expected a key and a value"),
        ({"$dict": {}}, "expected a value that was packed"),
        ({"$dict": [[[], 1]]}, "expected a key of a dict"),
        ({"$dict": [[{"$tuple": [[]]}, 1]]}, "expected a key of a dict"),
        ({"$scalar": 3}, "expected a value that was packed"),
        ({"$scalar": NODE}, "expected a value that was packed"),
        ({**NODE, "more": 1}, "expected an array's description"),
        ({**NODE, "$array": 3}, "expected an array's description"),
        ({**NODE, "shape": [2.0]}, "expected an array's description"),
        ({**NODE, "shape": [True]}, "expected an array's description"),
        ({**NODE, "crc32": 0}, "expected an array's description"),
        ({**NODE, "dtype": "object"}, "^x: expected a dtype of bool"),
        ({**NODE, "crc32": "00000001"}, "^x: its bits have changed"),
    ],
)
def test_what_was_not_packed(packed, message):
    with pytest.raises(ValueError, match=message):
        unpack([packed], lambda name, dtype, shape: (np.zeros(shape, dtype), NODE["crc32"]))
