"""Checkpoints: an optimizer, its parameters and a run's metadata, saved to one file and loaded.

The file is in the safetensors format, so that other programs can read its arrays: the parameters
are named ``params.…`` there, the states ``opt.state.…``.  All else is JSON in its metadata, see
`fastgd.checkpoint.container`.  Nothing in it is code.
"""

from __future__ import annotations

import gc
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgd._version import __version__
from fastgd.checkpoint import container as _container
from fastgd.checkpoint.atomic import replacement
from fastgd.checkpoint.packing import Stored, pack
from fastgd.core.optimizer import Optimizer
from fastgd.core.state_dict import match
from fastgd.core.trees import Name, flatten, name_of
from fastgd.kernels.memory import checks

__all__ = ["CheckpointError", "load", "save"]

Array = NDArray[Any]
Named = dict[Name, Any]


class CheckpointError(ValueError):
    """A file is no checkpoint, is corrupted, or doesn't fit what it is to be loaded into.

    The message begins with the file's path, and says what was expected and found.
    """


def save(
    path: str | os.PathLike[str],
    opt: Optimizer | None = None,
    *,
    params: object = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write an optimizer and its parameters to a file, which is replaced whole or not at all.

    Parameters
    ----------
    path : str or path-like
        The file.  An existing one stays as it is until the new one is safely on the disk; the
        target of a symbolic link is replaced, and permissions are kept.
    opt : Optimizer, optional
        The optimizer whose hyper-parameters, states and step counts to save.
    params : array, nested lists and dicts of arrays, or groups, optional
        The parameters, by default those of `opt`.  Give a model's whole tree if it also has arrays
        that are not trained; an empty list saves none.
    metadata : dict, optional
        What else the run needs to resume, say the epoch or a generator's ``bit_generator.state``:
        numbers, strings, None, arrays, and lists, tuples and dicts of these.

    Raises
    ------
    OSError
        If the file can't be written, as on a full disk.
    TypeError, ValueError
        If something in `params` or `metadata` can't be saved, or there is nothing to save.
    RuntimeError
        If the optimizer's averages are swapped in for the weights.
    ImportError
        If safetensors is not installed.

    Notes
    -----
    The file is replaced atomically: whatever is raised, and whenever the process is killed, there
    is the old checkpoint or the complete new one.  The new one is written to a temporary file in
    the same folder, flushed to the disk (fsync), and renamed.  A killed process leaves a file
    ``.fastgd-….tmp``, which the next save into the folder removes.

    Steps of other threads wait while the file is written, not while it is flushed to the disk.
    Schedules are code; what is saved of one is its last value.

    Examples
    --------
    >>> import tempfile, numpy as np, fastgd
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = f"{folder.name}/run.safetensors"
    >>> params = {"W": np.ones(2)}
    >>> opt = fastgd.Adam(params, lr=0.1)
    >>> _ = opt.step({"W": np.ones(2)})
    >>> fastgd.save(file, opt, metadata={"epoch": 3})

    And in another process:

    >>> params = {"W": np.zeros(2)}
    >>> opt = fastgd.Adam(params)
    >>> fastgd.load(file, opt)
    {'epoch': 3}
    >>> params["W"], opt.lr, int(opt.state["W"]["step"])
    (array([0.9, 0.9]), 0.1, 1)
    >>> folder.cleanup()
    """
    safetensors = _container.library("fastgd.save")
    file = as_path(path)
    _check_optimizer(opt)
    if opt is None and params is None:
        raise ValueError("params: expected parameters or an optimizer to save, found neither")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(f"metadata: expected a dict, found {type(metadata).__name__}")
    arrays: dict[str, Stored] = {}
    content = {
        "written_by": pack(f"fastgd {__version__}", (), arrays),
        "optimizer": pack(None if opt is None else opt.title, (), arrays),
        "opt": ["null"],
        "metadata": pack(dict(metadata or {}), ("metadata",), arrays),
    }
    with replacement(file) as new:
        with nullcontext() if opt is None else opt.stepper.following(keep=False), _uncollected():
            _refuse_elsewhere(opt, "save")
            written = None if opt is None else opt.written()
            named = _parameters(opt, params)
            content["params"] = pack(named[0] if len(named) == 1 else named, ("params",), arrays)
            if written is not None:
                content["opt"] = pack(written, ("opt",), arrays)
            _container.write(new, content, arrays)
        _container.check(new.name, file, safetensors)


def load(
    path: str | os.PathLike[str], opt: Optimizer | None = None, *, params: object = None
) -> dict[str, Any]:
    """Load an optimizer and its parameters, in place, from a file that `save` wrote.

    Make parameters and optimizer as for a new run, with the same schedules, and load: the steps
    that follow have the same bits as if the run had never stopped.

    Parameters
    ----------
    path : str or path-like
        The file.
    opt : Optimizer, optional
        The optimizer that gets the hyper-parameters, states and step counts; of the same class as
        the saved one, and with parameters of the same names, shapes and dtypes.
    params : array, nested lists and dicts of arrays, or groups, optional
        The arrays that get the parameters, by default those of `opt`; in the form in which they
        were saved.  They are matched as `Optimizer.load_state_dict` does: by name where both sides
        have names, else by order.  An empty list loads none, if none were saved.

    Returns
    -------
    dict
        The metadata given to `save`; empty if there was none.

    Raises
    ------
    CheckpointError
        A ValueError: if the file is no checkpoint or corrupted, or doesn't fit `opt` and `params`.
    OSError
        If the file can't be read, or doesn't exist.
    TypeError
        If something in `params` is not an array.
    RuntimeError
        If the optimizer's averages are swapped in for the weights.
    ImportError
        If safetensors is not installed.

    Notes
    -----
    Everything is read and checked, each bit by a checksum (CRC-32), before the first write: if
    anything is raised, optimizer and parameters are as they were.

    With `params` alone, only these are loaded, say to use a model without training it; with
    neither, the file is checked and its metadata returned.

    Examples
    --------
    >>> import tempfile, numpy as np, fastgd
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = f"{folder.name}/run.safetensors"
    >>> fastgd.save(file, params=[np.arange(3.0)])
    >>> w = np.zeros(3)
    >>> fastgd.load(file, params=[w])
    {}
    >>> w
    array([0., 1., 2.])
    >>> fastgd.load(file, params=[np.zeros(4)])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fastgd.checkpoint.CheckpointError: ...: params[0]: expected shape (4,), found (3,)
    >>> folder.cleanup()
    """
    file = as_path(path)
    _check_optimizer(opt)
    targets = None if opt is None and params is None else _parameters(opt, params)
    with _uncollected():
        return _loaded(file, opt, targets)


def _loaded(file: str, opt: Optimizer | None, targets: Sequence[Named] | None) -> dict[str, Any]:
    """Do what `load` says, and return the metadata."""
    content = read_content(file)
    with nullcontext() if opt is None else opt.stepper.lock:
        _refuse_elsewhere(opt, "load")
        try:
            pairs = [] if targets is None else _matched(targets, content["params"])
            if opt is not None:
                if content["optimizer"] != opt.title:
                    expected, found = opt.title, content["optimizer"] or "none"
                    raise ValueError(f"optimizer: expected {expected}, found {found}")
                opt.load_state_dict(content["opt"])
        except (TypeError, ValueError, KeyError) as error:
            # str() of a KeyError has quotes around it.
            raise CheckpointError(f"{file}: {error.args[0] if error.args else error}") from error
        for target, saved in pairs:
            target[...] = saved
        if opt is not None:
            opt.stepper.copy_out()
    metadata: dict[str, Any] = content["metadata"]
    return metadata


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pause the collection of garbage in cycles.

    Of the many objects that describe small arrays, and all live till the end, none is garbage:
    Python would look through them again and again.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def as_path(path: Any) -> str:
    """The path of a file or folder; raises TypeError if it is none."""
    try:
        return os.fsdecode(path)
    except TypeError:
        found = type(path).__name__
        raise TypeError(f"path: expected a str or a path, found {found}") from None


def _refuse_elsewhere(opt: Optimizer | None, what: str) -> None:
    """Raise RuntimeError while averages are swapped in, or parameters perturbed.

    They would be saved as weights; and loaded weights would be overwritten on restoring those.
    """
    if opt is not None:
        opt.stepper.refuse_elsewhere(what)


def _check_optimizer(opt: object) -> None:
    if opt is not None and not isinstance(opt, Optimizer):
        raise TypeError(f"opt: expected an optimizer, found {type(opt).__name__}")


def read_content(file: str) -> dict[str, Any]:
    """The content of a file, checked without regard to what it is to be loaded into."""
    safetensors = _container.library("fastgd.load")
    try:
        content = _container.read(file, safetensors)
        expected = {"written_by", "optimizer", "opt", "params", "metadata"}
        if not isinstance(content, dict) or set(content) != expected:
            found = reprlib.repr(content)
            raise ValueError(f"content: expected a dict of {sorted(expected)}, found {found}")
        if not isinstance(content["metadata"], dict):
            found = type(content["metadata"]).__name__
            raise ValueError(f"metadata: expected a dict, found a {found}")
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    return content


# ------------------------------------------------------------------------------ the parameters


def _parameters(opt: Optimizer | None, params: object) -> list[Named]:
    """The arrays of each group by name; a tree counts as one group."""
    if params is None:
        assert opt is not None
        groups = opt.param_groups
        return [dict(zip(g["param_names"], g["params"], strict=True)) for g in groups]
    if isinstance(params, Iterator):
        params = list(params)
    if isinstance(params, (list, tuple)) and any(
        isinstance(entry, Mapping) and "params" in entry for entry in params
    ):
        for k, group in enumerate(params):
            if not isinstance(group, Mapping) or "params" not in group:
                found = checks.shown(group)
                raise TypeError(f"params[{k}]: expected a dict with 'params', found {found}")
        return [_named(group["params"], (k,)) for k, group in enumerate(params)]
    return [_named(params, ())]


def _named(tree: object, prefix: tuple[object, ...]) -> Named:
    named: Named = {}
    for path, leaf in flatten(tree)[1]:
        name = name_of(path)
        if name in named:
            raise ValueError(f"params: two parameters are named {name!r}")
        named[name] = leaf
        if type(leaf) is not np.ndarray:
            label = checks.label((*prefix, *path))
            named[name] = checks.as_array(leaf, f"params{label}")
    return named


def _matched(targets: Sequence[Named], saved: Any) -> list[tuple[Array, Array]]:
    """Pairs of a target and the saved array to copy into it, checked."""
    groups = saved if isinstance(saved, list) else [saved]
    if not all(isinstance(group, dict) for group in groups):
        raise ValueError(f"params: expected arrays by name, found {reprlib.repr(saved)}")
    if len(groups) != len(targets):
        raise ValueError(f"params: expected {len(targets)} groups, found {len(groups)}")
    pairs = []
    for k, (ours, theirs) in enumerate(zip(targets, groups, strict=True)):
        prefix = (k,) if len(targets) > 1 else ()
        if len(ours) != len(theirs):
            where = f"params{checks.label(prefix)}"
            raise ValueError(f"{where}: expected {len(ours)} parameters, found {len(theirs)}")
        # By the rule that matches states to parameters.
        names = {"params": list(theirs.values()), "param_names": list(theirs)}
        try:
            matched = match(list(ours), names)
        except ValueError as error:
            raise ValueError(str(error).replace("state_dict:", "params:", 1)) from None
        for name, found in matched.items():
            pairs.append((ours[name], found))
            if not _fits_plainly(ours[name], found):
                _check_pair(ours[name], found, f"params{checks.label((*prefix, name))}")
    return pairs


def _fits_plainly(target: Array, found: Any) -> bool:
    """Whether a saved array can be copied into a target, at a glance."""
    return (
        type(found) is np.ndarray
        and target.dtype == found.dtype
        and target.shape == found.shape
        and target.flags.writeable
    )


def _check_pair(target: Array, found: Any, label: str) -> None:
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{label}: expected an array, found {reprlib.repr(found)}")
    if target.dtype.newbyteorder("=") != found.dtype.newbyteorder("="):
        raise ValueError(f"{label}: expected dtype {target.dtype}, found {found.dtype}")
    if target.shape != found.shape:
        raise ValueError(f"{label}: expected shape {target.shape}, found {found.shape}")
    if not target.flags.writeable:
        raise ValueError(f"{label}: expected a writeable array to load into, found a read-only one")
