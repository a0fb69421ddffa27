"""Shared canvases: every transformation of an image as a window on a few larger images.

A translation with mirrored borders is a window on a larger, mirrored image. All transformations with the same
grayscale, flip and rotation are therefore windows of one canvas, `gray(rot(mirror_pad(flip(x))))`. The discriminator
does not pad, so on a canvas it yields exactly the logits that it yields on each window: 54 windows need 16 canvases of
three sizes, 42 need 8. Quantities that count every window once, the loss and the batch statistics, are weighted by the
number of windows that cover each position. The tests compare all of this with the plain method, which builds every
transformed image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from hta.models.transforms import TRANSFORMATION_SETS, Transformation, mirror_pad, shift_px, to_grayscale


@dataclass(frozen=True)
class Window:
    """The position of one transformed image on its canvas.

    Attributes:
        index: class of the transformation.
        top, left: first row and column, pixels.
        height, width: size, pixels.
    """

    index: int
    top: int
    left: int
    height: int
    width: int

    def valid(self, margin: int) -> tuple[slice, slice]:
        """Rows and columns of the window on a feature map from which `margin` px were trimmed on every side.

        Unpadded convolutions shift the origin by as much as they trim, so a window keeps its top left corner.
        """
        return (
            slice(self.top, self.top + self.height - 2 * margin),
            slice(self.left, self.left + self.width - 2 * margin),
        )


@dataclass(frozen=True)
class Canvas:
    """A mirrored and rotated image with its windows.

    Attributes:
        grayscale, flip, rotation: common to all its windows.
        left, right, top, bottom: mirrored pixels on each side, before the rotation.
        size: (height, width) after the rotation.
        windows: positions of the transformed images, after the rotation.
    """

    grayscale: bool
    flip: bool
    rotation: int
    left: int
    right: int
    top: int
    bottom: int
    size: tuple[int, int]
    windows: tuple[Window, ...]

    def render(self, images: Tensor) -> Tensor:
        """Draw the canvas of `(N, 3, h, w)` images: `(N, 3, *size)`, differentiable."""
        if self.flip:
            images = images.flip(-1)
        images = mirror_pad(images, self.left, self.right, self.top, self.bottom)
        images = torch.rot90(images, self.rotation, dims=(-2, -1))
        return to_grayscale(images) if self.grayscale else images


@dataclass(frozen=True)
class CanvasGroup:
    """Canvases of equal size, drawn as one batch: canvas by canvas, and image by image within a canvas."""

    size: tuple[int, int]
    canvases: tuple[Canvas, ...]

    def coverage(self, margin: int) -> Tensor:
        """Count the windows that cover each position: `(G, H - 2 margin, W - 2 margin)` float32."""
        height, width = (side - 2 * margin for side in self.size)
        counts = torch.zeros(len(self.canvases), height, width)
        for count, canvas in zip(counts, self.canvases, strict=True):
            for window in canvas.windows:
                count[window.valid(margin)] += 1
        return counts


@dataclass(frozen=True)
class CanvasPlan:
    """All canvases of a set of transformations for one image size.

    Attributes:
        image_size: (height, width) of the images.
        num_transforms: M, the number of windows.
        groups: canvases by size.
    """

    image_size: tuple[int, int]
    num_transforms: int
    groups: tuple[CanvasGroup, ...]

    def render(self, images: Tensor) -> list[Tensor]:
        """Draw all canvases of `(N, 3, H, W)` images of the plan's size, differentiably.

        Returns:
            One `(G * N, 3, H', W')` channels-last batch per group, ordered canvas by canvas.
        """
        batches = (torch.cat([canvas.render(images) for canvas in group.canvases]) for group in self.groups)
        return [batch.contiguous(memory_format=torch.channels_last) for batch in batches]

    @cached_property
    def sources(self) -> list[Tensor]:
        """The pixel behind every place of the canvases, `(G, H' * W')` int64 per group: first those in colour, then
        those in gray, row by row."""
        numbers = torch.arange(math.prod(self.image_size)).view(1, 1, *self.image_size)

        def pixels(canvas: Canvas) -> Tensor:
            return replace(canvas, grayscale=False).render(numbers).flatten() + canvas.grayscale * numbers.numel()

        return [torch.stack([pixels(canvas) for canvas in group.canvases]) for group in self.groups]


def _lay_out(members: Sequence[tuple[int, Transformation]], height: int, width: int) -> Canvas:
    """The canvas of numbered transformations that share grayscale, flip and rotation."""
    dx = [t.tx * shift_px(width) for _, t in members]
    dy = [t.ty * shift_px(height) for _, t in members]
    left, right = max(0, *dx), max(0, *(-x for x in dx))
    top, bottom = max(0, *dy), max(0, *(-y for y in dy))
    windows = [Window(i, top - y, left - x, height, width) for (i, _), x, y in zip(members, dx, dy, strict=True)]
    size = (height + top + bottom, width + left + right)
    _, shared = members[0]
    for _ in range(shared.rotation):
        windows = [Window(w.index, size[1] - w.left - w.width, w.top, w.width, w.height) for w in windows]
        size = size[::-1]
    return Canvas(shared.grayscale, shared.flip, shared.rotation, left, right, top, bottom, size, tuple(windows))


@lru_cache(maxsize=64)
def plan_canvases(height: int, width: int, num_transforms: int) -> CanvasPlan:
    """Arrange the transformations of a set on shared canvases.

    Args:
        height, width: of the images, pixels.
        num_transforms: M, a key of `TRANSFORMATION_SETS`.

    Returns:
        The plan, which is constant for a scale.
    """
    members: dict[tuple[bool, bool, int], list[tuple[int, Transformation]]] = {}
    for index, t in enumerate(TRANSFORMATION_SETS[num_transforms]):
        members.setdefault((t.grayscale, t.flip, t.rotation), []).append((index, t))
    by_size: dict[tuple[int, int], list[Canvas]] = {}
    for numbered in members.values():
        canvas = _lay_out(numbered, height, width)
        by_size.setdefault(canvas.size, []).append(canvas)
    groups = tuple(CanvasGroup(size, tuple(canvases)) for size, canvases in by_size.items())
    return CanvasPlan((height, width), num_transforms, groups)
