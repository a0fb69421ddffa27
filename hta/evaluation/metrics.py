"""Metrics of anomaly scores, and what those of anomaly maps share with them; higher scores mean more anomalous.

A metric that the data do not define (one class only, no anomalous pixel) has no value and a reason instead: it is
never 0 and never a crash. The decision rule of every threshold is `score >= threshold`, and equal scores are never
separated.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from hta.errors import UserError

_BOOTSTRAP_CELLS = 2**20  # resampled values held at once, about 8 MB an array


@dataclass(frozen=True)
class Metric:
    """A value, or the reason why there is none.

    Attributes:
        value: The metric; None where it is undefined.
        reason: Why it is undefined; None where it is not.
        threshold: The score from which on an image or pixel counts as anomalous, for metrics that choose one.
    """

    value: float | None
    reason: str | None = None
    threshold: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return `value` (null where undefined) and, of `reason` and `threshold`, what there is."""
        return {key: item for key, item in asdict(self).items() if key == "value" or item is not None}


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval, or the reason why there is none (`low` and `high` are None)."""

    low: float | None
    high: float | None
    level: float
    method: str
    reason: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return all fields, `reason` only where there is one."""
        return {key: item for key, item in asdict(self).items() if key != "reason" or item is not None}


@dataclass(frozen=True)
class Confusion:
    """Counts of the decisions at one threshold; anomalous is the positive class."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int


# --- images -----------------------------------------------------------------------------------------------------------


def image_auroc(labels: ArrayLike, scores: ArrayLike) -> Metric:
    """Area under the ROC curve: the chance that an anomalous image outscores a normal one, ties counting one half.

    Args:
        labels: `(N,)`, 0 or False = normal, 1 or True = anomalous.
        scores: `(N,)`, finite, higher = more anomalous.

    Returns:
        A value in [0, 1], higher = better; undefined unless both classes are there.

    Raises:
        UserError: If labels are not 0 or 1, lengths differ, or a score is not finite. This holds for all image metrics.
    """
    return _image_auroc(*_checked(labels, scores))


def average_precision(labels: ArrayLike, scores: ArrayLike) -> Metric:
    """Average precision (step-wise area under precision over recall), anomalous as the positive class.

    Args:
        labels: `(N,)`, 0 = normal, 1 = anomalous.
        scores: `(N,)`, higher = more anomalous.

    Returns:
        A value in [0, 1], higher = better; undefined unless both classes are there.
    """
    labels, scores = _checked(labels, scores)
    reason = one_class(labels.size - labels.sum(), labels.sum(), "images")
    return Metric(None, reason) if reason else Metric(float(average_precision_score(labels, scores)))


def f1_max(labels: ArrayLike, scores: ArrayLike) -> Metric:
    """Largest F1 over all thresholds, with the threshold; it is chosen on the same images, so it flatters.

    Args:
        labels: `(N,)`, 0 = normal, 1 = anomalous.
        scores: `(N,)`, higher = more anomalous.

    Returns:
        A value in (0, 1], higher = better, and its threshold, one of the scores (the highest of equally good ones);
        undefined unless both classes are there.
    """
    labels, scores = _checked(labels, scores)
    reason = one_class(labels.size - labels.sum(), labels.sum(), "images")
    if reason:
        return Metric(None, reason)
    values, normal, anomalous = _counts_by_score(labels, scores)
    best, index = best_f1(normal, anomalous)
    return Metric(best, threshold=float(values[index]))


def confusion_at(labels: ArrayLike, scores: ArrayLike, threshold: float) -> Confusion:
    """Count the right and wrong decisions of the rule `score >= threshold`.

    Args:
        labels: `(N,)`, 0 = normal, 1 = anomalous.
        scores: `(N,)`, higher = more anomalous.
        threshold: Any finite number.
    """
    labels, scores = _checked(labels, scores)
    if not np.isfinite(threshold):
        raise UserError(f"threshold: {threshold} is not a finite number; give one")
    alarm = scores >= threshold
    return Confusion(
        true_positives=int(np.sum(alarm & labels)),
        false_positives=int(np.sum(alarm & ~labels)),
        false_negatives=int(np.sum(~alarm & labels)),
        true_negatives=int(np.sum(~alarm & ~labels)),
    )


def auroc_by_kind(labels: ArrayLike, scores: ArrayLike, kinds: Sequence[str]) -> dict[str, Metric]:
    """Image AUROC of each kind of defect against all normal images.

    Args:
        labels: `(N,)`, 0 = normal, 1 = anomalous.
        scores: `(N,)`, higher = more anomalous.
        kinds: `(N,)` names of kinds; those of normal images are not read.

    Returns:
        One metric for each kind that has anomalous images, sorted by name.
    """
    labels, scores = _checked(labels, scores)
    if len(kinds) != labels.size:
        raise UserError(f"kinds: {len(kinds)} names for {labels.size} images; give one for each image")
    kinds = np.array([str(kind) for kind in kinds], dtype=object)
    result = {}
    for kind in sorted(set(kinds[labels])):
        chosen = ~labels | (kinds == kind)
        result[kind] = _image_auroc(labels[chosen], scores[chosen])
    return result


def bootstrap_auroc(
    labels: ArrayLike,
    scores: ArrayLike,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Bootstrap interval of image AUROC: percentiles over resamples drawn within each class (stratified).

    It speaks of the choice of test images, not of the training image. Classes that are fully separated give [1, 1],
    however few the images are.

    Args:
        labels: `(N,)`, 0 = normal, 1 = anomalous.
        scores: `(N,)`, higher = more anomalous.
        rng: Source of the draws; the result does not depend on the order of the images.
        resamples: Number of resamples, >= 1.
        level: Coverage, between 0 and 1.

    Returns:
        The interval; undefined unless both classes are there. Time O(resamples * N), memory bounded.
    """
    labels, scores = _checked(labels, scores)
    _check_level(level)
    if resamples < 1:
        raise UserError(f"resamples: {resamples} is too few; give at least 1")
    method = f"stratified percentile bootstrap, {resamples} resamples"
    reason = one_class(labels.size - labels.sum(), labels.sum(), "images")
    if reason:
        return Interval(None, None, level, method, reason)
    _, normal, anomalous = _counts_by_score(labels, scores)
    rows = max(1, _BOOTSTRAP_CELLS // labels.size)
    areas = []
    for start in range(0, resamples, rows):
        chunk = min(rows, resamples - start)
        areas.append(_rank_auroc(_resampled(normal, chunk, rng), _resampled(anomalous, chunk, rng)))
    low, high = np.quantile(np.concatenate(areas), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, method)


def summarize_image_metrics(
    labels: ArrayLike,
    scores: ArrayLike,
    kinds: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """All image metrics as a dictionary that JSON can hold.

    Args:
        labels: `(N,)`, 0 = normal, 1 = anomalous.
        scores: `(N,)`, higher = more anomalous.
        kinds: `(N,)` names of the kinds of defect; without them `auroc_by_kind` is left out.
        seed: Seed of the bootstrap.

    Returns:
        `images` (counts), `image_auroc` (with `interval_95`), `average_precision`, `f1_max` (with `threshold` and
        `confusion` where defined), `auroc_by_kind`. Each metric has `value`, null with a `reason` where undefined.
    """
    labels, scores = _checked(labels, scores)
    anomalous = int(labels.sum())
    best = f1_max(labels, scores)
    summary: dict[str, Any] = {
        "images": {"normal": labels.size - anomalous, "anomalous": anomalous},
        "image_auroc": auroc_with_interval(labels, scores, seed),
        "average_precision": average_precision(labels, scores).as_json(),
        "f1_max": best.as_json(),
    }
    if best.threshold is not None:
        summary["f1_max"]["confusion"] = asdict(confusion_at(labels, scores, best.threshold))
    if kinds is not None:
        by_kind = auroc_by_kind(labels, scores, kinds)
        summary["auroc_by_kind"] = {kind: metric.as_json() for kind, metric in by_kind.items()}
    return summary


def auroc_with_interval(labels: ArrayLike, scores: ArrayLike, seed: int = 0) -> dict[str, Any]:
    """Image AUROC and its bootstrap 95 % interval as JSON can hold them; arguments as in `summarize_image_metrics`."""
    interval = bootstrap_auroc(labels, scores, np.random.default_rng(seed))
    return image_auroc(labels, scores).as_json() | {"interval_95": interval.as_json()}


# --- shared -----------------------------------------------------------------------------------------------------------


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Labels as bool and scores as float64, both `(N,)`, or a UserError."""
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise UserError(f"labels: shape {labels.shape}, scores have {scores.shape}; give one label for each score")
    if labels.dtype.kind not in "biuf" or not np.isin(labels, (0, 1)).all():
        raise UserError("labels: only 0 (normal) and 1 (anomalous) are allowed")
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise UserError(f"scores: {bad.size} of {scores.size} are not finite, first at index {bad[0]}; leave them out")
    return labels.astype(bool), scores


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UserError(f"level: {level} is out of range; give a coverage between 0 and 1")


def one_class(normal: int, anomalous: int, unit: str) -> str | None:
    """Why a metric that needs both classes is undefined, if it is."""
    missing = [name for name, count in (("normal", normal), ("anomalous", anomalous)) if count == 0]
    return f"no {' and no '.join(missing)} {unit}" if missing else None


def _image_auroc(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> Metric:
    reason = one_class(labels.size - labels.sum(), labels.sum(), "images")
    return Metric(None, reason) if reason else Metric(float(roc_auc_score(labels, scores)))


def _counts_by_score(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> tuple[NDArray, NDArray, NDArray]:
    """The K distinct scores, ascending, and how many normal and anomalous images have each."""
    values, index = np.unique(scores, return_inverse=True)
    normal = np.bincount(index[~labels], minlength=values.size)
    return values, normal, np.bincount(index[labels], minlength=values.size)


def at_or_above(counts: NDArray) -> NDArray:
    """Sum of the counts from each score on upwards; scores ascend."""
    return np.cumsum(counts[::-1])[::-1]


def best_f1(normal: NDArray, anomalous: NDArray) -> tuple[float, int]:
    """Largest F1 and the highest index of a score that gives it, from counts by ascending score."""
    hits, alarms = at_or_above(anomalous), at_or_above(anomalous) + at_or_above(normal)
    f1 = 2 * hits / (alarms + anomalous.sum())
    index = f1.size - 1 - int(np.argmax(f1[::-1]))
    return float(f1[index]), index


def _resampled(counts: NDArray, rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw `counts.sum()` scores with replacement, `rows` times; returns counts by score, `(rows, K)`."""
    owner = np.repeat(np.arange(counts.size), counts)
    drawn = owner[rng.integers(owner.size, size=(rows, owner.size))]
    cells = drawn + counts.size * np.arange(rows)[:, None]
    return np.bincount(cells.ravel(), minlength=rows * counts.size).reshape(rows, counts.size)


def _rank_auroc(normal: NDArray, anomalous: NDArray) -> NDArray[np.float64]:
    """AUROC of each row from counts by ascending score, `(rows, K)`; equal scores count one half."""
    below = np.cumsum(normal, axis=1) - normal / 2
    return (anomalous * below).sum(axis=1) / (normal.sum(axis=1) * anomalous.sum(axis=1))
