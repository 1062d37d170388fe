"""Checkpoints of all ranks together: a file for each, and an index that says which belong together.

A file is one of `fastgd.save`, of the rank's optimizer; its metadata say which elements of each
parameter it holds.  So any number of ranks can take what it needs from the files of any other.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgd import checkpoint
from fastgd.checkpoint import CheckpointError
from fastgd.checkpoint.packing import pack
from fastgd.core.optimizer import Optimizer
from fastgd.core.state_dict import copied
from fastgd.core.storage import scales_in
from fastgd.kernels.memory.checks import shown
from fastgd.kernels.spec.codecs import TILE
from fastgd.mpi._link import NO_BITS, Link, RankError
from fastgd.mpi._space import pieces, spaces

Array = NDArray[Any]

FORMAT = "fastgd.mpi 1"
INDEX = "index.safetensors"
_FILE = re.compile(r"rank-\d+-of-\d+-([0-9a-f]{16})\.safetensors")


# The elements of a parameter that a rank has, from and to.
Span = tuple[int, int]


class Part(NamedTuple):
    """What a rank has of a parameter."""

    label: str
    line: str  # the parameter, with dtype, shape and order, in words
    whole: Array
    low: int
    high: int


def _file(rank: int, ranks: int, token: str) -> str:
    return f"rank-{rank:05d}-of-{ranks:05d}-{token}.safetensors"


# ------------------------------------------------------------------------------------------ saving


def save(
    link: Link,
    which: str,
    shard: Optimizer,
    parts: Sequence[Part],
    min_8bit_size: int | None,
    path: Any,
    metadata: Mapping[str, Any] | None,
) -> None:
    """Write this rank's file and, on rank 0, the index; a collective call.

    Ranks save the same optimizer, which is said by the line `which`.
    """
    token, folder = _attempt(
        link,
        "save",
        lambda: _begin(shard, path, metadata),
        # In ASCII, as the name of a folder may be any bytes.
        lambda found: [which, f"path: {found[1]!a}"],
    )

    def make() -> None:
        if link.rank == 0:
            os.makedirs(folder, exist_ok=True)

    _attempt(link, "save: its folder", make)
    token = link.gather_objects(token)[0]
    own = os.path.join(folder, _file(link.rank, link.size, token))
    about = {
        "format": FORMAT,
        "set": token,
        "rank": link.rank,
        "ranks": link.size,
        "parts": [[part.low, part.high] for part in parts],
        "names": list(shard.state),
    }
    content = {key: about[key] for key in ("format", "set", "ranks")}
    content |= {"min_8bit_size": min_8bit_size, "params": [part.line for part in parts]}
    content["metadata"] = dict(metadata or {})

    def see() -> None:
        for rank in range(link.size if link.rank == 0 else 0):
            if not os.path.exists(name := os.path.join(folder, _file(rank, link.size, token))):
                raise FileNotFoundError(
                    f"path: expected a folder that all ranks see, found no {name} of rank {rank}"
                )

    try:
        _attempt(link, "save: its file", lambda: checkpoint.save(own, shard, metadata=about))
        _attempt(link, "save: all files", see)
    except RankError:  # of which the others' files may be there, and the index not
        raise
    except Exception:
        with suppress(OSError):
            os.unlink(own)
        raise

    def commit() -> None:
        if link.rank == 0:
            checkpoint.save(os.path.join(folder, INDEX), params=[], metadata=content)
            _remove_others(folder, token)

    # If this fails the index may be either one: both sets stay, for the next save to tidy up.
    _attempt(link, "save: its index", commit)


def _begin(shard: Optimizer, path: Any, metadata: Any) -> tuple[str, str]:
    """A name for the set, of which rank 0's is taken, and the folder."""
    if shard.average is not None:
        shard.average.refuse_swapped("save")
    folder = checkpoint.as_path(path)
    folder = os.path.abspath(folder) if folder else folder
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(f"metadata: expected a dict, found {type(metadata).__name__}")
    pack(dict(metadata or {}), ("metadata",), {})  # raises what can't be saved
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise FileExistsError(f"path: expected a folder, found a file: {folder}")
    return secrets.token_hex(8), folder


def _remove_others(folder: str, token: str) -> None:
    """Remove the files of other sets than the one that the index names."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if (match := _FILE.fullmatch(name)) and match[1] != token:
                os.unlink(os.path.join(folder, name))


def _attempt(
    link: Link,
    call: str,
    work: Callable[[], Any],
    lines: Callable[[Any], list[str]] = lambda _: [],
) -> Any:
    """What a rank does by itself; all raise if it fails on one of them."""
    result = error = None
    same: list[str] = []
    try:
        result = work()
        same = lines(result)
    except Exception as caught:
        error = caught
    link.agree(call, error, same, NO_BITS)
    return result


# ----------------------------------------------------------------------------------------- loading


def load(
    link: Link, which: str, shard: Optimizer, parts: Sequence[Part], path: Any
) -> dict[str, Any]:
    """Take this rank's pieces from the files that have them; a collective call."""
    index, taken = _attempt(
        link,
        "load",
        lambda: _read(shard, parts, path),
        lambda found: [which, f"set: {found[0]['set']}"],
    )
    before = shard.state_dict()
    done = False

    def take() -> None:
        nonlocal done
        try:
            shard.load_state_dict(taken.state_dict)
        except (TypeError, ValueError, KeyError) as error:
            text = error.args[0] if error.args else error
            raise CheckpointError(f"{os.fsdecode(path)}: {text}") from error
        done = True

    try:
        _attempt(link, "load: its states", take)
    except BaseException:
        if done:  # and not on another rank
            shard.load_state_dict(before)
        raise
    own_pieces = [p for group in shard.param_groups for p in group["params"]]
    for own, saved in zip(own_pieces, taken.params, strict=True):
        own[...] = saved
    metadata: dict[str, Any] = index["metadata"]
    return metadata


class Taken(NamedTuple):
    """What a rank takes from a checkpoint."""

    state_dict: dict[str, Any]
    params: list[Array]  # the pieces


def _read(shard: Optimizer, parts: Sequence[Part], path: Any) -> tuple[dict[str, Any], Taken]:
    """The index, and this rank's pieces; everything is checked but what the optimizer checks."""
    if shard.average is not None:
        shard.average.refuse_swapped("load")
    folder = checkpoint.as_path(path)
    name = os.path.join(folder, INDEX)
    index = checkpoint.read_content(name)["metadata"]
    keys = {"format", "set", "ranks", "min_8bit_size", "params", "metadata"}
    if index.get("format") != FORMAT or set(index) != keys:
        raise CheckpointError(f"{name}: expected an index of {FORMAT!r}, found {shown(index)}")
    lines = [part.line for part in parts]
    if sorted(index["params"]) != sorted(lines):
        for line in index["params"]:
            if line not in lines:
                label = line.partition(": ")[0]
                ours = [part.line for part in parts if part.label == label]
                expected = ours[0] if ours else f"no {label}"
                raise CheckpointError(f"{name}: expected {expected}, found {line}")
        found = len(index["params"])
        raise CheckpointError(f"{name}: expected {len(parts)} parameters, found {found}")
    places = [index["params"].index(line) for line in lines]
    whole = [parts[places.index(j)].whole for j in range(len(parts))]
    cut = spaces(whole, index["ranks"], index["min_8bit_size"])
    collected = Collected(parts, places)
    for rank in range(index["ranks"]):
        spans = pieces(cut, rank)
        # The first has what all have alike.
        if rank == 0 or collected.wants(spans):
            file = os.path.join(folder, _file(rank, index["ranks"], index["set"]))
            try:
                content = checkpoint.read_content(file)
            except FileNotFoundError:
                raise CheckpointError(
                    f"{name}: expected the files of {index['ranks']} ranks, found no {file}"
                ) from None
            about = {
                "format": FORMAT,
                "set": index["set"],
                "rank": rank,
                "ranks": index["ranks"],
                "parts": [[*span] for span in spans],
            }
            for key, expected in about.items():
                if (found := content["metadata"].get(key)) != expected:
                    raise CheckpointError(
                        f"{file}: {key}: expected {shown(expected)} as the index says, "
                        f"found {shown(found)}"
                    )
            if content["optimizer"] != type(shard).__name__:
                expected, found = type(shard).__name__, content["optimizer"]
                raise CheckpointError(f"{file}: optimizer: expected {expected}, found {found}")
            collected.add(content, spans)
    return index, collected.taken(shard)


class Collected:
    """Pieces of parameters and of what goes with them, put together from files in ranks' order."""

    def __init__(self, parts: Sequence[Part], places: Sequence[int]) -> None:
        self._parts, self._places = parts, places  # which of the saved parameters each is
        self._first: dict[str, Any] = {}
        self._params: list[list[Array]] = [[] for _ in parts]
        self._entries: list[list[tuple[int, dict[str, Any]]]] = [[] for _ in parts]
        self._averages: list[list[Array]] = [[] for _ in parts]
        self._grads: list[list[Array]] = [[] for _ in parts]

    def _wanted(self, spans: Sequence[Span]) -> Iterator[tuple[int, slice]]:
        """Which parameters have elements here and there, and where in the saved piece."""
        for i, (part, j) in enumerate(zip(self._parts, self._places, strict=True)):
            low, high = max(part.low, spans[j][0]), min(part.high, spans[j][1])
            if low < high:
                yield i, slice(low - spans[j][0], high - spans[j][0])

    def wants(self, spans: Sequence[Span]) -> bool:
        """Whether a file with these elements of each parameter has any that are wanted."""
        return next(self._wanted(spans), None) is not None

    def add(self, content: dict[str, Any], spans: Sequence[Span]) -> None:
        """Take what is wanted from the content of a file."""
        opt, groups, names = content["opt"], content["params"], content["metadata"]["names"]
        groups = groups if isinstance(groups, list) else [groups]
        params = [a for group in groups for a in group.values()]
        averages = list(opt["fastgd"].get("average", {"averages": {}})["averages"].values())
        grads = opt["fastgd"].get("accumulated", {"grads": {}})["grads"]
        wanted = dict(self._wanted(spans))
        if not self._first:
            self._first = opt
            # Of parameters of which this rank has nothing: what all have alike.
            wanted = {i: wanted.get(i, slice(0, 0)) for i in range(len(self._parts))}
        for i, inside in wanted.items():
            j = self._places[i]
            self._params[i].append(params[j][inside].copy())
            saved = opt["state"].get(j, {})
            scales = scales_in(saved)
            entry = {
                key: a if np.ndim(a) == 0 else a[_tiles(inside) if key in scales else inside]
                for key, a in saved.items()
            }
            self._entries[i].append((inside.stop - inside.start, copied(entry)))
            if averages:
                self._averages[i].append(averages[j][inside].copy())
            if names[j] in grads:
                self._grads[i].append(grads[names[j]][inside].copy())

    def taken(self, shard: Optimizer) -> Taken:
        """All of it, in the form of the optimizer's state dict."""
        first, names = self._first, list(shard.state)
        state = {i: _joined(entries) for i, entries in enumerate(self._entries)}
        groups, start = [], 0
        for group, saved in zip(shard.param_groups, first["param_groups"], strict=False):
            end = start + len(group["params"])
            numbers = {"params": list(range(start, end)), "param_names": group["param_names"]}
            groups.append({**saved, **numbers})
            start = end
        extras = {key: first["fastgd"][key] for key in first["fastgd"] if key != "layouts"}
        if "average" in extras:
            averages = dict(zip(names, map(np.concatenate, self._averages), strict=True))
            extras["average"] = {**extras["average"], "averages": averages}
        if "accumulated" in extras:
            grads = {n: np.concatenate(g) for n, g in zip(names, self._grads, strict=True) if g}
            extras["accumulated"] = {**extras["accumulated"], "grads": grads}
        state = {i: entry for i, entry in state.items() if entry}
        state_dict = {"state": state, "param_groups": groups, "fastgd": extras}
        return Taken(state_dict, [np.concatenate(parts) for parts in self._params])


def _tiles(inside: slice) -> slice:
    """The scales of elements, which begin at a multiple of `TILE`."""
    return slice(inside.start // TILE, -(-inside.stop // TILE))


def _joined(entries: Sequence[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    """The states of pieces one after the other; those that had none yet are zeros.

    All pieces have the same numbers, as they have taken the same steps.
    """
    whole: dict[str, Any] = {}
    for _, entry in entries:
        whole.update(entry)
    scales = scales_in(whole)
    for key in [key for key, a in whole.items() if np.ndim(a)]:
        kind = whole[key].dtype
        pieces = [
            entry[key] if key in entry else np.zeros(-(-n // TILE) if key in scales else n, kind)
            for n, entry in entries
        ]
        whole[key] = np.concatenate(pieces)
    return whole
