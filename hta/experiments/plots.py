"""Plots of the tables: AUROC over the number of shots, and every class beside the paper."""

import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from hta.experiments.results import Result
from hta.experiments.spec import slug
from hta.experiments.tables import Part, Row, Setup, build_table
from hta.files import write_atomically

_SHOT_TABLES = (1, 2, 3, 4, 5)


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
    parts = [part for table in _SHOT_TABLES for part in build_table(table, results) if part.setup]
    files = [_write(folder, _class_bars(part), "classes", part.setup, f"{part.shots}shot") for part in parts]
    by_way: defaultdict[Setup, list[Part]] = defaultdict(list)
    for part in parts:
        by_way[replace(part.setup, shots=0)].append(part)
    return files + [_write(folder, _shots_curve(group), "shots", setup) for setup, group in by_way.items()]


def _class_bars(part: Part) -> Figure:
    """Bars of ours and the paper's for every class that was run."""
    rows = [row for row in part.rows() if row.ours is not None]
    figure = Figure(figsize=(max(5, 0.9 * len(rows)), 4), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    axes.bar(places - 0.2, [row.ours for row in rows], 0.4, yerr=[row.std or 0 for row in rows], label="this code")
    printed = [(place, row.paper) for place, row in zip(places, rows, strict=True) if row.paper]
    if printed:
        heights, errors = [value.mean for _, value in printed], [value.std for _, value in printed]
        axes.bar([place + 0.2 for place, _ in printed], heights, 0.4, yerr=errors, label="paper")
    axes.axhline(50, color="gray", linewidth=0.8)
    axes.set_xticks(places, [_label(row, part) for row in rows], rotation=45, ha="right")
    axes.set_ylabel("AUROC (%)")
    axes.set_title(part.setup.describe(), fontsize="small")
    axes.legend()
    return figure


def _label(row: Row, part: Part) -> str:
    return f"{row.name} {row.column}" if len(part.columns) > 1 else row.name


def _shots_curve(parts: Sequence[Part]) -> Figure:
    """Mean over the classes that were run, ours and the paper's, over the number of training images."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for column in dict.fromkeys(column for part in parts for column in part.columns):
        averages = sorted((part.shots, row) for part in parts for row in _averages(part, column))
        _error_line(axes, ((n, row.ours, row.std or 0) for n, row in averages), f"this code ({column})", "o-")
        _error_line(axes, ((n, r.paper.mean, r.paper.std) for n, r in averages if r.paper), f"paper ({column})", "s--")
    axes.set_xlabel("training images")
    axes.set_ylabel("AUROC (%), mean over the classes run")
    axes.set_title(replace(parts[0].setup, shots=0).title, fontsize="small")
    axes.legend()
    return figure


def _averages(part: Part, column: str) -> list[Row]:
    return [row for row in part.rows() if row.name.startswith("average") and row.column == column]


def _error_line(axes, points: Iterable[tuple[int, float, float]], label: str, style: str) -> None:
    points = list(points)
    if points:
        shots, means, stds = zip(*points, strict=True)
        axes.errorbar(shots, means, yerr=stds, fmt=style, capsize=3, label=label)


def _write(folder: Path, figure: Figure, kind: str, setup: Setup, *more: str) -> Path:
    limit = f"{setup.test_limit}" if setup.test_limit else "whole"
    names = (kind, setup.title, *more, str(setup.num_transforms or ""), setup.preset, limit, setup.changes)
    path = folder / ("_".join(filter(None, map(slug, names))) + ".png")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
    write_atomically(path, picture.getvalue())
    return path
