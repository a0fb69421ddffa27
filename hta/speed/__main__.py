"""How fast hta is: python -m hta.speed [--quick] [--json FILE] [--chart FILE], or --growth, or --profile

A run compares two implementations on one machine, in turns: `explicit`, the method written plainly
(hta/speed/explicit.py), in float32 and in a separate process, and hta with compiled kernels if there is a C compiler.
hta is measured in float32 and, where the processor has it, in bfloat16; both implementations with all threads and with
one, for 54 and for 4 transformations; and with 54 and all threads, hta also with --no-compile. This takes less than
five minutes on two cores. --threads and --precision restrict it to one of each. The ratios matter: the seconds depend
on the machine and the day. The discriminator's arithmetic is compared with torch's own forward convolution, the fastest
of several layouts and batch shapes, measured in the same run.

`--growth` measures hta alone, for several sizes of the image and numbers of training images, transformations and test
images. `--profile` shows in which kernels an iteration spends its time.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
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
from hta.speed.measure import measure_growth, run_benchmark
from hta.speed.profile import format_profile, measure_profile
from hta.speed.workload import NUM_TRANSFORMS


@dataclass(frozen=True)
class BenchmarkOptions(Checked):
    """What is measured."""

    quick: bool = option(False, "54 transformations, all threads and one precision only: about a minute and a half")
    growth: bool = option(False, "measure how time and memory grow instead")
    profile: bool = option(False, "measure in which kernels an iteration spends its time instead")
    json: str | None = option(None, "write all figures to this file")
    chart: str | None = option(None, "write a bar chart to this PNG (not with --growth or --profile)")
    threads: int = option(0, "CPU threads; 0 means one per core, and in the full run also one alone", low=0, high=1024)
    precision: str = option(
        "auto",
        "of hta; auto means bfloat16 if the hardware has it, and in the full run also float32",
        choices=("auto", "float32", "bfloat16"),
    )


def _command(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m hta.speed", description=__doc__)
    add_settings(parser, "benchmark", BenchmarkOptions)
    options = take_settings(BenchmarkOptions, vars(parser.parse_args(argv)))
    for flag in ("json", "chart"):
        path = getattr(options, flag)
        if path is not None and not Path(path).resolve().parent.is_dir():
            raise UserError(f"--{flag} {path}: its folder does not exist; create it first")
    alone = "growth" if options.growth else "profile" if options.profile else None
    if alone and options.chart is not None:
        raise UserError(f"--chart {options.chart}: there is no chart of --{alone}; leave it out")
    if alone:
        measure, show = (measure_growth, format_growth) if options.growth else (measure_profile, format_profile)
        figures = {alone: list(measure(options.threads, options.precision))}
        print(show(figures[alone]))
    else:
        figures = run_benchmark(options.threads, options.precision, options.quick)
        print(format_report(figures))
        if options.chart is not None:
            draw_chart(figures, Path(options.chart))
    if options.json is not None:
        write_atomically(Path(options.json), (json.dumps(figures, indent=2) + "\n").encode())


def format_report(report: dict[str, Any]) -> str:
    """The figures as tables."""
    machine, convolution = report["machine"], report["convolution"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}",
        "seconds of an iteration of training (3 + 3 steps), and of scoring an image; ratio: of explicit to hta",
    ]
    if "bfloat16" not in convolution and not machine["native_bfloat16"]:
        lines.append("bfloat16 is left out: this processor does not have it")
    for case in report["cases"]:
        lines += ["", _title(case), *_format_case(case)]
    lines += ["", f"of torch's forward convolution, {_title(report['cases'][0])}:"]
    lines += [
        f"{name}: its peak is {found['peak_gflops']:.0f} GFLOP/s; the discriminator's forward and backward at the "
        f"finest scale reach {found['discriminator_finest']:.0%}, scoring {found['scoring']:.0%}"
        for name, found in convolution.items()
    ]
    memory = ", ".join(f"{way} {mib:.0f}" for way, mib in report["peak_memory_mib"].items())
    return "\n".join([*lines, f"peak memory (MiB): {memory}"])


def _title(case: dict[str, Any]) -> str:
    """What distinguishes a case from the others."""
    threads = "1 thread" if case["threads"] == 1 else f"{case['threads']} threads"
    return f"{case['num_transforms']} transformations, {threads}"


def _format_case(case: dict[str, Any]) -> Iterator[str]:
    """The table of a case, line by line; scoring needs no compiled kernels, and has no figures without them."""
    explicit, *ways = case["seconds"]["all scales"]
    rows = [["scale", f"{explicit} s", *(cell for way in ways for cell in (f"{way} s", "ratio"))]]
    for name, seconds in case["seconds"].items():
        rows.append([name, f"{seconds[explicit]:.4f}"])
        for way in ways:
            rows[-1] += [f"{seconds[way]:.4f}", f"{case['ratios'][name][way]:.1f}"] if way in seconds else ["", ""]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def draw_chart(report: dict[str, Any], path: Path) -> None:
    """Write bar charts of the ratios, one per case, with a bar per precision for every scale and scoring, as PNG."""
    cases, precisions = report["cases"], list(report["convolution"])
    figure = Figure(figsize=(7, 0.5 + 2.5 * len(cases)), dpi=120, layout="constrained")
    for axes, case in zip(figure.subplots(len(cases), squeeze=False)[:, 0], cases, strict=True):
        width = 0.8 / len(precisions)
        for number, name in enumerate(precisions):
            places = [place + number * width for place in range(len(case["ratios"]))]
            bars = axes.bar(places, [row[name] for row in case["ratios"].values()], width, label=name)
            axes.bar_label(bars, fmt="%.1f")
        axes.set_xticks([place + 0.4 - width / 2 for place in range(len(case["ratios"]))], list(case["ratios"]))
        axes.set_title(_title(case))
        axes.set_ylabel("times faster")
        axes.margins(y=0.15)  # room for the labels
        axes.legend()
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
