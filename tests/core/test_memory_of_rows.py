"""The memory that gradients by rows take: none is lost, and one that there is not is no end."""

import ctypes
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
from support.helpers import unsanitized

import fastgd
from fastgd import Rows

STATM = Path("/proc/self/statm")


@unsanitized
@pytest.mark.skipif(not STATM.exists(), reason="this system does not say what memory is in use")
@pytest.mark.parametrize(
    ("shape", "options", "times", "sizes"),
    [
        ((5, 0), {}, 1, range(1_000_000, 1_160_000, 10_000)),  # indices alone, of 8 bytes each
        ((16, 100_000), {}, 2, range(1, 16)),  # sums of 400,000 bytes each
        ((120_000, 1), {"clip_norm": 1.0}, 1, range(100_000, 120_000, 1000)),  # norms
    ],
    ids=["indices", "sums", "norms"],
)
def test_what_grows_is_given_back(shape, options, times, sizes):
    """Each step has more rows than the one before it, whose room would be 10 MB at least."""
    fastgd.set_num_threads(1)
    opt = fastgd.SGD(np.ones(shape, np.float32), lr=0.0, **options)
    indices = np.minimum(np.arange(times * sizes[-1]) // times, shape[0] - 1)
    values = np.ones((len(indices), shape[1]), np.float32)
    pages = []
    for k in sizes:
        opt.step(Rows(indices[: times * k], values[: times * k]))
        pages.append(int(STATM.read_text().split()[0]))
    assert (pages[-1] - pages[0]) * mmap.PAGESIZE < 9e6


@unsanitized
@pytest.mark.skipif(sys.platform != "linux", reason="memory is promised otherwise")
@pytest.mark.parametrize("k", [3, 1])
def test_a_step_after_one_without_memory(k):
    """Of more indices than there can be entries, which nobody looks at before."""
    opt = fastgd.SGD(np.ones((5, 0)))
    few = Rows(np.arange(k), np.ones((k, 0)))
    opt.step(few)
    try:
        unreserved = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000)
        indices = np.frombuffer(mmap.mmap(-1, 2**46, flags=unreserved), np.int32)
    except OSError:
        pytest.skip("too little memory is promised")
    many = Rows(indices, np.ones((len(indices), 0)))
    with pytest.raises(MemoryError):
        opt.step(many)
    opt.step(few)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is protected otherwise")
def test_no_index_before_the_first_is_read():
    """Nor one after the last: the pages there can't be."""
    fastgd.set_num_threads(1)
    room, page = mmap.mmap(-1, 3 * mmap.PAGESIZE), mmap.PAGESIZE
    start = ctypes.addressof(ctypes.c_char.from_buffer(room))
    indices = np.frombuffer(room, np.int32, page // 4, page)
    indices[...] = np.arange(len(indices))
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    outer = start, start + 2 * page
    table = np.zeros((len(indices), 1))
    try:
        assert [protect(at, page, 0) for at in outer] == [0, 0]
        fastgd.SGD(table, lr=1.0).step(Rows(indices, np.ones_like(table)))
    finally:
        for at in outer:
            protect(at, page, 3)
    assert (table == -1).all()
