"""Plots of the tables: AUROC over the number of shots, and every class beside the paper."""

import io
import math
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hta.experiments.paper import AVERAGE, SHOT_TABLES, paper_parts, paper_value
from hta.experiments.results import Result
from hta.experiments.spec import slug
from hta.experiments.table_text import count_draws
from hta.experiments.tables import Part, Row, Setup, build_table
from hta.files import write_atomically

_CHANCE = 50
_BAR_WIDTH = 0.38
_DODGE = 0.06  # between the error bars of two lines

_Point = tuple[int, float, float | None]  # training images, mean, std


def draw_plots(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write all plots that the results allow.

    Args:
        results: at hand.
        folder: exists.

    Returns:
        The files.

    Raises:
        RunError: a file cannot be written.
    """
    parts = [part for table in SHOT_TABLES for part in build_table(table, results) if part.setup]
    files = [_write(folder, class_bars(part), "classes", part.setup, f"{part.shots}shot") for part in parts]
    by_way: defaultdict[Setup, list[Part]] = defaultdict(list)
    for part in parts:
        by_way[replace(part.setup, shots=0)].append(part)
    return files + [_write(folder, shots_curve(setup, group), "shots", setup) for setup, group in by_way.items()]


# --- classes ------------------------------------------------------------------------------------------------------


def class_bars(part: Part) -> Figure:
    """Bars of ours and the paper's, from chance up or down, for every class; one that was not run says so."""
    run = {column for _, column in part.cells}
    rows = [row for row in part.rows() if row.column in run and (row.ours is not None or row.paper)]
    figure, axes = _new_figure(part.setup, max(6, 0.62 * len(rows) + 1))
    places = np.arange(len(rows)) + [0.4 * row.is_average for row in rows]  # averages stand apart

    ours = [(x, row.ours, row.std) for x, row in zip(places, rows, strict=True) if row.ours is not None]
    paper = [(x, row.paper.mean, row.paper.std) for x, row in zip(places, rows, strict=True) if row.paper]
    shift = _BAR_WIDTH / 2 if paper else 0
    _bars(axes, -shift, ours, f"this code{_draws(rows)}")
    if paper:
        _bars(axes, shift, paper, "paper")
    for x in (x for x, row in zip(places, rows, strict=True) if row.ours is None):
        axes.text(x - shift, _CHANCE + 1, "not run", rotation=90, ha="center", va="bottom", color="gray")

    axes.axhline(_CHANCE, color="black", linewidth=0.8)
    axes.set_xticks(places, [_label(row, part) for row in rows], rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.8, max([7, *(places + 0.8)]))  # a few bars are no broader than many
    axes.set_ylim(*_limits([*ours, *paper], lowest=_CHANCE))
    axes.set_ylabel(f"AUROC (%), {_CHANCE} is chance")
    _legend(figure, axes)
    return figure


def _bars(axes: Axes, shift: float, bars: Sequence[_Point], label: str) -> None:
    places, means, stds = zip(*bars, strict=True) if bars else ((), (), ())
    axes.bar(
        np.array(places) + shift,
        np.array(means) - _CHANCE,
        _BAR_WIDTH,
        bottom=_CHANCE,
        yerr=[_length(std) for std in stds],
        error_kw={"linewidth": 1, "capsize": 2},
        label=label,
    )


def _draws(rows: Sequence[Row]) -> str:
    draws = count_draws(rows)
    return f", {draws} draw{'s' * (draws != '1')}" if draws else ""


def _label(row: Row, part: Part) -> str:
    name = row.name.replace(" of ", " of\n", 1) if row.is_average else row.name
    return f"{name} {row.column}" if len(part.columns) > 1 else name


# --- shots --------------------------------------------------------------------------------------------------------


def shots_curve(setup: Setup, parts: Sequence[Part]) -> Figure:
    """Mean over the classes that were run, ours and the paper's, over the number of training images.

    Beside them stands what the paper prints for all classes, at every number of training images that it has.
    """
    figure, axes = _new_figure(setup, 6)
    columns = [column for column in parts[0].columns if any(_averages(part, column) for part in parts)]
    lines: list[tuple[str, str, list[_Point]]] = []
    for column in columns:
        averages = sorted((part.shots, row) for part in parts for row in _averages(part, column))
        name = f" ({column})" if len(columns) > 1 else ""
        lines.append((f"this code{name}", "o-", [(n, row.ours, row.std) for n, row in averages]))
        printed = [(n, row.paper.mean, row.paper.std) for n, row in averages if row.paper]
        lines.append((f"paper, the same classes{name}", "s--", printed))
        lines.append((f"paper, all classes{name}", "x:", _printed(setup.paper_dataset, column)))

    shots = sorted({n for _, _, points in lines for n, _, _ in points})
    drawn = [line for line in lines if line[2]]
    for number, (label, style, points) in enumerate(drawn):
        counts, means, stds = zip(*points, strict=True)
        places = np.array([shots.index(n) for n in counts]) + _DODGE * (number - (len(drawn) - 1) / 2)
        axes.errorbar(places, means, yerr=[_length(std) for std in stds], fmt=style, capsize=3, label=label)

    axes.set_xticks(range(len(shots)), [_shots_label(n, parts) for n in shots])
    axes.set_xlim(-0.5, len(shots) - 0.5)
    axes.set_ylim(*_limits([point for _, _, points in drawn for point in points], lowest=80))
    axes.set_xlabel("training images")
    axes.set_ylabel("AUROC (%), mean over classes")
    _legend(figure, axes)
    return figure


def _averages(part: Part, column: str) -> list[Row]:
    return [row for row in part.rows() if row.is_average and row.column == column]


def _printed(dataset: str | None, column: str) -> list[_Point]:
    """The paper's averages over all classes of a data set."""
    places = {(table, *place) for table in SHOT_TABLES for place in paper_parts(table) if place[0] == dataset}
    values = {n: paper_value(table, name, n, AVERAGE, column) for table, name, n in places}
    return [(n, value.mean, value.std) for n, value in sorted(values.items()) if value]


def _shots_label(shots: int, parts: Sequence[Part]) -> str:
    """The number, and how many classes were run with it."""
    counts = {len({name for name, _ in part.cells}) for part in parts if part.shots == shots}
    if not counts:
        return f"{shots}\nnot run"
    return f"{shots}\n{max(counts)} class{'es' * (max(counts) > 1)}"


# --- both ---------------------------------------------------------------------------------------------------------


def _new_figure(setup: Setup, width: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(textwrap.fill(setup.describe(), int(13 * width)), fontsize="small")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    return figure, axes


def _legend(figure: Figure, axes: Axes) -> None:
    """Below the axes, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    columns = len(labels) if len(labels) <= 3 else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="small")


def _length(std: float | None) -> float:
    """Of an error bar; there is none for a single draw."""
    return math.nan if std is None else std


def _limits(points: Iterable[_Point], lowest: float) -> tuple[float, float]:
    """Of the axis of AUROC: a round number below every error bar and below `lowest`, and 100."""
    ends = [mean - (std or 0) for _, mean, std in points]
    return max(0, 10 * math.floor((min([lowest, *ends]) - 1) / 10)), 101


def _write(folder: Path, figure: Figure, kind: str, setup: Setup, *more: str) -> Path:
    limit = f"{setup.test_limit}" if setup.test_limit else "whole"
    order = "in order" if setup.in_order else ""
    names = (kind, setup.title, *more, str(setup.num_transforms or ""), setup.preset, limit, order, setup.changes)
    path = folder / ("_".join(filter(None, map(slug, names))) + ".png")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
    write_atomically(path, picture.getvalue())
    return path
