"""The parameters of an optimizer in their groups, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from fastgd.core.contract import Contract
from fastgd.core.groups import Changes, ParamGroup
from fastgd.core.home import Home
from fastgd.core.storage import Piece, Storage
from fastgd.core.trees import Name, Path, Structure, flatten, name_of
from fastgd.kernels._engine import is_parameter
from fastgd.kernels.memory import checks
from fastgd.kernels.memory.checks import shown

Array = NDArray[Any]


class Grouped:
    """Parameters in groups: what `Stepper` is given, checked; see there for the attributes."""

    kind: type[Contract]
    defaults: Mapping[str, Any]
    storage: Storage
    param_groups: tuple[ParamGroup, ...]
    names: tuple[tuple[Name, ...], ...]
    homes: dict[int, Home]
    structure: Structure
    _paths: tuple[Path, ...]  # where each parameter stands in what was given
    _changes: Changes

    def params(self) -> dict[Name, Array]:
        """All parameters by name, in order."""
        return {
            name: p
            for names, group in zip(self.names, self.param_groups, strict=True)
            for name, p in zip(names, group["params"], strict=True)
        }

    def labels(self) -> checks.Labels:
        """What to call each parameter in an error, after ``params``."""
        return checks.Labels(self._paths)

    def _label_of(self, shape: tuple[int, ...]) -> str:
        """What to call the first parameter of a shape in an error."""
        shapes = [self.storage.shape(p) for group in self.param_groups for p in group["params"]]
        return f"params{self.labels()[shapes.index(shape)]}"

    def _take_groups(self, given: Sequence[tuple[Any, Path]]) -> list[Structure]:
        """Check groups, each with the path to it, and append them; returns their structures."""
        taken = {name for names in self.names for name in names}
        structures: list[Structure] = []
        groups: list[ParamGroup] = []
        names: list[tuple[Name, ...]] = []
        paths: list[Path] = []
        pieces: list[Piece] = []
        homes: list[Home] = []
        for group, prefix in given:
            where = f"params{checks.label(prefix)}"
            if not isinstance(group, Mapping) or "params" not in group:
                raise TypeError(
                    f"{where}: expected a group, a dict with 'params', found {shown(group)}"
                )
            structure, leaves = flatten(group["params"])
            if not leaves and not prefix:
                raise ValueError(f"{where}: expected at least one parameter, found none")
            own = [(*prefix, *path) for path, _ in leaves] if prefix else [p for p, _ in leaves]
            names.append(tuple(map(name_of, own)))
            for name in names[-1]:
                if name in taken:
                    raise ValueError(f"{where}: two parameters are named {name!r}")
                taken.add(name)
            arrays = tuple(
                self._array(leaf, path) for (_, leaf), path in zip(leaves, own, strict=True)
            )
            for p, path in zip(arrays, own, strict=True):
                if p.itemsize == 2:
                    self.storage.refuse_unchosen(p, f"params{checks.label(path)}")
            groups.append(
                ParamGroup(
                    {"params": arrays, "param_names": tuple(name_of(path) for path, _ in leaves)},
                    {**self.defaults, **{key: group[key] for key in group if key != "params"}},
                    {key: self.kind.domains[key] for key in self.defaults},
                    self.kind.fits,
                    f"{where}: " if prefix else "",
                    self._changes,
                )
            )
            structures.append(structure)
            paths += own
            pieces += [leaf for _, leaf in leaves if isinstance(leaf, Piece)]
            homes += [leaf for _, leaf in leaves if isinstance(leaf, Home)]
        if not paths and not self._paths:
            raise ValueError("params: expected at least one parameter, found none in any group")
        self.storage = self.storage.with_pieces(pieces)
        self.homes = {**self.homes, **{id(home.array): home for home in homes}}
        self.param_groups += tuple(groups)
        self.names += tuple(names)
        self._paths += tuple(paths)
        return structures

    @staticmethod
    def _array(leaf: Any, path: Path) -> Array:
        """The array of a parameter, checked."""
        given = leaf.array if isinstance(leaf, (Piece, Home)) else leaf
        if is_parameter(given):
            return given
        return checks.check_parameter(given, f"params{checks.label(path)}", checks.ANY)
