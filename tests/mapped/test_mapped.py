"""Parameters in files: the same steps as in memory, on few pages, and torn tables are told."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from support.sampling import by_level

import fastgd

SHAPE = (300, 256)


def rows_of(rng, n=40):
    """A gradient by rows, some of which are there several times."""
    indices = rng.integers(0, SHAPE[0], n)
    return fastgd.Rows(indices, rng.standard_normal((n, SHAPE[1]), np.float32))


def bits(a):
    return np.atleast_1d(a).view(np.uint8)


CASES = {
    "SGD": {},
    "momentum": {"kind": "SGD", "momentum": 0.9, "rows": "lazy"},
    "Adagrad": {"initial_accumulator_value": 0.1},
    "Adagrad in bfloat16": {"initial_accumulator_value": 0.1, "state_dtype": "bfloat16"},
    "Adam in 8 bits": {"state_dtype": "8bit", "min_8bit_size": 0, "rows": "lazy"},
    "NAdam": {"rows": "lazy"},
    "RowWiseAdagrad": {"initial_accumulator_value": 0.1},
    "with a master": {"kind": "AdamW", "dtype": "bfloat16", "master": True, "rows": "lazy"},
    "split": {"kind": "AdamW", "dtype": "bfloat16", "master": "split", "rows": "lazy"},
}


@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_memory_also_after_reopening(case, tmp_path):
    options = {"lr": 0.1, **CASES[case]}
    kind = getattr(fastgd, options.pop("kind", case.partition(" ")[0]))
    dtype = options.pop("dtype", None)
    table = fastgd.Mapped(tmp_path / "table", SHAPE, dtype)
    table.array[...] = 1 if dtype is None else 0x3F80  # 1 as well
    p = table.array.copy()
    in_files, in_memory = kind(table, **options), kind(p, **options)
    rng = np.random.default_rng(0)
    for _ in range(3):
        g = rows_of(rng)
        in_files.step(g)
        in_memory.step(g)
        table.close()
        table = fastgd.Mapped(tmp_path / "table")
        in_files = kind(table, **options)
    assert table.step == 3
    np.testing.assert_array_equal(bits(table.array), bits(p))
    assert in_files.state[0].keys() == in_memory.state[0].keys()
    for key, a in in_memory.state[0].items():
        np.testing.assert_array_equal(bits(in_files.state[0][key]), bits(a))
    table.close()


def test_groups_mix_tables_and_arrays(tmp_path):
    w = np.ones(3, np.float32)
    with fastgd.Mapped(tmp_path / "table", SHAPE) as table:
        opt = fastgd.Adagrad([{"params": {"emb": table}}, {"params": [w], "lr": 1.0}], lr=0.5)
        opt.step([{"emb": fastgd.Rows([2], np.ones((1, SHAPE[1])))}, [w.copy()]])
        assert table.array[2, 0] == -0.5
        assert w[0] == 0.0


def taken(folder):
    """The bytes on the disk, for each file."""
    return {file.name: 512 * file.stat().st_blocks for file in folder.iterdir()}


# With more than 2^31 elements in whole runs.
@pytest.mark.more
@pytest.mark.skipif(sys.platform != "linux", reason="counts blocks and pages as Linux does")
def test_only_pages_of_touched_rows_are_read_and_written(tmp_path):
    rows = by_level(10**5, 10**6, 34 * 10**6)
    code = f"""
import resource, numpy as np, fastgd
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for k in range(2):
    with fastgd.Mapped({str(tmp_path / "table")!r}, ({rows}, 64)) as table:
        opt = fastgd.Adagrad(table, lr=0.5)
        opt.step(fastgd.Rows([5, {rows} - 1, 5], np.ones((3, 64), np.float32)))
        assert table.array[-1, 63] < 0 and table.array[-2, 63] == 0 and opt.state[0]["step"] == k + 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20_000  # KiB, of 25,000 for each file even in a quick run
    sizes = taken(tmp_path / "table")
    assert (tmp_path / "table" / "sum.bin").stat().st_size == rows * 256
    if sizes["parameter.bin"] < rows * 256:  # a file system that has sparse files
        assert max(sizes.values()) <= 2**18


TRAINING = """
import sys, numpy as np, fastgd
table = fastgd.Mapped(sys.argv[1], (300, 256))
opt = fastgd.Adagrad(table, lr=0.5)
g = fastgd.Rows(np.arange(100), np.ones((100, 256), np.float32))
for _ in range(int(sys.argv[2])):
    opt.step(g)
table.flush()
print("flushed", flush=True)
if sys.argv[3] == "on":
    while True:
        opt.step(g)
        print("stepped", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("then", ["on", "wait"])
def test_a_killed_training_leaves_a_table_that_is_whole_or_says_it_is_torn(then, tmp_path):
    folder = tmp_path / "table"
    with subprocess.Popen(
        [sys.executable, "-c", TRAINING, folder, "3", then],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "flushed\n"
        if then == "on":
            assert process.stdout.readline() == "stepped\n"
        with pytest.raises(BlockingIOError, match="nobody has open"):
            fastgd.Mapped(folder)
        process.send_signal(signal.SIGKILL)
    if then == "on":
        with pytest.raises(fastgd.CheckpointError, match=r"torn.*at step 3.*accept_torn=True"):
            fastgd.Mapped(folder)
    with fastgd.Mapped(folder, accept_torn=then == "on") as table:
        assert table.step == 3
        opt = fastgd.Adagrad(table, lr=0.5)
        sums = opt.state[0]["sum"]
        assert not sums[100:].any()
        if then == "wait":
            assert (sums[:100] == 3).all()
        else:  # of a killed process all steps but the last are whole
            assert np.ptp(sums[:100]) <= 1
            assert sums[:100].min() >= 3
    fastgd.Mapped(folder).close()  # whole again


def test_a_new_table_is_torn_until_it_is_flushed(tmp_path):
    table = fastgd.Mapped(tmp_path / "table", SHAPE)
    header = json.loads((tmp_path / "table" / "table.json").read_text())
    assert not header["whole"]
    table.flush()
    assert json.loads((tmp_path / "table" / "table.json").read_text())["whole"]
    table.mark()
    assert not json.loads((tmp_path / "table" / "table.json").read_text())["whole"]
    table.close()


@pytest.fixture
def trained(tmp_path):
    """The folder of a table that Adagrad has stepped once."""
    with fastgd.Mapped(tmp_path / "table", SHAPE) as table:
        fastgd.Adagrad(table, lr=0.5).step(rows_of(np.random.default_rng(0)))
    return tmp_path / "table"


def refused(folder, match, *args, error=fastgd.CheckpointError, kind=None, **kwargs):
    """Check that a table, or an optimizer of it, is refused, and that no byte changes."""
    before = {file.name: file.read_bytes() for file in folder.iterdir()} if folder.exists() else {}
    with pytest.raises(error, match=match):
        table = fastgd.Mapped(folder, *args, **kwargs)
        try:
            kind(table)
        finally:
            table.close()
    assert before == ({f.name: f.read_bytes() for f in folder.iterdir()} if before else {})


def test_what_does_not_fit_is_refused(trained, tmp_path):
    refused(trained, r"expected \(7, 256\), found \(300, 256\)", (7, 256))
    refused(trained, "expected float64, found float32", SHAPE, np.float64)
    refused(trained, r"expected exp_avg of a table that has taken 1 steps, found \['sum'\]",
            kind=fastgd.Adam)  # fmt: skip
    refused(trained, r"sum: expected bfloat16 of shape \(300, 256\), found", kind=lambda table: fastgd.Adagrad(
        table, state_dtype="bfloat16"))  # fmt: skip
    refused(tmp_path / "none", "expected a table, or a shape", error=FileNotFoundError)
    refused(tmp_path / "none", "shape: expected a tuple", (3, 0), error=ValueError)
    refused(tmp_path / "none", "dtype: expected one of floats", (3, 2), "int8", error=TypeError)
    os.truncate(trained / "sum.bin", 100)
    refused(trained, "sum.bin: expected 307200 bytes, found 100", kind=fastgd.Adagrad)
    for text in ("", "{}", "[1]", '{"format": "fastgd table", "version": 2}'):
        (trained / "table.json").write_text(text)
        refused(trained, "expected the header of a table")


def test_a_closed_table_is_not_stepped(trained):
    with fastgd.Mapped(trained) as table:
        opt = fastgd.Adagrad(table)
        with pytest.raises(TypeError, match="states are in files"):
            copy.copy(opt)
    before = table.array.copy()
    with pytest.raises(ValueError, match="expected an open table, found a closed one"):
        opt.step(rows_of(np.random.default_rng(0)))
    np.testing.assert_array_equal(table.array, before)


def test_a_loaded_state_dict_marks_the_table(trained):
    with fastgd.Mapped(trained) as table:
        opt = fastgd.Adagrad(table)
        saved = opt.state_dict()
        assert json.loads((trained / "table.json").read_text())["whole"]
        opt.load_state_dict(saved)
        assert not json.loads((trained / "table.json").read_text())["whole"]


def whole(folder):
    """What is on the disk says that nothing is amiss."""
    return json.loads((folder / "table.json").read_text())["whole"]


def test_whatever_stands_in_the_place_of_the_table_for_a_while_is_marked(tmp_path):
    with fastgd.Mapped(tmp_path / "t", (6, 4)) as table:
        opt = fastgd.SGD(table, lr=0.1, average=0.5)
        opt.step(np.ones((6, 4), np.float32))
        table.flush()
        blocks = [
            opt.average.swapped,
            lambda: fastgd.SAM(opt).perturbed(np.ones((6, 4), np.float32)),
        ]
        for block in blocks:
            with block():
                assert not whole(tmp_path / "t")
                with pytest.raises(RuntimeError, match="others in its place"):
                    table.flush()
            table.flush()
            assert whole(tmp_path / "t")


def test_the_last_optimizer_steps_a_table(tmp_path):
    g = np.ones((6, 4), np.float32)
    with fastgd.Mapped(tmp_path / "t", (6, 4)) as table:
        first = fastgd.SGD(table, lr=0.1)
        first.step(g)
        table.flush()
        second = fastgd.SGD(table, lr=0.1, momentum=0.9)  # whose state is a new file
        assert not whole(tmp_path / "t")
        with pytest.raises(RuntimeError, match="last optimizer"):
            first.step(g)
        second.step(g)


def test_what_is_written_by_hand_is_torn_by_an_exception(tmp_path):
    table = fastgd.Mapped(tmp_path / "t", (6, 4))
    table.flush()
    with pytest.raises(KeyboardInterrupt), table:
        table.mark()
        table.array[0] = 1
        raise KeyboardInterrupt
    assert not whole(tmp_path / "t")


def test_flush_waits_for_steps(tmp_path, monkeypatch):
    """A step of another thread amid the writing of pages would not be marked."""
    with fastgd.Mapped(tmp_path / "t", (6, 4)) as table:
        opt = fastgd.SGD(table, lr=0.1)
        opt.step(np.ones((6, 4), np.float32))
        thread = threading.Thread(target=opt.step, args=[np.ones((6, 4), np.float32)])
        write, seen = table._write_pages, []

        def slow():
            thread.start()
            thread.join(0.2)
            seen.append(table.step)
            write()

        monkeypatch.setattr(table, "_write_pages", slow)
        table.flush()
        thread.join()
        monkeypatch.undo()
        assert seen == [1]
        assert not whole(tmp_path / "t")


def test_no_file_is_overwritten(tmp_path):
    (tmp_path / "parameter.bin").write_bytes(b"precious")
    with pytest.raises(fastgd.CheckpointError, match=r"parameter\.bin"):
        fastgd.Mapped(tmp_path, (4, 4))
    assert (tmp_path / "parameter.bin").read_bytes() == b"precious"


def test_a_missing_parent_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"its parent to be a folder.*none"):
        fastgd.Mapped(tmp_path / "none" / "table", (4, 4))
