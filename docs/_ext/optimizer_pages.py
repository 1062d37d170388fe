"""The catalogue of optimizers, from docstrings and declarations: nothing is written by hand.

A page for each optimizer is written to ``reference/optimizers/`` before pages are read; the
directive ``{optimizers}`` is the table of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from fastgd.commands.bytes import CHOICES
from fastgd.commands.descents import family
from fastgd.commands.optimizers import bytes_moved
from fastgd.core import domains
from fastgd.core.variants import is_general, rules_of
from fastgd.kernels.spec.codecs import CODECS
from fastgd.kernels.spec.registry import RULES, Rule
from fastgd.optimizers import OPTIMIZERS

SIDE = 256  # of the matrices that bytes are counted with


def table(head: Iterable[str], rows: Iterable[Iterable[str]], right: int = 0) -> str:
    """A table in Markdown, whose last so many columns are numbers."""
    head = list(head)
    lines = ["---"] * (len(head) - right) + ["--:"] * right
    every = [head, lines, *map(list, rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in every) + "\n"


def code(value: object) -> str:
    return f"`{value!r}`"


def default_rule(cls: Any) -> Rule:
    """The rule that the defaults pick, for a vector where it takes one."""
    picks = rules_of(cls)
    return RULES[next(name for name, pick in picks.items() if not pick.changes)]


def state_bytes(cls: Any, kind: str, options: dict[str, Any]) -> float | None:
    """What states and masters take for each parameter, or None if that is refused."""
    n = SIDE * SIDE
    values = np.empty(n, CODECS[kind].code)
    CODECS[kind].store(values, None, np.ones(n, np.float32))
    try:
        opt = cls(values.reshape(SIDE, SIDE), **options)
    except (TypeError, ValueError):
        return None
    kept = opt.state[0]
    return float(sum(a.nbytes for key, a in kept.items() if key != "step") / n)


def in_bytes(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")


def yes(value: bool) -> str:
    return "yes" if value else "no"


def overview() -> str:
    """The table of all optimizers."""
    rows = []
    for name, cls in OPTIMIZERS.items():
        rule = default_rule(cls)
        shapes = "any" if is_general(cls) else "tables" if cls.sparse else "matrices, any by AdamW"
        follows = family(cls)
        states = state_bytes(cls, "float32", {})
        small = state_bytes(cls, "float32", {"state_dtype": "8bit"})
        rows.append(
            [
                f"[`{name}`](/reference/optimizers/{name}.md)",
                str(cls.year),
                follows,
                shapes,
                yes(rule.exact),
                in_bytes(states),
                in_bytes(small),
                str(bytes_moved(rule)),
            ]
        )
    head = [
        "optimizer", "year", "the length of a step follows from", "shapes", "exact", "states",
        "8-bit states", "moved",
    ]  # fmt: skip
    return table(head, rows, right=3)


def page(name: str, cls: Any) -> str:
    """The page of an optimizer."""
    hypers = []
    for key, h in cls.hypers.items():
        how = "by keyword" if h.keyword else ""
        hypers.append([f"`{key}`", code(h.default), how, yes(h.domain in domains.SCHEDULABLE)])
    formulas, rules = "", []
    for rule_name, (changes, shape) in rules_of(cls).items():
        rule = RULES[rule_name]
        given = ", ".join(f"`{key}={value!r}`" for key, value in changes.items())
        where = {None: "", 1: "vectors", 2: "matrices"}[None if shape is None else len(shape)]
        when = ", ".join(filter(None, [given, where]))
        formulas += f"- **`{rule_name}`**{f' ({when})' if when else ''}: {rule.summary}\n"
        numbers = [f"`{key}` (a number)" for key in rule.numbers]
        kept = ", ".join([*(f"`{key}`" for key in rule.states), *numbers]) or "none"
        sweeps = "2" if rule.before is not None else "1"
        moved = str(bytes_moved(rule))
        rules.append([f"`{rule_name}`", kept, yes(rule.exact), yes(rule.shards), sweeps, moved])
    storages = []
    fused = default_rule(cls).fused
    for choice, (kind, options) in CHOICES.items():
        kept = state_bytes(cls, kind, options)
        total = None if kept is None else kept + CODECS[kind].code.itemsize
        written = ", ".join(f"`{key}={value!r}`" for key, value in options.items()) or "the default"
        storages.append([choice.split(",")[0], written, in_bytes(kept), in_bytes(total)])
    loops = ""
    if fused is not None:
        params, states = ", ".join(fused.params), ", ".join(fused.states)
        loops = (
            f"\nParameters in {params} with states in {states} have fused loops, which load, step "
            f"and store at once (speed against stage by stage: {fused.gain}).\n"
        )
    return f"""# {name}

```{{eval-rst}}
.. currentmodule:: fastgd

.. autoclass:: {name}
```

## Hyper-parameters

{table(["name", "default", "", "may be a schedule"], hypers)}
Beside these, all optimizers take [the options of the whole step](/howto/whole_step.md) and of
[fewer bytes](/howto/fewer_bytes.md).

## Rules

The formulas, and what picks them: hyper-parameters, or the shape of a parameter.

{formulas}
*Exact* says whether the bits are the same on all machines; *shards*, whether a part of a parameter
can be stepped by itself; *moved* is what a step in float32 reads and writes, in bytes for each
parameter.

{table(["rule", "states", "exact", "shards", "sweeps", "moved"], rules, right=2)}
## Storage

Bytes kept for each parameter of a matrix of {SIDE} × {SIDE}, as this build of the documentation
counted them: of states, scales and masters, and with the parameter itself.

{table(["parameters", "options", "states", "with the parameter"], storages, right=2)}{loops}"""


def write_pages(app: Sphinx) -> None:
    """Write what is new or has changed, so that the rest needs no new build."""
    folder = Path(app.srcdir) / "reference" / "optimizers"
    folder.mkdir(exist_ok=True)
    for name, cls in OPTIMIZERS.items():
        file, text = folder / f"{name}.md", page(name, cls)
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


class Optimizers(SphinxDirective):
    """The table of all optimizers."""

    def run(self) -> list[nodes.Node]:
        return [nodes.container("", *self.parse_text_to_nodes(overview()), classes=["wide"])]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write_pages)
    app.add_directive("optimizers", Optimizers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
