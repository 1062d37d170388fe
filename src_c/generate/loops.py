"""Writes what the backends include: loops over the element functions of all rules, and tables.

``_rules.pxi`` has a plain loop for each rule, float32 and float64; `_fused_rules.pxi` tells the
fused loops of ``fused.pxi`` which rules there are; ``_fused_table.pxi`` has the addresses of those
that a family opted into, and ``_fused_codecs.pxi`` tells the engine for which codecs there are any.
"""

from __future__ import annotations

import os
import textwrap

from generate.families import READ, Family, Rule, Sweep

FOLDER = "fastgd/kernels/loops"
FLOATS = ("float", "double")
PARAMS = {"float32": "float", "bfloat16": "Bfloat16", "split": "Split"}
STATES = {"float32": "float", "bfloat16": "Bfloat16"}
EIGHT_BITS = {"m": "e5m2", "v": "ue6m2"}
GRADS = ("float", "Bfloat16")
# The most arrays of which GCC checks at run time that no two overlap, ten pairs, where it doesn't
# take `restrict` for an answer: it does so of arguments alone, and forgets some where it inlines.
CHECKED = 5


def _wrapped(head: str, items: list[str], tail: str) -> list[str]:
    """A call or signature, its arguments below each other where a line is too short."""
    whole = [text.replace(" ", "\xa0") for text in items]
    start = len(head) - len(head.lstrip())
    text = f"{head.replace(' ', chr(0xA0))}({', '.join(whole)}){tail.replace(' ', chr(0xA0))}"
    indent = " " * (len(head) + 1 if len(head) < 60 else start + 8)
    lines = textwrap.wrap(text, 96, subsequent_indent=indent, break_long_words=False)
    return [line.replace("\xa0", " ") for line in lines]


def _loop(rule: Rule, sweep: Sweep) -> list[str]:
    """The loop over the element function of a rule's sweep."""
    order = [*rule.coefficients, *rule.settled]
    first = sweep is rule.before
    head = [f"{'const ' * first}floating* restrict p", "const floating* restrict g"]
    sizes = ["Py_ssize_t n", "const floating* c"]
    lines = _wrapped(
        f"cdef void {sweep.name}",
        [*head, "floating** s", *sizes, *["floating** terms"] * first],
        " noexcept nogil:",
    )
    terms = [f"term{k}" for k in range(sweep.terms)]
    arrays = {
        f"{'const ' * (kind in READ)}floating* restrict {key}": f"s[{rule.states.index(key)}]"
        for key, kind in sweep.states.items()
    }
    arrays |= {f"floating* restrict {key}": f"terms[{k}]" for k, key in enumerate(terms)}
    if len(arrays) > CHECKED:
        given = ["p", "g", *arrays.values(), "n", "c"]
        call = _wrapped(f"    {sweep.name}_loop", given, "")
        inner = [*head, *arrays, *sizes]
        loop = _wrapped(f"cdef apart_void {sweep.name}_loop", inner, " noexcept nogil:")
        lines, last = loop, ["", "", *lines, *call]
    else:
        lines += [f"    cdef {array} = {place}" for array, place in arrays.items()]
        last = []
    lines += [f"    cdef floating {c} = c[{order.index(c)}]" for c in sweep.coefficients]
    lines += ["    cdef Py_ssize_t i", "    for i in range(n):"]
    given = ["p[i]", "g[i]"][: 1 + (sweep.gradient or sweep.kept is not None)]
    given += [f"{'' if kind in READ else '&'}{s}[i]" for s, kind in sweep.states.items()]
    given += [*(f"&{key}[i]" for key in terms), *sweep.coefficients]
    call = f"{'' if first else 'p[i] = '}{sweep.element}_element"
    return [*lines, *_wrapped(f"        {call}", given, ""), *last]


def _table(name: str, about: str, rows: dict[str, Sweep]) -> list[str]:
    lines = ["", "", f"# {about}", f"{name} = {{"]
    for key, sweep in rows.items():
        loops = [f"<size_t> <void*> {sweep.name}[{kind}]" for kind in FLOATS]
        lines += [f'    "{key}": (', f"        {loops[0]},", f"        {loops[1]}),"]
    return [*lines, "}"]


def rules(families: list[Family], note: str) -> str:
    """``_rules.pxi``: the families' element functions, a loop for each, and their addresses."""
    lines = [f"# {note}", ""]
    lines += [f'include "{os.path.relpath(family.loops, FOLDER)}"' for family in families]
    every = [rule for family in families for rule in family.rules]
    for rule in every:
        for sweep in rule.sweeps:
            lines += ["", "", *_loop(rule, sweep)]
    lines += _table(
        "RULES",
        "name: (float32 loop, float64 loop), as addresses.",
        {rule.name: rule.after for rule in every},
    )
    lines += _table(
        "FIRST",
        "The same of the first sweeps of rules that have two.",
        {rule.name: rule.before for rule in every if rule.before is not None},
    )
    for k, (name, about) in enumerate(
        {
            "LINES": "The same of what updates the states of rows and columns.",
            "ROWS": "The same of what makes what sweeps see of rows.",
            "COLUMNS": "And of columns.",
        }.items()
    ):
        rows = {rule.name: rule.beforehand[k] for rule in every if k < len(rule.beforehand)}
        lines += _table(name, about, rows)
    return "\n".join([*lines, ""])


# ------------------------------------------------------------------------------------ fused loops


def _fused(families: list[Family]) -> list[Rule]:
    return [rule for family in families for rule in family.rules if rule.fused_params]


def _struct(rule: Rule) -> str:
    return "".join(part.capitalize() for part in rule.name.split("_"))


def _has(name: str, about: str, structs: list[str]) -> list[str]:
    tests = " or ".join(f"rule_t is {struct}" for struct in structs) or "False"
    return [
        "",
        "",
        f"cdef inline bint {name}(const rule_t* c) noexcept nogil:",
        f'    """{about}"""',
        f"    return ({tests})",
    ]


def fused_rules(families: list[Family], note: str) -> str:
    """``_fused_rules.pxi``: each rule by its coefficients, and what tells them apart."""
    every = _fused(families)
    lines = [
        f"# {note}",
        "",
        "# The rules with fused loops, each by its coefficients.",
    ]
    for rule in every:
        lines += [f"cdef struct {_struct(rule)}:"]
        lines += [f"    float {c}" for c in rule.coefficients]
    lines += ["", "ctypedef fused rule_t:", *(f"    {_struct(rule)}" for rule in every)]
    for letter, about in (("m", "a state of any sign"), ("v", "one of squares")):
        structs = [_struct(rule) for rule in every if letter in rule.kinds]
        lines += _has(f"has_{letter}", f"Whether a rule keeps {about}: a constant.", structs)
    lines += ["", ""]
    lines += _wrapped(
        "cdef inline float updated",
        ["float p", "float g", "float* m", "float* v", "const rule_t* c"],
        " noexcept nogil:",
    )
    for k, rule in enumerate(every):
        given = ["p", "g", *rule.kinds, *(f"c.{c}" for c in rule.coefficients)]
        lines += [f"    {'el' * (k > 0)}if rule_t is {_struct(rule)}:"]
        lines += _wrapped(f"        return {rule.name}_element", given, "")
    return "\n".join([*lines, ""])


def _codecs(rule: Rule, states: str) -> tuple[str, ...]:
    """The codecs of a rule's states where an optimizer stores them in some way."""
    return tuple(EIGHT_BITS[kind] if states == "8bit" else states for kind in rule.kinds)


def _fused_keys(rule: Rule) -> list[tuple[str, ...]]:
    """The codecs of parameter and states for which a rule has fused loops."""
    return [
        (param, *_codecs(rule, states))
        for param in rule.fused_params
        for states in rule.fused_states
    ]


def fused_codecs(families: list[Family], note: str) -> str:
    """``_fused_codecs.pxi``: the codecs for which some rule has fused loops, in a fixed order."""
    every = list(dict.fromkeys(key for rule in _fused(families) for key in _fused_keys(rule)))
    lines = [
        f"# {note}",
        "",
        "# The codecs of parameter and states for which some rule has fused loops.",
        "cdef enum:",
        f"    N_FUSED = {len(every)}",
        "",
        "cdef list FUSED_CODECS = [",
    ]
    lines += ["    ({}),".format(", ".join(f'"{codec}"' for codec in key)) for key in every]
    return "\n".join([*lines, "]", ""])


def fused_table(families: list[Family], note: str) -> str:
    """``_fused_table.pxi``: the addresses of the loops, by rule and by the codecs of its arrays."""
    lines = [
        f"# {note}",
        "",
        "# rule: {(codec of the parameter, of each state): addresses of its loops, for gradients",
        "# in float32 and in bfloat16}.",
        "FUSED = {",
    ]
    for rule in _fused(families):
        lines += [f'    "{rule.name}": {{']
        for param in rule.fused_params:
            for states in rule.fused_states:
                key = ", ".join(f'"{codec}"' for codec in (param, *_codecs(rule, states)))
                lines += [f"        ({key}): ("]
                for grad in GRADS:
                    kinds = [PARAMS[param], grad]
                    kinds += [STATES[states]] if states in STATES else []
                    loop = "direct" if states in STATES else "in_8_bits"
                    if kinds[0] != "float" and kinds[1:] == ["Bfloat16", "Bfloat16"]:
                        loop, kinds = "in_pairs", kinds[:1]
                    given = ", ".join([*kinds, _struct(rule)])
                    lines += [f"            <size_t> <void*> {loop}[{given}],"]
                lines += ["        ),"]
        lines += ["    },"]
    return "\n".join([*lines, "}", ""])
