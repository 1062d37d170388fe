"""``python -m fastgd config``: what this build and this machine can do."""

from __future__ import annotations

import argparse

import fastgd


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing to add."""


def run(arguments: argparse.Namespace) -> int:
    """Print the configuration."""
    fastgd.show_config()
    return 0
