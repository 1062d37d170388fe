"""Where C compilers find the package's header."""

from __future__ import annotations

from pathlib import Path

__all__ = ["get_include"]


def get_include() -> str:
    """The folder of ``fastgd.h``, which declares the kernels for C; see `fastgd.kernels.c_api`.

    Examples
    --------
    >>> import os, fastgd
    >>> os.listdir(fastgd.get_include())
    ['fastgd.h']
    """
    return str(Path(__file__).parents[1] / "include")
