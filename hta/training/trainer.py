"""Training of a whole pyramid, scale by scale, with checkpoints (paper, section 3.2)."""

import logging
import time
from dataclasses import replace
from itertools import pairwise

from torch import Tensor

from hta.errors import UserError
from hta.files import sweep
from hta.models.native import choose_kernels
from hta.models.pyramid import Pyramid
from hta.models.scales import image_pyramid
from hta.models.storage import CHECKPOINT_FILE, RunFolder, RunRecord
from hta.runtime import Runtime, full_precision
from hta.training.animation import take_frame
from hta.training.logs import Logger
from hta.training.progress import TIMED, WARM_UP, Costs, Journal
from hta.training.scale import ScaleTrainer

logger = logging.getLogger(__name__)

_FEW_IMAGES, _MEASURED_S = 4, 2.0  # with which the length of a run is estimated


@full_precision()
def train_pyramid(
    images: Tensor,
    record: RunRecord,
    runtime: Runtime,
    folder: RunFolder | None = None,
    num_samples: int | None = None,
    animate: bool = False,
    log: Logger | None = None,
) -> Pyramid:
    """Train all scales, or continue from the checkpoint of a run folder.

    Args:
        images: `(N, 3, h, w)` training images at the working size, in [-1, 1].
        record: of the run, with resolved settings.
        runtime: device and precision.
        folder: a run folder with a checkpoint; None keeps everything in memory.
        num_samples: random samples that are drawn afterwards, for the time left; None if nothing follows.
        animate, log: keep frames in the run folder for `write_films`; gets all losses, also those from before.

    Returns:
        The pyramid, with all scales frozen.

    Raises:
        UserError: the checkpoint, or an earlier scale, is damaged or belongs to another run.
        RunError: a loss is not finite, or a file cannot be written; the last checkpoint is intact.
    """
    model, training = record.config.model, record.config.training
    kernels = choose_kernels(runtime.device, runtime.compile)
    pyramid = Pyramid(model, record.image_size, record.num_images, runtime.device, runtime.dtype, kernels)
    plan, num_scales = pyramid.plan, pyramid.plan.num_scales
    costs = Costs(plan, model, record.num_images, num_samples)
    journal = Journal(costs, training.niter, folder.path if folder else None, log)
    state, start, iteration = _read_position(folder, num_scales, training.niter) if folder else ({}, 0, 0)
    if folder:
        sweep(folder.path)
        folder.load_scales(pyramid, start)
        journal.resume(start, iteration)
    logger.info(
        f"{num_scales} scales of {plan.describe()} px, {model.num_transforms} transformations, {training.niter} "
        f"iterations per scale, {record.num_images} training image{'s' * (record.num_images > 1)}"
    )
    levels = image_pyramid(images, plan.sizes)
    for n in range(start, num_scales):
        trainer = ScaleTrainer(pyramid, levels[n], training, images)
        if folder and state:
            trainer.restore(state, iteration, str(folder.path / CHECKPOINT_FILE))
            state = {}
        journal.begin_scale(n, trainer.iteration)
        try:
            for losses in trainer.run():
                journal.record(n, trainer.iteration - 1, losses)
                if folder and animate:
                    take_frame(folder.path, trainer)
                if folder and trainer.iteration % record.config.runtime.checkpoint_every == 0:
                    # Losses first: the checkpoint must never be ahead of them.
                    journal.save()
                    folder.save_checkpoint(trainer.state(), scale=n, iteration=trainer.iteration)
            journal.save()
        finally:
            journal.end_scale()
        pyramid.scales.append(trainer.finish())
        if folder:
            folder.save_scale(n, trainer.scale)
            folder.save_checkpoint({}, scale=n + 1, iteration=0)
    return pyramid


@full_precision()
def estimate_seconds(images: Tensor, record: RunRecord, runtime: Runtime, num_samples: int) -> float:
    """How long a run will take, from a few iterations of its coarsest scale; arguments as for `train_pyramid`."""
    model, training, few = record.config.model, record.config.training, images[:_FEW_IMAGES]
    kernels = choose_kernels(runtime.device, runtime.compile)
    pyramid = Pyramid(model, record.image_size, len(few), runtime.device, runtime.dtype, kernels)
    level = image_pyramid(few, pyramid.plan.sizes)[0]
    trainer, times = ScaleTrainer(pyramid, level, replace(training, niter=WARM_UP + TIMED)), [time.perf_counter()]
    for _ in trainer.run():
        times.append(time.perf_counter())
        if trainer.iteration > 1 and times[-1] - times[0] > _MEASURED_S:  # the first one warms up
            break
    pace = min(late - early for early, late in pairwise(times))  # others only ever take longer
    whole, part = (Costs(pyramid.plan, model, num_images, num_samples) for num_images in (record.num_images, len(few)))
    return whole.seconds_left(0, training.niter, 0, pace * whole.iterations[0] / part.iterations[0])


def _read_position(folder: RunFolder, num_scales: int, niter: int) -> tuple[dict[str, Tensor], int, int]:
    """The state of the scale in training, its number, and its iteration, checked."""
    state, scale, iteration = folder.read_checkpoint()
    if not (0 <= scale <= num_scales and 0 <= iteration <= niter and bool(state) == (iteration > 0)):
        raise UserError(
            f"{folder.path / CHECKPOINT_FILE}: not a state of this run (scale {scale} of {num_scales}, iteration "
            f"{iteration} of {niter}, {len(state)} tensors); train again with --overwrite"
        )
    return state, scale, iteration
