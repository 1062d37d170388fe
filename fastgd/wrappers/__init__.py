"""What any optimizer of fastgd can be given to, and goes on as before but for one thing."""

from __future__ import annotations

from fastgd.wrappers.lookahead import Lookahead
from fastgd.wrappers.sam import SAM

__all__ = ["SAM", "Lookahead"]
