"""Pictures with a palette of 255 colours, a third of the size of those with all colours."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastgd.plot import THEMES

# Of 256 entries, one is left for pixels that don't change from frame to frame in an animation.
FREQUENT = 192


class Palette:
    """A palette of 255 colours: the picture's most frequent ones, and 63 for all others.

    The usual quantizers merge the few pixels of a thin line with whatever is near, or neighbouring
    shades with each other.  But a chart's fills and lines are its most frequent colours, which stay
    as they are here; the others are the edges between them.

    Parameters
    ----------
    image : Image
        The picture.
    theme : {"light", "dark"}
        The theme whose line colours are kept, where they occur.
    """

    def __init__(self, image: Image.Image, theme: str = "light") -> None:
        packed, counts = np.unique(_packed(image), return_counts=True)
        # A dotted line may be all there is of its colour.
        lines = [int(colour[1:], 16) for colour in THEMES[theme].lines]
        counts[np.isin(packed, lines)] += counts.max()
        colours = _unpacked(packed[np.argsort(-counts, kind="stable")])
        self.colours, others = colours[:FREQUENT], colours[FREQUENT:]
        if len(others):
            merged = Image.fromarray(others[None]).quantize(
                255 - FREQUENT, method=Image.Quantize.MAXCOVERAGE
            )
            self.colours = np.concatenate(
                [
                    self.colours,
                    np.array(merged.getpalette(), np.uint8).reshape(-1, 3)[: 255 - FREQUENT],
                ]
            )
        # Which entry each of all colours comes nearest to, found out as they turn up: Pillow's own
        # search rounds colours, and makes white a light grey.
        self._nearest = np.zeros(1 << 24, np.uint8)
        self._known = np.zeros(1 << 24, np.bool_)

    def apply(self, image: Image.Image) -> Image.Image:
        """The picture in these colours, each pixel in the nearest one."""
        packed = _packed(image)
        new = np.unique(packed[~self._known[packed]])
        for part in np.array_split(new, len(new) // 4096 + 1):
            distances = _unpacked(part)[:, None].astype(np.int32) - self.colours
            self._nearest[part] = (distances**2).sum(axis=-1).argmin(axis=1)
        self._known[new] = True
        result = Image.fromarray(self._nearest[packed].reshape(image.height, image.width))
        result.putpalette(self.colours.ravel().tolist())
        return result


def _packed(image: Image.Image) -> NDArray[Any]:
    """Each pixel's colour as one number."""
    return np.asarray(image.convert("RGB")).reshape(-1, 3).astype(np.int64) @ (1 << 16, 1 << 8, 1)


def _unpacked(packed: NDArray[Any]) -> NDArray[Any]:
    """Such numbers as colours, of shape (n, 3)."""
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=-1).astype(np.uint8)
