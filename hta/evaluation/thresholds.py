"""Reject or pass: a threshold on anomaly scores or on anomaly maps, and what it costs where the labels are known.

A defect is small, and the score of an image, a mean of probabilities, is close to 1 for every image that a model of one
image does not know by heart. Its map keeps them apart, so defects are decided by it, wherever there are maps: an image
is rejected whose map is above the pixel threshold anywhere. Images of another class are decided by their scores.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

REJECT, PASS = "reject", "pass"
NO_MINMAX = "minmax scores depend on the test set: no threshold can be known before it; give --threshold"

_CONFIDENCE = 0.95
_PLAIN_DIGITS = 6
_NEARLY = 1e-4  # of 0 or 1: six digits would be nearly all 0 or 9


@dataclass(frozen=True)
class Threshold:
    """Where anomalous begins.

    Attributes:
        threshold: an anomaly score above it is anomalous; None if there is none.
        reason: why there is none.
        source: "calibrated" on views of the training images, made of "good images" that were held out
            (`hta.evaluation.held_out`), or "given" by the user; None if there is none.
        target_fpr: the share of normal images that may be rejected, in (0, 1); None for one that was given.
        pixel_threshold: a pixel of the anomaly map above it is anomalous; None if there is none.
        decided_by: "score": an image is rejected whose score is above `threshold`; "map": one whose map is above
            `pixel_threshold` anywhere.
    """

    threshold: float | None
    reason: str | None = None
    source: str | None = None
    target_fpr: float | None = None
    pixel_threshold: float | None = None
    decided_by: str = "score"


def decide(scores: np.ndarray, threshold: Threshold, peaks: np.ndarray | None = None) -> np.ndarray | None:
    """Which images are rejected.

    Args:
        scores: `(N,)` anomaly scores, higher = more anomalous.
        threshold: where anomalous begins.
        peaks: `(N,)` maxima of the anomaly maps at the working size; needed where the maps decide.

    Returns:
        `(N,)` bool, True = reject; None without a threshold.
    """
    if threshold.decided_by == "map":
        return np.asarray(peaks) > threshold.pixel_threshold
    return None if threshold.threshold is None else np.asarray(scores) > threshold.threshold


def decision_words(rejected: np.ndarray | None, count: int) -> list[str]:
    """ "reject" or "pass" for each of `count` images; empty words where nothing is decided."""
    return [""] * count if rejected is None else [REJECT if is_rejected else PASS for is_rejected in rejected]


def score_text(score: float) -> str:
    """An anomaly score for people: six digits; near 0 or 1, where many would read alike, how far from there."""
    if 0 < abs(score) < _NEARLY:
        return f"{score:.2e}"
    if 0 < 1 - score < _NEARLY:
        return f"1 - {1 - score:.2e}"
    return f"{score:.{_PLAIN_DIGITS}f}"


def summarize_decision(
    labels: Sequence[int | None], rejected: np.ndarray | None, threshold: Threshold
) -> dict[str, Any]:
    """The decision on a test set, as JSON can hold it.

    Args:
        labels: 1 = anomalous, 0 = normal, None = not known.
        rejected: from `decide`.
        threshold: what it was decided with.

    Returns:
        The threshold's attributes, how many were rejected, and with labels the confusion matrix, the false-positive
        rate (share of the normal images that were rejected) and the recall (of the anomalous ones), each with its
        exact binomial 95 % interval; None where undefined.
    """
    summary: dict[str, Any] = asdict(threshold)
    known = rejected is not None and len(labels) > 0 and None not in labels
    counts = confusion(np.array(labels), rejected) if known else None
    false, normal = (counts["false_positives"], counts["true_negatives"]) if known else (0, 0)
    right, missed = (counts["true_positives"], counts["false_negatives"]) if known else (0, 0)
    return summary | {
        "rejected": None if rejected is None else int(rejected.sum()),
        "confusion": counts,
        "false_positive_rate": proportion(false, false + normal),
        "recall": proportion(right, right + missed),
    }


def pixel_false_alarms(
    labels: Sequence[int | None], peaks: np.ndarray | None, pixel_threshold: float | None
) -> dict[str, Any]:
    """Share of the normal images whose map is above the pixel threshold anywhere, as JSON can hold it.

    Args:
        labels: 1 = anomalous, 0 = normal, None = not known.
        peaks: `(N,)` maxima of the anomaly maps; None without maps.
        pixel_threshold: above it a pixel is anomalous; None if there is none.

    Returns:
        The share and its exact binomial 95 % interval; both None where undefined.
    """
    if peaks is None or pixel_threshold is None or None in labels:
        return proportion(0, 0)
    of_normal = np.asarray(peaks)[np.array(labels) == 0]
    return proportion(int((of_normal > pixel_threshold).sum()), of_normal.size)


def confusion(labels: np.ndarray, rejected: np.ndarray) -> dict[str, int]:
    """The confusion matrix; positive = anomalous.

    Args:
        labels: `(N,)`, 1 = anomalous, 0 = normal.
        rejected: `(N,)` bool.
    """
    anomalous = labels.astype(bool)
    return {
        "true_positives": int((anomalous & rejected).sum()),
        "false_positives": int((~anomalous & rejected).sum()),
        "true_negatives": int((~anomalous & ~rejected).sum()),
        "false_negatives": int((anomalous & ~rejected).sum()),
    }


def proportion(successes: int, trials: int) -> dict[str, Any]:
    """A share with its exact (Clopper-Pearson) 95 % interval; both None for no trials."""
    if trials == 0:
        return {"value": None, "interval_95": None}
    interval = binomtest(successes, trials).proportion_ci(_CONFIDENCE, method="exact")
    return {"value": successes / trials, "interval_95": [float(interval.low), float(interval.high)]}
