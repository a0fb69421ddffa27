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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hta.cli import Parser, add_settings, run_command, take_settings
from hta.errors import UserError
from hta.files import write_atomically
from hta.settings import Checked, option
from hta.speed.measure import measure_growth, run_benchmark
from hta.speed.report import draw_chart, format_growth, format_report


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit status."""
    return run_command(_command, argv, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
