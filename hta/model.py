"""A trained model in use: scores, decisions and maps of images."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hta.config import RuntimeConfig, ScoringConfig
from hta.errors import UserError
from hta.evaluation.calibration import CALIBRATED, Calibration, calibrate, kept_calibration, save_calibration
from hta.evaluation.differences import has_other_aspect
from hta.evaluation.held_out import GOOD_IMAGES, HeldOut, check_enough, check_views
from hta.evaluation.scorer import Evaluator, ImageVotes, precision_of
from hta.evaluation.scores import anomaly_scores, default_fraction
from hta.evaluation.thresholds import Threshold, decide
from hta.evaluation.views import ViewRule, view_rule
from hta.images import IMAGE_SUFFIXES, resize, to_array, to_tensor
from hta.models.pyramid import Pyramid
from hta.models.storage import IMAGES_FILE, RunFolder, RunRecord
from hta.runtime import Runtime, set_up

logger = logging.getLogger(__name__)

MODELS_DIR = Path("TrainedModels")

ImageLike = str | Path | Image.Image | np.ndarray


class Scores(NamedTuple):
    """What a model says about N images.

    Attributes:
        anomaly_scores: `(N,)` float64, higher = more anomalous.
        decisions: `(N,)` bool, True = anomalous; None where nothing decides: "minmax" without a threshold, unless maps
            decide on defects.
        anomaly_maps: one `(H, W)` float32 array in [0, 1] an image, at its own size, higher = more anomalous; None if
            not asked.
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
    """

    record: RunRecord
    pyramid: Pyramid
    runtime: Runtime
    training_images: Tensor
    folder: RunFolder | None = None
    _ready: tuple[tuple, Evaluator] | None = field(default=None, init=False, repr=False, compare=False)
    _calibration: Calibration | None = field(default=None, init=False, repr=False, compare=False)
    _said_aspect: bool = field(default=False, init=False, repr=False, compare=False)

    def evaluator(self, fractions: Sequence[float] = (1.0,), *, with_maps: bool = True) -> Evaluator:
        """The model ready to score, for one or more fractions of the patches that vote; the last one is kept."""
        key = (tuple(fractions), with_maps)
        if self._ready is None or self._ready[0] != key:
            self._ready = (key, Evaluator(self.pyramid, fractions, with_maps=with_maps))
        return self._ready[1]

    def resolve_scoring(self, scoring: ScoringConfig, task: str | None = None) -> ScoringConfig:
        """Fill in the fraction of the patches that the paper takes for a task, by default the model's own."""
        if scoring.fraction_defect is not None:
            return scoring
        fraction = default_fraction(task or self.record.config.model.task, self.record.num_images)
        return replace(scoring, fraction_defect=fraction)

    def calibration(self, scoring: ScoringConfig | None = None, task: str | None = None) -> Calibration:
        """What the model says about views of its training images, as kept beside it or made now; the last one is kept.

        What is kept beside it counts only for its own fraction, task and precision.

        Args:
            scoring: the fraction of the patches that vote.
            task: "defect" or "class", by default the model's own.

        Raises:
            UserError: the file beside the model is damaged, or belongs to another model.
        """
        fraction = self.resolve_scoring(scoring or ScoringConfig(), task).fraction_defect
        rule = view_rule(task or self.record.config.model.task, self.record.config.model.num_transforms)
        if self._calibration is None or not self._calibration.fits(fraction, rule, precision_of(self.pyramid)):
            self._calibration = self._kept_calibration(fraction, rule)
        if self._calibration is None:
            self._calibration = calibrate(self.evaluator((fraction,)), self.training_images, rule)
        return self._calibration

    def _kept_calibration(self, fraction: float, rule: ViewRule) -> Calibration | None:
        """The statistics beside the model; None if there are none, or none for this fraction, rule and precision."""
        kept = None if self.folder is None else kept_calibration(self.folder, self.pyramid.plan.num_scales)
        precision = precision_of(self.pyramid)
        if kept is not None and not kept.fits(fraction, rule, precision):
            text = "calibrated anew for fraction %g, this task and %s: what is kept is for others"
            logger.info(text, fraction, precision)
            return None
        return kept

    def keep_calibration(self) -> None:
        """Calibrate with the settings of the model's task, and keep the statistics in its folder.

        Raises:
            RunError: the file cannot be written.
        """
        save_calibration(self.folder, self.calibration())

    def was_trained_on(self, image: np.ndarray, tolerance: float = 1e-3) -> bool:
        """Whether an image is one of the training images, as far as can be told at the working size.

        Args:
            image: `(H, W, 3)` float32 in [0, 1].
            tolerance: largest difference of a pixel, of [-1, 1]. A photograph of the same thing differs by more.
        """
        # By the same two steps as a training image.
        resized = resize(resize(to_tensor([image]), self.record.image_size), self.pyramid.plan.working_size)
        return bool(((self.training_images.cpu() - resized).abs().amax(dim=(1, 2, 3)) <= tolerance).any())

    def hold_out(
        self, images: Iterable[ImageLike], scoring: ScoringConfig, task: str | None = None, *, with_maps: bool = True
    ) -> HeldOut:
        """What the model says about good images that it was not trained on: a threshold can be made of them.

        Args:
            images: as `score` takes them; read as needed.
            scoring: fraction and aggregate.
            task: "defect" or "class", by default the model's own.
            with_maps: whether there will be maps to decide by.

        Raises:
            UserError: an image cannot be read, or there are too few.
        """
        scoring = self.resolve_scoring(scoring, task)
        shares, peaks = [], []
        for votes in self.stream(images, scoring, with_maps=with_maps):
            shares.append(votes.shares)
            peaks.append(votes.anomaly_map.max() if with_maps else None)
        check_enough(len(shares), scoring.target_fpr)
        scores = None if scoring.aggregate == "minmax" else self.anomaly_scores(shares, scoring, task)
        return HeldOut(scores, np.array(peaks, dtype=np.float64) if with_maps else None, len(shares))

    def threshold(
        self,
        scoring: ScoringConfig,
        task: str | None = None,
        *,
        with_maps: bool = True,
        good: HeldOut | None = None,
    ) -> Threshold:
        """Where anomalous begins: the threshold that `scoring` gives, else one for its target; maps decide on defects.

        Args:
            scoring: fraction, aggregate, and threshold or target.
            task: "defect" or "class", by default the model's own.
            with_maps: whether there are maps to decide by.
            good: from `hold_out`; without it views of the training images stand in for normal images.

        Raises:
            UserError: too few good images, or a target below what the views can tell.
        """
        if good is None:
            views = self.calibration(scoring, task)
            if scoring.threshold is None:
                check_views(len(views.peaks), scoring.target_fpr)
            source, found = CALIBRATED, views.threshold(scoring.aggregate, scoring.target_fpr)
        else:
            source, found = GOOD_IMAGES, good.threshold(scoring.target_fpr)
        if scoring.threshold is not None:
            return Threshold(scoring.threshold, source="given", pixel_threshold=found.pixel_threshold)
        if with_maps and (task or self.record.config.model.task) == "defect":
            return replace(found, reason=None, source=source, target_fpr=scoring.target_fpr, decided_by="map")
        return found

    def anomaly_scores(
        self, shares: Sequence[np.ndarray], scoring: ScoringConfig, task: str | None = None
    ) -> np.ndarray:
        """Anomaly scores `(N,)` of a test set from the `(S,)` vote shares of its images; higher = more anomalous."""
        if scoring.aggregate == "calibrated":
            return self.calibration(scoring, task).scores(np.stack(shares), "calibrated")
        return anomaly_scores(torch.from_numpy(np.stack(shares)), scoring.aggregate).numpy()

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
            threshold: of one's own instead; an image with a higher score is anomalous.
            with_maps: whether to make anomaly maps; with them, and without `threshold`, they decide on defects.
            good_images: normal images that the model was not trained on, to make the thresholds of instead of views of
                the training images: at least 19 for a `target_fpr` of 0.05.

        Returns:
            Scores, decisions and maps, in the order of the images.

        Raises:
            UserError: an image cannot be read, a setting is out of range, there are too few good images, or "minmax" of
                one image.
        """
        several = as_several(images)
        scoring = ScoringConfig(fraction_defect, aggregate, target_fpr=target_fpr, threshold=threshold)
        check_aggregate(aggregate, len(several))
        good = None if good_images is None else self.hold_out(as_several(good_images), scoring, with_maps=with_maps)
        limit = self.threshold(scoring, with_maps=with_maps, good=good)
        votes = list(self.stream(several, scoring, with_maps=with_maps))
        scores = self.anomaly_scores([image.shares for image in votes], scoring)
        maps = [image.full_size_map() for image in votes] if with_maps else None
        peaks = np.array([image.anomaly_map.max() for image in votes]) if with_maps else None
        return Scores(scores, decide(scores, limit, peaks), maps)

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
            images: as `score` takes them; they are read as needed, ahead by a batch, in another thread.
            scoring: fraction and batch size; the aggregate is left to `anomaly_scores`, which needs all images.
            with_maps: whether to make anomaly maps.
            observe: called with every image, `(H, W, 3)` float32 in [0, 1], in order, when it is read.
            warn: whether to say it, once for a model, where an image is not of the training images' aspect ratio.

        Yields:
            The votes of each image, in order.

        Raises:
            UserError: an image cannot be read.
        """
        scoring = self.resolve_scoring(scoring or ScoringConfig())
        sizes: deque[tuple[int, int]] = deque()

        def read() -> Iterator[np.ndarray]:
            for image in images:
                array = to_array(image)
                sizes.append(array.shape[:2])
                if warn:
                    self._say_other_aspect(array.shape[:2])
                if observe is not None:
                    observe(array)
                yield array

        evaluator = self.evaluator((scoring.fraction_defect,), with_maps=with_maps)
        for shares, anomaly_map in evaluator.score_stream(read(), scoring.batch_size):
            yield ImageVotes(shares[0], anomaly_map, sizes.popleft())

    def _say_other_aspect(self, size: tuple[int, int]) -> None:
        """Say once that images of another aspect ratio than the training images' are squeezed."""
        own = self.record.image_size
        if self._said_aspect or not has_other_aspect(size, own):
            return
        self._said_aspect = True
        text = "images of another aspect ratio than the training images (%d x %d px, height x width) are squeezed"
        logger.warning(text + "; one has %d x %d px", *own, *size)

    def training_vote_shares(self) -> np.ndarray:
        """Vote shares of the training images on all patches, `(N, S)` in [0, 1]; chance is 1 / M."""
        return self.evaluator(with_maps=False).score(self.training_images).shares[0]


def check_aggregate(aggregate: str, num_images: int) -> None:
    """Refuse before the work what could not be brought together after it.

    Raises:
        UserError: "minmax" of one image.
    """
    if aggregate != "calibrated":
        anomaly_scores(torch.zeros(num_images, 1), aggregate)


def as_several(images: ImageLike | Sequence[ImageLike]) -> Sequence[ImageLike]:
    """One image or several as several.

    Raises:
        UserError: none.
    """
    several = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
    if not several:
        raise UserError("images: none given; give an image, or several")
    return several


def find_model(name_or_path: str | Path, models_dir: str | Path = MODELS_DIR) -> RunFolder:
    """The run folder of a name below `models_dir`, of a path, or of a training image that gave the model its name."""
    path = Path(name_or_path)
    is_image = path.suffix.lower() in IMAGE_SUFFIXES
    # A path that is mistyped must not end in another model that happens to have the same last part.
    if RunFolder(path).exists or (len(path.parts) > 1 and not is_image):
        return RunFolder(path)
    named = Path(models_dir) / path.name
    return RunFolder(Path(models_dir) / path.stem if is_image and not named.exists() else named)


def load(name_or_path: str | Path, models_dir: str | Path = MODELS_DIR, runtime: RuntimeConfig | None = None) -> Model:
    """Load a trained model.

    Args:
        name_or_path: name of a model below `models_dir`, path of its run folder, or its training image, whose name it
            then has.
        models_dir: folder of the models.
        runtime: device, precision and threads; by default CUDA if there is one.

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
