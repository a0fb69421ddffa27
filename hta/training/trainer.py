"""Training of a whole pyramid, scale by scale, with checkpoints (paper, section 3.2)."""

import logging

from torch import Tensor

from hta.errors import UserError
from hta.files import sweep
from hta.models.native import choose_kernels
from hta.models.pyramid import Pyramid
from hta.models.scales import image_pyramid
from hta.models.storage import CHECKPOINT_FILE, RunFolder, RunRecord
from hta.runtime import Runtime
from hta.training.progress import Journal
from hta.training.scale import ScaleTrainer

logger = logging.getLogger(__name__)


def train_pyramid(images: Tensor, record: RunRecord, runtime: Runtime, folder: RunFolder | None = None) -> Pyramid:
    """Train all scales, or continue from the checkpoint of a run folder.

    Args:
        images: `(N, 3, h, w)` training images at the working size, in [-1, 1].
        record: of the run, with resolved settings.
        runtime: device and precision.
        folder: a run folder with a checkpoint; None keeps everything in memory.

    Returns:
        The pyramid, with all scales frozen.

    Raises:
        UserError: the checkpoint, or an earlier scale, is damaged or belongs to another run.
        RunError: a loss is not finite, or a file cannot be written; the last checkpoint is intact.
    """
    model, training = record.config.model, record.config.training
    kernels = choose_kernels(runtime.device, runtime.compile)
    pyramid = Pyramid.planned(model, record.image_size, record.num_images, runtime.device, runtime.dtype, kernels)
    journal = Journal(pyramid.plan, model, training.niter, folder.path if folder else None)
    state, start, iteration = _read_position(folder, pyramid.plan.num_scales, training.niter) if folder else ({}, 0, 0)
    if folder:
        sweep(folder.path)
        folder.load_scales(pyramid, start)
        journal.resume(start, iteration)
    logger.info(
        "%d scales of %s px, %d transformations, %d iterations per scale, %d training image%s",
        pyramid.plan.num_scales,
        pyramid.plan.describe(),
        model.num_transforms,
        training.niter,
        record.num_images,
        "s" * (record.num_images > 1),
    )
    levels = image_pyramid(images, pyramid.plan.sizes)
    for n in range(start, pyramid.plan.num_scales):
        trainer = ScaleTrainer(pyramid, levels[n], training)
        if folder and state:
            trainer.restore(state, iteration, str(folder.path / CHECKPOINT_FILE))
            state = {}
        _train_scale(trainer, journal, folder, record.config.runtime.checkpoint_every)
        pyramid.scales.append(trainer.finish())
        if folder:
            folder.save_scale(n, trainer.scale)
            folder.save_checkpoint({}, scale=n + 1, iteration=0)
    return pyramid


def _read_position(folder: RunFolder, num_scales: int, niter: int) -> tuple[dict[str, Tensor], int, int]:
    """The state of the scale in training, its number, and its iteration.

    Raises:
        UserError: the checkpoint is damaged, or outside the run.
    """
    state, scale, iteration = folder.read_checkpoint()
    if not (0 <= scale <= num_scales and 0 <= iteration <= niter and bool(state) == (iteration > 0)):
        raise UserError(
            f"{folder.path / CHECKPOINT_FILE}: not a state of this run (scale {scale} of {num_scales}, iteration "
            f"{iteration} of {niter}, {len(state)} tensors); train again with --overwrite"
        )
    return state, scale, iteration


def _train_scale(trainer: ScaleTrainer, journal: Journal, folder: RunFolder | None, checkpoint_every: int) -> None:
    """Train one scale to its end."""
    journal.begin_scale(trainer.n, trainer.iteration)
    try:
        for losses in trainer.run():
            journal.record(trainer.n, trainer.iteration - 1, losses)
            if folder and trainer.iteration % checkpoint_every == 0:
                # Losses first: the checkpoint must never be ahead of them.
                journal.save()
                folder.save_checkpoint(trainer.state(), scale=trainer.n, iteration=trainer.iteration)
        journal.save()
    finally:
        journal.end_scale()
