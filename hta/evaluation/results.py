"""The results folder of a test set: scores, metrics, maps and overlays, written whole or not at all.

    scores.csv     a row per image: path, label, anomaly score, vote share of every scale, decision, maximum of the map
    metrics.json   metrics, settings, seeds, versions, warnings
    maps/          anomaly maps as 16-bit PNG, 0 to 65,535 for 0 to 1; the path of the image with `.png` appended
    overlays/      the images with their maps over them and their masks outlined, named alike; the plain images as JPEG
    report.html    all of it on one page, see `hta.evaluation.report`

The suffix is appended, not replaced, so that `a.png` and `a.jpg` do not collide.
"""

import csv
import io
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hta import files
from hta.data.sample import Sample
from hta.errors import RunError, UserError
from hta.evaluation.metrics import Metric, summarize_image_metrics, undefined
from hta.evaluation.overlays import ColourScale, draw_overlay, thumbnail
from hta.evaluation.pixel_metrics import PixelMetrics, quantize
from hta.evaluation.scorer import ImageVotes
from hta.files import check_replaceable, foreign, recover, write_atomically
from hta.images import jpeg_of, write_png

SCORES_FILE, METRICS_FILE, REPORT_FILE = "scores.csv", "metrics.json", "report.html"
MAPS_FOLDER, OVERLAYS_FOLDER = "maps", "overlays"
OWN_FILES = r"results/([^/]+/.*)?"
"""Pattern of the paths in a run folder that an evaluation writes; `foreign_files` looks into each results folder."""

APOSTROPHE = "'"
"""In front of a path in scores.csv, it keeps a spreadsheet from taking the path for a formula; it is not part of it."""

MAP_SUFFIX, PLAIN_SUFFIX = ".png", ".jpg"
"""Appended to the path of an image: of its map and overlay, and of the picture without them."""

_IMAGE_METRICS = {"image_auroc": "image AUROC", "average_precision": "average precision", "f1_max": "largest F1"}
_PIXEL_METRICS = {"pixel_auroc": "pixel AUROC", "pixel_f1_max": "largest pixel F1", "aupro": "AUPRO"}

BOOTSTRAP_SEED = 0
_PLAIN_QUALITY = 90
_THUMBNAIL_QUALITY = 70  # noise, the worst picture, then takes 5 kB: 2,000 pairs stay below 30 MB, base64 included
_MOST_PENDING = 8  # images that may wait to be written
_CONTENTS = {SCORES_FILE, METRICS_FILE, f"{MAPS_FOLDER}/", f"{OVERLAYS_FOLDER}/", REPORT_FILE}
_PICTURES = ((MAPS_FOLDER, MAP_SUFFIX), (OVERLAYS_FOLDER, MAP_SUFFIX), (OVERLAYS_FOLDER, PLAIN_SUFFIX))
_FORMULA = (*"=+-@\t\r\n\uff1d\uff0b\uff0d\uff20", APOSTROPHE)  # with what a spreadsheet may let a formula begin


def check_target(target: Path, test_dir: Path | None, *, overwrite: bool, good_dir: Path | None = None) -> None:
    """Refuse a results folder that would destroy something, or whose pictures would be scored the next time.

    Args:
        target: the folder to create; `overwrite` permits to replace results there.
        test_dir, good_dir: folder or image to score, None for a data set, and folder of good images if there is one.

    Raises:
        UserError: it holds results and `overwrite` is off, holds anything else, is a file or the working directory, or
            is inside `test_dir` or `good_dir`.
    """
    for option, folder, kind in (("--test_dir", test_dir, "test"), ("--good_dir", good_dir, "good")):
        if folder is not None and folder.is_dir() and Path(os.path.realpath(target)).is_relative_to(folder.resolve()):
            raise UserError(
                f"--out {target}: is inside {option}, so its pictures would count as {kind} images; give another folder"
            )
    recover(target)
    existing = next(place for place in (target, *target.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise UserError(f"--out {target}: {existing} is a file; give another folder")
    found = foreign_files(target) if existing == target else []
    if found:
        raise UserError(f"--out {target}: exists and holds {found[0]}, which is not a result; give another folder")
    if existing == target and any(target.iterdir()) and not overwrite:
        raise UserError(f"--out {target}: holds results; give another folder, or --overwrite to replace them")
    check_replaceable(target, f"--out {target}", "give another folder")


def foreign_files(folder: Path) -> list[str]:
    """What no evaluation wrote into a results folder, pictures of other images included; see `hta.files.foreign`."""
    # Names as the table has them, and without the apostrophe that keeps a spreadsheet from calculating.
    images = {image for name in _scored_names(folder / SCORES_FILE) for image in (name, name.removeprefix(APOSTROPHE))}
    pictures = {f"{kind}/{image}{suffix}" for image in images for kind, suffix in _PICTURES}
    own = _CONTENTS | pictures | {f"{parent}/" for picture in pictures for parent in PurePosixPath(picture).parents}
    return foreign(folder, lambda path: path in own or re.fullmatch(files.OWN_FILES, path))


def _scored_names(table: Path) -> list[str]:
    """The images in a scores.csv by their names; none if it cannot be read."""
    if not table.is_file():
        return []
    try:
        with table.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            return [row["path"] for row in csv.DictReader(stream)]
    except (OSError, KeyError, csv.Error):
        return []


@dataclass
class ImageResult:
    """The outcome for one image.

    Attributes:
        shares: `(S,)` vote shares, higher = more normal.
        peak: maximum of the anomaly map at the working size; None without maps.
        thumbnail, overlay: the image as a small JPEG file, and with its map and mask; the latter None without maps.
        floor: minimum of the map, like `peak`.
        fault: why it cannot be normal, see `hta.evaluation.frames`; None otherwise.
        error: squared error, see `hta.evaluation.combined`; None if it was not measured.
        score, decision: anomaly score, higher = more anomalous, and "reject", "pass", or empty where nothing is
            decided; known once all images are scored.
    """

    item: Sample
    shares: np.ndarray
    peak: float | None
    thumbnail: bytes
    overlay: bytes | None = None
    score: float = math.nan
    decision: str = ""
    floor: float | None = None
    fault: str | None = None
    error: float | None = None


Scored = tuple[Sample, ImageVotes, np.ndarray]
"""An image with its votes and its picture, from `overlays.picture_of`."""


def write_pictures(
    scored: Iterable[Scored], folder: Path, scale: ColourScale | None, pixels: PixelMetrics | None, full_size_maps: bool
) -> list[ImageResult]:
    """Write maps and overlays as images are scored, by a thread, and keep what metrics need: little, and no pixels.

    Args:
        scored: the images; with maps if there is a colour scale.
        folder: where `maps` and `overlays` go.
        scale: colours of the overlays; None without maps.
        pixels: takes the maps of the images whose anomalous pixels are known; None if these metrics are not wanted.
        full_size_maps: write the maps at the size of their images.
    """
    results: list[ImageResult] = []
    pending: deque[Future] = deque()
    with ThreadPoolExecutor(max_workers=1) as thread:
        for item, votes, picture in scored:
            check_finite(item, votes.shares, votes.peak)
            small = jpeg_of(thumbnail(picture), _THUMBNAIL_QUALITY)
            results.append(ImageResult(item, votes.shares, votes.peak, small, fault=votes.fault, error=votes.error))
            if votes.anomaly_map is None or scale is None:
                continue
            results[-1].floor = float(votes.anomaly_map.min())
            mask, known = item.read_mask(), pixels if has_known_pixels(item) else None
            large_map = votes.full_size_map() if full_size_maps or known else votes.anomaly_map
            if known:
                known.update(large_map, mask)
            levels = quantize(large_map if full_size_maps else votes.anomaly_map)
            draw = partial(draw_overlay, anomaly_map=votes.anomaly_map, scale=scale, mask=mask)
            pending.append(thread.submit(_write, folder, results[-1], levels, picture, draw))
            if len(pending) > _MOST_PENDING:
                pending.popleft().result()
        for future in pending:
            future.result()
    return results


def has_known_pixels(item: Sample) -> bool:
    """Whether it is known which pixels of an image are anomalous: it has a mask, or is normal."""
    return bool(item.masks) or item.label == 0


def _write(folder: Path, result: ImageResult, levels: np.ndarray, picture: np.ndarray, draw: Callable) -> None:
    """Write the map, `levels`, the overlay and the plain picture of an image, and keep the overlay's thumbnail."""
    # Drawn again, not shrunk: the outline of a mask is a line of one pixel.
    result.overlay = jpeg_of(draw(thumbnail(picture)), _THUMBNAIL_QUALITY)
    for kind, pixels in ((MAPS_FOLDER, levels), (OVERLAYS_FOLDER, draw(picture))):
        path = folder / kind / f"{result.item.relative}{MAP_SUFFIX}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, pixels)
    plain = folder / OVERLAYS_FOLDER / f"{result.item.relative}{PLAIN_SUFFIX}"
    write_atomically(plain, jpeg_of(picture, _PLAIN_QUALITY))


def summarize(
    items: Sequence[Sample],
    scores: np.ndarray,
    pixels: PixelMetrics | None,
    peaks: np.ndarray | None = None,
    decided_by: str = "score",
) -> dict[str, Any]:
    """All metrics of a test set by name, as JSON can hold them; one that is undefined has the value null and a reason.

    The image metrics are those of the scores, and once more, as `deciding`, of the `quantity` that decides.

    Args:
        items: the images, and `scores`, `(N,)`, their anomaly scores.
        pixels: of all images; None if there are no masks or no maps.
        peaks: `(N,)` maxima of the anomaly maps; None without maps.
        decided_by: "score" or "map", as in `Threshold`.
    """
    labels = [item.label for item in items if item.label is not None]
    if len(labels) < len(items):
        of_scores = of_maps = dict.fromkeys(_IMAGE_METRICS, undefined("no labels"))
    else:
        kinds = [item.defect or "unnamed" for item in items]
        of_scores = summarize_image_metrics(labels, scores, kinds, BOOTSTRAP_SEED)
        of_maps = {"image_auroc": undefined("no maps")}
        if peaks is not None:
            of_maps = summarize_image_metrics(labels, peaks, kinds, BOOTSTRAP_SEED)
    deciding = {"quantity": decided_by} | (of_maps if decided_by == "map" else of_scores)
    no_pixels = dict.fromkeys(_PIXEL_METRICS, undefined("no masks, or no maps"))
    both = of_scores | {"map_auroc": of_maps["image_auroc"], "deciding": deciding}
    return both | (no_pixels if pixels is None else pixels.compute())


def metric_rows(metrics: dict[str, Any]) -> list[tuple[str, Metric]]:
    """The metrics of `summarize` that are defined, by their names for people: first those of what decides."""
    deciding, by_map = metrics["deciding"], metrics["deciding"]["quantity"] == "map"
    rows = [(name, deciding[key]) for key, name in _IMAGE_METRICS.items()]
    rows += [(f"image AUROC, {kind}", metric) for kind, metric in deciding.get("auroc_by_kind", {}).items()]
    other = "the scores" if by_map else "the maps' maxima"
    if metrics["image_auroc"]["value"] != metrics["map_auroc"]["value"]:  # scores may be made of the maxima
        rows.append((f"image AUROC by {other}, which do not decide", metrics["image_auroc" if by_map else "map_auroc"]))
    rows += [(name, metrics[key]) for key, name in _PIXEL_METRICS.items()]
    return [(name, metric) for name, metric in rows if metric["value"] is not None]


def write_scores(folder: Path, results: Sequence[ImageResult]) -> None:
    """Write scores.csv, with all digits: read back, the numbers are the same; a row per image, in the given order.

    A path that might be a formula, or begins with an apostrophe, gets an apostrophe in front.

    Raises:
        RunError: a score is not finite.
    """
    votes = [f"vote_share_scale_{n}" for n in range(len(results[0].shares))]
    rows: list[list[Any]] = [["path", "label", "anomaly_score", *votes, "decision", "map_peak", "fault"]]
    has_errors = results[0].error is not None
    rows[0] += ["squared_error"] * has_errors
    for result in results:
        check_finite(result.item, result.score)
        path, peak = as_text(result.item.relative), result.peak
        numbers = map(float, (result.score, *result.shares))
        peak = None if peak is None else float(peak)
        row = [path, result.item.label, *numbers, result.decision, peak, result.fault]
        rows.append([*row, result.error] if has_errors else row)
    # Names that are not UTF-8 are written as they are.
    with (folder / SCORES_FILE).open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        for row in rows:
            line = io.StringIO()
            csv.writer(line, lineterminator="\r\n").writerow(row)  # quotes both characters in a name
            stream.write(line.getvalue().removesuffix("\r\n") + "\n")


def as_text(cell: str) -> str:
    """A cell of a CSV file, with an apostrophe in front if it might be a formula or begins with one."""
    return APOSTROPHE * cell.startswith(_FORMULA) + cell


def check_finite(item: Sample, *values: Any) -> None:
    """Refuse, with a RunError, numbers or arrays of an image that are not finite."""
    if not all(np.isfinite(value).all() for value in values if value is not None):
        raise RunError(f"{item.relative}: its score is not finite: the model is damaged; train it again")
