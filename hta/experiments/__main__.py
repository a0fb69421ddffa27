"""Rerun the paper's tables: python -m hta.experiments run|table N|summary|plot, and compare what was run: gains|seeds|
changes|scores|recipes|classes"""

import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import cycle
from pathlib import Path
from typing import Any

from hta.cli import announce_torch

announce_torch()  # before the imports that need it

from hta.cli import Parser, run_command
from hta.config import RuntimeConfig
from hta.data.loaders import load_dataset
from hta.errors import RunError, UserError, options_renamed
from hta.experiments import changes, classes, gains, plan, seeds, tables
from hta.experiments.results import FAILED_FOLDER, SHOT_TABLES, TABLES, default_folder, is_done, load_runs, make_folder
from hta.experiments.runner import available_devices, run_missing
from hta.files import write_atomically
from hta.runtime import available_cores

_RUN_USAGE = """%(prog)s --datasets NAME ... [--classes C ...]
         [--shots N ...] [--draws K ...] [--variants V ...] [--jobs N] ...
       %(prog)s --tables N ... [--datasets NAME ...] ..."""

_OF_SCRIPTS = {"num_images": "shots", "pos_class": "classes", "dataset": "datasets", "index_download": "draws"}
"""Options of the two scripts, by the names that they have here."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(_command, argv, "finished runs are kept; the same command continues with the rest")


def _command(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m hta.experiments", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True, parser_class=Parser, metavar="COMMAND")
    for name, act, text in (
        ("run", _run, "make the missing runs"),
        ("table", _table, "print and write a table next to the paper's"),
        ("summary", _summary, "print one line for each part of tables 1 to 5"),
        ("changes", _changes, "print the effect of changed settings"),
        ("recipes", _recipes, "print the recipe views beside the paper's"),
        ("classes", _classes, "print the score combined beside the paper's"),
        ("gains", _gains, "print what more training images gain"),
        ("seeds", _seeds, "print what the seed and the image move"),
        ("scores", _scores, "print the effect of other scores"),
        ("plot", _plot, "draw the results next to the paper's"),
    ):
        usage = _RUN_USAGE if name == "run" else None
        command = commands.add_parser(name, help=text, description=act.__doc__, usage=usage)
        command.set_defaults(act=act)
        text = "folder for the results; by default docs/results of the source checkout if it can be written, else "
        text += "./results (here: %(default)s)"
        command.add_argument("--results", type=Path, default=default_folder(), metavar="DIR", help=text)
        if name == "run":
            _add_run_options(command)
        elif name == "table":
            command.add_argument("number", type=int, choices=list(TABLES), help="number of the table in the paper")
            text = "print only what was run, with our figures and the paper's"
            command.add_argument("--brief", action="store_true", help=text)
    options = parser.parse_args(argv)
    options.act(options)


def _add_run_options(run: Parser) -> None:
    several: dict[str, Any] = dict(nargs="+", default=())
    flag: dict[str, Any] = dict(action="store_true")
    what = run.add_argument_group("what to run (all combinations of these)").add_argument
    text = "tables of the paper to rerun, with their shots, variants and transformations, and with their data sets or "
    text += "those of --datasets"
    what("--tables", **several, type=int, choices=list(TABLES), metavar="{1-7}", help=text)
    text = "data sets: cifar, mnist, fashionmnist, paris, mvtec, folder (one folder per class) or defects (one folder "
    text += "laid out like MVTec AD)"
    what("--datasets", **several, metavar="NAME", help=text)
    what("--classes", **several, metavar="NAME", help="classes to take as normal, one after the other; by default all")
    what("--shots", **several, type=_whole(1), metavar="N", help="numbers of training images (default 1)")
    text = "draws of the training images, as numbers or ranges such as 1-3 (default 1)"
    what("--draws", nargs="+", default=["1"], metavar="K", help=text)
    what("--in_order", **flag, help="draw k is not random, but the k-th image (or the k-th N images) of the class")
    variants = "; ".join(f"{name}: {variant.title}" for name, variant in plan.VARIANTS.items())
    what("--variants", nargs="+", choices=list(plan.VARIANTS), metavar="V", help=variants)
    text = "schedule: paper is the released one, fast a tenth of the work (default fast)"
    what("--preset", choices=list(plan.PRESETS), default="fast", help=text)
    text = "number of transformations; by default the paper's for the data set"
    what("--num_transforms", type=int, choices=plan.NUM_TRANSFORMS, help=text)
    what("--fractions", **several, type=_fraction, metavar="F", help="fractions of the patches that vote, from 0 to 1")
    what("--test_limit", type=_whole(2), metavar="N", help="only N test images, each class in proportion (default all)")
    text = "random seed of draws and test images, and, with the number of the draw added, of the training (default 0)"
    what("--seed", type=_whole(0), default=0, help=text)
    text = "changed settings of model and training, such as niter=500; manualSeed=3 is the seed of the training alone"
    what("--set", **several, metavar="NAME=VALUE", help=text)
    what("--prepare", **several, metavar="NAME=VALUE", help="changed preparation of images, such as train_clahe=false")
    data = run.add_argument_group("data").add_argument
    data("--data_root", default="data", metavar="DIR", help="folder that holds the data sets (default data)")
    data("--download", **flag, help="download CIFAR10, MNIST or FashionMNIST into --data_root")
    data("--dataset_title", metavar="TEXT", help="name to give the data set in tables")
    data("--paper_dataset", metavar="NAME", help="compare with the paper's rows of this data set, such as cifar10")
    how = run.add_argument_group("how to run it").add_argument
    how("--jobs", type=_whole(1), default=1, help="number of runs at a time on this machine (default 1)")
    how("--threads", type=int, default=0, help="CPU threads of each run; by default the cores divided by the jobs")
    how("--device", **several, metavar="D", help="devices that share the runs; by default all CUDA devices")
    how("--not_cuda", **flag, help="run on the CPU even if there is a GPU")
    text = "floating-point format; auto (the default) means bfloat16 if the hardware supports it, else float32"
    how("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help=text)
    names = "--dask-scheduler", "--dask_scheduler"
    how(*names, metavar="ADDRESS", help="run on the Dask cluster whose scheduler has this address")
    how("--part", metavar="I/N", help="make only the I-th of N parts of the runs, for job arrays")
    how("--keep_scores", **flag, help="also write the score of every image, next to the result")
    how("--dry_run", **flag, help="only list the runs and whether they are done")


def _whole(low: int) -> Callable[[str], int]:
    """A reader of whole numbers from `low` on that fit into 31 bits, as seeds must."""

    def read(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) < 2**31:
            raise ArgumentTypeError(f"{text!r}: must be a whole number, {low} or more")
        return int(text)

    return read


def _fraction(text: str) -> float:
    try:
        if 0 < float(text) <= 1:
            return float(text)
    except ValueError:
        pass
    raise ArgumentTypeError(f"{text!r}: must be 0 < value <= 1")


def _run(options: Namespace) -> None:
    """Make the missing runs. Results that exist are kept, and failed runs are tried again."""
    requests = _requests(options)
    plan.check_titles(requests)
    if options.download:  # once and here, so that all workers find it
        for name, num_transforms in dict.fromkeys((name, r.num_transforms) for r in requests for name in r.datasets):
            load_dataset(name, options.data_root, num_transforms=num_transforms, download=True)
    with options_renamed(_OF_SCRIPTS):
        runs = plan.plan_runs(requests)
    if options.part is not None:  # every N-th run, starting at the I-th
        number, _, count = options.part.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise UserError(f"--part {options.part}: give I/N with 1 <= I <= N, such as 3/20")
        runs = runs[int(number) - 1 :: int(count)]
    if options.dry_run:
        for run in runs:
            print(f"{'done' if is_done(options.results, run) else 'to do'}: {run.describe()}")
        return
    on_cluster = options.dask_scheduler is not None
    devices = options.device or (() if options.not_cuda or on_cluster else available_devices())
    threads = options.threads or (0 if on_cluster else max(1, available_cores() // options.jobs))
    same = dict(not_cuda=options.not_cuda, threads=threads, precision=options.precision)
    configs = {run: RuntimeConfig(device=d, **same) for run, d in zip(runs, cycle(devices or [None]), strict=False)}
    asked = dict(jobs=options.jobs, dask_scheduler=options.dask_scheduler, keep_scores=options.keep_scores)
    if failures := run_missing(configs, requests[0].data_root, options.results, **asked):
        raise RunError(
            f"{failures} of {len(runs)} runs failed: their errors are in {options.results / FAILED_FOLDER}; the same "
            "command tries them again"
        )


def _requests(options: Namespace) -> list[plan.Request]:
    """What was asked for: one combination, or what the tables need."""
    given = {field.name: getattr(options, field.name) for field in fields(plan.Request) if hasattr(options, field.name)}
    given |= dict(settings=plan.parse_overrides("--set", options.set))
    given |= dict(preparation=plan.parse_overrides("--prepare", options.prepare))
    given |= dict(shots=options.shots or (1,), variants=options.variants or ("ours",))
    given |= dict(data_root=str(Path(options.data_root).resolve()), draws=[])
    for text in options.draws:  # numbers and ranges, both ends included
        first, _, last = text.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal() and int(first) <= int(last or first)):
            raise UserError(f"--draws {text}: give numbers or ranges, such as 1 or 1-3")
        given["draws"] += range(int(first), int(last or first) + 1)
    if not options.tables:
        if not options.datasets:
            raise UserError("--datasets is missing: name one or more, or give --tables; see --help")
        return [plan.Request(**given)]
    for name in ("shots", "variants", "num_transforms"):
        if getattr(options, name):
            raise UserError(f"--{name}: contradicts --tables, which have their own; leave out one of the two")
    return plan.requests_of_tables(options.tables, plan.Request(**given))


def _table(options: Namespace) -> None:
    """Print a table and write it as Markdown and CSV to the folder `tables` of the results."""
    table = tables.build_table(options.number, load_runs(options.results))
    folder = make_folder(options.results / "tables")
    markdown = tables.to_markdown(table)
    print(tables.to_brief_markdown(table) if options.brief else markdown)
    write_atomically(folder / f"table_{options.number}.md", markdown.encode())
    write_atomically(folder / f"table_{options.number}.csv", tables.to_csv(table).encode())


def _summary(options: Namespace) -> None:
    """Print means over classes beside the paper's for everything in tables 1 to 5 that was run with plain settings."""
    runs = load_runs(options.results)
    print(tables.to_summary([tables.build_table(number, runs) for number in SHOT_TABLES]))


def _changes(options: Namespace) -> None:
    """Print by how much each changed setting moves the AUROC on the same training and test images."""
    print(changes.to_markdown(changes.compare_changes(load_runs(options.results))))


def _recipes(options: Namespace) -> None:
    """Print the AUROC of the recipe views beside that of the paper's on the same training and test images."""
    print(changes.recipes_to_markdown(load_runs(options.results)))


def _classes(options: Namespace) -> None:
    """Print the AUROC of the score combined beside that of the paper's, of the same one-shot runs."""
    print(classes.classes_to_markdown(load_runs(options.results)))


def _gains(options: Namespace) -> None:
    """Print the AUROC by number of training images, and what more of them gain, beside the paper's."""
    print(gains.gains_to_markdown(load_runs(options.results)))


def _seeds(options: Namespace) -> None:
    """Print how far the AUROC moves with the seed of the training and with the image, and what several seeds gain."""
    print(seeds.seeds_to_markdown(options.results))


def _scores(options: Namespace) -> None:
    """Print by how much other scores made from the same votes move the AUROC, over all classes."""
    print(changes.scores_to_markdown(changes.compare_scores(load_runs(options.results))))


def _plot(options: Namespace) -> None:
    """Draw AUROC by class and by number of training images, into the folder `plots` of the results."""
    from hta.experiments.plots import draw_plots  # matplotlib is slow to import

    runs = load_runs(options.results)
    if runs.empty:
        raise UserError(f"--results {options.results}: no results there; make some with the command run")
    for path in draw_plots(runs, make_folder(options.results / "plots")):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
