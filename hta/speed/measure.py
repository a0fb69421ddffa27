"""Measures hta against the plain method in turns on one machine, its arithmetic, and how its time and memory grow.

The plain method runs in a separate process, with the settings of an ordinary program: hta makes the memory allocator of
its process keep freed memory, and in the same process the plain method would benefit from this too.
"""

import itertools
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from skimage import data

from hta.config import Config, ScoringConfig
from hta.evaluation.scorer import Scorer
from hta.images import resize
from hta.models.canvas import plan_canvases
from hta.models.scales import image_pyramid, plan_of
from hta.runtime import (
    Runtime,
    available_cores,
    describe_machine,
    describe_versions,
    own_process,
    resolve,
    seeded_generator,
)
from hta.speed.explicit import PlainNetwork, transformation_list, vote_share
from hta.speed.workload import (
    IMAGE_SIDE,
    NUM_TRANSFORMS,
    benchmark_config,
    discriminator_gflop,
    explicit_scale,
    random_pyramid,
    scale_trainer,
    training_images,
)

# hta scores this many images together; the plain method scores one at a time.
SCORED_IMAGES = 16

SIDES = (25, 32, 64, 128, 256)
SHOTS = (1, 5, 10, 20, 80)
TRANSFORMS = (4, 42, 54)
TEST_IMAGES = (16, 160, 1600)

_PLAIN = benchmark_config(0, "float32"), Runtime(torch.device("cpu"), torch.float32, compile=False)


class Timing(NamedTuple):
    """Median seconds of a task: plain method, hta, and hta without compiled kernels if measured."""

    explicit: float
    hta: float
    operators: float | None = None

    def ratios(self) -> tuple[float, float | None]:
        """How many times faster hta is, with its default settings and without compiled kernels."""
        return self.explicit / self.hta, None if self.operators is None else self.explicit / self.operators


def summarize(figures: dict[str, Any]) -> dict[str, Any]:
    """Add the ratios to the figures, and make them ready for JSON.

    Args:
        figures: `machine` and versions, `sizes` of the scales in pixels, timings of `training` (an iteration, for every
            scale, coarsest first) and `scoring` (an image, all scales), `conv_peak_gflops`, `discriminator_gflops`,
            `scoring_gflops`, and `peak_memory_mib` of each method.
    """
    training: Sequence[Timing] = figures["training"]
    scoring: Timing = figures["scoring"]
    explicit, hta, operators = zip(*training, strict=True)
    whole = Timing(sum(explicit), sum(hta), None if None in operators else sum(operators))
    return figures | {
        "training": [timing._asdict() for timing in training],
        "scoring": scoring._asdict(),
        "ratios": {
            "training_all_scales": whole.ratios()[0],
            "training_finest": training[-1].ratios()[0],
            "training": [timing.ratios()[0] for timing in training],
            "scoring": scoring.ratios()[0],
            "training_all_scales_no_compile": whole.ratios()[1],
            "training_finest_no_compile": training[-1].ratios()[1],
        },
        "seconds": {"training_all_scales": whole._asdict()},
        "conv_peak_fraction": {
            "discriminator_finest": figures["discriminator_gflops"] / figures["conv_peak_gflops"],
            "scoring": figures["scoring_gflops"] / figures["conv_peak_gflops"],
        },
    }


def new_process(threads: int | None = None) -> ProcessPoolExecutor:
    """A fresh process; with CPU threads for the plain method, 0 for one per core, or else as its work sets them up."""
    context = multiprocessing.get_context("spawn")
    if threads is None:
        return ProcessPoolExecutor(1, context)
    return ProcessPoolExecutor(1, context, torch.set_num_threads, (threads or available_cores(),))


def run_in(process: ProcessPoolExecutor, work: Callable[..., Any], *arguments) -> Any:
    """Call a function in a process, and return its result."""
    return process.submit(work, *arguments).result()


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """The same work, returning the seconds that it took."""

    def way() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return way


def peak_memory_mib() -> float:
    """Peak resident memory of this process, from the kernel where possible: without the share of the parent process."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


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


@lru_cache(maxsize=1)
def plain_training(scale: int | None) -> Callable[[], object]:
    """One iteration at a scale, by default the finest."""
    explicit, stream = explicit_scale(scale_trainer(*_PLAIN, scale)), seeded_generator("benchmark")
    return partial(explicit.iterate, stream)


@lru_cache(maxsize=1)
def plain_scoring() -> Callable[[], object]:
    """Scoring one image at all scales."""
    pyramid, transformations = random_pyramid(*_PLAIN), transformation_list(NUM_TRANSFORMS)
    networks = [PlainNetwork.copy_of(scale.discriminator.body) for scale in pyramid.scales]
    (image,) = image_pyramid(training_images(), [pyramid.plan.working_size])
    return lambda: [
        vote_share(network, level, transformations)
        for network, level in zip(networks, image_pyramid(image, pyramid.plan.sizes), strict=True)
    ]


def time_plain(prepare: Callable[..., Callable[[], object]], *arguments) -> float:
    """Seconds of work that is prepared once per process."""
    return timed(prepare(*arguments))()


def plain_memory() -> float:
    """Peak memory of this process, MiB, after two iterations at the finest scale."""
    work = plain_training(None)
    for _ in range(2):
        work()
    return peak_memory_mib()


def run_benchmark(threads: int, precision: str, quick: bool) -> dict[str, Any]:
    """Measure both methods.

    Args:
        threads: CPU threads, 0 for one per core.
        precision: of hta; the plain method uses float32.
        quick: fewer repetitions, and hta only with its default settings.

    Returns:
        The report, see `summarize`.
    """
    config = benchmark_config(threads, precision)
    own_process(config.runtime)
    runtime, plan = resolve(config.runtime), plan_of(config.model, (IMAGE_SIDE, IMAGE_SIDE))
    rounds = 1 if quick else 3
    conv_peak = measure_conv_peak(config, runtime, 2 * rounds)
    discriminator = measure_discriminator(config, runtime, 2 * rounds)
    configs = [config] if quick else [config, benchmark_config(threads, precision, compiled=False)]
    with new_process(threads) as process:
        scoring = measure_scoring(process, config, runtime, 2 * rounds)
        training = [measure_training(process, configs, rounds, n) for n in range(plan.num_scales)]
    with new_process(threads) as process:
        plain_mib = run_in(process, plain_memory)
    with new_process() as process:
        _, hta_mib = run_in(process, train_finest, config, IMAGE_SIDE, 1)
    scales = zip(plan.sizes, plan.widths, strict=True)
    gflop = sum(discriminator_gflop(config.model, size[0], width) for size, width in scales)
    return summarize(
        {
            "machine": describe_machine(runtime) | describe_versions(),
            "sizes": [size[0] for size in plan.sizes],
            "training": training,
            "scoring": scoring,
            "conv_peak_gflops": conv_peak,
            "discriminator_gflops": discriminator,
            "scoring_gflops": gflop / scoring.hta,
            "peak_memory_mib": {"explicit": plain_mib, "hta": hta_mib},
        }
    )


def measure_training(process: ProcessPoolExecutor, configs: Sequence[Config], rounds: int, n: int) -> Timing:
    """Seconds of one iteration at scale n, for the plain method and for hta with each of the settings."""
    ways: list[Callable[[], float]] = [partial(run_in, process, time_plain, plain_training, n)]
    for config in configs:
        ways.append(timed(partial(next, scale_trainer(config, resolve(config.runtime), n).run())))
    return Timing(*time_in_turns(ways, (1, 4, 4)[: len(ways)], rounds))


def measure_scoring(process: ProcessPoolExecutor, config: Config, runtime: Runtime, rounds: int) -> Timing:
    """Seconds for scoring one image at all scales, with both methods."""
    pyramid = random_pyramid(config, runtime)
    scorer = Scorer(pyramid)
    images = resize(training_images(), pyramid.plan.working_size).expand(SCORED_IMAGES, -1, -1, -1)
    plainly, ours = partial(run_in, process, time_plain, plain_scoring), timed(partial(scorer.shares, images))
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
    plan = plan_of(config.model, (IMAGE_SIDE, IMAGE_SIDE))
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


def measure_growth(threads: int, precision: str) -> Iterator[dict[str, Any]]:
    """Measure time and memory of hta with the image, the training images, the transformations and the test images.

    Args:
        threads: CPU threads, 0 for one per core.
        precision: of hta.

    Yields:
        A row per setting, measured in a fresh process, so that its peak memory is its own: `what` grows, its `value`,
        the `unit` of the `seconds`, and `peak_memory_mib`.
    """
    config = benchmark_config(threads, precision)
    side = config.model.max_size

    def of_model(**changes) -> Config:
        return replace(config, model=replace(config.model, **changes))

    rows: list[tuple] = [("image side (px)", v, train_finest, of_model(max_size=v), v, 1) for v in SIDES]
    rows += [("training images", v, train_finest, config, side, v) for v in SHOTS]
    rows += [("transformations", v, train_finest, of_model(num_transforms=v), side, 1) for v in TRANSFORMS]
    rows += [("test images", v, score_images, config, v) for v in TEST_IMAGES]
    for what, value, work, *arguments in rows:
        with new_process() as process:
            seconds, mib = run_in(process, work, *arguments)
        unit = "iteration at the finest scale" if work is train_finest else "image scored"
        yield {"what": what, "value": value, "unit": unit, "seconds": seconds, "peak_memory_mib": mib}


def train_finest(config: Config, side: int, shots: int) -> tuple[float, float]:
    """Seconds of the second iteration at the finest scale, and peak memory of this process, MiB."""
    own_process(config.runtime)
    iterations = scale_trainer(config, resolve(config.runtime), side=side, shots=shots).run()
    next(iterations)
    return timed(partial(next, iterations))(), peak_memory_mib()


def score_images(config: Config, count: int) -> tuple[float, float]:
    """Seconds to score an image with its map, mean over `count` images, and peak memory of this process, MiB."""
    own_process(config.runtime)
    scorer = Scorer(random_pyramid(config, resolve(config.runtime)))
    image = data.astronaut()[:IMAGE_SIDE, :IMAGE_SIDE].astype("float32") / 255
    start = time.perf_counter()
    for _ in scorer.stream(itertools.repeat(image, count), 1.0, ScoringConfig().batch_size):
        pass
    return (time.perf_counter() - start) / count, peak_memory_mib()
