"""The detector by the conventions of scikit-learn and PyOD, for their tools: pipelines, `clone`, joblib, scorers.

The two contradict each other in directions. This project says "higher = more anomalous" everywhere, as PyOD does, so
PyOD's directions are taken, and `score_samples`, `offset_` and labels -1 and 1 of scikit-learn are left out.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, make_dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from hta.config import Config, ModelConfig, RuntimeConfig, ScoringConfig, TrainingConfig
from hta.errors import UserError, parameters_named
from hta.evaluation.calibration import NUM_VIEWS
from hta.evaluation.thresholds import CALIBRATED, GOOD_IMAGES, check_enough, decide
from hta.images import to_array
from hta.model import ImageLike, as_list, load
from hta.runs import train

_FORMS = "give a stack (N, H, W) or (N, H, W, C), or a list with an image or a path for each entry"
_PARTS = (ModelConfig, TrainingConfig, RuntimeConfig, ScoringConfig)
# Gives the detector an `__init__` that names every setting with its default, in which scikit-learn looks them up.
_Settings: Any = make_dataclass(
    "HTADetector", [(f.name, f.type, f.default) for part in _PARTS for f in fields(part)],
    kw_only=True, eq=False, repr=False,
)  # fmt: skip


class InputError(UserError, ValueError):
    """A `UserError` that is also a ValueError, which scikit-learn's tools expect."""


@contextmanager
def _value_errors() -> Iterator[None]:
    """Raise the UserErrors of a block, or of a decorated function, as ValueErrors."""
    try:
        with parameters_named():
            yield
    except UserError as error:
        raise InputError(str(error)) from error


class HTADetector(BaseEstimator, _Settings):
    """Learns from one or a few normal images, scores images and decides on them.

    Its parameters, by keyword only, are the settings of `hta.config`: those of `ModelConfig`, `TrainingConfig` (with
    `manualSeed`, by default 0, so that `fit` is repeatable), `RuntimeConfig` and `ScoringConfig` (with `target_fpr`,
    the share of normal images that may be rejected). As scikit-learn has it, their values are checked by `fit`, and
    changes of them take effect with the next `fit`.

    X is a uint8, uint16, bool or float (in [0, 1]) stack `(N, H, W)` or `(N, H, W, C)`, C 1, 3 or 4, or a list of N
    images in any form that `hta.Model.score` takes, paths among them. Wrong input raises an `InputError`, which is a
    ValueError, and a detector that is not fitted scikit-learn's NotFittedError.

    Attributes:
        model_: the trained `hta.Model`, for maps, or to save it.
        threshold_: an image with a higher value of `decision_function` is anomalous.
        decision_scores_: `(N,)` float64, that of the training images; higher = more anomalous.
        labels_: `(N,)` int, the predictions for the training images; 1 = anomalous, 0 = normal.
    """

    @_value_errors()
    def fit(self, X: Any, y: Any = None, *, good_images: ImageLike | Iterable[ImageLike] | None = None):
        """Train on X, which are normal images of one size, and make the threshold.

        Args:
            X: the training images.
            y: ignored.
            good_images: other normal images, see `hta.Model.score`, from which the threshold is made instead of views
                of the training images.

        Returns:
            The detector.

        Raises:
            InputError: an unsuitable image or setting.
            hta.errors.RunError: a loss is not finite.
        """
        images, scoring = [_reread(image) for image in _images_of(X)], self._part(ScoringConfig)
        if scoring.aggregate == "minmax":
            raise UserError("aggregate minmax: makes scores depend on the other images; give mean or calibrated")
        config = Config(self._part(ModelConfig), self._part(TrainingConfig), self._part(RuntimeConfig))
        others = None if good_images is None else [to_array(image) for image in as_list(good_images)]
        if others is not None:
            check_enough(len(others), scoring.target_fpr, GOOD_IMAGES)
        elif scoring.threshold is None:
            check_enough(NUM_VIEWS, scoring.target_fpr, CALIBRATED)
        model = train(images, config)
        good = None if others is None else model.score_good(others, scoring, with_maps=False)
        self._limits, self._runtime = model.threshold(scoring, with_maps=False, good=good), config.runtime
        self.model_, self._scoring, self.threshold_ = model, scoring, self._limits.limit
        self.decision_scores_, self.labels_ = self._judge(images)
        return self

    @_value_errors()
    def decision_function(self, X: Any) -> np.ndarray:
        """What decides on each image of X, `(N,)` float64: higher = more anomalous.

        It is the anomaly score, or the maximum of the anomaly map where that decides: for defects by the paper's score.
        """
        return self._judge(X)[0]

    @_value_errors()
    def predict(self, X: Any) -> np.ndarray:
        """1 for each image of X that is anomalous, 0 for a normal one, `(N,)` int.

        Anomalous are those with a `decision_function` above `threshold_`, and unless `no_frame_check` those that are
        blank, saturated, blurred or of something else.
        """
        return self._judge(X)[1]

    def _part(self, kind: type) -> Any:
        """The settings of one kind, checked."""
        return kind(**{f.name: getattr(self, f.name) for f in fields(kind)})

    def _judge(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """The values of `decision_function` and `predict`."""
        check_is_fitted(self)
        votes, faults = self.model_.votes(_images_of(X), self._scoring, with_maps=False)
        scores = self.model_.anomaly_scores(votes, self._scoring, self._limits)
        rejected = decide(scores, self._limits, votes.peaks, faults)
        values = votes.peaks if self._limits.decided_by == "map" else scores
        return np.asarray(values), np.asarray(rejected, dtype=int)

    def __getstate__(self) -> dict[str, Any]:
        """The settings and results, and of the model the content of its files: no object of its insides."""
        state = dict(super().__getstate__())
        if "model_" in state:
            with TemporaryDirectory() as parent:
                state["model_"].save(folder := Path(parent, "model"), scoring=self._scoring)
                state["model_"] = {path.name: path.read_bytes() for path in folder.iterdir()}
        return state

    @_value_errors()
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "model_" in state:
            with TemporaryDirectory() as folder:
                for name, content in state["model_"].items():
                    Path(folder, name).write_bytes(content)
                self.model_ = load(folder, runtime=self._runtime)
                self.model_.calibration(self._scoring)  # is read before the folder goes
            self.model_.folder = None

    def __sklearn_tags__(self):
        """What scikit-learn's tools may expect; of an outlier detector, that `decision_function` ranks."""
        tags = super().__sklearn_tags__()
        tags.estimator_type = "outlier_detector"
        tags.input_tags.two_d_array, tags.input_tags.three_d_array, tags.input_tags.string = False, True, True
        return tags


def _images_of(X: Any) -> list[ImageLike]:
    """The images of X, one for each of its entries; a UserError if that is not so."""
    try:
        if isinstance(X, str | bytes):
            raise TypeError
        count = len(X)
    except TypeError:
        raise UserError(f"X: one {type(X).__name__} is not accepted; {_FORMS}") from None
    images = as_list(X)
    if len(images) != count:
        raise UserError(f"X: has {count} entries, but {len(images)} images; {_FORMS}")
    return images


def _reread(image: ImageLike) -> ImageLike:
    """An image that can be read more than once: the pixels of an open file."""
    return to_array(image) if hasattr(image, "read") else image
