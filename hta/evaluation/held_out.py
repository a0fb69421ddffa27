"""Thresholds from good images that a model was not trained on: wherever there are some, they know more than views.

Views of the training images guess at how much normal images differ (`hta.evaluation.views`); good images show it. The
limits are those of split conformal prediction: a further good image, if it is of the same kind, lies above with a
probability of at most the target.
"""

import math
from dataclasses import dataclass

import numpy as np

from hta.errors import UserError
from hta.evaluation.thresholds import NO_MINMAX, Threshold

GOOD_IMAGES = "good images"
"""What `Threshold.source` says of such a threshold."""


def images_needed(target_fpr: float) -> int:
    """The fewest good images that can tell a limit for a share of false alarms, in (0, 1): 19 for 5 %."""
    return max(1, math.ceil(round((1 - target_fpr) / target_fpr, 9)))


def conformal_limit(values: np.ndarray, target_fpr: float) -> float:
    """What a further value of the same kind exceeds with a probability of at most `target_fpr`.

    Args:
        values: `(N,)`, at least `images_needed(target_fpr)` of them.
        target_fpr: in (0, 1).
    """
    rank = math.ceil(round((len(values) + 1) * (1 - target_fpr), 9))
    return float(np.sort(values)[max(rank, 1) - 1])


@dataclass(frozen=True)
class HeldOut:
    """What a model says about N good images that it was not trained on.

    Attributes:
        scores: `(N,)` anomaly scores, higher = more anomalous; None where they depend on the test set ("minmax").
        peaks: `(N,)` maxima of their anomaly maps at the working size; None without maps.
        count: N.
    """

    scores: np.ndarray | None
    peaks: np.ndarray | None
    count: int

    def threshold(self, target_fpr: float) -> Threshold:
        """The thresholds by score and by map that reject at most the share `target_fpr` of further good images.

        Raises:
            UserError: there are too few images.
        """
        check_enough(self.count, target_fpr)
        pixel_threshold = None if self.peaks is None else conformal_limit(self.peaks, target_fpr)
        if self.scores is None:
            return Threshold(None, NO_MINMAX, pixel_threshold=pixel_threshold)
        return Threshold(conformal_limit(self.scores, target_fpr), None, GOOD_IMAGES, target_fpr, pixel_threshold)


def check_views(count: int, target_fpr: float) -> None:
    """Refuse a share of false alarms that views of the training images are too few to tell.

    Raises:
        UserError: names the least that they can.
    """
    needed = images_needed(target_fpr)
    if count < needed:
        raise UserError(
            f"--target_fpr {target_fpr:g}: {count} views of the training images tell {1 / (count + 1):.2g} at least; "
            f"give a larger one, or --good_dir with {needed} or more good images"
        )


def check_enough(count: int, target_fpr: float) -> None:
    """Refuse good images that are too few to tell a limit.

    Raises:
        UserError: names how many it takes.
    """
    needed = images_needed(target_fpr)
    if count < needed:
        raise UserError(
            f"--good_dir: {count} good image{'s' * (count != 1)}, --target_fpr {target_fpr:g} takes at least {needed}; "
            "give more, or a larger --target_fpr"
        )
