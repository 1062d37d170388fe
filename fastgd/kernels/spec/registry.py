"""The registry of rules: what each is called, needs and does.

A rule is the formula of its paper and nothing else, in NumPy: what the compiled kernels must
compute, to the bit.  Its signature is also its declaration: after the parameter ``p`` and the
gradient ``g`` come the states, by torch.optim's names, and after the ``*`` the coefficients, by the
papers' letters, in the order in which the compiled loop takes them.  A state annotated `Squares` is
never negative.  Arrays are updated in place.  Whatever depends on the step count (bias correction,
first step) was worked out in double precision and arrives as a coefficient, rounded once to the
type of ``p``.  One that is added to a denominator is called ``eps``, and arrives as the smallest
normal number at least: so 0/0 is 0, and an element without a gradient stands still, also where ε
is 0 or too small for the type.

A rule that has to see all of a tensor before it can write the parameter takes **two sweeps**: in
the first one the function given as ``before`` updates states and returns terms, whose sums over the
tensor go to ``settle``, which works out further coefficients in double precision; the rule itself
is the second sweep.  ``begin`` works out coefficients before the first sweep, from numbers that are
kept for each parameter.  What either works out is named by `sets`.

A rule may have a **matrix step** between the sweeps.  Then ``before`` returns one term, which is
kept; ``matrix`` is given it as a matrix, as it lies in memory, to be changed in place; and the rule
gets it, annotated `Kept`, in the gradient's place.

A number may be `Shared`, the same for all parameters, and the sum of a term a `Total` over all
parameters that have a gradient.  Each parameter then works out the shared numbers by itself, from
arguments that are the same for all; those that have no gradient get the others'.

States annotated `Rows` and `Columns` have one number for each row and each column of a matrix, and
of each matrix along the last two axes where there are more.  They are updated before any sweep:
``lines`` gets each of the two as ``p``, and as ``g`` the mean squares of the gradient's rows or
columns.  Sweeps only read what ``rows`` and ``columns`` make of copies of them, each number at all
its elements; ``rows`` is given the mean of the rows' numbers over their matrix as ``g``.

A state annotated `PerRow` has one number for each entry along the first axis, a row of a table.
``lines`` gets it as ``p``, and as ``g`` the mean square of the row's gradient; sweeps only read
what ``rows`` makes of a copy of it.  Their coefficients follow those of the rule.

States annotated `RowPairs` and `ColumnPairs` have one number for each pair of rows, or of columns,
of a matrix, and the matrix step takes them, as it may others, after its arguments; no sweep does.
All that it takes are kept in the type that is computed with.  ``renew`` is asked before the step,
when nothing is written yet, what some of these states are to be from here on: so it may fail.

The rules stand in the modules of `fastgd.optimizers`, and that of averages in
`fastgd.kernels.spec.average`; the compiled twin of ``family.py`` is ``family.pxi`` in its folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

DENOMINATOR = "eps"  # what a coefficient is called that keeps a denominator from being 0

Array = NDArray[Any]
Squares = Annotated[Array, "never negative"]  # of a state
Read = Annotated[Array, "only read in this sweep"]  # of a state
Unread = Annotated[Array, "not even read in this sweep"]  # of the parameter, in a first sweep
Kept = Annotated[Array, "the term of the sweep before, after the matrix step"]
FullWidth = Annotated[Array, "kept in the type that is computed with"]  # of a state
Rows = Annotated[Array, "a state: one number a row, never negative"]
Columns = Annotated[Array, "a state: one number a column, never negative"]
PerRow = Annotated[Array, "a state: one number for each entry along the first axis"]
RowPairs = Annotated[Array, "a state of a matrix step: one number for each pair of rows"]
ColumnPairs = Annotated[Array, "a state of a matrix step: one number for each pair of columns"]
Update = Callable[..., Any]
Scalar = Any  # a NumPy scalar of the arrays' type
# What `begin` and `settle` are given beside coefficients, each a float64.
Number = Annotated[Any, "a state: one number a parameter"]
Shared = Annotated[Any, "a number that all parameters have alike"]
Sum = Annotated[Any, "of a term of the sweep before"]
Total = Annotated[Any, "the sum of such a term over all parameters"]
SumOfSquares = Annotated[Any, "of the squares of such a term"]
Size = Annotated[Any, "the elements of the tensor"]

# What functions of a rule may annotate an argument with, as an object or, by a postponed
# annotation, in words.
STATE_KINDS: dict[Any, str] = {
    Array: "signed", "Array": "signed", Squares: "squares", "Squares": "squares",
    Read: "read", "Read": "read", Kept: "kept", "Kept": "kept",
    FullWidth: "full_width", "FullWidth": "full_width",
    Rows: "rows", "Rows": "rows", Columns: "columns", "Columns": "columns",
    PerRow: "entries", "PerRow": "entries",
    RowPairs: "row_pairs", "RowPairs": "row_pairs",
    ColumnPairs: "column_pairs", "ColumnPairs": "column_pairs",
}  # fmt: skip
ARITHMETIC_KINDS: dict[Any, str] = {
    Number: "number", "Number": "number", Shared: "shared", "Shared": "shared",
    Sum: "sum", "Sum": "sum", Total: "total", "Total": "total",
    SumOfSquares: "squares", "SumOfSquares": "squares", Size: "size", "Size": "size",
}  # fmt: skip


# The kinds of states that have one number for each of some lines, and the parts that go with them.
LINES = ("rows", "columns", "entries")
PAIRS = ("row_pairs", "column_pairs")
LINE_PARTS: dict[tuple[str, ...], tuple[str, ...]] = {
    (): (), ("entries",): ("lines", "rows"), ("columns", "rows"): ("lines", "rows", "columns"),
}  # fmt: skip


class Fused(NamedTuple):
    """Which fused loops a rule has: they load, scale, decay, update and store in one go.

    For rules whose states are one of any sign, one of squares, or the one and then the other.

    Attributes
    ----------
    params : tuple of {"float32", "bfloat16", "split"}
        How the parameter may be stored.
    states : tuple of {"float32", "bfloat16", "8bit"}
        How the states may be stored.
    gain : str
        How many times as fast as stage by stage they were measured to be, and where.
    """

    params: tuple[str, ...]
    states: tuple[str, ...]
    gain: str


class Sweep(NamedTuple):
    """What one sweep of a rule does to each element."""

    name: str
    update: Update
    gradient: bool  # whether it takes the gradient
    states: tuple[str, ...]  # that it loads, in order,
    written: tuple[str, ...]  # and of these those that it stores
    coefficients: tuple[str, ...]
    kept: str | None = None  # what it calls the kept term, if it takes it in the gradient's place
    parameter: bool = True  # whether it reads the parameter


class MatrixStep(NamedTuple):
    """What is done with the kept term, as a matrix, between the sweeps."""

    name: str
    transform: Update
    coefficients: tuple[str, ...]
    states: tuple[str, ...]  # that it takes


class Renewal(NamedTuple):
    """What says before a step what states are to be from here on."""

    update: Update
    states: tuple[str, ...]  # that it takes
    coefficients: tuple[str, ...]


class Arithmetic(NamedTuple):
    """What is worked out for a tensor before a sweep, in double precision."""

    name: str
    work_out: Update
    arguments: tuple[tuple[str, str], ...]  # (name, kind) of numbers, sums and the size
    coefficients: tuple[str, ...]  # that it takes
    sets: tuple[str, ...]  # numbers and coefficients, in the order in which it returns them


class Rule(NamedTuple):
    """A row of `RULES`."""

    name: str
    states: tuple[str, ...]
    coefficients: tuple[str, ...]  # as the optimizer's class returns them
    squares: frozenset[str]
    fused: Fused | None
    before: Sweep | None
    after: Sweep  # the only one, if there is none before
    begin: Arithmetic | None
    settle: Arithmetic | None
    settled: tuple[str, ...]  # the coefficients that these set; they follow the others
    numbers: tuple[str, ...]  # states of one number a parameter
    sums: tuple[str, ...]  # "sum", "squares" or "total" for each term of the sweep before
    shared: frozenset[str]  # the numbers that all parameters have alike
    full_width: frozenset[str]  # the states that aren't kept in fewer bits unless named
    shards: bool = True  # whether it can step a shard of a parameter by itself
    exact: bool = True  # whether its bits are the same on all machines
    matrix: MatrixStep | None = None
    lines: Sweep | None = None  # what updates the states of rows and columns,
    rows: Sweep | None = None  # and makes what sweeps see of rows,
    columns: Sweep | None = None  # and of columns
    # Which these are, "rows", "columns" or "entries"; and "row_pairs" and "column_pairs".
    line_states: Mapping[str, str] = {}
    by_rows: str = "lazy"  # what it makes of gradients by rows: see `rule`
    catch_up: str = ""  # and of what rows without a gradient missed
    renew: Renewal | None = None
    own_decay: bool = False  # whether it decays weights by itself

    @property
    def update(self) -> Update:
        """The function of the last sweep, which the rule is named by."""
        return self.after.update

    @property
    def sweeps(self) -> tuple[Sweep, ...]:
        """Its sweeps, in order, after those over numbers of rows and columns."""
        every = (self.lines, self.rows, self.columns, self.before, self.after)
        return tuple(sweep for sweep in every if sweep is not None)

    @property
    def order(self) -> tuple[str, ...]:
        """All its coefficients: the given ones, then those that are worked out."""
        return (*self.coefficients, *self.settled)

    @property
    def summary(self) -> str:
        """The first line of what its function says."""
        return (self.update.__doc__ or "").partition("\n")[0]

    @property
    def pair_states(self) -> tuple[str, ...]:
        """The states of pairs of rows or of columns."""
        return tuple(key for key, kind in self.line_states.items() if kind in PAIRS)


RULES: dict[str, Rule] = {}


def rounded(key: str, value: Any, to: type[Any]) -> Any:
    """A coefficient of that name in the type that is computed with."""
    x = to(value)
    return np.finfo(to).tiny if key == DENOMINATOR and 0 <= x < np.finfo(to).tiny else x


F = TypeVar("F", bound=Update)


def sets(*names: str) -> Callable[[F], F]:
    """Name what the arithmetic of a rule returns, a tuple: numbers of its, or coefficients."""

    def named(function: F) -> F:
        function.sets = names  # type: ignore[attr-defined]
        return function

    return named


@overload
def rule(update: Update) -> Update: ...


@overload
def rule(
    *,
    fused: Fused | None = None,
    before: Update | None = None,
    begin: Update | None = None,
    settle: Update | None = None,
    shards: bool = True,
    exact: bool = True,
    matrix: Update | None = None,
    lines: Update | None = None,
    rows: Update | None = None,
    columns: Update | None = None,
    by_rows: str | None = None,
    catch_up: str | None = None,
    renew: Update | None = None,
    own_decay: bool = False,
) -> Callable[[Update], Update]: ...


def rule(update: Update | None = None, **parts: Any) -> Any:
    """Enter a function in `RULES`, reading states and coefficients off its signature.

    Parameters
    ----------
    update : callable
        The last sweep, or the only one; the rule gets its name.
    fused : Fused, optional
        Which fused loops there are.
    before : callable, optional
        The sweep before it, which returns a tuple of arrays: the terms that are summed up.
    begin, settle : callable, optional
        What is worked out before the first sweep, and between the two.
    shards : bool
        Whether a shard of a parameter can be stepped where the rest of it isn't; with states of
        rows and columns none can.
    exact : bool
        Whether the bits follow from the formula alone; else also from the machine.
    matrix : callable, optional
        The step between the sweeps, ``matrix(update, rows, columns, squares, *, ...)``: the term
        as it lies in memory, a matrix of (rows, columns) in C order or its transpose; the
        parameter's rows and columns; the sum of the term's squares; and coefficients.  One that
        takes states, after ``squares``, gets all as matrices of (rows, columns), whatever their
        order in memory.
    lines, rows, columns : callable, optional
        What updates the states of rows and columns, and makes what sweeps see of them.
    by_rows : str, optional
        What becomes of gradients by rows (`fastgd.Rows`).  "exact": where the gradient is 0,
        parameter and states stand still, so that to leave such rows alone changes nothing.  "lazy":
        they would go on, and wait for their next gradient instead.  Else why rows alone can't be
        stepped, in words that follow the rule's name.  By default "lazy", if the rule is one sweep.
    catch_up : str, optional
        What becomes of steps that a row missed (`fastgd.kernels.spec.catch_up`).  "linear": without
        a gradient but that of L2 decay, parameter and states are multiplied and added up, so that k
        steps have a closed form; at most one state moves the parameter.  "linear without L2 decay".
        "signs": the parameter moves by the sign of the only state, which shrinks by factors above
        0.5.  Else why there is none, in words that follow the rule's name.
    renew : callable, optional
        ``renew(state, ..., *, ...)``: called before each step with states of the matrix step, as
        this gets them, and coefficients.  Returns what to set of them, by name; it may raise.
    own_decay : bool
        Whether the rule decays weights as one of its terms, and not the stage before it.

    Raises
    ------
    ValueError
        If there is a rule of that name already.
    TypeError
        If an argument isn't annotated as it has to be, or a part is missing.
    """
    if update is None:
        return lambda function: _entered(function, **parts)
    return _entered(update, **parts)


def _arguments(
    function: Update, known: dict[Any, str], first: int = 0
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The positional arguments of a function with their kinds, and the keyword-only ones."""
    code = function.__code__
    positional, total = code.co_argcount, code.co_argcount + code.co_kwonlyargcount
    names = code.co_varnames
    kinds = {}
    for key in names[first:positional]:
        if key in ("p", "g"):
            continue
        kind = known.get(function.__annotations__.get(key))
        if kind is None:
            words = [word for word in known if isinstance(word, str)]
            raise TypeError(f"rule {code.co_name}: expected {key}: {' or '.join(words)}")
        kinds[key] = kind
    return kinds, names[positional:total]


MATRIX_ARGUMENTS = ("update", "rows", "columns", "squares")


def _sweep(name: str, function: Update) -> tuple[Sweep, dict[str, str]]:
    """A sweep, and the kinds of its states."""
    kinds, coefficients = _arguments(function, STATE_KINDS)
    code = function.__code__
    kept = [key for key, kind in kinds.items() if kind == "kept"]
    kinds = {key: kind for key, kind in kinds.items() if kind != "kept"}
    only_read = ("read", *LINES)
    written = tuple(key for key, kind in kinds.items() if kind not in only_read)
    takes = "g" in code.co_varnames[: code.co_argcount]
    reads = function.__annotations__.get("p") not in (Unread, "Unread")
    sweep = Sweep(
        name, function, takes, tuple(kinds), written, coefficients, next(iter(kept), None), reads
    )
    return sweep, kinds


def _arithmetic(name: str, function: Update) -> Arithmetic:
    kinds, coefficients = _arguments(function, ARITHMETIC_KINDS)
    return Arithmetic(name, function, tuple(kinds.items()), coefficients, function.sets)  # type: ignore[attr-defined]


def _matrix_step(function: Update) -> tuple[MatrixStep, dict[str, str]]:
    """A matrix step, and the kinds of its states."""
    code, own = function.__code__, len(MATRIX_ARGUMENTS)
    if code.co_varnames[: min(own, code.co_argcount)] != MATRIX_ARGUMENTS:
        raise TypeError(
            f"rule {code.co_name}: expected the arguments {', '.join(MATRIX_ARGUMENTS)}"
        )
    kinds, coefficients = _arguments(function, STATE_KINDS, own)
    return MatrixStep(code.co_name, function, coefficients, tuple(kinds)), kinds


def _renewal(function: Update) -> Renewal:
    kinds, coefficients = _arguments(function, STATE_KINDS)
    return Renewal(function, tuple(kinds), coefficients)


def _entered(
    update: Update,
    fused: Fused | None = None,
    before: Update | None = None,
    begin: Update | None = None,
    settle: Update | None = None,
    shards: bool = True,
    exact: bool = True,
    matrix: Update | None = None,
    lines: Update | None = None,
    rows: Update | None = None,
    columns: Update | None = None,
    by_rows: str | None = None,
    catch_up: str | None = None,
    renew: Update | None = None,
    own_decay: bool = False,
) -> Update:
    name = update.__code__.co_name
    if name in RULES:
        raise ValueError(f"rule {name}: there is one of that name already")
    first, states = (None, {}) if before is None else _sweep(f"{name}_before", before)
    after, more = _sweep(name, update)
    states |= {key: kind for key, kind in more.items() if key not in states or kind != "read"}
    between, of_matrix = (None, {}) if matrix is None else _matrix_step(matrix)
    states |= of_matrix
    ahead = None if renew is None else _renewal(renew)
    if ahead is not None and not set(ahead.states) <= set(of_matrix):
        raise TypeError(f"rule {name}: expected renew to take states of the matrix step")
    start = None if begin is None else _arithmetic(f"{name}_begin", begin)
    end = None if settle is None else _arithmetic(f"{name}_settle", settle)
    worked_out = [part for part in (start, end) if part is not None]
    line_states = {key: kind for key, kind in states.items() if kind in LINES + PAIRS}
    lined = tuple(sorted(kind for kind in line_states.values() if kind in LINES))
    beforehand = {
        key: None if part is None else _sweep(f"{name}_{key}", part)[0]
        for key, part in {"lines": lines, "rows": rows, "columns": columns}.items()
    }
    parts = tuple(key for key, part in beforehand.items() if part is not None)
    if parts != LINE_PARTS.get(lined):
        raise TypeError(
            f"rule {name}: expected Rows, Columns, lines, rows and columns; or PerRow, lines and "
            "rows; or none of them"
        )
    named = (*beforehand.values(), first, *worked_out, between, ahead, after)
    if columns is None:  # then the order is that of the elementwise rule that it is for vectors
        named = (first, *worked_out, between, ahead, after, *beforehand.values())
    given = dict.fromkeys(key for part in named if part is not None for key in part.coefficients)
    numbers: dict[str, str] = {}
    sums = [] if between is None else ["squares"]
    for part in worked_out:
        numbers |= {key: kind for key, kind in part.arguments if kind in ("number", "shared")}
        sums += [kind for _, kind in part.arguments if kind in ("sum", "squares", "total")]
    shared = frozenset(key for key, kind in numbers.items() if kind == "shared")
    if shared and set(sums) - {"total"}:
        raise TypeError(f"rule {name}: shares {sorted(shared)}: expected sums that are totals")
    settled = tuple(key for part in worked_out for key in part.sets if key not in numbers)
    if by_rows is None:
        whole = first is not None or between is not None or columns is not None
        by_rows = "takes sums over the whole parameter" if whole else "lazy"
    if catch_up is None:
        catch_up = by_rows
        if by_rows in ("exact", "lazy"):
            catch_up = "goes on by quotients, whose sum over missed steps has no closed form"
    RULES[name] = Rule(
        name,
        tuple(states),
        tuple(key for key in given if key not in settled),
        frozenset(key for key, kind in states.items() if kind == "squares"),
        fused,
        first,
        after,
        start,
        end,
        settled,
        tuple(numbers),
        tuple(sums),
        shared,
        frozenset(key for key, kind in states.items() if kind == "full_width"),
        shards and not line_states,
        exact,
        between,
        line_states=line_states,
        by_rows=by_rows,
        catch_up=catch_up,
        renew=ahead,
        own_decay=own_decay,
        **beforehand,
    )
    return update


def at_most(x: Array, high: Scalar) -> Array:
    """x, or `high` where x is more; NaN stays NaN."""
    lowered: Array = np.where(x > high, high, x)
    return lowered


def at_least(x: Array, low: Scalar) -> Array:
    """x, or `low` where x is less; NaN stays NaN."""
    raised: Array = np.where(x < low, low, x)
    return raised


def larger(x: Array, y: Array) -> Array:
    """The larger of x and y; NaN where either is."""
    found: Array = np.where((x > y) | (x != x), x, y)
    return found


def epsilon(eps: Scalar) -> Scalar:
    """ε, or the machine epsilon of its type where ε is negative: where none was given."""
    return np.finfo(eps.dtype).eps if eps < 0 else eps


def positive_part(x: Array) -> Array:
    """x, or 0 where x < 0; NaN stays NaN."""
    clipped: Array = np.where(x < 0, x.dtype.type(0), x)
    return clipped


def is_positive(x: Array) -> Array:
    """1 where x > 0, else 0; NaN is not."""
    found: Array = (x > 0).astype(x.dtype)
    return found


def weighed(weight: Scalar, x: Array) -> Array:
    """x times its weight, and 0 where that is 0, whatever x is."""
    product: Array = weight * x if weight != 0 else np.zeros_like(x)
    return product


def cube_root(x: Array) -> Array:
    """∛x of numbers of at least 0, by arithmetic alone: its bits are the same everywhere.

    A number's bits, read as an integer, are about its logarithm: a constant less a third of them
    are the bits of a first guess at r = 1/∛x.  With e = 1 − xr³ the true one is r(1 − e)^(−⅓), of
    whose series four terms are taken, in float64 twice.  Then xr² is the root, and one step of
    Newton's repairs what rounding left: errors stay below one unit in the last place.  Nothing is
    divided by.  Infinity, NaN and 0 are their own roots.
    """
    single = x.dtype == np.float32
    bits: Any = np.uint32 if single else np.uint64
    offset = 0x54A1E000 if single else 0x553ED00000000000
    to = x.dtype.type
    # Scaled, nothing on the way is too large or too small for its type.
    small = x < 1
    y = x * np.where(small, to(2.0**54), to(2.0**-54))
    # A third by shifts: ¼ + ¹⁄₁₆ is 5⁄16, whose multiples by 1 + ¹⁄₁₆, 1 + ¹⁄₂₅₆, … go to ⅓.
    n = np.ascontiguousarray(y).view(bits)
    third = (n >> bits(2)) + (n >> bits(4))
    third = third + (third >> bits(4))
    third = third + (third >> bits(8))
    r = (bits(offset) - third).view(x.dtype).reshape(x.shape)
    for _ in range(1 if single else 2):
        e = to(1) - (y * r) * (r * r)
        r = r + (r * e) * ((to(1 / 3) + e * to(2 / 9)) + (e * e) * to(14 / 81))
    root, back = y * (r * r), np.where(small, to(2.0**-18), to(2.0**18))
    root = root * back + (y - root * root * root) * ((r * r) * (back * to(1 / 3)))
    found: Array = np.where((x > 0) & (x < np.inf), root, x)
    return found
