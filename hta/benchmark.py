"""How fast hta is: python -m hta.benchmark [--quick] [--json FILE] [--chart FILE]

One run on one machine times two ways of computing the same, in turns: `explicit`, the method as plainly as it is
usually written (hta/explicit.py), and `hta`, the product with its default settings. The ratios are what counts: the
seconds are this machine's, on this day. The discriminator's arithmetic is held against the machine's own forward
convolution, the fastest of several layouts and batch shapes, measured in the same run.
"""

import io
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from skimage import data
from torch import Tensor

from hta.canvas import plan_canvases
from hta.cli import Parser, add_settings, run_command, take_settings
from hta.config import Checked, Config, ModelConfig, RuntimeConfig, TrainingConfig, option
from hta.errors import UserError
from hta.evaluation.evaluator import Evaluator
from hta.experiments.machine import describe_machine, describe_versions
from hta.explicit import ExplicitScale, explicit_network, explicit_vote_shares
from hta.files import write_atomically
from hta.imaging import resize, to_tensor
from hta.models.pyramid import Pyramid
from hta.runtime import Runtime, seeded_generator, set_up
from hta.scales import image_pyramid
from hta.training.scale import ScaleTrainer

IMAGE_SIDE = 128
NUM_TRANSFORMS = 54
# Scored together by hta; the plain way takes one image at a time.
SCORED_IMAGES = 16


@dataclass(frozen=True)
class BenchmarkOptions(Checked):
    """What is measured."""

    quick: bool = option(False, "fewer repetitions: about a minute")
    json: str | None = option(None, "write all figures to this file")
    chart: str | None = option(None, "write a bar chart to this PNG")
    threads: int = option(0, "CPU threads, 0 for one a core", low=0, high=1024)
    precision: str = option("auto", "of hta", choices=("auto", "float32", "bfloat16"))


@dataclass(frozen=True)
class Timing:
    """Seconds of one thing done both ways, medians.

    Attributes:
        explicit, hta: seconds.
    """

    explicit: float
    hta: float

    @property
    def ratio(self) -> float:
        """How many times faster hta is."""
        return self.explicit / self.hta


@dataclass
class Report:
    """All that was measured.

    Attributes:
        machine: what it ran on.
        sizes: sides of the scales, pixels.
        training: seconds an iteration, for every scale.
        scoring: seconds an image, all scales.
        conv_peak_gflops: the fastest forward convolution at the finest scale's width and pixels.
        discriminator_gflops: forward and backward of the discriminator at the finest scale.
        scoring_gflops: of scoring, all scales.
        peak_memory_mib: resident memory of a process that trains the finest scale, each way.
    """

    machine: dict
    sizes: list[int] = field(default_factory=list)
    training: list[Timing] = field(default_factory=list)
    scoring: Timing | None = None
    conv_peak_gflops: float = 0.0
    discriminator_gflops: float = 0.0
    scoring_gflops: float = 0.0
    peak_memory_mib: dict[str, float] = field(default_factory=dict)

    @property
    def all_scales(self) -> Timing:
        """Seconds of one iteration of every scale."""
        return Timing(sum(t.explicit for t in self.training), sum(t.hta for t in self.training))

    def summary(self) -> dict:
        """The figures, ready for JSON."""
        return asdict(self) | {
            "ratios": {
                "training_all_scales": self.all_scales.ratio,
                "training_finest": self.training[-1].ratio,
                "training": [t.ratio for t in self.training],
                "scoring": self.scoring.ratio,
            },
            "seconds": {"training_all_scales": asdict(self.all_scales)},
            "conv_peak_fraction": {
                "discriminator_finest": self.discriminator_gflops / self.conv_peak_gflops,
                "scoring": self.scoring_gflops / self.conv_peak_gflops,
            },
        }


def training_image() -> Tensor:
    """The image that everything is measured on: real texture in colour, `(1, 3, 128, 128)` in [-1, 1]."""
    crop = data.astronaut()[:IMAGE_SIDE, 128 : 128 + IMAGE_SIDE]
    return to_tensor([crop.astype("float32") / 255])


def build_trainers(config: Config, runtime: Runtime) -> Iterator[tuple[ScaleTrainer, ExplicitScale]]:
    """Both ways of training at every scale, from the same weights, above the same coarser scales.

    Yields:
        One pair a scale. The scale's networks then take their place in the pyramid as they are.
    """
    pyramid = Pyramid.planned(config.model, (IMAGE_SIDE, IMAGE_SIDE), 1, runtime.device, runtime.dtype)
    for level in image_pyramid(training_image(), pyramid.plan.sizes):
        trainer = ScaleTrainer(pyramid, level, config.training)
        scale = trainer.scale
        fixed = scale.noise_amp.view(-1, 1, 1, 1) * scale.fixed_noise.expand(-1, 3, -1, -1)
        yield (
            trainer,
            ExplicitScale(
                pyramid, level, config.training, scale.generator.body, scale.discriminator.body, fixed, scale.noise_amp
            ),
        )
        scale.freeze()
        pyramid.scales.append(scale)


def finest_pair(config: Config, runtime: Runtime) -> tuple[ScaleTrainer, ExplicitScale]:
    """Both ways of training at the finest scale."""
    last = random_pyramid(config, runtime).plan.num_scales - 1
    return next(islice(build_trainers(config, runtime), last, None))


def time_in_turns(ways: Sequence[Callable[[], object]], repeats: Sequence[int], rounds: int) -> list[float]:
    """Median seconds of several things, done in turns so that a slow moment of the machine meets all of them.

    Args:
        ways: what to do.
        repeats: how often each is done in one round.
        rounds: how many rounds; one more is done first, and not counted.
    """
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(rounds + 1):
        for way, times, repeat in zip(ways, seconds, repeats, strict=True):
            for _ in range(repeat if turn else 1):
                start = time.perf_counter()
                way()
                if turn:
                    times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def measure_training(config: Config, runtime: Runtime, rounds: int) -> tuple[list[int], list[Timing]]:
    """Seconds of one iteration at every scale, both ways."""
    sizes, timings = [], []
    for trainer, explicit in build_trainers(config, runtime):
        iterations, stream = trainer.run(), seeded_generator("benchmark")
        ways = [lambda e=explicit, s=stream: e.iterate(s), lambda i=iterations: next(i)]
        timings.append(Timing(*time_in_turns(ways, (1, 4), rounds)))
        sizes.append(trainer.size[0])
    return sizes, timings


def random_pyramid(config: Config, runtime: Runtime) -> Pyramid:
    """A pyramid with untrained networks: their arithmetic is that of trained ones."""
    pyramid = Pyramid.planned(config.model, (IMAGE_SIDE, IMAGE_SIDE), 1, runtime.device, runtime.dtype)
    for n in range(pyramid.plan.num_scales):
        scale = pyramid.new_scale(n, seeded_generator("benchmark", n))
        scale.freeze()
        pyramid.scales.append(scale)
    return pyramid


def measure_scoring(config: Config, runtime: Runtime, rounds: int) -> Timing:
    """Seconds to score one image at all scales, both ways."""
    pyramid = random_pyramid(config, runtime)
    networks = [explicit_network(scale.discriminator.body) for scale in pyramid.scales]
    evaluator = Evaluator(pyramid, with_maps=False)
    image = resize(training_image(), pyramid.plan.working_size)
    images = image.expand(SCORED_IMAGES, -1, -1, -1)
    ways = [lambda: explicit_vote_shares(networks, pyramid, image), lambda: evaluator.score(images)]
    explicit, hta = time_in_turns(ways, (2, 2), rounds)
    return Timing(explicit, hta / SCORED_IMAGES)


def discriminator_gflop(config: ModelConfig, side: int, width: int) -> float:
    """Billions of operations of one forward pass on the canvases of one image, 2 per multiply-add."""
    channels = [3] + [width] * (config.num_layer - 1) + [config.num_transforms + 1]
    total = 0
    for group in plan_canvases(side, side, config.num_transforms).groups:
        for depth in range(config.num_layer):
            pixels = (group.size[0] - 2 * (depth + 1)) * (group.size[1] - 2 * (depth + 1))
            total += 2 * 9 * len(group.canvases) * pixels * channels[depth] * channels[depth + 1]
    return total / 1e9


def measure_discriminator(config: Config, runtime: Runtime, rounds: int) -> float:
    """GFLOP/s of the discriminator's forward and backward at the finest scale, gradients of image and weights."""
    trainer, _ = finest_pair(config, runtime)
    network = trainer.scale.discriminator
    canvases = [batch.detach().requires_grad_() for batch in trainer.real_canvases]

    def forward_backward():
        logits = network(canvases, trainer.d_coverages)
        torch.autograd.backward(logits, [torch.ones_like(z) for z in logits])

    (seconds,) = time_in_turns([forward_backward], (5,), rounds)
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
            (seconds,) = time_in_turns([lambda x=x, w=weight: F.conv2d(x, w)], (10,), rounds)
            best = max(best, 2 * 9 * width * width * batch * (edge - 2) ** 2 / seconds / 1e9)
    return best


def _train_finest(way: str, options: dict, pipe) -> None:
    """In a process of its own: train the finest scale one way, and send the peak of the resident memory."""
    config = _config(BenchmarkOptions(**options))
    trainer, explicit = finest_pair(config, set_up(config.runtime))
    iterations, stream = trainer.run(), seeded_generator("benchmark")
    for _ in range(2):
        next(iterations) if way == "hta" else explicit.iterate(stream)
    pipe.send(_peak_memory_mib())


def _peak_memory_mib() -> float:
    """Peak resident memory of this process; the kernel's own figure where there is one, without the parent's share."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_memory(options: BenchmarkOptions) -> dict[str, float]:
    """Peak resident memory, MiB, of a process that trains the finest scale each way."""
    context, peaks = multiprocessing.get_context("spawn"), {}
    for way in ("explicit", "hta"):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_train_finest, args=(way, asdict(options), sender))
        process.start()
        sender.close()
        peaks[way] = receiver.recv()
        process.join()
    return peaks


def _config(options: BenchmarkOptions) -> Config:
    return Config(
        ModelConfig(task="class", num_transforms=NUM_TRANSFORMS),
        TrainingConfig(niter=1_000_000),
        RuntimeConfig(not_cuda=True, threads=options.threads, precision=options.precision),
    ).resolved(is_gray=False)


def run_benchmark(options: BenchmarkOptions) -> Report:
    """Measure everything."""
    config = _config(options)
    runtime = set_up(config.runtime)
    rounds = 1 if options.quick else 3
    report = Report(describe_machine(runtime) | describe_versions())
    report.conv_peak_gflops = measure_conv_peak(config, runtime, 2 * rounds)
    report.discriminator_gflops = measure_discriminator(config, runtime, 2 * rounds)
    report.scoring = measure_scoring(config, runtime, 2 * rounds)
    plan = random_pyramid(config, runtime).plan
    scored = sum(
        discriminator_gflop(config.model, size[0], width) for size, width in zip(plan.sizes, plan.widths, strict=True)
    )
    report.scoring_gflops = scored / report.scoring.hta
    report.sizes, report.training = measure_training(config, runtime, rounds)
    report.peak_memory_mib = measure_memory(options)
    return report


def format_report(report: Report) -> str:
    """The figures as a table for a person."""
    summary = report.summary()
    rows = [("scale", "explicit s", "hta s", "ratio")]
    named = [(f"{side} px", timing) for side, timing in zip(report.sizes, report.training, strict=True)]
    named += [("all", report.all_scales), ("scoring", report.scoring)]
    rows += [(name, f"{t.explicit:.4f}", f"{t.hta:.4f}", f"{t.ratio:.1f}") for name, t in named]
    lines = ["  ".join(f"{cell:>10}" for cell in row) for row in rows]
    fractions, machine = summary["conv_peak_fraction"], report.machine
    return "\n".join(
        [
            f"{machine['cpu']}, {machine['threads']} threads, {machine['dtype']}, torch {machine['torch']}",
            f"one iteration of training (3 + 3 steps), and one scored image, {NUM_TRANSFORMS} transformations",
            *lines,
            f"forward convolution peak {report.conv_peak_gflops:.0f} GFLOP/s; of it the discriminator's forward and "
            f"backward at the finest scale reach {fractions['discriminator_finest']:.0%}, scoring "
            f"{fractions['scoring']:.0%}",
            "peak memory (MiB): " + ", ".join(f"{way} {mib:.0f}" for way, mib in report.peak_memory_mib.items()),
        ]
    )


def draw_chart(report: Report, path: Path) -> None:
    """Bars of the ratios, one a scale and one for scoring."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    names = [f"train {side} px" for side in report.sizes] + ["score"]
    ratios = [t.ratio for t in report.training] + [report.scoring.ratio]
    axes.bar_label(axes.bar(names, ratios), fmt="%.1f")
    axes.set_ylabel("times faster than explicit")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomically(path, picture.getvalue())


def _command(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m hta.benchmark", description=__doc__)
    add_settings(parser, "options", BenchmarkOptions)
    options = take_settings(BenchmarkOptions, vars(parser.parse_args(argv)))
    for flag in ("json", "chart"):
        path = getattr(options, flag)
        if path is not None and not Path(path).resolve().parent.is_dir():
            raise UserError(f"--{flag} {path}: its folder does not exist; make it first")
    report = run_benchmark(options)
    print(format_report(report))
    if options.json is not None:
        write_atomically(Path(options.json), (json.dumps(report.summary(), indent=2) + "\n").encode())
    if options.chart is not None:
        draw_chart(report, Path(options.chart))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit status."""
    return run_command(_command, argv, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
