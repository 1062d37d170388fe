"""Parameters as people hold them (an array, a list, a dict, nested) as one flat list of leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set, ValuesView
from typing import Any

# None for an array, a list or a dict of the same for what holds arrays.
Structure = None | list[Any] | dict[Any, Any]
Path = tuple[object, ...]
Name = int | str


def flatten(tree: object, path: Path = ()) -> tuple[Structure, list[tuple[Path, Any]]]:
    """The structure of a tree, and its leaves with their paths, in order.

    Dicts, lists, tuples, iterators and a dict's values hold leaves; everything else is one.

    Raises
    ------
    TypeError
        If something in the tree has no order (a set).
    ValueError
        If it is nested without end.
    """
    if isinstance(tree, Mapping):
        pairs: list[tuple[object, Any]] = list(tree.items())
    elif isinstance(tree, (list, tuple, Iterator, ValuesView)):
        pairs = list(enumerate(tree))
    elif isinstance(tree, Set):
        found = type(tree).__name__
        raise TypeError(f"params: expected a list or dict, found a {found}, which has no order")
    else:
        return None, [(path, tree)]
    leaves = []
    children = []
    try:
        for key, child in pairs:
            structure, inner = flatten(child, (*path, key))
            children.append(structure)
            leaves += inner
    except RecursionError:
        raise ValueError("params: expected an end to its nesting, found none") from None
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


def name_of(path: Path) -> Name:
    """What a leaf is called: its index in a list, else its keys joined by dots."""
    if not path:
        return 0
    if len(path) == 1 and isinstance(path[0], int):
        return path[0]
    return ".".join(map(str, path))
