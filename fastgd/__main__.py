"""The command line: ``python -m fastgd train``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

# name: (module in fastgd.commands, what it does); loaded only when asked for, as each needs extras.
COMMANDS = {
    "train": "train a small network on handwritten digits with each optimizer, and compare",
    "bytes": "show what each way to keep a model costs, in memory and in time",
    "config": "show version, backend, threads, and which backends can run here",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m fastgd", description="fastgd's commands")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    wanted = next((a for a in (sys.argv[1:] if argv is None else argv) if a in COMMANDS), None)
    for name, summary in COMMANDS.items():
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
                    f"pip install 'fastgd[{name}]'",
                    file=sys.stderr,
                )
                return 1
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    status: int = arguments.run(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
