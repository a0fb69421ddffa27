"""The input of main_eval.py: model and images, from a folder or from a data set by the paper's protocol, all checked.

Images that do not look like the training images are counted: their scores are of little use.
"""

import logging
from collections.abc import Container, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hta.config import RuntimeConfig, ScoringConfig
from hta.data.benchmark import Selection, select
from hta.data.folders import find_good_images, find_test_images, refuse_copies
from hta.data.masks import Marked, oddities
from hta.data.sample import Sample, check_readable, summary
from hta.data.specs import DatasetOptions, InputOptions, default_model_name, default_task
from hta.errors import UserError
from hta.evaluation.thresholds import GOOD_IMAGES, NormalVotes, check_enough
from hta.images import full_size, is_gray
from hta.model import Model, has_other_aspect, load
from hta.settings import refuse_given
from hta.training.progress import progress_bar

logger = logging.getLogger(__name__)

_PIXEL_TOLERANCE = 0.02  # of [-1, 1]: versions of Pillow and OpenCV may differ by this much
_LISTED = 10  # unreadable files that a message names before it only counts them
_BRIGHTNESS_TOLERANCE = 0.15
_GRAY_TOLERANCE = 1e-5  # of [-1, 1]: resizing may separate equal channels by this much


@dataclass(frozen=True)
class Source:
    """The images to score and where they come from.

    Results must not be written in `folder`, which holds the images; it is None for a data set, whose images need not
    look like the training images. `name` is that of the results folder by default, `about` goes into metrics.json,
    `available` counts the images before `--test_limit`, `warnings` say why the model may not fit them, and `notes` how
    folders and files were understood.
    """

    images: Sequence[Sample]
    name: str
    folder: Path | None
    about: dict[str, Any]
    available: int
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()


def open_input(
    options: InputOptions, data: DatasetOptions, runtime: RuntimeConfig, given: Container[str]
) -> tuple[Model, Source]:
    """Load the requested model for the requested task, and find the images to score; none is read yet.

    Raises:
        UserError: there is no such model or no image, the model is damaged or does not belong to the data set, or
            options, of which `given` has the names on the command line, contradict each other.
    """
    if data.dataset is None:
        of_dataset = [*(f.name for f in fields(DatasetOptions)), "num_images", "test_limit"]
        refuse_given(of_dataset, given, "has no effect without --dataset; give the data set, or leave it out")
        for name in ("input_name", "test_dir"):
            if not getattr(options, name):
                raise UserError(f"--{name} is missing: give --input_name MODEL and --test_dir IMAGES; see --help")
    else:
        reason = "contradicts --dataset, whose protocol defines what to score; leave out one of them"
        refuse_given(["test_dir", "labels_csv", "mask_dir", "invert_masks", "good_dir"], given, reason)
    name = options.input_name or default_model_name(data, options.num_images or 1)
    model = replace(load(name, options.models_dir, runtime), task=options.task or "")
    return model, _of_folder(options) if data.dataset is None else _of_dataset(model, options, data, given)


def _of_folder(options: InputOptions) -> Source:
    """Image files, with the labels and masks that their folder provides."""
    test_dir = Path(options.test_dir)
    labels_csv, mask_dir = (None if path is None else Path(path) for path in (options.labels_csv, options.mask_dir))
    notes: list[str] = []
    items = find_test_images(test_dir, labels_csv, mask_dir, notes, invert_masks=options.invert_masks)
    located = test_dir.resolve()
    about = {name: getattr(options, name) for name in ("test_dir", "labels_csv", "mask_dir", "invert_masks")}
    about["dataset"], name = None, located.name if located.is_dir() else located.stem
    return Source(items, name, test_dir, about, len(items), notes=notes)


def _of_dataset(model: Model, options: InputOptions, data: DatasetOptions, given: Container[str]) -> Source:
    """Test images of a data set, labelled and prepared by the paper's protocol."""
    selection = _selection_of(model, options, data, given)
    name = selection.benchmark.spec.name
    dataset = {"name": name, "pos_class": selection.pos_class, "test_limit": options.test_limit}
    images, available = selection.test_samples(options.test_limit), len(selection.test_samples())
    about = {"test_dir": data.data_root, "labels_csv": None, "dataset": dataset}
    doubts = _doubts(model, selection, options.task)
    notes = [summary(images)] if selection.benchmark.spec.has_defects else []
    return Source(images, f"{name}_{selection.pos_class}", None, about, available, doubts, notes)


def _selection_of(model: Model, options: InputOptions, data: DatasetOptions, given: Container[str]) -> Selection:
    """The run of the protocol that a model belongs to."""
    sources, num_transforms = model.record.sources, model.record.config.model.num_transforms
    chosen = any(name in given for name in ("num_images", "index_download", "random_images_download"))
    named = options.input_name and not chosen
    selection = select(data, options.num_images or 1, num_transforms, sources if named else None)
    if not named and selection.training_ids() != list(sources):
        raise UserError(
            f"--input_name {model.saved_folder.path.name}: was trained on other images than --num_images, "
            "--index_download and --random_images_download choose; leave these out, or name another model"
        )
    return selection


def _doubts(model: Model, selection: Selection, task: str | None) -> list[str]:
    """Why a model may not fit this run of the protocol."""
    spec, own_task = selection.benchmark.spec, model.record.config.model.task
    doubts, common_task = [], default_task(spec.name)
    if len(selection.training) != model.record.num_images or not all(
        model.was_trained_on(image, _PIXEL_TOLERANCE) for image in selection.training_images()
    ):
        doubts.append(f"the model was not trained on images of {spec.title} as the protocol prepares them")
    elif not set(selection.training) <= set(selection.benchmark.training_candidates(selection.pos_class)):
        doubts.append(f"the model was trained on images of another class than {selection.pos_class}")
    if task is None and own_task != common_task:
        doubts.append(
            f"the model's task is {own_task}, that of {spec.title} {common_task}: --task {common_task} uses its "
            "fraction of the patches"
        )
    return doubts


def score_good(
    model: Model, options: InputOptions, scored: Sequence[Sample], scoring: ScoringConfig, *, with_maps: bool
) -> NormalVotes | None:
    """Let the model vote on the images of `--good_dir` that it was not trained on; None without the option.

    Raises:
        UserError: there are too few, one cannot be read or is a copy of a `scored` one, or no threshold would use them.
    """
    if options.good_dir is None:
        return None
    needs_threshold = scoring.score != "paper"  # whose unit it is
    if not with_maps and not needs_threshold and (scoring.threshold is not None or scoring.aggregate == "minmax"):
        by = "--threshold" if scoring.threshold is not None else "--aggregate minmax"
        raise UserError(f"--good_dir: {by} and --no_maps leave no threshold to make; leave out one of them")
    if not options.good_dir:
        raise UserError("--good_dir: is empty; give a folder, or leave it out")
    folder, good = Path(options.good_dir), []
    for item in readable(find_good_images(folder, scored), skip=options.skip_unreadable)[0]:
        if model.was_trained_on(item.read()):
            logger.info("--good_dir: %s is left out, the model was trained on it", item.relative)
        else:
            good.append(item)
    refuse_copies(folder, good, scored)
    check_enough(len(good), scoring.target_fpr, GOOD_IMAGES)
    bar = progress_bar(good, "good images", len(good))
    return model.score_good((item.read() for item in bar), scoring, with_maps=with_maps)


def readable(items: Sequence[Sample], *, skip: bool) -> tuple[list[Sample], dict[str, str], list[str]]:
    """Read every image and mask once; returns the readable, why others are not, by name, and what is odd of the masks.

    Raises:
        UserError: some cannot be read and `skip` is off, or none can.
    """
    marked: list[Marked] = []
    reasons = check_readable(progress_bar(items, "checking", len(items)), marked)
    if reasons and not (skip and len(reasons) < len(items)):
        lines, all_bad = list(reasons.values()), len(reasons) == len(items)
        more = f"; and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
        remedy = "none is left to score" if all_bad else "give --skip_unreadable to continue without them"
        raise UserError(f"{'; '.join(lines[:_LISTED])}{more}; {remedy}")
    for reason in reasons.values():
        logger.warning("left out: %s", reason)
    doubts = oddities(marked, inverted=items[0].invert_masks)
    return [item for item in items if item.relative not in reasons], reasons, doubts


Traits = tuple[bool, float, tuple[int, int]]


def traits_of(image: np.ndarray) -> Traits:
    """Of an image, `(H, W, 3)` float32 in [0, 1], whether it is gray, its mean brightness, and its size (H, W)."""
    return is_gray(image), float(image.mean(dtype=np.float64)), full_size(image)


def differences(traits: Sequence[Traits], training_images: Tensor, image_size: tuple[int, int]) -> list[str]:
    """How many test images, of which `traits_of` gave `traits`, plainly differ from the training images.

    Returns one line per kind of difference. The training images are `(N, 3, h, w)` in [-1, 1] at the working size;
    `image_size` is their own (height, width).
    """
    height, width = training_images.shape[-2:]
    brightness = (training_images.double().mean(dim=(1, 2, 3)) + 1) / 2
    darkest, brightest = float(brightness.min()), float(brightness.max())
    # Both True and False if some training images are gray and some are not.
    ranges = training_images.amax(dim=1) - training_images.amin(dim=1)
    grays = set((ranges <= _GRAY_TOLERANCE).flatten(1).all(dim=1).tolist())
    trained_on, found = ("gray", "in colour") if True in grays else ("in colour", "gray")
    kinds = {
        f"{found}, the training images {trained_on}": [gray not in grays for gray, _, _ in traits],
        f"much darker than the training images (mean brightness below {darkest:.2f})": [
            mean < darkest - _BRIGHTNESS_TOLERANCE for _, mean, _ in traits
        ],
        f"much brighter than the training images (mean brightness above {brightest:.2f})": [
            mean > brightest + _BRIGHTNESS_TOLERANCE for _, mean, _ in traits
        ],
        f"smaller than the model's working size of {width} x {height} px (width x height)": [
            size[0] < height or size[1] < width for _, _, size in traits
        ],
        f"of another aspect ratio than the training images, and squeezed to {width} x {height} px": [
            has_other_aspect(size, image_size) for _, _, size in traits
        ],
    }
    return [f"{sum(has)} of {len(has)} test images are {kind}" for kind, has in kinds.items() if any(has)]
