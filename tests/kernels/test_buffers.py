"""Memory of others: parameters in it are updated in place, and it can't be taken away meanwhile."""

from __future__ import annotations

import ctypes
import gc
import mmap
import weakref
from array import array
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest
from support.helpers import run_python

import fastgd
from fastgd.kernels.memory import buffers

F32 = np.float32
VALUES = np.arange(1, 5, dtype=F32)
G = np.full(4, 0.5, F32)
STEPPED = [0.5, 1.5, 2.5, 3.5]  # VALUES after a step of SGD along G with lr=1


class Interface:
    """Exports memory by `__array_interface__` alone; `...` leaves a key out."""

    def __init__(self, a, **changes):
        self.a = a
        whole = {**a.__array_interface__, **changes}
        self.__array_interface__ = {key: v for key, v in whole.items() if v is not ...}


class DLPack:
    """Exports memory by DLPack alone."""

    device = (1, 0)

    def __init__(self, a):
        self.a = a

    def __dlpack__(self, **options):
        return self.a.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


def of_array():
    x = array("f", VALUES)
    return x, lambda: list(x)


def of_memoryview():
    x = memoryview(bytearray(VALUES.tobytes())).cast("f")
    return x, lambda: list(x)


def of_mmap():
    m = mmap.mmap(-1, VALUES.nbytes)
    m[:] = VALUES.tobytes()
    return memoryview(m).cast("f"), lambda: np.frombuffer(m[:], F32).tolist()


def of_ctypes():
    x = (ctypes.c_float * 4)(*VALUES)
    return x, lambda: list(x)


def of_dlpack():
    x = DLPack(VALUES.copy())
    return x, lambda: x.a.tolist()


def of_interface():
    x = Interface(VALUES.copy())
    return x, lambda: x.a.tolist()


def of_interface_with_strides():
    x = Interface(VALUES.copy(), strides=(np.int64(4),))
    return x, lambda: x.a.tolist()


def of_interface_with_buffer():
    memory = bytearray(b"1234" + VALUES.tobytes())
    x = Interface(VALUES, data=memory, offset=4)
    return x, lambda: np.frombuffer(memory, F32, offset=4).tolist()


def of_arrow_buffer():
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    buffer = pyarrow.allocate_buffer(VALUES.nbytes)
    x = np.frombuffer(buffer, F32)
    x[...] = VALUES
    return x, lambda: np.frombuffer(buffer.to_pybytes(), F32).tolist()


def of_arrow_tensor():
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    tensor = pyarrow.Tensor.from_numpy(VALUES.copy())
    return tensor, lambda: tensor.to_numpy().tolist()


MEMORY = [of_array, of_memoryview, of_mmap, of_ctypes, of_dlpack, of_interface,
          of_interface_with_strides, of_interface_with_buffer, of_arrow_buffer,
          of_arrow_tensor]  # fmt: skip


@pytest.mark.parametrize("memory", MEMORY)
def test_parameters_and_gradients_in_place(memory):
    p, now = memory()
    g, _ = memory()
    opt = fastgd.SGD({"w": p}, lr=1.0)
    opt.step({"w": G})
    assert now() == STEPPED
    opt.step({"w": g})
    assert now() == [-0.5] * 4
    own = np.zeros(4, F32)
    fastgd.SGD(own, grads=p, lr=1.0).step()
    assert own.tolist() == [0.5] * 4


@pytest.mark.parametrize("memory", MEMORY)
def test_the_exporter_stays_alive(memory):
    p, now = memory()
    opt = fastgd.SGD(p, lr=1.0)
    if isinstance(p, (DLPack, Interface)):
        alive = weakref.ref(p.a if isinstance(p, DLPack) else p)
        del p
        now = None
        gc.collect()
        assert alive() is not None or memory is of_interface_with_buffer
        opt.step(G)
        assert opt.param_groups[0]["params"][0].tolist() == STEPPED
        del opt
        gc.collect()
        assert alive() is None
    else:
        del p
        gc.collect()
        opt.step(G)
        assert now() == STEPPED


# ------------------------------------------------------------------------------------- lifetimes


def test_an_array_can_not_be_resized_while_it_is_stepped():
    x = array("f", VALUES)
    opt = fastgd.SGD(x, lr=1.0)
    with pytest.raises(BufferError):
        x.append(1.0)
    opt.step(G)
    assert list(x) == STEPPED
    del opt
    x.append(1.0)


@pytest.mark.parametrize("borrow", [np.frombuffer, lambda x, d: np.ndarray(4, d, buffer=x)])
def test_a_bytearray_can_not_be_resized_under_an_array(borrow):
    """np.ndarray(buffer=...) alone lets it, and holds a dangling address from then on."""
    raw = bytearray(VALUES.tobytes())
    p, g, out = (borrow(x, F32) for x in (raw, bytearray(16), bytearray(16)))
    bound, copied = g.base, out.base
    while isinstance(bound, (np.ndarray, memoryview)):
        bound, copied = (x.base if isinstance(x, np.ndarray) else x.obj for x in (bound, copied))
    opt = fastgd.SGD(p[:], lr=1.0, grads=g, copy_to=out)
    del p, g, out
    for memory in (raw, bound, copied):
        with pytest.raises(BufferError):
            memory.extend(bytes(1 << 20))
    opt.step()
    assert np.frombuffer(raw, F32).tolist() == VALUES.tolist()
    del opt
    gc.collect()
    for memory in (raw, bound, copied):
        memory.extend(bytes(8))


def test_a_map_can_not_be_closed_while_it_is_stepped():
    m = mmap.mmap(-1, VALUES.nbytes)
    p = np.ndarray(4, F32, buffer=m)
    opt = fastgd.SGD(p, lr=1.0)
    for call in (m.close, lambda: m.resize(4)):
        with pytest.raises(BufferError):
            call()
    opt.step(G)
    assert p.tolist() == [-0.5] * 4
    del opt
    m.close()


@pytest.mark.parametrize("borrow", ["cast", "ndarray"])
def test_shared_memory_can_not_be_closed_while_it_is_stepped(borrow):
    shared = SharedMemory(create=True, size=VALUES.nbytes)
    try:
        np.ndarray(4, F32, buffer=shared.buf)[...] = VALUES
        p = shared.buf.cast("f") if borrow == "cast" else np.ndarray(4, F32, buffer=shared.buf)
        opt = fastgd.SGD(p, lr=1.0)
        with pytest.raises(BufferError):
            shared.close()
        other = SharedMemory(shared.name)  # as another process sees it
        opt.step(G)
        assert np.frombuffer(other.buf, F32, 4).tolist() == STEPPED
        other.close()
        del p, opt
        gc.collect()
        shared.close()
    finally:
        shared.unlink()


def test_closing_without_the_optimizers_hold_would_crash():
    """What `buffers.lent` is for: the same in a process of its own, without it."""
    code = """
import mmap, numpy as np, fastgd
from fastgd.kernels.memory import buffers
if {without}:
    buffers.lent = lambda a: None
m = mmap.mmap(-1, 1 << 20)
opt = fastgd.SGD(np.ndarray(1 << 18, np.float32, buffer=m))
try:
    m.close()
except BufferError:
    print("held")
opt.step(np.ones(1 << 18, np.float32))
"""
    held = run_python(code.format(without=False))
    assert (held.returncode, held.stdout) == (0, "held\n"), held.stderr
    assert run_python(code.format(without=True)).returncode != 0


def test_what_is_lent():
    assert buffers.lent(np.zeros(3)) is None
    assert buffers.lent(np.zeros(3)[1:]) is None
    assert buffers.lent(buffers.as_array(DLPack(np.zeros(3)), "x")) is None
    assert buffers.lent(np.frombuffer(raw := bytearray(8), np.uint8)).obj is raw


# --------------------------------------------------------------------------------- what is refused


def device_array(number):
    class Array(DLPack):
        device = (number, 0)

    Array.__module__, Array.__qualname__ = "cupy", "ndarray"
    return Array(VALUES.copy())


class Cuda:
    __cuda_array_interface__ = VALUES.__array_interface__


class NoDevice(DLPack):
    def __dlpack_device__(self):
        raise RuntimeError("a tracer\nwith much more to say")

    __dlpack__ = __dlpack_device__


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: device_array(2), "CPU memory, found cupy.ndarray in CUDA memory$"),
        (lambda: device_array(10), "CPU memory, found cupy.ndarray in ROCm memory$"),
        (lambda: device_array(99), "CPU memory, found cupy.ndarray in device 99 memory$"),
        (Cuda, "CPU memory, found test_buffers.Cuda in CUDA memory$"),
        (lambda: NoDevice(VALUES), r"CPU memory, found test_buffers.NoDevice \(a tracer\)$"),
        (lambda: Interface, "an array, found builtins.type$"),
    ],
)
def test_memory_elsewhere(make, message):
    own = VALUES.copy()
    with pytest.raises(TypeError, match=rf"^params\[0\]: expected .*{message}"):
        fastgd.SGD([make()])
    opt = fastgd.SGD([own], lr=1.0)
    with pytest.raises(TypeError, match=rf"^grads\[0\]: expected .*{message}"):
        opt.step([make()])
    assert np.array_equal(own, VALUES)


@pytest.mark.parametrize("package", ["jaxlib._jax", "pyarrow.lib"])
def test_immutable_arrays(package):
    """Of JAX and Arrow, also where they don't say that they are; as gradients they will do."""

    class Array(DLPack):
        pass

    Array.__module__ = package
    x = Array(VALUES.copy())
    owner = "JAX" if "jax" in package else "Arrow"
    with pytest.raises(
        ValueError,
        match=rf"^params: expected a writeable array, found an immutable one of {owner}; np.array",
    ):
        fastgd.SGD(x)
    with pytest.raises(ValueError, match=rf"^copy_to: .*immutable one of {owner}"):
        fastgd.SGD(np.zeros(4, F32), copy_to=x)
    p = np.zeros(4, F32)
    fastgd.SGD(p, lr=1.0).step(x)
    assert p.tolist() == [-1, -2, -3, -4]
    assert np.array_equal(x.a, VALUES)


def test_arrow_arrays_are_immutable():
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    x = pyarrow.array(VALUES)
    with pytest.raises(ValueError, match="immutable one of Arrow"):
        fastgd.SGD(x)
    p = np.zeros(4, F32)
    fastgd.SGD(p, lr=1.0).step(x)
    assert p.tolist() == [-1, -2, -3, -4]
    with pytest.raises(ValueError, match="read-only"):
        fastgd.SGD(np.frombuffer(pyarrow.py_buffer(VALUES.tobytes()), F32))


@pytest.mark.parametrize("raw", [bytearray(16), mmap.mmap(-1, 16), memoryview(bytearray(16))])
def test_raw_bytes_say_not_what_they_hold(raw):
    with pytest.raises(TypeError, match=r"found uint8; np.frombuffer\(x, np.float32\) says"):
        fastgd.SGD(raw)


def test_read_only_memory():
    for x in (memoryview(VALUES.tobytes()).cast("f"), Interface(VALUES, data=VALUES.tobytes()),
              Interface(VALUES, data=(VALUES.ctypes.data, True))):  # fmt: skip
        with pytest.raises(ValueError, match="params: expected a writeable array"):
            fastgd.SGD(x)
        p = np.zeros(4, F32)
        fastgd.SGD(p, lr=1.0).step(x)
        assert p.tolist() == [-1, -2, -3, -4]


AT = VALUES.ctypes.data
# Changes of an interface that make it contradict itself, and what the message says.
LIES = {
    "no shape": ({"shape": ...}, TypeError, "no shape"),
    "no typestr": ({"typestr": ...}, TypeError, "no typestr"),
    "no data": ({"data": None}, TypeError, "no data"),
    "a mask": ({"mask": VALUES}, TypeError, "a mask"),
    "objects": ({"typestr": "|O"}, TypeError, r"typestr '\|O'"),
    "nothing": ({"typestr": "|V0"}, TypeError, r"typestr '\|V0'"),
    "no typestr's": ({"typestr": "float"}, TypeError, "typestr 'float'"),
    "a type": ({"typestr": np.float32}, TypeError, "typestr <class"),
    "nonsense": ({"typestr": "<x9"}, TypeError, "typestr '<x9'"),
    "integers": ({"typestr": "<i4"}, TypeError, "found int32"),
    "byte order": ({"typestr": ">f4"}, TypeError, "native byte order"),
    "a number": ({"shape": 4}, ValueError, "shape 4"),
    "a list": ({"shape": [4]}, ValueError, r"shape \[4\]"),
    "fractions": ({"shape": (4.0,)}, ValueError, r"shape \(4.0,\)"),
    "negative": ({"shape": (-4,)}, ValueError, r"shape \(-4,\)"),
    "many axes": ({"shape": (1,) * 65}, ValueError, "shape"),
    "strides short": ({"strides": ()}, ValueError, r"strides \(\) for shape \(4,\)"),
    "strides text": ({"strides": "abcd"}, ValueError, "strides 'abcd'"),
    "strides apart": ({"strides": (8,)}, ValueError, "contiguous"),
    "strides back": ({"strides": (-4,)}, ValueError, "contiguous"),
    "strides none": ({"strides": (0,)}, ValueError, "contiguous"),
    "strides off": ({"strides": (-(2**62),)}, ValueError, "address"),
    "null": ({"data": (0, False)}, ValueError, "address 0x0"),
    "below null": ({"data": (-8, False)}, ValueError, "address -0x8"),
    "too far": ({"data": (2**64 - 8, False)}, ValueError, "address"),
    "too large": ({"shape": (2**62,)}, ValueError, "address"),
    "far too large": ({"shape": (2**62, 2**62)}, ValueError, "address"),
    "unaligned": ({"data": (AT + 1, False), "shape": (3,)}, ValueError, "aligned to 4 bytes"),
    "no flag": ({"data": (AT,)}, TypeError, "data"),
    "no address": ({"data": ("0x10", False)}, TypeError, "data"),
    "short buffer": ({"data": bytearray(15)}, ValueError, "data that doesn't fit"),
    "offset": ({"data": bytearray(16), "offset": 4}, ValueError, "data that doesn't fit"),
    "below": ({"data": bytearray(16), "offset": -4}, ValueError, "data that doesn't fit"),
    "no buffer": ({"data": "text"}, ValueError, "data that doesn't fit"),
    "stride out": ({"data": bytearray(16), "strides": (8,)}, ValueError, "data that doesn't fit"),
}


@pytest.mark.parametrize("lie", LIES)
def test_interfaces_that_contradict_themselves(lie):
    changes, error, message = LIES[lie]
    x = Interface(VALUES, **changes)
    with pytest.raises(error, match=rf"^params: .*({message})"):
        fastgd.SGD(x)
    opt = fastgd.SGD(np.zeros(4, F32))
    with pytest.raises((TypeError, ValueError), match="^grads: "):
        opt.step(x)


@pytest.mark.parametrize("interface", [3, "abc", [("shape", (4,))]])
def test_interfaces_that_are_none(interface):
    class Exports:
        __array_interface__ = interface

    with pytest.raises(TypeError, match="expected a sound __array_interface__ of .*, found"):
        fastgd.SGD(Exports())


def test_empty_memory_may_be_nowhere():
    x = Interface(np.zeros((0, 3), F32), data=(0, False))
    fastgd.SGD(x).step(np.zeros((0, 3), F32))


def test_whoever_only_makes_copies_is_refused():
    class Copies:
        def __array__(self, *args, **options):
            raise AssertionError("not asked for")

    with pytest.raises(TypeError, match="expected an array, found .*Copies"):
        fastgd.SGD(Copies())
