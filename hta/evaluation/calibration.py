"""What a model says about views of its training images (`hta.evaluation.views`), kept beside it in calibration.json.

Thresholds are made of these statistics, for any false-positive rate and aggregate. They hold for one fraction of the
patches, that of the model's task, and for the precision that the model was trained in; for others they are made anew
from the training images, which the model keeps. Statistics of another model are refused.
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hta.errors import UserError
from hta.evaluation.scorer import Scorer
from hta.evaluation.thresholds import NormalVotes
from hta.evaluation.views import ViewRule
from hta.files import write_atomically
from hta.models.storage import IMAGES_FILE, RunFolder
from hta.settings import require_keys

CALIBRATION_FILE = "calibration.json"
FORMAT_VERSION = 3

NUM_VIEWS = 200
VIEWS_SEED = 0
_BATCH = 16
_PRECISIONS = ("float32", "bfloat16")
_REMEDY = "remove the file, it is made again from the model"


@dataclass(frozen=True)
class Calibration(NormalVotes):
    """What a model says about V views of its training images.

    Attributes:
        shares: `(V, S)` vote shares, higher = more normal.
        peaks: `(V,)` maxima of the anomaly maps at the working size.
        fraction: part of the patches that voted, in (0, 1].
        rule: how the views were drawn.
        precision: of the model, "float32" or "bfloat16".
        seed: of the views.
    """

    peaks: np.ndarray
    fraction: float
    rule: ViewRule
    precision: str
    seed: int

    def fits(self, fraction: float, rule: ViewRule, precision: str) -> bool:
        """Whether these are the statistics for a fraction of the patches, a rule for views and a precision."""
        return (self.fraction, self.rule, self.precision) == (fraction, rule, precision)

    def to_json(self, model: str) -> str:
        """The content of calibration.json.

        Args:
            model: fingerprint of the model.
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
            model: fingerprint of the model that it must belong to.
            num_scales: S of the model.

        Raises:
            UserError: not JSON, another format version, of another model, or not such statistics.
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
        if not known or not _are_statistics(num_scales, *arrays):
            raise UserError(f"{source}: not the statistics of a model of {num_scales} scales; {_REMEDY}")
        fraction, strength, seed, shares, peaks = arrays
        rule = ViewRule(float(strength), data["mirrored"])
        shares, peaks = shares.astype(np.float64), peaks.astype(np.float64)
        return cls(shares, peaks, float(fraction), rule, data["precision"], int(seed))


def _are_statistics(
    num_scales: int, fraction: np.ndarray, strength: np.ndarray, seed: np.ndarray, shares: np.ndarray, peaks: np.ndarray
) -> bool:
    """Whether these arrays, as read from a file, can be the fields of a `Calibration`."""
    arrays = (fraction, strength, seed, shares, peaks)
    if not all(array.dtype.kind in "if" and np.isfinite(array).all() for array in arrays):
        return False
    shapes = [array.shape for array in arrays]
    if shapes != [(), (), (), (peaks.size, num_scales), (peaks.size,)] or peaks.size < 2 or seed.dtype.kind != "i":
        return False
    in_range = all(array.min() >= 0 and array.max() <= 1 for array in (fraction, shares, peaks))
    return bool(in_range and fraction > 0 and strength >= 0)


def calibrate(
    scorer: Scorer,
    images: Tensor,
    fraction: float,
    rule: ViewRule,
    *,
    seed: int = VIEWS_SEED,
    num_views: int = NUM_VIEWS,
) -> Calibration:
    """Let a model score views of its training images.

    Args:
        scorer: of the model.
        images: `(N, 3, h, w)` training images in [-1, 1].
        fraction: part of the patches that vote, 0 < fraction <= 1.
        rule: how the views are drawn, from `hta.evaluation.views.view_rule`.
        seed: of the views.
        num_views: how many.
    """
    views = rule.draw(images, num_views, seed, scorer.recognition)
    shares, maps = zip(*(scorer.score(batch, fraction) for batch in views.split(_BATCH)), strict=True)
    peaks = np.concatenate([batch.max(axis=(1, 2)) for batch in maps]).astype(np.float64)
    return Calibration(np.concatenate(shares), peaks, fraction, rule, scorer.precision, seed)


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
    """Identifies a model by its files: statistics that were copied beside another model must not be used there."""
    digest = hashlib.sha256()
    for path in (folder.path / IMAGES_FILE, *map(folder.scale_file, range(num_scales))):
        digest.update(path.read_bytes())
    return digest.hexdigest()
