"""How fast hta is: python -m hta.speed [--quick] [--json FILE] [--chart FILE], or --growth

A run compares two implementations on one machine, in turns: `explicit`, the method written plainly
(hta/speed/explicit.py), in a separate process, and `hta` with its default settings, that is with compiled kernels if
there is a C compiler; unless --quick is given, also with --no-compile. The ratios matter: the seconds depend on the
machine and the day. The discriminator's arithmetic is compared with the machine's own forward convolution, the fastest
of several layouts and batch shapes, measured in the same run.

`--growth` measures hta alone, for several sizes of the image and numbers of training images, transformations and test
images.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hta.cli import announce_torch

announce_torch()  # before the imports that need it

from matplotlib.figure import Figure

from hta.cli import Parser, add_settings, run_command, take_settings
from hta.errors import UserError
from hta.files import write_atomically, write_figure
from hta.settings import Checked, option
from hta.speed.measure import Timing, measure_growth, run_benchmark
from hta.speed.workload import NUM_TRANSFORMS


@dataclass(frozen=True)
class BenchmarkOptions(Checked):
    """What is measured."""

    quick: bool = option(False, "fewer repetitions, and without --no-compile: about a minute and a half")
    growth: bool = option(False, "measure how time and memory grow instead")
    json: str | None = option(None, "write all figures to this file")
    chart: str | None = option(None, "write a bar chart to this PNG (not with --growth)")
    threads: int = option(0, "CPU threads, 0 for one per core", low=0, high=1024)
    precision: str = option("auto", "of hta", choices=("auto", "float32", "bfloat16"))


def _command(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m hta.speed", description=__doc__)
    add_settings(parser, "benchmark", BenchmarkOptions)
    options = take_settings(BenchmarkOptions, vars(parser.parse_args(argv)))
    for flag in ("json", "chart"):
        path = getattr(options, flag)
        if path is not None and not Path(path).resolve().parent.is_dir():
            raise UserError(f"--{flag} {path}: its folder does not exist; create it first")
    if options.growth and options.chart is not None:
        raise UserError(f"--chart {options.chart}: there is no chart of --growth; leave it out")
    if options.growth:
        figures = {"growth": list(measure_growth(options.threads, options.precision))}
        print(format_growth(figures["growth"]))
    else:
        figures = run_benchmark(options.threads, options.precision, options.quick)
        print(format_report(figures))
        if options.chart is not None:
            draw_chart(figures, Path(options.chart))
    if options.json is not None:
        write_atomically(Path(options.json), (json.dumps(figures, indent=2) + "\n").encode())


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit status."""
    return run_command(_command, argv, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
