"""A model's votes on views of its training images (`hta.models.views`), kept beside it in calibration.json.

Thresholds are made of these statistics, for any false-positive rate and aggregate. They hold for one fraction of the
patches, that of the model's task, and for the precision that the model was trained in; for others they are made anew
from the training images, which the model keeps. Statistics of another model are refused.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from hta.errors import UserError
from hta.evaluation.combined import squared_errors
from hta.evaluation.nearest import NearestMaps
from hta.evaluation.scorer import Scorer
from hta.evaluation.thresholds import NormalVotes
from hta.files import write_atomically
from hta.models.storage import IMAGES_FILE, RunFolder
from hta.models.views import ViewRule
from hta.settings import read_json, require_keys

CALIBRATION_FILE = "calibration.json"
OWN_FILES = r"calibration\.json"
"""Pattern of the files in a run folder that this module writes."""
FORMAT_VERSION = 3

NUM_VIEWS = 200
VIEWS_SEED = 0
_BATCH = 16
_NUMBERS = ("fraction", "strength", "seed", "shares", "peaks")


@dataclass(frozen=True)
class Calibration(NormalVotes):
    """A model's votes on views of its training images."""

    peaks: np.ndarray
    fraction: float  # of the patches that voted, in (0, 1]
    rule: ViewRule
    precision: str  # of the model, "float32" or "bfloat16"
    seed: int  # of the views
    score: str = "paper"  # what the maps are made of

    def fits(self, fraction: float, rule: ViewRule, precision: str, score: str = "paper") -> bool:
        """Whether these are the statistics for a fraction of the patches, a rule for views, a precision and a score."""
        return (self.fraction, self.rule, self.precision, self.score) == (fraction, rule, precision, score)


def calibrate(
    scorer: Scorer,
    images: Tensor,
    fraction: float,
    rule: ViewRule,
    seed: int = VIEWS_SEED,
    num_views: int = NUM_VIEWS,
    nearest: NearestMaps | None = None,
) -> Calibration:
    """Let a model score views of its `(N, 3, h, w)` training images in [-1, 1]; `fraction` of the patches vote.

    The maps are those of the votes, or of `nearest`.
    """
    views = rule.draw(images, num_views, seed, scorer.recognition)
    make_maps = None if nearest is None else nearest.maps
    shares, maps = zip(*(scorer.score(batch, fraction, make_maps) for batch in views.split(_BATCH)), strict=True)
    peaks = np.concatenate([batch.max(axis=(1, 2)) for batch in maps]).astype(np.float64)
    score, errors = "nearest" if nearest else "paper", squared_errors(views, images)
    return Calibration(np.concatenate(shares), peaks, fraction, rule, scorer.precision, seed, score, errors=errors)


def save_calibration(folder: RunFolder, calibration: Calibration) -> None:
    """Keep the statistics beside the model, once all its scales are saved.

    Raises:
        RunError: the file cannot be written.
    """
    data = {
        "format_version": FORMAT_VERSION,
        "model": _fingerprint(folder, calibration.shares.shape[1]),
        "fraction": calibration.fraction,
        **asdict(calibration.rule),
        "precision": calibration.precision,
        "seed": calibration.seed,
        "score": calibration.score,
        "shares": calibration.shares.tolist(),
        "peaks": calibration.peaks.tolist(),
        "errors": None if calibration.errors is None else calibration.errors.tolist(),
    }
    write_atomically(folder.path / CALIBRATION_FILE, (json.dumps(data) + "\n").encode())


def kept_calibration(folder: RunFolder, num_scales: int) -> Calibration | None:
    """The statistics that were kept beside a model of `num_scales` scales; None if there are none.

    Raises:
        UserError: the file is damaged, of another format version, or belongs to another model.
    """
    path = folder.path / CALIBRATION_FILE
    if not path.exists():
        return None
    try:
        return _parse(path, _fingerprint(folder, num_scales), num_scales)
    except UserError as error:
        raise UserError(f"{error}; remove the file, it is made again from the model") from error


def _parse(path: Path, model: str, num_scales: int) -> Calibration:
    """Read the statistics of the model with the fingerprint `model`, or raise a UserError."""
    data = {"score": "paper", "errors": None} | read_json(path, FORMAT_VERSION)  # older ones lack them
    require_keys(data, {"model", "mirrored", "precision", "score", "errors", *_NUMBERS}, str(path))
    mirrored, precision = data["mirrored"], data["precision"]
    if data["model"] != model:
        raise UserError(f"{path}: belongs to another model")
    try:
        arrays = [np.asarray(data[name]) for name in _NUMBERS]
        errors = None if data["errors"] is None else np.asarray(data["errors"], dtype=np.float64)
    except (TypeError, ValueError):  # rows of several lengths, or words
        arrays, errors = [], None
    words = precision in ("float32", "bfloat16") and data["score"] in ("paper", "nearest")
    known = words and isinstance(mirrored, bool)
    if not (known and _are_statistics(arrays, num_scales) and _are_errors(errors, len(arrays[-1]))):
        raise UserError(f"{path}: not the statistics of a model of {num_scales} scales")
    fraction, strength, seed, shares, peaks = arrays
    shares, peaks = shares.astype(np.float64), peaks.astype(np.float64)
    rule = ViewRule(float(strength), mirrored)
    return Calibration(shares, peaks, float(fraction), rule, precision, int(seed), data["score"], errors=errors)


def _are_errors(errors: np.ndarray | None, count: int) -> bool:
    """Whether an array, as read from a file, are the squared errors of `count` views; None if there are none."""
    if errors is None:
        return True
    return errors.shape == (count,) and bool((errors >= 0).all() and (errors <= 4).all())


def _are_statistics(arrays: list[np.ndarray], num_scales: int) -> bool:
    """Whether arrays, as read from a file, are the fraction, strength, seed, shares and peaks of a `Calibration`."""
    if not arrays or not all(array.dtype.kind in "if" and np.isfinite(array).all() for array in arrays):
        return False
    fraction, strength, seed, shares, peaks = arrays
    shapes = [array.shape for array in arrays]
    if shapes != [(), (), (), (peaks.size, num_scales), (peaks.size,)] or peaks.size < 2 or seed.dtype.kind != "i":
        return False
    in_range = all(array.min() >= 0 and array.max() <= 1 for array in (fraction, shares, peaks))
    return bool(in_range and fraction > 0 and strength >= 0)


def _fingerprint(folder: RunFolder, num_scales: int) -> str:
    """Identifies a model by its files: statistics that were copied beside another model must not be used there."""
    digest = hashlib.sha256()
    for path in (folder.path / IMAGES_FILE, *map(folder.scale_file, range(num_scales))):
        digest.update(path.read_bytes())
    return digest.hexdigest()
