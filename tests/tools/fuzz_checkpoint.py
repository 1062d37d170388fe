"""Fuzzes `fastgd.load`: changed checkpoints must load, or raise CheckpointError and change nothing.

``make fuzz-checkpoint`` runs it for ten minutes under atheris, guided by the coverage of fastgd's own
Python; ``python tests/tools/fuzz_checkpoint.py FOLDER -max_total_time=60`` keeps the inputs that found new
paths in FOLDER, and takes libFuzzer's options.  test_checkpoint_corruption.py runs the same changes unguided.

Half of the changes are of bytes.  As checksums would stop all of these at the door, the other half
are of the content, which is then sealed again as `fastgd.save` would have done it.
"""

from __future__ import annotations

import copy
import json
import random
import re
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import load, save

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["fastgd"]):
        import fastgd
        import fastgd.checkpoint
else:
    import fastgd

# What is worth trying in the place of anything.
VALUES = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**53, 2**53 + 1, 2**63, 2**64, 10**400, 0.0, -0.0, 0.5, 1.0,
    -1.0, 1e308, 5e-324, "", "0", "a", "params", "é", "\ud800", "\0", [], {}, [0], [[]], [{}], {"": 0},
    {"$float": "nan"}, {"$float": "inf"}, {"$tuple": []}, {"$tuple": [0.5, 0.5]}, {"$dict": []},
    {"$dict": [[0, 0]]}, {"$dict": [[[], 0]]}, {"$array": "params.a"}, {"$scalar": 1},
    {"$array": "params.a", "dtype": "float64", "shape": [2], "crc32": "00000000"},
]  # fmt: skip


def made(name):
    """An optimizer with something of everything, that has stepped."""
    cls = getattr(fastgd, name)
    a, b, c = np.full(2, 1.0), np.asfortranarray(np.full((2, 3), 2.0)), np.zeros((0, 2), np.float32)
    if name == "AdamW":
        opt = cls([{"params": {"a": a, "in": {"b": b}}, "lr": 0.5}, {"params": [c, np.ones(())]}])
        opt.step([{"a": np.ones(2), "in": {"b": None}}, [None, np.ones(())]])
    elif name == "SGD":
        opt = cls([a, b, c], lr=lambda step: 0.1 / (1 + step), momentum=0.9)
        opt.step([np.ones(2), np.asfortranarray(np.ones((2, 3))), c.copy()])
    else:
        opt = cls({"a": a, "in": {"b": b}})
        opt.step({"a": np.ones(2), "in": {"b": np.asfortranarray(np.ones((2, 3)))}})
    return opt


NAMES = tuple(fastgd.optimizers.GENERAL)


def seeds(folder):
    """A checkpoint of each kind, as bytes."""
    metadata = {"epoch": 3, 7: (1.5, None, float("nan")), "rng": np.random.PCG64(0).state}
    for name in NAMES:
        path = Path(folder) / name
        fastgd.save(path, made(name), metadata=metadata | {"mask": np.array([True])})
        yield path.read_bytes()


# -------------------------------------------------------------------------------- the changes


def opened(data):
    """The metadata, the content and the arrays of a checkpoint, or None if it has none."""
    try:
        head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = head["__metadata__"]
        return metadata, json.loads(metadata["content"]), load(bytes(data))
    except (ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError):
        return None


def sealed(metadata, content, arrays):
    text = content if isinstance(content, str) else json.dumps(content, separators=(",", ":"))
    checksum = f"{zlib.crc32(text.encode()):08x}"
    return save(arrays, {**metadata, "content": text, "crc32": checksum})


def places(tree):
    """Every place in a tree, as what holds it and the key or index there."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield tree, key
        if isinstance(value, (dict, list)):
            yield from places(value)


def change_content(content, arrays, rng, mutate):
    """Change one place in the content, or one array and its description with it."""
    spots = list(places(content)) if isinstance(content, (dict, list)) else []
    if rng.random() < 0.8:  # most of what there is describes arrays, where any change is fatal
        spots = [(h, k) for h, k in spots if not (isinstance(h, dict) and "$array" in h)]
    if not spots:
        return VALUES[rng.randrange(len(VALUES))]
    holder, key = rng.choice(spots)
    other, other_key = rng.choice(spots)
    kind = rng.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder[key] = copy.deepcopy(other[other_key])
    elif kind == 2:
        holder[key], other[other_key] = copy.deepcopy(other[other_key]), copy.deepcopy(holder[key])
    elif kind == 3 and isinstance(holder, dict):
        new = [k for k in ("step", "params", "lr", "$array", "betas", "0") if k not in holder]
        holder[rng.choice(new or [key])] = copy.deepcopy(rng.choice(VALUES))
    elif kind == 3:
        holder.insert(key, copy.deepcopy(other[other_key]))
    elif kind == 4 and isinstance(holder[key], str):
        text = mutate(holder[key].encode("utf-8", "replace"))
        holder[key] = text.decode("utf-8", "replace")
    elif kind == 5 and arrays:
        change_array(content, arrays, rng)
    else:
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    return content


def change_array(content, arrays, rng):
    name = rng.choice(sorted(arrays))
    dtype = rng.choice(["float64", "float32", "bool", "uint8", "int64"])
    shape = rng.choice([(), (0,), (2,), (2, 3), (1, 2), (0, 2), (3, 2)])
    a = arrays[name] = np.full(shape, rng.choice([0, 1, 3, 200])).astype(dtype)
    for holder, key in list(places(content)):
        if key == "$array" and holder[key] == name:
            holder |= {
                "dtype": dtype,
                "shape": list(shape),
                "crc32": f"{zlib.crc32(a.tobytes()):08x}",
            }


def changed(data, rng, mutate):
    """Another input from one: `mutate` changes bytes, `rng` draws."""
    parts = opened(data) if rng.random() < 0.5 else None
    if parts is None:
        return mutate(bytes(data))
    metadata, content, arrays = parts
    arrays = dict(arrays)
    if rng.random() < 0.1:
        text = mutate(json.dumps(content).encode()).decode("utf-8", "replace")
        return sealed(metadata, text, arrays)
    for _ in range(rng.choice([1, 1, 2, 4])):
        content = change_content(content, arrays, rng, mutate)
    try:
        return sealed(metadata, content, arrays)
    except (RecursionError, ValueError):
        return mutate(bytes(data))


def change_bytes(rng):
    """A change of bytes without atheris."""

    def mutate(data):
        data = bytearray(data or b" ")
        for _ in range(rng.choice([1, 1, 2, 8])):
            n = rng.randrange(len(data))
            kind = rng.randrange(4)
            if kind == 0:
                data[n] ^= 1 << rng.randrange(8)
            elif kind == 1:
                data[n : n + rng.randrange(1, 9)] = b""
            elif kind == 2:
                data[n:n] = rng.randbytes(rng.randrange(1, 9))
            else:
                data[n] = rng.randrange(256)
            data = data or bytearray(b" ")
        return bytes(data)

    return mutate


# ---------------------------------------------------------------------------------- the check


class Loader:
    """Optimizers to load inputs into."""

    def __init__(self, folder):
        self.file = Path(folder) / "input"
        self.targets = {name: made(name) for name in NAMES}
        self.clean = {name: opt.state_dict() for name, opt in self.targets.items()}
        self.values = {name: [p.copy() for p in self.params(name)] for name in NAMES}
        self.loaded = self.refused = 0

    def params(self, name):
        return [p for group in self.targets[name].param_groups for p in group["params"]]

    def look(self, name):
        """All that an optimizer holds."""
        opt = self.targets[name]
        hyper = [{k: g[k] for k in opt.defaults} for g in opt.param_groups]
        states = [a.tobytes() for s in opt.state.values() for a in s.values()]
        return [p.tobytes() for p in self.params(name)], states, hyper

    def __call__(self, data):
        self.file.write_bytes(data)
        found = re.search(rb'optimizer\\":\\"(\w+)', data)
        name = found[1].decode("ascii", "replace") if found else "Adam"
        name = name if name in self.targets else "Adam"
        opt, before = self.targets[name], self.look(name)
        try:
            fastgd.load(self.file, opt)
        except fastgd.CheckpointError as error:
            self.refused += 1
            message = str(error)
        else:
            self.loaded += 1
            message = ""
        if message:
            assert message.startswith(f"{self.file}: ")
            assert len(message) < 5000, message
            assert self.look(name) == before, f"it has changed something, and then: {message}"
            return
        opt.step(self.zeros(name))
        opt.load_state_dict(self.clean[name])
        for p, value in zip(self.params(name), self.values[name], strict=True):
            p[...] = value

    def zeros(self, name):
        """Gradients, as what was loaded has to be fit for a step."""
        if name == "AdamW":
            return [{"a": np.zeros(2), "in": {"b": None}}, [None, np.zeros(())]]
        if name == "SGD":
            return [np.zeros(2), None, None]
        return {"a": np.zeros(2), "in": {"b": None}}


def main():
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as tmp:
        folder = next((a for a in sys.argv[1:] if not a.startswith("-")), None)
        corpus = Path(folder or Path(tmp) / "corpus")
        corpus.mkdir(parents=True, exist_ok=True)
        for k, data in enumerate(seeds(tmp)):
            (corpus / f"seed{k}").write_bytes(data)
        loader = Loader(tmp)

        def mutator(data, max_size, seed):
            def mutate(piece):
                return atheris.Mutate(piece, max(len(piece) + 64, 64))

            return changed(data, random.Random(seed), mutate)[:max_size]

        options = [a for a in sys.argv[1:] if a.startswith("-")]
        argv = [sys.argv[0], str(corpus), "-max_len=16384", *options]
        atheris.Setup(argv, loader, custom_mutator=mutator)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
