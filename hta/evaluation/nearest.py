"""Anomaly maps by the nearest patch of the training images, in the features of the discriminators.

To name the transformation of a patch, and to tell it from a generated one, a discriminator has to describe it: by the
activations of its last hidden layer. A patch is anomalous where no patch of the training images, or of views of them,
that is near the same place is described alike. Distances are standardised by those of other views, scale by scale, so
that the scales can be averaged: the unit is the standard deviation of normal patches.

Votes say less: a patch that looks the same under all transformations, such as a blank one, cannot be voted for, however
normal or strange it is.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hta.evaluation.maps import upsample_map
from hta.evaluation.scorer import Scorer
from hta.models.views import draw_views
from hta.runtime import seeded_generator

VIEW_STRENGTH = 1.0
"""Of the views that stand in for normal images: those that the recipe "views" trains on."""

UNIT, OFFSET = 0.01, 0.02
"""On a map, one standard deviation of the distances of normal patches, and their mean."""

_BANK_VIEWS = 7  # of each training image in the bank
_STATISTICS_VIEWS = 24  # of all of them together, for the distances of normal patches
_BANK_PATCHES = 1500  # for each training image
_REACH = 0.05  # of the longer side: a patch that far away counts like one whose features differ by their mean spread
_BLUR = 5  # side of the average over a map, pixels at the working size
_CHUNK = 1024  # patches compared at once: their distances to the bank stay in the caches


class _Bank:
    """Patches of one scale: features `(V, C, h, w)` of images that are normal."""

    def __init__(self, features: Tensor, count: int, generator: torch.Generator):
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
        unit = _REACH * max(height, width)
        grid = torch.meshgrid(torch.arange(height) / unit, torch.arange(width) / unit, indexing="ij")
        places = torch.stack(grid, dim=-1).flatten(0, 1).repeat(count, 1)
        return torch.cat([rows, places.to(rows)], dim=1)

    def distances(self, features: Tensor) -> Tensor:
        """How far each patch of `(B, C, h, w)` features is from the nearest one of the bank: `(B, h, w)`."""
        points = self._described(features)
        nearest = [
            torch.addmm(self._half_norms, part, self._points.T, alpha=-1).amin(dim=1) for part in points.split(_CHUNK)
        ]
        squares = 2 * torch.cat(nearest) + points.square().sum(dim=1)
        return squares.clamp(min=0).sqrt().unflatten(0, (len(features), *features.shape[-2:]))


class NearestMaps:
    """Makes anomaly maps of images.

    Args:
        scorer: of the model.
        images: `(N, 3, h, w)` training images in [-1, 1], at the working size.
    """

    @torch.inference_mode()
    def __init__(self, scorer: Scorer, images: Tensor):
        self._scorer, number = scorer, len(images)
        in_bank = torch.cat([images.cpu(), draw_views(images, _BANK_VIEWS * number, VIEW_STRENGTH, (0, "bank"))])
        self._banks = [
            _Bank(features, number * _BANK_PATCHES, seeded_generator("bank", n))
            for n, features in enumerate(scorer.features(in_bank))
        ]
        others = draw_views(images, max(_STATISTICS_VIEWS, number), VIEW_STRENGTH, (0, "statistics"))
        distances = zip(*(self._distances(view[None]) for view in others), strict=True)
        self._statistics = [torch.std_mean(torch.cat(of_scale)) for of_scale in distances]

    def _distances(self, images: Tensor) -> list[Tensor]:
        features = self._scorer.features(images)
        return [bank.distances(of_scale) for bank, of_scale in zip(self._banks, features, strict=True)]

    @torch.inference_mode()
    def maps(self, images: Tensor) -> Tensor:
        """Anomaly maps of `(B, 3, h, w)` images in [-1, 1] at the working size.

        Returns:
            `(B, h, w)` in [0, 1]: `OFFSET` at the distance of an average normal patch, `UNIT` more for each standard
            deviation; the mean over the scales, averaged over `_BLUR` px; higher = more anomalous.
        """
        size, scales = self._scorer.plan.working_size, []
        for (std, mean), distances, own in zip(
            self._statistics, self._distances(images), self._scorer.plan.sizes, strict=True
        ):
            standardised = (distances - mean) / std.clamp(min=1e-12)
            margin = (own[0] - distances.shape[-2]) // 2
            whole = F.pad(standardised.unsqueeze(1), [margin] * 4, mode="replicate").squeeze(1)
            scales.append(upsample_map((OFFSET + UNIT * whole).clamp(0, 1), size))
        total = torch.stack(scales).mean(dim=0)
        side = _BLUR // 2
        return F.avg_pool2d(F.pad(total.unsqueeze(1), [side] * 4, mode="replicate"), _BLUR, stride=1).squeeze(1)
