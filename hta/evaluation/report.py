"""report.html: the results of a test set on one page, which a browser opens from disk and needs nothing else for.

Images are small in the page itself; the full overlays, and the images without them, lie beside it and are read when one
is looked at.
"""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import numpy as np

from hta.data.sample import Sample
from hta.evaluation import report_text
from hta.evaluation.overlays import ColourScale
from hta.evaluation.report_charts import colour_bar, colour_legend, histogram, roc
from hta.evaluation.results import MAP_SUFFIX, OVERLAYS_FOLDER, PLAIN_SUFFIX, REPORT_FILE
from hta.evaluation.scores import score_text
from hta.evaluation.thresholds import Threshold, decide, decision_words
from hta.evaluation.thumbnails import Thumbnails
from hta.files import printable, write_atomically

_GROUPS = {"normal": 0, "anomalous": 1, "unlabelled": None}
# What could end the script element that holds the rows, or a line of it.
_ESCAPES = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})


def write_report(
    folder: Path,
    document: dict[str, Any],
    items: Sequence[Sample],
    scores: np.ndarray,
    shares: Sequence[np.ndarray],
    thumbnails: Sequence[Thumbnails | None],
    rejected: np.ndarray | None = None,
    peaks: np.ndarray | None = None,
) -> Path:
    """Write report.html; 2,000 images make less than 30 MB.

    Args:
        folder: the results folder; overlays, if there are any, lie in it.
        document: the content of metrics.json. Its `decision` may be missing, or hold no threshold.
        items: the images.
        scores: `(N,)` anomaly scores, higher = more anomalous.
        shares: N arrays `(S,)` of vote shares, higher = more normal.
        thumbnails: N, or None for an image without.
        rejected: `(N,)` bool; by default the images whose scores are above the document's threshold, if it has one.
        peaks: `(N,)` maxima of the anomaly maps at the working size; None without maps.

    Returns:
        The page's path.

    Raises:
        RunError: it cannot be written.
    """
    if rejected is None:
        rejected = decide(scores, Threshold(report_text.threshold_of(document)))
    no_peaks = [None] * len(items)
    decisions = decision_words(rejected, len(items))
    rows = _rows(items, scores, shares, thumbnails, decisions, no_peaks if peaks is None else peaks)
    script = _part("report.js")
    page = Template(_part("report_template.html")).substitute(
        title=report_text.title(document),
        style=_part("report.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        summary=report_text.summary(document),
        origin=report_text.origin(document),
        charts=_charts(document, items, scores),
        reach=report_text.reach(document["model"]),
        colours=_colours(document["colour_scale"]),
        legend=_legend(document["colour_scale"]),
        rows=as_script_data({"rows": rows, "decidedBy": report_text.decided_by(document)}),
    )
    path = folder / REPORT_FILE
    write_atomically(path, page.encode())
    return path


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def as_script_data(value: Any) -> str:
    """JSON that can stand in a script element whatever strings it holds: ASCII, and nothing that HTML reads."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def overlay_link(relative: str) -> str:
    """Address of an image's overlay as seen from the page; a name's own bytes, so that any name is found.

    Args:
        relative: path of the image, bytes that are not UTF-8 escaped as the file system's names are.
    """
    return _link(relative, MAP_SUFFIX)


def plain_link(relative: str) -> str:
    """Address of the image without its map, beside the overlay; as `overlay_link`."""
    return _link(relative, PLAIN_SUFFIX)


def _link(relative: str, suffix: str) -> str:
    return quote(os.fsencode(f"{OVERLAYS_FOLDER}/{relative}{suffix}"))


# --- images -----------------------------------------------------------------------------------------------------------


def _rows(
    items: Sequence[Sample],
    scores: np.ndarray,
    shares: Sequence[np.ndarray],
    thumbnails: Sequence[Thumbnails | None],
    decisions: Sequence[str],
    peaks: Sequence[float | None],
) -> list[dict[str, Any]]:
    """The images as the page's script takes them."""
    groups = {label: name for name, label in _GROUPS.items()}
    rows = []
    columns = (items, scores, shares, thumbnails, decisions, peaks)
    for item, score, share, small, decision, peak in zip(*columns, strict=True):
        has_overlay = small is not None and small.overlay is not None
        rows.append(
            {
                "name": printable(item.relative),
                "label": groups[item.label],
                "kind": printable(item.defect or ""),
                "score": float(score),
                "shown": score_text(score),
                "decision": decision,
                "peak": None if peak is None else float(f"{peak:.6g}"),
                "shares": [float(f"{value:.4g}") for value in share],
                "image": None if small is None else base64.b64encode(small.image).decode(),
                "overlay": base64.b64encode(small.overlay).decode() if has_overlay else None,
                "link": overlay_link(item.relative) if has_overlay else None,
                "plain": plain_link(item.relative) if has_overlay else None,
            }
        )
    return rows


# --- pictures ---------------------------------------------------------------------------------------------------------


def _charts(document: dict[str, Any], items: Sequence[Sample], scores: np.ndarray) -> str:
    """Distributions of the scores, and the ROC curve or the reason why there is none."""
    labels = [item.label for item in items]
    groups = {name: scores[[known == label for known in labels]] for name, label in _GROUPS.items()}
    threshold = report_text.threshold_of(document)
    bars = report_text.figure(histogram(groups, threshold), "Distribution of the scores")
    auroc = document["metrics"]["image_auroc"]
    if auroc["value"] is None:
        return bars + report_text.figure(f"<p>Not defined: {report_text.escaped(auroc['reason'])}.</p>", "ROC curve")
    point = None
    if threshold is not None:
        point = (float(np.mean(groups["normal"] > threshold)), float(np.mean(groups["anomalous"] > threshold)))
    return bars + report_text.figure(roc(labels, scores, point), f"ROC curve, area {auroc['value']:.3f}")


def _colours(bounds: dict[str, float] | None) -> str:
    """The colour scale, drawn and in words; nothing without maps."""
    if bounds is None:
        return report_text.NO_OVERLAYS
    scale = ColourScale(**bounds)
    return colour_bar(scale) + report_text.colours(scale)


def _legend(bounds: dict[str, float] | None) -> str:
    """The colour scale in a line; nothing without maps."""
    return "" if bounds is None else colour_legend(ColourScale(**bounds))
