"""A trained model in use: scores, decisions and maps of images."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from hta.config import RuntimeConfig, ScoringConfig
from hta.data.folders import images_of_folder
from hta.errors import UserError, parameters_named
from hta.evaluation import thresholds
from hta.evaluation.calibration import Calibration, calibrate, kept_calibration, save_calibration
from hta.evaluation.combined import error_per_vote, squared_errors
from hta.evaluation.frames import FrameCheck, fault_words
from hta.evaluation.nearest import NearestMaps, nearest_rule, ratios
from hta.evaluation.scorer import ImageVotes, Scorer
from hta.evaluation.scores import anomaly_scores, check_aggregate, default_fraction
from hta.evaluation.thresholds import NormalVotes, Threshold
from hta.files import recover
from hta.images import IMAGE_SUFFIXES, ImageFile, full_size, resize, to_array, to_tensor, unstack
from hta.models.pyramid import Pyramid
from hta.models.storage import RunFolder, RunRecord
from hta.models.views import view_rule
from hta.runtime import Runtime, set_up
from hta.training.progress import progress_bar
from hta.vacancy import check_vacant, foreign_files

logger = logging.getLogger(__name__)

MODELS_DIR = Path("TrainedModels")

_ASPECT_TOLERANCE = 0.02
_LEAST_LIMIT, _HIGHEST_NORMAL = 1e-6, 0.9  # what scores 1, and the part of it that scores 0
_SHARE_TOLERANCE = 0.03  # bfloat16 and float32 differ by 0.001
_OTHER_ASPECT = (
    "images of another aspect ratio than the training images (%d x %d px, width x height) are squeezed; "
    "one has %d x %d px"
)

ImageLike = ImageFile | Image.Image | np.ndarray | Tensor


class Scores(NamedTuple):
    """The outcome of scoring N images.

    Attributes:
        anomaly_scores: `(N,)` float64, higher = more anomalous.
        decisions: `(N,)` bool, True = anomalous; None without a threshold: "minmax" without one of your own,
            unless maps decide on defects.
        anomaly_maps: one `(H, W)` float32 in [0, 1] per image, at its own size, higher = more anomalous; None if not
            requested.
    """

    anomaly_scores: np.ndarray
    decisions: np.ndarray | None
    anomaly_maps: list[np.ndarray] | None


@dataclass
class Model:
    """A trained pyramid with its record.

    Attributes:
        record: settings and names of the training images.
        pyramid: the frozen networks.
        runtime: device and precision.
        training_images: `(N, 3, h, w)` in [-1, 1], at the working size.
        folder: the run folder; None for a model that was trained in memory.
        task: "defect" or "class", by default what it was trained for: chooses the fraction of the patches, the views
            and what decides.
    """

    record: RunRecord
    pyramid: Pyramid
    runtime: Runtime
    training_images: Tensor
    folder: RunFolder | None = None
    task: str = ""

    def __post_init__(self):
        self.task = self.task or self.record.config.model.task
        self._calibration: Calibration | None = None
        self._warned_of_aspect = False

    @cached_property
    def scorer(self) -> Scorer:
        """The model ready to score; its networks are folded once.

        Raises:
            UserError: it no longer votes on its training image as it did when it was saved.
        """
        scorer, recorded = Scorer(self.pyramid), self.record.training_shares
        if recorded and (len(recorded) != len(now := self.traced_shares(scorer)) or _differ(recorded, now)):
            where = "this model" if self.folder is None else self.folder.path
            raise UserError(
                f"{where}: votes on its training image otherwise than when it was saved; a file is damaged or of "
                "another model: restore it or train again with --overwrite"
            )
        return scorer

    def traced_shares(self, scorer: Scorer | None = None) -> tuple[float, ...]:
        """Vote shares on the first training image, by which a saved model is known: one per scale, in [0, 1]."""
        shares = (scorer or self.scorer).shares(self.training_images[:1])[0, 0]
        return tuple(round(float(share), 6) for share in shares)

    def __getstate__(self) -> dict[str, Any]:
        """All but the folded networks, which are made again."""
        return {name: value for name, value in self.__dict__.items() if name not in ("scorer", "nearest")}

    @parameters_named()
    def save(self, folder: str | Path, *, overwrite: bool = False, scoring: ScoringConfig | None = None) -> None:
        """Write the model to a run folder, from which `hta.load` and main_eval.py score as this model does.

        Losses, random samples and the page of a training are not part of a model: `hta.train(..., folder=...)` writes
        them.

        Args:
            folder: the run folder.
            overwrite: replace an existing model.
            scoring: how images will be scored, for which it keeps the statistics; by default as its task is.

        Raises:
            UserError: the folder is taken, or `overwrite` would lose files that hta did not write.
            RunError: a file cannot be written.
        """
        place = RunFolder(Path(folder))
        check_vacant(place, overwrite=overwrite)
        record = replace(self.record, training_shares=self.traced_shares())
        own = self if self.task == self.record.config.model.task else replace(self, task="")
        calibration = own.calibration(scoring)
        replaced = foreign_files if overwrite else None
        with place.completed(record, self.training_images, replace=replaced) as fresh:
            for n, scale in enumerate(self.pyramid.scales):
                fresh.save_scale(n, scale)
            save_calibration(fresh, calibration)

    @cached_property
    def frame_check(self) -> FrameCheck:
        """Finds images that cannot show what the training images show."""
        return FrameCheck(self.training_images, same_colours=self.task == "defect")

    @cached_property
    def nearest(self) -> NearestMaps:
        """Makes the maps of the score "nearest"."""
        return NearestMaps(self.scorer.features, self.pyramid.plan, self.training_images)

    def score_name(self, scoring: ScoringConfig) -> str:
        """The score that `scoring` asks for, by default that for the task and the recipe of the training."""
        is_plain, of_views = scoring.aggregate == "mean", self.record.config.training.recipe == "views"
        of_task = "combined" if self.task == "class" else "nearest" if of_views else "paper"
        return scoring.score or (of_task if is_plain else "paper")

    @property
    def saved_folder(self) -> RunFolder:
        """The run folder; a model that was trained in memory has none, which raises a UserError."""
        if self.folder is None:
            raise UserError("the model was trained in memory and has no folder; train it with folder=PATH, or save it")
        return self.folder

    def fraction(self, scoring: ScoringConfig) -> float:
        """The fraction of the patches that vote: the one given, else the paper's for the task."""
        return scoring.fraction_defect or default_fraction(self.task, self.record.num_images)

    @parameters_named()
    def calibration(self, scoring: ScoringConfig | None = None) -> Calibration:
        """The votes on views of the training images: those beside the model, if they fit, or made now; cached.

        Raises:
            UserError: the file beside the model is damaged, or belongs to another model.
        """
        scoring = scoring or ScoringConfig()
        score, num_transforms = self.score_name(scoring), self.record.config.model.num_transforms
        is_nearest = score == "nearest"
        rule = (nearest_rule if is_nearest else view_rule)(self.task, num_transforms)
        wanted = self.fraction(scoring), rule, self.scorer.precision, "nearest" if is_nearest else "paper"

        if self._calibration is None or not self._calibration.fits(*wanted):
            kept = None if self.folder is None else kept_calibration(self.folder, self.pyramid.plan.num_scales)
            if kept is not None and not kept.fits(*wanted):
                text = (
                    "calibrating anew for fraction %g, this task, %s and score %s: the kept statistics are for others"
                )
                logger.info(text, wanted[0], wanted[2], score)
                kept = None
            if kept is None:
                nearest = self.nearest if is_nearest else None
                kept = calibrate(self.scorer, self.training_images, *wanted[:2], nearest=nearest)
            self._calibration = kept
        if score == "combined" and self._calibration.errors is None:  # they were kept before there was this score
            views = rule.draw(
                self.training_images, len(self._calibration.shares), self._calibration.seed, self.scorer.recognition
            )
            self._calibration = replace(self._calibration, errors=self.squared_errors(views))
        return self._calibration

    def keep_calibration(self) -> None:
        """Calibrate for the model's task, and keep the statistics in its folder."""
        save_calibration(self.saved_folder, self.calibration())

    def was_trained_on(self, image: np.ndarray, tolerance: float = 1e-3) -> bool:
        """Whether an image, `(H, W, 3)` float32 in [0, 1], equals a training image at the working size.

        A pixel may differ by `tolerance`, of [-1, 1]; a photograph of the same thing differs by more.
        """
        # By the same two steps as a training image.
        size = self.record.image_size
        first = to_tensor([image]) if full_size(image) == size else resize(to_tensor([image]), size)
        resized = resize(first, self.pyramid.plan.working_size)
        return bool(((self.training_images.cpu() - resized).abs().amax(dim=(1, 2, 3)) <= tolerance).any())

    def score_good(self, images: Iterable[ImageLike], scoring: ScoringConfig, *, with_maps: bool = True) -> NormalVotes:
        """The votes on good images that the model was not trained on, for `threshold`; arguments as for `stream`."""
        votes, faults = self.votes(images, scoring, with_maps=with_maps)
        if strange := sum(fault is not None for fault in faults):
            text = "%d of %d good images cannot show what the training images show; they may raise the threshold"
            logger.warning(text, strange, len(faults))
        return votes

    def votes(
        self, images: Iterable[ImageLike], scoring: ScoringConfig, *, with_maps: bool = True
    ) -> tuple[NormalVotes, list[str | None]]:
        """The votes on images, and why some of them cannot be normal; arguments as for `stream`."""
        stream = self.stream(images, scoring, with_maps=with_maps)
        # The maps are not kept.
        found = [(votes.shares, votes.peak, votes.error, votes.fault) for votes in stream]
        votes = NormalVotes.of(image[:3] for image in found)
        peaks = None if votes.peaks is None else votes.peaks.astype(np.float64)
        return replace(votes, peaks=peaks), [fault for *_, fault in found]

    def _decides_by_map(self, scoring: ScoringConfig, *, with_maps: bool) -> bool:
        """Whether maps decide: on defects, unless there are none and how scores are to decide was asked for."""
        asked = scoring.aggregate != "mean" or scoring.threshold is not None
        return self.task == "defect" and (with_maps or not asked)

    @parameters_named()
    def threshold(
        self, scoring: ScoringConfig, *, with_maps: bool = True, good: NormalVotes | None = None
    ) -> Threshold:
        """The threshold that `scoring` gives, else one for its target; maps, if there are any, decide on defects.

        It is made of the `good` images from `score_good`, else of views of the training images.

        Raises:
            UserError: too few good images or views for the target.
        """
        normal, score = good or self.calibration(scoring), self.score_name(scoring)
        source = thresholds.CALIBRATED if good is None else thresholds.GOOD_IMAGES
        target, given = scoring.target_fpr, scoring.threshold
        if good is not None or given is None:
            thresholds.check_enough(len(normal.shares), target, source)
        if score != "paper":
            values = None if score == "nearest" else _proportional_to(score, normal)
            limits = thresholds.make_threshold(values, normal.peaks, target, source, by_map=values is None)
            limits = replace(limits, threshold=1.0, decided_by="score", unit=limits.threshold)
            if given is not None:
                return replace(limits, threshold=given, source=thresholds.GIVEN, target_fpr=None)
            return limits
        scores = None if scoring.aggregate == "minmax" else self.anomaly_scores(normal, scoring)
        by_map = self._decides_by_map(scoring, with_maps=with_maps)
        return thresholds.make_threshold(scores, normal.peaks, target, source, given=given, by_map=by_map)

    @parameters_named()
    def anomaly_scores(self, votes: NormalVotes, scoring: ScoringConfig, limits: Threshold | None = None) -> np.ndarray:
        """Anomaly scores `(N,)` of a test set from its votes; higher = more anomalous.

        The scores "nearest" and "combined" are 0 for the mean of views of the training images, and 1 at the threshold,
        see `limits`; they are proportional to distances, and to errors per vote.
        """
        score = self.score_name(scoring)
        if score != "paper":
            limits = limits or self.threshold(replace(scoring, threshold=None))
            limit = limits.unit or float(ratios(np.array(limits.pixel_threshold)))
            limit = max(limit, _LEAST_LIMIT)
            # Good images may be more normal than views are.
            normal = min(float(_proportional_to(score, self.calibration(scoring)).mean()), _HIGHEST_NORMAL * limit)
            return (_proportional_to(score, votes) - normal) / (limit - normal)
        views = self.calibration(scoring).shares if scoring.aggregate == "calibrated" else None
        return anomaly_scores(votes.shares, scoring.aggregate, views)

    @parameters_named()
    def score(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        fraction_defect: float | None = None,
        aggregate: str = "mean",
        target_fpr: float = 0.05,
        threshold: float | None = None,
        with_maps: bool = True,
        good_images: ImageLike | Iterable[ImageLike] | None = None,
        frame_check: bool = True,
        score: str | None = None,
    ) -> Scores:
        """Score images, and show where they are anomalous.

        Args:
            images: one or several, in any iterable: paths of files or folders, files opened in binary mode, PIL images,
                or arrays or tensors as `hta.images.unstack` describes them, uint8, uint16, bool or float in [0, 1]:
                images `(H, W)` or `(H, W, C)` or stacks of them, C 1, 3 or 4; tensors also with the channels first.
            fraction_defect: part of the patches, the lowest votes, in (0, 1]; by default that of the model's task.
            aggregate: "mean" scores each image alone; so does "calibrated", which standardises each scale by what views
                of the training images reach; "minmax" normalises each scale over all these images first.
            target_fpr: share of normal images that the threshold may reject, in (0, 1).
            threshold: your own instead; an image with a higher score is anomalous.
            with_maps: whether to return anomaly maps. Without `threshold` and `aggregate`, they decide on defects.
            good_images: normal images that the model was not trained on, 19 or more for a `target_fpr` of 0.05: the
                threshold is made of them instead of views of the training images.
            frame_check: whether blank, saturated and blurred images get no votes, and so the highest score.
            score: "paper", "combined" or "nearest", see `hta.config.ScoringConfig`.

        Returns:
            Scores, decisions and maps, in the order of the images.

        Raises:
            UserError: an image cannot be read, a setting is out of range, there are too few good images, or "minmax" of
                one image.
        """
        images = as_list(images)
        scoring = ScoringConfig(
            fraction_defect, score, aggregate, not frame_check, target_fpr=target_fpr, threshold=threshold
        )
        check_aggregate(aggregate, len(images))
        good = None if good_images is None else self.score_good(as_list(good_images), scoring, with_maps=with_maps)
        limits = self.threshold(scoring, with_maps=with_maps, good=good)
        stream: Iterable[ImageVotes] = self.stream(images, scoring, with_maps=with_maps, with_shares=False)
        votes = list(stream if len(images) <= scoring.batch_size else progress_bar(stream, "scoring", len(images)))
        found = NormalVotes.of((image.shares, image.peak, image.error) for image in votes)
        scores = self.anomaly_scores(found, scoring, limits)
        maps = [image.full_size_map() for image in votes] if with_maps else None
        faults = [image.fault for image in votes]
        rejected = thresholds.decide(scores, limits, found.peaks, faults)
        for words in fault_words(faults, decided=rejected is not None):
            logger.warning("%s", words)
        return Scores(scores, rejected, maps)

    def stream(
        self,
        images: Iterable[ImageLike],
        scoring: ScoringConfig | None = None,
        *,
        with_maps: bool = True,
        with_shares: bool = True,
        observe: Callable[[np.ndarray], None] | None = None,
        warn: bool = True,
    ) -> Iterator[ImageVotes]:
        """Let the patches of any number of images vote, in memory that does not grow with them.

        Args:
            images: as `score` takes them; they are read as needed, one batch ahead, in another thread.
            scoring: fraction and batch size; the aggregate is left to `anomaly_scores`, which needs all images.
            with_maps: whether to make anomaly maps, also where they do not decide.
            with_shares: whether patches vote, also where the score is not made of votes.
            observe: called with every image, `(H, W, 3)` float32 in [0, 1], when it is read.
            warn: whether to warn, once per model, of an image whose aspect ratio is not that of the training images.

        Returns:
            An iterator over the votes of each image, in order.

        Raises:
            UserError: an image cannot be read (while iterating).
        """
        scoring = scoring or ScoringConfig()

        def read() -> Iterator[np.ndarray]:
            for image in images:
                array = to_array(image)
                size, own = full_size(array), self.record.image_size
                if warn and not self._warned_of_aspect and has_other_aspect(size, own):
                    self._warned_of_aspect = True
                    logger.warning(_OTHER_ASPECT, *own[::-1], *size[::-1])
                if observe is not None:
                    observe(array)
                yield array

        check = None if scoring.no_frame_check else self.frame_check
        score = self.score_name(scoring)
        make_maps = self.nearest.maps if score == "nearest" else None
        fraction = self.fraction(scoring) if with_shares or make_maps is None else None
        needs_maps = (
            with_maps or score == "nearest" or (score == "paper" and self._decides_by_map(scoring, with_maps=False))
        )
        return self.scorer.stream(
            read(),
            fraction,
            scoring.batch_size,
            with_maps=needs_maps,
            check=check,
            make_maps=make_maps,
            measure_errors=self.squared_errors if score == "combined" else None,
        )

    def squared_errors(self, images: Tensor) -> np.ndarray:
        """See `hta.evaluation.combined.squared_errors`."""
        return squared_errors(images, self.training_images)


def _proportional_to(score: str, votes: NormalVotes) -> np.ndarray:
    """What the score "nearest" or "combined" is proportional to, of N images: `(N,)`, higher = more anomalous."""
    measured = votes.peaks if score == "nearest" else votes.errors
    if measured is None:
        raise UserError(f"score {score}: these votes were made for another score; make them for this one")
    values = np.asarray(measured, dtype=np.float64)
    return ratios(values) if score == "nearest" else error_per_vote(votes.shares, values)


def _differ(recorded: Sequence[float], now: Sequence[float]) -> bool:
    """Whether vote shares differ by more than precisions and machines explain."""
    return max(abs(a - b) for a, b in zip(recorded, now, strict=True)) > _SHARE_TOLERANCE


def has_other_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether the aspect ratios of two sizes, (height, width) each, differ by more than rounding explains."""
    ratio = (size[1] / size[0]) / (other[1] / other[0])
    return max(ratio, 1 / ratio) > 1 + _ASPECT_TOLERANCE


def as_list(images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    """The images of one or several images, stacks, see `hta.images.unstack`, and folders, which are not searched.

    Raises a UserError if there are none.
    """
    paths, is_file = (str, bytes, os.PathLike), hasattr(images, "read")
    is_one = (
        isinstance(images, (*paths, Image.Image, np.ndarray, Tensor)) or is_file or not isinstance(images, Iterable)
    )
    several: list[ImageLike] = []
    if isinstance(images, np.ndarray) and images.dtype.kind in "OSU":
        images, is_one = images.ravel().tolist(), False
    for image in [images] if is_one else images:  # type: ignore[union-attr]
        if isinstance(image, np.ndarray | Tensor):
            several += unstack(image)
        elif isinstance(image, paths) and (folder := Path(os.fsdecode(image))).is_dir():
            several += images_of_folder(folder)
        else:
            several.append(image)  # type: ignore[arg-type]
    if not several:
        raise UserError("images: none given; give an image, several, or a folder that holds image files")
    return several


def find_model(name_or_path: str | Path, models_dir: str | Path = MODELS_DIR) -> RunFolder:
    """The run folder of a name below `models_dir`, of a path, or of a training image that gave the model its name."""
    path = Path(name_or_path)
    for place in (path, Path(models_dir) / path.name):
        recover(place)
    is_image = path.suffix.lower() in IMAGE_SUFFIXES
    # A mistyped path must not lead to another model that happens to have the same last part.
    if RunFolder(path).exists or (len(path.parts) > 1 and not is_image):
        return RunFolder(path)
    named = Path(models_dir) / path.name
    return RunFolder(Path(models_dir) / path.stem if is_image and not named.exists() else named)


@parameters_named()
def load(name_or_path: str | Path, models_dir: str | Path = MODELS_DIR, runtime: RuntimeConfig | None = None) -> Model:
    """Load a trained model.

    Args:
        name_or_path: name of a model below `models_dir`, path of its run folder, or the training image that gave the
            model its name.
        models_dir: folder of the models.
        runtime: device, precision and threads; by default CUDA if available.

    Raises:
        UserError: no such model, an unfinished one, or a damaged file.
    """
    folder = find_model(name_or_path, models_dir)
    resolved = set_up(runtime or RuntimeConfig())
    record, pyramid = folder.load_pyramid(resolved)
    return Model(record, pyramid, resolved, folder.read_images(), folder)
