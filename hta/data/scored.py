"""What is scored: an image that can read itself and its mask, whether it is a file or one of a data set."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

from hta.errors import UserError


class ScoredImage(Protocol):
    """One image to score."""

    @property
    def relative(self) -> str:
        """What names it, unique in its test set, with forward slashes."""
        ...

    @property
    def label(self) -> int | None:
        """1 = anomalous, 0 = normal, None = not known."""
        ...

    @property
    def defect(self) -> str | None:
        """The kind of defect, or the class it is of; None for normal images and where it is not known."""
        ...

    @property
    def mask(self) -> Path | None:
        """The file of its anomalous pixels, None where there is none."""
        ...

    def read(self) -> np.ndarray:
        """Return the image as it is scored, `(H, W, 3)` float32 in [0, 1]; UserError if it cannot be read."""
        ...

    def read_mask(self) -> np.ndarray | None:
        """Return the anomalous pixels, `(H, W)` bool, None without a mask; UserError if it does not fit the image."""
        ...


def check_readable(images: Iterable[ScoredImage]) -> dict[str, str]:
    """Read every image and mask once, to know all that is wrong before the work begins.

    Args:
        images: What is to be scored.

    Returns:
        The names of those that cannot be read, or whose mask cannot, with a line that says why, in their order; empty
        if all is well.
    """
    reasons: dict[str, str] = {}
    for image in images:
        try:
            image.read()
            image.read_mask()
        except UserError as error:
            reasons[image.relative] = str(error)
    return reasons
