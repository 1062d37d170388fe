"""How an optimizer keeps its arrays: the types of parameters and states, and what goes with them.

Everything is computed in float64 for float64 parameters and in float32 for all others; what is kept
in fewer bytes is loaded and stored tile by tile in the sweep (`fastgd.kernels.spec.codecs`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastgd.core.contract import Contract
from fastgd.core.domains import integer, one_of
from fastgd.core.trees import Name
from fastgd.core.variants import rules_of, states_of
from fastgd.kernels.memory.alloc import aligned_zeros
from fastgd.kernels.memory.checks import COMPUTED, shown
from fastgd.kernels.reference import RULES
from fastgd.kernels.spec.catch_up import KNOWN as CATCH_UP
from fastgd.kernels.spec.catch_up import width
from fastgd.kernels.spec.codecs import CODECS, TILE
from fastgd.kernels.spec.coded_array import CodedArray, as_coded, codec_of, computed
from fastgd.kernels.spec.lines import Axes, Axis, axes_of, line_shape
from fastgd.kernels.spec.matrices import Matrix, matrix_of
from fastgd.kernels.spec.units import units_of

Array = NDArray[Any]

STATE_DTYPES = ("float32", "float64", "bfloat16", "float16", "8bit")
ROUNDINGS = ("nearest", "stochastic")
FLOAT32, FLOAT64, INT16, UINT8 = map(np.dtype, (np.float32, np.float64, np.int16, np.uint8))

# What is kept of a table whose rows catch up: the steps that each has taken, and what a step did
# to those that missed it (`fastgd.kernels.spec.catch_up`; before it 1, or 0 if none did).
ROW_STEPS, ROW_MAP = "row_steps", "row_map"


class Kind(NamedTuple):
    """What an array is that is kept for a parameter."""

    role: Literal["state", "number", "scale", "master", "remainder", "rows"]
    of: str  # the state that it is, or has the scales of; else its own key
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    codec: str  # by which a state is kept
    lines: str = ""  # "rows" or "columns", where a state has one number for each

    def given(self, kept: Mapping[str, Array]) -> Array | CodedArray:
        """A state as the engine takes it: the array alone, where its dtype says all."""
        a = kept[self.of]
        return a if self.codec in COMPUTED and a.dtype == self.dtype else self.stored(kept)

    def stored(self, kept: Mapping[str, Array]) -> CodedArray:
        """A state as it is kept; stores to fewer bits round stochastically."""
        codec = CODECS[self.codec]
        aux = None if codec.aux is None else kept.get(scale_of(self.of))
        return CodedArray(kept[self.of], aux, self.codec, codec.stochastic)

    def new(self, p: Array, start: float = 0.0) -> dict[str, Array]:
        """A state with its scales, or what goes with a parameter, before the first step."""
        if self.role == "number":
            return {self.of: np.full(self.shape, start, self.dtype)}
        if self.role != "state":
            zeros = aligned_zeros(p, self.dtype) if self.role == "master" else None
            made = {self.of: np.zeros(self.shape, self.dtype) if zeros is None else zeros}
            if zeros is not None:
                as_coded(zeros).raw()[...] = as_coded(p).load(self.dtype)
            return made
        if self.lines:
            order: Literal["C", "F"] = "C" if p.flags.c_contiguous else "F"
            return {self.of: np.full(self.shape, start, self.dtype, order)}
        codec = CODECS[self.codec]
        made = {self.of: visible(aligned_zeros(p, self.dtype), self.codec)}
        if codec.aux is not None:
            made[scale_of(self.of)] = np.zeros(-(-p.size // codec.per), codec.aux)
        if start:
            self.stored(made).store(np.full(p.size, start, computed(p.dtype)))
        return made


def scale_of(key: str) -> str:
    """The key of the scales of a state that is kept in 8 bits, which are exponents."""
    return f"{key}_exponent"


def scales_in(entry: Iterable[str]) -> set[str]:
    """Those of the keys of a parameter's entry that are of scales."""
    return {scale_of(key) for key in entry} & set(entry)


def kept_by(rule: str) -> tuple[str, ...]:
    """The names of a rule's states, arrays and numbers."""
    return RULES[rule].states + RULES[rule].numbers


def kinds_of_rows(rule: str, shape: tuple[int, ...]) -> dict[str, Kind]:
    """What is kept of a table whose rows catch up; nothing of what has no rows, or can't."""
    if len(shape) < 2 or RULES[rule].catch_up not in CATCH_UP:
        return {}
    numbers = 1 + width(RULES[rule])
    return {
        ROW_STEPS: Kind("rows", ROW_STEPS, np.dtype(np.uint32), shape[:1], ""),
        ROW_MAP: Kind("rows", ROW_MAP, FLOAT64, (numbers,), ""),
    }


@lru_cache(4096)
def saved_kinds(rule: str, shape: tuple[int, ...]) -> Mapping[str, Kind]:
    """What a saved entry of a parameter may have that a rule steps, however it was kept.

    The dtype and codec of states are those of a parameter of float32 here: they may be others.
    """
    n = math.prod(shape)
    tiles = (-(-n // TILE),)
    lines = RULES[rule].line_states
    found = {
        key: Kind(
            "state",
            key,
            FLOAT32,
            line_shape(shape, lines[key]) if key in lines else shape,
            "float32",
            lines.get(key, ""),
        )
        for key in RULES[rule].states
    }
    found |= {
        scale_of(key): Kind("scale", key, UINT8, tiles, "") for key in [*found] if key not in lines
    }
    found |= {key: Kind("number", key, FLOAT64, (), "") for key in RULES[rule].numbers}
    found["master"] = Kind("master", "master", FLOAT32, shape, "")
    found["master_low"] = Kind("remainder", "master_low", INT16, (n,), "")
    return found | kinds_of_rows(rule, shape)


@dataclass(eq=False, slots=True)
class Piece:
    """An array that stands for a parameter of which it is a piece, or a flat view.

    It is kept, and rounded stochastically, as the whole parameter's elements would be.
    """

    array: Array
    origin: int  # the parameter's elements before it
    whole: int  # the parameter's elements in all
    units: Axis | None = None  # those of `units.units_of`, where the shape doesn't tell
    order: str = "C"  # whether its rows as a matrix follow each other in memory, or its columns
    shape: tuple[int, ...] | None = None  # the parameter's, where it isn't the array's
    axes: Axes | None = None  # those of `lines.axes_of`, where the shape doesn't tell


class Storage(NamedTuple):
    """How an optimizer keeps its arrays; see `fastgd.Options`.

    ``pieces`` tells of the parameters that are only pieces, by the ``id`` of their array.
    """

    state_dtype: str | Mapping[str, str] | None = None
    master: bool | str = False
    rounding: str | None = None
    min_8bit_size: int = 4096
    seed: int = 0
    catch_up: bool = False  # whether rows catch up, and their steps are counted
    pieces: Mapping[int, Piece] | None = None

    def with_pieces(self, pieces: Iterable[Piece]) -> Storage:
        """The same, with more of the parameters being pieces."""
        known = {id(piece.array): piece for piece in pieces}
        return self._replace(pieces={**(self.pieces or {}), **known}) if known else self

    def piece(self, p: Array) -> Piece | None:
        """Which piece of a parameter this array is; None if it is all of it."""
        return self.pieces.get(id(p)) if self.pieces else None

    def whole(self, p: Array) -> int:
        """The elements of the parameter that an array is, or is a piece of."""
        piece = self.piece(p)
        return p.size if piece is None else piece.whole

    def is_shard(self, p: Array) -> bool:
        """Whether an array is only a part of its parameter."""
        return p.size != self.size(p)

    def size(self, p: Array) -> int:
        """The elements that a rule takes its parameter to have."""
        piece = self.piece(p)
        if piece is None:
            return p.size
        return piece.whole if piece.shape is None else math.prod(piece.shape)

    def shape(self, p: Array) -> tuple[int, ...]:
        """The shape of the parameter that an array stands for, by which the rule is picked."""
        known = self.pieces and self.pieces.get(id(p))
        return known.shape if known and known.shape is not None else p.shape

    def shaped(self, p: Array) -> tuple[tuple[int, ...], bool]:
        """That shape, and whether all of it lies row after row in memory."""
        piece = self.piece(p)
        if piece is None or piece.shape is None:
            return p.shape, p.flags.c_contiguous
        return piece.shape, piece.order == "C"

    def matrix(self, p: Array) -> Matrix:
        """What the parameter that an array stands for is as a matrix."""
        piece = self.piece(p)
        if piece is None or piece.shape is None:
            return matrix_of(p.shape, as_coded(p).order)
        return matrix_of(piece.shape, piece.order)

    def units(self, p: Array, layout: str) -> Axis | None:
        """Where the units lie that a parameter has; None if neither contiguous nor interleaved."""
        piece = self.piece(p)
        if piece is not None and piece.shape is not None:
            return piece.units
        return units_of(p.shape, p.strides, p.itemsize, layout)

    def axes(self, p: Array) -> Axes | None:
        """The axes of rows and columns; None of a vector or number."""
        piece = self.piece(p)
        if piece is not None and piece.axes is not None:
            return piece.axes
        return axes_of(p.shape, p.strides, p.itemsize)

    # ------------------------------------------------------------------------------- parameters

    def refuse_unchosen(self, p: Array, label: str) -> None:
        """Raise ValueError for a parameter of 16 bits whose rounding was not chosen.

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

    def kinds(self, p: Array, rule: str) -> dict[str, Kind]:
        """What is kept for a parameter: the rule's states, and what they need.

        It follows from the rule, the parameter's dtype and shape, and what `whole` says: see
        `recall`.
        """
        found = {}
        lines = RULES[rule].line_states
        for key in RULES[rule].states:
            codec = CODECS[self.codec(p, rule, key)]
            shape = p.shape
            if key in lines:
                shape = line_shape(self.shape(p), lines[key])
                # Flat where the parameter is.
                shape = shape if p.shape == self.shape(p) else (math.prod(shape),)
            found[key] = Kind("state", key, codec.code, shape, codec.name, lines.get(key, ""))
            if codec.aux is not None:
                tiles = (-(-p.size // codec.per),)
                found[scale_of(key)] = Kind("scale", key, codec.aux, tiles, "")
        for key in RULES[rule].numbers:
            found[key] = Kind("number", key, FLOAT64, (), "")
        if self.master and p.itemsize == 2:
            if self.master is True:
                found["master"] = Kind("master", "master", FLOAT32, p.shape, "")
            else:
                found["master_low"] = Kind("remainder", "master_low", INT16, (p.size,), "")
        if self.catch_up:
            shape, in_order = self.shaped(p)
            if in_order and not self.is_shard(p):
                found |= kinds_of_rows(rule, shape)
        return found

    def recall(self) -> Callable[[Array, str], Mapping[str, Kind]]:
        """`kinds` for a walk over many parameters, worked out once for all that are alike."""
        known: dict[tuple[Any, ...], Mapping[str, Kind]] = {}

        def kinds(p: Array, rule: str) -> Mapping[str, Kind]:
            lies = self.shaped(p) if self.catch_up else self.shape(p)
            key = rule, p.dtype, p.shape, lies, self.whole(p) if self.pieces else None
            found = known.get(key)
            if found is None:
                found = known[key] = self.kinds(p, rule)
            return found

        return kinds

    def given(self, p: Array, kept: Mapping[str, Array]) -> Array | CodedArray:
        """What the step updates, as the engine takes it: `p` alone, where its dtype says all."""
        if p.itemsize == 2 or ((piece := self.piece(p)) is not None and piece.origin):
            return self.parameter(p, kept)
        return p

    def parameter(self, p: Array, kept: Mapping[str, Array]) -> CodedArray:
        """What the step updates."""
        piece = self.piece(p)
        origin = 0 if piece is None else piece.origin
        if p.itemsize != 2 or not self.master:
            chance = p.itemsize == 2 and self.rounding == "stochastic"
            return as_coded(p)._replace(stochastic=chance, origin=origin)
        if self.master is True:
            return as_coded(kept["master"])._replace(origin=origin)
        return CodedArray(p, kept["master_low"], "split", origin=origin)

    # ------------------------------------------------------------------------------------ states

    def codec(self, p: Array, rule: str, key: str) -> str:
        """The codec that a state of a parameter is kept by."""
        of_matrix = RULES[rule].matrix
        whole = key in RULES[rule].line_states or (of_matrix and key in of_matrix.states)
        wanted = None if whole else self.state_dtype
        if isinstance(wanted, Mapping):
            wanted = wanted.get(key)
        elif key in RULES[rule].full_width:
            wanted = None
        if wanted is None or (wanted == "8bit" and self.whole(p) < self.min_8bit_size):
            return computed(p.dtype).name
        if wanted == "8bit":
            return _in_8_bits(rule, key)
        return wanted

    def layouts(self, params: Mapping[Name, Array], rules: Mapping[Name, str]) -> dict[Name, str]:
        """The order of memory of each parameter whose states have a scale for each tile."""
        kinds = self.recall()
        return {
            name: as_coded(p).order
            for name, p in params.items()
            if any(kind.role == "scale" for kind in kinds(p, rules[name]).values())
        }

    def state(self, p: Array, rule: str, key: str, kept: Mapping[str, Array]) -> CodedArray:
        """A state of a parameter as it is kept."""
        return self.kinds(p, rule)[key].stored(kept)

    def keep_as_wanted(
        self, p: Array, rule: str, kinds: Mapping[str, Kind], kept: dict[str, Array]
    ) -> None:
        """Put states that another rule kept by another codec by this one's, in their place.

        Where an optimizer's rules can take turns, a state of one name is of squares in all or none.
        """
        for key, kind in kinds.items():
            if kind.role != "state" or key not in kept:
                continue
            found = saved_as(kept, rule, key)
            if found.codec != kind.codec:
                made = kind.new(p)
                _take(kind.stored(made), found)
                kept.pop(scale_of(key), None)
                kept |= made

    def fill(
        self,
        p: Array,
        rule: str,
        kinds: Mapping[str, Kind],
        kept: Mapping[str, Array],
        saved: Mapping[str, Array],
        initial: Mapping[str, float],
    ) -> None:
        """Set all that is kept of a parameter, to what was saved, or it starts from."""
        for key, kind in kinds.items():
            if kind.codec in COMPUTED and key in saved and saved[key].dtype == kind.dtype:
                kept[key][...] = saved[key]
            elif kind.role == "state" and key in saved:
                _take(kind.stored(kept), saved_as(saved, rule, key))
            elif kind.role != "scale":
                taken = saved if key in saved else kind.new(p, initial.get(key, 0.0))
                for own in {key, scale_of(key)} & kept.keys():
                    kept[own][...] = taken[own]


def checked(given: Mapping[str, Any], kind: type[Contract]) -> Storage:
    """The storage that the options of an optimizer of a class ask for."""
    wanted = given.get("state_dtype")
    if isinstance(wanted, Mapping):
        known = states_of(kind)
        wanted = {
            one_of(known, key, "state_dtype"): one_of(
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
            raise ValueError("rounding excludes a master, which loses nothing")
    if given.get("rows") == "catch_up":
        _refuse_catch_up(kind, given.get("average") is not None)
    return Storage(
        wanted,
        master,
        rounding,
        integer(given.get("min_8bit_size", 4096), "min_8bit_size", end=2**63),
        integer(given.get("seed", 0), "seed", end=2**64),
        given.get("rows") == "catch_up",
    )


def _refuse_catch_up(kind: type[Contract], averaged: bool) -> None:
    """Refuse ``rows="catch_up"`` where it could not be for any hyper-parameters."""
    rules = [RULES[name] for name in rules_of(kind)]
    if averaged:
        why = "an average of the weights goes on in all rows at every step"
    elif not any(rule.catch_up in CATCH_UP for rule in rules):
        why = f"rule {rules[0].name} {rules[0].catch_up}"
    else:
        return
    raise ValueError(f'rows: expected "exact" or "lazy", as {why}, found "catch_up"')


def visible(code: Array, codec: str) -> Array:
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


def _in_8_bits(rule: str, key: str) -> str:
    """The codec of a state in 8 bits: one that is never negative has twice the range."""
    return "ue6m2" if key in RULES[rule].squares else "e5m2"


def saved_as(saved: Mapping[str, Array], rule: str, key: str) -> CodedArray:
    """How a state of a rule was kept when it was saved: its dtype says so."""
    code = saved[key]
    if code.dtype == np.uint8:
        return CodedArray(code, saved[scale_of(key)], _in_8_bits(rule, key))
    return as_coded(code)


def _take(target: CodedArray, source: CodedArray) -> None:
    """Set an array to the values of another, which may be kept otherwise and lie otherwise.

    Codes of the same kind are taken as they are; others are decoded, and rounded to nearest.
    """
    if source.codec == target.codec:
        target.code[...] = source.code
        if target.aux is not None:
            target.aux[...] = source.aux
        return
    # Tiles are those of the parameter's memory, whatever the layout of what was saved.
    code = np.empty_like(target.code, source.code.dtype)
    code[...] = source.code
    target.store(source._replace(code=code).load(computed(target.code.dtype)))
