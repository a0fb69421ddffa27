"""A training run from start to finish: prepared, started or resumed, trained, checked and finished."""

import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hta.config import NUM_SAMPLES, Config, RuntimeConfig, WatchConfig
from hta.errors import UserError, parameters_named
from hta.files import recover
from hta.images import full_size, is_gray, resize, to_array, to_tensor
from hta.model import ImageLike, Model, as_list
from hta.models.native import choose_kernels
from hta.models.scales import image_pyramid, plan_of
from hta.models.storage import RunFolder, RunRecord
from hta.runtime import Runtime, resolve, set_up
from hta.training import progress
from hta.training.animation import picture_row, remove_frames, write_films
from hta.training.logs import opened
from hta.training.report import MOST_PICTURES, PageNotes, picture_for_page, write_train_page
from hta.training.samples import SAMPLES_FOLDER, draw_samples, write_samples
from hta.training.trainer import train_pyramid
from hta.vacancy import check_overwritable, check_vacant, foreign_files

logger = logging.getLogger(__name__)

# A range of brightness within which noise hides everything, and one that an image should exceed, of [0, 1].
_BLANK, _DIM = 6 / 255, 0.1

# Most training images for a precision: in bfloat16, a generator's input cannot represent higher image numbers.
_MAX_IMAGES = {torch.bfloat16: 256}

# Settings that a resumed run may change, since they do not affect its result.
_CHANGEABLE = ("device", "not_cuda", "threads", "checkpoint_every")
_UNWATCHED = WatchConfig()


class TrainingSet(NamedTuple):
    """The record of a run, and its training images: `(N, 3, h, w)` float32 in [-1, 1], at the working size.

    `pictures` shows the first of them as they were given, `(H, W, 3)` uint8, for the page.
    """

    record: RunRecord
    images: Tensor
    pictures: Sequence[np.ndarray] = ()


def check_image_count(num_images: int, runtime: Runtime) -> None:
    """Refuse more training images than the precision supports, with a UserError."""
    most = _MAX_IMAGES.get(runtime.dtype, num_images)
    if num_images > most:
        limit = f"--precision bfloat16 supports at most {most}"
        raise UserError(f"{num_images} training images: {limit}; give --precision float32, or fewer images")


def prepare(images: Iterable[np.ndarray], sources: Sequence[str], config: Config) -> TrainingSet:
    """Check images and settings against each other, and fill in the settings that depend on the images.

    Args:
        images: N arrays `(H, W, 3)`, float32 in [0, 1], all of one size; only one at a time is kept in memory.
        sources: their names.
        config: the settings.

    Raises:
        UserError: images of different sizes or of one colour, a scale plan that does not fit them, too many images for
            the precision, or a device that does not exist.
    """
    check_image_count(len(sources), resolve(config.runtime))
    gray = True
    resized: list[Tensor] = []
    pictures: list[np.ndarray] = []
    for image, source in zip(images, sources, strict=True):
        height, width = full_size(image)
        if not resized:
            size, plan = (height, width), plan_of(config.model, (height, width))
        elif (height, width) != size:
            one = f"but the first image has {size[1]} x {size[0]} px; give images of one size"
            raise UserError(f"{source}: {width} x {height} px, {one}")
        gray = gray and is_gray(image)
        resized.append(resize(to_tensor([image]), plan.working_size))
        _refuse_blank(resized[-1], source)
        if len(pictures) < MOST_PICTURES:
            pictures.append(picture_for_page(image, len(sources)))
    record = RunRecord(tuple(sources), size, gray, config.resolved(is_gray=gray))
    return TrainingSet(record, torch.cat(resized), pictures)


def _refuse_blank(image: Tensor, source: str) -> None:
    """Refuse a training image `(1, 3, h, w)` in [-1, 1] of one colour, but for noise and 0.5 % of its pixels each way.

    A hint says if it uses less than a tenth of the range, as 12 bits in a file of 16 do.
    """
    low, high = torch.quantile(image[0].flatten(1), torch.tensor([0.005, 0.995]), dim=1)
    dim = (float(image.max()) + 1) / 2 < _DIM
    if float((high - low).max()) < 2 * _BLANK:
        remedy = (
            "scale its values to the whole range" if dim and image.max() > -0.999 else "give one that shows the object"
        )
        raise UserError(f"{source}: is of one colour, or wholly transparent, and teaches nothing; {remedy}")
    if dim:
        text = "%s: uses less than a tenth of the range of its values, like 12 bits in 16; better scale it to all of it"
        logger.warning(text, source)


@contextmanager
def new_run(folder: RunFolder, training_set: TrainingSet, *, overwrite: bool = False) -> Iterator[TrainingSet]:
    """Create the run folder of a new training, with a first checkpoint, and lock it during the block.

    Yields the `settled` training set.
    """
    check_vacant(folder, overwrite=overwrite)
    stored = settled(training_set)
    with folder.created(stored.record, stored.images, replace=foreign_files if overwrite else None):
        yield stored


def settled(training_set: TrainingSet) -> TrainingSet:
    """With the kernels, and the precision that "auto" means here: a run resumed elsewhere must not change it midway."""
    config = training_set.record.config
    precision = "bfloat16" if resolve(config.runtime).dtype == torch.bfloat16 else "float32"
    config = replace(config, runtime=replace(config.runtime, precision=precision))
    record = replace(training_set.record, config=config, kernels=_kernels(config.runtime))
    return training_set._replace(record=record)


def _kernels(config: RuntimeConfig) -> str:
    """The kernels that a training with these settings uses here."""
    runtime = resolve(config)
    return choose_kernels(runtime.device, runtime.compile).description


def check_resumable(folder: RunFolder) -> None:
    """Refuse to resume where there is no run, or a finished one, with a UserError."""
    recover(folder.path)
    if not folder.exists:
        remedy = "start without --resume, or check --name and --models_dir"
        raise UserError(f"{folder.path}: nothing to resume here; {remedy}")
    if folder.finished:
        raise UserError(f"{folder.path}: is finished and has no checkpoint to resume from; --overwrite trains it anew")
    check_overwritable(folder, "give another --name", SAMPLES_FOLDER)


@contextmanager
def resumed_run(folder: RunFolder, training_set: TrainingSet, given: Collection[str]) -> Iterator[TrainingSet]:
    """Lock an unfinished run during the block; arguments and result are those of `check_same_run`.

    Other kernels than those that it was started with are said.
    """
    with folder.locked():
        same = check_same_run(folder, training_set, given)
        before, now = same.record.kernels, _kernels(same.record.config.runtime)
        if before not in ("", now):
            text = "the run was started with %s and goes on with %s: the weights will differ by rounding"
            logger.warning(text, before, now)
        yield same


def check_same_run(folder: RunFolder, training_set: TrainingSet, given: Collection[str]) -> TrainingSet:
    """Refuse to resume a run with other settings, of those that were `given` explicitly, or with other images.

    Returns the training set of the run, with the runtime settings of now.
    """
    check_resumable(folder)
    record, now = folder.read_record(), training_set.record.config
    for part in ("model", "training", "runtime"):
        ours, theirs = asdict(getattr(now, part)), asdict(getattr(record.config, part))
        for name in ours:
            if name in given and name not in _CHANGEABLE and ours[name] != theirs[name]:
                started = f"the run in {folder.path} was started with {theirs[name]}"
                remedy = "leave the option out to resume, or give another --name"
                raise UserError(f"--{name} {ours[name]}: {started}; {remedy}")
    if not torch.equal(folder.read_images(), training_set.images):
        reason = f"not the training images of the run in {folder.path}"
        sources = ", ".join(training_set.record.sources)
        raise UserError(f"{sources}: {reason}; give the same images to resume, or another --name")
    config = replace(record.config, runtime=now.runtime)
    return training_set._replace(record=replace(record, config=config))


def train_run(
    folder: RunFolder,
    training_set: TrainingSet,
    num_samples: int = NUM_SAMPLES,
    next_command: str | None = None,
    watch: WatchConfig = _UNWATCHED,
) -> tuple[Model, np.ndarray]:
    """Train from the folder's checkpoint to the end, and leave everything that belongs to a finished run.

    Args:
        folder, training_set: from `new_run` or `resumed_run`.
        num_samples: random samples to draw.
        next_command: scores images with the model; by default two lines of Python.
        watch: what else shows the training.

    Returns:
        The model, and its vote shares on the training images, `(N, S)` in [0, 1] (chance is 1 / M).

    Raises:
        UserError: a file of the run is damaged.
        RunError: a loss is not finite, or a file cannot be written; the last checkpoint is intact.
    """
    record, images, pictures = training_set
    is_resumed, start = (folder.path / progress.METRICS_FILE).exists(), time.perf_counter()
    runtime, seed = set_up(record.config.runtime), record.config.training.manualSeed
    with opened(watch.log, folder.path, record.config) as log:
        pyramid = train_pyramid(images, record, runtime, folder, num_samples, watch.animate, log)
        seconds = time.perf_counter() - start
        model = Model(record, pyramid, runtime, images, folder)
        shares = model.scorer.shares(model.training_images)[0]
        for n, level in enumerate(image_pyramid(images, pyramid.plan.sizes) if watch.log else ()):
            step = (n + 1) * record.config.training.niter - 1  # the last one of the scale
            log.scalars(step, {f"vote_share/scale_{n}": float(shares[:, n].mean())})
            log.image(step, f"samples/scale_{n}", picture_row(pyramid, level[:1], seed, n + 1))
    write_samples(folder.path / SAMPLES_FOLDER, draw_samples(pyramid, num_samples, seed), pyramid.reconstruct())
    if watch.animate:
        write_films(folder.path, pyramid, seed)
    remove_frames(folder.path)
    in_python = f"import hta\nhta.load({str(folder.path)!r}).score(['YOUR_IMAGE.png'])"
    notes = PageNotes(pictures, seconds, is_resumed, next_command or in_python)
    write_train_page(folder.path, model.record, pyramid, model.training_images, shares, seed, notes)
    model.keep_calibration()
    model.record = replace(record, training_shares=model.traced_shares())
    folder.write_record(model.record)
    folder.finish()
    return model, shares


@parameters_named()
def train(
    images: ImageLike | Iterable[ImageLike],
    config: Config | None = None,
    *,
    folder: str | Path | None = None,
    overwrite: bool = False,
    num_samples: int = NUM_SAMPLES,
) -> Model:
    """Train a model on one or a few normal images.

    Args:
        images: one or several, as `Model.score` takes them; all of one size.
        config: settings; by default the paper's choices for defects.
        folder: run folder, with the same content as from main_train.py; None keeps the model in memory.
        overwrite: replace an existing model.
        num_samples: random samples to draw into the folder.

    Returns:
        The model.

    Raises:
        UserError: an unsuitable image or setting, or a folder that is taken.
        RunError: a loss is not finite, or a file cannot be written.
    """
    several = as_list(images)
    paths = (str, bytes, os.PathLike)
    sources = [os.fsdecode(image) if isinstance(image, paths) else f"image {i}" for i, image in enumerate(several)]
    training_set = prepare((to_array(image) for image in several), sources, config or Config())
    if folder is None:
        record, stacked, _ = settled(training_set)
        runtime = set_up(record.config.runtime)
        return Model(record, train_pyramid(stacked, record, runtime), runtime, stacked)
    run_folder = RunFolder(Path(folder))
    with new_run(run_folder, training_set, overwrite=overwrite) as stored:
        return train_run(run_folder, stored, num_samples)[0]
