"""Formulas as MathML, which browsers draw by themselves: no script, no fonts, nothing to fetch."""

from __future__ import annotations

import re
from html import unescape
from typing import Any
from xml.etree import ElementTree

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

# What only sizes things, and the converter doesn't know.
SIZES = ("\\big", "\\Big", "\\textstyle")
MATHML = "{http://www.w3.org/1998/Math/MathML}"
ACCENTS = {"ˆ", "ˉ", "˜", "^", "¯", "~"}

# Characters by names that HTML knows and XML doesn't.
NAMED = re.compile(r"&(?!lt;|gt;|amp;|#)\w+;")

ElementTree.register_namespace("", MATHML[1:-1])


def mathml(tex: str, block: bool) -> str:
    """TeX as MathML.

    >>> "<msup>" in mathml("x^2", block=False)
    True
    """
    for size in SIZES:
        tex = tex.replace(size, "")
    if block and ("\\\\" in tex or "&" in tex):
        tex = f"\\begin{{aligned}}{tex}\\end{{aligned}}"
    text = NAMED.sub(lambda name: unescape(name[0]), tex2mathml(tex, as_block=block))
    root = ElementTree.fromstring(text)
    for element in root.iter(f"{MATHML}munderover"):
        base, index, accent = element
        if accent.text in ACCENTS:
            # In blocks the index of a letter with an accent came to stand below it.
            over = ElementTree.Element(f"{MATHML}mover", accent="true")
            over.extend([base, accent])
            element[:] = [over, index]
            element.tag = f"{MATHML}msub"
    return ElementTree.tostring(root, encoding="unicode")


def inline(translator: Any, node: Any) -> None:
    translator.body.append(mathml(node.astext(), block=False))
    raise SkipNode


def block(translator: Any, node: Any) -> None:
    # It scrolls by itself where a phone is too narrow for it.
    formula = mathml(node.astext(), block=True)
    translator.body.append(f'<div class="formula" tabindex="0">{formula}</div>')
    raise SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
