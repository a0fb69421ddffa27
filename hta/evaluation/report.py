"""report.html: the results of a test set on one page, which a browser opens from disk without a network.

Images are small in the page itself; the full overlays, and the images without them, are files beside it, read when the
viewer shows them.
"""

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from hta.config import ModelConfig
from hta.errors import RunError
from hta.evaluation.overlays import ColourScale
from hta.evaluation.results import (
    MAP_SUFFIX,
    MAPS_FOLDER,
    OVERLAYS_FOLDER,
    PLAIN_SUFFIX,
    REPORT_FILE,
    ImageResult,
    metric_rows,
)
from hta.evaluation.scores import level_text, levels, score_text
from hta.evaluation.thresholds import advice
from hta.files import printable
from hta.pages import COLOURS, chart_style, inline_svg, write_page

_GROUPS = {0: "normal", 1: "anomalous", None: "unlabelled"}  # by label
_GROUP_COLOURS = {"normal": "blue", "anomalous": "orange", "unlabelled": "grey"}
_BINS = 30
_STOPS = 11  # of the colour scale
_LABEL_ROOM = 48  # characters of all labels below the scores together
_FARTHEST = 5  # level that is drawn; those beyond, or below its negative, are drawn there
_LEAST_MARGIN = 1e-9  # beside the scores on their axis; closer ones are drawn as one


@dataclass(frozen=True)
class Quantity:
    """What images are ranked by, score or maximum of the map: `name` for people, threshold, and how it is shown."""

    name: str
    limit: float | None
    aggregate: str | None = None

    @property
    def is_relative(self) -> bool:
        """Whether it is shown as a multiple of the threshold."""
        return self.limit is not None and self.limit > 0

    def levels(self, values: ArrayLike) -> np.ndarray:
        """Values as they are drawn, see `scores.levels`."""
        return levels(values, self.limit, self.aggregate)

    def text(self, value: float | None) -> str | None:
        """A value as it is printed; None stays None."""
        return None if value is None else level_text(float(self.levels(value)), is_relative=self.is_relative)


def quantities_of(document: dict[str, Any]) -> tuple[dict[str, Quantity], str]:
    """By the attribute of an `ImageResult`, what a run's images are ranked by, and the attribute of what decides."""
    decision, scoring = document["decision"], document["scoring"]
    of_votes = scoring["score"] == "paper"
    quantities = {
        "score": Quantity("anomaly score", decision["threshold"], scoring["aggregate"] if of_votes else None),
        "peak": Quantity("highest value of the map", decision["pixel_threshold"]),
    }
    return quantities, "peak" if decision["decided_by"] == "map" else "score"


def write_report(folder: Path, document: dict[str, Any], results: Sequence[ImageResult]) -> Path:
    """Write report.html, below 30 MB for 2,000 images, beside the overlays in a results folder, and return its path.

    `document` is the content of metrics.json.

    Raises:
        RunError: a score or the maximum of a map is not finite, or the page cannot be written.
    """
    for result in results:
        if not np.isfinite([result.score, result.peak or 0]).all():
            raise RunError(f"{printable(result.item.relative)}: its score is not finite; train the model again")
    decision, model, dataset = document["decision"], document["model"], document.get("dataset")
    scored = f"{dataset['name']}, normal class {dataset['pos_class']}" if dataset else document["test_dir"]
    scored_name = scored if dataset else PurePath(scored).name or scored
    network = ModelConfig(**{name: model["config"]["model"][name] for name in ("num_layer", "ker_size")})
    # The score "nearest" looks at the layer before the last.
    unseen = network.ker_size - 1 if document["scoring"]["score"] == "nearest" else 0
    script = resources.files(__package__).joinpath("report.js").read_text(encoding="utf-8")
    quantities, deciding = quantities_of(document)
    histogram, roc = _charts(results, deciding, quantities[deciding])
    write_page(
        folder / REPORT_FILE,
        "evaluation/report_template.html",
        title=f"{PurePath(model['path']).name}: results on {scored_name}",
        document=document,
        scored=scored,
        metric_rows=metric_rows(document["metrics"]),
        score_text=score_text,
        advice=advice(decision),
        quantity=quantities[deciding],
        map_quantity=quantities["peak"],
        histogram=histogram,
        roc=roc,
        field=network.receptive_field - unseen,
        stops=list(zip(*ColourScale(0, 1).colours(np.linspace(0, 1, _STOPS)), strict=True)),
        rows=[_row(result, quantities) for result in results],
        deciding=deciding,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return folder / REPORT_FILE


def _row(result: ImageResult, quantities: dict[str, Quantity]) -> dict[str, Any]:
    """An image as the page's script takes it."""
    item, overlay = result.item, result.overlay
    return {
        "name": printable(item.relative),
        "label": _GROUPS[item.label],
        "kind": printable(item.defect or ""),
        "score": float(result.score),
        "peak": None if result.peak is None else float(f"{result.peak:.6g}"),
        "floor": None if result.floor is None else float(f"{result.floor:.6g}"),
        "shown": {name: quantity.text(getattr(result, name)) for name, quantity in quantities.items()},
        "decision": result.decision,
        "fault": result.fault,
        "shares": [float(f"{share:.4g}") for share in result.shares],
        "image": base64.b64encode(result.thumbnail).decode(),
        "overlay": overlay and base64.b64encode(overlay).decode(),
        "link": overlay and picture_link(item.relative, MAP_SUFFIX),
        "plain": overlay and picture_link(item.relative, PLAIN_SUFFIX),
        "map": overlay and picture_link(item.relative, MAP_SUFFIX, MAPS_FOLDER),
    }


def picture_link(relative: str, suffix: str, folder: str = OVERLAYS_FOLDER) -> str:
    """The page's link to an image's overlay or map (`MAP_SUFFIX`), or to the image; of bytes, so any name is found."""
    return quote(os.fsencode(f"{folder}/{relative}{suffix}"))


def _charts(results: Sequence[ImageResult], deciding: str, quantity: Quantity) -> tuple[str, str | None]:
    """The distributions of what decides, and the ROC curve; None where that is not defined."""
    groups = {}
    for label, name in _GROUPS.items():
        if values := [getattr(result, deciding) for result in results if result.item.label == label]:
            groups[name] = np.array(values)
    counted = ", ".join(f"{values.size} {name}" for name, values in groups.items())
    with chart_style():
        figure = draw_histogram(groups, quantity)
        histogram = inline_svg(figure, "histogram", f"Histogram of the {quantity.name} of the images: {counted}")
        if set(groups) != {"normal", "anomalous"}:
            return histogram, None
        figure = draw_roc(groups["normal"], groups["anomalous"], quantity.limit)
        return histogram, inline_svg(figure, "roc", "ROC curve of the images")


def draw_histogram(groups: dict[str, np.ndarray], quantity: Quantity) -> Figure:
    """Distributions of what decides as it is shown, a panel per group, with the threshold, on one axis."""
    threshold = 1.0 if quantity.is_relative else quantity.limit
    drawn = {name: quantity.levels(values) for name, values in groups.items()}
    is_cut = False
    if quantity.is_relative:
        is_cut = bool(max(values.max() for values in drawn.values()) > _FARTHEST)
        drawn = {name: np.clip(values, -_FARTHEST, _FARTHEST) for name, values in drawn.items()}
    values = np.concatenate([*drawn.values(), [] if threshold is None else [threshold]])
    low, high = float(values.min()), float(values.max())
    margin = max(0.02 * (high - low), _LEAST_MARGIN) if high > low else 0.01
    low, high = low - margin, high + margin
    top = 0.25 if threshold is None else 0.5
    height = 0.2 + top + 1.2 * len(groups)
    figure = Figure(figsize=(5, height))
    panels = figure.subplots(len(groups), sharex=True, squeeze=False)[:, 0]
    figure.subplots_adjust(left=0.08, right=0.92, bottom=0.5 / height, top=1 - top / height, hspace=0.35)
    edges = np.linspace(low, high, _BINS + 1)
    is_left = threshold is not None and threshold < (low + high) / 2
    for axes, (name, values) in zip(panels, drawn.items(), strict=True):
        counts, _ = np.histogram(values, edges)
        axes.stairs(counts, edges, fill=True, color=COLOURS[_GROUP_COLOURS[name]])
        axes.set_title(f"{name} ({values.size:,})", loc="right" if is_left else "left")
        axes.set_yticks([0, counts.max()], ["0", f"{counts.max():,}"])
        axes.set_ylim(0, counts.max())
        axes.tick_params(left=False)
        axes.spines[["left", "right", "top"]].set_visible(False)
    if threshold is not None:
        for axes in panels:
            axes.axvline(threshold, ymax=1.32, clip_on=False, color=COLOURS["ink"], linewidth=1.2, dashes=(4, 2))
        text = "threshold" if quantity.is_relative else f"threshold {score_text(threshold)}"
        transform = panels[0].get_xaxis_transform()
        panels[0].text(threshold, 1.36, text, ha="left" if is_left else "right", transform=transform)
    axes.set_xlim(low, high)
    ticks = [(place, label + "+" * bool(is_cut and place == _FARTHEST)) for place, label in score_ticks(low, high)]
    axes.set_xticks(*zip(*ticks, strict=True))
    axes.set_xlabel(f"{quantity.name}, {'1 = threshold' if quantity.is_relative else 'higher = more anomalous'}")
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


def score_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Places on the axis of the scores, and the scores there; as many as the labels allow."""
    ticks: list[tuple[float, str]] = []
    for most in range(6, 0, -1):
        locator = MaxNLocator(most, steps=[1, 2, 5, 10])
        ticks = [(place, f"{place + 0:.12g}") for place in locator.tick_values(low, high) if low <= place <= high]
        if sum(len(label) + 2 for _, label in ticks) <= _LABEL_ROOM:
            break
    return ticks
