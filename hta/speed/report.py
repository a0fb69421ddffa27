"""The results of the measurements: figures, tables and a chart."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from hta.files import write_figure
from hta.speed.workload import NUM_TRANSFORMS


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


def format_report(report: dict[str, Any]) -> str:
    """The figures as a table."""
    timings = [*report["training"], report["seconds"]["training_all_scales"], report["scoring"]]
    rows = [("scale", "explicit s", "hta s", "ratio", "no_compile", "ratio")]
    for name, values in zip([f"{side} px" for side in report["sizes"]] + ["all", "scoring"], timings, strict=True):
        timing = Timing(**values)
        ratio, other_ratio = timing.ratios()
        others = ("", "") if other_ratio is None else (f"{timing.operators:.4f}", f"{other_ratio:.1f}")
        rows.append((name, f"{timing.explicit:.4f}", f"{timing.hta:.4f}", f"{ratio:.1f}", *others))
    fractions, machine = report["conv_peak_fraction"], report["machine"]
    return "\n".join(
        [
            f"{machine['cpu']}, {machine['threads']} threads, {machine['dtype']}, torch {machine['torch']}",
            f"one iteration of training (3 + 3 steps), and one scored image, {NUM_TRANSFORMS} transformations",
            *("  ".join(f"{cell:>10}" for cell in row) for row in rows),
            f"forward convolution peak {report['conv_peak_gflops']:.0f} GFLOP/s; of it the discriminator's forward and "
            f"backward at the finest scale reach {fractions['discriminator_finest']:.0%}, scoring "
            f"{fractions['scoring']:.0%}",
            "peak memory (MiB): " + ", ".join(f"{way} {mib:.0f}" for way, mib in report["peak_memory_mib"].items()),
        ]
    )


def draw_chart(report: dict[str, Any], path: Path) -> None:
    """Write a bar chart of the ratios, one bar per scale and one for scoring, as PNG."""
    figure = Figure(figsize=(7, 3.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    names = [f"train {side} px" for side in report["sizes"]] + ["score"]
    axes.bar_label(axes.bar(names, [*report["ratios"]["training"], report["ratios"]["scoring"]]), fmt="%.1f")
    axes.set_ylabel("times faster than explicit")
    write_figure(figure, path)


def format_growth(rows: Iterable[dict[str, Any]]) -> str:
    """The rows of `hta.speed.measure.measure_growth` as a Markdown table."""
    lines = [
        f"{NUM_TRANSFORMS} transformations, 64 px, one training image, unless said otherwise",
        "",
        "| what grows | | seconds | of an | peak memory (MiB) |",
        "| --- | --- | --- | --- | --- |",
    ]
    row_format = "| {what} | {value} | {seconds:.3f} | {unit} | {peak_memory_mib:,.0f} |"
    return "\n".join([*lines, *(row_format.format(**row) for row in rows)])
