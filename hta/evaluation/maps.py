"""Anomaly maps: where an image is anomalous, derived from the votes of its patches.

The surprise of a patch, -log p_i, is assigned to the patch's centre, carried back through the transformation. Patches
that touch mirrored pixels are left out: the untranslated transformations, part of every set, cover those positions.

With 1 - p_i instead, almost every patch of an anomalous image would be near 1: a near miss would count as much as a
patch that is missed by far.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hta.images import resize
from hta.models.transforms import TRANSFORMATION_SETS, Transformation, shift_px

LEAST_PROBABILITY = 1e-12
"""All patches with a probability of the right transformation below this are equally anomalous: 1 on a map."""


def scale_map(votes: Tensor, margin: int) -> Tensor:
    """Anomaly maps of images at one scale.

    Args:
        votes: `(B, M, h - 2m, w - 2m)` votes on B images of (h, w) pixels, from `ScaleVoter.votes`.
        margin: m, pixels.

    Returns:
        `(B, h, w)` in [0, 1], mean surprise in units of -log `LEAST_PROBABILITY`; higher = more anomalous. The border
        of `margin` pixels repeats the nearest value.
    """
    surprise = votes.clamp(LEAST_PROBABILITY, 1).log() / math.log(LEAST_PROBABILITY)
    total, count = torch.zeros_like(surprise[:, 0]), torch.zeros_like(surprise[0, 0])
    image_size = (total.shape[-2] + 2 * margin, total.shape[-1] + 2 * margin)
    for (down, right), members in _by_shift(votes.shape[1], image_size).items():
        target_rows, source_rows = _overlap(down, total.shape[-2])
        target_columns, source_columns = _overlap(right, total.shape[-1])
        moved = surprise[:, members].sum(dim=1)
        total[:, target_rows, target_columns] += moved[:, source_rows, source_columns]
        count[target_rows, target_columns] += len(members)
    interior = (total / count).unsqueeze(1)
    return F.pad(interior, [margin] * 4, mode="replicate").squeeze(1)


def anomaly_maps(votes: Sequence[Tensor], margin: int, size: tuple[int, int]) -> Tensor:
    """Anomaly maps over all scales: the mean of the scales' maps, resized.

    Args:
        votes: votes on the same B images at every scale, see `scale_map`.
        margin: pixels, the same at every scale.
        size: (height, width) of the maps, the working size of the model.

    Returns:
        `(B, *size)` in [0, 1]; higher = more anomalous.
    """
    return torch.stack([upsample_map(scale_map(of_scale, margin), size) for of_scale in votes]).mean(dim=0)


def upsample_map(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize anomaly maps: bicubic, clamped.

    Args:
        maps: `(..., h, w)` in [0, 1].
        size: target (height, width), such as the image's own.

    Returns:
        `(..., *size)` in [0, 1].
    """
    stack = maps.reshape(-1, 1, *maps.shape[-2:])
    return resize(stack, size).clamp(min=0).view(*maps.shape[:-2], *size)


def _by_shift(num_transforms: int, image_size: tuple[int, int]) -> dict[tuple[int, int], list[int]]:
    """The transformations, grouped by how far (down, right) they move the content, in pixels."""
    members: dict[tuple[int, int], list[int]] = {}
    for index, transformation in enumerate(TRANSFORMATION_SETS[num_transforms]):
        members.setdefault(_shift(transformation, image_size), []).append(index)
    return members


def _shift(transformation: Transformation, image_size: tuple[int, int]) -> tuple[int, int]:
    """How far (down, right) a transformation moves the content of an image once rotation and flip are undone."""
    down = transformation.ty * shift_px(image_size[0])
    right = transformation.tx * shift_px(image_size[1])
    # The translation follows the flip: undoing the flip reverses it.
    return down, -right if transformation.flip else right


def _overlap(shift: int, length: int) -> tuple[slice, slice]:
    """Where content that moved by `shift` came from and where it is now, as far as both are within `length`.

    Patch centres keep the margin from the image's border; a patch that is inside before and after the shift contains no
    mirrored pixel.
    """
    back, forth = max(shift, 0), max(-shift, 0)
    return slice(forth, max(length - back, 0)), slice(back, max(length - forth, 0))
