"""``python -m fastgd optimizers``: every optimizer with its formulas, states and defaults."""

from __future__ import annotations

import argparse
from textwrap import fill

from fastgd.commands.output import one_of
from fastgd.core.contract import Contract
from fastgd.core.variants import rules_of
from fastgd.kernels.spec.registry import PAIRS, RULES, Rule
from fastgd.optimizers import OPTIMIZERS

# What a rule makes of `fastgd.Rows`, in words.
BY_ROWS = {
    "exact": "exact without weight decay, as rows without a gradient stand still",
    "lazy": "lazy, rows without a gradient wait for their next one",
}

# And of what others missed, with ``rows="catch_up"``.
CATCH_UP = {
    "linear": "can catch up exactly",
    "linear without L2 decay": "can catch up exactly, without L2 decay",
    "signs": "can catch up exactly, without L2 decay, by factors of momentum of more than 0.5",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    known = one_of(OPTIMIZERS)
    parser.add_argument("names", nargs="*", type=known, metavar="NAME", help="which, or else all")


def run(arguments: argparse.Namespace) -> int:
    """Print them, in the order of their papers."""
    chosen = [cls for name, cls in OPTIMIZERS.items() if name in (arguments.names or OPTIMIZERS)]
    print("\n\n".join(map(described, chosen)))
    return 0


def described(cls: type[Contract]) -> str:
    """A class in words: what it is, its hyper-parameters, and the rules that these pick."""
    summary = (cls.__doc__ or "").partition("\n")[0]
    defaults = ", ".join(f"{key}={h.default!r}" for key, h in cls.hypers.items())
    lines = [f"{cls.__name__}: {summary}", _indented(defaults, 4)]
    for name, (changes, shape) in rules_of(cls).items():
        given = ", ".join(f"{key}={value!r}" for key, value in changes.items())
        words = [f"with {given}"] * bool(given) + [f"for shape {shape}"] * bool(shape)
        reached = f" (as {' '.join(words)})" if words else ""
        lines += [f"  {name}{reached}"]
        lines += [_indented(text, 4) for text in _rule_lines(RULES[name])]
    return "\n".join(lines)


def bytes_moved(rule: Rule) -> int:
    """What a step of a rule reads and writes, for each element in float32."""
    numbers = 1  # the parameter, written
    for sweep in (rule.before, rule.after):
        if sweep is not None:
            numbers += 1 + sweep.gradient + len(sweep.states) + len(sweep.written)
    if rule.matrix is not None:
        numbers += 2 * (1 + len(rule.matrix.states) - len(rule.pair_states))
    return 4 * numbers


def _rule_lines(rule: Rule) -> list[str]:
    """The formula of a rule; its states, and the bytes that a step moves; its fused loops."""
    pairs = {key: key_of_pairs(kind) for key, kind in rule.line_states.items() if kind in PAIRS}
    kept = [key + pairs.get(key, "") for key in rule.states]
    kept += [f"{key} (a number)" for key in rule.numbers]
    states = f"states {', '.join(kept)}" if kept else "no states"
    sweeps = " in two sweeps" if rule.before is not None else ""
    beside = ", beside those of pairs" if pairs else ""
    moved = f"a step moves {bytes_moved(rule)} bytes a parameter in float32{sweeps}{beside}"
    lines = [rule.summary, f"{states}; {moved}"]
    if not rule.exact:
        lines += ["its last bits follow from the machine, too, as its products of matrices do"]
    if not rule.shards:
        lines += ["it steps whole parameters, and no shards"]
    lines += [f"gradients by rows: {BY_ROWS.get(rule.by_rows) or f'none, as it {rule.by_rows}'}"]
    known = CATCH_UP.get(rule.catch_up) or f"can't catch up, as it {rule.catch_up}"
    if rule.by_rows in BY_ROWS:
        lines += [f"rows that missed steps: {known}"]
    if rule.fused is not None:
        lines += [
            f"fused loops for parameters in {', '.join(rule.fused.params)} and states in "
            f"{', '.join(rule.fused.states)}; speed against stage by stage: {rule.fused.gain}"
        ]
    return lines


def key_of_pairs(kind: str) -> str:
    """What is said of a state of pairs beside its name."""
    return f" (a number for each pair of {'rows' if kind == 'row_pairs' else 'columns'})"


def _indented(text: str, n: int) -> str:
    return fill(text, 100, initial_indent=" " * n, subsequent_indent=" " * (n + 2))
