"""Where an iteration of training spends its time: in which kernels, at which sizes.

The input gradient of a convolution is computed once more on its own, outside of the iteration's seconds: torch computes
both gradients in one call.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from hta.models.blocks import ConvNormLeaky
from hta.models.kernels import ConvolutionGradients, Kernels
from hta.models.scales import plan_of
from hta.runtime import available_cores, own_process, resolve
from hta.speed.measure import measure_conv_peak
from hta.speed.workload import FEW_TRANSFORMS, benchmark_config, discriminator_gflop, scale_trainer
from hta.training.scale import ScaleTrainer

SIDES = (25, 32, 51, 64, 128)
TRANSFORMS = (FEW_TRANSFORMS, 42)
PARTS = ("forward", "input gradient", "weight gradient", "norm", "loss", "canvases")
_ITERATIONS = 3


def _timed(part: str, method: str) -> Callable[..., Any]:
    def call(self: "TimedKernels", *arguments: Any) -> Any:
        return self.timed(part, partial(getattr(self.kernels, method), *arguments))

    return call


class TimedKernels(Kernels):
    """Kernels that note the seconds of each part; `extra` are those of work that an iteration does not need."""

    def __init__(self, kernels: Kernels):
        self.kernels = kernels
        self.reset()

    def reset(self) -> None:
        """Forget all seconds."""
        self.seconds, self.extra = dict.fromkeys(PARTS, 0.0), 0.0

    def timed(self, part: str, work: Callable[[], Any]) -> Any:
        """Do some work, and note its seconds."""
        start = time.perf_counter()
        result = work()
        self.seconds[part] += time.perf_counter() - start
        return result

    render = _timed("canvases", "render")
    convolve = _timed("forward", "convolve")
    moments = _timed("norm", "moments")
    norm_leaky = _timed("norm", "norm_leaky")
    norm_leaky_backward = _timed("norm", "norm_leaky_backward")
    cross_entropy = _timed("loss", "cross_entropy")

    def convolve_backward(
        self, grads: Sequence[Tensor], inputs: Sequence[Tensor], weight: Tensor, wanted: tuple[bool, bool]
    ) -> ConvolutionGradients:
        """See `Kernels.convolve_backward`."""
        before = self.seconds["input gradient"]
        alone = partial(self.kernels.convolve_backward, grads, inputs, weight, (False, False))
        self.timed("input gradient", alone)
        once = self.seconds["input gradient"] - before
        self.extra += once
        found = self.timed("weight gradient", partial(self.kernels.convolve_backward, grads, inputs, weight, wanted))
        self.seconds["weight gradient"] -= once
        return found

    def put_into(self, trainer: ScaleTrainer) -> None:
        """Let a training use these kernels."""
        trainer.pyramid.kernels = trainer.targets.kernels = self
        for network in (trainer.scale.generator, trainer.scale.discriminator):
            for block in network.modules():
                if isinstance(block, ConvNormLeaky):
                    block.kernels = self


def measure_profile(threads: int, precision: str) -> Iterator[dict[str, Any]]:
    """Measure iterations of the finest scale, for several sizes, numbers of transformations and threads.

    Args:
        threads: CPU threads; 0 for all cores, and then also for one alone.
        precision: of hta.

    Yields:
        A row per setting: its `side`, `num_transforms` and `threads`; the milliseconds of an `iteration`, of its
        `PARTS` and of `the rest`, the mean of some iterations; and `gflops`, the arithmetic of the discriminator over
        the time of all convolutions, beside the `peak_gflops` of torch's forward convolution.
    """
    for number in sorted({threads or 1, threads or available_cores()}):
        for num_transforms in TRANSFORMS:
            for side in SIDES:
                config = benchmark_config(number, precision, num_transforms=num_transforms)
                config = replace(config, model=replace(config.model, max_size=side))
                own_process(config.runtime)
                runtime, plan = resolve(config.runtime), plan_of(config.model, (side, side))
                trainer = scale_trainer(config, runtime, side=side)
                kernels = TimedKernels(trainer.pyramid.kernels)
                kernels.put_into(trainer)
                iterations = trainer.run()
                next(iterations)  # warms up
                kernels.reset()
                start = time.perf_counter()
                for _ in range(_ITERATIONS):
                    next(iterations)
                total = time.perf_counter() - start - kernels.extra
                rest = total - sum(kernels.seconds.values())
                seconds = {"iteration": total, **kernels.seconds, "the rest": rest}
                # An iteration passes the discriminator 9 times forwards and backwards, 6 of them to its weights.
                gflop = 24 * _ITERATIONS * discriminator_gflop(config.model, side, plan.widths[-1])
                yield {
                    "side": side,
                    "num_transforms": num_transforms,
                    "threads": number,
                    "milliseconds": {part: 1000 * value / _ITERATIONS for part, value in seconds.items()},
                    "gflops": gflop / sum(seconds[part] for part in PARTS[:3]),
                    "peak_gflops": measure_conv_peak(config, runtime),
                }


def format_profile(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `measure_profile` as a Markdown table."""
    titles = ["side (px)", "M", "threads", *rows[0]["milliseconds"], "convolutions GFLOP/s", "peak"]
    lines = ["milliseconds of an iteration at the finest scale, and of its parts", ""]
    lines += ["| " + " | ".join(titles) + " |", "| --- " * len(titles) + "|"]
    for row in rows:
        numbers = [row["side"], row["num_transforms"], row["threads"]]
        values = [f"{value:.1f}" for value in row["milliseconds"].values()]
        values += [f"{row['gflops']:.0f}", f"{row['peak_gflops']:.0f}"]
        lines.append("| " + " | ".join([*map(str, numbers), *values]) + " |")
    return "\n".join(lines)
