"""Metrics of anomaly scores and of anomaly maps; in all of them higher scores mean more anomalous.

A metric that the data do not define (one class only, no anomalous pixel) has no value and a reason instead: it is
never 0 and never a crash. The decision rule of every threshold is `score >= threshold`, and equal scores are never
separated.

Pixel metrics are accumulated image by image. A map is quantised to the 65,536 levels of a 16-bit image, and only
histograms over the levels are kept: 1.5 MB, whatever the number and the sizes of the images. On maps of 16 bits the
values are exact; on others, exact for the quantised map.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, stats
from sklearn.metrics import average_precision_score, roc_auc_score

from hta.errors import UserError

LEVELS = 65536
"""Number of levels of a quantised map (16 bits)."""

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)
_BOUNDS_TOLERANCE = 1e-5  # of the range: what float32 rounding may add, less than a level
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
    reason = _one_class(labels.size - labels.sum(), labels.sum(), "images")
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
    reason = _one_class(labels.size - labels.sum(), labels.sum(), "images")
    if reason:
        return Metric(None, reason)
    values, normal, anomalous = _counts_by_score(labels, scores)
    best, index = _best_f1(normal, anomalous)
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
    reason = _one_class(labels.size - labels.sum(), labels.sum(), "images")
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


def rate_interval(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Clopper-Pearson interval of a rate: exact, its coverage is never below the level.

    Args:
        successes: Number of successes, 0 to `trials`.
        trials: Number of independent trials; with none the interval is undefined.
        level: Coverage, between 0 and 1.
    """
    _check_level(level)
    if not 0 <= successes <= trials:
        raise UserError(f"successes: {successes} of {trials} trials; give a number from 0 to the number of trials")
    if trials == 0:
        return Interval(None, None, level, "Clopper-Pearson", "no trials")
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(stats.beta.ppf(1 - tail, successes + 1, trials - successes))
    return Interval(low, high, level, "Clopper-Pearson")


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
        "image_auroc": _image_auroc(labels, scores).as_json()
        | {"interval_95": bootstrap_auroc(labels, scores, np.random.default_rng(seed)).as_json()},
        "average_precision": average_precision(labels, scores).as_json(),
        "f1_max": best.as_json(),
    }
    if best.threshold is not None:
        summary["f1_max"]["confusion"] = asdict(confusion_at(labels, scores, best.threshold))
    if kinds is not None:
        by_kind = auroc_by_kind(labels, scores, kinds)
        summary["auroc_by_kind"] = {kind: metric.as_json() for kind, metric in by_kind.items()}
    return summary


# --- pixels -----------------------------------------------------------------------------------------------------------


def quantize(values: ArrayLike, bounds: tuple[float, float] = (0.0, 1.0)) -> NDArray[np.uint16]:
    """Round values within the bounds to the nearest of 65,536 even levels, as a 16-bit image stores them.

    Args:
        values: Any shape, within the bounds (values beyond are clamped), finite.
        bounds: What level 0 and level 65,535 stand for.

    Returns:
        Levels, uint16, the shape of `values`.
    """
    low, high = bounds
    scaled = (np.asarray(values, dtype=np.float64) - low) * ((LEVELS - 1) / (high - low))
    return np.rint(np.clip(scaled, 0, LEVELS - 1)).astype(np.uint16)


class PixelMetrics:
    """Pixel AUROC, pixel F1-max and AUPRO of any number of anomaly maps, in flat memory.

    State: three histograms over the levels of `quantize`: normal pixels, anomalous pixels, and anomalous pixels each
    weighted by one over the size of its region. The mean over regions of the overlap at a threshold is a sum of the
    third, so no region has to be kept. `update` takes O(pixels), a metric O(levels).
    """

    def __init__(self, bounds: tuple[float, float] = (0.0, 1.0)):
        """Start without images.

        Args:
            bounds: Smallest and largest value that a map may hold.
        """
        low, high = bounds
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise UserError(f"bounds: ({low}, {high}) is no range; give two finite numbers, the smaller first")
        self.bounds = (float(low), float(high))
        self.images = 0
        self.regions = 0
        self._normal = np.zeros(LEVELS, dtype=np.int64)
        self._anomalous = np.zeros(LEVELS, dtype=np.int64)
        self._overlap = np.zeros(LEVELS, dtype=np.float64)

    def update(self, anomaly_map: ArrayLike, mask: ArrayLike | None) -> None:
        """Add one image.

        Args:
            anomaly_map: `(H, W)`, within the bounds, higher = more anomalous. Sizes may differ between images.
            mask: `(H, W)`, non-zero = anomalous, or None for a normal image. Each 8-connected component is a region.

        Raises:
            UserError: If the map is not two-dimensional, not finite or leaves the bounds, or the mask has another
                shape. The image is then not added.
        """
        levels = self._levels(np.asarray(anomaly_map))
        anomalous = np.zeros(levels.shape, dtype=bool) if mask is None else np.asarray(mask) != 0
        if anomalous.shape != levels.shape:
            raise UserError(f"mask {self.images}: shape {anomalous.shape}, its map has {levels.shape}; make them equal")
        self._normal += np.bincount(levels[~anomalous], minlength=LEVELS)
        if anomalous.any():
            self._add_regions(levels, anomalous)
        self.images += 1

    def auroc(self) -> Metric:
        """Area under the ROC curve over all pixels of all images, in [0, 1], higher = better."""
        reason = self._undefined()
        if reason:
            return Metric(None, reason)
        levels = np.arange(LEVELS)
        area = roc_auc_score(
            np.repeat([0, 1], LEVELS),
            np.concatenate([levels, levels]),
            sample_weight=np.concatenate([self._normal, self._anomalous]),
        )
        return Metric(float(area))

    def f1_max(self) -> Metric:
        """Largest F1 over all thresholds, pixels of all images together, in (0, 1], higher = better.

        The threshold is a level's value: it applies to the quantised map (`quantize`, or the stored 16-bit image).
        """
        reason = self._undefined()
        if reason:
            return Metric(None, reason)
        best, index = _best_f1(self._normal, self._anomalous)
        low, high = self.bounds
        return Metric(best, threshold=low + (high - low) * index / (LEVELS - 1))

    def aupro(self, max_fpr: float = 0.3) -> Metric:
        """Area under the per-region overlap curve up to a false positive rate, divided by that rate.

        At a threshold, the overlap is the share of a region's pixels that reach it, averaged over the regions of all
        images with equal weight; the false positive rate is over the normal pixels of all images. The curve starts at
        (0, 0) and is linear between thresholds, at the limit too.

        Args:
            max_fpr: The limit, above 0 and at most 1.

        Returns:
            A value in [0, 1], higher = better. A random map gives about max_fpr / 2.
        """
        if not 0 < max_fpr <= 1:
            raise UserError(f"max_fpr: {max_fpr} is out of range; give a rate above 0 and at most 1")
        reason = self._undefined()
        if reason:
            return Metric(None, reason)
        rates = np.concatenate([[0.0], _at_or_above(self._normal)[::-1] / self._normal.sum()])
        overlaps = np.concatenate([[0.0], _at_or_above(self._overlap)[::-1]])
        overlaps /= overlaps[-1]  # the number of regions; so written, the curve ends at exactly 1
        return Metric(min(1.0, _area_up_to(rates, overlaps, max_fpr) / max_fpr))

    def compute(self, max_fpr: float = 0.3) -> dict[str, Any]:
        """All pixel metrics as a dictionary that JSON can hold.

        Returns:
            `pixels` (images, regions, counts), `pixel_auroc`, `pixel_f1_max` (with `threshold`), `aupro` (with
            `max_fpr`). Each metric has `value`, null with a `reason` where undefined.
        """
        return {
            "pixels": {
                "images": self.images,
                "regions": self.regions,
                "normal": int(self._normal.sum()),
                "anomalous": int(self._anomalous.sum()),
            },
            "pixel_auroc": self.auroc().as_json(),
            "pixel_f1_max": self.f1_max().as_json(),
            "aupro": self.aupro(max_fpr).as_json() | {"max_fpr": max_fpr},
        }

    def _levels(self, anomaly_map: NDArray) -> NDArray[np.uint16]:
        """Check a map and quantise it."""
        name = f"anomaly map {self.images}"
        if anomaly_map.ndim != 2 or anomaly_map.size == 0:
            raise UserError(f"{name}: shape {anomaly_map.shape}; give a map of (height, width)")
        smallest, largest = float(anomaly_map.min()), float(anomaly_map.max())
        if not (np.isfinite(smallest) and np.isfinite(largest)):
            raise UserError(f"{name}: holds NaN or infinite values; give finite ones")
        low, high = self.bounds
        slack = _BOUNDS_TOLERANCE * (high - low)
        if smallest < low - slack or largest > high + slack:
            raise UserError(f"{name}: values from {smallest:g} to {largest:g} leave [{low:g}, {high:g}]; widen bounds")
        return quantize(anomaly_map, self.bounds)

    def _add_regions(self, levels: NDArray[np.uint16], anomalous: NDArray[np.bool_]) -> None:
        """Add the anomalous pixels of one image, plain and weighted by region."""
        labels, count = ndimage.label(anomalous, structure=_EIGHT_NEIGHBOURS)
        inside, region = levels[anomalous], labels[anomalous] - 1
        weights = 1.0 / np.bincount(region, minlength=count)
        self._anomalous += np.bincount(inside, minlength=LEVELS)
        self._overlap += np.bincount(inside, weights=weights[region], minlength=LEVELS)
        self.regions += count

    def _undefined(self) -> str | None:
        """Why no pixel metric is defined, if none is."""
        return _one_class(self._normal.sum(), self._anomalous.sum(), "pixels")


def pixel_auroc(
    masks: Sequence[ArrayLike | None], maps: Sequence[ArrayLike], bounds: tuple[float, float] = (0.0, 1.0)
) -> Metric:
    """`PixelMetrics.auroc` of masks and maps `(H, W)`, in pairs; sizes may differ between pairs."""
    return _accumulated(masks, maps, bounds).auroc()


def pixel_f1_max(
    masks: Sequence[ArrayLike | None], maps: Sequence[ArrayLike], bounds: tuple[float, float] = (0.0, 1.0)
) -> Metric:
    """`PixelMetrics.f1_max` of masks and maps `(H, W)`, in pairs; sizes may differ between pairs."""
    return _accumulated(masks, maps, bounds).f1_max()


def aupro(
    masks: Sequence[ArrayLike | None],
    maps: Sequence[ArrayLike],
    max_fpr: float = 0.3,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Metric:
    """`PixelMetrics.aupro` of masks and maps `(H, W)`, in pairs; sizes may differ between pairs."""
    return _accumulated(masks, maps, bounds).aupro(max_fpr)


def summarize_pixel_metrics(
    masks: Sequence[ArrayLike | None], maps: Sequence[ArrayLike], bounds: tuple[float, float] = (0.0, 1.0)
) -> dict[str, Any]:
    """`PixelMetrics.compute` of masks and maps `(H, W)`, in pairs; sizes may differ between pairs."""
    return _accumulated(masks, maps, bounds).compute()


# --- shared -----------------------------------------------------------------------------------------------------------


def _accumulated(masks: Sequence, maps: Sequence, bounds: tuple[float, float]) -> PixelMetrics:
    if len(masks) != len(maps):
        raise UserError(f"masks: {len(masks)} for {len(maps)} maps; give one for each map, None for a normal image")
    metrics = PixelMetrics(bounds)
    for mask, anomaly_map in zip(masks, maps, strict=True):
        metrics.update(anomaly_map, mask)
    return metrics


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


def _one_class(normal: int, anomalous: int, unit: str) -> str | None:
    """Why a metric that needs both classes is undefined, if it is."""
    missing = [name for name, count in (("normal", normal), ("anomalous", anomalous)) if count == 0]
    return f"no {' and no '.join(missing)} {unit}" if missing else None


def _image_auroc(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> Metric:
    reason = _one_class(labels.size - labels.sum(), labels.sum(), "images")
    return Metric(None, reason) if reason else Metric(float(roc_auc_score(labels, scores)))


def _counts_by_score(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> tuple[NDArray, NDArray, NDArray]:
    """The K distinct scores, ascending, and how many normal and anomalous images have each."""
    values, index = np.unique(scores, return_inverse=True)
    normal = np.bincount(index[~labels], minlength=values.size)
    return values, normal, np.bincount(index[labels], minlength=values.size)


def _at_or_above(counts: NDArray) -> NDArray:
    """Sum of the counts from each score on upwards; scores ascend."""
    return np.cumsum(counts[::-1])[::-1]


def _best_f1(normal: NDArray, anomalous: NDArray) -> tuple[float, int]:
    """Largest F1 and the highest index of a score that gives it, from counts by ascending score."""
    hits, alarms = _at_or_above(anomalous), _at_or_above(anomalous) + _at_or_above(normal)
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


def _area_up_to(x: NDArray, y: NDArray, limit: float) -> float:
    """Area below the line through the points (x ascending, from 0 to at least the limit), from 0 to the limit."""
    inside = int(np.searchsorted(x, limit, side="right"))
    xs, ys = x[:inside], y[:inside]
    if inside < x.size:
        share = (limit - x[inside - 1]) / (x[inside] - x[inside - 1])
        xs = np.append(xs, limit)
        ys = np.append(ys, y[inside - 1] + share * (y[inside] - y[inside - 1]))
    return float(np.sum(np.diff(xs) * (ys[1:] + ys[:-1])) / 2)
