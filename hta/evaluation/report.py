"""report.html: the results of a test set on one page, which a browser opens from disk without a network.

Images are small in the page itself; the full overlays, and the images without them, are files beside it, read when the
viewer shows them.
"""

import base64
import hashlib
import os
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hta.config import ModelConfig
from hta.evaluation.overlays import ColourScale
from hta.evaluation.results import MAP_SUFFIX, METRIC_NAMES, OVERLAYS_FOLDER, PLAIN_SUFFIX, REPORT_FILE, ImageResult
from hta.evaluation.scores import score_text
from hta.files import printable
from hta.pages import COLOURS, chart_style, inline_svg, write_page

_GROUPS = {0: "normal", 1: "anomalous", None: "unlabelled"}  # by label
_GROUP_COLOURS = {"normal": "blue", "anomalous": "orange", "unlabelled": "grey"}
_BINS = 30
_STOPS = 11  # of the colour scale
_LABEL_ROOM = 48  # characters of all labels below the scores together
_CROWDED, _LEAST_DISTANCE = 0.01, 1e-16  # from 1: of most scores that crowd there, and the smallest one drawn
_LEAST_MARGIN = 1e-9  # beside the scores on their axis; closer ones are drawn as one


def write_report(folder: Path, document: dict[str, Any], results: Sequence[ImageResult]) -> Path:
    """Write report.html, below 30 MB for 2,000 images, beside the overlays in a results folder, and return its path.

    `document` is the content of metrics.json.

    Raises:
        RunError: the page cannot be written.
    """
    decision, model, dataset = document["decision"], document["model"], document.get("dataset")
    scored = f"{dataset['name']}, normal class {dataset['pos_class']}" if dataset else document["test_dir"]
    scored_name = scored if dataset else PurePath(scored).name or scored
    network = {name: model["config"]["model"][name] for name in ("num_layer", "ker_size")}
    script = resources.files(__package__).joinpath("report.js").read_text(encoding="utf-8")
    histogram, roc = _charts(results, None if decision["decided_by"] == "map" else decision["threshold"])
    write_page(
        folder / REPORT_FILE,
        "evaluation/report_template.html",
        title=f"{PurePath(model['path']).name}: results on {scored_name}",
        document=document,
        scored=scored,
        metric_names=METRIC_NAMES,
        score_text=score_text,
        histogram=histogram,
        roc=roc,
        field=ModelConfig(**network).receptive_field,
        stops=list(zip(*ColourScale(0, 1).colours(np.linspace(0, 1, _STOPS)), strict=True)),
        rows=[_row(result) for result in results],
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return folder / REPORT_FILE


def _row(result: ImageResult) -> dict[str, Any]:
    """An image as the page's script takes it."""
    item, overlay = result.item, result.overlay
    return {
        "name": printable(item.relative),
        "label": _GROUPS[item.label],
        "kind": printable(item.defect or ""),
        "score": float(result.score),
        "shown": score_text(result.score),
        "decision": result.decision,
        "peak": None if result.peak is None else float(f"{result.peak:.6g}"),
        "shares": [float(f"{share:.4g}") for share in result.shares],
        "image": base64.b64encode(result.thumbnail).decode(),
        "overlay": overlay and base64.b64encode(overlay).decode(),
        "link": overlay and picture_link(item.relative, MAP_SUFFIX),
        "plain": overlay and picture_link(item.relative, PLAIN_SUFFIX),
    }


def picture_link(relative: str, suffix: str) -> str:
    """The page's link to an image's overlay (`MAP_SUFFIX`), or to the image; of bytes, so that any name is found."""
    return quote(os.fsencode(f"{OVERLAYS_FOLDER}/{relative}{suffix}"))


def _charts(results: Sequence[ImageResult], threshold: float | None) -> tuple[str, str | None]:
    """The distributions of the scores, and the ROC curve; None where that is not defined."""
    by_group = {name: [r.score for r in results if r.item.label == label] for label, name in _GROUPS.items()}
    groups = {name: np.array(scores) for name, scores in by_group.items() if scores}
    counted = ", ".join(f"{scores.size} {name}" for name, scores in groups.items())
    with chart_style():
        figure = draw_histogram(groups, threshold)
        histogram = inline_svg(figure, "histogram", f"Histogram of the anomaly scores: {counted}")
        if set(groups) != {"normal", "anomalous"}:
            return histogram, None
        figure = draw_roc(groups["normal"], groups["anomalous"], threshold)
        return histogram, inline_svg(figure, "roc", "ROC curve of the images")


def draw_histogram(groups: dict[str, np.ndarray], threshold: float | None) -> Figure:
    """Distributions of scores, a panel per group, with the threshold, on one axis: of `nines` if scores crowd at 1."""
    values = np.concatenate([*groups.values(), [] if threshold is None else [threshold]])
    by_nines = crowd_at_one(values)
    position: Callable = nines if by_nines else np.asarray
    low, high = float(position(values).min()), float(position(values).max())
    margin = max(0.02 * (high - low), _LEAST_MARGIN) if high > low else 0.01
    low, high = low - margin, high + margin
    top = 0.25 if threshold is None else 0.5
    height = 0.2 + top + 1.2 * len(groups)
    figure = Figure(figsize=(5, height))
    panels = figure.subplots(len(groups), sharex=True, squeeze=False)[:, 0]
    figure.subplots_adjust(left=0.08, right=0.92, bottom=0.5 / height, top=1 - top / height, hspace=0.35)
    edges = np.linspace(low, high, _BINS + 1)
    place = None if threshold is None else float(position(threshold))
    is_left = place is not None and place < (low + high) / 2
    for axes, (name, scores) in zip(panels, groups.items(), strict=True):
        counts, _ = np.histogram(position(scores), edges)
        axes.stairs(counts, edges, fill=True, color=COLOURS[_GROUP_COLOURS[name]])
        axes.set_title(f"{name} ({scores.size:,})", loc="right" if is_left else "left")
        axes.set_yticks([0, counts.max()], ["0", f"{counts.max():,}"])
        axes.set_ylim(0, counts.max())
        axes.tick_params(left=False)
        axes.spines[["left", "right", "top"]].set_visible(False)
    if place is not None and threshold is not None:
        for axes in panels:
            axes.axvline(place, ymax=1.32, clip_on=False, color=COLOURS["ink"], linewidth=1.2, dashes=(4, 2))
        text, transform = f"threshold {score_text(threshold)}", panels[0].get_xaxis_transform()
        panels[0].text(place, 1.36, text, ha="left" if is_left else "right", transform=transform)
    axes.set_xlim(low, high)
    axes.set_xticks(*zip(*score_ticks(low, high, by_nines=by_nines), strict=True))
    axes.set_xlabel("anomaly score (higher = more anomalous)" + ", by its distance from 1" * by_nines)
    return figure


def draw_roc(normal: np.ndarray, anomalous: np.ndarray, threshold: float | None) -> Figure:
    """ROC curve of normal and anomalous images by their scores, at least one each; the threshold's point is marked."""
    from sklearn.metrics import roc_curve

    labels = np.repeat([0, 1], [normal.size, anomalous.size])
    false_alarms, recall, _ = roc_curve(labels, np.concatenate([normal, anomalous]))
    figure = Figure(figsize=(5, 4.6))
    axes = figure.add_axes((0.12, 0.12, 0.8, 0.8 * 5 / 4.6), xlim=(0, 1), ylim=(0, 1))
    axes.plot([0, 1], [0, 1], dashes=(1, 3), color=COLOURS["soft"], linewidth=1)
    axes.plot(false_alarms, recall, color=COLOURS["blue"], linewidth=1.5, clip_on=False)
    axes.set_xlabel("false alarms: share of the normal images")
    axes.set_ylabel("detected: share of the anomalous images")
    if threshold is not None:
        x, y = np.mean(normal > threshold), np.mean(anomalous > threshold)
        axes.plot(x, y, "o", color=COLOURS["orange"], markeredgecolor=COLOURS["ink"], clip_on=False)
        # Below the point, but above the axis, within the square.
        shift, side = (-10, "right") if x > 0.6 else (10, "left")
        text = axes.annotate("at the threshold", (x, y), (shift, -10 if y > 0.1 else 8), textcoords="offset points")
        text.set(ha=side, va="center", bbox={"facecolor": COLOURS["paper"], "edgecolor": "none", "pad": 1})
    return figure


def crowd_at_one(scores: np.ndarray) -> bool:
    """Whether most scores are within 1 % of 1, decades apart: then their distance from 1 says more than they do."""
    are_near = scores.min() >= 0 and scores.max() <= 1 and np.median(scores) >= 1 - _CROWDED
    return bool(are_near and np.ptp(nines(scores)) > 2)


def nines(scores: np.ndarray | float) -> np.ndarray:
    """How many nines scores in [0, 1] begin with, as real numbers: -log10(1 - score)."""
    return -np.log10(np.maximum(1 - np.asarray(scores), _LEAST_DISTANCE))


def score_ticks(low: float, high: float, *, by_nines: bool = False) -> list[tuple[float, str]]:
    """Places on the axis of the scores, or of their `nines`, and the scores there; as many as the labels allow."""
    ticks: list[tuple[float, str]] = []
    for most in range(6, 0, -1):
        locator = MaxNLocator(most, steps=[1, 2, 5, 10], integer=by_nines)
        places = [place for place in locator.tick_values(low, high) if low <= place <= high]
        ticks = [(place, _nines_text(place) if by_nines else f"{place + 0:.12g}") for place in places]
        if sum(len(label) + 2 for _, label in ticks) <= _LABEL_ROOM:
            break
    return ticks


def _nines_text(place: float) -> str:
    """The score with a number of nines."""
    return f"{1 - 0.1**place:.3g}" if place < 4 else f"1 - 1e-{place:02.0f}"
