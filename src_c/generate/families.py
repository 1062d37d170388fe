"""The families of optimizers as the build needs them: read from their sources, not imported.

Nothing is compiled yet when this runs, so nothing of the package can be imported.  A family is a
module of ``fastgd/optimizers`` and the ``.pxi`` of the same name; rules that no optimizer
has stand in KERNEL_FAMILIES.
"""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path
from typing import NamedTuple

OPTIMIZERS = Path("fastgd/optimizers")
SIZES = runpy.run_path("fastgd/kernels/spec/sizes.py")
# Specification and loops of rules that are no optimizer's.
KERNEL_FAMILIES = [
    (Path("fastgd/kernels/spec/average.py"), Path("fastgd/kernels/loops/average.pxi")),
]


# As the arrays of a rule with fused loops may be stored.
FUSED = {
    "params": ("float32", "bfloat16", "split"),
    "states": ("float32", "bfloat16", "8bit"),
}


class FamilyError(Exception):
    """What a family declares doesn't fit together."""


class Element(NamedTuple):
    """The Cython function of one element of a rule: its arguments after p and g."""

    states: tuple[str, ...]  # by the letters of its pointers
    coefficients: tuple[str, ...]


class Rule(NamedTuple):
    """A rule's declaration: the signature of its NumPy function, and what it opts into."""

    name: str
    states: tuple[str, ...]
    squares: frozenset[str]
    coefficients: tuple[str, ...]
    fused_params: tuple[str, ...]
    fused_states: tuple[str, ...]
    element: Element

    @property
    def kinds(self) -> str:
        """A letter for each state: m of any sign, v for squares."""
        return "".join("v" if state in self.squares else "m" for state in self.states)


class Hyper(NamedTuple):
    """A hyper-parameter's declaration."""

    domain: str
    default: ast.expr
    keyword: bool


class Optimizer(NamedTuple):
    """A class of optimizers."""

    name: str
    bases: list[str]
    hypers: dict[str, Hyper]  # also those of its bases
    year: int
    coefficients: ast.FunctionDef | None  # the method, its own or its base's


class Family(NamedTuple):
    """A file pair."""

    name: str
    loops: Path
    rules: list[Rule]
    optimizers: list[Optimizer]


# ------------------------------------------------------------------------------------------- rules


def _elements(path: Path) -> dict[str, Element]:
    """The element functions of a family's loops, by the names of their rules."""
    text = re.sub(r"#.*", "", path.read_text("utf-8"))
    found = {}
    for name, inside in re.findall(r"cdef inline floating (\w+)_element\(([^)]*)\)", text):
        arguments = [" ".join(a.split()) for a in inside.split(",")]
        if arguments[:2] != ["floating p", "floating g"]:
            raise FamilyError(f"{path}: {name}_element: expected to begin (floating p, floating g")
        rest = [a.rpartition(" ") for a in arguments[2:]]
        states = tuple(letter for kind, _, letter in rest if kind == "floating*")
        coefficients = tuple(letter for kind, _, letter in rest if kind == "floating")
        if len(states) + len(coefficients) != len(rest):
            raise FamilyError(
                f"{path}: {name}_element: expected states as floating*, coefficients as floating"
            )
        found[name] = Element(states, coefficients)
    return found


def _fused(call: ast.expr) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The params and states of a `Fused` row."""
    given = {k.arg: ast.literal_eval(k.value) for k in getattr(call, "keywords", ())}
    if set(given) != {"params", "states", "gain"}:
        raise FamilyError(f"fused: expected Fused(params, states, gain), found {sorted(given)}")
    for key, known in FUSED.items():
        if not given[key] or not set(given[key]) <= set(known):
            raise FamilyError(f"fused: {key}: expected some of {known}, found {given[key]}")
    return tuple(given["params"]), tuple(given["states"])


def _decorator(node: ast.FunctionDef) -> ast.expr | None:
    """The ``@rule`` or ``@rule(…)`` of a function, if it has one."""
    for decorator in node.decorator_list:
        name = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(name, ast.Name) and name.id == "rule":
            return decorator
    return None


def _rules(path: Path, loops: Path, tree: ast.Module) -> list[Rule]:
    elements = _elements(loops)
    rules = []
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or (decorator := _decorator(node)) is None:
            continue
        states = tuple(a.arg for a in node.args.args[2:])
        kinds = {a.arg: ast.unparse(a.annotation or ast.Name("")) for a in node.args.args[2:]}
        if not set(kinds.values()) <= {"Array", "Squares"}:
            raise FamilyError(f"{path}: {node.name}: expected states as Array or Squares")
        squares = frozenset(key for key, kind in kinds.items() if kind == "Squares")
        coefficients = tuple(a.arg for a in node.args.kwonlyargs)
        if len(states) > SIZES["MAX_STATES"] or len(coefficients) > SIZES["MAX_COEFFICIENTS"]:
            raise FamilyError(
                f"{path}: {node.name}: expected at most {SIZES['MAX_STATES']} states and "
                f"{SIZES['MAX_COEFFICIENTS']} coefficients"
            )
        if taken := {"p", "g", "s", "n", "c", "i"} & {*states, *coefficients}:
            raise FamilyError(f"{path}: {node.name}: the loop itself has a {min(taken)}")
        if node.name not in elements:
            raise FamilyError(f"{loops}: has no {node.name}_element, which {path} specifies")
        element = elements.pop(node.name)
        if len(element.states) != len(states) or element.coefficients != coefficients:
            raise FamilyError(
                f"{loops}: {node.name}_element: expected the states {states} and then the "
                f"coefficients {coefficients}, as in {path}"
            )
        fused: tuple[tuple[str, ...], tuple[str, ...]] = (), ()
        for keyword in getattr(decorator, "keywords", ()):
            if keyword.arg == "fused":
                fused = _fused(keyword.value)
        rule = Rule(node.name, states, squares, coefficients, *fused, element)
        if fused != ((), ()) and rule.kinds not in ("m", "v", "mv"):
            raise FamilyError(
                f"{path}: {node.name}: fused loops are for a state of any sign, one of squares, or "
                f"the one and then the other, and not for {states}"
            )
        rules.append(rule)
    if elements:
        raise FamilyError(f"{loops}: has elements of no rule of {path}: {sorted(elements)}")
    return rules


# -------------------------------------------------------------------------------------- optimizers


def _declared(line: ast.stmt) -> ast.Call | None:
    """The call of `hyper` that a line of a class assigns, if it does."""
    value = getattr(line, "value", None)
    own = isinstance(value, ast.Call) and ast.unparse(value.func).endswith("hyper")
    return value if own else None


def _optimizers(tree: ast.Module, known: dict[str, Optimizer]) -> list[Optimizer]:
    """The classes of a module, those before them in `known`, which gets them."""
    found = []
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        bases = [ast.unparse(base) for base in node.bases]
        if not any(base == "Optimizer" or base in known for base in bases):
            if any(_declared(line) for line in node.body):
                raise FamilyError(f"{node.name}: expected Optimizer or a class of one as its base")
            continue
        hypers: dict[str, Hyper] = {}
        year, coefficients = 0, None
        for base in bases:
            if base in known:
                hypers |= known[base].hypers
                year, coefficients = known[base].year, known[base].coefficients
        for line in node.body:
            if (value := _declared(line)) is not None:
                if not isinstance(line, ast.Assign) or len(value.args) != 2:
                    raise FamilyError(
                        f"{node.name}: expected name = hyper(domain, default[, keyword=...]), "
                        f"found {ast.unparse(line)}"
                    )
                given = {k.arg: ast.literal_eval(k.value) for k in value.keywords}
                name = ast.unparse(line.targets[0])
                hypers[name] = Hyper(
                    ast.unparse(value.args[0]), value.args[1], bool(given.get("keyword"))
                )
            elif isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "year":
                year = ast.literal_eval(line.value)
            elif isinstance(line, ast.FunctionDef) and line.name == "coefficients":
                coefficients = line
        known[node.name] = Optimizer(node.name, bases, hypers, year, coefficients)
        if not node.name.startswith("_"):
            found.append(known[node.name])
    return found


def read() -> list[Family]:
    """All families: those of the kernels, then each after the modules it imports."""
    pairs = [(path, path.with_suffix(".pxi")) for path in sorted(OPTIMIZERS.glob("[!_]*.py"))]
    known: dict[str, Optimizer] = {}
    families = []
    for path, loops in [*KERNEL_FAMILIES, *_by_imports(pairs)]:
        tree = ast.parse(path.read_text("utf-8"))
        if not loops.exists():
            raise FamilyError(f"{loops}: expected the loops of {path}, found none")
        rules, optimizers = _rules(path, loops, tree), _optimizers(tree, known)
        families.append(Family(path.stem, loops, rules, optimizers))
    names = [rule.name for family in families for rule in family.rules]
    if twice := {name for name in names if names.count(name) > 1}:
        raise FamilyError(f"rules: expected one of each name, found {sorted(twice)} more than once")
    return families


def _by_imports(pairs: list[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """Modules in an order in which each comes after those of this folder that it imports."""
    waiting = dict(pairs)
    ordered: list[tuple[Path, Path]] = []

    def take(path: Path) -> None:
        loops = waiting.pop(path, None)
        if loops is None:
            return
        for name in re.findall(
            r"^from fastgd\.optimizers\.(\w+) import", path.read_text("utf-8"), re.M
        ):
            take(path.with_name(f"{name}.py"))
        ordered.append((path, loops))

    for path, _ in pairs:
        take(path)
    return ordered
