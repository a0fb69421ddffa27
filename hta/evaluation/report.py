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
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from hta.config import ModelConfig
from hta.evaluation.overlays import ColourScale, map_colours
from hta.evaluation.results import (
    MAP_SUFFIX,
    METRIC_NAMES,
    OVERLAYS_FOLDER,
    PLAIN_SUFFIX,
    REPORT_FILE,
    ImageResult,
)
from hta.evaluation.scores import score_text
from hta.files import printable
from hta.pages import chart_style, inline_svg, write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GROUPS = {"normal": (0, "blue"), "anomalous": (1, "orange"), "unlabelled": (None, "grey")}  # labels and colours
_LISTED = 10  # names that a list shows before it only counts them
_BINS = 30
_STOPS = 11  # of the colour scale
_LABEL_ROOM = 48  # characters of all labels below the scores together
_CROWDED, _LEAST_DISTANCE = 0.01, 1e-16  # from 1: of most scores that crowd there, and the smallest one drawn
_LEAST_MARGIN = 1e-9  # beside the scores on their axis; closer ones are drawn as one


def write_report(folder: Path, document: dict[str, Any], results: Sequence[ImageResult]) -> Path:
    """Write report.html; 2,000 images make less than 30 MB.

    Args:
        folder: the results folder, which holds the overlays if there are any.
        document: the content of metrics.json.
        results: of the images.

    Returns:
        The page's path.

    Raises:
        RunError: the page cannot be written.
    """
    decision, metrics, model = document["decision"], document["metrics"], document["model"]
    dataset = document.get("dataset")
    by_map = decision["decided_by"] == "map"
    scored = f"{dataset['name']}, normal class {dataset['pos_class']}" if dataset else document["test_dir"]
    script = resources.files(__package__).joinpath("report.js").read_text(encoding="utf-8")
    histogram, roc = _charts(results, None if by_map else decision["threshold"])
    path = folder / REPORT_FILE
    write_page(
        path,
        "evaluation/report_template.html",
        document=document,
        decision=decision,
        by_map=by_map,
        score_text=score_text,
        model_name=PurePath(model["path"]).name,
        scored=scored,
        scored_name=scored if dataset else PurePath(scored).name or scored,
        metrics={name: metrics[key] for key, name in METRIC_NAMES.items()}
        | {f"image AUROC, {kind}": metric for kind, metric in metrics.get("auroc_by_kind", {}).items()},
        most_listed=_LISTED,
        histogram=histogram,
        roc=roc,
        reach=_reach(model),
        colours=_colours(document["colour_scale"]),
        data={"rows": [_row(result) for result in results], "decidedBy": decision["decided_by"]},
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return path


def _row(result: ImageResult) -> dict[str, Any]:
    """An image as the page's script takes it."""
    item, small, overlay = result.item, result.thumbnails.image, result.thumbnails.overlay
    return {
        "name": printable(item.relative),
        "label": next(name for name, (label, _) in _GROUPS.items() if label == item.label),
        "kind": printable(item.defect or ""),
        "score": float(result.score),
        "shown": score_text(result.score),
        "decision": result.decision,
        "peak": None if result.peak is None else float(f"{result.peak:.6g}"),
        "shares": [float(f"{share:.4g}") for share in result.shares],
        "image": base64.b64encode(small).decode(),
        "overlay": overlay and base64.b64encode(overlay).decode(),
        "link": overlay and picture_link(item.relative, MAP_SUFFIX),
        "plain": overlay and picture_link(item.relative, PLAIN_SUFFIX),
    }


def picture_link(relative: str, suffix: str) -> str:
    """Address of a picture as seen from the page; made of the bytes of its name, so that any name is found.

    Args:
        relative: path of the image, bytes that are not UTF-8 escaped as in the names of the file system.
        suffix: `MAP_SUFFIX` for the overlay, `PLAIN_SUFFIX` for the image without its map.
    """
    return quote(os.fsencode(f"{OVERLAYS_FOLDER}/{relative}{suffix}"))


# --- facts ------------------------------------------------------------------------------------------------------------


def _reach(model: dict[str, Any]) -> dict[str, Any]:
    """Sizes of defects that the model can see, in pixels of the image.

    The finest scale shows the image smaller than it is. Details below two of its pixels are lost in the resize.
    """
    network = model["config"]["model"]
    side, coarsest, finest = (min(size) for size in (model["image_size"], model["scales"][0], model["scales"][-1]))
    field = ModelConfig(num_layer=network["num_layer"], ker_size=network["ker_size"]).receptive_field
    return {
        "pixel": side / finest,
        "field": field,
        "field_at_finest": field * side / finest,
        "field_at_coarsest": field * side / coarsest,
    }


def _colours(bounds: dict[str, float] | None) -> dict[str, Any] | None:
    """The colour scale as colours of a style sheet, evenly spaced, with its values; None without maps."""
    if bounds is None:
        return None
    scale = ColourScale(**bounds)
    colours, opacities = map_colours(np.linspace(0, 1, _STOPS))
    stops = [
        f"rgb({' '.join(str(round(c)) for c in colour)} / {opacity:.3f})"
        for colour, opacity in zip(colours, opacities, strict=True)
    ]
    return {"low": scale.low, "middle": (scale.low + scale.high) / 2, "high": scale.high, "stops": stops}


# --- charts -----------------------------------------------------------------------------------------------------------


def _charts(results: Sequence[ImageResult], threshold: float | None) -> tuple[str, str | None]:
    """The distributions of the scores, and the ROC curve; None where that is not defined."""
    by_group = {name: [r.score for r in results if r.item.label == label] for name, (label, _) in _GROUPS.items()}
    groups = {name: np.array(scores) for name, scores in by_group.items() if scores}
    counted = ", ".join(f"{scores.size} {name}" for name, scores in groups.items())
    with chart_style() as colours:
        figure = draw_histogram(groups, threshold, colours)
        histogram = inline_svg(figure, "histogram", f"Histogram of the anomaly scores: {counted}")
        if set(groups) != {"normal", "anomalous"}:
            return histogram, None
        figure = draw_roc(groups["normal"], groups["anomalous"], threshold, colours)
        return histogram, inline_svg(figure, "roc", "ROC curve of the images")


def draw_histogram(groups: dict[str, np.ndarray], threshold: float | None, colours: dict[str, str]) -> "Figure":
    """Distributions of the anomaly scores, a panel per group, over one axis: of their `nines` if they crowd at 1.

    Args:
        groups: scores of each group of images, at least one per group.
        threshold: drawn as a line if there is one.
        colours: of the chart style.
    """
    from matplotlib.figure import Figure

    values = np.concatenate([*groups.values(), [] if threshold is None else [threshold]])
    by_nines = crowd_at_one(values)
    position: Callable = nines if by_nines else np.asarray
    low, high = _with_margin(position(values))
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
        axes.stairs(counts, edges, fill=True, color=colours[_GROUPS[name][1]])
        axes.set_title(f"{name} ({scores.size:,})", loc="right" if is_left else "left")
        axes.set_yticks([0, counts.max()], ["0", f"{counts.max():,}"])
        axes.set_ylim(0, counts.max())
        axes.tick_params(left=False)
        axes.spines[["left", "right", "top"]].set_visible(False)
    if place is not None and threshold is not None:
        for axes in panels:
            axes.axvline(place, ymax=1.32, clip_on=False, color=colours["ink"], linewidth=1.2, dashes=(4, 2))
        text, transform = f"threshold {score_text(threshold)}", panels[0].get_xaxis_transform()
        panels[0].text(place, 1.36, text, ha="left" if is_left else "right", transform=transform)
    axes.set_xlim(low, high)
    axes.set_xticks(*zip(*score_ticks(low, high, by_nines=by_nines), strict=True))
    axes.set_xlabel("anomaly score (higher = more anomalous)" + ", by its distance from 1" * by_nines)
    return figure


def draw_roc(normal: np.ndarray, anomalous: np.ndarray, threshold: float | None, colours: dict[str, str]) -> "Figure":
    """ROC curve of the images.

    Args:
        normal, anomalous: scores of these images, higher = more anomalous, at least one each.
        threshold: above it an image is rejected; its place on the curve is marked if there is one.
        colours: of the chart style.
    """
    from matplotlib.figure import Figure
    from sklearn.metrics import roc_curve

    labels = np.repeat([0, 1], [normal.size, anomalous.size])
    false_alarms, recall, _ = roc_curve(labels, np.concatenate([normal, anomalous]))
    figure = Figure(figsize=(5, 4.6))
    axes = figure.add_axes((0.12, 0.12, 0.8, 0.8 * 5 / 4.6))
    axes.plot([0, 1], [0, 1], dashes=(1, 3), color=colours["soft"], linewidth=1)
    axes.plot(false_alarms, recall, color=colours["blue"], linewidth=1.5, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_xlabel("false alarms: share of the normal images")
    axes.set_ylabel("detected: share of the anomalous images")
    if threshold is not None:
        x, y = np.mean(normal > threshold), np.mean(anomalous > threshold)
        axes.plot(x, y, "o", color=colours["orange"], markeredgecolor=colours["ink"], clip_on=False)
        # Below the point, but above the axis, within the square.
        shift, side = (-10, "right") if x > 0.6 else (10, "left")
        axes.annotate(
            "at the threshold",
            (x, y),
            (shift, -10 if y > 0.1 else 8),
            textcoords="offset points",
            ha=side,
            va="center",
            bbox={"facecolor": colours["paper"], "edgecolor": "none", "pad": 1},
        )
    return figure


def _with_margin(values: np.ndarray) -> tuple[float, float]:
    """The range of values with a margin."""
    low, high = float(values.min()), float(values.max())
    margin = max(0.02 * (high - low), _LEAST_MARGIN) if high > low else 0.01
    return low - margin, high + margin


def crowd_at_one(scores: np.ndarray) -> bool:
    """Whether most scores are within 1 % of 1, decades apart: then their distance from 1 says more than they do."""
    if scores.min() < 0 or scores.max() > 1 or np.median(scores) < 1 - _CROWDED:
        return False
    return bool(np.ptp(nines(scores)) > 2)


def nines(scores: np.ndarray | float) -> np.ndarray:
    """How many nines scores in [0, 1] begin with, as real numbers: -log10(1 - score)."""
    return -np.log10(np.maximum(1 - np.asarray(scores), _LEAST_DISTANCE))


def score_ticks(low: float, high: float, *, by_nines: bool = False) -> list[tuple[float, str]]:
    """Places on the axis of the scores, or of their `nines`, and the scores there; as many as the labels allow."""
    from matplotlib.ticker import MaxNLocator

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
