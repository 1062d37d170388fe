"""Files that are not, or no longer, what `fastgd.save` wrote: refused, and nothing has changed."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support.sampling import by_level
from support.snapshots import assert_unchanged, snapshot
from tools import fuzz_checkpoint

import fastgd
from fastgd import CheckpointError
from fastgd.checkpoint import container as _container


def stepped(value, dtype=np.float64):
    params = {"a": np.full(2, value, dtype), "b": {"é": np.full((2, 3), value, dtype)}}
    opt = fastgd.Adam(params, lr=value)
    opt.step({"a": np.full(2, value, dtype), "b": {"é": None}})
    return opt


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.safetensors"
    fastgd.save(path, stepped(2.0), metadata={"epoch": 3, "empty": np.zeros((0, 3), np.int16)})
    return path


class Target:
    """An optimizer of other values, into which nothing of a damaged file may get."""

    def __init__(self):
        self.opt = stepped(5.0)
        self.before = snapshot(self.opt)

    def refuses(self, path, message=""):
        with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: {message}"):
            fastgd.load(path, self.opt)

    def is_unchanged(self):
        assert_unchanged(self.opt, self.before)
        assert self.opt.lr == 5.0


@pytest.fixture
def target():
    target = Target()
    yield target
    target.is_unchanged()


def test_the_file_itself_loads(file):
    opt = stepped(5.0)
    assert fastgd.load(file, opt)["epoch"] == 3
    assert opt.lr == 2.0


# ------------------------------------------------------------------------------------- damage


@pytest.mark.slow
def test_truncated_at_every_byte(file, target, tmp_path):
    data, part = file.read_bytes(), tmp_path / "part"
    for n in range(len(data)):
        part.write_bytes(data[:n])
        target.refuses(part, "expected a whole safetensors file")
    for more in (b"\0", b" ", data):
        part.write_bytes(data + more)
        target.refuses(part, "expected a whole safetensors file")


@pytest.mark.slow
@pytest.mark.more
def test_every_flipped_bit_is_found(file, target, tmp_path):
    """In whole runs; in others two bits of each byte, each eighth byte the same ones."""
    data, flipped = file.read_bytes(), tmp_path / "flipped"
    for n in range(len(data)):
        two = [n % 8, (n + 3) % 8]
        for bit in by_level(two, two, range(8)):
            flipped.write_bytes(data[:n] + bytes([data[n] ^ 1 << bit]) + data[n + 1 :])
            target.refuses(flipped)


@pytest.mark.slow
def test_bytes_exchanged_for_others_are_found(file, target, tmp_path, rng):
    data, changed = file.read_bytes(), tmp_path / "changed"
    for _ in range(2000):
        start = rng.integers(len(data))
        stop = min(start + rng.integers(1, 40), len(data))
        piece = rng.integers(0, 256, stop - start, np.uint8).tobytes()
        if piece != data[start:stop]:
            changed.write_bytes(data[:start] + piece + data[stop:])
            target.refuses(changed)


def test_arrays_of_the_same_size_exchanged(file, target):
    """The states of one parameter for those of the other: every bit is there, elsewhere."""
    data = file.read_bytes()
    a, b = b'"opt.state.0.exp_avg":', b'"opt.state.0.exp_avg_sq":'
    assert data.count(a) == data.count(b) == 1
    file.write_bytes(data.replace(a, b"@@@").replace(b, a).replace(b"@@@", b))
    target.refuses(file, r"opt.state.0.exp_avg\w*: its bits have changed")


# ------------------------------------------------------------------------------- foreign files


def pickled(path):
    path.write_bytes(pickle.dumps({"state": {}, "param_groups": []}))


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")


FOREIGN = {
    "empty": (lambda path: path.write_bytes(b""), "expected a whole safetensors file"),
    "a pickle": (pickled, "expected a whole safetensors file"),
    "a zip": (zipped, "expected a whole safetensors file"),
    "text": (lambda path: path.write_text("hello\n" * 50), "expected a whole safetensors file"),
    "zeros": (lambda path: path.write_bytes(bytes(5000)), "expected a whole safetensors file"),
    "an npy": (lambda path: path.write_bytes(b"\x93NUMPY\1\0" + bytes(200)), "expected a whole"),
    "other tensors": (lambda path: save_file({"a": np.ones(3)}, path), "format: expected 'fastgd checkpoint', found None"),
    "of torch": (lambda path: save_file({"a": np.ones(3)}, path, {"format": "pt"}), "format: expected 'fastgd checkpoint', found 'pt'"),
    "no tensors": (lambda path: save_file({}, path), "format: expected"),
    "a folder": (lambda path: path.mkdir(), "expected a file, found a directory"),
}  # fmt: skip


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_files(what, target, tmp_path):
    write, message = FOREIGN[what]
    path = tmp_path / "foreign"
    write(path)
    target.refuses(path, message)


def test_no_module_of_it_unpickles():
    """Nothing that could run code from a file is so much as named."""
    package = Path(fastgd.__file__).parent
    for path in (*(package / "checkpoint").glob("*.py"), package / "core" / "state_dict.py"):
        code = path.read_text()
        for word in ("pickle", "marshal", "shelve", "np.load", "eval(", "exec(", "literal_eval"):
            assert word not in code, (path.name, word)


# ------------------------------------------------- made with care, so that all checksums are right


def forge(file, change=lambda content, arrays: None, **metadata):
    """Change the content and the arrays of a checkpoint, and make it look whole."""
    with safe_open(file, framework="np") as opened:
        own = opened.metadata()
    arrays, content = load_file(file), json.loads(own["content"])
    content = change(content, arrays) or content
    text = content if isinstance(content, str) else json.dumps(content)
    own |= {"content": text, "crc32": f"{zlib.crc32(text.encode()):08x}", **metadata}
    save_file(arrays, file, {key: value for key, value in own.items() if value is not None})


def node(content):
    return content["opt"]["state"]["$dict"][0][1]["exp_avg"]


def fields(content):
    return content["opt"]["param_groups"][0]


FORGED = {
    "not JSON": (lambda c, a: "{", "Expecting property name"),
    "a constant": (lambda c, a: "[NaN]", "content: expected JSON, found NaN"),
    "endless": (lambda c, a: "[" * 100_000, "content: nested too deeply"),
    "long number": (lambda c, a: "1" * 10_000, "Exceeds the limit"),
    "empty": (lambda c, a: "{}", "content: expected a dict of .*found \\{\\}|content: expected a mention"),
    "a list": (lambda c, a: "[]", "content: expected a mention of each array"),
    "a lost array": (lambda c, a: a.pop("params.a") is None, "params.a: expected one array of that name"),
    "a stray array": (lambda c, a: a.update(x=np.ones(3)), "content: expected a mention of each array, found none of x"),
    "an array twice": (lambda c, a: c["params"].update(b=c["params"]["a"]), "params.a: expected one array of that name for each"),
    "a dtype": (lambda c, a: node(c).update(dtype="float32"), "opt.state.0.exp_avg: expected F32 of shape .*found F64"),
    "no dtype": (lambda c, a: node(c).update(dtype="object"), "opt.state.0.exp_avg: expected a dtype of bool"),
    "a shape": (lambda c, a: node(c).update(shape=[1, 2]), r"opt.state.0.exp_avg: expected F64 of shape \(1, 2\), found"),
    "bits": (lambda c, a: node(c).update(crc32="00000000"), "opt.state.0.exp_avg: its bits have changed"),
    "a word": (lambda c, a: c["metadata"].update({"$new": 1}), "expected a value that was packed"),
    "metadata": (lambda c, a: c.update(metadata=node(c)) or c["opt"]["state"].clear(), "opt.state|metadata: expected a dict|content"),
    "no opt": (lambda c, a: c.pop("opt") and None, "content: expected a mention"),
    "parts": (lambda c, a: c.update(more=1), "content: expected a dict of"),
    "class": (lambda c, a: c.update(optimizer="SGD"), "optimizer: expected Adam, found SGD"),
    "class of another kind": (lambda c, a: c.update(optimizer=[3]), "optimizer: expected Adam, found"),
    "state dict": (lambda c, a: c["opt"].update(param_groups={}), "state_dict: expected a list"),
    "lr": (lambda c, a: fields(c).update(lr=-1.0), "lr: expected a number of at least 0"),
    "infinite lr": (lambda c, a: fields(c).update(lr={"$float": "inf"}), "lr: expected a finite number"),
    "a hyper-parameter": (lambda c, a: fields(c).update(rate=1), "rate: no such hyper-parameter"),
    "numbers": (lambda c, a: fields(c).update(params=[[0], [1]]), "unhashable|state_dict"),
    "a step": (lambda c, a: c["opt"]["state"]["$dict"][0][1].update(step=-1), "state.*step: expected an integer"),
    "a parameter": (lambda c, a: c["params"].update(a=3) or a.pop("params.a") is None, r'params\["a"\]: expected an array'),
    "names": (lambda c, a: c["params"].update(c=c["params"].pop("a")), "params: expected parameters"),
    "groups": (lambda c, a: c.update(params=[c["params"], {}]), "params: expected 1 groups, found 2"),
    "no groups": (lambda c, a: c.update(params=[3]) or [a.pop(k) for k in list(a) if k[:6] == "params"], "params: expected arrays by name"),
}  # fmt: skip


@pytest.mark.parametrize("what", FORGED)
def test_forged(what, file, target):
    change, message = FORGED[what]
    # What a change returns counts only if it is a text to be the content.
    forge(file, lambda c, a: text if isinstance(text := change(c, a), str) else None)
    target.refuses(file, message)


def test_forged_without_a_change_loads(file):
    forge(file)
    assert fastgd.load(file, stepped(5.0))["epoch"] == 3


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"version": "2"}, "version: expected '1', found '2'"),
        ({"version": None}, "version: expected '1', found None"),
        ({"format": "fastgd"}, "format: expected 'fastgd checkpoint', found 'fastgd'"),
        ({"crc32": None}, "content: its bits have changed"),
        ({"content": None}, "content: its bits have changed"),
        ({"content": "null"}, "content: its bits have changed"),
    ],
)
def test_forged_metadata(metadata, message, file, target):
    forge(file, **metadata)
    target.refuses(file, message)


def test_the_version_is_in_every_file(file):
    with safe_open(file, framework="np") as opened:
        assert opened.metadata()["version"] == _container.VERSION == "1"


@pytest.mark.parametrize(
    ("dtype", "shape", "size", "message"),
    [
        ("BF16", [2], 4, "params.a: expected BOOL, F16, .*, found BF16"),
        ("F64", [1] * 70, 8, "params.a: expected a shape that an array can have .*, found 70"),
        ("F64", [0, 2**62], 0, "params.a: expected a shape that an array can have .*too big"),
    ],
)
def test_arrays_that_numpy_has_not(dtype, shape, size, message, target, tmp_path):
    """Which no writer of files lets us make."""
    metadata = {"format": _container.FORMAT, "version": "1", "content": "{}"}
    metadata["crc32"] = f"{zlib.crc32(b'{}'):08x}"
    array = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    head = json.dumps({"__metadata__": metadata, "params.a": array}).encode()
    path = tmp_path / "odd"
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(size))
    target.refuses(path, message)


# ------------------------------------------------------------------------- changed meanwhile


@pytest.fixture
def between(monkeypatch):
    """Let something happen to the file after its header was read, and before its arrays are."""

    def happens(action):
        fill = _container._fill

        def after(arrays, opened):
            monkeypatch.setattr(_container, "_fill", fill)
            action()
            return fill(arrays, opened)

        monkeypatch.setattr(_container, "_fill", after)

    return happens


@pytest.mark.parametrize("left", [0, 8, -20])
def test_cut_off_while_it_is_read(left, file, target, between):
    """Which would end the process if the file was mapped."""
    between(lambda: os.truncate(file, left % file.stat().st_size))
    target.refuses(file, ".*: (its bits have changed|expected [0-9]* bytes, found a truncated)")


def test_overwritten_while_it_is_read(file, target, between):
    size = file.stat().st_size

    def overwrite():
        with open(file, "r+b") as opened:
            opened.seek(size - 30)
            opened.write(b"\x01" * 30)

    between(overwrite)
    target.refuses(file, ".*its bits have changed")


def test_overwritten_after_it_was_read(file, monkeypatch):
    """What was checked is what is loaded."""
    fill = _container._fill

    def before(arrays, opened):
        sums = fill(arrays, opened)
        file.write_bytes(bytes(file.stat().st_size))
        return sums

    monkeypatch.setattr(_container, "_fill", before)
    opt = stepped(5.0)
    assert fastgd.load(file, opt)["epoch"] == 3
    assert opt.lr == 2.0
    assert opt.param_groups[0]["params"][1].tolist() == [[2.0] * 3] * 2


def test_replaced_while_it_is_opened(file, monkeypatch):
    """Header and arrays are those of one file, the new one, whenever the other save was done.

    The library opens only a file that is not to the letter as fastgd writes it.
    """
    forge(file)
    open_it, opened = safetensors.safe_open, []

    def slow(path, framework):
        opened.append(path)
        if len(opened) == 1:
            fastgd.save(file, stepped(3.0), metadata={"epoch": 4})
        return open_it(path, framework=framework)

    monkeypatch.setattr(safetensors, "safe_open", slow)
    opt = stepped(5.0)
    assert fastgd.load(file, opt) == {"epoch": 4}
    assert opt.lr == 3.0
    assert len(opened) == 2


@pytest.mark.parametrize("piece", [1, 7, 8, 1000])
def test_read_in_pieces(piece, file, target, tmp_path, monkeypatch):
    monkeypatch.setattr(_container, "READ", piece)
    monkeypatch.setattr(_container, "SMALL", 0)
    assert fastgd.load(file, stepped(5.0))["epoch"] == 3
    data, flipped = file.read_bytes(), tmp_path / "flipped"
    for n in range(8 + int.from_bytes(data[:8], "little"), len(data)):
        flipped.write_bytes(data[:n] + bytes([data[n] ^ 1]) + data[n + 1 :])
        target.refuses(flipped, ".*its bits have changed")


def test_memory_of_a_load(tmp_path):
    """As much as the arrays take, and no more: nothing is read twice over."""
    path, size = tmp_path / "large", 16 * 2**20
    fastgd.save(path, params=np.ones(size // 8))
    back = np.zeros(size // 8)
    tracemalloc.start()
    try:
        fastgd.load(path, params=back)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert back.all()
    assert size <= peak < size + 2**20


# ----------------------------------------------------------------------------------- and chance


@pytest.mark.more
def test_changed_at_random(tmp_path):
    """The fuzzer's changes without its guidance: see tools/fuzz_checkpoint.py."""
    rng = random.Random(0)
    mutate = fuzz_checkpoint.change_bytes(rng)
    corpus, loader = list(fuzz_checkpoint.seeds(tmp_path)), fuzz_checkpoint.Loader(tmp_path)
    for data in corpus:
        loader(data)
    assert loader.loaded == len(corpus)
    changes = by_level(300, 2000, 10_000)
    for _ in range(changes):
        loader(fuzz_checkpoint.changed(rng.choice(corpus), rng, mutate))
    # Else the changes would all be too large, or too small.
    assert loader.loaded > changes / 30
    assert loader.refused > changes / 3
