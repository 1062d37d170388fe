"""Writes the C level of the package.

Every sweep of a rule gets two functions (float32, float64), what is worked out before it one, every
class of optimizers one for the coefficients of a step: its `coefficients` put into C's types.
Rules with states of rows and columns, or of pairs of these, have none: they need room.
Three files come out: declarations for Cython (`c_api.pxd`), what `c_api.pyx` includes
(`_c_api.pxi`), and the header for C (`fastgd/include/fastgd.h`, from `src_c/fastgd.h.in`).
"""

from __future__ import annotations

import ast
import copy
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from generate.families import DENOMINATOR, SIZES, Arithmetic, Family, Optimizer, Rule, Sweep

FLOATS = {"f32": "float", "f64": "double"}
# What coefficients may call, by the same name in Python's math and in C's: what IEEE 754 leaves no
# choice in; and what of ours.
CALLS = ("fabs", "fmod", "sqrt")
OURS = ("logarithm", "raised")


class Function(NamedTuple):
    """A function of the C level: what it is called, takes and does."""

    name: str
    arguments: tuple[tuple[str, str], ...]  # (type in C, name)
    body: list[str]  # lines of Cython
    about: str

    def declared(self, head: str, size: str, tail: str) -> list[str]:
        """Lines that declare it, with `size` for the type of a number of elements."""
        arguments = [
            f"{kind}{name}" if kind.endswith("*") else f"{size if kind == 'size' else kind} {name}"
            for kind, name in self.arguments
        ]
        # Lines break between arguments, and never within one.
        whole = [text.replace(" ", "\xa0") for text in (head, *arguments, tail)]
        text = f"{whole[0]}({', '.join(whole[1:-1])}){whole[-1]}"
        lines = textwrap.wrap(text, 96, subsequent_indent=" " * (len(head) + 1))
        return [line.replace("\xa0", " ") for line in lines]


# --------------------------------------------------------------------------------------- the rules


def rule_functions(families: list[Family]) -> list[Function]:
    """The functions of all rules: of each sweep, and of what is worked out before it."""
    functions = []
    for k, rule in enumerate(rule for family in families for rule in family.rules):
        if rule.beforehand or rule.matrix_states:
            continue
        for sweep in rule.sweeps:
            for fuse, suffix in enumerate(FLOATS):
                functions.append(_sweep(rule, sweep, 2 * k + fuse, suffix))
        if rule.before is None and rule.by_rows:
            functions += [_by_rows(rule, 2 * k + j, suffix) for j, suffix in enumerate(FLOATS)]
        functions += [_worked_out(rule, part) for part in rule.arithmetic]
    return functions


def _sweep(rule: Rule, sweep: Sweep, row: int, suffix: str) -> Function:
    """The function of one sweep of a rule."""
    floating, first = FLOATS[suffix], sweep is rule.before
    order = [*rule.coefficients, *rule.settled]
    # Those that a sweep doesn't take are not pointed to.
    places = [
        f"s[{j}] = <{floating} *> {key}" for j, key in enumerate(rule.states) if key in sweep.states
    ]
    body = [f"cdef {floating}* s[{len(rule.states)}]"] * bool(rule.states) + places
    given = ", ".join(
        [
            "p",
            sweep.kept or ("g" if sweep.gradient else "NULL"),
            f"s, {len(rule.states)}" if rule.states else "NULL, 0",
            "n",
            "coefficients",
            str(len(order)),
            str(sum(1 << k for k, key in enumerate(order) if key == DENOMINATOR)),
            "stages",
        ]
    )
    arguments = [
        (f"{'const ' * first}{floating} *", "p"),
        *[(f"const {floating} *", sweep.kept or "g")] * (sweep.gradient or bool(sweep.kept)),
        *(
            (f"{'const ' * (kind == 'Read')}{floating} *", state)
            for state, kind in sweep.states.items()
        ),
        ("size", "n"),
        ("const double *", "coefficients"),
        ("const double *", "stages"),
    ]
    about = f"coefficients: {', '.join(order)}"
    if not first:
        run = "run_kept" if sweep.kept else "run"
        body += [f"{run}[{floating}](rules[{row}], {given})"]
    else:
        squares = sum(1 << k for k, (_, kind) in enumerate(rule.sums) if kind == "SumOfSquares")
        given = given.replace("p", f"<{floating} *> p", 1)
        body += [
            f"run_first[{floating}](firsts[{row}], {given}, {len(rule.sums)}, {squares}, "
            f"{rule.after.kept or 'NULL'}, sums)"
        ]
        arguments += [(f"{floating} *", rule.after.kept)] * bool(rule.after.kept)
        arguments += [("double *", "sums")]
        about += f"; sums: {', '.join(key for key, _ in rule.sums)}"
    return Function(f"{sweep.name}_{suffix}", tuple(arguments), body, about)


def _by_rows(rule: Rule, row: int, suffix: str) -> Function:
    """The function that steps some rows of a table."""
    whole = _sweep(rule, rule.after, row, suffix)
    rows = (("size", "length"), ("const int64_t *", "indices"), ("size", "n"))
    arguments = [pair for pair in whole.arguments if pair != ("size", "n")]
    arguments[-2:-2] = rows
    body = [
        line.replace("run[", "run_rows[").replace(", n, ", ", length, indices, n, ")
        for line in whole.body
    ]
    return Function(f"{rule.name}_rows_{suffix}", tuple(arguments), body, whole.about)


def _worked_out(rule: Rule, part: Arithmetic) -> Function:
    """The function of what is worked out before a sweep."""
    arguments = (
        ("double *", "coefficients"),
        ("double *", "numbers"),
        ("const double *", "sums"),
        ("size", "n"),
    )
    body = [f"{part.name}(coefficients, numbers, sums, <double> n)"]
    about = f"sets {', '.join(part.sets)}; numbers: {', '.join(rule.numbers) or 'none'}"
    if totals := [key for key, kind in part.arguments.items() if kind == "Total"]:
        about += f"; sums over all tensors: {', '.join(totals)}"
    return Function(part.name, arguments, body, about)


# -------------------------------------------------------------------------------- the coefficients


class UntranslatableError(Exception):
    """Python that C's doubles can't say."""


class Translator(ast.NodeTransformer):
    """Python's arithmetic of floats as C's: hyper-parameters become arguments.

    Not ``**`` nor ``log``, whose bits differ between C libraries: `raised` and `logarithm` have
    the same ones everywhere.
    """

    def __init__(self, names: dict[str, list[str]]) -> None:
        self.names = names
        self.targets: list[str] | None = None  # of what is returned; else out[0], out[1], …
        self.used: set[str] = set()
        self.local = {"t"}  # the variables set so far
        self.words: dict[str, str] = {}  # hyper-parameters that are compared with a word

    def visit(self, node: ast.AST) -> ast.AST:
        allowed = (ast.Name, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp,
                   ast.IfExp, ast.Tuple, ast.Subscript, ast.Call, ast.operator, ast.unaryop,
                   ast.cmpop, ast.boolop, ast.expr_context)  # fmt: skip
        if not isinstance(node, allowed):
            raise UntranslatableError(f"line {node.lineno}: {ast.unparse(node)}")
        return super().visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id not in self.local:
            raise UntranslatableError(f"line {node.lineno}: {node.id} is set elsewhere")
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        key = node.slice.value if isinstance(node.slice, ast.Constant) else None
        if ast.unparse(node.value) != "h" or key not in self.names:
            raise UntranslatableError(f"line {node.lineno}: {ast.unparse(node)}")
        self.used.add(key)
        names: list[ast.expr] = [ast.Name(name) for name in self.names[key]]
        return names[0] if len(names) == 1 else ast.Tuple(names)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = ast.unparse(node.func).removeprefix("math.").removeprefix("np.")
        if name not in CALLS + OURS or node.keywords:
            instead = ": say logarithm(x)" if name == "log" else ""
            raise UntranslatableError(f"line {node.lineno}: {ast.unparse(node)}{instead}")
        called = ast.Name(f"fastgd_{name}" if name in OURS else name)
        return ast.Call(called, [self.visit(a) for a in node.args], [])

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        left, right = self.visit(node.left), self.visit(node.right)
        if isinstance(node.op, ast.Pow):
            raise UntranslatableError(f"line {node.lineno}: {ast.unparse(node)}: say raised(x, n)")
        if not isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div)):
            raise UntranslatableError(f"line {node.lineno}: {ast.unparse(node)}")
        return ast.BinOp(left, node.op, right)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        word = node.comparators[0]
        if isinstance(node.ops[0], ast.Is):  # NaN stands for None in C
            left = self.visit(node.left)
            return ast.Compare(left, [ast.NotEq()], [left])
        if isinstance(word, ast.Constant) and isinstance(word.value, str):
            if len(node.ops) != 1 or not isinstance(node.ops[0], ast.Eq):
                raise UntranslatableError(f"line {node.lineno}: {ast.unparse(node)}")
            name = self.visit(node.left)
            self.words[ast.unparse(name)] = word.value
            return name
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant(float(node.value))  # as 1/2 is 0 in C


def _parts(value: ast.expr, n: int) -> list[ast.expr]:
    """The n values of a tuple, or of a choice between tuples."""
    if n == 1:
        return [value]
    if isinstance(value, ast.IfExp):
        pairs = zip(_parts(value.body, n), _parts(value.orelse, n), strict=True)
        return [ast.IfExp(value.test, a, b) for a, b in pairs]
    if not isinstance(value, ast.Tuple) or len(value.elts) != n:
        raise UntranslatableError(f"a tuple of {n}: {ast.unparse(value)}")
    return value.elts


def statements(
    body: list[ast.stmt], to: Translator, local: list[str], known: set[str]
) -> Iterator[str]:
    """The lines of Cython for statements of Python; notes the variables they set."""
    for node in body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
            names = [ast.unparse(t) for t in getattr(target, "elts", [target])]
            values = _parts(to.visit(node.value), len(names))
            to.local.update(names)
            for name, value in zip(names, values, strict=True):
                later = {n.id for v in values for n in ast.walk(v) if isinstance(n, ast.Name)}
                if ast.unparse(value) == name:
                    continue
                if name in known or (len(names) > 1 and name in later):
                    raise UntranslatableError(f"line {node.lineno}: sets {name} anew")
                local += [name] * (name not in local)
                yield f"{name} = {ast.unparse(value)}"
        elif isinstance(node, ast.If):
            yield f"if {ast.unparse(to.visit(node.test))}:"
            yield from (f"    {line}" for line in statements(node.body, to, local, known))
            if node.orelse:
                yield "else:"
                yield from (f"    {line}" for line in statements(node.orelse, to, local, known))
        elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
            for k, value in enumerate(node.value.elts):
                target = f"out[{k}]" if to.targets is None else to.targets[k]
                yield f"{target} = {ast.unparse(to.visit(value))}"
            yield "return"
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            raise UntranslatableError(f"line {node.lineno}: {ast.unparse(node)}")


class Made(NamedTuple):
    """A function for coefficients, how many it makes, and the words that it compares with."""

    function: Function
    count: int
    words: dict[str, str]  # by the names of its arguments


def scalars(cls: Optimizer) -> dict[str, list[str]]:
    """What C calls the numbers of each hyper-parameter, in the signature's order."""
    names = {}
    for key in sorted(cls.hypers, key=lambda key: cls.hypers[key].keyword):
        default = cls.hypers[key].default
        n = len(default.elts) if isinstance(default, ast.Tuple) else 1
        stem = key if key == "eps" else key.removesuffix("s")
        names[key] = [key] if n == 1 else [f"{stem}{k + 1}" for k in range(n)]
    return names


def count_of(method: ast.FunctionDef) -> int:
    """How many coefficients a method returns, always as many."""
    counts = {
        len(node.value.elts)
        for node in ast.walk(method)
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple)
    }
    most = SIZES["MAX_COEFFICIENTS"]
    if len(counts) != 1 or max(counts) > most:
        raise UntranslatableError(
            f"returns {sorted(counts)} values, not always as many up to {most}"
        )
    return counts.pop()


class _Given(ast.NodeTransformer):
    """Hyper-parameters replaced by what stands for them elsewhere."""

    def __init__(self, given: dict[str, ast.expr]) -> None:
        self.given = given

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if ast.unparse(node.value) != "h":
            return self.generic_visit(node)
        key = ast.literal_eval(node.slice)
        if key not in self.given:
            raise UntranslatableError(f"expected {key!r} among {sorted(self.given)}")
        return self.given[key]


def _spelled_out(method: ast.FunctionDef, classes: dict[str, Optimizer]) -> ast.FunctionDef:
    """A method with what it returns of another class's, `Adam.coefficients({...}, t)`."""
    value = method.body[-1].value if isinstance(method.body[-1], ast.Return) else None
    if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Attribute):
        return method
    theirs = classes[ast.unparse(value.func.value)].coefficients[value.func.attr]
    hyper, step = value.args
    if not isinstance(hyper, ast.Dict) or ast.unparse(step) != "t":
        raise UntranslatableError(f"line {value.lineno}: {ast.unparse(value)}")
    keys = [ast.literal_eval(key or ast.Constant(None)) for key in hyper.keys]
    given = _Given(dict(zip(keys, hyper.values, strict=True)))
    return given.visit(copy.deepcopy(_spelled_out(theirs, classes)))


def _coefficients(cls: Optimizer, key: str, classes: dict[str, Optimizer]) -> Made:
    """The function for the coefficients of an optimizer's step, all rules' or one's own."""
    names = scalars(cls)
    to = Translator(names)
    method = _spelled_out(cls.coefficients[key], classes)
    count = count_of(method)
    text = ast.unparse(method)
    mentioned = {name for key in names if f"h['{key}']" in text for name in names[key]}
    local: list[str] = []
    lines = list(statements(method.body, to, local, mentioned))
    arguments = [
        ("int" if cls.hypers[key].domain == "flag" or name in to.words else "double", name)
        for key in names
        if key in to.used
        for name in names[key]
    ]
    arguments += [("long long", "step"), ("double *", "out")]
    declared = ["cdef double t = <double> step"]
    declared += [f"cdef double {', '.join(local)}"] * bool(local)
    own = key.removesuffix("coefficients")
    about = f"of fastgd.{cls.name}, of whose rules each takes the first so many"
    if own:
        about = f"of the rule {own.removesuffix('_')} of fastgd.{cls.name}"
    about += "".join(f"; {name}: whether it is {word}" for name, word in to.words.items())
    name = f"{cls.name.lower()}_{key}"
    return Made(Function(name, tuple(arguments), [*declared, *lines], about), count, to.words)


# By the names of family and class, and then of the method.
Coefficients = dict[tuple[str, str], dict[str, Made]]


def coefficient_functions(families: list[Family]) -> Coefficients:
    """The functions of all optimizers; without those whose Python is more than arithmetic."""
    functions: Coefficients = {}
    classes = {cls.name: cls for family in families for cls in family.optimizers}
    for family in families:
        for cls in family.optimizers:
            try:
                if "coefficients" not in cls.coefficients:
                    raise UntranslatableError("there is no method coefficients")
                functions[family.name, cls.name] = {
                    key: _coefficients(cls, key, classes) for key in cls.coefficients
                }
            except UntranslatableError as error:  # the tests demand that nobody is left out
                print(f"fastgd: no C function for the coefficients of {cls.name}: {error}")
    return functions


# ---------------------------------------------------------------------------------------- the files


def files(families: list[Family], coefficients: Coefficients, note: str) -> dict[str, str]:
    """The three files, by path."""
    ruled = rule_functions(families)
    functions = [*ruled, *(f.function for own in coefficients.values() for f in own.values())]
    names = [rule.name for family in families for rule in family.rules]

    pxd = [f"# {note}", "# What each function does is said in fastgd.h, at its prototype.", ""]
    pxd += ["from libc.stdint cimport int64_t", ""]
    pxi = [
        f"# {note}",
        "",
        f"from libc.math cimport {', '.join(CALLS)}",
        "",
        "cdef tuple RULE_NAMES = (",
        *(f'    "{name}",' for name in names),
        ")",
        f"cdef void* rules[{2 * len(names)}]",
        f"cdef void* firsts[{2 * len(names)}]",
        f"cdef Entry entries[{len(functions)}]",
    ]
    for f in functions:
        head = f"cdef void fastgd_{f.name}"
        pxd += f.declared(head, "Py_ssize_t", " noexcept nogil")
        pxi += ["", "", *f.declared(head, "Py_ssize_t", " noexcept nogil:")]
        pxi += [f"    {line}" for line in f.body]
    pxi += ["", "", "cdef void fill_entries() noexcept:"]
    for k, f in enumerate(functions):
        pxi += [
            f'    entries[{k}].name = "fastgd_{f.name}"',
            f"    entries[{k}].function = <fastgd_function> <void*> fastgd_{f.name}",
        ]

    prototypes, rows = [], []
    for f in functions:
        prototypes += ["", *textwrap.wrap(f"/* {f.about} */", 100, subsequent_indent="   ")]
        prototypes += f.declared(f"typedef void (*fastgd_{f.name}_t)", "ptrdiff_t", ";")
        prototypes += [f"FASTGD_FUNCTION fastgd_{f.name}_t fastgd_{f.name};"]
        rows += [f"    FASTGD_BIND(fastgd_{f.name})"]
    header = Path("src_c/fastgd.h.in").read_text("utf-8")
    header = header.replace("@NOTE@", note).replace("@BINDINGS@", "\n".join(rows))
    header = header.replace("@FUNCTIONS@", "\n".join(prototypes).strip())
    return {
        "fastgd/kernels/c_api.pxd": "\n".join([*pxd, ""]),
        "fastgd/kernels/_c_api.pxi": "\n".join([*pxi, ""]),
        "fastgd/include/fastgd.h": header,
    }
