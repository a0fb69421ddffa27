"""Charts of a results page as inline SVG; colours and fonts are those of the page's style sheet."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from sklearn.metrics import roc_curve

from hta.evaluation.overlays import ColourScale, map_colours
from hta.evaluation.scores import score_text

_WIDTH, _MARGIN = 420, 40
_BINS = 30
_PANEL_HEIGHT, _PANEL_GAP = 80, 28
_ROC_SIDE = 300
_BAR_HEIGHT = 18
_STOPS = 11
_DIGIT_WIDTH = 7  # of the labels' font
_CROWDED, _LEAST_DISTANCE = 0.01, 1e-16  # from 1: of most scores that are said to crowd there, and of those drawn
_LEAST_ROOM = 1e-9  # beside the scores on their axis; closer ones are drawn as one


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, at most `most` of them, apart by 1, 2 or 5 times a power of ten."""
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if _count(low, high, power * factor) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [round(n * step, digits) for n in range(first, last + 1)]


def _count(low: float, high: float, step: float) -> int:
    return math.floor(high / step + 1e-9) - math.ceil(low / step - 1e-9) + 1


def labelled_ticks(low: float, high: float, width: float) -> list[tuple[float, str]]:
    """Ticks with their labels in full, so many that the labels keep apart on an axis of `width` px."""
    for most in range(6, 1, -1):
        labelled = [(value, f"{value:.12g}") for value in ticks(low, high, most)]
        if _DIGIT_WIDTH * sum(len(label) + 1 for _, label in labelled) < width:
            break
    return labelled


def score_range(scores: np.ndarray, threshold: float | None) -> tuple[float, float]:
    """What the axis of the scores shows: all scores and the threshold, with some room."""
    values = scores if threshold is None else np.append(scores, threshold)
    low, high = float(values.min()), float(values.max())
    room = max(0.02 * (high - low), _LEAST_ROOM) if high > low else 0.01
    return low - room, high + room


def crowd_at_one(scores: np.ndarray) -> bool:
    """Whether scores say more by how close they are to 1 than by themselves: most are within 1 %, decades apart."""
    if scores.min() < 0 or scores.max() > 1 or np.median(scores) < 1 - _CROWDED:
        return False
    return np.ptp(nines(scores)) > 2


def nines(scores: np.ndarray | float) -> np.ndarray:
    """How many nines scores in [0, 1] begin with, as real numbers: -log10(1 - score)."""
    return -np.log10(np.maximum(1 - np.asarray(scores), _LEAST_DISTANCE))


def ticks_of_nines(low: float, high: float) -> list[tuple[float, str]]:
    """Ticks of an axis of `nines`, with the scores there."""
    values = [round(value) for value in ticks(low, high, most=5) if value == round(value)]
    return [(value, f"{1 - 0.1**value:.3g}" if value < 4 else f"1 - 1e-{value:02d}") for value in values]


def histogram(groups: dict[str, np.ndarray], threshold: float | None) -> str:
    """Distributions of the anomaly scores, a panel for each group, over one axis: of their `nines` if they crowd at 1.

    Args:
        groups: name of a group (a class of the style sheet) to its scores; groups without scores are not drawn.
        threshold: drawn as a line if there is one.
    """
    groups = {name: scores for name, scores in groups.items() if scores.size}
    of_nines = crowd_at_one(np.concatenate([*groups.values(), [] if threshold is None else [threshold]]))
    label = "anomaly score (higher = more anomalous)"
    limit = threshold
    if of_nines:
        groups = {name: nines(scores) for name, scores in groups.items()}
        limit = None if threshold is None else float(nines(threshold))
        label = "anomaly score (higher = more anomalous), by its distance from 1"
    low, high = score_range(np.concatenate(list(groups.values())), limit)
    edges = np.linspace(low, high, _BINS + 1)

    def x(value: float) -> float:
        return _MARGIN + (value - low) / (high - low) * (_WIDTH - 2 * _MARGIN)

    parts = []
    for n, (name, scores) in enumerate(groups.items()):
        base = (n + 1) * (_PANEL_HEIGHT + _PANEL_GAP)
        parts += _panel(name, scores, edges, base, x)
    base = len(groups) * (_PANEL_HEIGHT + _PANEL_GAP)
    for value, text in ticks_of_nines(low, high) if of_nines else labelled_ticks(low, high, _WIDTH - 2 * _MARGIN):
        parts += [_line(x(value), base, x(value), base + 4, "axis"), _text(x(value), base + 18, text)]
    parts.append(_text(_WIDTH / 2, base + 38, label))
    if limit is not None:
        place = x(limit)
        end = "start" if place < _WIDTH / 2 else "end"
        parts.append(_line(place, 16, place, base, "threshold"))
        parts.append(_text(place, 11, f"threshold {score_text(threshold)}", end))
    counted = ", ".join(f"{scores.size} {name}" for name, scores in groups.items())
    return _svg(_WIDTH, base + 44, f"Histogram of the anomaly scores: {counted}", parts)


def _panel(name: str, scores: np.ndarray, edges: np.ndarray, base: float, x) -> list[str]:
    """The bars of one group above the height `base`."""
    counts, _ = np.histogram(scores, edges)
    parts = []
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            height = _PANEL_HEIGHT * count / counts.max()
            place = f'x="{x(left):.1f}" y="{base - height:.1f}" width="{x(right) - x(left):.1f}" height="{height:.1f}"'
            parts.append(f'<rect class="bar {name}" {place}/>')
    top = base - _PANEL_HEIGHT
    parts.append(_text(_MARGIN, top - 7, f"{name} ({scores.size:,})", "start", "name"))
    parts.append(_text(_MARGIN - 6, top + 10, f"{counts.max():,}", "end"))
    parts.append(_text(_MARGIN - 6, base, "0", "end"))
    return [*parts, _line(_MARGIN, base, _WIDTH - _MARGIN, base, "axis")]


def roc(labels: Sequence[int], scores: np.ndarray, operating_point: tuple[float, float] | None) -> str:
    """ROC curve of the images.

    Args:
        labels: N, 0 = normal, 1 = anomalous, both there.
        scores: `(N,)`, higher = more anomalous.
        operating_point: false positive rate and recall of the decision, in [0, 1]; None if there is no decision.
    """
    false_alarms, recall, _ = roc_curve(labels, scores)
    left, bottom = _MARGIN + 10, _ROC_SIDE + 12

    def x(rate: float) -> float:
        return left + rate * _ROC_SIDE

    def y(rate: float) -> float:
        return bottom - rate * _ROC_SIDE

    parts = [f'<rect class="frame" x="{left}" y="{bottom - _ROC_SIDE}" width="{_ROC_SIDE}" height="{_ROC_SIDE}"/>']
    parts.append(_line(x(0), y(0), x(1), y(1), "chance"))
    for value in ticks(0, 1):
        parts += [_line(x(value), bottom, x(value), bottom + 4, "axis"), _text(x(value), bottom + 18, f"{value:g}")]
        parts += [_line(left - 4, y(value), left, y(value), "axis"), _text(left - 8, y(value) + 4, f"{value:g}", "end")]
    points = " ".join(f"{x(u):.1f},{y(v):.1f}" for u, v in zip(false_alarms, recall, strict=True))
    parts.append(f'<polyline class="roc" points="{points}"/>')
    parts.append(_text(x(0.5), bottom + 38, "false alarms: part of the normal images"))
    middle = y(0.5)
    title = "found: part of the anomalous images"
    parts.append(f'<text x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">{title}</text>')
    if operating_point is not None:
        u, v = operating_point
        # Beside the point: below it, but above the axis, whose ticks have numbers.
        side, shift = ("end", -16) if u > 0.6 else ("start", 16)
        drop = 16 if v > 0.1 else -5
        parts.append(f'<circle class="point" cx="{x(u):.1f}" cy="{y(v):.1f}" r="5"/>')
        parts.append(_text(x(u) + shift, y(v) + drop, "at the threshold", side, "note"))
    return _svg(_WIDTH, bottom + 44, "ROC curve of the images", parts)


def colour_bar(scale: ColourScale) -> str:
    """The colours of the overlays over a mid-grey image, with the values they stand for."""
    positions = np.linspace(0, 1, _STOPS)
    colours, opacities = map_colours(positions)
    stops = "".join(
        f'<stop offset="{position:.2f}" stop-color="rgb({",".join(str(round(c)) for c in colour)})" '
        f'stop-opacity="{opacity:.3f}"/>'
        for position, colour, opacity in zip(positions, colours, opacities, strict=True)
    )
    width = _WIDTH - 2 * _MARGIN
    place = f'x="{_MARGIN}" y="1" width="{width}" height="{_BAR_HEIGHT}"'
    parts = [
        f'<defs><linearGradient id="colours">{stops}</linearGradient></defs>',
        f'<rect {place} fill="#808080"/><rect {place} fill="url(#colours)"/><rect class="frame" {place}/>',
    ]
    for position in (0, 0.5, 1):
        value = scale.low + position * (scale.high - scale.low)
        x = _MARGIN + position * width
        parts += [_line(x, _BAR_HEIGHT + 1, x, _BAR_HEIGHT + 5, "axis"), _text(x, _BAR_HEIGHT + 20, f"{value:.3f}")]
    return _svg(_WIDTH, _BAR_HEIGHT + 26, f"Colour scale from {scale.low:.3f} to {scale.high:.3f}", parts)


def colour_legend(scale: ColourScale) -> str:
    """The same colours as a bar in a line of text, between the first and the last value."""
    colours, opacities = map_colours(np.linspace(0, 1, _STOPS))
    stops = ", ".join(
        f"rgb({' '.join(str(round(c)) for c in colour)} / {opacity:.3f})"
        for colour, opacity in zip(colours, opacities, strict=True)
    )
    bar = f'<span class="scale" style="background: linear-gradient(to right, {stops}), #808080"></span>'
    return f"<span>{scale.low:.3f}</span>{bar}<span>{scale.high:.3f}</span>"


# --- elements ---------------------------------------------------------------------------------------------------------


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    shown = escape(title)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{shown}">{"".join(parts)}</svg>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
