"""Code on pages that is run when the site is built, and shown with what it prints or draws.

The blocks of a page share their names, from top to bottom, as if they were typed in one session:

``{run}``
    shows the code, and then what it printed.
``{picture} ALT``
    shows the figure or the list of figures that the code leaves in ``figure``, drawn once for light
    and once for dark pages, and then the code.  The words for those who don't see it, and the
    option ``:caption:``, are f-strings.
``{check}``
    shows nothing: it holds the page to what it says.
``{gallery} NAME``
    is a picture of ``python -m fastgd gallery``, with its own caption.
``{value}`EXPRESSION```
    is a number of the run within a sentence.

``python`` blocks are shown alone.  ``tests/project/test_pages.py`` runs all of them.
"""

from __future__ import annotations

import contextlib
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from matplotlib.figure import Figure
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

from fastgd.commands.figures import PICTURES
from fastgd.commands.figures.picture import number
from fastgd.commands.gallery import png
from fastgd.commands.page import Image
from fastgd.plot import THEMES, style


def names_of(env: Any) -> dict[str, Any]:
    """The names that the blocks of the current page have set."""
    names: dict[str, Any] = env.current_document.setdefault("names", {"__name__": env.docname})
    return names


def filled_in(text: str, names: dict[str, Any]) -> str:
    """An f-string with these names, beside `number`."""
    return str(eval("f" + repr(text), {"number": number, **names}))


class Block(SphinxDirective):
    """A block of code."""

    has_content = True

    def execute(self) -> str:
        """Run the code; returns what it printed."""
        source, line = self.get_source_info()
        code = compile("\n" * line + "\n".join(self.content), source, "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names_of(self.env))
        return printed.getvalue()

    def code(self) -> nodes.Node:
        shown = nodes.literal_block("\n".join(self.content), "\n".join(self.content))
        shown["language"] = "python"
        return shown


class Run(Block):
    """Code, and what it prints."""

    def run(self) -> list[nodes.Node]:
        printed = self.execute()
        if not printed:
            return [self.code()]
        output = nodes.literal_block(printed, printed.rstrip("\n"))
        output["language"] = "text"
        output["classes"] = ["output"]
        return [self.code(), output]


class Check(Block):
    """Code that isn't shown."""

    def run(self) -> list[nodes.Node]:
        self.execute()
        return []


class Shown(Block):
    """What has an alternative in words, and a caption."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec = {"caption": directives.unchanged}

    def address(self, image: Image) -> str:
        """Where a picture is, seen from the page; it is written there."""
        name = f"{sha256(image.data).hexdigest()[:20]}.png"
        file = Path(self.env.app.outdir) / "_images" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(image.data)
        return f"{'../' * self.env.docname.count('/')}_images/{name}"

    def figure(self, images: Sequence[Mapping[str, Image]], alt: str, caption: str) -> nodes.Node:
        """Pictures by theme, side by side where there is room; the first has the words of all."""
        body = ""
        for k, themes in enumerate(images):
            words = html.escape(alt if k == 0 else "Belongs to the picture before it.")
            for theme, image in themes.items():
                body += (
                    f'<img class="only-{theme}" src="{self.address(image)}" width="{image.width}" '
                    f'height="{image.height}" alt="{words}" loading="lazy">'
                )
        if caption:
            caption = f"<figcaption>{html.escape(caption)}</figcaption>"
        text = f'<figure class="drawn"><div>{body}</div>{caption}</figure>'
        return nodes.raw("", text, format="html")


class Drawn(Shown):
    """Figures, and the code that draws them."""

    def run(self) -> list[nodes.Node]:
        names = names_of(self.env)
        images: list[dict[str, Image]] = []
        for theme in THEMES:
            with style(theme):
                self.execute()
            made = names["figure"]
            for k, one in enumerate([made] if isinstance(made, Figure) else made):
                if k == len(images):
                    images.append({})
                with style(theme):
                    images[k][theme] = png(one, narrow=False, theme=theme)
        caption = filled_in(self.options.get("caption", ""), names)
        shown = self.figure(images, filled_in(self.arguments[0], names), caption)
        return [shown, self.code()]


class Gallery(Shown):
    """A picture of the gallery, each panel by itself."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        (picture,) = (p for p in PICTURES if p.name == self.arguments[0])
        result = picture.run()
        images = []
        for k, panel in enumerate(picture.panels):
            # One legend is enough for all.
            legend = picture.shared_legend and k == len(picture.panels) - 1
            one = replace(picture, panels=(panel,), columns=1, shared_legend=legend)
            drawn = {theme: one.draw(result, theme=theme) for theme in THEMES}
            images.append({theme: png(figure, False, theme) for theme, figure in drawn.items()})
        return [self.figure(images, picture.alt(result), picture.caption(result))]


class Value(SphinxRole):
    """The value of an expression."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        text = str(eval(self.text, {"number": number, **names_of(self.env)}))
        return [nodes.inline(self.rawtext, text, classes=["measured"])], []


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("run", Run)
    app.add_directive("check", Check)
    app.add_directive("picture", Drawn)
    app.add_directive("gallery", Gallery)
    app.add_role("value", Value())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
