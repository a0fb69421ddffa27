"""The results folder of a test set: scores, metrics, maps and overlays, written whole or not at all.

    scores.csv     a row per image: path, label, anomaly score, vote share of every scale, decision, maximum of the map
    metrics.json   metrics, settings, seeds, versions, warnings
    maps/          anomaly maps as 16-bit PNG, 0 to 65,535 for 0 to 1; the path of the image with `.png` appended
    overlays/      the images with their maps over them and their masks outlined, named alike; the plain images as JPEG
    report.html    all of it on one page, see `hta.evaluation.report`

The suffix is appended, not replaced, so that `a.png` and `a.jpg` do not collide.
"""

import csv
import json
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hta.data.sample import Sample
from hta.errors import UserError
from hta.evaluation.metrics import auroc_with_interval, summarize_image_metrics, undefined
from hta.evaluation.overlays import ColourScale, Overlay, Thumbnails, make_thumbnails
from hta.evaluation.pixel_metrics import PixelMetrics, quantize
from hta.evaluation.scorer import ImageVotes
from hta.evaluation.thresholds import decision_words
from hta.files import check_replaceable, write_atomically
from hta.image_files import jpeg_of, write_png

SCORES_FILE = "scores.csv"
METRICS_FILE = "metrics.json"
MAPS_FOLDER = "maps"
OVERLAYS_FOLDER = "overlays"
REPORT_FILE = "report.html"
OWN_FILES = r"results(/[^/]+(/(scores\.csv|metrics\.json|report\.html|(maps|overlays)(/.+)?))?)?"
"""Pattern of the paths in a run folder that an evaluation writes."""

MAP_SUFFIX, PLAIN_SUFFIX = ".png", ".jpg"
"""Appended to the path of an image: of its map and overlay, and of the picture without them."""

METRIC_NAMES = {
    "image_auroc": "image AUROC",
    "map_auroc": "image AUROC of the maps' maxima",
    "average_precision": "average precision",
    "f1_max": "largest F1",
    "pixel_auroc": "pixel AUROC",
    "pixel_f1_max": "largest pixel F1",
    "aupro": "AUPRO",
}
"""The metrics of metrics.json by their names for people, in the order of reports."""

BOOTSTRAP_SEED = 0

_PLAIN_QUALITY = 90
_MOST_PENDING = 8  # images that may wait to be written
_CONTENTS = {SCORES_FILE, METRICS_FILE, MAPS_FOLDER, OVERLAYS_FOLDER, REPORT_FILE}
_IMAGE_METRICS = ("image_auroc", "map_auroc", "average_precision", "f1_max")
_PIXEL_METRICS = ("pixel_auroc", "pixel_f1_max", "aupro")


# --- the folder -------------------------------------------------------------------------------------------------------


def check_target(target: Path, test_dir: Path | None, *, overwrite: bool, good_dir: Path | None = None) -> None:
    """Refuse a results folder that would destroy something, or whose pictures would be scored the next time.

    Args:
        target: the folder to create.
        test_dir: folder or image to score; None for a data set.
        overwrite: replace existing results.
        good_dir: folder of good images; None if there is none.

    Raises:
        UserError: it holds results and `overwrite` is off, holds anything else, is a file or the working directory, or
            is inside `test_dir` or `good_dir`.
    """
    for option, folder, kind in (("--test_dir", test_dir, "test"), ("--good_dir", good_dir, "good")):
        if folder is not None and folder.is_dir() and target.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"--out {target}: is inside {option}, so its pictures would count as {kind} images; give another folder"
            )
    existing = next(place for place in (target, *target.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise UserError(f"--out {target}: {existing} is a file; give another folder")
    if existing != target:
        return
    contents = {path.name for path in target.iterdir()}
    foreign = sorted(contents - _CONTENTS)
    if foreign:
        raise UserError(f"--out {target}: exists and holds {foreign[0]}, which is not a result; give another folder")
    if contents and not overwrite:
        raise UserError(f"--out {target}: holds results; give another folder, or --overwrite to replace them")
    check_replaceable(target, f"--out {target}", "give another folder")


# --- image by image ---------------------------------------------------------------------------------------------------


class ImageResult(NamedTuple):
    """The outcome for one image.

    Attributes:
        item: the image.
        score: anomaly score, higher = more anomalous.
        shares: `(S,)` vote shares, higher = more normal.
        decision: "reject", "pass", or empty where nothing is decided.
        peak: maximum of the anomaly map at the working size; None without maps.
        thumbnails: of the image.
    """

    item: Sample
    score: float
    shares: np.ndarray
    decision: str
    peak: float | None
    thumbnails: Thumbnails


class ResultsWriter:
    """Takes images as they are scored, writes their pictures, and keeps what metrics need: little, and no pixels.

    A thread writes the pictures while the next images are scored. A context manager: at its end all are written.

    Attributes:
        pixels: pixel metrics of the images so far; None if they are not wanted.
        scale: colours of the overlays.
        shares: `(S,)` vote shares of every image, higher = more normal.
        peaks: maximum of the anomaly map of every image at the working size; empty without maps.

    Args:
        folder: where `maps` and `overlays` go.
        scale: colours of the overlays; None without maps.
        masked: whether the test set has masks, so that pixel metrics are wanted.
        full_size_maps: write the maps at the size of their images.
    """

    def __init__(self, folder: Path, scale: ColourScale | None, *, masked: bool, full_size_maps: bool = False):
        self._folder, self.scale, self._full_size_maps = folder, scale, full_size_maps
        self.pixels = PixelMetrics() if masked else None
        self._items: list[Sample] = []
        self.shares: list[np.ndarray] = []
        self.peaks: list[float] = []
        self._thumbnails: list[Thumbnails] = []
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: deque[Future] = deque()

    def __enter__(self) -> "ResultsWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            while self._pending and kind is None:
                self._pending.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)

    def add(self, item: Sample, votes: ImageVotes, picture: np.ndarray) -> None:
        """Take the next image.

        Args:
            item: the image.
            votes: what the model says about it; with a map if there is a colour scale.
            picture: from `overlays.picture_of`.
        """
        self._items.append(item)
        self.shares.append(votes.shares)
        if votes.anomaly_map is None or self.scale is None:
            self._thumbnails.append(make_thumbnails(picture))
            return
        self.peaks.append(votes.anomaly_map.max())
        mask = item.read_mask()
        pixels = self.pixels if has_known_pixels(item) else None
        full_size = pixels is not None or self._full_size_maps
        large_map = votes.full_size_map() if full_size else votes.anomaly_map
        if pixels is not None:
            pixels.update(large_map, mask)
        levels = quantize(large_map if self._full_size_maps else votes.anomaly_map)
        overlay = Overlay(votes.anomaly_map, self.scale, mask)
        self._pending.append(self._thread.submit(self._write, item, levels, picture, overlay))
        if len(self._pending) > _MOST_PENDING:
            self._pending.popleft().result()

    def results(self, scores: np.ndarray, rejected: np.ndarray | None) -> list[ImageResult]:
        """The outcome for every image, once all pictures are written.

        Args:
            scores: `(N,)` anomaly scores, higher = more anomalous.
            rejected: `(N,)` bool; None where nothing is decided.
        """
        decisions = decision_words(rejected, len(scores))
        peaks: Sequence[float | None] = self.peaks or [None] * len(scores)
        columns = (self._items, scores, self.shares, decisions, peaks, self._thumbnails)
        return [ImageResult(*row) for row in zip(*columns, strict=True)]

    def _write(self, item: Sample, levels: np.ndarray, picture: np.ndarray, overlay: Overlay) -> None:
        """Write the map, `levels`, the overlay and the plain picture of an image, and keep the thumbnails."""
        self._thumbnails.append(make_thumbnails(picture, overlay))
        for kind, pixels in ((MAPS_FOLDER, levels), (OVERLAYS_FOLDER, overlay.draw(picture))):
            path = self._folder / kind / f"{item.relative}{MAP_SUFFIX}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(path, pixels)
        write_atomically(
            self._folder / OVERLAYS_FOLDER / f"{item.relative}{PLAIN_SUFFIX}", jpeg_of(picture, _PLAIN_QUALITY)
        )


def has_known_pixels(item: Sample) -> bool:
    """Whether it is known which pixels of an image are anomalous: it has a mask, or is normal."""
    return item.mask is not None or item.label == 0


# --- at the end -------------------------------------------------------------------------------------------------------


def summarize(
    items: Sequence[Sample], scores: np.ndarray, pixels: PixelMetrics | None, peaks: np.ndarray | None = None
) -> dict[str, Any]:
    """All metrics of a test set, as JSON can hold them.

    Args:
        items: the images.
        scores: `(N,)` their anomaly scores.
        pixels: with all images taken; None if there are no masks or no maps.
        peaks: `(N,)` maxima of the anomaly maps; None without maps.

    Returns:
        Metrics by name; one that is undefined has the value null and a reason.
    """
    labels = [item.label for item in items if item.label is not None]
    if len(labels) < len(items):
        summary = _undefined(_IMAGE_METRICS, "no labels")
    else:
        kinds = [item.defect or "unnamed" for item in items]
        summary = summarize_image_metrics(labels, scores, kinds, BOOTSTRAP_SEED)
        summary |= (
            _undefined(["map_auroc"], "no maps")
            if peaks is None
            else {"map_auroc": auroc_with_interval(labels, peaks, BOOTSTRAP_SEED)}
        )
    return summary | (_undefined(_PIXEL_METRICS, "no masks, or no maps") if pixels is None else pixels.compute())


def _undefined(names: Sequence[str], reason: str) -> dict[str, Any]:
    return {name: undefined(reason) for name in names}


def write_scores(folder: Path, results: Sequence[ImageResult]) -> None:
    """Write scores.csv, with all digits: read back, the numbers are the same.

    Args:
        folder: where it goes.
        results: of the images, in the order of the rows.
    """
    votes = [f"vote_share_scale_{n}" for n in range(len(results[0].shares))]
    # Names that are not UTF-8 are written as they are.
    with (folder / SCORES_FILE).open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["path", "label", "anomaly_score", *votes, "decision", "map_peak"])
        for item, score, shares, decision, peak, _ in results:
            label, map_peak = "" if item.label is None else item.label, "" if peak is None else float(peak)
            writer.writerow([item.relative, label, float(score), *map(float, shares), decision, map_peak])


def write_metrics(folder: Path, document: dict[str, Any]) -> None:
    """Write metrics.json."""
    (folder / METRICS_FILE).write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
