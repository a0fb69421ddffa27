"""What `hta.Model.score` computes, as one module that can be traced: from images to scores, vote shares and maps."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from hta.config import ScoringConfig
from hta.evaluation.combined import HIGHEST_ERROR, LEAST, least_errors
from hta.evaluation.maps import anomaly_maps
from hta.evaluation.nearest import MOST
from hta.evaluation.scores import check_aggregate, voting_patches
from hta.evaluation.thresholds import NormalVotes, Threshold
from hta.images import resample
from hta.model import Model

INPUT, OUTPUTS = "images", ("anomaly_score", "vote_shares", "anomaly_map")


class ScoreGraph(nn.Module):
    """A model as a function of images alone; banks, canvases and thresholds are constants.

    Args:
        model: on the CPU, in float32.
        scoring: how it scores; an aggregate of a test set raises a UserError.
        limits: the thresholds that `model.threshold` gives.
    """

    def __init__(self, model: Model, scoring: ScoringConfig, limits: Threshold):
        super().__init__()
        check_aggregate(scoring.aggregate, num_images=1)
        self._plan, self._margin, self._voters = model.pyramid.plan, model.scorer.margin, model.scorer.voters
        self._orders = [torch.cat([reader.classes for reader in voter.readers]).argsort() for voter in self._voters]
        self._fraction = model.fraction(scoring)
        self._score = model.score_name(scoring)
        self._nearest = model.nearest if self._score == "nearest" else None
        self._training_images = model.training_images
        self._check = None if scoring.no_frame_check else model.frame_check
        # Scores are linear in what is read of an image: two points, or one more than there are scales, tell how.
        read, probes = _probes(self._score, self._plan.num_scales)
        scores = model.anomaly_scores(probes, replace(scoring, threshold=None), limits)
        self._offset, *slopes = np.linalg.solve(np.insert(read, 0, 1, axis=1), scores).tolist()
        self._slopes = torch.tensor(slopes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score `(B, 3, H, W)` float32 images in [0, 1], of any size.

        Returns:
            Anomaly scores `(B,)`, higher = more anomalous; vote shares `(B, S)` in [0, 1], higher = more normal; and
            anomaly maps at the working size, `(B, h, w)` in [0, 1], higher = more anomalous.
        """
        working = resample(2 * images.clamp(0, 1) - 1, self._plan.working_size)
        levels = [resample(working, size) for size in self._plan.sizes[:-1]] + [working]
        votes = [
            torch.cat([found for _, found in voter.parts(level)], dim=1)[:, order]
            for voter, order, level in zip(self._voters, self._orders, levels, strict=True)
        ]
        shares = torch.stack([_share(of_scale, self._fraction) for of_scale in votes], dim=1)
        if self._nearest:
            maps = self._nearest.maps_of([v.activations(x) for v, x in zip(self._voters, levels, strict=True)])
        else:
            maps = anomaly_maps(votes, self._margin, self._plan.working_size)
        errors = least_errors(working, self._training_images)
        if self._check:
            is_strange = torch.stack(list(self._check.kinds(working).values())).any(dim=0)
            shares = torch.where(is_strange[:, None], 0.0, shares)
            maps = torch.where(is_strange[:, None, None], 1.0, maps)
            errors = torch.where(is_strange, HIGHEST_ERROR, errors)
        return self._offset + (self._read(errors, shares, maps) * self._slopes).sum(dim=1), shares, maps

    def _read(self, errors: Tensor, shares: Tensor, maps: Tensor) -> Tensor:
        """What a score is linear in: vote shares, the squared error per vote, or the ratio at a map's maximum."""
        if self._score == "paper":
            return shares
        if self._score == "combined":
            return (errors.clamp(min=LEAST) / shares.mean(dim=1).clamp(min=LEAST))[:, None]
        peaks = maps.amax(dim=(1, 2))[:, None]
        return peaks / (1 - peaks).clamp(min=1 / MOST)


def _probes(score: str, num_scales: int) -> tuple[np.ndarray, NormalVotes]:
    """Images by what a score is linear in, `(N, N - 1)`, and their votes."""
    if score == "paper":
        shares = np.eye(num_scales + 1, num_scales, -1)
        return shares, NormalVotes(shares, None)
    read, ones = np.array([1.0, 2.0]), np.ones((2, num_scales))
    return read[:, None], NormalVotes(ones, read / (1 + read), errors=read)


def _share(votes: Tensor, fraction: float) -> Tensor:
    """`hta.evaluation.scores.vote_shares` `(B,)` of `(B, M, h, w)` votes; NumPy's sort cannot be traced."""
    rows = votes.flatten(2)
    if (count := voting_patches(fraction, rows.shape[2])) < rows.shape[2]:
        rows = rows.topk(count, largest=False, sorted=False).values
    return rows.mean(dim=(1, 2))
