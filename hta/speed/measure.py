"""Times both ways of computing the same, in turns on one machine, and holds hta against the machine's convolution."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from hta.config import Config
from hta.evaluation.scorer import Scorer
from hta.images import resize
from hta.models.canvas import plan_canvases
from hta.runtime import Runtime, describe_machine, describe_versions, resolve, set_up
from hta.speed.memory import peak_memory_mib
from hta.speed.plain import PlainProcess, Work
from hta.speed.report import Report, Timing
from hta.speed.workload import (
    NUM_TRANSFORMS,
    benchmark_config,
    build_trainers,
    discriminator_gflop,
    finest_pair,
    random_pyramid,
    scoring_gflop,
    training_image,
)

# Scored together by hta; the plain way takes one image at a time.
SCORED_IMAGES = 16


def run_benchmark(threads: int, precision: str, quick: bool) -> Report:
    """Measure everything.

    Args:
        threads: of the CPU, 0 for one a core.
        precision: of hta; the plain way is float32.
        quick: fewer repetitions, and hta with its default settings only.
    """
    config = benchmark_config(threads, precision)
    runtime = set_up(config.runtime)
    rounds = 1 if quick else 3
    report = Report(describe_machine(runtime) | describe_versions())
    report.conv_peak_gflops = measure_conv_peak(config, runtime, 2 * rounds)
    report.discriminator_gflops = measure_discriminator(config, runtime, 2 * rounds)
    with PlainProcess(threads) as plain:
        report.scoring = measure_scoring(plain, config, runtime, 2 * rounds)
        operators = None if quick else benchmark_config(threads, precision, compiled=False)
        report.sizes, report.training = measure_training(plain, config, operators, runtime, rounds)
    report.scoring_gflops = scoring_gflop(config, runtime) / report.scoring.hta
    report.peak_memory_mib = measure_memory(threads, precision)
    return report


def time_in_turns(ways: Sequence[Callable[[], float]], repeats: Sequence[int], rounds: int) -> list[float]:
    """Median seconds of several things, done in turns so that a slow moment of the machine meets all of them.

    Args:
        ways: what to do; each says how long it took.
        repeats: how often each is done in one round.
        rounds: how many rounds; one more is done first, and not counted.
    """
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(rounds + 1):
        for way, times, repeat in zip(ways, seconds, repeats, strict=True):
            for _ in range(repeat if turn else 1):
                seconds_taken = way()
                if turn:
                    times.append(seconds_taken)
    return [statistics.median(times) for times in seconds]


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """The same work, which says how many seconds it took."""

    def way() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return way


def measure_training(
    plain: PlainProcess, config: Config, operators: Config | None, runtime: Runtime, rounds: int
) -> tuple[list[int], list[Timing]]:
    """Seconds of one iteration at every scale, in all ways; `operators` is hta without compiled kernels, if wanted."""
    sizes, timings = [], []
    runs = [build_trainers(config, runtime)]
    if operators is not None:
        runs.append(build_trainers(operators, resolve(operators.runtime)))
    for n, pairs in enumerate(zip(*runs, strict=True)):
        trainers = [trainer for trainer, _ in pairs]
        ways = [lambda n=n: plain.measure(Work("train", n))]
        ways += [timed(partial(next, trainer.run())) for trainer in trainers]
        timings.append(Timing(*time_in_turns(ways, (1, 4, 4)[: len(ways)], rounds)))
        sizes.append(trainers[0].size[0])
    return sizes, timings


def measure_scoring(plain: PlainProcess, config: Config, runtime: Runtime, rounds: int) -> Timing:
    """Seconds to score one image at all scales, both ways."""
    pyramid = random_pyramid(config, runtime)
    scorer = Scorer(pyramid)
    images = resize(training_image(), pyramid.plan.working_size).expand(SCORED_IMAGES, -1, -1, -1)
    ways = [lambda: plain.measure(Work("score")), timed(lambda: scorer.shares(images))]
    explicit, hta = time_in_turns(ways, (2, 2), rounds)
    return Timing(explicit, hta / SCORED_IMAGES)


def measure_discriminator(config: Config, runtime: Runtime, rounds: int) -> float:
    """GFLOP/s of the discriminator's forward and backward at the finest scale, gradients of image and weights."""
    trainer, _ = finest_pair(config, runtime)
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
    """GFLOP/s of the fastest forward 3x3 convolution at the finest scale's width and number of pixels."""
    plan = random_pyramid(config, runtime).plan
    side, width = plan.working_size[0], plan.widths[-1]
    pixels = sum(len(g.canvases) * g.size[0] * g.size[1] for g in plan_canvases(side, side, NUM_TRANSFORMS).groups)
    best = 0.0
    for layout in (torch.channels_last, torch.contiguous_format):
        weight = torch.randn(width, width, 3, 3).to(runtime.dtype).contiguous(memory_format=layout)
        for batch in (1, 4, 16):
            edge = round((pixels / batch) ** 0.5)
            x = torch.randn(batch, width, edge, edge).to(runtime.dtype).contiguous(memory_format=layout)
            (seconds,) = time_in_turns([timed(lambda x=x, w=weight: F.conv2d(x, w))], (10,), rounds)
            best = max(best, 2 * 9 * width * width * batch * (edge - 2) ** 2 / seconds / 1e9)
    return best


def measure_memory(threads: int, precision: str) -> dict[str, float]:
    """Peak resident memory, MiB, of a fresh process that trains the finest scale each way."""
    with PlainProcess(threads) as plain:
        explicit = plain.measure(Work("memory"))
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        hta = pool.apply(_train_finest, (threads, precision))
    return {"explicit": explicit, "hta": hta}


def _train_finest(threads: int, precision: str) -> float:
    """Train the finest scale a little; peak resident memory of the process, MiB."""
    config = benchmark_config(threads, precision)
    trainer, _ = finest_pair(config, set_up(config.runtime))
    iterations = trainer.run()
    for _ in range(2):
        next(iterations)
    return peak_memory_mib()
