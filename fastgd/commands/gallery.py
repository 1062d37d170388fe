"""``python -m fastgd gallery``: gradient descent in pictures, and a page that explains them."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image as Pillow
from rich.console import Console
from threadpoolctl import threadpool_limits

from fastgd.commands import output
from fastgd.commands.figures import PICTURES, Picture
from fastgd.commands.images import Palette
from fastgd.commands.page import PIXELS_PER_INCH, Image, Section, page
from fastgd.commands.work import Work
from fastgd.plot import THEMES

VARIANTS = [(narrow, theme) for narrow in (False, True) for theme in THEMES]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--output", type=output.folder, default="gallery", metavar="DIR", help="the folder to fill"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run, draw, and write the PNGs and the page."""
    console = Console()
    with Work("gallery", len(PICTURES) * (1 + len(VARIANTS))) as work:
        written = render(arguments.output, work)
        work.show()
        console.print(f"The gallery is in {written}", highlight=False, soft_wrap=True)
    return 0


def render(folder: Path, work: Work) -> str:
    """Render the gallery into a folder; returns the page's path and size."""
    started = perf_counter()
    sections = []
    for k, picture in enumerate(PICTURES, 1):
        work.begin(picture.name)
        # On matrices as small as theirs a second thread only gets in the way, and on a busy
        # machine makes runs take twenty times as long.
        with threadpool_limits(1, user_api="blas"):
            section = render_picture(picture, work.advance)
        work.write(folder / f"{k:02d}-{picture.name}.png", section.images[False, "light"].data)
        sections.append(section)
    return work.write(folder / "index.html", page(sections, perf_counter() - started))


def render_picture(picture: Picture[Any], advance: Callable[[], object]) -> Section:
    """Run a picture once and draw it in all variants."""
    result = picture.run()
    advance()
    images = {}
    for narrow, theme in VARIANTS:
        images[narrow, theme] = png(picture.draw(result, narrow=narrow, theme=theme), narrow, theme)
        advance()
    return Section(
        picture.name,
        picture.title,
        picture.caption(result),
        picture.alt(result),
        picture.words(result),
        picture.file,
        picture.source,
        images,
    )


def png(figure: Figure, narrow: bool, theme: str) -> Image:
    """A figure as a PNG, of about twice the pixels that the page shows it at."""
    figure.set_dpi(180 if narrow else 160)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = Pillow.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    content = io.BytesIO()
    Palette(pixels, theme).apply(pixels).save(content, "PNG", optimize=True)
    width, height = (round(inches * PIXELS_PER_INCH) for inches in figure.get_size_inches())
    return Image(content.getvalue(), width, height)
