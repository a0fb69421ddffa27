"""Where an image is anomalous: maps made from the votes of its patches.

The surprise about a patch, -log p_i, belongs to the patch's centre, carried back through the transformation. Patches
that touch mirrored pixels are left out: the untranslated transformations, which every set holds, cover their places.

1 - p_i in its place would be full almost everywhere in a bad image: a patch that is missed by a little counts there as
much as one that is missed by far.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hta.evaluation.votes import ScaleVotes
from hta.images import resize
from hta.models.transforms import TRANSFORMATION_SETS, Transformation, shift_px

LEAST_PROBABILITY = 1e-12
"""Patches that find the right transformation less likely than this are all equally anomalous: 1 on a map."""


def scale_map(votes: ScaleVotes) -> Tensor:
    """Anomaly maps of images at one scale.

    Args:
        votes: of B images of (h, w) pixels.

    Returns:
        `(B, h, w)` in [0, 1], mean surprise in units of -log `LEAST_PROBABILITY`; higher = more anomalous. A frame as
        wide as the margin takes the nearest value.
    """
    surprise = votes.probabilities.clamp(LEAST_PROBABILITY, 1).log() / math.log(LEAST_PROBABILITY)
    total, count = torch.zeros_like(surprise[:, 0]), torch.zeros_like(surprise[0, 0])
    for (down, right), members in _by_shift(votes).items():
        target_rows, source_rows = _overlap(down, total.shape[-2])
        target_columns, source_columns = _overlap(right, total.shape[-1])
        moved = surprise[:, members].sum(dim=1)
        total[:, target_rows, target_columns] += moved[:, source_rows, source_columns]
        count[target_rows, target_columns] += len(members)
    interior = (total / count).unsqueeze(1)
    return F.pad(interior, [votes.margin] * 4, mode="replicate").squeeze(1)


def anomaly_maps(votes: Sequence[ScaleVotes], size: tuple[int, int]) -> Tensor:
    """Anomaly maps over all scales: the mean of the scales' maps, resized.

    Args:
        votes: of the same B images, one a scale.
        size: (height, width) of the maps, the working size of the model.

    Returns:
        `(B, *size)` in [0, 1]; higher = more anomalous.
    """
    return torch.stack([upsample_map(scale_map(scale_votes), size) for scale_votes in votes]).mean(dim=0)


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


def _by_shift(votes: ScaleVotes) -> dict[tuple[int, int], list[int]]:
    """The transformations by how far (down, right) their turned-back content has moved, pixels."""
    members: dict[tuple[int, int], list[int]] = {}
    for index, transformation in enumerate(TRANSFORMATION_SETS[votes.num_transforms]):
        members.setdefault(_shift(transformation, votes.image_size), []).append(index)
    return members


def _shift(transformation: Transformation, image_size: tuple[int, int]) -> tuple[int, int]:
    """How far (down, right) a transformation moves the content of an image, its rotation and flip undone."""
    down = transformation.ty * shift_px(image_size[0])
    right = transformation.tx * shift_px(image_size[1])
    # The translation follows the flip: undoing the flip turns it round.
    return down, -right if transformation.flip else right


def _overlap(shift: int, length: int) -> tuple[slice, slice]:
    """Where content that moved by `shift` came from, and where it is now, as far as both lie within `length`.

    Patch centres keep the margin from the image's border; those still in it here and there see no mirrored pixel.
    """
    back, forth = max(shift, 0), max(-shift, 0)
    return slice(forth, max(length - back, 0)), slice(back, max(length - forth, 0))
