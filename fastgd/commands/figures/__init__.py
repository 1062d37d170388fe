"""The pictures of ``python -m fastgd gallery``, a module each: a run, and what draws its numbers.

>>> len(PICTURES), PICTURES[0].name
(9, 'curves')
"""

from fastgd.commands.figures import (
    averaging,
    curves,
    depth,
    digits,
    families,
    noise,
    rates,
    saddle,
    valley,
)
from fastgd.commands.figures.picture import Picture

__all__ = ["PICTURES", "Picture"]

PICTURES: tuple[Picture, ...] = (  # type: ignore[type-arg]  # each has a result of its own kind
    curves.PICTURE,
    noise.PICTURE,
    averaging.PICTURE,
    depth.PICTURE,
    valley.PICTURE,
    rates.PICTURE,
    saddle.PICTURE,
    digits.PICTURE,
    families.PICTURE,
)
