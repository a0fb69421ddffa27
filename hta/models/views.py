"""Views of the training images: derived images that should pass for normal.

One image does not show how much normal images differ. Views of it stand in for them: shifted, enlarged, rotated, bent,
brighter or darker, with more or less contrast, and with noise.

A model knows its training images by heart, and views of them look too familiar unless they are changed beyond
recognition. Their mirror images are new to a model whose transformations include no flip: as good as another
photograph, so mild changes suffice, those of a mounted camera, which does not turn. Left out are mirror images that the
model mistakes for rotated ones: the joints of a wall lit from the left are lit from the right in both. Changes and
strengths were chosen on other images than those whose false alarms are reported; for FashionMNIST on its classes
trouser and dress, of which only the AUROC is reported, and that does not depend on views.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hta.models.transforms import TRANSFORMATION_SETS
from hta.runtime import seeded_generator

_KNOTS = 4  # of a bend, per side; between them the displacement is smooth
_LEAST_RECOGNITION = 0.5  # of chance: a mirror image with fewer right votes is mistaken for a rotated one

Recognition = Callable[[Tensor], Tensor]
"""How often a model finds the right transformation of `(B, 3, h, w)` images: `(B,)`, 1 = as often as by chance."""


@dataclass(frozen=True)
class Changes:
    """How strongly views are changed; each change is drawn uniformly between plus and minus its value, unless noted."""

    shift: float = 0.0  # part of the side
    zoom: float = 0.0  # largest part of the side that is cut off, at most 1/2; the rest is enlarged
    turn: float = 0.0  # degrees
    bend: float = 0.0  # part of the side; standard deviation of the displacement at a few knots, smooth in between
    brightness: float = 0.0  # of values in [-1, 1]
    contrast: float = 0.0  # relative
    noise: float = 0.0  # of values in [-1, 1]; largest standard deviation


ALL_CHANGES = Changes(shift=0.05, zoom=0.1, turn=5.0, bend=0.01, brightness=0.1, contrast=0.1, noise=0.05)
"""Together, at strength 1."""

TRAINING_STRENGTH = 1.0
"""Of the views that the recipe "views" shows to the discriminators."""

MOUNTED_CHANGES = replace(ALL_CHANGES, turn=0.0, bend=0.0)
"""Those that remain if the camera is mounted and the surface is rigid."""


@dataclass(frozen=True)
class ViewRule:
    """How views stand in for normal images.

    Attributes:
        strength: factor of all changes.
        mirrored: whether they are views of the mirror images, left to right and top to bottom, except those that the
            model mistakes for rotated ones; if it mistakes them all, of the images as they are. `MOUNTED_CHANGES` apply
            to them, `ALL_CHANGES` to others.
    """

    strength: float
    mirrored: bool

    def draw(self, images: Tensor, count: int, seed: int, recognition: Recognition) -> Tensor:
        """Draw views of `(N, 3, h, w)` images in [-1, 1] for a model: `(count, 3, h, w)`, on the CPU."""
        if not self.mirrored:
            return draw_views(images, count, self.strength, seed)
        mirrors = torch.cat([images.flip(-1), images.flip(-2)])
        kept = mirrors[recognition(mirrors).cpu() >= _LEAST_RECOGNITION]
        return draw_views(kept if len(kept) else images, count, self.strength, seed, MOUNTED_CHANGES)


def view_rule(task: str, num_transforms: int) -> ViewRule:
    """The rule for a model of a task, "defect" or "class", that was trained on a set of M transformations."""
    knows_flips = any(transformation.flip for transformation in TRANSFORMATION_SETS[num_transforms])
    # Objects of a class are not mirrored: that could make another object.
    if task == "defect" and not knows_flips:
        return ViewRule(strength=2.0, mirrored=True)
    return ViewRule(strength=3.5, mirrored=False)


def draw_views(
    images: Tensor, count: int, strength: float, seed: int | Sequence[int | str], changes: Changes = ALL_CHANGES
) -> Tensor:
    """Draw views of `(N, 3, h, w)` training images in [-1, 1], of one after the other, in turn.

    Args:
        images, count, seed: the same ones give the same views; a seed may have several parts.
        strength: factor of all `changes`; 0 leaves the images as they are.
        changes: what is changed, at strength 1.

    Returns:
        `(count, 3, h, w)` in [-1, 1], on the CPU.
    """
    generator = seeded_generator("views", *([seed] if isinstance(seed, int) else seed))
    changes = Changes(*(strength * value for value in astuple(changes)))
    originals = images.cpu()[torch.arange(count) % len(images)]
    places = _sampling_grid(originals.shape, changes, generator)
    moved = F.grid_sample(originals, places, mode="bicubic", padding_mode="reflection", align_corners=False)
    return _relit(moved.clamp(-1, 1), changes, generator)


def _sampling_grid(shape: torch.Size, changes: Changes, generator: torch.Generator) -> Tensor:
    """Where each pixel of a view comes from: `(B, h, w, 2)` in [-1, 1], so that each side has length 2."""
    count, _, height, width = shape
    turn = math.radians(changes.turn) * _uniform(count, generator)
    size = 1 - min(changes.zoom, 0.5) * torch.rand(count, generator=generator)
    cos, sin = size * turn.cos(), size * turn.sin()
    shift = 2 * changes.shift * _uniform(2 * count, generator).view(2, -1)
    # Both sides have length 2 here, so rotating a rectangle's pixels is not a rotation of this square.
    row_x, row_y = [cos, -sin * height / width, shift[0]], [sin * width / height, cos, shift[1]]
    affine = torch.stack(row_x + row_y, dim=1).view(-1, 2, 3)
    knots = 2 * changes.bend * torch.randn(count, 2, _KNOTS, _KNOTS, generator=generator)
    bend = F.interpolate(knots, size=shape[-2:], mode="bicubic", align_corners=True)
    return F.affine_grid(affine, list(shape), align_corners=False) + bend.permute(0, 2, 3, 1)


def _relit(images: Tensor, changes: Changes, generator: torch.Generator) -> Tensor:
    """Change brightness and contrast, and add noise, equally on the three channels: gray stays gray."""
    count, _, height, width = images.shape
    brightness, contrast = _uniform(2 * count, generator).view(2, -1, 1, 1, 1)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    noise = torch.randn(count, 1, height, width, generator=generator)
    level = changes.noise * torch.rand(count, 1, 1, 1, generator=generator)
    relit = (images - mean) * (1 + changes.contrast * contrast) + mean + changes.brightness * brightness
    return (relit + level * noise).clamp(-1, 1)


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(count, generator=generator) - 1
