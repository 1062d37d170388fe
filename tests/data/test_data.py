"""Batches: every sample once an epoch, in step, in the same order again, and hardly any copies."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import re
import tracemalloc
from collections import namedtuple

import numpy as np
import pytest

import fastgd
from fastgd.data import Batches, batches

SIZES = [None, 1, 2, 3, 10, 11, 30]
Pair = namedtuple("Pair", "x y")


def epoch_of(loader):
    """The samples of an epoch of one array, in the order of its batches."""
    return np.concatenate([b.copy() for b in loader])


# ------------------------------------------------------------------------- which samples, in what


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_every_sample_once_and_in_step(size, shuffle, copy):
    y = np.arange(10)
    x = (y[:, None] * [1.0, -1.0]).astype(np.float32)
    loader = batches((x, y), size, shuffle, seed=0, copy=copy)
    for _ in range(3):
        seen = []
        for xb, yb in loader:
            assert (xb.dtype, yb.dtype) == (x.dtype, y.dtype)
            assert np.array_equal(xb, x[yb])
            seen.append(yb.tolist())
        order = [sample for batch in seen for sample in batch]
        assert sorted(order) == y.tolist()
        assert [len(s) for s in seen[:-1]] == [size] * (len(seen) - 1)
        assert len(seen) == len(loader) == -(-10 // (size or 10))
        if not shuffle or size is None:
            assert order == y.tolist()


@pytest.mark.parametrize(("size", "count"), [(None, 1), (1, 10), (3, 3), (5, 2), (10, 1)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_drop_last(size, count, shuffle):
    loader = batches(np.arange(10), size, shuffle, 0, True)
    lengths = [len(b) for b in loader]
    assert lengths == [size or 10] * count
    assert len(loader) == count


@pytest.mark.parametrize("size", [None, 1, 4])
def test_batches_come_in_the_form_of_the_arrays(size):
    x, y = np.zeros((10, 2)), np.zeros(10)
    for arrays, form in [
        ((x, y), tuple),
        ([x, y], list),
        ({"x": x, "y": y}, dict),
        (Pair(x, y), Pair),
        ((x,), tuple),
        (x, np.ndarray),
    ]:
        batch = next(iter(batches(arrays, size, seed=0)))
        assert type(batch) is form
    assert list(next(iter(batches({"b": x, "a": y}, size)))) == ["b", "a"]
    assert next(iter(batches(Pair(x, y), size))).x.shape == (size or 10, 2)


# ------------------------------------------------------------------------------- orders and seeds


@pytest.mark.parametrize("size", [1, 4])
def test_epochs_differ_and_the_same_seed_repeats_them(size):
    a, b, c = (batches(np.arange(50), size, seed=seed) for seed in (3, 3, 4))
    epochs = [epoch_of(a).tolist() for _ in range(3)]
    assert [epoch_of(b).tolist() for _ in range(3)] == epochs
    assert len({tuple(e) for e in epochs} | {tuple(range(50))}) == 4
    assert epoch_of(c).tolist() not in epochs


def test_an_epoch_depends_on_seed_and_number_alone():
    a, b = batches(np.arange(50), 4, seed=3), batches(np.arange(50), 7, seed=3)
    next(iter(a))  # an epoch left early counts
    assert a.epoch == 1
    b.epoch = 1
    assert epoch_of(a).tolist() == epoch_of(b).tolist()
    again = pickle.loads(pickle.dumps(a))
    assert epoch_of(again).tolist() == epoch_of(a).tolist()


def test_orders_are_uniform():
    counts = np.zeros((5, 5))
    loader = batches(np.arange(5), 5, seed=0)
    for _ in range(2000):
        counts[np.arange(5), next(iter(loader))] += 1
    assert np.abs(counts - 400).max() < 5 * np.sqrt(2000 * 0.2 * 0.8)


def test_seeds():
    rngs = [np.random.default_rng(5) for _ in range(2)]
    a, b = (batches(np.arange(50), 4, seed=rng) for rng in rngs)
    assert a.seed == b.seed
    assert batches(np.arange(50), 4, seed=rngs[0]).seed != a.seed
    assert epoch_of(a).tolist() == epoch_of(b).tolist()
    fresh = batches(np.arange(50), 4)
    assert fresh.seed != batches(np.arange(50), 4).seed
    repeated = batches(np.arange(50), 4, seed=fresh.seed)
    assert epoch_of(repeated).tolist() == epoch_of(fresh).tolist()


def test_epochs_read_at_once_do_not_mix():
    x = np.arange(12)
    apart = batches(x, 5, seed=0)
    first, second = epoch_of(apart).tolist(), epoch_of(apart).tolist()
    together = batches(x, 5, seed=0)
    pairs = [(a.copy(), b.copy()) for a, b in zip(together, together, strict=True)]
    assert np.concatenate([a for a, _ in pairs]).tolist() == first
    assert np.concatenate([b for _, b in pairs]).tolist() == second


# --------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(("size", "shuffle"), [(None, True), (None, False), (1, True), (4, False)])
def test_views_where_possible_and_read_only(size, shuffle):
    x = np.arange(20.0).reshape(10, 2)
    for batch in batches(x, size, shuffle):
        assert np.shares_memory(batch, x)
        with pytest.raises(ValueError, match="read-only"):
            batch *= 2
    assert x.flags.writeable


def test_gathered_batches_share_one_buffer():
    x = np.arange(20.0).reshape(10, 2)
    spans = [(b.ctypes.data, len(b)) for b in batches(x, 4, seed=0)]
    assert [n for _, n in spans] == [4, 4, 2]
    assert len({address for address, _ in spans}) == 1


def test_a_buffer_is_no_larger_than_its_source():
    (batch,) = batches(np.arange(10), 2**50, seed=0)
    assert sorted(batch) == list(range(10))


@pytest.mark.parametrize(("size", "shuffle"), [(None, True), (1, True), (4, False), (4, True)])
def test_copies_are_the_callers(size, shuffle):
    x = np.arange(20.0).reshape(10, 2)
    kept = list(batches(x, size, shuffle, seed=0, copy=True))
    for k, a in enumerate(kept):
        assert not np.shares_memory(a, x)
        assert not any(np.shares_memory(a, b) for b in kept[:k])
    assert np.array_equal(np.sort(np.concatenate(kept), axis=0), x)
    for a in kept:
        a *= 2
    assert x.sum() == 190


def misaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    raw[...] = a
    return raw


LAYOUTS = {
    "C": lambda a: a,
    "Fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "backwards": lambda a: a[::-1].copy()[::-1],
    "misaligned": misaligned,
    "swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "broadcast": lambda a: np.broadcast_to(a[:, :1], a.shape),
    "objects": lambda a: a.astype(object),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_without_a_copy_of_the_whole(layout):
    samples = np.arange(40_000.0)
    x = LAYOUTS[layout](samples[:, None] + np.zeros(50))  # 16 MB
    loader = batches(x, 8, seed=0)
    tracemalloc.start()
    try:
        for _, batch in zip(range(20), loader, strict=False):
            assert batch.shape == (8, 50)
            assert batch.dtype == x.dtype
            rows = batch[:, 0].astype(np.intp)
            assert np.array_equal(batch, x[rows])
            assert len(set(rows)) == 8
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1e6, "more than the order (320 kB) and a few batches"


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_memory_map_larger_than_memory(tmp_path, strided, shuffle):
    row = 1 << 22  # float32: 16 MiB
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    n = 2 * memory // (4 * row)
    file = tmp_path / "rows"
    with open(file, "wb") as f:  # a sparse file, of which only marks take room
        f.truncate(n * row * 4)
        for k in range(n):
            f.seek(k * row * 4)
            f.write(np.float32(k).tobytes())
    x = np.memmap(file, np.float32, "r", shape=(n, row))
    x = x[:, ::2] if strided else x
    loader = batches((x, np.arange(n)), 2, shuffle, seed=0)
    assert len(loader) == -(-n // 2)
    for _, (xb, yb) in zip(range(3), loader, strict=False):
        assert xb.shape == (2, x.shape[1])
        assert xb[:, 0].tolist() == yb.tolist()
        assert not xb[:, 1:].any()


# ---------------------------------------------------------------------------------- bad input

TEN, NINE = np.zeros((10, 2)), np.zeros(9)


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ((TEN, NINE), ValueError, "arrays[1]: expected 10 samples as in arrays[0], found 9"),
        (
            {"x": TEN, "y": NINE},
            ValueError,
            'arrays["y"]: expected 10 samples as in arrays["x"], found 9',
        ),
        ((), ValueError, "arrays: expected at least one array, found none"),
        ({}, ValueError, "arrays: expected at least one array, found none"),
        (np.zeros((0, 3)), ValueError, "arrays: expected at least one sample, found none"),
        ([TEN, np.zeros(0)], ValueError, "arrays[1]: expected at least one sample, found none"),
        (np.zeros(()), ValueError, "arrays: expected samples along a first axis"),
        ([1, 2, 3], TypeError, "arrays[0]: expected an array, found builtins.int"),
        ((TEN, [1] * 10), TypeError, "arrays[1]: expected an array, found builtins.list"),
        ({"x": TEN, "y": None}, TypeError, 'arrays["y"]: expected an array'),
        ("digits", TypeError, "arrays: expected an array, found builtins.str"),
        (5, TypeError, "arrays: expected an array, found builtins.int"),
        (np.ma.zeros(10), TypeError, "arrays: expected a plain array, found a masked array"),
    ],
)
def test_bad_arrays(arrays, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        batches(arrays, 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size: expected an integer of at least 1, found 0"),
        ({"batch_size": -3}, ValueError, "batch_size: expected an integer of at least 1, found -3"),
        ({"batch_size": 2.0}, TypeError, "batch_size: expected an integer, found 2.0"),
        ({"batch_size": "2"}, TypeError, "batch_size: expected an integer, found '2'"),
        ({"batch_size": True}, TypeError, "batch_size: expected an integer, found True"),
        ({"batch_size": np.True_}, TypeError, "batch_size: expected an integer, found"),
        ({"shuffle": 1}, TypeError, "shuffle: expected True or False, found 1"),
        ({"drop_last": "no"}, TypeError, "drop_last: expected True or False, found 'no'"),
        ({"copy": None}, TypeError, "copy: expected True or False, found None"),
        ({"seed": -1}, ValueError, "seed: expected an integer of at least 0, found -1"),
        ({"seed": 1.5}, TypeError, "seed: expected an integer, a numpy.random.Generator or None"),
        ({"seed": np.random.RandomState(0)}, TypeError, "seed: expected an integer, a numpy"),
        (
            {"batch_size": 11, "drop_last": True},
            ValueError,
            "batch_size: expected at most 10, the number of samples, with drop_last, found 11",
        ),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        batches(TEN, **{"batch_size": 2, **options})


@pytest.mark.parametrize(("epoch", "error"), [(-1, ValueError), (0.5, TypeError)])
def test_bad_epoch(epoch, error):
    loader = batches(TEN, 2)
    loader.epoch = epoch
    with pytest.raises(error, match="^epoch: expected an integer"):
        iter(loader)


def test_numpy_integers_and_the_class():
    loader = batches(TEN, np.int64(4), seed=np.uint8(7))
    assert isinstance(loader, Batches)
    assert (len(loader), loader.seed) == (3, 7)
    assert type(loader.seed) is int


# --------------------------------------------------------------------- where a run is in an epoch


@pytest.mark.parametrize("size", [1, 4, None])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("taken", [0, 1, 2, 3, 6, 7])
def test_a_run_goes_on_within_an_epoch(tmp_path, size, shuffle, taken):
    x = np.arange(26)
    whole, run, again = (batches(x, size, shuffle, seed=7) for _ in range(3))
    expected = [b.tolist() for _ in range(9) for b in whole]
    first, epoch = [], None
    for _ in range(taken):
        if epoch is None or len(first) % len(run) == 0:
            epoch = iter(run)
        first.append(next(epoch).tolist())
    state = json.loads(json.dumps(run.state_dict()))
    if taken == 2 and importlib.util.find_spec("safetensors"):
        fastgd.save(tmp_path / "run", params={"w": np.zeros(1)}, metadata={"data": state})
        state = fastgd.load(tmp_path / "run", params={"w": np.zeros(1)})["data"]
    again.load_state_dict(state)
    assert again.state_dict() == state
    rest = [b.tolist() for b in again]
    assert first + rest == expected[: len(first) + len(rest)]
    assert (taken + len(rest)) % len(run) == 0
    assert [b.tolist() for b in again] == expected[len(first) + len(rest) :][: len(run)]
    if epoch is not None:  # and so does the run itself
        assert [b.tolist() for b in epoch] == rest or taken % len(run) == 0


def test_states_of_other_batches_are_refused():
    loader = batches(np.arange(10), 2, seed=1)
    state = loader.state_dict()
    for key, bad in (("samples", 9), ("batch_size", 3), ("shuffle", False), ("parts", 2),
                     ("epoch", -1), ("batch", 5), ("seed", 0.5)):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=f"^{key}: expected"):
            loader.load_state_dict({**state, key: bad})
    for bad in (None, {}, {"epoch": 1}):
        with pytest.raises(ValueError, match="^state_dict: expected a dict of epoch, batch, seed"):
            loader.load_state_dict(bad)
    assert loader.state_dict() == state
    next(iter(loader))
    for epoch in (5, 1, 0):  # set by hand, it begins there, also where it is that number already
        loader.epoch = epoch
        assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (epoch, 0)
        next(iter(loader))
    loader.load_state_dict(state)
    first = next(iter(loader)).tolist()
    loader.load_state_dict(loader.state_dict())
    loader.epoch = 0
    assert next(iter(loader)).tolist() == first


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_parts_share_an_epoch(size, shuffle):
    x = np.arange(29)
    order = [b.tolist() for b in batches(x, size, shuffle, seed=2)]
    parts = [batches(x, size, shuffle, seed=2, part=(k, 3)) for k in range(3)]
    taken = [[b.tolist() for b in part] for part in parts]
    assert {len(own) for own in taken} == {len(order) // 3} == {len(part) for part in parts}
    assert [b for step in zip(*taken, strict=True) for b in step] == order[: len(order) // 3 * 3]
    next(iter(parts[1]))
    parts[0].load_state_dict(parts[1].state_dict())  # each goes on from any one's state
    following = [b.tolist() for b in batches(x, size, shuffle, seed=2, part=(0, 3))]
    assert len([*parts[0]]) == len(following) - 1
    for bad, error in (((3, 3), ValueError), ((0, 0), ValueError), ((0, 30), ValueError),
                       (2, TypeError), ((0.0, 2), TypeError)):  # fmt: skip
        with pytest.raises(error, match="^part"):
            batches(x, size, part=bad)
