"""A trained model in use: scores, decisions and maps of images."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from hta.config import RuntimeConfig, ScoringConfig
from hta.errors import UserError
from hta.evaluation.calibration import Calibration, calibrate, kept_calibration, save_calibration
from hta.evaluation.scorer import ImageVotes, Scorer
from hta.evaluation.scores import anomaly_scores, check_aggregate, default_fraction
from hta.evaluation.thresholds import (
    CALIBRATED,
    GOOD_IMAGES,
    NormalVotes,
    Threshold,
    check_enough,
    decide,
    make_threshold,
)
from hta.evaluation.views import view_rule
from hta.image_files import IMAGE_SUFFIXES, to_array
from hta.images import resize, to_tensor
from hta.models.pyramid import Pyramid
from hta.models.storage import IMAGES_FILE, RunFolder, RunRecord
from hta.runtime import Runtime, set_up

logger = logging.getLogger(__name__)

MODELS_DIR = Path("TrainedModels")

_ASPECT_TOLERANCE = 0.02

ImageLike = str | Path | Image.Image | np.ndarray


class Scores(NamedTuple):
    """The outcome of scoring N images.

    Attributes:
        anomaly_scores: `(N,)` float64, higher = more anomalous.
        decisions: `(N,)` bool, True = anomalous; None if there is no threshold: "minmax" without one of your own,
            unless maps decide on defects.
        anomaly_maps: one `(H, W)` float32 array in [0, 1] per image, at its own size, higher = more anomalous; None if
            not requested.
    """

    anomaly_scores: np.ndarray
    decisions: np.ndarray | None
    anomaly_maps: list[np.ndarray] | None


@dataclass
class Model:
    """A trained pyramid with its record.

    Attributes:
        record: settings and training images' names.
        pyramid: the frozen networks.
        runtime: device and precision.
        training_images: `(N, 3, h, w)` in [-1, 1], at the working size.
        folder: the run folder; None for a model that was trained in memory.
        task: "defect" or "class": chooses the fraction of the patches, the views and what decides; by default the task
            that the model was trained for.
    """

    record: RunRecord
    pyramid: Pyramid
    runtime: Runtime
    training_images: Tensor
    folder: RunFolder | None = None
    task: str = ""
    _calibration: Calibration | None = field(default=None, init=False, repr=False, compare=False)
    _warned_of_aspect: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self):
        self.task = self.task or self.record.config.model.task

    @cached_property
    def scorer(self) -> Scorer:
        """The model ready to score; its networks are folded once."""
        return Scorer(self.pyramid)

    @property
    def saved_folder(self) -> RunFolder:
        """The run folder.

        Raises:
            UserError: the model was trained in memory and has none.
        """
        if self.folder is None:
            raise UserError("the model was trained in memory and has no folder; train it with folder=PATH")
        return self.folder

    def fraction(self, scoring: ScoringConfig) -> float:
        """The fraction of the patches that vote: the one given, else the paper's for the task."""
        own = default_fraction(self.task, self.record.num_images)
        return own if scoring.fraction_defect is None else scoring.fraction_defect

    def calibration(self, scoring: ScoringConfig | None = None) -> Calibration:
        """The model's votes on views of its training images: kept beside it, or made now; the last one is cached.

        The statistics beside the model are only used for their own fraction, task and precision.

        Args:
            scoring: the fraction of the patches that vote.

        Raises:
            UserError: the file beside the model is damaged, or belongs to another model.
        """
        fraction, precision = self.fraction(scoring or ScoringConfig()), self.scorer.precision
        rule = view_rule(self.task, self.record.config.model.num_transforms)
        if self._calibration is None or not self._calibration.fits(fraction, rule, precision):
            kept = None if self.folder is None else kept_calibration(self.folder, self.pyramid.plan.num_scales)
            if kept is not None and not kept.fits(fraction, rule, precision):
                text = "calibrating anew for fraction %g, this task and %s: the kept statistics are for others"
                logger.info(text, fraction, precision)
                kept = None
            self._calibration = kept or calibrate(self.scorer, self.training_images, fraction, rule)
        return self._calibration

    def keep_calibration(self) -> None:
        """Calibrate with the settings of the model's task, and keep the statistics in its folder.

        Raises:
            UserError: the model has no folder.
            RunError: the file cannot be written.
        """
        save_calibration(self.saved_folder, self.calibration())

    def was_trained_on(self, image: np.ndarray, tolerance: float = 1e-3) -> bool:
        """Whether an image equals one of the training images at the working size.

        Args:
            image: `(H, W, 3)` float32 in [0, 1].
            tolerance: largest difference of a pixel, of [-1, 1]. A photograph of the same thing differs by more.
        """
        # By the same two steps as a training image.
        resized = resize(resize(to_tensor([image]), self.record.image_size), self.pyramid.plan.working_size)
        return bool(((self.training_images.cpu() - resized).abs().amax(dim=(1, 2, 3)) <= tolerance).any())

    def score_good(self, images: Iterable[ImageLike], scoring: ScoringConfig, *, with_maps: bool = True) -> NormalVotes:
        """The model's votes on good images that it was not trained on, for `threshold`.

        Args:
            images: as `score` takes them; read as needed.
            scoring: fraction and batch size.
            with_maps: whether there will be maps to decide by.

        Raises:
            UserError: an image cannot be read.
        """
        found = [(votes.shares, votes.peak) for votes in self.stream(images, scoring, with_maps=with_maps)]
        shares = np.array([row for row, _ in found])
        return NormalVotes(shares, np.array([peak for _, peak in found], dtype=np.float64) if with_maps else None)

    def threshold(
        self, scoring: ScoringConfig, *, with_maps: bool = True, good: NormalVotes | None = None
    ) -> Threshold:
        """The threshold that `scoring` gives, else one for its target; maps decide on defects.

        Args:
            scoring: fraction, aggregate, and threshold or target.
            with_maps: whether there are maps to decide by.
            good: from `score_good`; without it views of the training images stand in for normal images.

        Raises:
            UserError: too few good images, or too few views for the target.
        """
        source = CALIBRATED if good is None else GOOD_IMAGES
        normal = self.calibration(scoring) if good is None else good
        if good is not None or scoring.threshold is None:
            check_enough(len(normal.shares), scoring.target_fpr, source)
        scores = None if scoring.aggregate == "minmax" else self.anomaly_scores(normal.shares, scoring)
        by_map = with_maps and self.task == "defect"
        given = scoring.threshold
        return make_threshold(scores, normal.peaks, scoring.target_fpr, source, given=given, by_map=by_map)

    def anomaly_scores(self, shares: np.ndarray, scoring: ScoringConfig) -> np.ndarray:
        """Anomaly scores `(N,)` of a test set from the `(N, S)` vote shares of its images; higher = more anomalous."""
        views = self.calibration(scoring).shares if scoring.aggregate == "calibrated" else None
        return anomaly_scores(shares, scoring.aggregate, views)

    def score(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        fraction_defect: float | None = None,
        aggregate: str = "mean",
        target_fpr: float = 0.05,
        threshold: float | None = None,
        with_maps: bool = True,
        good_images: ImageLike | Sequence[ImageLike] | None = None,
    ) -> Scores:
        """Score images, and show where they are anomalous.

        Args:
            images: one or several, of any sizes: paths, PIL images or arrays `(H, W)`, `(H, W, 3)`, uint8 or float in
                [0, 1].
            fraction_defect: part of the patches that vote, the lowest ones, in (0, 1]; by default that of the model's
                task.
            aggregate: "mean" scores each image alone; so does "calibrated", which standardises each scale by what views
                of the training images reach; "minmax" normalises each scale over all these images first.
            target_fpr: share of normal images that the calibrated threshold may reject, in (0, 1).
            threshold: your own instead; an image with a higher score is anomalous.
            with_maps: whether to make anomaly maps; with them, and without `threshold`, they decide on defects.
            good_images: normal images that the model was not trained on, to make the thresholds of instead of views of
                the training images: at least 19 for a `target_fpr` of 0.05.

        Returns:
            Scores, decisions and maps, in the order of the images.

        Raises:
            UserError: an image cannot be read, a setting is out of range, there are too few good images, or "minmax" of
                one image.
        """
        images = as_list(images)
        scoring = ScoringConfig(fraction_defect, aggregate, target_fpr=target_fpr, threshold=threshold)
        check_aggregate(aggregate, len(images))
        good = None if good_images is None else self.score_good(as_list(good_images), scoring, with_maps=with_maps)
        limits = self.threshold(scoring, with_maps=with_maps, good=good)
        votes = list(self.stream(images, scoring, with_maps=with_maps))
        scores = self.anomaly_scores(np.stack([image.shares for image in votes]), scoring)
        peaks = np.array([image.peak for image in votes]) if with_maps else None
        maps = [image.full_size_map() for image in votes] if with_maps else None
        return Scores(scores, decide(scores, limits, peaks), maps)

    def stream(
        self,
        images: Iterable[ImageLike],
        scoring: ScoringConfig | None = None,
        *,
        with_maps: bool = True,
        observe: Callable[[np.ndarray], None] | None = None,
        warn: bool = True,
    ) -> Iterator[ImageVotes]:
        """Let the patches of any number of images vote, in memory that does not grow with them.

        Args:
            images: as `score` takes them; they are read as needed, one batch ahead, in another thread.
            scoring: fraction and batch size; the aggregate is left to `anomaly_scores`, which needs all images.
            with_maps: whether to make anomaly maps.
            observe: called with every image, `(H, W, 3)` float32 in [0, 1], in order, when it is read.
            warn: whether to warn, once per model, of an image whose aspect ratio is not that of the training images.

        Yields:
            The votes of each image, in order.

        Raises:
            UserError: an image cannot be read.
        """
        scoring = scoring or ScoringConfig()

        def read() -> Iterator[np.ndarray]:
            for image in images:
                array = to_array(image)
                if warn:
                    self._warn_of_aspect(array.shape[:2])
                if observe is not None:
                    observe(array)
                yield array

        yield from self.scorer.stream(read(), self.fraction(scoring), scoring.batch_size, with_maps=with_maps)

    def _warn_of_aspect(self, size: tuple[int, int]) -> None:
        """Warn once that images of another aspect ratio than the training images' are squeezed."""
        own = self.record.image_size
        if self._warned_of_aspect or not has_other_aspect(size, own):
            return
        self._warned_of_aspect = True
        text = "images of another aspect ratio than the training images (%d x %d px, height x width) are squeezed"
        logger.warning(text + "; one has %d x %d px", *own, *size)

    def training_vote_shares(self) -> np.ndarray:
        """Vote shares of the training images on all patches, `(N, S)` in [0, 1]; chance is 1 / M."""
        return self.scorer.shares(self.training_images)[0]

    def describe(self) -> dict[str, Any]:
        """The model's description in metrics.json."""
        record = self.record
        return {
            "path": str(self.saved_folder.path),
            "training_images": list(record.sources),
            "image_size": list(record.image_size),
            "scales": [list(size) for size in self.pyramid.plan.sizes],
            "hta_version": record.hta_version,
            "config": record.config.to_dict(),
        }


def has_other_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether the aspect ratios of two sizes, (height, width) each, differ by more than rounding explains."""
    ratio = (size[1] / size[0]) / (other[1] / other[0])
    return max(ratio, 1 / ratio) > 1 + _ASPECT_TOLERANCE


def as_list(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """One image or several, as a list.

    Raises:
        UserError: there is none.
    """
    several = list(images) if isinstance(images, Sequence) and not isinstance(images, str) else [images]
    if not several:
        raise UserError("images: none given; give an image, or several")
    return several


def find_model(name_or_path: str | Path, models_dir: str | Path = MODELS_DIR) -> RunFolder:
    """The run folder of a name below `models_dir`, of a path, or of a training image that gave the model its name."""
    path = Path(name_or_path)
    is_image = path.suffix.lower() in IMAGE_SUFFIXES
    # A mistyped path must not lead to another model that happens to have the same last part.
    if RunFolder(path).exists or (len(path.parts) > 1 and not is_image):
        return RunFolder(path)
    named = Path(models_dir) / path.name
    return RunFolder(Path(models_dir) / path.stem if is_image and not named.exists() else named)


def load(name_or_path: str | Path, models_dir: str | Path = MODELS_DIR, runtime: RuntimeConfig | None = None) -> Model:
    """Load a trained model.

    Args:
        name_or_path: name of a model below `models_dir`, path of its run folder, or the training image that gave the
            model its name.
        models_dir: folder of the models.
        runtime: device, precision and threads; by default CUDA if available.

    Returns:
        The model.

    Raises:
        UserError: no such model, an unfinished one, or a damaged file.
    """
    folder = find_model(name_or_path, models_dir)
    resolved = set_up(runtime or RuntimeConfig())
    record, pyramid = folder.load_pyramid(resolved)
    images, shape = folder.read_images(), (record.num_images, 3, *pyramid.plan.working_size)
    if images.shape != shape:
        raise UserError(
            f"{folder.path / IMAGES_FILE}: holds images of shape {tuple(images.shape)}, the model's are {shape}; the "
            "file belongs to another model: restore it or train again with --overwrite"
        )
    return Model(record, pyramid, resolved, images, folder)
