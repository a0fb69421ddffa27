"""Reject or pass: where thresholds come from, and what they cost where the labels are known.

A defect is small, and the score of an image, a mean of probabilities, is close to 1 for every image that a model
trained on one image does not know by heart. The maximum of the map does separate them, so maps decide on defects if
there are any: an image is rejected if its map exceeds the pixel threshold anywhere. For another class scores decide.

Thresholds are made of normal images only: views of the training images (`hta.models.views`), which approximate how
much normal images differ, or better, good images that the model was not trained on. The limits of the latter are those
of split conformal prediction: another good image of the same kind exceeds them with at most the target probability.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from hta.errors import RunError, UserError
from hta.evaluation.metrics import confusion
from hta.evaluation.scores import score_text

CALIBRATED, GOOD_IMAGES, GIVEN = "calibrated", "good images", "given"
"""What `Threshold.source` can be."""

_LOW_RECALL = 0.5

_NO_MINMAX = "minmax scores depend on the test set: no threshold can be known before it; give --threshold"


@dataclass(frozen=True)
class NormalVotes:
    """A model's votes on N images, normal ones where a threshold is derived from them."""

    shares: np.ndarray  # `(N, S)` vote shares in [0, 1], higher = more normal
    peaks: np.ndarray | None  # `(N,)` maxima of the anomaly maps at the working size; None without maps
    # `(N,)` squared errors, see `hta.evaluation.combined`; None if they were not measured
    errors: np.ndarray | None = field(default=None, kw_only=True)

    @classmethod
    def of(cls, images: Iterable[tuple[np.ndarray, Any, float | None]]) -> "NormalVotes":
        """Those of N images, at least one, each with its vote shares `(S,)`, peak and squared error, or None."""
        shares, *others = zip(*images, strict=True)
        peaks, errors = (None if values[0] is None else np.array(values) for values in others)
        return cls(np.stack(shares), peaks, errors=errors)


@dataclass(frozen=True)
class Threshold:
    """The limits above which an image or a pixel counts as anomalous."""

    threshold: float | None  # of the anomaly score; None if there is none
    reason: str | None = None  # why there is none
    source: str | None = None  # `CALIBRATED` on views, made of `GOOD_IMAGES`, or `GIVEN`; None without a threshold
    target_fpr: float | None = None  # share of normal images that may be rejected, in (0, 1); None if `GIVEN`
    pixel_threshold: float | None = None  # of the anomaly map; None if there is none
    decided_by: str = "score"  # "map": an image is rejected if its map is above `pixel_threshold` anywhere
    unit: float | None = None  # of the score "combined": the error per vote that scores 1; None for other scores

    @property
    def limit(self) -> float | None:
        """The limit of what decides, the map or the score; None if there is none."""
        return self.pixel_threshold if self.decided_by == "map" else self.threshold


def make_threshold(
    scores: np.ndarray | None,
    peaks: np.ndarray | None,
    target_fpr: float,
    source: str,
    *,
    given: float | None = None,
    by_map: bool = False,
) -> Threshold:
    """Make the thresholds that reject the share `target_fpr` of normal images, by their scores and by their maps.

    Args:
        scores: `(N,)` anomaly scores of normal images, higher = more anomalous; None for "minmax", whose scores depend
            on the test set.
        peaks: `(N,)` maxima of their anomaly maps at the working size; None without maps.
        target_fpr: in (0, 1).
        source: `CALIBRATED`: quantiles over the N views; `GOOD_IMAGES`, as many as `check_enough` demands: conformal
            limits, which another value of the same kind exceeds with a probability of at most `target_fpr`.
        given: the user's own threshold of the score.
        by_map: whether the maps decide, unless `given`.
    """

    def limit(values: np.ndarray | None) -> float | None:
        if values is None:
            return None
        if source == GOOD_IMAGES:
            rank = max(1, math.ceil(round((len(values) + 1) * (1 - target_fpr), 9)))
            return float(np.sort(values)[rank - 1])
        return float(np.quantile(values, 1 - target_fpr))

    pixel_threshold = limit(peaks)
    if given is not None:
        return Threshold(given, source=GIVEN, pixel_threshold=pixel_threshold)
    if scores is None and not by_map:
        return Threshold(None, _NO_MINMAX, pixel_threshold=pixel_threshold)
    return Threshold(limit(scores), None, source, target_fpr, pixel_threshold, "map" if by_map else "score")


def check_enough(count: int, target_fpr: float, source: str) -> None:
    """Refuse a target that needs more than `count` normal images, which are `CALIBRATED` views or `GOOD_IMAGES`.

    Raises:
        UserError: names how many it needs.
    """
    needed = max(1, math.ceil(round((1 - target_fpr) / target_fpr, 9)))  # 19 for 5 %
    if count < needed and source == CALIBRATED:
        raise UserError(
            f"--target_fpr {target_fpr:g}: {count} views of the training images cannot support a false-positive rate "
            f"below {1 / (count + 1):.2g}; give a larger one, or --good_dir with {needed} or more good images"
        )
    if count < needed:
        raise UserError(
            f"--good_dir: {count} good image{'s' * (count != 1)}, but --target_fpr {target_fpr:g} needs at least "
            f"{needed}; give more, or a larger --target_fpr"
        )


def decide(
    scores: np.ndarray,
    threshold: Threshold,
    peaks: np.ndarray | None = None,
    faults: Sequence[str | None] | None = None,
) -> np.ndarray | None:
    """Which images are rejected, by `(N,)` anomaly scores or, where maps decide, their maxima: bool, True = reject.

    Those with `faults`, of which one cannot judge by votes, are rejected in any case. Returns None if there is no
    threshold, and raises a RunError if what decides is not finite.
    """
    values, limit = np.asarray(peaks if threshold.decided_by == "map" else scores), threshold.limit
    if limit is None:
        return None
    if not np.isfinite(np.append(values, limit)).all():
        raise RunError("a score or its threshold is not finite: the model is damaged; restore it, or train it again")
    return (values > limit) | [fault is not None for fault in faults or [None] * len(values)]


def decision_words(rejected: np.ndarray | None, count: int) -> list[str]:
    """ "reject" or "pass" for each of `count` images; empty words where nothing is decided."""
    return [""] * count if rejected is None else ["reject" if is_rejected else "pass" for is_rejected in rejected]


def summarize_decision(
    labels: Sequence[int | None], rejected: np.ndarray | None, threshold: Threshold
) -> dict[str, Any]:
    """The decision of `decide` on a test set, labelled 1 = anomalous, 0 = normal, None = unknown.

    Returns:
        The threshold's attributes, how many images were rejected, and if all labels are known the confusion matrix, the
        false-positive rate (share of the normal images that were rejected) and the recall (of the anomalous ones), see
        `proportion`. JSON can hold it.
    """
    counts, of_normal, of_anomalous = None, (0, 0), (0, 0)
    if rejected is not None and len(labels) > 0 and None not in labels:
        counts = confusion(np.array(labels), rejected)
        of_normal = counts["false_positives"], counts["false_positives"] + counts["true_negatives"]
        of_anomalous = counts["true_positives"], counts["true_positives"] + counts["false_negatives"]
    return asdict(threshold) | {
        "rejected": None if rejected is None else int(rejected.sum()),
        "confusion": counts,
        "false_positive_rate": proportion(*of_normal),
        "recall": proportion(*of_anomalous),
    }


def pixel_false_alarms(labels: Sequence[int | None], peaks: np.ndarray | None, limit: float | None) -> dict[str, Any]:
    """Share of the normal images (label 0) whose map, of maxima `(N,)`, exceeds the pixel threshold; see `proportion`.

    It is undefined without maps or threshold, or if a label is unknown (None).
    """
    if peaks is None or limit is None or None in labels:
        return proportion(0, 0)
    of_normal = np.asarray(peaks)[np.array(labels) == 0]
    return proportion(int((of_normal > limit).sum()), of_normal.size)


def proportion(successes: int, trials: int) -> dict[str, Any]:
    """A share as `value`, with its exact (Clopper-Pearson) `interval_95`; both None, undefined, for no trials."""
    if trials == 0:
        return {"value": None, "interval_95": None}
    from scipy.stats import binomtest  # slow to import

    interval = binomtest(successes, trials).proportion_ci(0.95, method="exact")
    return {"value": successes / trials, "interval_95": [float(interval.low), float(interval.high)]}


def decision_text(decision: dict[str, Any]) -> str:
    """What was decided, in words; `decision` is from `summarize_decision`, with `pixel_false_alarms` added."""
    if decision["rejected"] is None:
        return f"no decision: {decision['reason']}"
    by_map = decision["decided_by"] == "map"
    limit = score_text(decision["pixel_threshold" if by_map else "threshold"])
    target = decision["target_fpr"]
    origin = "" if target is None else f", for {100 * target:g} % false alarms"
    by = "anomaly map anywhere" if by_map else "anomaly score"
    text = f"{decision['rejected']} rejected: {by} above {limit} ({decision['source']}{origin})"
    rates = {"false_positive_rate": "false alarms", "recall": "recall"}
    if not by_map and decision["pixel_false_alarms"]["value"] != decision["false_positive_rate"]["value"]:
        rates["pixel_false_alarms"] = "false alarms of the maps"
    for key, name in rates.items():
        if decision[key]["value"] is not None:
            low, high = decision[key]["interval_95"]
            text += f"\n  {name}: {decision[key]['value']:.1%} (95 % interval {low:.1%} to {high:.1%})"
    return "\n  ".join([text, *advice(decision)])


def advice(decision: dict[str, Any]) -> list[str]:
    """What to try where the decision finds few anomalous images, or rejects more good ones than it was to reject."""
    recall, alarms, target = decision["recall"]["value"], decision["false_positive_rate"], decision["target_fpr"]
    by_views, lines = decision["source"] == CALIBRATED, []
    if recall is not None and recall < _LOW_RECALL:
        found = "no anomalous image was" if recall == 0 else f"only {100 * recall:.0f} % of the anomalous images were"
        remedies = ["to make the threshold of good images (--good_dir)"] if by_views else []
        lower = "a lower --threshold" if target is None else f"a --target_fpr above {target:g}"
        remedies.append(f"{lower} (more false alarms)")
        lines.append(f"{found} rejected: try {', '.join(remedies)}, or more iterations in training (--niter)")
    if by_views and alarms["value"] is not None and target is not None and alarms["interval_95"][0] > target:
        lines.append(
            f"{100 * alarms['value']:.0f} % of the normal images were rejected, not {100 * target:g} %: try to make "
            "the threshold of good images (--good_dir)"
        )
    return lines
