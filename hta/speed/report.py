"""What the benchmark found: figures, a table and a chart."""

import io
from dataclasses import asdict, dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from hta.files import write_atomically
from hta.speed.workload import NUM_TRANSFORMS


@dataclass(frozen=True)
class Timing:
    """Seconds of one thing done in several ways, medians.

    Attributes:
        explicit, hta: seconds.
        operators: seconds of hta with torch's own operators in place of compiled kernels; None if not measured.
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
        operators = [t.operators for t in self.training]
        return Timing(
            sum(t.explicit for t in self.training),
            sum(t.hta for t in self.training),
            None if None in operators else sum(operators),
        )

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
    """The figures as a table for a person."""
    summary = report.summary()
    rows = [("scale", "explicit s", "hta s", "ratio", "no_compile", "ratio")]
    named = [(f"{side} px", timing) for side, timing in zip(report.sizes, report.training, strict=True)]
    named += [("all", report.all_scales), ("scoring", report.scoring)]
    rows += [(name, *_cells(t)) for name, t in named]
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


def _cells(timing: Timing) -> tuple[str, ...]:
    cells = (f"{timing.explicit:.4f}", f"{timing.hta:.4f}", f"{timing.ratio:.1f}")
    if timing.operators is None:
        return (*cells, "", "")
    return (*cells, f"{timing.operators:.4f}", f"{timing.operators_ratio:.1f}")


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
