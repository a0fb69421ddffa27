"""The transformations that the discriminators recognise, in three sets (paper, section 3.1).

The order is horizontal flip, THEN translation, THEN rotation, THEN grayscale. The index of a transformation in its set
is its class. Coordinates follow the tensors: y points down, x points right.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in the gray value."""


@dataclass(frozen=True)
class Transformation:
    """One transformation: flip, then translation, then rotation, then grayscale.

    Attributes:
        grayscale: whether all three channels are replaced by the luma.
        flip: whether the image is flipped horizontally.
        tx: -1, 0 or 1; +1 moves the content right by `shift_px(width)`.
        ty: -1, 0 or 1; +1 moves the content down by `shift_px(height)`.
        rotation: number of counter-clockwise quarter turns, 0 to 3.
    """

    grayscale: bool
    flip: bool
    tx: int
    ty: int
    rotation: int


def shift_px(side: int) -> int:
    """Pixels of a translation along a side: 15 % of it, rounded down (in integers, free of rounding errors)."""
    return 15 * side // 100


def _members(grayscale: bool, flips, txs, tys, rotations) -> list[Transformation]:
    """All combinations; the last index varies fastest."""
    return [Transformation(grayscale, bool(f), tx, ty, k) for f, tx, ty, k in product(flips, txs, tys, rotations)]


_ROTATIONS = _members(False, (0,), (0,), (0,), range(4))
_GEOMETRIC = (
    _members(False, (0, 1), (0, 1), (0, 1), range(4))
    + _members(False, (0, 1), (-1, 1, 0), (-1,), (0,))
    + _members(False, (0, 1), (-1,), (1, 0), (0,))
)
_FULL = (
    _GEOMETRIC
    + _members(True, (0, 1), (0,), (0,), range(4))
    + _members(True, (0,), (1, -1), (0,), (0,))
    + _members(True, (0,), (0,), (1, -1), (0,))
)

TRANSFORMATION_SETS: dict[int, tuple[Transformation, ...]] = {
    54: tuple(_FULL),
    42: tuple(_GEOMETRIC),
    4: tuple(_ROTATIONS),
}
"""The sets by size M: 54 "full" (colour images), 42 "geometric" (gray images), 4 "rotations" (defects)."""


def mirror_pad(images: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """Pad by mirroring, with the edge pixel repeated.

    Args:
        images: `(N, C, H, W)`, any dtype.
        left, right, top, bottom: pixels to add on each side, at most the width or height of the images.

    Returns:
        `(N, C, H + top + bottom, W + left + right)`; differentiable.
    """
    for dim, before, after in ((-1, left, right), (-2, top, bottom)):
        if before or after:
            size = images.shape[dim]
            ends = images.narrow(dim, 0, before).flip(dim), images.narrow(dim, size - after, after).flip(dim)
            images = torch.cat([part for part in (ends[0], images, ends[1]) if part.shape[dim]], dim=dim)
    return images


def to_grayscale(images: Tensor) -> Tensor:
    """Compute the luma of `(N, 3, H, W)` images, repeated in all three channels."""
    red, green, blue = images.unbind(dim=1)
    gray = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return gray.unsqueeze(1).expand(-1, 3, -1, -1)
