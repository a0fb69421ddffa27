"""Metrics of anomaly scores, and what they share with those of anomaly maps; higher scores mean more anomalous.

Each metric is a dictionary that JSON can hold: its `value`, for some also the `threshold` that it chose. A metric that
the data do not define (one class only, no anomalous pixel) has the value None and a `reason` instead. The decision rule
at every threshold here is `score >= threshold`, and equal scores are never separated.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hta.errors import UserError
from hta.evaluation.scores import score_text

Metric = dict[str, Any]

RESAMPLES = 1000
_LEVEL = 0.95
_BOOTSTRAP_CELLS = 2**20  # resampled values held at once, about 8 MB per array


def image_auroc(labels: ArrayLike, scores: ArrayLike) -> Metric:
    """Area under the ROC curve: the probability that an anomalous image outscores a normal one; ties count one half.

    Args:
        labels: `(N,)`, 0 or False = normal, 1 or True = anomalous.
        scores: `(N,)`, finite, higher = more anomalous.

    Returns:
        A value in [0, 1], higher = better; undefined unless both classes are present.

    Raises:
        UserError: labels are not 0 or 1, lengths differ, or a score is not finite.
    """
    from sklearn.metrics import roc_auc_score

    labels, scores, reason = _checked(labels, scores)
    return undefined(reason) if reason else {"value": float(roc_auc_score(labels, scores))}


def bootstrap_auroc(labels: ArrayLike, scores: ArrayLike, rng: np.random.Generator) -> dict[str, Any]:
    """Bootstrap 95 % interval of image AUROC: percentiles over resamples drawn within each class (stratified).

    It reflects the choice of test images, not of the training image. Fully separated classes give [1, 1], however few
    the images are.

    Args:
        labels, scores: as for `image_auroc`, which raises the same errors.
        rng: source of the draws; the result does not depend on the order of the images.

    Returns:
        `low` and `high` of the interval, None with a `reason` unless both classes are present; `level` and `method`.
    """
    labels, scores, reason = _checked(labels, scores)
    described = {"level": _LEVEL, "method": f"stratified percentile bootstrap, {RESAMPLES} resamples"}
    if reason:
        return {"low": None, "high": None, **described, "reason": reason}
    values, ranks = np.unique(scores, return_inverse=True)
    groups = [np.sort(ranks[of_class]) for of_class in (~labels, labels)]
    rows, areas = max(1, _BOOTSTRAP_CELLS // labels.size), []
    for start in range(0, RESAMPLES, rows):
        normal, anomalous = (_resampled(group, values.size, min(rows, RESAMPLES - start), rng) for group in groups)
        below = np.cumsum(normal, axis=1) - normal / 2  # equal scores count one half
        areas.append((anomalous * below).sum(axis=1) / (normal.sum(axis=1) * anomalous.sum(axis=1)))
    low, high = np.quantile(np.concatenate(areas), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return {"low": float(low), "high": float(high), **described}


def _resampled(ranks: NDArray, num_ranks: int, rows: int, rng: np.random.Generator) -> NDArray:
    """Draw as many ranks with replacement, `rows` times: counts by rank, `(rows, num_ranks)`."""
    cells = ranks[rng.integers(ranks.size, size=(rows, ranks.size))] + num_ranks * np.arange(rows)[:, None]
    return np.bincount(cells.ravel(), minlength=rows * num_ranks).reshape(rows, num_ranks)


def auroc_with_interval(labels: ArrayLike, scores: ArrayLike, seed: int = 0) -> Metric:
    """`image_auroc` with the interval of `bootstrap_auroc` as `interval_95`; `seed` is that of the bootstrap."""
    return image_auroc(labels, scores) | {"interval_95": bootstrap_auroc(labels, scores, np.random.default_rng(seed))}


def summarize_image_metrics(
    labels: ArrayLike, scores: ArrayLike, kinds: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Any]:
    """All image metrics; undefined unless both classes are present.

    Args:
        labels, scores: as for `image_auroc`.
        kinds: `(N,)` names of the kinds of defect, ignored for normal images; without them `auroc_by_kind` is left out.
        seed: of the bootstrap.

    Returns:
        `images` (counts), `image_auroc` (with `interval_95`), `average_precision` (step-wise area under precision over
        recall, anomalous positive), `f1_max` (largest F1 over all thresholds with its `threshold`, the highest of
        equally good ones, and `confusion`; chosen on the same images, so optimistic), `auroc_by_kind` (image AUROC of
        each kind against all normal images, sorted by name).

    Raises:
        UserError: as `image_auroc`, or another number of kinds than of images.
    """
    from sklearn.metrics import average_precision_score

    labels, scores, reason = _checked(labels, scores)
    anomalous = int(labels.sum())
    summary = {
        "images": {"normal": labels.size - anomalous, "anomalous": anomalous},
        "image_auroc": auroc_with_interval(labels, scores, seed),
        "average_precision": undefined(reason) if reason else {"value": float(average_precision_score(labels, scores))},
        "f1_max": undefined(reason) if reason else _f1_max(labels, scores),
    }
    if kinds is None:
        return summary
    if len(kinds) != labels.size:
        raise UserError(f"kinds: {len(kinds)} names for {labels.size} images; give one for each image")
    names = np.array([str(kind) for kind in kinds], dtype=object)
    chosen = {kind: ~labels | (names == kind) for kind in sorted(set(names[labels]))}
    return summary | {"auroc_by_kind": {kind: image_auroc(labels[of], scores[of]) for kind, of in chosen.items()}}


def _f1_max(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> Metric:
    values, ranks = np.unique(scores, return_inverse=True)
    normal, anomalous = (np.bincount(ranks[of_class], minlength=values.size) for of_class in (~labels, labels))
    best, index = best_f1(normal, anomalous)
    counts = confusion(labels, scores >= values[index])
    counts["true_negatives"] = counts.pop("true_negatives")  # last, as in the metrics.json of earlier versions
    return {"value": best, "threshold": float(values[index]), "confusion": counts}


def confusion(labels: NDArray, rejected: NDArray[np.bool_]) -> dict[str, int]:
    """Count the right and wrong decisions on images `(N,)`; anomalous (label 1) and rejected (True) are positive."""
    anomalous = labels.astype(bool)
    return {
        "true_positives": int((anomalous & rejected).sum()),
        "false_positives": int((~anomalous & rejected).sum()),
        "true_negatives": int((~anomalous & ~rejected).sum()),
        "false_negatives": int((anomalous & ~rejected).sum()),
    }


def metric_text(metric: Metric) -> str:
    """One metric in words."""
    if metric["value"] is None:
        return f"not defined, {metric['reason']}"
    interval = metric.get("interval_95")
    notes = [f"95 % interval {interval['low']:.3f} to {interval['high']:.3f}"] if interval else []
    notes += [f"at threshold {score_text(metric['threshold'])}"] if "threshold" in metric else []
    notes += [f"false positive rate up to {metric['max_fpr']:g}"] if "max_fpr" in metric else []
    return f"{metric['value']:.3f}" + (f" ({', '.join(notes)})" if notes else "")


def undefined(reason: str) -> Metric:
    """A metric that the data do not define."""
    return {"value": None, "reason": reason}


def missing_class(normal: int, anomalous: int, unit: str) -> str | None:
    """Why a metric that needs both classes is undefined, if it is."""
    missing = [name for name, count in (("normal", normal), ("anomalous", anomalous)) if count == 0]
    return f"no {' and no '.join(missing)} {unit}" if missing else None


def at_or_above(counts: NDArray) -> NDArray:
    """Sum of the counts from each score on upwards; scores ascend."""
    return np.cumsum(counts[::-1])[::-1]


def best_f1(normal: NDArray, anomalous: NDArray) -> tuple[float, int]:
    """Largest F1 and the highest index of a score that gives it, from counts by ascending score."""
    hits, alarms = at_or_above(anomalous), at_or_above(anomalous) + at_or_above(normal)
    f1 = 2 * hits / (alarms + anomalous.sum())
    index = f1.size - 1 - int(np.argmax(f1[::-1]))
    return float(f1[index]), index


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64], str | None]:
    """Labels as bool and scores as float64, both `(N,)`, or a UserError; and what `missing_class` says."""
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise UserError(f"labels: shape {labels.shape}, scores have {scores.shape}; give one label for each score")
    if labels.dtype.kind not in "biuf" or not np.isin(labels, (0, 1)).all():
        raise UserError("labels: only 0 (normal) and 1 (anomalous) are allowed")
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise UserError(f"scores: {bad.size} of {scores.size} are not finite, first at index {bad[0]}; leave them out")
    labels = labels.astype(bool)
    return labels, scores, missing_class(int((~labels).sum()), int(labels.sum()), "images")
