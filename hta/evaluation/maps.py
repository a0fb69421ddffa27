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
from hta.models.transforms import TRANSFORMATION_SETS, shift_px

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
    surprise = votes.clamp(LEAST_PROBABILITY, 1.0).log() / math.log(LEAST_PROBABILITY)
    total, count = torch.zeros_like(surprise[:, 0]), torch.zeros_like(surprise[0, 0])
    height, width = total.shape[-2:]
    # The transformations, by how far (down, right) they move the content once rotation and flip are undone.
    by_shift: dict[tuple[int, int], list[int]] = {}
    for index, t in enumerate(TRANSFORMATION_SETS[votes.shape[1]]):
        down, right = t.ty * shift_px(height + 2 * margin), t.tx * shift_px(width + 2 * margin)
        # The translation follows the flip: undoing the flip reverses it.
        by_shift.setdefault((down, -right if t.flip else right), []).append(index)
    for (down, right), members in by_shift.items():
        if abs(down) >= height or abs(right) >= width:  # nothing stays within
            continue
        (target_rows, source_rows), (target_columns, source_columns) = _overlap(down, height), _overlap(right, width)
        moved = surprise[:, members].sum(dim=1)
        sides = [target_columns.start, width - target_columns.stop, target_rows.start, height - target_rows.stop]
        total = total + F.pad(moved[:, source_rows, source_columns], sides)
        count[target_rows, target_columns] += len(members)
    return F.pad((total / count).unsqueeze(1), [margin] * 4, mode="replicate").squeeze(1)


def _overlap(shift: int, length: int) -> tuple[slice, slice]:
    """Where content that moved by `shift` came from and where it is now, as far as both are within `length`.

    Patch centres keep the margin from the image's border; a patch that is inside before and after the shift contains no
    mirrored pixel.
    """
    back, forth = max(shift, 0), max(-shift, 0)
    return slice(forth, length - back), slice(back, length - forth)


def anomaly_maps(votes: Sequence[Tensor], margin: int, size: tuple[int, int]) -> Tensor:
    """The mean over all scales of their maps, see `scale_map`, resized to (height, width): `(B, *size)` in [0, 1]."""
    return torch.stack([upsample_map(scale_map(of_scale, margin), size) for of_scale in votes]).mean(dim=0)


def upsample_map(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize anomaly maps `(..., h, w)` in [0, 1] to (height, width): bicubic, clamped to [0, 1]."""
    stack = maps.reshape(-1, 1, *maps.shape[-2:])
    return resize(stack, size).clamp(min=0).view(*maps.shape[:-2], *size)
