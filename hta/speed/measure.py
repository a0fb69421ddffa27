"""Measures hta against the plain method in turns on one machine, its arithmetic, and how its time and memory grow."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from skimage import data

from hta.config import Config, ScoringConfig
from hta.evaluation.scorer import Scorer
from hta.images import resize
from hta.models.canvas import plan_canvases
from hta.runtime import Runtime, describe_machine, describe_versions, resolve, set_up
from hta.speed import plain
from hta.speed.plain import new_process, peak_memory_mib, run_in, timed
from hta.speed.report import Growth, Report, Timing
from hta.speed.workload import (
    IMAGE_SIDE,
    NUM_TRANSFORMS,
    benchmark_config,
    discriminator_gflop,
    random_pyramid,
    scale_trainer,
    scoring_gflop,
    training_images,
)

# hta scores this many images together; the plain method scores one at a time.
SCORED_IMAGES = 16

SIDES = (25, 32, 64, 128, 256)
SHOTS = (1, 5, 10, 20, 80)
TRANSFORMS = (4, 42, 54)
TEST_IMAGES = (16, 160, 1600)


# --- comparison with the plain method ---------------------------------------------------------------------------------


def run_benchmark(threads: int, precision: str, quick: bool) -> Report:
    """Measure both methods.

    Args:
        threads: CPU threads, 0 for one per core.
        precision: of hta; the plain method uses float32.
        quick: fewer repetitions, and hta only with its default settings.
    """
    config = benchmark_config(threads, precision)
    runtime = set_up(config.runtime)
    rounds = 1 if quick else 3
    conv_peak = measure_conv_peak(config, runtime, 2 * rounds)
    discriminator = measure_discriminator(config, runtime, 2 * rounds)
    configs = [config] if quick else [config, benchmark_config(threads, precision, compiled=False)]
    with new_process(threads) as process:
        scoring = measure_scoring(process, config, runtime, 2 * rounds)
        sizes, training = measure_training(process, configs, rounds)
    return Report(
        machine=describe_machine(runtime) | describe_versions(),
        sizes=sizes,
        training=training,
        scoring=scoring,
        conv_peak_gflops=conv_peak,
        discriminator_gflops=discriminator,
        scoring_gflops=scoring_gflop(config, runtime) / scoring.hta,
        peak_memory_mib=measure_memory(threads, config),
    )


def time_in_turns(ways: Sequence[Callable[[], float]], repeats: Sequence[int], rounds: int) -> list[float]:
    """Median seconds of several tasks, run in turns so that a slow moment of the machine affects all of them.

    Args:
        ways: the tasks; each returns how many seconds it took.
        repeats: how often each is run per round.
        rounds: number of rounds; one more is run first and not counted.
    """
    for way in ways:
        way()
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for way, times, repeat in zip(ways, seconds, repeats, strict=True):
            times += [way() for _ in range(repeat)]
    return [statistics.median(times) for times in seconds]


def measure_training(
    process: ProcessPoolExecutor, configs: Sequence[Config], rounds: int
) -> tuple[list[int], list[Timing]]:
    """Seconds of one iteration at every scale, for the plain method and for hta with each of the settings."""
    sizes, timings = [], []
    runtimes = [resolve(config.runtime) for config in configs]
    for n, size in enumerate(random_pyramid(configs[0], runtimes[0], 0).plan.sizes):
        trainers = [scale_trainer(config, runtime, n) for config, runtime in zip(configs, runtimes, strict=True)]
        ways: list[Callable[[], float]] = [partial(run_in, process, plain.time_training, n)]
        ways += [timed(partial(next, trainer.run())) for trainer in trainers]
        timings.append(Timing(*time_in_turns(ways, (1, 4, 4)[: len(ways)], rounds)))
        sizes.append(size[0])
    return sizes, timings


def measure_scoring(process: ProcessPoolExecutor, config: Config, runtime: Runtime, rounds: int) -> Timing:
    """Seconds for scoring one image at all scales, with both methods."""
    pyramid = random_pyramid(config, runtime)
    scorer = Scorer(pyramid)
    images = resize(training_images(), pyramid.plan.working_size).expand(SCORED_IMAGES, -1, -1, -1)
    plainly, ours = partial(run_in, process, plain.time_scoring), timed(partial(scorer.shares, images))
    explicit, hta = time_in_turns([plainly, ours], (2, 2), rounds)
    return Timing(explicit, hta / SCORED_IMAGES)


def measure_discriminator(config: Config, runtime: Runtime, rounds: int) -> float:
    """GFLOP/s of the discriminator at the finest scale, forward and backward, gradients of images and weights."""
    trainer = scale_trainer(config, runtime)
    network = trainer.scale.discriminator
    canvases = [batch.detach().requires_grad_() for batch in trainer.real_canvases]

    def forward_backward():
        logits = network(canvases, trainer.d_coverages)
        torch.autograd.backward(logits, [torch.ones_like(z) for z in logits])

    (seconds,) = time_in_turns([timed(forward_backward)], (5,), rounds)
    width = network.body.tail.in_channels
    return 3 * discriminator_gflop(config.model, trainer.size[0], width) / seconds


@torch.inference_mode()
def measure_conv_peak(config: Config, runtime: Runtime, rounds: int) -> float:
    """GFLOP/s of the fastest forward 3x3 convolution with the width and the number of pixels of the finest scale."""
    plan = random_pyramid(config, runtime, 0).plan
    side, width = plan.working_size[0], plan.widths[-1]
    pixels = sum(len(g.canvases) * g.size[0] * g.size[1] for g in plan_canvases(side, side, NUM_TRANSFORMS).groups)
    best = 0.0
    for layout in (torch.channels_last, torch.contiguous_format):
        weight = torch.randn(width, width, 3, 3).to(runtime.dtype).contiguous(memory_format=layout)
        for batch in (1, 4, 16):
            edge = round((pixels / batch) ** 0.5)
            x = torch.randn(batch, width, edge, edge).to(runtime.dtype).contiguous(memory_format=layout)
            (seconds,) = time_in_turns([timed(partial(F.conv2d, x, weight))], (10,), rounds)
            best = max(best, 2 * 9 * width * width * batch * (edge - 2) ** 2 / seconds / 1e9)
    return best


def measure_memory(threads: int, config: Config) -> dict[str, float]:
    """Peak resident memory, MiB, of a fresh process that trains the finest scale with each method."""
    with new_process(threads) as process:
        explicit = run_in(process, plain.training_memory)
    with new_process() as process:
        _, hta = run_in(process, train_finest, config, IMAGE_SIDE, 1)
    return {"explicit": explicit, "hta": hta}


# --- growth -----------------------------------------------------------------------------------------------------------


def measure_growth(threads: int, precision: str) -> Iterator[Growth]:
    """Measure time and memory of hta with the image, the training images, the transformations and the test images.

    Every row is measured in a fresh process, so that its peak memory is its own.

    Args:
        threads: CPU threads, 0 for one per core.
        precision: of hta.
    """
    config = benchmark_config(threads, precision)
    model, training = config.model, "iteration at the finest scale"
    for value in SIDES:
        changed = replace(config, model=replace(model, max_size=value))
        yield _grow("image side (px)", value, training, train_finest, changed, value, 1)
    for value in SHOTS:
        yield _grow("training images", value, training, train_finest, config, model.max_size, value)
    for value in TRANSFORMS:
        changed = replace(config, model=replace(model, num_transforms=value))
        yield _grow("transformations", value, training, train_finest, changed, model.max_size, 1)
    for value in TEST_IMAGES:
        yield _grow("test images", value, "image scored", score_images, config, value)


def _grow(what: str, value: int, unit: str, work: Callable[..., tuple[float, float]], *arguments) -> Growth:
    with new_process() as process:
        return Growth(what, value, unit, *run_in(process, work, *arguments))


def train_finest(config: Config, side: int, shots: int) -> tuple[float, float]:
    """Seconds of the second iteration at the finest scale, and peak memory of this process, MiB."""
    iterations = scale_trainer(config, set_up(config.runtime), side=side, shots=shots).run()
    next(iterations)
    return timed(partial(next, iterations))(), peak_memory_mib()


def score_images(config: Config, count: int) -> tuple[float, float]:
    """Seconds to score an image with its map, mean over `count` images, and peak memory of this process, MiB."""
    scorer = Scorer(random_pyramid(config, set_up(config.runtime)))
    image = data.astronaut()[:IMAGE_SIDE, :IMAGE_SIDE].astype("float32") / 255
    start = time.perf_counter()
    for _ in scorer.stream(itertools.repeat(image, count), 1.0, ScoringConfig().batch_size):
        pass
    return (time.perf_counter() - start) / count, peak_memory_mib()
