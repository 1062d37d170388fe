"""Two optimizers made alike, one for the compiled backends and one for NumPy's: for the machine.

What hypothesis draws is a description, of small numbers and words; `Twin` makes arrays of it, so
that both twins get equal copies.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

import fastgd
from fastgd import Rows
from fastgd.averages import EMA
from fastgd.core.storage import kept_by
from fastgd.optimizers import OPTIMIZERS


class Leaf(NamedTuple):
    """An array: parameter, gradient or copy."""

    shape: tuple[int, ...]
    dtype: str
    order: str
    seed: int


class Cycle(NamedTuple):
    """A schedule that goes round some values, and raises where one is an error."""

    values: tuple[Any, ...]

    def __call__(self, step: int) -> Any:
        value = self.values[step % len(self.values)]
        if value == "error":
            raise LookupError(f"no value at {step}")
        return value


# What a gradient may hold: factors of normally distributed numbers.
SCALES = {"normal": 1.0, "small": 1e-3, "zeros": 0.0, "large": 1e4, "tiny": 1e-40, "huge": 1e30}
SPECIAL = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
WRONG = ("dtype", "shape", "strided", "string", "itself")
KINDS = (*SCALES, *SPECIAL, "none")
BY_ROWS = ("rows", "row", "no rows", "rows of others' dtype", "rows with nan")
WRONG_ROWS = ("row beyond", "row before", "rows of another length", "rows of a vector")


def made(leaf: Leaf, kind: str = "normal") -> np.ndarray:
    """The array of a leaf, with one special value somewhere if its kind is that."""
    rng = np.random.default_rng(leaf.seed)
    scale = SCALES.get(kind, 1.0)
    if kind == "huge" and leaf.dtype == "float64":
        scale = 1e200
    x = np.array(scale * rng.standard_normal(leaf.shape), leaf.dtype, order=leaf.order)
    if kind in SPECIAL and x.size:
        x[np.unravel_index(leaf.seed * 7919 % x.size, x.shape)] = SPECIAL[kind]
    return x


def by_rows(leaf: Leaf, kind: str) -> Any:
    """A gradient of a leaf by rows, each of which may come several times; of a vector, an array."""
    if len(leaf.shape) < 2 and kind != "rows of a vector":
        return made(leaf)
    n, rest = (*leaf.shape, 1)[0], leaf.shape[1:] or (1,)
    rng = np.random.default_rng(leaf.seed)
    k = {"row": min(n, 1), "no rows": 0}.get(kind, int(rng.integers(0, 2 * n + 1)))
    indices = rng.integers(0, n, k) if k else np.zeros(0, np.int64)
    if kind in ("row beyond", "row before"):
        k, indices = k + 1, np.append(indices, n if kind == "row beyond" else -1)
    if kind == "rows of another length":
        rest = (*rest, 2)
    values = made(
        Leaf((k, *rest), leaf.dtype, "C", leaf.seed), "nan" if "nan" in kind else "normal"
    )
    if kind == "rows of others' dtype":
        values = values.astype(["f2", "f4", "f8"][leaf.seed % 3])
    return Rows(indices.astype(["i4", "i8"][leaf.seed % 2]), values)


def other(leaf: Leaf, g: Any) -> Any:
    """A gradient of the same kind, in memory of its own."""
    if g is None:
        return None
    if isinstance(g, Rows):
        return by_rows(leaf, "rows")
    return made(leaf._replace(dtype=g.dtype.str))


def written(leaf: Leaf, g: Any) -> Any:
    """The same memory, with other numbers in it."""
    if g is not None:
        array = g.values if isinstance(g, Rows) else g
        array[...] = 0.375
    return g


# What may become of one gradient between steps that are alike but for it.
IN_GRADIENTS: dict[str, Callable[[Leaf, Any], Any]] = {
    "array": other,
    "content": written,
    "none": lambda leaf, g: None,
    "rows": lambda leaf, g: by_rows(leaf, "rows"),
    "dtype": lambda leaf, g: made(leaf).astype("f4" if leaf.dtype == "float64" else "f8"),
    "not finite": lambda leaf, g: made(leaf, "nan"),
}


def mapped(tree: Any, function: Callable[[Leaf], Any]) -> Any:
    """A tree of leaves with a function of each in its place."""
    if isinstance(tree, Leaf):
        return function(tree)
    if isinstance(tree, dict):
        return {key: mapped(child, function) for key, child in tree.items()}
    return [mapped(child, function) for child in tree]


def replaced(tree: Any, k: int, value: Callable[[Any], Any]) -> Any:
    """A tree of gradients with a function of the k-th in its place, all others being the same."""
    count = iter(range(1 << 30))

    def walked(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: walked(child) for key, child in node.items()}
        if isinstance(node, list):
            return [walked(child) for child in node]
        return value(node) if next(count) == k else node

    return walked(tree)


def leaves_of(tree: Any) -> Iterator[Any]:
    if isinstance(tree, (dict, list)):
        for child in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves_of(child)
    else:
        yield tree


class Spec(NamedTuple):
    """What to make an optimizer of."""

    name: str
    trees: tuple[Any, ...]  # of leaves, one a group
    grouped: bool  # whether parameters are given as groups; else there is one tree
    hypers: tuple[dict[str, Any], ...]  # of the constructor, and then of each group
    options: dict[str, Any]
    average: Any  # None, a decay, or the arguments of an EMA
    copies: str | None  # "float32", "bfloat16"
    bound: bool


class Twin:
    """An optimizer, and the descriptions of its parameters."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.trees = list(spec.trees)
        self.grouped = spec.grouped
        self.given: Any = None  # gradients, for several steps
        params = [mapped(tree, made) for tree in self.trees]
        given: dict[str, Any] = {**spec.hypers[0], **spec.options}
        if spec.average is not None:
            given["average"] = spec.average
            if isinstance(spec.average, dict):
                flat = [x for tree in params for x in leaves_of(tree)]
                given["average"] = EMA(flat, **spec.average)
        if spec.copies:
            given["copy_to"] = self.in_form([mapped(tree, _blank) for tree in self.trees])
        if spec.bound:
            given["grads"] = self.in_form([mapped(tree, made) for tree in self.trees])
        form: Any = params[0]
        if spec.grouped:
            pairs = zip(params, spec.hypers[1:], strict=True)
            form = [{"params": tree, **hyper} for tree, hyper in pairs]
        self.opt = OPTIMIZERS[spec.name](form, **given)
        if spec.copies == "bfloat16":  # as NumPy knows no such dtype
            self.opt.stepper.copies = [x.astype(np.uint16) for x in self.opt.stepper.copies or ()]
            self.opt.stepper.lay_out(
                self.opt.param_groups, self.opt.stepper.steps, self.opt.stepper.bound()
            )
            self.opt.stepper.copy_out()

    def in_form(self, trees: list[Any]) -> Any:
        return trees if self.grouped else trees[0]

    def grads(self, kinds: list[str], seed: int, bend: str | None = None) -> Any:
        """Gradients of these kinds, taken in turn; bent into another structure if asked."""
        params = iter([p for group in self.opt.param_groups for p in group["params"]])
        turn = iter(range(1 << 30))

        def one(leaf: Leaf) -> Any:
            p, kind = next(params), kinds[next(turn) % len(kinds)]
            leaf = leaf._replace(seed=seed + leaf.seed)
            x = made(leaf, kind)
            wrong = {
                "none": lambda: None,
                "dtype": lambda: x.astype("f4" if x.dtype == "f8" else "f8"),
                "shape": lambda: x[None],
                "strided": lambda: np.repeat(x[..., None], 2, -1)[..., 0],
                "string": lambda: "gradient",
                "itself": lambda: p,
            }
            if kind in BY_ROWS or kind in WRONG_ROWS:
                return by_rows(leaf, kind)
            return wrong[kind]() if kind in wrong else x

        grads = self.in_form([mapped(tree, one) for tree in self.trees])
        if bend == "longer":
            return [*grads, grads] if isinstance(grads, list) else [grads, grads]
        if bend == "empty":
            return {}
        return grads

    def add(self, tree: Any, hyper: dict[str, Any]) -> None:
        extra = {}
        if self.spec.copies:
            extra["copy_to"] = mapped(tree, _blank)
        if self.spec.bound:
            extra["grads"] = mapped(tree, made)
        self.opt.add_param_group({"params": mapped(tree, made), **hyper}, **extra)
        self.trees.append(tree)
        self.grouped = True

    def renewed(self, load: Callable[[Any], None]) -> None:
        """Go on with another optimizer made alike, after `load` has brought it up to date."""
        old, pending = self.opt, list(self.trees)
        new = Twin(self.spec)
        for k in range(len(new.trees), len(pending)):
            new.add(pending[k], {})
        for mine, other in zip(new.opt.param_groups, old.param_groups, strict=True):
            mine.update(other.hyper())
            for p, q in zip(mine["params"], other["params"], strict=True):
                p[...] = q
        new.opt.stepper.copy_out()
        load(new.opt)
        self.opt = new.opt

    def copied(self, way: str) -> None:
        """Go on with a copy, which is all that the optimizer is, also states that wait."""
        old = self.opt
        new = copy.deepcopy(old) if way == "deepcopy" else pickle.loads(pickle.dumps(old))
        before = self.snapshot()
        self.opt = new
        assert self.snapshot() == before

    def change_given(self, k: int, change: str, seed: int) -> None:
        """Put something else in the place of the k-th of the gradients that are given."""
        leaf = [*leaves_of(self.trees)][k]._replace(seed=seed + 7)
        self.given = replaced(self.given, k, lambda g: IN_GRADIENTS[change](leaf, g))

    def moved_others(self, before: dict[Any, Any]) -> list[Any]:
        """What of parameters, states and copies has other rows without a gradient than before."""
        moved, after = [], self.snapshot()
        pairs = zip(leaves_of(self.given), leaves_of(self.trees), strict=True)
        for i, (g, leaf) in enumerate(pairs):
            if not isinstance(g, Rows):
                continue
            n = leaf.shape[0]
            still = np.delete(np.arange(n), g.indices)
            for key in after:
                if key[0] not in ("param", "state", "copy") or key[1] != i:
                    continue
                if n and after[key][1][:1] == (n,):  # and no number, as a step count
                    a, b = (np.frombuffer(x[key][2], "u1").reshape(n, -1) for x in (before, after))
                    moved += [key] if (a[still] != b[still]).any() else []
        return moved

    def param(self, k: int) -> np.ndarray:
        """The k-th parameter."""
        return [p for group in self.opt.param_groups for p in group["params"]][k]

    def count_up(self, k: int) -> None:
        """Say of a parameter that it has taken one more step."""
        [*self.opt.state.values()][k]["step"][...] += 1

    def reshaped_step(self, k: int) -> Any:
        """A step, which is refused, while a parameter has another shape."""
        p = self.param(k)
        shape = p.shape
        p.resize((1, *shape), refcheck=False)
        try:
            return outcome(lambda: self.opt.step(self.given))
        finally:
            p.resize(shape, refcheck=False)

    def resized_step(self, k: int) -> Any:
        """A step, which is refused, after a parameter was given other memory."""
        p = self.param(k)
        p.resize((p.size + 1000,), refcheck=False)
        return outcome(lambda: self.opt.step(self.given))

    # ------------------------------------------------------------------------------ what it is

    def snapshot(self) -> dict[Any, Any]:
        """All that there is to see, in a form that compares by bits."""
        opt = self.opt
        seen: dict[Any, Any] = {"skipped": opt.skipped}
        named = zip(opt.state, (p for g in opt.param_groups for p in g["params"]), strict=True)
        for i, (name, p) in enumerate(named):
            seen["param", i] = bits(p)
            for key, a in opt.state[name].items():
                seen["state", i, key] = bits(a)
        for i, out in enumerate(opt.stepper.copies or ()):
            seen["copy", i] = bits(out)
        for i, g in enumerate(opt.stepper.plan.bound or ()):
            seen["bound", i] = None if g is None else bits(g)
        if opt.average is not None:
            seen["average", "steps"] = opt.average.step
            try:
                averages = opt.average.averages
            except ValueError as error:
                if "was given another shape" not in str(error):
                    raise
                averages = {}
            for i, a in enumerate(averages.values()):
                seen["average", i] = bits(a)
        waiting = opt.stepper.accumulated
        if waiting is not None and waiting.weight[0]:
            seen["accumulated", "weight"] = float(waiting.weight[0])
            for i, a in enumerate(waiting.sums):
                seen["accumulated", i] = bool(waiting.counts[i]), bits(a)
        for k, group in enumerate(opt.param_groups):
            seen["group", k] = repr(group.hyper())
        return seen

    def active(self) -> set[Any]:
        """The keys of `snapshot` of the states that steps use at the moment."""
        rules = self.opt.stepper.rules
        return {("state", i, key) for i, rule in enumerate(rules) for key in kept_by(rule)}


def _blank(leaf: Leaf) -> np.ndarray:
    return np.zeros(leaf.shape, np.float32, order=leaf.order)


def bits(a: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    """Dtype, shape and bits of an array, all NaNs counting as the same."""
    a = np.array(a)
    if a.dtype.name in ("uint16", "bfloat16"):
        a = a.view(np.uint16)
        a[(a & 0x7FFF) > 0x7F80] = 0x7FC0
    elif a.dtype.kind == "f":
        a[np.isnan(a)] = np.nan
    return a.dtype.str, a.shape, a.tobytes()


def outcome(call: Callable[[], Any]) -> tuple[str, str]:
    """What a call returned, or raised, in words."""
    try:
        return "returned", repr(call())
    except Exception as error:
        notes = getattr(error, "__notes__", [])
        return type(error).__name__, "\n".join([str(error), *notes])


def available() -> list[str]:
    return [name for name in fastgd.available_backends() if name != "numpy"]
