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
    (Path("fastgd/kernels/spec/catch_up.py"), Path("fastgd/kernels/loops/catch_up.pxi")),
]


# What states, and the arguments of what is worked out, may be annotated with.
STATES = ("Array", "Squares", "Read", "Kept", "FullWidth", "Rows", "Columns", "PerRow")
# And what of a matrix step may be, after its arguments.
PAIRS = ("RowPairs", "ColumnPairs")
MATRIX_ARGUMENTS = ("update", "rows", "columns", "squares")
NUMBERS = ("Number", "Shared")
SUMS = ("Sum", "SumOfSquares", "Total")

# As the arrays of a rule with fused loops may be stored.
FUSED = {
    "params": ("float32", "bfloat16", "split"),
    "states": ("float32", "bfloat16", "8bit"),
}

# What sweeps only read of, and what is a number of each row or column.
READ = ("Read", "Rows", "Columns", "PerRow")

# What a coefficient is called that is added to a denominator, as spec/registry.py has it.
DENOMINATOR = "eps"

# What a rule declares that is no function.
OPTIONS = ("fused", "shards", "exact", "by_rows", "catch_up", "own_decay")


class FamilyError(Exception):
    """What a family declares doesn't fit together."""


class Element(NamedTuple):
    """The Cython function of one element of a sweep: its arguments, as (type, letter)."""

    returns: str
    arguments: tuple[tuple[str, str], ...]


class Sweep(NamedTuple):
    """A sweep of a rule: the signature of its NumPy function."""

    name: str  # of the loop
    element: str  # the function, without _element
    gradient: bool
    states: dict[str, str]  # name: annotation
    coefficients: tuple[str, ...]
    terms: int  # that it returns
    kept: str | None  # the argument that is the kept term, in the gradient's place


class Arithmetic(NamedTuple):
    """What is worked out before a sweep: the NumPy function, its arguments, and what it sets."""

    name: str
    node: ast.FunctionDef
    arguments: dict[str, str]  # name: annotation
    coefficients: tuple[str, ...]
    sets: tuple[str, ...]


class Rule(NamedTuple):
    """A rule's declaration: the signatures of its NumPy functions, and what it opts into."""

    name: str
    states: tuple[str, ...]
    squares: frozenset[str]
    coefficients: tuple[str, ...]  # as the optimizer's class returns them,
    settled: tuple[str, ...]  # and those after them that are worked out
    fused_params: tuple[str, ...]
    fused_states: tuple[str, ...]
    before: Sweep | None
    after: Sweep
    arithmetic: tuple[Arithmetic, ...]  # begin, settle: those that there are
    matrix: tuple[str, ...] | None  # the coefficients of its matrix step, if it has one,
    matrix_states: tuple[str, ...]  # and the states that this takes
    beforehand: tuple[Sweep, ...]  # lines, rows, columns; without the last, or none
    by_rows: bool  # whether it says that it steps rows alone, if it is one sweep

    @property
    def kinds(self) -> str:
        """A letter for each state: m of any sign, v for squares."""
        return "".join("v" if state in self.squares else "m" for state in self.states)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The states of one number a parameter."""
        kinds = [item for a in self.arithmetic for item in a.arguments.items()]
        return tuple(dict.fromkeys(key for key, kind in kinds if kind in NUMBERS))

    @property
    def sums(self) -> tuple[tuple[str, str], ...]:
        """The sums of the terms of the sweep before: name, and annotation."""
        kinds = [item for a in self.arithmetic for item in a.arguments.items()]
        sums = [("squares", "SumOfSquares")] * (self.matrix is not None)
        return (*sums, *((key, kind) for key, kind in kinds if kind in SUMS))

    @property
    def sweeps(self) -> tuple[Sweep, ...]:
        """Its sweeps, in order."""
        before = () if self.before is None else (self.before,)
        return (*self.beforehand, *before, self.after)


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
    # The methods `coefficients` and `<rule>_coefficients`, its own or its bases'.
    coefficients: dict[str, ast.FunctionDef]


class Family(NamedTuple):
    """A file pair."""

    name: str
    loops: Path
    rules: list[Rule]
    optimizers: list[Optimizer]


# ------------------------------------------------------------------------------------------- rules


def _elements(path: Path) -> dict[str, Element]:
    """The element functions of a family's loops, by the names of their sweeps."""
    text = re.sub(r"#.*", "", path.read_text("utf-8"))
    found = {}
    for returns, name, inside in re.findall(
        r"cdef inline (floating|void) (\w+)_element\(([^)]*)\)", text
    ):
        arguments = [" ".join(a.split()).rpartition(" ") for a in inside.split(",")]
        found[name] = Element(returns, tuple((kind, letter) for kind, _, letter in arguments))
    return found


def _check_element(sweep: Sweep, elements: dict[str, Element], path: Path, loops: Path) -> None:
    """Refuse an element function that doesn't agree with its sweep."""
    if sweep.element not in elements:
        raise FamilyError(f"{loops}: has no {sweep.element}_element, which {path} specifies")
    element = elements[sweep.element]
    leading = [("floating", "p"), ("floating", "g")][: 1 + sweep.gradient]
    leading += [("floating", sweep.kept)] * (sweep.kept is not None)
    types = [kind for kind, _ in leading]
    types += ["floating" if kind in READ else "floating*" for kind in sweep.states.values()]
    types += ["floating*"] * sweep.terms + ["floating"] * len(sweep.coefficients)
    letters = [letter for _, letter in element.arguments]
    n = len(sweep.coefficients)
    if (
        [kind for kind, _ in element.arguments] != types
        or letters[: len(leading)] != [letter for _, letter in leading]
        or letters[len(letters) - n :] != [*sweep.coefficients]
        or element.returns != ("void" if sweep.terms else "floating")
    ):
        returns = f"void, {sweep.terms} terms" if sweep.terms else "floating"
        raise FamilyError(
            f"{loops}: {sweep.element}_element: expected {returns}, taking "
            f"{', '.join(letter for _, letter in leading)}, the states {tuple(sweep.states)} "
            f"(floating*, those only read floating)"
            f"{' and then the terms (floating*)' * bool(sweep.terms)} and then the "
            f"coefficients {sweep.coefficients}, as in {path}"
        )


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


def _annotated(
    node: ast.FunctionDef,
    known: tuple[str, ...],
    path: Path,
    leading: tuple[str, ...] = ("p", "g"),
) -> dict[str, str]:
    """The annotations of a function's positional arguments, after the leading ones."""
    found = {
        a.arg: ast.unparse(a.annotation or ast.Name("none"))
        for a in node.args.args
        if a.arg not in leading
    }
    for key, kind in found.items():
        if kind not in known:
            raise FamilyError(
                f"{path}: {node.name}: expected {key}: {' or '.join(known)}, found {kind}"
            )
    return found


def _returned(node: ast.FunctionDef) -> int:
    """How many values the tuple has that a function ends by returning; 0 if it returns none."""
    value = getattr(node.body[-1], "value", None) if isinstance(node.body[-1], ast.Return) else None
    return len(value.elts) if isinstance(value, ast.Tuple) else 0


def _sweep(name: str, node: ast.FunctionDef, path: Path) -> Sweep:
    names = [a.arg for a in node.args.args]
    states = _annotated(node, STATES, path)
    kept = [key for key, kind in states.items() if kind == "Kept"]
    if kept and names[1:2] != kept:
        raise FamilyError(f"{path}: {node.name}: expected one Kept in the gradient's place")
    return Sweep(
        name,
        node.name,
        "g" in names,
        {key: kind for key, kind in states.items() if kind != "Kept"},
        tuple(a.arg for a in node.args.kwonlyargs),
        _returned(node),
        kept[0] if kept else None,
    )


def _arithmetic(name: str, node: ast.FunctionDef, path: Path) -> Arithmetic:
    sets = [
        tuple(ast.literal_eval(a) for a in call.args)
        for call in node.decorator_list
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "sets"
    ]
    if len(sets) != 1:
        raise FamilyError(f"{path}: {node.name}: expected @sets(...) with what it works out")
    return Arithmetic(
        name,
        node,
        _annotated(node, (*NUMBERS, *SUMS, "Size"), path),
        tuple(a.arg for a in node.args.kwonlyargs),
        sets[0],
    )


def _rules(path: Path, loops: Path, tree: ast.Module) -> list[Rule]:
    elements = _elements(loops)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    rules = []
    for node in functions.values():
        if (decorator := _decorator(node)) is None:
            continue
        given = {k.arg: k.value for k in getattr(decorator, "keywords", ())}
        parts = {key: functions[ast.unparse(given[key])] for key in given if key not in OPTIONS}
        fused = _fused(given["fused"]) if "fused" in given else ((), ())
        by_rows = ast.literal_eval(given.get("by_rows", ast.Constant("lazy")))
        rule = _rule(node, parts, fused, path)._replace(by_rows=by_rows in ("exact", "lazy"))
        _check_rule(rule, path)
        for sweep in rule.sweeps:
            _check_element(sweep, elements, path, loops)
        rules.append(rule)
    used = {sweep.element for rule in rules for sweep in rule.sweeps}
    if unused := sorted(set(elements) - used):
        raise FamilyError(f"{loops}: has elements of no rule of {path}: {unused}")
    return rules


def _rule(
    node: ast.FunctionDef,
    parts: dict[str, ast.FunctionDef],
    fused: tuple[tuple[str, ...], tuple[str, ...]],
    path: Path,
) -> Rule:
    before = _sweep(f"{node.name}_before", parts["before"], path) if "before" in parts else None
    after = _sweep(node.name, node, path)
    arithmetic = tuple(
        _arithmetic(f"{node.name}_{key}", parts[key], path)
        for key in ("begin", "settle")
        if key in parts
    )
    matrix, of_matrix, ahead = None, {}, ()
    if "matrix" in parts:
        matrix = tuple(a.arg for a in parts["matrix"].args.kwonlyargs)
        of_matrix = _annotated(parts["matrix"], (*STATES, *PAIRS), path, MATRIX_ARGUMENTS)
    if "renew" in parts:
        ahead = tuple(a.arg for a in parts["renew"].args.kwonlyargs)
    beforehand = tuple(
        _sweep(f"{node.name}_{key}", parts[key], path)
        for key in ("lines", "rows", "columns")
        if key in parts
    )
    states = {**({} if before is None else before.states)}
    states |= {k: kind for k, kind in after.states.items() if k not in states or kind != "Read"}
    states |= of_matrix
    named = dict.fromkeys(
        key
        for taken in (
            *(part.coefficients for part in beforehand if "columns" in parts),
            before.coefficients if before else (),
            *(part.coefficients for part in arithmetic),
            matrix or (),
            ahead,
            after.coefficients,
            *(part.coefficients for part in beforehand),
        )
        for key in taken
    )
    numbers = {key for a in arithmetic for key, kind in a.arguments.items() if kind in NUMBERS}
    settled = tuple(key for a in arithmetic for key in a.sets if key not in numbers)
    return Rule(
        node.name,
        tuple(states),
        frozenset(key for key, kind in states.items() if kind == "Squares"),
        tuple(key for key in named if key not in settled),
        settled,
        *fused,
        before,
        after,
        arithmetic,
        matrix,
        tuple(of_matrix),
        beforehand,
        True,
    )


def _check_rule(rule: Rule, path: Path) -> None:
    where = f"{path}: {rule.name}"
    every = [*rule.coefficients, *rule.settled]
    if len(rule.states) > SIZES["MAX_STATES"] or len(every) > SIZES["MAX_COEFFICIENTS"]:
        raise FamilyError(
            f"{where}: expected at most {SIZES['MAX_STATES']} states and "
            f"{SIZES['MAX_COEFFICIENTS']} coefficients"
        )
    names = {*rule.states, *every} - {*(rule.matrix or ())}
    if taken := {"p", "g", "s", "n", "c", "i", "terms"} & names:
        raise FamilyError(f"{where}: the loop itself has a {min(taken)}")
    terms = 0 if rule.before is None else rule.before.terms
    if len(rule.sums) != terms or terms > SIZES["MAX_SUMS"]:
        raise FamilyError(
            f"{where}: expected a sum in what is worked out for each of at most "
            f"{SIZES['MAX_SUMS']} terms that the sweep before returns, found {len(rule.sums)} "
            f"for {terms}"
        )
    if (rule.matrix is not None) != (rule.after.kept is not None) or (
        rule.matrix is not None and len(rule.sums) != 1
    ):
        raise FamilyError(
            f"{where}: expected a matrix step and a Kept argument together, and nothing to settle"
        )
    if rule.fused_params and (rule.kinds not in ("m", "v", "mv") or rule.arithmetic):
        raise FamilyError(
            f"{where}: fused loops are for a state of any sign, one of squares, or "
            f"the one and then the other, and not for {rule.states}"
        )


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
        year = 0
        coefficients: dict[str, ast.FunctionDef] = {}
        for base in bases:
            if base in known:
                hypers |= known[base].hypers
                year = known[base].year
                coefficients |= known[base].coefficients
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
            elif isinstance(line, ast.FunctionDef) and line.name.endswith("coefficients"):
                coefficients[line.name] = line
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
