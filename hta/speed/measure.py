"""Measures hta against the plain method in turns on one machine, its arithmetic, and how its time and memory grow.

The plain method runs in a separate process, with the settings of an ordinary program: hta makes the memory allocator of
its process keep freed memory and its threads sleep soon, and in the same process the plain method would benefit from
this too.

Per number of threads and of transformations, the plain method is measured once, whatever the precisions of hta. Every
scale takes up to five rounds, fewer if they are slow (`time_in_turns`), each with one iteration of the plain method
and two of hta in each precision. An iteration of hta comes before at every scale, and one of the plain method at the
coarsest scale only, since it is slow: with 54 transformations, one thread needs half a minute for all scales.
"""

import itertools
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from skimage import data

from hta.cli import SPIN_VARIABLE
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
    has_native_bfloat16,
    own_process,
    resolve,
    seeded_generator,
)
from hta.speed.explicit import PlainNetwork, transformation_list, vote_share
from hta.speed.workload import (
    FEW_TRANSFORMS,
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
TRANSFORMS = (FEW_TRANSFORMS, 42, NUM_TRANSFORMS)
TEST_IMAGES = (16, 160, 1600)

_PLAIN = Runtime(torch.device("cpu"), torch.float32, compile=False)
_ENOUGH_SECONDS = 4.0


def new_process(threads: int | None = None) -> ProcessPoolExecutor:
    """A fresh process; with CPU threads for the plain method, 0 for one per core, or else as its work sets them up."""
    context = multiprocessing.get_context("spawn")
    if threads is None:
        return ProcessPoolExecutor(1, context)
    waiting = os.environ.pop(SPIN_VARIABLE, None)  # an ordinary program does not set it
    process = ProcessPoolExecutor(1, context, torch.set_num_threads, (threads or available_cores(),))
    run_in(process, int)  # starts it
    if waiting is not None:
        os.environ[SPIN_VARIABLE] = waiting
    return process


def run_in(process: ProcessPoolExecutor, work: Callable[..., Any], *arguments) -> Any:
    """Call a function in a process, and return its result."""
    return process.submit(work, *arguments).result()


def seconds_of(work: Callable[[], object]) -> float:
    """How long some work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def warm(work: Callable[[], object]) -> Callable[[], float]:
    """Do some work once, and return a task that does it again and returns the seconds."""
    work()
    return partial(seconds_of, work)


def peak_memory_mib() -> float:
    """Peak resident memory of this process, from the kernel where possible: without the share of the parent process."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def time_in_turns(ways: Sequence[Callable[[], float]], repeats: Sequence[int], rounds: int = 5) -> list[float]:
    """Median seconds of several tasks, run in turns so that a slow moment of the machine affects all of them.

    Args:
        ways: the tasks; each returns how many seconds it took.
        repeats: how often each is run per round.
        rounds: number of rounds; none follows once they have taken more than `_ENOUGH_SECONDS` together.
    """
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for way, times, repeat in zip(ways, seconds, repeats, strict=True):
            times += [way() for _ in range(repeat)]
        if sum(map(sum, seconds)) > _ENOUGH_SECONDS:
            break
    return [statistics.median(times) for times in seconds]


@lru_cache(maxsize=1)
def plain_training(config: Config, scale: int) -> Callable[[], object]:
    """One iteration at a scale."""
    explicit, stream = explicit_scale(scale_trainer(config, _PLAIN, scale)), seeded_generator("benchmark")
    return partial(explicit.iterate, stream)


@lru_cache(maxsize=1)
def plain_scoring(config: Config) -> Callable[[], object]:
    """Scoring one image at all scales."""
    pyramid, transformations = random_pyramid(config, _PLAIN), transformation_list(config.model.num_transforms)
    networks = [PlainNetwork.copy_of(scale.discriminator.body) for scale in pyramid.scales]
    (image,) = image_pyramid(training_images(), [pyramid.plan.working_size])
    return lambda: [
        vote_share(network, level, transformations)
        for network, level in zip(networks, image_pyramid(image, pyramid.plan.sizes), strict=True)
    ]


def time_plain(prepare: Callable[..., Callable[[], object]], *arguments) -> float:
    """Seconds of work that is prepared once per process."""
    return seconds_of(prepare(*arguments))


def run_benchmark(threads: int, precision: str, quick: bool) -> dict[str, Any]:
    """Measure both methods.

    Args:
        threads: CPU threads; 0 for one per core, and unless `quick` also for one alone.
        precision: of hta; the plain method uses float32. "auto" means both if the hardware has bfloat16, with `quick`
            the faster one.
        quick: 54 transformations only, and hta without --no-compile.

    Returns:
        The report: the machine and versions; `cases`, one per number of threads and of transformations, see
        `measure_case`; by precision, `convolution`, see `measure_convolution`; and `peak_memory_mib` of each method.
        The last two are with 54 transformations and the first number of threads.
    """
    has_bfloat16 = has_native_bfloat16(_PLAIN.device)
    precisions = ["float32", "bfloat16"] if has_bfloat16 else ["float32"]
    precisions = [precision] if precision != "auto" else precisions[-1:] if quick else precisions
    cores = threads or available_cores()
    cases, plain_mib = [], []
    for number in [cores] if threads or quick or cores == 1 else [cores, 1]:
        with new_process(number) as process:
            for num_transforms in (NUM_TRANSFORMS,) if quick else (NUM_TRANSFORMS, FEW_TRANSFORMS):
                both = not quick and (number, num_transforms) == (cores, NUM_TRANSFORMS)
                configs = {
                    name if compiled else f"{name}_no_compile": benchmark_config(number, name, compiled, num_transforms)
                    for name in precisions
                    for compiled in ((True, False) if both else (True,))
                }
                case = {"num_transforms": num_transforms, "threads": number}
                cases.append(case | measure_case(process, configs))
            plain_mib.append(run_in(process, peak_memory_mib))
    convolution, hta_mib = {}, {}
    for name in precisions:
        config = benchmark_config(cores, name)
        convolution[name] = measure_convolution(config, cases[0]["seconds"]["scoring"][name])
        with new_process() as process:
            _, hta_mib[name] = run_in(process, train_finest, config, IMAGE_SIDE, 1)
    return {
        "machine": describe_machine(_PLAIN) | describe_versions() | {"native_bfloat16": has_bfloat16},
        "cases": cases,
        "convolution": convolution,
        "peak_memory_mib": {"explicit": max(plain_mib)} | hta_mib,
    }


def measure_case(process: ProcessPoolExecutor, configs: dict[str, Config]) -> dict[str, Any]:
    """Compare hta, with one or several settings, with the plain method.

    Args:
        process: for the plain method.
        configs: the settings by name; they differ in precision and in whether kernels are compiled.

    Returns:
        `seconds` of an iteration at every scale, coarsest first, of one at all scales, and of scoring an image, each a
        row with "explicit" and the names of the settings; and `ratios`, how many times faster than "explicit" they are.
    """
    config = next(iter(configs.values()))
    own_process(config.runtime)
    seconds: dict[str, dict[str, float]] = {}
    run_in(process, time_plain, plain_training, config, 0)
    for n, size in enumerate(plan_of(config.model, (IMAGE_SIDE, IMAGE_SIDE)).sizes):
        seconds[f"{size[0]} px"] = measure_training(process, configs, n)
    seconds["all scales"] = {way: sum(row[way] for row in seconds.values()) for way in ("explicit", *configs)}
    seconds["scoring"] = measure_scoring(process, {way: c for way, c in configs.items() if c.runtime.compile})
    ratios = {
        name: {way: row["explicit"] / value for way, value in row.items() if way != "explicit"}
        for name, row in seconds.items()
    }
    return {"seconds": seconds, "ratios": ratios}


def measure_training(process: ProcessPoolExecutor, configs: dict[str, Config], n: int) -> dict[str, float]:
    """Seconds of one iteration at scale n, for the plain method and for hta with each of the settings."""
    some = next(iter(configs.values()))
    ways: list[Callable[[], float]] = [partial(run_in, process, time_plain, plain_training, some, n)]
    for config in configs.values():
        ways.append(warm(partial(next, scale_trainer(config, resolve(config.runtime), n).run())))
    return dict(zip(["explicit", *configs], time_in_turns(ways, [1] + [2] * len(configs)), strict=True))


def measure_scoring(process: ProcessPoolExecutor, configs: dict[str, Config]) -> dict[str, float]:
    """Seconds for scoring one image at all scales, with the plain method and hta; hta scores several together."""
    some = next(iter(configs.values()))
    ways: list[Callable[[], float]] = [partial(run_in, process, time_plain, plain_scoring, some)]
    for config in configs.values():
        pyramid = random_pyramid(config, resolve(config.runtime))
        images = resize(training_images(), pyramid.plan.working_size).expand(SCORED_IMAGES, -1, -1, -1)
        ways.append(warm(partial(Scorer(pyramid).shares, images)))
    explicit, *together = time_in_turns(ways, [1] * len(ways))
    return {"explicit": explicit} | {way: s / SCORED_IMAGES for way, s in zip(configs, together, strict=True)}


def measure_convolution(config: Config, scoring_seconds: float) -> dict[str, float]:
    """GFLOP/s of torch's forward convolution, and the fractions of it that hta's training and scoring reach.

    They can exceed 1 in float32, where hta's own convolutions need fewer products than are counted here.
    """
    own_process(config.runtime)
    runtime, plan = resolve(config.runtime), plan_of(config.model, (IMAGE_SIDE, IMAGE_SIDE))
    peak, scales = measure_conv_peak(config, runtime), zip(plan.sizes, plan.widths, strict=True)
    scored = sum(discriminator_gflop(config.model, size[0], width) for size, width in scales)
    discriminator = measure_discriminator(config, runtime)
    return {
        "peak_gflops": peak,
        "discriminator_finest": discriminator / peak,
        "scoring": scored / scoring_seconds / peak,
    }


def measure_discriminator(config: Config, runtime: Runtime) -> float:
    """GFLOP/s of the discriminator at the finest scale, forward and backward, gradients of images and weights."""
    trainer = scale_trainer(config, runtime)
    network = trainer.scale.discriminator
    canvases = [batch.detach().requires_grad_() for batch in trainer.real_canvases]

    def forward_backward():
        logits = network(canvases, trainer.d_coverages)
        torch.autograd.backward(logits, [torch.ones_like(z) for z in logits])

    (seconds,) = time_in_turns([warm(forward_backward)], (3,))
    width = network.body.tail.in_channels
    return 3 * discriminator_gflop(config.model, trainer.size[0], width) / seconds


@torch.inference_mode()
def measure_conv_peak(config: Config, runtime: Runtime) -> float:
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
            (seconds,) = time_in_turns([warm(partial(F.conv2d, x, weight))], (5,))
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

    few, name = FEW_TRANSFORMS, f"image side (px), M = {FEW_TRANSFORMS}"
    rows: list[tuple] = [("image side (px)", v, train_finest, of_model(max_size=v), v, 1) for v in SIDES]
    rows += [(name, v, train_finest, of_model(max_size=v, num_transforms=few), v, 1) for v in SIDES]
    rows += [("training images", v, train_finest, config, side, v) for v in SHOTS]
    rows += [("transformations", v, train_finest, of_model(num_transforms=v), side, 1) for v in TRANSFORMS]
    rows += [("test images", v, score_images, config, v) for v in TEST_IMAGES]
    for what, value, work, *arguments in rows:
        with new_process() as process:
            seconds, mib = run_in(process, work, *arguments)
        unit = "iteration at the finest scale" if work is train_finest else "image scored"
        yield {"what": what, "value": value, "unit": unit, "seconds": seconds, "peak_memory_mib": mib}


def train_finest(config: Config, side: int, shots: int) -> tuple[float, float]:
    """Seconds of an iteration at the finest scale, and peak memory of this process, MiB.

    The first iteration does not count; of up to five more, fewer if they are slow, the seconds are the median.
    """
    own_process(config.runtime)
    iterations = scale_trainer(config, resolve(config.runtime), side=side, shots=shots).run()
    (seconds,) = time_in_turns([warm(partial(next, iterations))], (1,))
    return seconds, peak_memory_mib()


def score_images(config: Config, count: int) -> tuple[float, float]:
    """Seconds to score an image with its map, mean over `count` images, and peak memory of this process, MiB."""
    own_process(config.runtime)
    scorer = Scorer(random_pyramid(config, resolve(config.runtime)))
    image = data.astronaut()[:IMAGE_SIDE, :IMAGE_SIDE].astype("float32") / 255
    start = time.perf_counter()
    for _ in scorer.stream(itertools.repeat(image, count), 1.0, ScoringConfig().batch_size):
        pass
    return (time.perf_counter() - start) / count, peak_memory_mib()
