"""The command line: ``python -m fastgd COMMAND``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple


class Command(NamedTuple):
    """What a command does, and the extra that installs what it needs."""

    summary: str
    extra: str


# By the name of the module in fastgd.commands, which is imported only if its command is run.
COMMANDS = {
    "train": Command(
        "train a small network on handwritten digits with each optimizer, and compare", "train"
    ),
    "gallery": Command("draw gradient descent in pictures, and a page that explains them", "plot"),
    "race": Command(
        "run the optimizers side by side on a surface, as an animation or a page to click on",
        "plot",
    ),
    "bytes": Command("show what each way to store a model costs, in memory and in time", "train"),
    "optimizers": Command("list the optimizers: formulas, papers, states, defaults", ""),
    "config": Command("show version, backend, threads, and which backends can run here", ""),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m fastgd", description="fastgd's commands")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    wanted = next((a for a in (sys.argv[1:] if argv is None else argv) if a in COMMANDS), None)
    for name, (summary, extra) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        if name == wanted:
            try:
                module = import_module(f"fastgd.commands.{name}")
            except ImportError as error:
                if not error.name or error.name.startswith("fastgd"):
                    raise
                print(
                    f"`{name}` needs {error.name}, which is not installed: "
                    f"pip install 'fastgd[{extra}]'",
                    file=sys.stderr,
                )
                return 1
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    status: int = arguments.run(arguments)
    return status


def program() -> int:
    """Run the command line as a program, which Ctrl-C ends with a line and the status 130."""
    try:
        return main()
    except KeyboardInterrupt:  # before or after a command's work, which tells more itself
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(program())
