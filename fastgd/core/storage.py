"""How an optimizer keeps its arrays: the types of parameters and states, and what goes with them.

Everything is computed in float64 for float64 parameters and in float32 for all others; what is kept
in fewer bytes is loaded and stored tile by tile in the sweep (`fastgd.kernels.spec.codecs`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgd.core.domains import one_of, whole
from fastgd.core.trees import Name
from fastgd.kernels.memory.alloc import zeros_beside
from fastgd.kernels.memory.checks import shown
from fastgd.kernels.reference import RULES
from fastgd.kernels.spec import norms
from fastgd.kernels.spec.codecs import CODECS
from fastgd.kernels.spec.coded_array import Stored, as_stored, codec_of, computed

Array = NDArray[Any]

STATE_DTYPES = ("float32", "float64", "bfloat16", "float16", "8bit")
ROUNDINGS = ("nearest", "stochastic")


def every_state() -> frozenset[str]:
    """The names of all rules' states."""
    return frozenset(key for rule in RULES.values() for key in rule.states)


def squares() -> frozenset[str]:
    """States that are never negative, which 8 bits can therefore keep with twice the range."""
    return frozenset[str]().union(*(rule.squares for rule in RULES.values()))


@dataclass(frozen=True, eq=False)
class Piece:
    """An array that stands for a parameter of which it is a piece, or a flat view.

    It is kept, and rounded stochastically, as the whole parameter's elements would be.
    """

    array: Array
    origin: int  # the parameter's elements before it
    whole: int  # the parameter's elements in all
    unit_length: int | None = None  # that of `norms.unit_length`, where the shape doesn't tell


class Storage(NamedTuple):
    """How an optimizer keeps its arrays; see `fastgd.Options`.

    ``pieces`` tells of the parameters that are only pieces, by the ``id`` of their array.
    """

    state_dtype: str | Mapping[str, str] | None = None
    master: bool | str = False
    rounding: str | None = None
    min_8bit_size: int = 4096
    seed: int = 0
    pieces: Mapping[int, Piece] | None = None

    def with_pieces(self, pieces: Iterable[Piece]) -> Storage:
        """The same, with more of the parameters being pieces."""
        known = {id(piece.array): piece for piece in pieces}
        return self._replace(pieces={**(self.pieces or {}), **known}) if known else self

    def piece(self, p: Array) -> Piece:
        """Which piece of a parameter this array is, mostly all of it."""
        return (self.pieces or {}).get(id(p)) or Piece(p, 0, p.size)

    def unit_length(self, p: Array) -> int:
        """The elements of each unit that `clip_ratio` is about; 0 if they are not contiguous."""
        known = self.piece(p).unit_length
        return norms.unit_length(p.shape, p.strides, p.itemsize) if known is None else known

    # ------------------------------------------------------------------------------- parameters

    def refuse_unchosen(self, p: Array, label: str) -> None:
        """Raise ValueError for a parameter of 16 bits that nobody said how to update.

        Rounded to nearest, most updates are too small to change it: a silent end of training.
        """
        kind = codec_of(p.dtype)
        if kind in {"float32", "float64"}:
            return
        if self.master == "split" and kind != "bfloat16":
            raise ValueError(f'{label}: expected bfloat16 for master="split", found {kind}')
        if not self.master and self.rounding is None:
            raise ValueError(
                f"{label}: is {kind}, which small updates don't change: choose master=True, "
                'master="split" or rounding="stochastic" (or "nearest", if you must)'
            )

    def has_master(self, p: Array) -> bool:
        """Whether the step works on a float32 master, of which the parameter is a copy."""
        return self.master is True and p.itemsize == 2

    def keys(self, p: Array, rule: str) -> list[str]:
        """What is kept of a parameter beside itself: the rule's states, and what they need."""
        keys = []
        for key in RULES[rule].states:
            keys.append(key)
            if CODECS[self.codec(p, key)].beside is not None:
                keys.append(f"{key}_scale")
        if self.master and p.itemsize == 2:
            keys.append("master" if self.master is True else "master_low")
        return keys

    def parameter(self, p: Array, kept: Mapping[str, Array]) -> Stored:
        """What the step updates."""
        if p.itemsize != 2 or not self.master:
            chance = p.itemsize == 2 and self.rounding == "stochastic"
            own = as_stored(p)._replace(stochastic=chance)
        elif self.master is True:
            own = as_stored(kept["master"])
        else:
            own = Stored(p, kept["master_low"], "split")
        return own._replace(origin=self.piece(p).origin)

    # ------------------------------------------------------------------------------------ states

    def codec(self, p: Array, key: str) -> str:
        """The codec that a state of a parameter is kept by."""
        wanted = self.state_dtype
        if isinstance(wanted, Mapping):
            wanted = wanted.get(key)
        if wanted is None or (wanted == "8bit" and self.piece(p).whole < self.min_8bit_size):
            return computed(p.dtype).name
        if wanted == "8bit":
            return "ue5m3" if key in squares() else "e4m3"
        return wanted

    def new(self, p: Array, key: str, start: float = 0.0) -> dict[str, Array]:
        """A state, or what goes with a parameter, as it is before the first step."""
        if key == "master":
            master = zeros_beside(p, np.float32)
            as_stored(master).raw()[...] = as_stored(p).load(np.float32)
            return {key: master}
        if key == "master_low":
            return {key: np.zeros(p.size, np.int16)}
        codec = CODECS[self.codec(p, key)]
        code = zeros_beside(p, codec.code)
        made = {key: _visible(code, codec.name)}
        if codec.beside is not None:
            made[f"{key}_scale"] = np.zeros(-(-p.size // codec.per), codec.beside)
        if start:
            self.state(p, key, made).store(np.full(p.size, start, computed(p.dtype)))
        return made

    def layouts(self, params: Mapping[Name, Array], rules: Mapping[Name, str]) -> dict[Name, str]:
        """The order of memory of each parameter whose states have a scale for each tile."""
        return {
            name: as_stored(p).order
            for name, p in params.items()
            if any(key.endswith("_scale") for key in self.keys(p, rules[name]))
        }

    def state(self, p: Array, key: str, kept: Mapping[str, Array]) -> Stored:
        """A state of a parameter as it is kept; stores to fewer bits round by chance."""
        codec = CODECS[self.codec(p, key)]
        return Stored(kept[key], kept.get(f"{key}_scale"), codec.name, codec.stochastic)

    def fill(
        self,
        p: Array,
        rule: str,
        kept: Mapping[str, Array],
        saved: Mapping[str, Array],
        initial: Mapping[str, float],
    ) -> None:
        """Set all that is kept of a parameter to what was saved, or to what it starts from."""
        for key in RULES[rule].states:
            if key in saved:
                _take(self.state(p, key, kept), saved_as(saved, key))
            else:
                for own, array in self.new(p, key, initial.get(key, 0.0)).items():
                    kept[own][...] = array
        for key in {"master", "master_low"} & set(self.keys(p, rule)):
            kept[key][...] = saved[key] if key in saved else self.new(p, key)[key]


def checked(given: Mapping[str, Any]) -> Storage:
    """The storage that an optimizer's options ask for."""
    wanted = given.get("state_dtype")
    if isinstance(wanted, Mapping):
        wanted = {
            one_of(sorted(every_state()), key, "state_dtype"): one_of(
                STATE_DTYPES, value, f"state_dtype[{shown(key)}]"
            )
            for key, value in wanted.items()
        }
    elif wanted is not None:
        wanted = one_of(STATE_DTYPES, wanted, "state_dtype")
    master = given.get("master", False)
    if not isinstance(master, (bool, str)) or master not in (False, True, "split"):
        raise ValueError(f'master: expected True, False or "split", found {shown(master)}')
    rounding = given.get("rounding")
    if rounding is not None:
        rounding = one_of(ROUNDINGS, rounding, "rounding")
        if master:
            raise ValueError("rounding: expected without a master, which loses nothing")
    return Storage(
        wanted,
        master,
        rounding,
        whole(given.get("min_8bit_size", 4096), "min_8bit_size", 2**63),
        whole(given.get("seed", 0), "seed", 2**64),
    )


def _visible(code: Array, codec: str) -> Array:
    """Bits of bfloat16 and float16 as numbers, where there is a dtype for them."""
    if codec == "float16":
        return code.view(np.float16)
    if codec == "bfloat16":
        try:
            from ml_dtypes import bfloat16
        except ImportError:
            return code
        return code.view(bfloat16)
    return code


def saved_as(saved: Mapping[str, Array], key: str) -> Stored:
    """How a state was kept when it was saved: its dtype says so."""
    code = saved[key]
    if code.dtype == np.uint8:
        return Stored(code, saved[f"{key}_scale"], "ue5m3" if key in squares() else "e4m3")
    return as_stored(code)


def _take(target: Stored, source: Stored) -> None:
    """Set an array to the values of another, which may be kept otherwise and lie otherwise.

    Codes of the same kind are taken as they are; others are decoded, and rounded to nearest.
    """
    if source.codec == target.codec:
        target.code[...] = source.code
        if target.beside is not None:
            target.beside[...] = source.beside
        return
    # Tiles are those of the parameter's memory, whatever the layout of what was saved.
    code = np.empty_like(target.code, source.code.dtype)
    code[...] = source.code
    target.store(source._replace(code=code).load(computed(target.code.dtype)))
