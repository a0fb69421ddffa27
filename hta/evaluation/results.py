"""The results folder of a test set: scores, metrics, maps and overlays, written whole or not at all.

    scores.csv     an image a row: path, label, anomaly score, vote share of every scale, decision, maximum of the map
    metrics.json   metrics, settings, seeds, versions, warnings
    maps/          anomaly maps as 16-bit PNG, 0 to 65,535 for 0 to 1; the path of the image with `.png` appended
    overlays/      the images with their maps over them and their masks outlined, named alike; the plain images as JPEG
    report.html    all of it on one page, see `hta.evaluation.report`

The suffix is appended, not replaced, so that `a.png` and `a.jpg` keep apart.
"""

import csv
import json
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from hta.data.sample import Sample
from hta.errors import UserError
from hta.evaluation.metrics import auroc_with_interval, summarize_image_metrics, undefined
from hta.evaluation.overlays import ColourScale, draw_overlay
from hta.evaluation.pixel_metrics import PixelMetrics, quantize
from hta.evaluation.scorer import ImageVotes
from hta.evaluation.thresholds import decision_words
from hta.evaluation.thumbnails import Thumbnails, large_jpeg, make_thumbnails
from hta.files import check_replaceable, write_atomically
from hta.images import write_png

SCORES_FILE = "scores.csv"
METRICS_FILE = "metrics.json"
MAPS_FOLDER = "maps"
OVERLAYS_FOLDER = "overlays"
REPORT_FILE = "report.html"
OWN_FILES = r"results(/[^/]+(/(scores\.csv|metrics\.json|report\.html|(maps|overlays)(/.+)?))?)?"
"""Pattern of the paths in a run folder that an evaluation writes."""

MAP_SUFFIX, PLAIN_SUFFIX = ".png", ".jpg"
"""Appended to the path of an image, of its map and overlay, and of the picture without them."""

BOOTSTRAP_SEED = 0

_MOST_PENDING = 8  # images that wait to be written
_CONTENTS = {SCORES_FILE, METRICS_FILE, MAPS_FOLDER, OVERLAYS_FOLDER, REPORT_FILE}
_IMAGE_METRICS = ("image_auroc", "map_auroc", "average_precision", "f1_max")
_PIXEL_METRICS = ("pixel_auroc", "pixel_f1_max", "aupro")


# --- the folder -------------------------------------------------------------------------------------------------------


def check_target(target: Path, test_dir: Path | None, *, overwrite: bool, good_dir: Path | None = None) -> None:
    """Refuse a results folder that would destroy something, or be scored the next time.

    Args:
        target: the folder to be made.
        test_dir: folder or image to be scored; None for a data set.
        overwrite: replace results that are there.
        good_dir: folder of good images; None if there is none.

    Raises:
        UserError: it holds results and `overwrite` is off, holds anything else, is a file or the working directory, or
            lies in `test_dir` or `good_dir`.
    """
    for option, folder, kind in (("--test_dir", test_dir, "test"), ("--good_dir", good_dir, "good")):
        if folder is not None and folder.is_dir() and target.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"--out {target}: lies inside {option}, its pictures would be taken for {kind} images; give another "
                "folder"
            )
    existing = next(place for place in (target, *target.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise UserError(f"--out {target}: {existing} is a file; give another folder")
    if existing != target:
        return
    contents = {path.name for path in target.iterdir()}
    foreign = sorted(contents - _CONTENTS)
    if foreign:
        raise UserError(f"--out {target}: exists and holds {foreign[0]}, which is no result; give another folder")
    if contents and not overwrite:
        raise UserError(f"--out {target}: holds results; give another folder, or --overwrite to replace them")
    check_replaceable(target, f"--out {target}", "give another folder")


# --- what comes image by image ----------------------------------------------------------------------------------------


class ResultsWriter:
    """Takes images as they are scored, writes their pictures, and keeps what metrics need: little, and no pixels.

    The pictures are written by a thread of its own, meanwhile the next images are scored. A context manager: at its end
    all is written.

    Attributes:
        pixels: pixel metrics of the images so far; None if none are due.
        scale: colours of the overlays.
        shares: `(S,)` vote shares of every image, higher = more normal.
        peaks: maximum of the anomaly map of every image at the working size; empty without maps.
        thumbnails: of every image, complete at the end.

    Args:
        folder: where `maps` and `overlays` go.
        scale: colours of the overlays.
        masked: whether the test set has masks, so that pixel metrics are due.
        full_size_maps: write the maps at the size of their images.
    """

    def __init__(self, folder: Path, scale: ColourScale | None, *, masked: bool, full_size_maps: bool = False):
        self._folder, self.scale, self._full_size_maps = folder, scale, full_size_maps
        self.pixels = PixelMetrics() if masked else None
        self.shares: list[np.ndarray] = []
        self.peaks: list[float] = []
        self.thumbnails: list[Thumbnails] = []
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
            votes: what the model says about it.
            picture: from `overlays.picture_of`.
        """
        self.shares.append(votes.shares)
        if votes.anomaly_map is None:
            self.thumbnails.append(make_thumbnails(picture))
            return
        self.peaks.append(votes.anomaly_map.max())
        mask = item.read_mask()
        counts = self.pixels is not None and has_known_pixels(item)
        full_size = votes.full_size_map() if counts or self._full_size_maps else None
        if counts:
            self.pixels.update(full_size, mask)
        levels = quantize(full_size if self._full_size_maps else votes.anomaly_map)
        self._pending.append(self._thread.submit(self._write, item, levels, votes.anomaly_map, picture, mask))
        if len(self._pending) > _MOST_PENDING:
            self._pending.popleft().result()

    def _write(
        self,
        item: Sample,
        levels: np.ndarray,
        anomaly_map: np.ndarray,
        picture: np.ndarray,
        mask: np.ndarray | None,
    ) -> None:
        """Write the map, `levels`, the overlay and the plain picture of an image, and keep the thumbnails."""
        overlay = draw_overlay(picture, anomaly_map, self.scale, mask)
        self.thumbnails.append(make_thumbnails(picture, anomaly_map, self.scale, mask))
        for kind, pixels in ((MAPS_FOLDER, levels), (OVERLAYS_FOLDER, overlay)):
            path = self._folder / kind / f"{item.relative}{MAP_SUFFIX}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(path, pixels)
        write_atomically(self._folder / OVERLAYS_FOLDER / f"{item.relative}{PLAIN_SUFFIX}", large_jpeg(picture))


def has_known_pixels(item: Sample) -> bool:
    """Whether it is known which pixels of an image are anomalous: it has a mask, or is normal."""
    return item.mask is not None or item.label == 0


# --- what comes at the end --------------------------------------------------------------------------------------------


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
    labels = [item.label for item in items]
    if None in labels:
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


def write_scores(
    folder: Path,
    items: Sequence[Sample],
    scores: np.ndarray,
    shares: Sequence[np.ndarray],
    rejected: np.ndarray | None,
    peaks: np.ndarray | None = None,
) -> None:
    """Write scores.csv, with all digits: read back, the numbers are the same.

    Args:
        folder: where it goes.
        items: the images, in the order of the rows.
        scores: `(N,)` anomaly scores, higher = more anomalous.
        shares: N arrays `(S,)` of vote shares, higher = more normal.
        rejected: `(N,)` bool; None where nothing is decided.
        peaks: `(N,)` maxima of the anomaly maps at the working size; None without maps.
    """
    decisions = decision_words(rejected, len(items))
    votes = [f"vote_share_scale_{n}" for n in range(len(shares[0]))]
    columns = ["path", "label", "anomaly_score", *votes, "decision", "map_peak"]
    of_maps = [""] * len(items) if peaks is None else list(map(float, peaks))
    # Names that are no UTF-8 go through as they are.
    with (folder / SCORES_FILE).open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        for item, score, row, decision, peak in zip(items, scores, shares, decisions, of_maps, strict=True):
            label = "" if item.label is None else item.label
            writer.writerow([item.relative, label, float(score), *map(float, row), decision, peak])


def write_metrics(folder: Path, document: dict[str, Any]) -> None:
    """Write metrics.json."""
    (folder / METRICS_FILE).write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
