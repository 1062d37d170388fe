"""``python -m fastgd race``: the optimizers side by side on a surface, as an animation."""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table

from fastgd import plot
from fastgd.commands import choice, output
from fastgd.commands.descents import RATES, TOLERANCE, Run, contestants, race
from fastgd.commands.images import Palette
from fastgd.commands.work import Work
from fastgd.surfaces import SURFACES, Surface

FRAMES = 90
# The end stays in sight before the animation starts again.
HOLD = 15
MILLISECONDS = 70
PORT, ANIMATION = 8737, "race.gif"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--surface", type=surface_of_two, default="beale", metavar="NAME", help="where to descend"
    )
    choice.add_argument(parser, "which to race")
    parser.add_argument("--steps", type=steps, default=200, help="how many steps each takes")
    parser.add_argument(
        "--lr",
        type=positive,
        default=None,
        help="one learning rate for all; without it, each has the one of a few that suits it best",
    )
    parser.add_argument(
        "--tolerance",
        type=positive,
        default=TOLERANCE,
        help="the distance from a minimum that counts as arrival",
    )
    parser.add_argument(
        "--output",
        type=output.file(".gif", ".png"),
        default=ANIMATION,
        help="the animation (GIF, or animated PNG)",
    )
    parser.add_argument(
        "--serve",
        action="store_true",
        help="instead, a page to choose and click on, for a browser on this machine",
    )
    parser.add_argument("--port", type=port, default=PORT, help="where --serve listens; 0: any")
    parser.add_argument(
        "--open", action="store_true", help="with --serve: show the page in the browser, too"
    )


def surface_of_two(name: str) -> Surface:
    """An argument's type: a surface that can be drawn, which has two variables."""
    if name in SURFACES:
        surface = SURFACES[name]
        if surface.dim == 2:
            return surface
        problem = f"expected a surface over 2 variables, {name} has {surface.dim}"
    else:
        problem = f"no surface is called {name!r}"
    drawable = ", ".join(known for known in SURFACES if SURFACES[known].dim == 2)
    raise argparse.ArgumentTypeError(f"{problem}; there are {drawable}")


def steps(text: str) -> int:
    """An argument's type: a number of steps."""
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"expected an integer from 1 to 100000, not {text!r}")
    return int(text)


def port(text: str) -> int:
    """An argument's type: a port of TCP."""
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to 65535, not {text!r}")
    return int(text)


def positive(text: str) -> float:
    """An argument's type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, not {text!r}")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Race, print the table, write the animation; or serve the page."""
    if arguments.serve:
        return serve(arguments)
    if arguments.open or arguments.port != PORT:
        print("race: --port and --open belong to --serve", file=sys.stderr)
        return 2
    surface, console = arguments.surface, Console()
    names = choice.chosen(arguments.optimizer)
    with Work("race", 2 * len(contestants(names))) as work:
        rates = RATES if arguments.lr is None else (arguments.lr,)
        runs = race(
            surface,
            arguments.steps,
            names=names,
            rates=rates,
            tolerance=arguments.tolerance,
            advance=work.advance,
        )
        share = len(runs) / frame_count(arguments.steps)
        work.begin("drawing")
        frames = animate(surface, runs, lambda: work.advance(share=share))
        work.show()
        console.print(table_of(surface, runs, arguments.steps, arguments.tolerance))
        written = work.write(arguments.output, animation(frames, arguments.output.suffix))
        console.print(f"The animation is in {written}", highlight=False, soft_wrap=True)
    return 0


def serve(arguments: argparse.Namespace) -> int:
    """Serve the page, which begins with the race that the arguments describe."""
    if sys.stderr.isatty():
        print("Preparing the page …", file=sys.stderr, flush=True)
    from fastgd.commands import live

    names = choice.chosen(arguments.optimizer)
    try:
        if arguments.output != Path(ANIMATION):
            raise live.answers.RefusedError("--serve writes no file: leave --output out")
        begin = live.answers.begin(
            arguments.surface, arguments.steps, names, arguments.lr, arguments.tolerance
        )
        server = live.Server(arguments.port, begin)
    except live.answers.RefusedError as refused:
        print(f"race: {refused}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"race: cannot listen on port {arguments.port}: {error.strerror}; "
            "--port 0 takes one that is free",
            file=sys.stderr,
        )
        return 1
    return live.serve(server, show=arguments.open)


def table_of(surface: Surface, runs: Mapping[str, Run], count: int, tolerance: float) -> Table:
    """The outcomes, a row each, who arrived first at the top."""
    table = Table(
        title=f"{count} steps on {surface.name}, {surface.formula}",
        caption=f"arrival: the step from which on it stays within {tolerance:g} of a minimum",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("optimizer", no_wrap=True)
    for column in ("learning rate", "final value", "distance to minimum", "arrival"):
        table.add_column(column, justify="right")
    for name, best in ranked(runs).items():
        table.add_row(
            name,
            f"{best.lr:.2g}",
            f"{best.values[-1]:.3g}",
            f"{best.distances[-1]:.2g}",
            "never" if best.arrival is None else str(best.arrival),
        )
    return table


def ranked(runs: Mapping[str, Run]) -> dict[str, Run]:
    """The runs, who arrived first at the top."""

    def rank(item: tuple[str, Run]) -> tuple[float, float]:
        return (math.inf if item[1].arrival is None else item[1].arrival, item[1].values[-1])

    return dict(sorted(runs.items(), key=rank))


def frame_count(count: int) -> int:
    """How many frames show so many steps."""
    return min(count + 1, FRAMES)


def animate(
    surface: Surface, runs: Mapping[str, Run], advance: Callable[[], object] = lambda: None
) -> list[Image.Image]:
    """The frames: contours drawn once, and the paths as far as they are, drawn over them.

    Of many runs, the best few are named, and drawn over the others, which are faint.
    """
    best_ones = list(ranked(runs))[: choice.named(len(runs))]
    order = [name for name in runs if name not in best_ones]
    others = len(order)
    order += [name for name in runs if name in best_ones]
    runs = {name: runs[name] for name in order}
    count = len(next(iter(runs.values())).path) - 1
    with plot.style():
        figure = Figure(figsize=(8.2, 5.4), dpi=100, layout="constrained")
        canvas: Any = FigureCanvasAgg(figure)
        axes = figure.subplots()
        plot.contours(axes, surface)
        lines, dots = [], []
        for k, (name, best) in enumerate(runs.items(), -others):
            look, size, label = plot.line_style(k), 7.0, f"{name}, {best.lr:.2g}"
            if k < 0:
                look, size, label = choice.faint(), 3.0, f"{others} others" if k == -1 else ""
            (line,) = axes.plot([], [], label=label, **look, animated=True)
            (dot,) = axes.plot([], [], "o", color=look["color"], markersize=size, animated=True)
            dot.set_markeredgecolor(axes.get_facecolor())
            dot.set_alpha(look.get("alpha"))
            lines.append(line)
            dots.append(dot)
        axes.plot(*surface.start, "o", markerfacecolor="none", color=axes.title.get_color())
        figure.legend(loc="outside right upper", title="optimizer, learning rate")
        axes.set(title=f"{surface.name}: {surface.formula}", xlabel="x", ylabel="y")
        counter = axes.text(0.02, 0.02, "", transform=axes.transAxes, animated=True)
        canvas.draw()
        ground = canvas.copy_from_bbox(figure.bbox)

        frames = []
        for step in np.linspace(0, count, frame_count(count)).round().astype(int):
            canvas.restore_region(ground)
            for line, dot, best in zip(lines, dots, runs.values(), strict=True):
                path = plot.drawable(best.path)
                line.set_data(*path[: step + 1].T)
                dot.set_data(*path[step : step + 1].T)
                axes.draw_artist(line)
                axes.draw_artist(dot)
            counter.set_text(f"step {step}")
            axes.draw_artist(counter)
            pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
            frames.append(Image.fromarray(pixels))
            advance()
    return frames


def animation(frames: list[Image.Image], suffix: str) -> bytes:
    """Frames as an animation: one palette for all, so that nothing flickers."""
    # The last frame has every line in full, and so every colour.
    palette = Palette(frames[-1])
    few = [palette.apply(frame) for frame in frames]
    durations = [MILLISECONDS] * (len(frames) - 1) + [MILLISECONDS * HOLD]
    settings: dict[str, Any] = {"save_all": True, "append_images": few[1:], "loop": 0}
    if suffix.lower() == ".gif":
        settings |= {"format": "GIF", "optimize": True, "disposal": 1}
    else:
        settings |= {"format": "PNG"}
    content = io.BytesIO()
    few[0].save(content, duration=durations, **settings)
    return content.getvalue()
