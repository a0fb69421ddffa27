"""From votes to scores: vote shares of images at every scale, and one anomaly score per image (paper, section 3.3)."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hta.errors import UserError

AGGREGATES = ("mean", "minmax")
"""How the scales are combined without calibration: as they are, or each min-max normalised over the test set first."""

_NEARLY = 1e-4  # of 0 or 1: six digits would be nearly all 0 or 9
_LEAST_SHARE = 1e-16  # of votes, below which one minus it is 1
_HIGHEST_LEVEL = 999  # that is printed


def default_fraction(task: str, num_shots: int) -> float:
    """The paper's fraction of patches that vote (section 4): for defects the lowest 5 % (1 shot) or 10 %, else all."""
    of_defects = 0.05 if num_shots == 1 else 0.10
    return 1.0 if task == "class" else of_defects


def voting_patches(fraction: float, patches: int) -> int:
    """How many patches of a transformed image vote: max(1, floor(fraction * patches)).

    Raises:
        UserError: the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise UserError(f"--fraction_defect {fraction}: must be 0 < value <= 1")
    # Rounded, because 0.29 * 100 is 28.999999999999996.
    return max(1, math.floor(round(fraction * patches, 9)))


def vote_shares(probabilities: Tensor, fractions: Sequence[float]) -> Tensor:
    """Vote shares of images at one scale, for several fractions of their patches.

    Args:
        probabilities: `(B, M, h, w)` votes of every patch for every transformation, in [0, 1].
        fractions: F values, each 0 < fraction <= 1: the part of the patches, those with the lowest votes, that counts
            for each transformation and image.

    Returns:
        `(F, B)` in [0, 1]; higher = more normal, chance is 1 / M.

    Raises:
        UserError: a fraction is out of range.
    """
    votes = probabilities.flatten(2)
    patches = votes.shape[-1]
    counts = [voting_patches(fraction, patches) for fraction in fractions]
    ascending = votes
    if min(counts) < patches:
        # NumPy's vectorised sort is over ten times faster on a CPU than torch's.
        on_cpu = votes.device.type == "cpu"
        ascending = torch.from_numpy(np.sort(votes.numpy())) if on_cpu else votes.sort().values
    means = [(ascending[..., :count] if count < patches else votes).mean(dim=-1) for count in counts]
    return torch.stack([mean.mean(dim=-1) for mean in means])


def check_aggregate(aggregate: str, num_images: int) -> None:
    """Refuse, before any scoring, what could not be aggregated afterwards.

    Raises:
        UserError: an unknown aggregate, or "minmax" of fewer than two images.
    """
    known = (*AGGREGATES, "calibrated")
    if aggregate not in known:
        raise UserError(f"--aggregate {aggregate}: must be one of {', '.join(known)}")
    if aggregate == "minmax" and num_images < 2:
        raise UserError(
            "--aggregate minmax: normalises over a test set and there is one image only; give --aggregate mean"
        )


def anomaly_scores(shares: np.ndarray, aggregate: str = "mean", views: np.ndarray | None = None) -> np.ndarray:
    """Anomaly scores of a test set, each the mean over the scales.

    Args:
        shares: `(N, S)` vote shares of N images at S scales.
        aggregate: "mean" takes one minus the shares: a score depends on its image alone. "minmax" first maps each scale
            to [0, 1] over the N images; a scale on which all are equal carries no information and becomes 0. Images
            without any vote, as those with a fault, are left out of the range and score 1.
            "calibrated" counts standard deviations below the mean of normal images; it needs no test set either.
        views: `(V, S)` vote shares of normal images, for "calibrated"; a scale on which they do not vary counts 0.

    Returns:
        `(N,)` float64; higher = more anomalous; in [0, 1], but 0 for the average normal image where "calibrated".

    Raises:
        UserError: an unknown aggregate, or "minmax" of fewer than two images.
    """
    check_aggregate(aggregate, len(shares))
    # torch, not NumPy, adds up here: the two differ in the last bit.
    values = torch.as_tensor(shares).double()
    if aggregate == "calibrated":
        normal = torch.as_tensor(views)
        std = normal.std(dim=0)
        return ((normal.mean(dim=0) - values) / torch.where(std > 0, std, torch.inf)).mean(dim=1).numpy()
    if aggregate == "minmax":
        has_votes = values.any(dim=1, keepdim=True)
        low = torch.where(has_votes, values, values.amax(dim=0)).amin(dim=0)
        high = values.amax(dim=0)
        values = ((values - low) / torch.where(high > low, high - low, 1.0)).clamp(min=0)
    return (1 - values.mean(dim=1)).numpy()


def score_text(score: float) -> str:
    """An anomaly score as an option takes it: six digits; near 0 or 1, where those would look alike, more."""
    if 0 < abs(score) < _NEARLY:
        return f"{score:.2e}"
    nines = math.floor(-math.log10(1 - score)) if 0 < 1 - score < _NEARLY else 3
    return f"{score:.{nines + 3}f}"


def levels(values: ArrayLike, limit: float | None, aggregate: str | None = None) -> NDArray[np.float64]:
    """Values for people, in the same order: how far they are up to a threshold, which is 1; only above it is above 1.

    Args:
        values: anomaly scores that `aggregate` gave, or without it maxima of anomaly maps.
        limit: their threshold; without one, or if it is not positive, the result is the values themselves.

    Scores of "mean" are one minus a share of votes, and many differ only close to 1, by decades of that share. Their
    levels are ratios of its logarithms, as maps hold them already.
    """
    values = np.asarray(values, dtype=np.float64)
    if limit is None or limit <= 0:
        return values
    is_share = aggregate == "mean"
    found, unit = (-np.log(np.maximum(1 - x, _LEAST_SHARE)) if is_share else x for x in (values, np.float64(limit)))
    found = found / unit
    return np.where(values > limit, np.maximum(found, np.nextafter(1, 2)), np.minimum(found, 1))


def level_text(level: float, *, is_relative: bool = True) -> str:
    """A level from `levels`, by two digits after the point, and 1.01 or more if it is above 1; others by three."""
    if not is_relative:
        return f"{level:z.3f}"
    return f"over {_HIGHEST_LEVEL}" if level > _HIGHEST_LEVEL else f"{max(level, 1.01) if level > 1 else level:z.2f}"
