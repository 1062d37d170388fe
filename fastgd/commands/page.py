"""The gallery's page: one HTML file that holds all it needs, pictures included."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import NamedTuple

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

import fastgd
from fastgd import plot

# CSS pixels for an inch of a picture: so that all texts in pictures are of one size.
PIXELS_PER_INCH = 84
PHONE = "(max-width: 700px)"
# On paper the light pictures are wanted, whatever the screen shows.
DARK = "screen and (prefers-color-scheme: dark)"


class Image(NamedTuple):
    """A PNG, and its size on the page in CSS pixels."""

    data: bytes
    width: int
    height: int

    @property
    def uri(self) -> str:
        """The picture in the form of an address."""
        return "data:image/png;base64," + base64.b64encode(self.data).decode("ascii")


class Section(NamedTuple):
    """A picture of the page, rendered by (narrow, theme), and what stands around it."""

    name: str
    title: str
    caption: str
    alt: str
    words: Sequence[str]
    file: str
    source: str
    images: dict[tuple[bool, str], Image]


def page(sections: Sequence[Section], seconds: float) -> str:
    """The page as HTML.

    Parameters
    ----------
    sections : sequence of Section
        What to show, in order.
    seconds : float
        How long runs and rendering took, for the footer.
    """
    contents = "\n".join(
        f'<li><a href="#{s.name}">{html.escape(s.title)}</a></li>' for s in sections
    )
    return TEMPLATE.format(
        css=css(),
        contents=contents,
        sections="\n".join(section(s) for s in sections),
        version=fastgd.__version__,
        backend=html.escape(fastgd.get_backend()),
        seconds=round(seconds),
    )


def section(s: Section) -> str:
    """One picture with its caption, explanation and code."""
    sources = []
    for narrow, theme in ((True, "dark"), (True, "light"), (False, "dark")):
        image = s.images[narrow, theme]
        media = " and ".join(([DARK] if theme == "dark" else []) + ([PHONE] if narrow else []))
        size = f'width="{image.width}" height="{image.height}"'
        sources.append(f'<source media="{media}" {size} srcset="{image.uri}">')
    wide = s.images[False, "light"]
    paragraphs = "\n".join(f"<p>{html.escape(text)}</p>" for text in s.words)
    code = highlight(s.source, PythonLexer(), HtmlFormatter(nowrap=True))
    return f"""<section id="{s.name}">
<h2><a href="#{s.name}">{html.escape(s.title)}</a></h2>
<figure>
<picture>
{"".join(sources)}
<img src="{wide.uri}" width="{wide.width}" height="{wide.height}" alt="{html.escape(s.alt)}">
</picture>
<figcaption>{html.escape(s.caption)}</figcaption>
</figure>
{paragraphs}
<details>
<summary>The code that made it: <code>{html.escape(s.file)}</code></summary>
<pre tabindex="0"><code>{code}</code></pre>
</details>
</section>"""


def css() -> str:
    """The style sheet, with the colours of `fastgd.plot` and of the code in both themes."""
    rules = []
    for theme, pygments_style in (("light", "xcode"), ("dark", "github-dark")):
        colours = plot.THEMES[theme]
        accent = colours.lines[0]
        root = (
            f":root {{ --paper: {colours.paper}; --ink: {colours.ink}; --faint: {colours.faint}; "
            f"--accent: {accent}; color-scheme: {theme}; }}"
        )
        formatter: HtmlFormatter[str] = HtmlFormatter(style=pygments_style)
        tokens = [
            line
            for line in formatter.get_style_defs("pre").splitlines()
            if line.startswith("pre .") and "background" not in line
        ]
        rules.append("\n".join([root, *tokens]))
    light, dark = rules
    return f"{light}\n@media {DARK} {{\n{dark}\n}}\n{LAYOUT}"


LAYOUT = """* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 1.0625rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
header, main, footer { max-width: 72rem; margin: 0 auto; padding: 0 1rem; }
h1, h2, p, nav, details, figcaption { max-width: 44rem; margin-inline: auto; }
h1 { font-size: 2rem; line-height: 1.2; margin-block: 3rem 1rem; }
h2 { font-size: 1.4rem; line-height: 1.3; margin-block: 0 1rem; }
h2 a { color: inherit; text-decoration: none; }
h2 a:hover { text-decoration: underline; }
a { color: var(--accent); }
nav ol { padding-left: 1.6rem; }
nav li { padding: 0.15rem 0; }
section { border-top: 1px solid var(--faint); padding: 2.5rem 0 1.5rem; }
figure { margin: 0 0 1.5rem; }
img { display: block; margin: 0 auto; max-width: 100%; height: auto; }
figcaption { margin-block: 0.75rem 0; padding-left: 0.9rem;
  border-left: 3px solid var(--accent); font-size: 0.9375rem; line-height: 1.5; }
code { font-family: ui-monospace, "SF Mono", Consolas, "Liberation Mono", monospace; }
summary { cursor: pointer; padding: 0.4rem 0; }
pre { overflow-x: auto; margin: 0.5rem 0; padding: 1rem; border: 1px solid var(--faint);
  border-radius: 6px; font-size: 0.8125rem; line-height: 1.5; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
footer { border-top: 1px solid var(--faint); margin-top: 2rem; padding-top: 1rem;
  padding-bottom: 3rem; font-size: 0.9375rem; }
@media print {
  body { font-size: 10pt; }
  nav, details { display: none; }
  figure, h2 { break-inside: avoid; break-after: avoid; }
}
"""

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="description" content="Gradient descent in eight pictures, each from a real run.">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>Gradient descent in pictures – fastgd</title>
<style>
{css}</style>
</head>
<body>
<header>
<h1>Gradient descent in pictures</h1>
<p>Every picture is drawn from a real run of fastgd, by the kernels that it trains with, and every
number in a caption was measured in that run. In the paths, a ring is the start and a dot the end; ★
marks a minimum and × a saddle, and the stronger the grey, the higher the ground.</p>
<nav aria-label="Contents">
<ol>
{contents}
</ol>
</nav>
</header>
<main>
{sections}
</main>
<footer>
<p>Made by <code>python -m fastgd gallery</code>, fastgd {version}, with the {backend} kernels, in
{seconds} s.</p>
</footer>
</body>
</html>
"""
