"""From votes to scores: vote shares of images at every scale, and one anomaly score an image (paper, section 3.3)."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hta.errors import UserError

AGGREGATES = ("mean", "minmax")
"""How the scales are brought together: as they are, or each min-max normalised over the test set first."""

_DEFECT_FRACTION_ONE_SHOT = 0.05
_DEFECT_FRACTION = 0.10
# A product this close to an integer, relatively, is that integer: 0.29 * 100 is 28.999999999999996.
_FLOOR_GUARD = 1e-9


def default_fraction(task: str, num_shots: int) -> float:
    """The paper's fraction of patches that vote (section 4): for defects only the lowest 5 % or 10 %, else all.

    Args:
        task: "defect" or "class".
        num_shots: N, the number of training images.
    """
    if task == "class":
        return 1.0
    return _DEFECT_FRACTION_ONE_SHOT if num_shots == 1 else _DEFECT_FRACTION


def voting_patches(fraction: float, patches: int) -> int:
    """How many of an image's patches vote: max(1, floor(fraction * patches)).

    Args:
        fraction: 0 < fraction <= 1.
        patches: number of patches of one transformed image.

    Raises:
        UserError: `fraction` is out of range.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"--fraction_defect {fraction}: must be 0 < value <= 1")
    product = fraction * patches
    nearest = round(product)
    count = nearest if abs(product - nearest) <= _FLOOR_GUARD * product else math.floor(product)
    return max(1, count)


def vote_shares(probabilities: Tensor, fractions: Sequence[float]) -> Tensor:
    """Vote shares of images at one scale, for several fractions of their patches.

    Args:
        probabilities: `(B, M, h, w)` votes of every patch for every transformation, in [0, 1].
        fractions: each 0 < fraction <= 1; per transformation and image, the lowest such part of the patches counts.

    Returns:
        `(F, B)` in [0, 1], one row a fraction; higher = more normal, chance is 1 / M.

    Raises:
        UserError: a fraction is out of range.
    """
    votes = probabilities.flatten(2)
    patches = votes.shape[-1]
    counts = [voting_patches(fraction, patches) for fraction in fractions]
    ascending = _ascending(votes) if min(counts) < patches else votes
    means = [(ascending[..., :count] if count < patches else votes).mean(dim=-1) for count in counts]
    return torch.stack([mean.mean(dim=-1) for mean in means])


def _ascending(votes: Tensor) -> Tensor:
    """Sort along the last dimension; on a CPU by NumPy, whose vectorised sort is over ten times faster than torch's."""
    if votes.device.type == "cpu":
        return torch.from_numpy(np.sort(votes.numpy(), axis=-1))
    return votes.sort(dim=-1).values


def anomaly_scores(shares: Tensor, aggregate: str = "mean") -> Tensor:
    """Anomaly scores of a test set: 1 - mean over scales of its vote shares.

    Args:
        shares: `(N, S)` vote shares of N images at S scales.
        aggregate: "mean" takes the shares as they are: a score depends on its image alone. "minmax" first maps each
            scale to [0, 1] over the N images; a scale on which all are equal tells nothing and becomes 0.

    Returns:
        `(N,)` float64 in [0, 1]; higher = more anomalous.

    Raises:
        UserError: an unknown aggregate, or "minmax" of fewer than two images.
    """
    if aggregate not in AGGREGATES:
        raise UserError(f"--aggregate {aggregate}: must be one of {', '.join(AGGREGATES)}")
    shares = shares.double()
    return 1 - (_min_max(shares) if aggregate == "minmax" else shares).mean(dim=1)


def _min_max(shares: Tensor) -> Tensor:
    """Each scale of `(N, S)` shares mapped to [0, 1] over the images; 0 where all are equal."""
    if len(shares) < 2:
        raise UserError(
            "--aggregate minmax: normalises over a test set and there is one image only; give --aggregate mean"
        )
    low, high = shares.amin(dim=0), shares.amax(dim=0)
    return (shares - low) / torch.where(high > low, high - low, 1.0)


def calibrated_scores(shares: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Anomaly scores in standard deviations below what normal images reach, mean over scales.

    Unlike "minmax" it needs no test set: an image can be scored alone.

    Args:
        shares: `(N, S)` vote shares.
        mean, std: `(S,)` of the vote shares of normal images; a scale without spread is left out (counts 0).

    Returns:
        `(N,)` float64; 0 is as normal as normal images are on average, higher = more anomalous.
    """
    mean, std = mean.double(), std.double()
    deviations = (mean - shares.double()) / torch.where(std > 0, std, torch.inf)
    return deviations.mean(dim=1)
