"""A threshold from normal images only: what the model says about views of its training images (`hta.evaluation.views`).

The statistics are kept beside the model, in calibration.json, for the fraction of the patches that the task takes and
the precision that the model was trained in. A threshold of another false-positive rate or aggregate is read off the
same statistics; for another fraction or precision they are made again from the training images, which the model keeps.
Those of another model are refused.
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import torch

from hta.errors import UserError
from hta.evaluation.scorer import Evaluator
from hta.evaluation.scores import anomaly_scores, calibrated_scores
from hta.evaluation.thresholds import NO_MINMAX, Threshold
from hta.evaluation.views import ViewRule
from hta.files import write_atomically
from hta.models.storage import IMAGES_FILE, RunFolder
from hta.settings import require_keys

CALIBRATION_FILE = "calibration.json"
FORMAT_VERSION = 3

CALIBRATED = "calibrated"
"""What `Threshold.source` says of a threshold that was made of views."""

NUM_VIEWS = 200
VIEWS_SEED = 0
_BATCH = 16
_PRECISIONS = ("float32", "bfloat16")
_REMEDY = "remove the file, it is made again from the model"


@dataclass(frozen=True)
class Calibration:
    """What a model says about V views of its training images.

    Attributes:
        fraction: part of the patches that voted, in (0, 1].
        rule: how the views were drawn.
        precision: in which the model said it, "float32" or "bfloat16".
        seed: of the views.
        shares: `(V, S)` vote shares, higher = more normal.
        peaks: `(V,)` maxima of the anomaly maps at the working size.
    """

    fraction: float
    rule: ViewRule
    precision: str
    seed: int
    shares: np.ndarray
    peaks: np.ndarray

    def fits(self, fraction: float, rule: ViewRule, precision: str) -> bool:
        """Whether these are the statistics for a fraction of the patches, a rule for views and a precision."""
        return (self.fraction, self.rule, self.precision) == (fraction, rule, precision)

    def scores(self, shares: np.ndarray, aggregate: str) -> np.ndarray:
        """Anomaly scores `(N,)` of `(N, S)` vote shares, higher = more anomalous; "calibrated" uses the views' own."""
        tensor = torch.from_numpy(np.asarray(shares))
        if aggregate != "calibrated":
            return anomaly_scores(tensor, aggregate).numpy()
        views = torch.from_numpy(self.shares)
        return calibrated_scores(tensor, views.mean(dim=0), views.std(dim=0)).numpy()

    def threshold(self, aggregate: str, target_fpr: float) -> Threshold:
        """The thresholds that reject the share `target_fpr` of the views: by their scores, and by their maps' peaks.

        Args:
            aggregate: of the scores that it is for; "minmax" depends on the test set, so it has none.
            target_fpr: in (0, 1).
        """
        pixel_threshold = float(np.quantile(self.peaks, 1 - target_fpr))
        if aggregate == "minmax":
            return Threshold(None, NO_MINMAX, pixel_threshold=pixel_threshold)
        value = float(np.quantile(self.scores(self.shares, aggregate), 1 - target_fpr))
        return Threshold(value, None, CALIBRATED, target_fpr, pixel_threshold)

    def to_json(self, model: str) -> str:
        """The content of calibration.json.

        Args:
            model: fingerprint of the model that said it.
        """
        data = {
            "format_version": FORMAT_VERSION,
            "model": model,
            "fraction": self.fraction,
            "strength": self.rule.strength,
            "mirrored": self.rule.mirrored,
            "precision": self.precision,
            "seed": self.seed,
            "shares": self.shares.tolist(),
            "peaks": self.peaks.tolist(),
        }
        return json.dumps(data) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str, model: str, num_scales: int) -> "Calibration":
        """Read `to_json`'s form.

        Args:
            text: the JSON.
            source: the file's name, for errors.
            model: fingerprint of the model that it should be of.
            num_scales: S of the model.

        Raises:
            UserError: not JSON, another format version, of another model, or no such statistics.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{source}: not valid JSON ({error}); {_REMEDY}") from error
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(f"{source}: calibration format {version}, this version reads {FORMAT_VERSION}; {_REMEDY}")
        numbers = ("fraction", "strength", "seed", "shares", "peaks")
        try:
            require_keys(data, {"format_version", "model", "mirrored", "precision", *numbers}, source)
        except UserError as error:
            raise UserError(f"{error}; {_REMEDY}") from error
        if data["model"] != model:
            raise UserError(f"{source}: belongs to another model; {_REMEDY}")
        try:
            arrays = [np.asarray(data[name]) for name in numbers]
        except ValueError as error:  # rows of several lengths
            raise UserError(f"{source}: not the statistics of a model; {_REMEDY}") from error
        known = isinstance(data["mirrored"], bool) and data["precision"] in _PRECISIONS
        if not known or not _are_statistics(*arrays, num_scales):
            raise UserError(f"{source}: not the statistics of a model of {num_scales} scales; {_REMEDY}")
        fraction, strength, seed, shares, peaks = arrays
        rule = ViewRule(float(strength), data["mirrored"])
        shares, peaks = shares.astype(np.float64), peaks.astype(np.float64)
        return cls(float(fraction), rule, data["precision"], int(seed), shares, peaks)


def _are_statistics(
    fraction: np.ndarray, strength: np.ndarray, seed: np.ndarray, shares: np.ndarray, peaks: np.ndarray, num_scales: int
) -> bool:
    """Whether arrays that were read are what a `Calibration` holds."""
    arrays = (fraction, strength, seed, shares, peaks)
    if not all(array.dtype.kind in "if" and np.isfinite(array).all() for array in arrays):
        return False
    shapes = [array.shape for array in arrays]
    if shapes != [(), (), (), (peaks.size, num_scales), (peaks.size,)] or peaks.size < 2 or seed.dtype.kind != "i":
        return False
    in_range = all(array.min() >= 0 and array.max() <= 1 for array in (fraction, shares, peaks))
    return bool(in_range and fraction > 0 and strength >= 0)


def calibrate(
    evaluator: Evaluator, images: torch.Tensor, rule: ViewRule, *, seed: int = VIEWS_SEED, num_views: int = NUM_VIEWS
) -> Calibration:
    """Let a model score views of its training images.

    Args:
        evaluator: the model, ready to score with one fraction and with maps.
        images: `(N, 3, h, w)` training images in [-1, 1].
        rule: how the views are drawn, from `hta.evaluation.views.view_rule`.
        seed: of the views.
        num_views: how many.
    """
    views = rule.draw(images, num_views, seed, evaluator.recognition)
    batches = [evaluator.score(batch) for batch in views.split(_BATCH)]
    shares = np.concatenate([batch.shares[0] for batch in batches])
    peaks = np.concatenate([batch.maps.max(axis=(1, 2)) for batch in batches]).astype(np.float64)
    return Calibration(evaluator.fractions[0], rule, evaluator.precision, seed, shares, peaks)


def save_calibration(folder: RunFolder, calibration: Calibration) -> None:
    """Keep the statistics beside the model, once all its scales are saved.

    Raises:
        RunError: the file cannot be written.
    """
    model = _fingerprint(folder, calibration.shares.shape[1])
    write_atomically(folder.path / CALIBRATION_FILE, calibration.to_json(model).encode())


def kept_calibration(folder: RunFolder, num_scales: int) -> Calibration | None:
    """The statistics that were kept beside a model; None if there are none.

    Raises:
        UserError: the file is damaged or belongs to another model.
    """
    path = folder.path / CALIBRATION_FILE
    if not path.exists():
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_REMEDY}") from error
    return Calibration.from_json(text, str(path), _fingerprint(folder, num_scales), num_scales)


def _fingerprint(folder: RunFolder, num_scales: int) -> str:
    """What tells a model from every other: statistics that were copied beside another one must not decide there."""
    digest = hashlib.sha256()
    for path in (folder.path / IMAGES_FILE, *map(folder.scale_file, range(num_scales))):
        digest.update(path.read_bytes())
    return digest.hexdigest()
