"""Metrics of anomaly maps against masks; in all of them higher values of a map mean more anomalous.

They are accumulated image by image. A map is quantised to the 65,536 levels of a 16-bit image, and only histograms over
the levels are kept: 1.5 MB, whatever the number and the sizes of the images. For 16-bit maps the values are exact; for
others they are exact for the quantised map.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hta.errors import UserError
from hta.evaluation.metrics import Metric, at_or_above, best_f1, missing_class, undefined

LEVELS = 65536  # of a quantised map (16 bits)
MAX_FPR = 0.3  # the false positive rate up to which AUPRO integrates
_BOUNDS_TOLERANCE = 1e-5  # float32 rounding may exceed [0, 1] by this much, less than a level


def quantize(values: ArrayLike) -> NDArray[np.uint16]:
    """Round finite values in [0, 1] (clamped) to the nearest of 65,536 even levels, as a 16-bit image stores them."""
    scaled = np.asarray(values, dtype=np.float64) * (LEVELS - 1)
    return np.rint(np.clip(scaled, 0, LEVELS - 1)).astype(np.uint16)


class PixelMetrics:
    """Pixel AUROC, pixel F1-max and AUPRO of any number of anomaly maps, in flat memory.

    State: three histograms over the levels of `quantize`: normal pixels, anomalous pixels, and anomalous pixels each
    weighted by one over the size of its region. The mean over regions of the overlap at a threshold is a sum of the
    third, so no region has to be kept. `update` takes O(pixels), a metric O(levels).
    """

    def __init__(self):
        self.images = self.regions = 0
        self._normal, self._anomalous = np.zeros((2, LEVELS), dtype=np.int64)
        self._overlap = np.zeros(LEVELS, dtype=np.float64)

    def update(self, anomaly_map: ArrayLike, mask: ArrayLike | None) -> None:
        """Add one image.

        Args:
            anomaly_map: `(H, W)`, in [0, 1], higher = more anomalous. Sizes may differ between images.
            mask: `(H, W)`, non-zero = anomalous, or None for a normal image. Each 8-connected component is a region.

        Raises:
            UserError: the map is not two-dimensional, not finite or exceeds [0, 1], or the mask has another shape. The
                image is then not added.
        """
        from scipy import ndimage

        anomaly_map, name = np.asarray(anomaly_map), f"anomaly map {self.images}"
        if anomaly_map.ndim != 2 or anomaly_map.size == 0:
            raise UserError(f"{name}: shape {anomaly_map.shape}; give a map of (height, width)")
        smallest, largest = float(anomaly_map.min()), float(anomaly_map.max())
        if not (np.isfinite(smallest) and np.isfinite(largest)):
            raise UserError(f"{name}: holds NaN or infinite values; give finite ones")
        if smallest < -_BOUNDS_TOLERANCE or largest > 1 + _BOUNDS_TOLERANCE:
            raise UserError(f"{name}: values from {smallest:g} to {largest:g} leave [0, 1]; rescale it")
        levels = quantize(anomaly_map)
        anomalous = np.zeros(levels.shape, dtype=bool) if mask is None else np.asarray(mask) != 0
        if anomalous.shape != levels.shape:
            raise UserError(f"mask {self.images}: shape {anomalous.shape}, its map has {levels.shape}; make them equal")
        labels, count = ndimage.label(anomalous, structure=np.ones((3, 3)))
        inside, region = levels[anomalous], labels[anomalous] - 1
        weights = 1.0 / np.bincount(region, minlength=count)
        self._normal += np.bincount(levels[~anomalous], minlength=LEVELS)
        self._anomalous += np.bincount(inside, minlength=LEVELS)
        self._overlap += np.bincount(inside, weights=weights[region], minlength=LEVELS)
        self.images, self.regions = self.images + 1, self.regions + count

    def auroc(self) -> Metric:
        """Area under the ROC curve over all pixels of all images, in [0, 1], higher = better."""
        from sklearn.metrics import roc_auc_score

        levels, weights = np.arange(LEVELS), np.concatenate([self._normal, self._anomalous])
        area = roc_auc_score(np.repeat([0, 1], LEVELS), np.tile(levels, 2), sample_weight=weights)
        return {"value": float(area)}

    def f1_max(self) -> Metric:
        """Largest F1 over all thresholds on quantised maps, all pixels together, in (0, 1], higher = better."""
        best, index = best_f1(self._normal, self._anomalous)
        return {"value": best, "threshold": index / (LEVELS - 1)}

    def aupro(self, max_fpr: float = MAX_FPR) -> Metric:
        """Area under the per-region overlap curve up to a false positive rate, divided by that rate.

        At a threshold, the overlap is the share of a region's pixels that reach it, averaged over the regions of all
        images with equal weight; the false positive rate is over the normal pixels of all images. The curve starts at
        (0, 0) and is linear between thresholds, at the limit (above 0, at most 1) too. The value is in [0, 1], higher =
        better; a random map gives about max_fpr / 2.
        """
        rates = np.concatenate([[0.0], at_or_above(self._normal)[::-1] / self._normal.sum()])
        overlaps = np.concatenate([[0.0], at_or_above(self._overlap)[::-1]])
        overlaps /= overlaps[-1]  # the number of regions; written this way, the curve ends at exactly 1
        return {"value": min(1.0, _area_up_to(rates, overlaps, max_fpr) / max_fpr)}

    def compute(self) -> dict[str, Any]:
        """All pixel metrics; undefined unless there are normal and anomalous pixels. `pixels` holds the counts."""
        normal, anomalous = int(self._normal.sum()), int(self._anomalous.sum())
        reason = missing_class(normal, anomalous, "pixels")
        return {
            "pixels": {"images": self.images, "regions": self.regions, "normal": normal, "anomalous": anomalous},
            "pixel_auroc": undefined(reason) if reason else self.auroc(),
            "pixel_f1_max": undefined(reason) if reason else self.f1_max(),
            "aupro": (undefined(reason) if reason else self.aupro()) | {"max_fpr": MAX_FPR},
        }


def _area_up_to(x: NDArray, y: NDArray, limit: float) -> float:
    """Area below the line through the points (x ascending, from 0 to at least the limit), from 0 to the limit."""
    inside = int(np.searchsorted(x, limit, side="right"))
    xs, ys = x[:inside], y[:inside]
    if inside < x.size:
        share = (limit - x[inside - 1]) / (x[inside] - x[inside - 1])
        xs = np.append(xs, limit)
        ys = np.append(ys, y[inside - 1] + share * (y[inside] - y[inside - 1]))
    return float(np.sum(np.diff(xs) * (ys[1:] + ys[:-1])) / 2)
