"""Plots of the tables: every class beside the paper, and the mean over classes by the number of training images."""

import math
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hta.experiments.plan import paper_values, slug
from hta.experiments.results import AVERAGE, SHOT_TABLES
from hta.experiments.tables import SETUP, build_table, count_draws, describe_setup
from hta.files import write_figure

_CHANCE = 50
_BAR_WIDTH = 0.38
_DODGE = 0.06  # between the error bars of two lines


def draw_plots(runs: pd.DataFrame, folder: Path) -> list[Path]:
    """Write all plots that the results (from `load_runs`) allow into a folder that exists, and return their paths."""
    tables = [build_table(number, runs) for number in SHOT_TABLES]
    parts = [part for table in tables for _, part in table.groupby("part") if part["ours"].notna().any()]
    figures = {_path(folder, part, "classes", f"{part['shots'].iloc[0]}shot"): class_bars(part) for part in parts}
    setups: dict[str, list[pd.DataFrame]] = {}
    for part in parts:
        setups.setdefault(str(part.iloc[0][SETUP].drop("shots").tolist()), []).append(part)
    figures |= {_path(folder, same, "shots"): shots_curve(same) for same in map(pd.concat, setups.values())}
    for path, figure in figures.items():
        write_figure(figure, path)
    return list(figures)


def class_bars(part: pd.DataFrame) -> Figure:
    """Bars from chance to ours and the paper's AUROC for every class of a part; classes that were not run say so."""
    run = part.loc[part["ours"].notna(), "column"]
    rows = part[part["column"].isin(run) & (part["ours"].notna() | part["paper"].notna())]
    figure, axes = _new_figure(dict(part.iloc[0]), max(6, 0.62 * len(rows) + 1))
    places = np.arange(len(rows)) + 0.4 * rows["is_average"].to_numpy()  # averages are set apart
    ours, paper = (_points(rows, *names).assign(place=places) for names in (("ours", "std"), ("paper", "paper_std")))

    shift = _BAR_WIDTH / 2 if paper["mean"].notna().any() else 0
    draws = count_draws(rows["fewest"].min(), rows["most"].max())
    label = "this code" + (f", {draws} draw{'s' * (draws != '1')}" if draws else "")
    for points, to_right, name in ((ours, -shift, label), (paper, shift, "paper"))[: 2 if shift else 1]:
        bars = points.dropna(subset="mean")
        x, heights = bars["place"] + to_right, bars["mean"] - _CHANCE
        errors = dict(yerr=bars["std"], error_kw={"linewidth": 1, "capsize": 2})
        axes.bar(x, heights, _BAR_WIDTH, bottom=_CHANCE, label=name, **errors)
    for x in ours.loc[ours["mean"].isna(), "place"]:
        axes.text(x - shift, _CHANCE + 1, "not run", rotation=90, ha="center", va="bottom", color="gray")

    axes.axhline(_CHANCE, color="black", linewidth=0.8)
    names = rows["pos_class"].where(~rows["is_average"], rows["pos_class"].str.replace(" of ", " of\n"))
    labels = names + " " + rows["column"] if part["column"].nunique() > 1 else names
    axes.set_xticks(places, labels, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_xlim(-0.8, max([7, *(places + 0.8)]))  # a few bars are no wider than many
    axes.set_ylim(*_limits(pd.concat([ours, paper]), lowest=_CHANCE))
    axes.set_ylabel(f"AUROC (%), {_CHANCE} is chance")
    _add_legend(figure, axes)
    return figure


def shots_curve(parts: pd.DataFrame) -> Figure:
    """Mean over the classes that were run, ours and the paper's, over the number of training images.

    Beside them is what the paper prints for all classes, at every number of training images that it has. The parts of
    tables, from `build_table`, differ only in the number of training images.
    """
    figure, axes = _new_figure(dict(parts.iloc[0]) | {"shots": 0}, 6)
    curves = [curve for curve in _curves(parts) if len(curve[2])]
    shots = sorted({n for _, _, points in curves for n in points["shots"]})
    for number, (label, style, points) in enumerate(curves):
        places = np.array([shots.index(n) for n in points["shots"]]) + _DODGE * (number - (len(curves) - 1) / 2)
        axes.errorbar(places, points["mean"], yerr=points["std"], fmt=style, capsize=3, label=label)

    run = parts[parts["ours"].notna() & ~parts["is_average"]].groupby("shots")["pos_class"].nunique().to_dict()
    counts = [f"{run[n]} class{'es' * (run[n] > 1)}" if n in run else "not run" for n in shots]
    axes.set_xticks(range(len(shots)), [f"{n}\n{count}" for n, count in zip(shots, counts, strict=True)])
    axes.set_xlim(-0.5, len(shots) - 0.5)
    axes.set_ylim(*_limits(pd.concat([points for *_, points in curves]), lowest=80))
    axes.set_xlabel("training images")
    axes.set_ylabel("AUROC (%), mean over classes")
    _add_legend(figure, axes)
    return figure


def _curves(parts: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Label, style and points of every curve, with ours and the paper's for each column."""
    averages = parts[parts["is_average"]].sort_values("shots")
    printed = paper_values()
    printed = printed[printed["table"].isin(SHOT_TABLES) & (printed["pos_class"] == AVERAGE)]
    printed = printed[printed["dataset"] == parts["paper_dataset"].iloc[0]].sort_values("shots")
    columns = [column for column in parts["column"].unique() if column in set(averages["column"])]
    for column in columns:
        name = f" ({column})" if len(columns) > 1 else ""
        ours = averages[averages["column"] == column]
        same = ours[ours["paper"].notna()]
        yield f"this code{name}", "o-", _points(ours, "ours", "std")
        yield f"paper, the same classes{name}", "s--", _points(same, "paper", "paper_std")
        yield f"paper, all classes{name}", "x:", _points(printed[printed["column"] == column], "paper", "paper_std")


def _new_figure(setup: Mapping[str, Any], width: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 4.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.set_title(textwrap.fill(describe_setup(setup), int(13 * width)), fontsize="small", parse_math=False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    return figure, axes


def _add_legend(figure: Figure, axes: Axes) -> None:
    """Below the axes, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    columns = len(labels) if len(labels) <= 3 else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="small")


def _points(rows: pd.DataFrame, mean: str, std: str) -> pd.DataFrame:
    """Means and standard deviations under names of their own; a single draw has no deviation and no error bar."""
    return rows[["shots", mean, std]].rename(columns={mean: "mean", std: "std"})


def _limits(points: pd.DataFrame, lowest: float) -> tuple[float, float]:
    """Of the axis of AUROC: a round number below every error bar and below `lowest`, and 100."""
    low = min(lowest, (points["mean"] - points["std"].fillna(0)).min())
    return max(0, 10 * math.floor((low - 1) / 10)), 101


def _path(folder: Path, part: pd.DataFrame, kind: str, *more: str) -> Path:
    setup = part.iloc[0]
    order = "in order" if setup["in_order"] else ""
    names = (kind, setup["title"], *more, str(setup["num_transforms"] or ""), setup["preset"])
    names += (str(setup["test_limit"] or "whole"), order, setup["changes"])
    return folder / ("_".join(filter(None, map(slug, names))) + ".png")
