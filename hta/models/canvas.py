"""Shared canvases: every transformation of an image as a window on a few larger images.

A translation that mirrors at the border is a window on a mirrored, larger image. All transformations of one grayscale,
flip and rotation are therefore windows of one canvas, `gray(rot(mirror_pad(flip(x))))`. The discriminator has no
padding, so on a canvas it gives exactly the logits that it gives on each window: 54 windows need 16 canvases of three
sizes, 42 need 8. What has to be counted once a window, the loss and the batch statistics, is weighted by how many
windows cover a position. The tests compare all of it with the explicit way, transformation by transformation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from hta.models.transforms import TRANSFORMATION_SETS, Transformation, mirror_pad, shift_px, to_grayscale


@dataclass(frozen=True)
class Window:
    """Where one transformed image lies on its canvas.

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
        """Rows and columns of the window on a feature map that has lost `margin` px on every side.

        Unpadded convolutions shift the origin by as much as they trim, so a window keeps its top left corner.
        """
        return (
            slice(self.top, self.top + self.height - 2 * margin),
            slice(self.left, self.left + self.width - 2 * margin),
        )

    def turned(self, canvas_width: int) -> "Window":
        """The window after its canvas was turned a quarter counter-clockwise."""
        return Window(self.index, canvas_width - self.left - self.width, self.top, self.width, self.height)


@dataclass(frozen=True)
class Canvas:
    """One mirrored, turned image with its windows.

    Attributes:
        grayscale, flip, rotation: what all its windows share.
        left, right, top, bottom: mirrored pixels on each side, before the rotation.
        size: (height, width) after the rotation.
        windows: places of the transformations, after the rotation.
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
    """Canvases of one size, drawn into one batch: canvas by canvas, and image by image within a canvas."""

    size: tuple[int, int]
    canvases: tuple[Canvas, ...]

    def coverage(self, margin: int) -> Tensor:
        """How many windows hold each position of the feature maps.

        Args:
            margin: pixels that the feature map has lost on every side.

        Returns:
            `(G, H - 2 margin, W - 2 margin)` float32 counts, one map a canvas.
        """
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
        """Draw all canvases.

        Args:
            images: `(N, 3, H, W)` of the plan's image size.

        Returns:
            One `(G * N, 3, H', W')` channels-last batch a group, ordered canvas by canvas; differentiable.
        """
        return [
            torch.cat([canvas.render(images) for canvas in group.canvases]).contiguous(
                memory_format=torch.channels_last
            )
            for group in self.groups
        ]


def _draft(transformations: Sequence[Transformation], height: int, width: int) -> Canvas:
    """The canvas of transformations with one grayscale, flip and rotation, not yet turned; indices are filled later."""
    dx = [t.tx * shift_px(width) for t in transformations]
    dy = [t.ty * shift_px(height) for t in transformations]
    left, right = max(0, *dx), max(0, *(-d for d in dx))
    top, bottom = max(0, *dy), max(0, *(-d for d in dy))
    windows = tuple(Window(i, top - y, left - x, height, width) for i, (x, y) in enumerate(zip(dx, dy, strict=True)))
    first = transformations[0]
    size = (height + top + bottom, width + left + right)
    return Canvas(first.grayscale, first.flip, first.rotation, left, right, top, bottom, size, windows)


def _turned(canvas: Canvas) -> Canvas:
    """The canvas with its size and windows carried through its rotation."""
    (height, width), windows = canvas.size, canvas.windows
    for _ in range(canvas.rotation):
        windows = tuple(window.turned(width) for window in windows)
        height, width = width, height
    return replace(canvas, size=(height, width), windows=windows)


@lru_cache(maxsize=64)
def plan_canvases(height: int, width: int, num_transforms: int) -> CanvasPlan:
    """Lay the transformations of a set out on shared canvases.

    Args:
        height, width: of the images, pixels.
        num_transforms: M, a key of `TRANSFORMATION_SETS`.

    Returns:
        The plan: a constant of a scale.
    """
    members: dict[tuple[bool, bool, int], list[tuple[int, Transformation]]] = {}
    for index, t in enumerate(TRANSFORMATION_SETS[num_transforms]):
        members.setdefault((t.grayscale, t.flip, t.rotation), []).append((index, t))
    by_size: dict[tuple[int, int], list[Canvas]] = {}
    for numbered in members.values():
        draft = _draft([t for _, t in numbered], height, width)
        windows = tuple(replace(w, index=numbered[w.index][0]) for w in draft.windows)
        canvas = _turned(replace(draft, windows=windows))
        by_size.setdefault(canvas.size, []).append(canvas)
    groups = tuple(CanvasGroup(size, tuple(canvases)) for size, canvases in by_size.items())
    return CanvasPlan((height, width), num_transforms, groups)
