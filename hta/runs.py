"""The life of a training run in its folder: what may be begun or resumed, and its training to the end."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hta.config import Config, RuntimeConfig
from hta.errors import UserError
from hta.files import check_replaceable, printable
from hta.images import is_gray, resize, to_array, to_tensor
from hta.model import ImageLike, Model, as_list
from hta.models.pyramid import plan_of
from hta.models.storage import RunFolder, RunRecord
from hta.runtime import Runtime, resolve, set_up
from hta.training.report import write_train_page
from hta.training.trainer import train_pyramid

_TOLD_APART = {torch.bfloat16: 256}
"""Training images that a generator tells apart by their numbers: in bfloat16 higher ones are rounded."""


@dataclass(frozen=True)
class TrainingSet:
    """Training images, ready to train on.

    Attributes:
        record: of the run to come.
        images: `(N, 3, h, w)` float32 in [-1, 1], at the working size.
    """

    record: RunRecord
    images: Tensor


def check_told_apart(num_images: int, runtime: Runtime) -> None:
    """Refuse more training images than the generators tell apart.

    Raises:
        UserError: their numbers are rounded in the runtime's precision.
    """
    most = _TOLD_APART.get(runtime.dtype, num_images)
    if num_images > most:
        raise UserError(
            f"{num_images} training images: --precision bfloat16 tells {most} apart at most; give --precision float32, "
            "or fewer images"
        )


def prepare(images: Iterable[np.ndarray], sources: Sequence[str], config: Config) -> TrainingSet:
    """Check images and settings against each other, and fill in what the settings leave to the task.

    Args:
        images: N arrays `(H, W, 3)`, float32 in [0, 1], of one size, let go one after the other.
        sources: their names.
        config: the settings.

    Returns:
        The training set.

    Raises:
        UserError: the scale plan does not fit the images, or the precision does not fit their number.
    """
    # A device that is not there is refused before anything is written.
    check_told_apart(len(sources), resolve(config.runtime))
    size, gray, resized = None, True, []
    for image, source in zip(images, sources, strict=True):
        if size is None:
            size = image.shape[:2]
            plan = plan_of(config.model, size)
        elif image.shape[:2] != size:
            raise UserError(
                f"{source}: {image.shape[1]} x {image.shape[0]} px, the first image has {size[1]} x {size[0]} px; give "
                "images of one size"
            )
        gray = gray and is_gray(image)
        resized.append(resize(to_tensor([image]), plan.working_size))
    record = RunRecord(config.resolved(is_gray=gray), tuple(sources), tuple(size), gray)
    return TrainingSet(record, torch.cat(resized))


def check_vacant(folder: RunFolder, *, overwrite: bool) -> None:
    """Refuse a folder in which a new run would destroy something, or which no run could write.

    Raises:
        UserError: a model is there and `overwrite` is off, or with something in it that hta did not write; or it is not
            a model, a file, the working directory, or of a name that is not UTF-8.
    """
    path = folder.path
    readable = printable(path)
    if readable != str(path):
        raise UserError(f"{readable}: is not UTF-8, as the names of a model's files must be; give another --name")
    for parent in (path, *path.parents):
        if parent.exists():
            if not parent.is_dir():
                raise UserError(
                    f"{parent}: is a file where the run folder should be; give another --name or --models_dir"
                )
            break
    if not path.exists() or not any(path.iterdir()):
        return
    if not folder.exists:
        raise UserError(f"{path}: exists and is not a model of hta; give another --name")
    if not overwrite:
        raise UserError(f"{path}: {_state_of(folder)}; give another --name, or --overwrite to replace it")
    check_overwritable(folder, "give another --name")


def check_overwritable(folder: RunFolder, remedy: str, part: str = "") -> None:
    """Refuse to replace a run folder, or a folder in it, that holds more than hta wrote, or that one works in.

    Args:
        folder: of the run.
        remedy: what to do instead.
        part: the folder in it; by default the whole.

    Raises:
        UserError: names the first file, or the working directory.
    """
    foreign = folder.foreign_files(part)
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise UserError(
            f"{folder.path}: holds {foreign[0]}{more}, which --overwrite would delete and hta did not write; move it "
            f"away, or {remedy}"
        )
    check_replaceable(folder.path / part, str(folder.path / part), remedy)


def _state_of(folder: RunFolder) -> str:
    """What is in a run folder, in words."""
    try:
        folder.read_record()
    except UserError:
        return "holds a model that this version of hta cannot read"
    return "holds a trained model" if folder.finished else "holds an unfinished run, --resume goes on with it"


@contextmanager
def begun(folder: RunFolder, training_set: TrainingSet, *, overwrite: bool = False) -> Iterator[None]:
    """Make the run folder of a new training, with a first checkpoint, and keep other processes from training in it.

    Args:
        folder: its place.
        training_set: what it will be trained on.
        overwrite: replace a run that is there, unless a process trains it.

    Raises:
        UserError: as `check_vacant`, or another process trains in it.
        RunError: it cannot be written.
    """
    check_vacant(folder, overwrite=overwrite)
    # Kept as it is here: a run that is resumed elsewhere must not change its type midway.
    runtime = training_set.record.config.runtime
    precision = "bfloat16" if resolve(runtime).dtype == torch.bfloat16 else "float32"
    config = replace(training_set.record.config, runtime=replace(runtime, precision=precision))
    record = replace(training_set.record, config=config)
    with folder.created(record, training_set.images, replace=overwrite):
        yield


def check_resumable(folder: RunFolder) -> None:
    """Refuse to resume where there is nothing to resume.

    Raises:
        UserError: no run, or a finished one.
    """
    if not folder.exists:
        raise UserError(
            f"{folder.path}: nothing to resume here; start without --resume, or check --name and --models_dir"
        )
    if folder.finished:
        raise UserError(f"{folder.path}: is finished and has no checkpoint to resume from; --overwrite trains anew")


def check_same_run(folder: RunFolder, training_set: TrainingSet, given: Sequence[str]) -> None:
    """Refuse to resume a run with other settings or images than it was begun with.

    Args:
        folder: of the run.
        training_set: images and settings of now.
        given: names of the settings that were said explicitly; others are taken from the run.

    Raises:
        UserError: names the first difference.
    """
    kept = folder.read_record()
    for part in ("model", "training", "runtime"):
        before, now = getattr(kept.config, part), getattr(training_set.record.config, part)
        for name in (f.name for f in fields(before)):
            free = name in ("device", "not_cuda", "threads", "checkpoint_every")
            if name in given and not free and getattr(before, name) != getattr(now, name):
                raise UserError(
                    f"--{name} {getattr(now, name)}: the run in {folder.path} was begun with {getattr(before, name)}; "
                    "leave the option out to resume, or give another --name"
                )
    images = folder.read_images()
    if images.shape != training_set.images.shape or not bool((images == training_set.images).all()):
        raise UserError(
            f"{', '.join(training_set.record.sources)}: not the training images of the run in {folder.path}; give "
            "the same to resume, or another --name"
        )


def go_on(folder: RunFolder, runtime_config: RuntimeConfig | None = None) -> Model:
    """Train from the folder's checkpoint to the end; the run stays unfinished until `folder.finish()`.

    Args:
        folder: a run that was begun, locked (by `begun`, or `RunFolder.locked`) until it is finished.
        runtime_config: device, threads and checkpoints of now; by default as the run was begun.

    Returns:
        The model.

    Raises:
        UserError: a file of the run is damaged.
        RunError: the training broke, or a file cannot be written.
    """
    record, images = folder.read_record(), folder.read_images()
    if runtime_config is not None:
        record = replace(record, config=replace(record.config, runtime=runtime_config))
    return train_model(TrainingSet(record, images), folder)


def train_model(training_set: TrainingSet, folder: RunFolder | None = None) -> Model:
    """Train a model on the device and in the precision that its settings ask for.

    Args:
        training_set: images and settings.
        folder: of the run, which may hold a checkpoint; None trains in memory.

    Returns:
        The model.

    Raises:
        UserError: a file of the run is damaged.
        RunError: the training broke, or a file cannot be written.
    """
    record, images = training_set.record, training_set.images
    runtime = set_up(record.config.runtime)
    return Model(record, train_pyramid(images, record, runtime, folder), runtime, images, folder)


def train(
    images: ImageLike | Sequence[ImageLike],
    config: Config | None = None,
    *,
    folder: str | Path | None = None,
    overwrite: bool = False,
) -> Model:
    """Train a model on one normal image, or a few.

    Args:
        images: paths, PIL images or arrays: `(H, W)`, `(H, W, 3)`, uint8 or float in [0, 1]; all of one size.
        config: settings; the defaults are the paper's choices for defects.
        folder: run folder to keep the model in; None keeps it in memory.
        overwrite: replace a model that is there.

    Returns:
        The model.

    Raises:
        UserError: an image or a setting that does not fit, or a folder that holds a model.
        RunError: the training broke.
    """
    several = as_list(images)
    sources = [str(image) if isinstance(image, str | Path) else f"image {i}" for i, image in enumerate(several)]
    training_set = prepare((to_array(image) for image in several), sources, config or Config())
    if folder is None:
        return train_model(training_set)
    run_folder = RunFolder(Path(folder))
    with begun(run_folder, training_set, overwrite=overwrite):
        model = go_on(run_folder)
        shares, seed = model.training_vote_shares(), model.record.config.training.manualSeed
        write_train_page(run_folder.path, model.record, model.pyramid, model.training_images, shares, seed)
        model.keep_calibration()
        run_folder.finish()
    return model
