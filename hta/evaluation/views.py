"""Views of the training images: other images that should pass for normal, made from nothing but them.

One image does not say how much normal images differ. Views of it, shifted, enlarged, turned, bent, brighter or darker,
with more or less contrast and with noise, stand in for them: how strongly they are changed was chosen by task, on data
that no figure is reported on.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hta.runtime import seeded_generator

STRENGTH = {"defect": 1.0, "class": 4.0}
"""How strongly views are changed, by the task of the model."""

# At strength 1, each uniform between minus and plus this, unless said.
_SHIFT = 0.05  # of the side
_ZOOM = 0.1  # largest enlargement: what is left of the side is 1 - this; at most one half
_TURN = math.radians(5)
_BEND = 0.01  # of the side, standard deviation of the displacement at the knots
_KNOTS = 4  # per side; between them the displacement is smooth
_BRIGHTNESS = 0.1  # of values in [-1, 1]
_CONTRAST = 0.1  # relative
_NOISE = 0.05  # of values in [-1, 1], largest standard deviation
_MOST_ZOOM = 0.5


def draw_views(images: Tensor, count: int, strength: float, seed: int) -> Tensor:
    """Draw views of the training images, each in turn.

    Args:
        images: `(N, 3, h, w)` in [-1, 1].
        count: how many views.
        strength: 0 leaves the images as they are; all ranges grow with it.
        seed: the same seed draws the same views.

    Returns:
        `(count, 3, h, w)` in [-1, 1], on the CPU.
    """
    generator = seeded_generator("views", seed)
    originals = images.cpu()[torch.arange(count) % len(images)]
    moved = F.grid_sample(
        originals,
        _sampling_grid(originals.shape, strength, generator),
        mode="bicubic",
        padding_mode="reflection",
        align_corners=False,
    )
    return _relit(moved.clamp(-1, 1), strength, generator)


def _sampling_grid(shape: torch.Size, strength: float, generator: torch.Generator) -> Tensor:
    """Where each pixel of a view comes from: `(B, h, w, 2)` in [-1, 1], so a side is 2 long."""
    count = shape[0]
    turn = strength * _TURN * _uniform(count, generator)
    size = 1 - min(strength * _ZOOM, _MOST_ZOOM) * torch.rand(count, generator=generator)
    cos, sin = size * turn.cos(), size * turn.sin()
    shift = 2 * strength * _SHIFT * _uniform(2 * count, generator).view(2, -1)
    affine = torch.stack([cos, -sin, shift[0], sin, cos, shift[1]], dim=1).view(-1, 2, 3)
    knots = 2 * strength * _BEND * torch.randn(count, 2, _KNOTS, _KNOTS, generator=generator)
    bend = F.interpolate(knots, size=shape[-2:], mode="bicubic", align_corners=True)
    return F.affine_grid(affine, list(shape), align_corners=False) + bend.permute(0, 2, 3, 1)


def _relit(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Change brightness and contrast, and add noise, alike on the three channels: gray stays gray."""
    count, _, height, width = images.shape
    brightness, contrast = (strength * _uniform(2 * count, generator)).view(2, -1, 1, 1, 1)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    noise = torch.randn(count, 1, height, width, generator=generator)
    level = strength * _NOISE * torch.rand(count, 1, 1, 1, generator=generator)
    relit = (images - mean) * (1 + _CONTRAST * contrast) + mean + _BRIGHTNESS * brightness
    return (relit + level * noise).clamp(-1, 1)


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(count, generator=generator) - 1
