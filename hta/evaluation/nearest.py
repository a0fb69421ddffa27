"""Anomaly maps by the nearest patch of the training images, in the features of the discriminators.

To name the transformation of a patch, and to tell it from a generated one, a discriminator has to describe it: by the
activations of its last hidden layer. A patch is anomalous where no patch of the training images, or of views of them,
that is near the same place is described alike. Votes say less: a patch that looks the same under all transformations,
such as a blank one, cannot be voted for, however normal or strange it is.

Normal images differ from the training image everywhere, in texture or light, and some more than others; a defect
differs at one place. So distances count in units of the image's own typical distance, its median over the patches.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hta.models.scales import ScalePlan
from hta.models.views import TRAINING_STRENGTH, ViewRule, draw_views, view_rule
from hta.runtime import seeded_generator

NEAREST_VERSION = 1
"""Incremented with every change that moves the maps: results of another version are made again."""

RULE = ViewRule(strength=1.0, mirrored=True)
"""The views that stand in for normal images where thresholds are made."""

USUAL = 0.5
"""Of a map: the distance that `unit_of` allows an image."""

_BANK_VIEWS = 7  # of each training image in the bank
_STATISTICS_VIEWS = 24  # of all of them together, for the distances of normal patches
_BANK_PATCHES = 1500  # for each training image
_REACH = 0.1
_ALLOWANCE = 1.2, 3.0  # least and most that an image may be farther than views
MOST = 1000.0  # the ratio of an image that must be rejected, whose map is 1
_BLUR = 5  # side of the average over a map, pixels at the working size
_CHUNK = 1024  # patches compared at once: their distances to the bank stay in the caches

Describe = Callable[[Tensor], Sequence[Tensor]]
"""Makes features of `(B, 3, h, w)` images in [-1, 1] at each scale, `(B, C, h', w')`."""


class _Bank:
    """Patches of one scale: features `(V, C, h, w)` of images that are normal; `reach` as for `NearestMaps`."""

    def __init__(self, features: Tensor, count: int, generator: torch.Generator, reach: float):
        self._reach = reach
        rows = features.permute(0, 2, 3, 1).flatten(0, 2)
        spread = rows.std(dim=0)
        self._mean = rows.mean(dim=0)
        # A channel that hardly varies must not count more than the others.
        self._factor = 1 / ((spread + 1e-3 * spread.mean() + 1e-12) * math.sqrt(rows.shape[1]))
        chosen = torch.randperm(len(rows), generator=generator)[:count].to(rows.device)
        self._points = self._described(features)[chosen]
        self._half_norms = self._points.square().sum(dim=1) / 2

    def _described(self, features: Tensor) -> Tensor:
        """The patches of images as points, `(B * h * w, C + 2)`: their features and places."""
        count, _, height, width = features.shape
        rows = (features.permute(0, 2, 3, 1).flatten(0, 2) - self._mean) * self._factor
        unit = self._reach * max(height, width)
        # From the centre: the products of large numbers would hide small distances.
        rows_at, columns_at = ((torch.arange(side) - (side - 1) / 2) / unit for side in (height, width))
        grid = torch.meshgrid(rows_at, columns_at, indexing="ij")
        places = torch.stack(grid, dim=-1).flatten(0, 1).repeat(count, 1)
        return torch.cat([rows, places.to(rows)], dim=1)

    def distances(self, features: Tensor) -> Tensor:
        """How far each patch of `(B, C, h, w)` features is from the nearest one of the bank: `(B, h, w)`."""
        points = self._described(features)
        parts = [points] if torch.compiler.is_exporting() else points.split(_CHUNK)  # of a batch of any size
        nearest = [torch.addmm(self._half_norms, part, self._points.T, alpha=-1).amin(dim=1) for part in parts]
        squares = 2 * torch.cat(nearest) + points.square().sum(dim=1)
        return squares.clamp(min=0).sqrt().unflatten(0, (-1, *features.shape[-2:]))


class NearestMaps:
    """Makes anomaly maps of images.

    Args:
        describe: makes features of images, such as `hta.evaluation.scorer.Scorer.features`.
        plan: the sizes of the scales.
        images: `(N, 3, h, w)` training images in [-1, 1], at the working size.
        reach: how near a place is, a part of the longer side: a patch that far away counts like one whose features
            differ by their mean spread. Infinity compares all places.
    """

    @torch.inference_mode()
    def __init__(self, describe: Describe, plan: ScalePlan, images: Tensor, reach: float = _REACH):
        self._describe, self._plan, number = describe, plan, len(images)
        in_bank = torch.cat([images.cpu(), draw_views(images, _BANK_VIEWS * number, TRAINING_STRENGTH, (0, "bank"))])
        self._banks = [
            _Bank(features, number * _BANK_PATCHES, seeded_generator("bank", n), reach)
            for n, features in enumerate(describe(in_bank))
        ]
        others = draw_views(images, max(_STATISTICS_VIEWS, number), TRAINING_STRENGTH, (0, "statistics"))
        distances = [self._of_scales(describe(view[None])) for view in others]
        self._means = [torch.cat(of_scale).mean() for of_scale in zip(*distances, strict=True)]
        self._typical = float(torch.cat([typical(self._combined(of_view)) for of_view in distances]).mean())

    @torch.inference_mode()
    def distances(self, images: Tensor) -> Tensor:
        """How far the patches of `(B, 3, h, w)` images are from the training images, `(B, h, w)`, 1 = as views are."""
        return self._combined(self._of_scales(self._describe(images)))

    def _of_scales(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [bank.distances(of_scale) for bank, of_scale in zip(self._banks, features, strict=True)]

    def _combined(self, distances: list[Tensor]) -> Tensor:
        """Combine the distances `(B, h, w)` of the scales, in units of their means over views, at the working size."""
        pairs = zip(distances, self._means, strict=True)
        return merged([of_scale / mean.clamp(min=1e-12) for of_scale, mean in pairs], self._plan)

    @torch.inference_mode()
    def maps(self, images: Tensor) -> Tensor:
        """Anomaly maps of `(B, 3, h, w)` images in [-1, 1] at the working size.

        Returns:
            `(B, h, w)` in [0, 1): 1/2 at the distance that `unit_of` allows the image, 2/3 at twice, 3/4 at three times
            as much; higher = more anomalous.
        """
        return self.maps_of(self._describe(images))

    def maps_of(self, features: Sequence[Tensor]) -> Tensor:
        """The same from what `Describe` makes of the images."""
        distances = self._combined(self._of_scales(features))
        return distances / (distances + unit_of(distances, self._typical))


def nearest_rule(task: str, num_transforms: int) -> ViewRule:
    """The rule for views where thresholds are made: `RULE` where `view_rule` mirrors them, too, else that one."""
    rule = view_rule(task, num_transforms)
    return RULE if rule.mirrored else rule


def unit_of(distances: Tensor, usual: float) -> Tensor:
    """The distance that normal patches of each image may have, `(B, 1, 1)`: its typical one, within limits.

    The limits are multiples of the `usual` typical distance of views: an image that is nearer is not judged more
    severely for it, and one that is farther is strange, and not just different.
    """
    least, most = _ALLOWANCE
    return typical(distances).clamp(least * usual, most * usual)[:, None, None]


def usual_value(score: str | None) -> float:
    """The value of the maps of a score where nothing is strange: `USUAL`, and 0 for maps of votes."""
    return USUAL if score == "nearest" else 0.0


def ratios(values: np.ndarray) -> np.ndarray:
    """How many times the allowed distance values of a map stand for, from 0 to `MOST`."""
    return values / np.maximum(1 - values, 1 / MOST)


def merged(scales: Sequence[Tensor], plan: ScalePlan) -> Tensor:
    """The mean of maps `(B, h', w')` of patches at each scale, at the working size, averaged over `_BLUR` px."""
    resized = []
    for of_scale, own in zip(scales, plan.sizes, strict=True):
        margin = (own[0] - of_scale.shape[-2]) // 2
        whole = F.pad(of_scale.unsqueeze(1), [margin] * 4, mode="replicate")
        resized.append(F.interpolate(whole, size=plan.working_size, mode="bilinear", align_corners=False))
    side = _BLUR // 2
    mean = F.pad(torch.stack(resized).mean(dim=0), [side] * 4, mode="replicate")
    return F.avg_pool2d(mean, _BLUR, stride=1).squeeze(1)


def typical(distances: Tensor) -> Tensor:
    """The median of each image's distances `(B, h, w)`: `(B,)`."""
    return distances.flatten(1).quantile(0.5, dim=1)
