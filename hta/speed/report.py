"""The results of the measurements: figures, tables and a chart."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure

from hta.files import write_figure
from hta.speed.workload import NUM_TRANSFORMS


@dataclass(frozen=True)
class Timing:
    """Median seconds of a task with each method.

    Attributes:
        explicit: the plain method.
        hta: hta with its default settings.
        operators: hta with torch operators instead of compiled kernels; None if not measured.
    """

    explicit: float
    hta: float
    operators: float | None = None

    @property
    def ratio(self) -> float:
        """How many times faster hta is."""
        return self.explicit / self.hta

    @property
    def operators_ratio(self) -> float | None:
        """How many times faster hta is without compiled kernels."""
        return None if self.operators is None else self.explicit / self.operators


@dataclass(frozen=True)
class Report:
    """All measurements of the comparison.

    Attributes:
        machine: machine and versions.
        sizes: sides of the scales, pixels, coarsest first.
        training: seconds per iteration, for every scale.
        scoring: seconds per image, all scales.
        conv_peak_gflops: of the fastest forward convolution with the width and the pixels of the finest scale.
        discriminator_gflops: of forward and backward of the discriminator at the finest scale.
        scoring_gflops: of scoring, all scales.
        peak_memory_mib: resident memory of a process that trains the finest scale, for each method.
    """

    machine: dict
    sizes: Sequence[int]
    training: Sequence[Timing]
    scoring: Timing
    conv_peak_gflops: float
    discriminator_gflops: float
    scoring_gflops: float
    peak_memory_mib: dict[str, float]

    @property
    def all_scales(self) -> Timing:
        """Seconds of one iteration at every scale."""
        operators = [t.operators for t in self.training if t.operators is not None]
        complete = len(operators) == len(self.training)
        explicit, hta = sum(t.explicit for t in self.training), sum(t.hta for t in self.training)
        return Timing(explicit, hta, sum(operators) if complete else None)

    def summary(self) -> dict:
        """The figures, ready for JSON."""
        return asdict(self) | {
            "ratios": {
                "training_all_scales": self.all_scales.ratio,
                "training_finest": self.training[-1].ratio,
                "training": [t.ratio for t in self.training],
                "scoring": self.scoring.ratio,
                "training_all_scales_no_compile": self.all_scales.operators_ratio,
                "training_finest_no_compile": self.training[-1].operators_ratio,
            },
            "seconds": {"training_all_scales": asdict(self.all_scales)},
            "conv_peak_fraction": {
                "discriminator_finest": self.discriminator_gflops / self.conv_peak_gflops,
                "scoring": self.scoring_gflops / self.conv_peak_gflops,
            },
        }


def format_report(report: Report) -> str:
    """The figures as a table."""
    named = [(f"{side} px", timing) for side, timing in zip(report.sizes, report.training, strict=True)]
    named += [("all", report.all_scales), ("scoring", report.scoring)]
    rows = [("scale", "explicit s", "hta s", "ratio", "no_compile", "ratio"), *(_row(name, t) for name, t in named)]
    fractions, machine = report.summary()["conv_peak_fraction"], report.machine
    return "\n".join(
        [
            f"{machine['cpu']}, {machine['threads']} threads, {machine['dtype']}, torch {machine['torch']}",
            f"one iteration of training (3 + 3 steps), and one scored image, {NUM_TRANSFORMS} transformations",
            *("  ".join(f"{cell:>10}" for cell in row) for row in rows),
            f"forward convolution peak {report.conv_peak_gflops:.0f} GFLOP/s; of it the discriminator's forward and "
            f"backward at the finest scale reach {fractions['discriminator_finest']:.0%}, scoring "
            f"{fractions['scoring']:.0%}",
            "peak memory (MiB): " + ", ".join(f"{way} {mib:.0f}" for way, mib in report.peak_memory_mib.items()),
        ]
    )


def _row(name: str, timing: Timing) -> tuple[str, ...]:
    cells = (name, f"{timing.explicit:.4f}", f"{timing.hta:.4f}", f"{timing.ratio:.1f}")
    if timing.operators is None:
        return (*cells, "", "")
    return (*cells, f"{timing.operators:.4f}", f"{timing.operators_ratio:.1f}")


def draw_chart(report: Report, path: Path) -> None:
    """Write a bar chart of the ratios, one bar per scale and one for scoring, as PNG."""
    figure = Figure(figsize=(7, 3.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    names = [f"train {side} px" for side in report.sizes] + ["score"]
    ratios = [t.ratio for t in report.training] + [report.scoring.ratio]
    axes.bar_label(axes.bar(names, ratios), fmt="%.1f")
    axes.set_ylabel("times faster than explicit")
    write_figure(figure, path)


@dataclass(frozen=True)
class Growth:
    """Time and memory of hta for one setting.

    Attributes:
        what: the setting that grows.
        value: its value.
        unit: what the seconds were measured for.
        seconds: per unit.
        peak_memory_mib: resident memory of the process.
    """

    what: str
    value: int
    unit: str
    seconds: float
    peak_memory_mib: float


def format_growth(rows: Iterable[Growth]) -> str:
    """A Markdown table."""
    lines = [
        f"{NUM_TRANSFORMS} transformations, 64 px, one training image, unless said otherwise",
        "",
        "| what grows | | seconds | of an | peak memory (MiB) |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.what} | {row.value} | {row.seconds:.3f} | {row.unit} | {row.peak_memory_mib:,.0f} |" for row in rows
    ]
    return "\n".join(lines)
