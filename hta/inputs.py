"""What main_eval.py scores: the images of a folder, or those of a data set by the paper's protocol, all checked."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hta.data.benchmark import Selection, select, select_again
from hta.data.folders import LABELS_RULE, find_good_images, find_test_images, refuse_copies
from hta.data.sample import Sample, check_readable
from hta.data.specs import DatasetOptions, default_task
from hta.errors import UserError
from hta.model import Model
from hta.settings import Checked, option

logger = logging.getLogger(__name__)

_PIXEL_TOLERANCE = 0.02  # of [-1, 1]: what versions of Pillow and OpenCV may differ by
_LISTED = 10  # unreadable files that a message names before it only counts them


@dataclass(frozen=True)
class InputOptions(Checked):
    """Which model, and which images."""

    input_name: str = option(
        "",
        "the model: its name, the name of its training image, or the path of its folder; with --dataset by default the "
        "one that main_train.py makes of the same options",
    )
    models_dir: str = option("TrainedModels", "folder of the models")
    test_dir: str = option(
        "", "an image, or a folder of them; folders good and others in it give labels, ground_truth gives masks"
    )
    labels_csv: str | None = option(None, f"labels from a CSV file with the header path,label: {LABELS_RULE}")
    good_dir: str | None = option(
        None,
        "folder of normal images that are neither trained on nor scored, 19 or more for 5 % false alarms: the "
        "threshold is made of them, instead of views of the training images",
    )
    skip_unreadable: bool = option(False, "leave out images that cannot be read")
    task: str | None = option(
        None, "take fraction and calibration of another task than the model's", choices=("defect", "class")
    )
    num_images: int | None = option(
        None, "how many images of a --dataset the model was trained on, by default 1", low=1
    )
    test_limit: int | None = option(
        None, "score only so many test images of a --dataset, each class in proportion", low=1
    )


@dataclass(frozen=True)
class Source:
    """Where the images come from.

    Attributes:
        images: what is to be scored.
        name: of the results folder, by default.
        folder: the folder or image that holds them, in which results must not lie; None for a data set.
        about: what metrics.json says of them.
        available: number of images before a part of them was taken.
        compared: whether they are to look like the training images; those of a data set are prepared like them, and
            other classes look as they do.
        warnings: why the model may not be made for them.
    """

    images: Sequence[Sample]
    name: str
    folder: Path | None
    about: dict[str, Any]
    available: int
    compared: bool = True
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class TestSet:
    """Images that were checked, and those that were left out, with the reason."""

    items: list[Sample]
    skipped: dict[str, str]


def refuse_mixture(benchmark: DatasetOptions, given: dict[str, Any]) -> None:
    """Refuse options of a folder beside a data set, and the other way round."""
    of_dataset = (*(f.name for f in fields(DatasetOptions)), "num_images", "test_limit")
    if benchmark.dataset is None:
        names, reason = of_dataset, "has no effect without --dataset; give the data set, or leave it out"
    else:
        names = ("test_dir", "labels_csv", "good_dir")
        reason = "contradicts --dataset, whose protocol says what to score; leave out one of them"
    stray = next((name for name in names if name in given), None)
    if stray is not None:
        raise UserError(f"--{stray}: {reason}")


def images_of_folder(options: InputOptions) -> Source:
    """Image files, with the labels and masks that their folder has."""
    test_dir = Path(options.test_dir)
    items = find_test_images(test_dir, None if options.labels_csv is None else Path(options.labels_csv))
    located = test_dir.resolve()
    about = {"test_dir": options.test_dir, "labels_csv": options.labels_csv, "dataset": None}
    return Source(items, located.name if located.is_dir() else located.stem, test_dir, about, len(items))


def images_of_dataset(model: Model, options: InputOptions, benchmark: DatasetOptions, given: dict[str, Any]) -> Source:
    """Test images of a data set, labelled and prepared by the paper's protocol."""
    selection = _selection_of(model, options, benchmark, given)
    name = selection.benchmark.spec.name
    dataset = {
        "name": name,
        "pos_class": selection.pos_class,
        "test_limit": options.test_limit,
    }
    return Source(
        images=selection.test_samples(options.test_limit),
        name=f"{name}_{selection.pos_class}",
        folder=None,
        about={"test_dir": benchmark.data_root, "labels_csv": None, "dataset": dataset},
        available=len(selection.test_samples()),
        compared=False,
        warnings=_doubts(model, selection, options.task),
    )


def _selection_of(model: Model, options: InputOptions, benchmark: DatasetOptions, given: dict[str, Any]) -> Selection:
    """The run of the protocol that a model is of."""
    sources, num_transforms = model.record.sources, model.record.config.model.num_transforms
    named = options.input_name and not {"num_images", "index_download", "random_images_download"} & set(given)
    if named:
        return select_again(benchmark, sources, num_transforms)
    selection = select(benchmark, options.num_images or 1, num_transforms)
    if selection.training_ids() != list(sources):
        raise UserError(
            f"--input_name {model.folder.path.name}: was trained on other images than --num_images, --index_download "
            "and --random_images_download choose; leave these out, or name another model"
        )
    return selection


def _doubts(model: Model, selection: Selection, task: str | None) -> list[str]:
    """Say why a model may not be made for this run of the protocol."""
    spec, own_task = selection.benchmark.spec, model.record.config.model.task
    doubts = []
    if not _is_trained_on(model, selection):
        doubts.append(f"the model was not trained on images of {spec.title} as the protocol prepares them")
    elif not set(selection.training) <= set(selection.benchmark.training_candidates(selection.pos_class)):
        doubts.append(f"the model was trained on images of another class than {selection.pos_class}")
    if task is None and own_task != default_task(spec.name):
        doubts.append(
            f"the model's task is {own_task}, that of {spec.title} {default_task(spec.name)}: --task "
            f"{default_task(spec.name)} takes its fraction of the patches"
        )
    return doubts


def _is_trained_on(model: Model, selection: Selection) -> bool:
    """Whether the model's training images are, but for rounding, those of the same names in the data set."""
    if len(selection.training) != model.record.num_images:
        return False
    return all(model.was_trained_on(image, _PIXEL_TOLERANCE) for image in selection.training_images())


def good_images(model: Model, options: InputOptions, scored: Sequence[Sample]) -> list[Sample]:
    """The images of `--good_dir` that can be read and were not trained on.

    Args:
        model: that will score them.
        options: with the folder.
        scored: the test images; neither they nor copies of them may be among them.

    Raises:
        UserError: there is none, one cannot be read, or one will be scored.
    """
    if not options.good_dir:
        raise UserError("--good_dir: is empty; give a folder, or leave it out")
    folder = Path(options.good_dir)
    readable = check_images(find_good_images(folder, scored), skip_unreadable=options.skip_unreadable).items
    known = [item for item in readable if model.was_trained_on(item.read())]
    for item in known:
        logger.info("--good_dir: %s is left out, the model was trained on it", item.relative)
    good = [item for item in readable if item not in known]
    refuse_copies(folder, good, scored)
    return good


def check_images(items: Sequence[Sample], *, skip_unreadable: bool) -> TestSet:
    """Read every image and mask once."""
    reasons = check_readable(tqdm(items, "checking", unit="image", disable=None, dynamic_ncols=True))
    readable = [item for item in items if item.relative not in reasons]
    if reasons and not (skip_unreadable and readable):
        lines = list(reasons.values())
        more = f"; and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
        remedy = "give --skip_unreadable to go on without them" if readable else "none is left to score"
        raise UserError(f"{'; '.join(lines[:_LISTED])}{more}; {remedy}")
    for reason in reasons.values():
        logger.warning("left out: %s", reason)
    return TestSet(readable, reasons)
