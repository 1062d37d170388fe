"""Trees of parameters (an array, or nested lists and dicts of arrays) as flat lists of leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set, ValuesView
from typing import Any

import numpy as np

# The shape of a tree: None for a leaf, a list or a dict of structures for a node.
Structure = None | list[Any] | dict[Any, Any]
Path = tuple[object, ...]
Name = int | str


def flatten(
    tree: object, path: Path = (), name: str = "params"
) -> tuple[Structure, list[tuple[Path, Any]]]:
    """The structure of a tree, and its leaves with their paths, in order.

    Dicts, lists, tuples, iterators and a dict's values are nodes; everything else is a leaf.

    Parameters
    ----------
    tree : object
        The tree.
    path : tuple
        Where it is in a larger tree; the paths of its leaves begin with it.
    name : str
        The argument that it is, for errors.

    Raises
    ------
    TypeError
        If a set is in the tree, whose elements have no order.
    ValueError
        If it is nested without end.
    """
    if isinstance(tree, Mapping):
        pairs: list[tuple[object, Any]] = list(tree.items())
    elif isinstance(tree, (list, tuple, Iterator, ValuesView)):
        pairs = list(enumerate(tree))
    elif isinstance(tree, Set):
        found = type(tree).__name__
        raise TypeError(f"{name}: expected a list or dict, found a {found}, which has no order")
    else:
        return None, [(path, tree)]
    leaves: list[tuple[Path, Any]] = []
    children: list[Structure] = []
    try:
        for key, child in pairs:
            if type(child) is np.ndarray:  # as most are
                children.append(None)
                leaves.append(((*path, key), child))
                continue
            structure, inner = flatten(child, (*path, key), name)
            children.append(structure)
            leaves += inner
    except RecursionError:
        raise ValueError(f"{name}: nested without end (does it contain itself?)") from None
    if isinstance(tree, Mapping):
        return dict(zip(tree, children, strict=True)), leaves
    return children, leaves


def unflatten(structure: Structure, leaves: Iterator[Any]) -> Any:
    """The tree of that structure with these leaves."""
    if isinstance(structure, dict):
        return {key: unflatten(child, leaves) for key, child in structure.items()}
    if isinstance(structure, list):
        return [unflatten(child, leaves) for child in structure]
    return next(leaves)


def leaves_as(structure: Structure, tree: Any) -> list[Any] | None:
    """What stands in a tree where a structure has leaves, in order; None if it is another."""
    if structure is None:
        return [tree]
    if isinstance(structure, dict):
        if not isinstance(tree, Mapping) or tree.keys() != structure.keys():
            return None
        pairs = [(own, tree[key]) for key, own in structure.items()]
    else:
        if not isinstance(tree, (list, tuple)) or len(tree) != len(structure):
            return None
        pairs = list(zip(structure, tree, strict=True))
    found = []
    for own, inner in pairs:
        leaves = leaves_as(own, inner)
        if leaves is None:
            return None
        found += leaves
    return found


def name_of(path: Path) -> Name:
    """The name of a leaf: its index in a list, else its keys joined by dots."""
    if not path:
        return 0
    if len(path) == 1 and isinstance(path[0], int):
        return path[0]
    return ".".join(map(str, path))
