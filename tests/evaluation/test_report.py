"""report.html: its texts and drawings by hand, its size, and the page itself in a browser."""

import base64
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from skimage import data

import hta
import main_eval
from hta.data.sample import Sample
from hta.errors import RunError
from hta.evaluation import results
from hta.evaluation.overlays import THUMBNAIL_SIDE, ColourScale
from hta.evaluation.report import Quantity, draw_histogram, draw_roc, picture_link, score_ticks, write_report
from hta.evaluation.results import MAP_SUFFIX, MAPS_FOLDER, PLAIN_SUFFIX, REPORT_FILE, ImageResult
from hta.evaluation.scorer import ImageVotes
from hta.evaluation.thresholds import Threshold, decide, decision_words, proportion, summarize_decision
from tests.browser import assert_quiet_and_from_disk, boxes, open_page, requested, resize_window

SCALE = ColourScale(0.2, 0.6)
HOSTILE = "<img src=x onerror=document.title=1>.png"
SCRIPT = "<script>document.title=1<script>.png"
LATIN_1 = os.fsdecode(b"caf\xe9 #1?%41.png")  # no UTF-8, and characters that mean something in an address


# --- texts and drawings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("good/0.png", "overlays/good/0.png.png"),
        ("a b#c?d%41&é.png", "overlays/a%20b%23c%3Fd%2541%26%C3%A9.png.png"),
        (os.fsdecode(b"\xff.png"), "overlays/%FF.png.png"),
        ('"><script>', "overlays/%22%3E%3Cscript%3E.png"),
    ],
)
def test_links_lead_to_the_bytes_of_the_name(name, link):
    assert picture_link(name, MAP_SUFFIX) == link
    assert unquote_to_bytes(link) == b"overlays/" + os.fsencode(name) + b".png"
    assert picture_link(name, PLAIN_SUFFIX) == link.removesuffix("png") + "jpg"
    assert picture_link(name, MAP_SUFFIX, MAPS_FOLDER) == link.replace("overlays/", "maps/", 1)


@pytest.mark.parametrize(
    ("bounds", "labels"),
    [
        ((0.91, 0.99), ["0.92", "0.94", "0.96", "0.98"]),
        ((-0.01, 1.01), ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ((-0.01, 0.01), ["-0.01", "-0.005", "0", "0.005", "0.01"]),
        ((1 - 1.1e-7, 1.0), ["0.9999999", "0.99999995", "1"]),
        ((1 - 1.1e-9, 1.0 + 1e-10), ["0.999999999", "0.9999999995", "1"]),
    ],
)
def test_ticks_are_round_their_labels_differ_and_keep_apart(bounds, labels):
    assert [label for _, label in score_ticks(*bounds)] == labels


def bars(figure):
    """The counts and the edges of every panel."""
    return [axes.patches[0].get_data()[:2] for axes in figure.axes]


PLAIN = Quantity("anomaly score", None)


def test_bars_are_as_high_as_the_counts():
    groups = {"normal": np.array([0.0, 0.0, 0.0, 0.5]), "anomalous": np.array([0.5])}
    figure = draw_histogram(groups, Quantity("highest value of the map", 0.25))
    normal, anomalous = figure.axes
    # Twice the threshold is 2. 4 % of the range is margin; the first and the last of 30 bins hold the scores.
    (counts, edges), (others, _) = bars(figure)
    assert (edges[0], edges[-1]) == pytest.approx((-0.04, 2.04))
    assert (len(counts), counts[0], counts[-1], counts.sum()) == (30, 3, 1, 4)
    assert others.tolist() == [0] * 29 + [1]
    assert (normal.get_title("left"), anomalous.get_title("left")) == ("normal (4)", "anomalous (1)")
    assert normal.get_ylim() == (0, 3)
    assert [axes.lines[0].get_xdata() for axes in figure.axes] == [[1, 1]] * 2
    assert normal.texts[0].get_text() == "threshold"
    assert anomalous.get_xlabel() == "highest value of the map, 1 = threshold"
    assert not [axes for axes in draw_histogram(groups, PLAIN).axes if axes.lines or axes.texts]


@pytest.mark.parametrize("scores", [np.full(2, 0.25), np.array([1 - 2**-52, 1 - 2**-53])])
@pytest.mark.parametrize("limit", [None, 0.25, -0.5])
def test_equal_scores_and_scores_closer_than_a_float_can_divide_are_drawn(scores, limit):
    ((counts, edges),) = bars(draw_histogram({"unlabelled": scores}, Quantity("score", limit)))
    assert counts.max() == 2
    assert np.diff(edges).min() > 0


def test_scores_are_drawn_by_the_decades_of_their_votes_and_far_ones_at_the_edge():
    scores = 1 - np.array([1e-2, 1e-4, 1e-6, 1e-15])
    figure = draw_histogram({"normal": scores[:2], "anomalous": scores[2:]}, Quantity("score", 0.99, "mean"))
    # 1, 2, 3 and 7.5 thresholds, the last one drawn at 5; 2 % of 4 is margin: bins of 0.139 from 0.92 on.
    assert [counts.nonzero()[0].tolist() for counts, _ in bars(figure)] == [[0, 7], [14, 29]]
    labels = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert labels == ["1", "2", "3", "4", "5+"]


@pytest.mark.parametrize(
    ("threshold", "point"), [(-1, (1, 1)), (0.15, (0.5, 1)), (0.45, (0.5, 0.5)), (0.6, (0, 0.5)), (2, (0, 0))]
)
def test_the_roc_curve_passes_through_its_steps_and_names_the_operating_point(threshold, point):
    normal, anomalous = np.array([0.1, 0.5]), np.array([0.4, 0.9])
    figure = draw_roc(normal, anomalous, threshold)
    figure.canvas.draw()
    (axes,) = figure.axes
    _, curve, marked = axes.lines
    assert curve.get_xydata().tolist() == [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 1], [1, 1]]
    assert marked.get_xydata().tolist() == [list(point)]
    box, square = axes.texts[0].get_window_extent(), axes.get_window_extent()
    assert square.x0 < box.x0 < box.x1 < square.x1
    assert square.y0 < box.y0 < box.y1 < square.y1
    (axes,) = draw_roc(normal, anomalous, None).axes
    assert (len(axes.lines), len(axes.texts)) == (2, 0)


# --- the page as text -------------------------------------------------------------------------------------------------


MODEL = {
    "path": "TrainedModels/wall",
    "training_images": [HOSTILE, LATIN_1],
    "image_size": [256, 320],
    "scales": [[25, 32], [51, 64]],
    "hta_version": "0.1.0",
    "config": {
        "model": {"task": "defect", "num_transforms": 4, "num_layer": 5, "ker_size": 3},
        "training": {"niter": 2000, "manualSeed": 0},
    },
}


SCORING = {"fraction_defect": 0.05, "score": "paper", "aggregate": "mean", "batch_size": 16, "task": "defect"}


def write(folder, found, threshold, **changes):
    """The report of some results, with a document as in metrics.json, and the rows in it."""
    items, scores = [result.item for result in found], np.array([result.score for result in found])
    peaks = None if found[0].peak is None else [result.peak for result in found]
    rejected = decide(scores, threshold, peaks)
    numbers = None if peaks is None else np.array(peaks)
    for result, word in zip(found, decision_words(rejected, len(found)), strict=True):
        result.decision = word
    document = {
        "metrics": results.summarize(items, scores, None, numbers, threshold.decided_by),
        "decision": summarize_decision([item.label for item in items], rejected, threshold),
        "warnings": ["test images are <brighter>"],
        "colour_scale": {"low": 0.2, "high": 0.6},
        "seconds": {"total": 1.5, "per_image": 0.5},
        "images": len(items),
        "test_dir": "parts & more",
        "labels_csv": None,
        "skipped": {LATIN_1: f"{LATIN_1}: truncated"},
        "scoring": SCORING,
        "model": MODEL,
        "machine": {"device": "cpu", "dtype": "float32", "threads": 1},
        "versions": {"hta": "0.1.0", "torch": "2.0"},
    }
    return read(write_report(folder, document | changes, found))


def read(path):
    page = path.read_text(encoding="utf-8")
    return page, json.loads(re.search('<script type="application/json" id="data">(.*?)</script>', page)[1])["rows"]


def page_of(folder, labels, scores, threshold=None, *, overlay=b"overlay", peaks=None, **changes):
    """A report of images that look all the same, and the rows in it."""
    found = [
        ImageResult(Sample(Path("x"), f"{n}.png", label), np.array([0.5]), peak, b"image", overlay, score)
        for n, (label, score, peak) in enumerate(zip(labels, scores, peaks or [None] * len(scores), strict=True))
    ]
    return write(folder, found, threshold or Threshold(None, "the model was not calibrated"), **changes)


def test_the_peaks_of_the_maps_are_beside_the_decisions(tmp_path):
    threshold = Threshold(None, source="calibrated", pixel_threshold=0.6, decided_by="map")
    page, rows = page_of(tmp_path, [0, 0], [0.1, 0.2], threshold, peaks=[0.71249, 0.3])
    assert [(row["decision"], row["peak"]) for row in rows] == [("reject", 0.71249), ("pass", 0.3)]
    assert [row["shown"] for row in rows] == [{"score": "0.100", "peak": "1.19"}, {"score": "0.200", "peak": "0.50"}]
    assert (
        "An image is rejected if its anomaly map is anywhere above the threshold, 1.00 on this page and 0.600000"
        in page
    )
    assert [row["peak"] for row in page_of(tmp_path, [0, 0], [0.1, 0.4])[1]] == [None, None]


def test_the_same_results_give_the_same_bytes_and_parts_of_two_drawings_keep_apart(tmp_path):
    pages = [page_of(tmp_path, [0, 1], [0.1, 0.4])[0] for _ in range(2)]
    assert pages[0] == pages[1]
    names = re.findall(r'\bid="([^"]*)"', pages[0])
    assert len(names) == len(set(names)) > 50


def test_an_image_above_the_threshold_is_rejected(tmp_path):
    threshold = Threshold(0.3, None, "calibrated", target_fpr=0.05)
    page, rows = page_of(tmp_path, [0, 0, 1, 1], [0.1, 0.3, 0.3, 0.31], threshold)
    assert [row["decision"] for row in rows] == ["pass", "pass", "pass", "reject"]
    assert [row["label"] for row in rows] == ["normal", "normal", "anomalous", "anomalous"]
    assert rows[0]["link"] == "overlays/0.png.png"
    assert base64.b64decode(rows[0]["overlay"]) == b"overlay"
    # 0 of 2 and 1 of 2: Clopper-Pearson, 1 - 0.025 ** (1 / 2) and 1 - 0.975 ** (1 / 2)
    for said in (
        "about 5 % of normal images are rejected",
        "95 % interval 0 % to 84.2 %",
        "95 % interval 1.3 % to 98.7 %",
        "image AUROC",
        '<th scope="row">normal</th><td>2</td><td>0</td><td>0 %</td>',
        '<th scope="row">anomalous</th><td>1</td><td>1</td><td>50 %</td>',
        ">ROC curve by anomaly score, area 0.875<",
    ):
        assert said in page
    assert page.count('<svg role="img"') == 2


def test_false_alarms_of_the_maps_are_said(tmp_path):
    threshold = Threshold(0.3, None, "calibrated", 0.05, pixel_threshold=0.8)
    decision = summarize_decision([0, 0], np.array([False, True]), threshold)
    page, _ = page_of(tmp_path, [0, 0], [0.1, 0.4], decision=decision | {"pixel_false_alarms": proportion(1, 2)})
    assert "A pixel of a map counts as anomalous above 0.800000." in page
    assert "Of the normal images, 50 % have such a pixel anywhere (95 % interval 1.3 % to 98.7 %)." in page
    page, _ = page_of(tmp_path, [0, 0], [0.1, 0.4], decision=decision | {"pixel_false_alarms": proportion(0, 0)})
    assert "Of the normal images" not in page


def test_scores_near_one_differ_from_the_threshold(tmp_path):
    scores = [1 - 5e-10, 1 - 4e-10, 0.25, 1 - 2e-10]
    page, rows = page_of(tmp_path, [0, 0, 1, 1], scores, Threshold(1 - 3e-10, None, "given"))
    assert [row["shown"]["score"] for row in rows] == ["0.98", "0.99", "0.01", "1.02"]
    assert [row["score"] for row in rows] == scores
    assert "above the threshold, 1.00 on this page and 0.999999999700 in scores.csv" in page
    assert "1 - " not in text_of(page)


def text_of(page):
    """What can be read on a page: no data, styles, scripts and drawings' names."""
    page = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


@pytest.mark.parametrize(("decided_by", "headline"), [("map", "1.000"), ("score", "0.250")])
def test_headline_histogram_and_roc_are_of_what_decides(tmp_path, decided_by, headline):
    threshold = Threshold(0.5, None, "calibrated", 0.05, pixel_threshold=0.4, decided_by=decided_by)
    page, _ = page_of(tmp_path, [0, 0, 1, 1], [0.2, 0.6, 0.1, 0.3], threshold, peaks=[0.1, 0.2, 0.5, 0.8])
    metrics = results.summarize(
        [Sample(Path("x"), "x", n) for n in (0, 0, 1, 1)],
        np.array([0.2, 0.6, 0.1, 0.3]),
        None,
        np.array([0.1, 0.2, 0.5, 0.8]),
        decided_by,
    )
    assert f"{metrics['deciding']['image_auroc']['value']:.3f}" == headline
    assert metrics["deciding"]["quantity"] == decided_by
    (first, *_) = re.findall(r'<dt>image AUROC</dt><dd class="value">([\d.]+)</dd>', page)
    assert first == headline
    name = {"map": "highest value of the map", "score": "anomaly score"}[decided_by]
    assert f"<dd>by {name}</dd>" in page
    assert f">Images by {name}<" in page
    assert f">ROC curve by {name}, area {headline}<" in page
    assert f"{name}, 1 = threshold" in page
    assert f"image AUROC by {'the scores' if decided_by == 'map' else 'the maps'}" in page.replace("&#39;", "")
    assert (metrics["image_auroc"]["value"], metrics["map_auroc"]["value"]) == (0.25, 1)


@pytest.mark.parametrize("labels", [[None, None], [0, 0], [1, 1], [0, None]])
@pytest.mark.parametrize("peaks", [None, [0.3, 0.7]])
def test_what_is_not_known_is_not_on_the_page(tmp_path, labels, peaks):
    threshold = Threshold(0.2, None, "calibrated", 0.05, pixel_threshold=0.5, decided_by="map" if peaks else "score")
    page, _ = page_of(tmp_path, labels, [0.1, 0.3], threshold, peaks=peaks)
    text = text_of(page)
    assert not [
        words for words in ("n/a", "not defined", "Not defined", "None", "nan", "AUROC", "ROC") if words in text
    ]
    assert "rejected 1 of 2" in text
    assert text.index("rejected 1 of 2") < text.index("Images, most anomalous first") < text.index("Distribution")
    assert ("false alarms 50 %" in text) == (labels == [0, 0])
    assert ("recall 50 %" in text) == (labels == [1, 1])


def test_without_labels_and_maps_the_page_says_what_there_is(tmp_path):
    page, rows = page_of(tmp_path, [None, None], [0.1, 0.3], overlay=None, colour_scale=None)
    assert [(row["decision"], row["label"], row["link"]) for row in rows] == [("", "unlabelled", None)] * 2
    assert "no image is rejected or passed: the model was not calibrated." in page
    assert "scored without maps" in page


def test_a_recall_of_nothing_says_what_to_try(tmp_path):
    page, _ = page_of(tmp_path, [0, 1], [0.1, 0.2], Threshold(0.3, None, "calibrated", 0.05))
    said = (
        "No anomalous image was rejected: try to make the threshold of good images (--good_dir) , a --target_fpr above"
    )
    assert said.replace(" ,", ",") in text_of(page).replace(" ,", ",")
    assert "(--niter)" in text_of(page)


@pytest.mark.parametrize("values", [{"scores": [0.1, np.nan]}, {"scores": [0.1, 0.2], "peaks": [np.inf, 0.1]}])
def test_what_is_not_finite_is_not_drawn(tmp_path, values):
    with pytest.raises(RunError, match=r"\.png: its score is not finite"):
        page_of(tmp_path, [None, None], values["scores"], peaks=values.get("peaks"), metrics={})
    assert list(tmp_path.iterdir()) == []


NAMES = ["\u202egnp.exe", "a\nb\x1b[31m.png", "\u2066x\u2069.png", "\"><b>'&.png", "x" * 255]


def test_names_that_are_no_plain_text_are_shown_with_escapes(tmp_path):
    found = [ImageResult(Sample(Path("x"), name, 0, name), np.array([0.5]), None, b"", None, 0.1) for name in NAMES]
    page, rows = write(tmp_path, found, Threshold(0.3, None, "given"), test_dir=NAMES[0], warnings=NAMES)
    shown = ["\\u202egnp.exe", r"a\nb\x1b[31m.png", r"\u2066x\u2069.png", NAMES[3], NAMES[4]]
    assert [row["name"] for row in rows] == [row["kind"] for row in rows] == shown
    assert not set(page) & set("\u202e\u2066\u2069\x1b")
    assert "<b>" not in page
    assert r"brick: results on \u202egnp.exe".replace("brick", "wall") in page


def test_names_are_text_the_least_defect_is_in_pixels_of_the_image_and_colours_are_those_of_overlays(tmp_path):
    page, _ = page_of(tmp_path, [None], [0.1])
    assert "<img src=x" not in page
    for said in ("&lt;img src=x onerror", r"caf\xe9 #1?%41.png: truncated", "test images are &lt;brighter&gt;"):
        assert said in page
    assert "wall: results on parts &amp; more" in page
    # 256 / 51 = 5.02; 11 px there are 55.2 px; at the coarsest scale 256 / 25 * 11 = 112.6
    for said in ("5.0 x 5.0 px", "10.0 px", "11 x 11 px", "55 px of the image", "113 px at the coarsest"):
        assert said in page.replace("\xa0", " ").replace("\xd7", "x")
    thin = MODEL | {"config": MODEL["config"] | {"model": MODEL["config"]["model"] | {"num_layer": 2, "ker_size": 5}}}
    for score, side in (("paper", 9), ("nearest", 5)):
        page, _ = page_of(tmp_path, [None], [0.1], model=thin, scoring=SCORING | {"score": score})
        assert f"{side} x {side} px" in page.replace("\xa0", " ").replace("\xd7", "x")
    page, _ = page_of(tmp_path, [None], [0.1])
    stops = re.findall(r"rgb\([\d ]+/ [\d.]{5}\)", page)
    assert (stops[0], stops[10], len(stops)) == ("rgb(87 16 110 / 0.000)", "rgb(252 255 164 / 0.750)", 22)
    assert stops[5].endswith("/ 0.562)")  # 3/4 of 1 - (1 - 1/2) ** 2
    assert 'aria-label="Colour scale from 0.200 to 0.600"' in page
    threshold = Threshold(0.2, None, "calibrated", 0.05, pixel_threshold=0.5, decided_by="map")
    page, _ = page_of(tmp_path, [None], [0.1], threshold, peaks=[0.4])
    assert 'aria-label="Colour scale from 0.40 to 1.20"' in page  # of the threshold
    assert page.count('<i style="left: 75.0%" title="threshold"></i>') == 2


# --- pictures ---------------------------------------------------------------------------------------------------------


def write_pictures(folder, pictures, anomaly_map, name="{}.png", masks=()):
    """What comes of pictures that all have the same map, or none."""
    votes = ImageVotes(np.array([0.5]), anomaly_map, (8, 8))
    samples = [Sample(picture, name.format(n), masks=masks) for n, picture in enumerate(pictures)]
    scored = ((sample, votes, sample.source) for sample in samples)
    return results.write_pictures(scored, folder, None if anomaly_map is None else SCALE, None, False)


def pixels_of(jpeg):
    return np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)


def test_the_image_is_beside_its_overlay(tmp_path):
    picture = np.full((40, 30, 3), 200, dtype=np.uint8)
    write_pictures(tmp_path, [picture], np.ones((8, 8), dtype=np.float32), f"bad/{LATIN_1}")
    for suffix, equal in ((PLAIN_SUFFIX, True), (MAP_SUFFIX, False)):
        with Image.open(tmp_path / os.fsdecode(unquote_to_bytes(picture_link(f"bad/{LATIN_1}", suffix)))) as image:
            assert (np.abs(np.asarray(image).astype(int) - picture).max() <= 2) == equal


def test_thumbnails_show_image_map_and_outline(tmp_path):
    picture = np.full((256, 512, 3), 90, dtype=np.uint8)
    anomaly_map, mask = np.zeros((32, 64), dtype=np.float32), np.zeros((256, 512), dtype=bool)
    anomaly_map[:, 32:], mask[64:192, 64:192] = 1, True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (result,) = write_pictures(tmp_path, [picture], anomaly_map, masks=(tmp_path / "mask.png",))
    image, overlay = pixels_of(result.thumbnail), pixels_of(result.overlay)
    assert image.shape == overlay.shape == (THUMBNAIL_SIDE // 2, THUMBNAIL_SIDE, 3)
    assert np.abs(image - 90).max() <= 2
    # a quarter of the grey, three quarters of the last colour, far from the edge
    np.testing.assert_allclose(overlay[:, 60:].mean(axis=(0, 1)), 22.5 + 0.75 * np.array([252, 255, 164]), atol=4)
    outlined = overlay[..., 2] - overlay[..., 0] > 60  # cyan: blue without red
    assert (outlined[22, 9:12].any(), outlined[22, 16:28].any()) == (True, False)


@pytest.mark.parametrize("anomaly_map", [None, np.zeros((8, 8), dtype=np.float32)])
def test_results_and_thumbnails_are_in_order(tmp_path, anomaly_map):
    found = write_pictures(tmp_path, [np.full((64, 64, 3), 10 * n, dtype=np.uint8) for n in range(20)], anomaly_map)
    np.testing.assert_allclose([pixels_of(r.thumbnail).mean() for r in found], 10 * np.arange(20), atol=1.5)
    assert [result.item.relative for result in found] == [f"{n}.png" for n in range(20)]
    expected = (None, False) if anomaly_map is None else (0, True)
    assert {(result.peak, result.overlay is not None) for result in found} == {expected}


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "overlays").touch()
    with pytest.raises(OSError, match="overlays"):
        write_pictures(tmp_path, [np.zeros((8, 8, 3), np.uint8)], np.zeros((8, 8), np.float32))


# --- the page in a browser ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A report of 400 images of noise, which JPEG is worst at, with maps of noise."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("large")
    pictures = rng.integers(0, 256, (20, THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3), dtype=np.uint8)
    kept = write_pictures(folder / "pictures", pictures, rng.random((64, 64), dtype=np.float32))
    items = [Sample(Path("x"), f"test/some kind of defect/{n:06d}.png", n % 2) for n in range(400)]
    found = [replace(kept[n % 20], item=item, peak=None, score=rng.random()) for n, item in enumerate(items)]
    write(folder, found, Threshold(0.5, None, "given"))
    return folder / REPORT_FILE


def test_2000_images_would_stay_below_30_mb(large):
    assert large.stat().st_size < 30e6 * 400 / 2000


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What main_eval.py makes of 63 crops of a brick wall, some of hostile names, with a model of a few iterations.

    The threshold lies in the middle of the scores, so that both decisions are there.
    """
    root = tmp_path_factory.mktemp("report")
    brick = data.brick()
    config = hta.default_config(niter=5, max_size=32, nfc=4, threads=1, not_cuda=True)
    hta.train(brick[:64, :64], config, folder=root / "models" / "wall", num_samples=0)
    names = [f"good/{n}.png" for n in range(60)] + [f"bad/{name}" for name in (HOSTILE, SCRIPT, LATIN_1)]
    for n, name in enumerate(names):
        path = root / "parts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row, column = divmod(n, 8)
        Image.fromarray(brick[56 * row : 56 * row + 48, 56 * column : 56 * column + 48]).save(path)
    arguments = ["--input_name", str(root / "models" / "wall"), "--test_dir", str(root / "parts"), "--threads", "1"]
    assert main_eval.main([*arguments, "--not_cuda", "--no_maps", "--out", str(root / "scores")]) == 0
    rows = (root / "scores" / "scores.csv").read_text(encoding="utf-8", errors="surrogateescape").splitlines()[1:]
    middle = np.median([float(row.split(",")[2]) for row in rows])
    arguments += ["--threshold", str(middle)]
    assert main_eval.main([*arguments, "--not_cuda", "--out", str(root / "out")]) == 0
    assert (root / "out" / REPORT_FILE).is_file()
    return root / "out" / REPORT_FILE


@pytest.fixture
def page(chromium, report):
    """The report, opened from disk at the size of a desktop; at its end no error, and no request but to the disk."""
    open_page(chromium, report)
    yield chromium
    assert_quiet_and_from_disk(chromium, report)


def press(driver, *keys):
    ActionChains(driver).send_keys(*keys).perform()


def tab_to(driver, selector):
    """Reach an element with the Tab key from the one before it."""
    before = (
        "const all = [...document.querySelectorAll('a[href], button:enabled, input, select, summary')];"
        "all[all.indexOf(document.querySelector(arguments[0])) - 1].focus()"
    )
    driver.execute_script(before, selector)
    press(driver, Keys.TAB)
    assert driver.execute_script("return document.activeElement === document.querySelector(arguments[0])", selector)


def column(driver, number):
    """The visible texts of a column."""
    script = "return [...document.querySelectorAll(arguments[0])].map(cell => cell.innerText)"
    return driver.execute_script(script, f"#images tbody td:nth-child({number})")


def sorting(driver, key):
    script = "return document.querySelector(`[data-key=${arguments[0]}]`).closest('th').getAttribute('aria-sort')"
    return driver.execute_script(script, key)


def test_the_table_sorts_by_keyboard(page):
    assert len(column(page, 3)) == 10  # of 63
    scores = [float(text) for text in column(page, 5)]
    assert scores == sorted(scores, reverse=True)
    assert sorting(page, "score") == "descending"
    tab_to(page, "[data-key=score]")
    press(page, Keys.ENTER)
    lowest = [float(text) for text in column(page, 5)]
    assert lowest == sorted(lowest)
    assert lowest != scores
    assert sorting(page, "score") == "ascending"
    tab_to(page, "[data-key=name]")
    press(page, Keys.ENTER)
    assert column(page, 3)[:4] == [f"bad/{HOSTILE}", f"bad/{SCRIPT}", r"bad/caf\xe9 #1?%41.png", "good/0.png"]
    assert sorting(page, "name") == "ascending"
    assert sorting(page, "score") == "none"


PEAKS = [0.9, 0.0956, 0.5]


@pytest.mark.parametrize(
    ("decided_by", "peaks", "order"),
    [("map", PEAKS, "021"), ("score", PEAKS, "210"), ("score", None, "210")],
)
def test_first_come_the_images_that_are_most_anomalous_by_what_decides(chromium, tmp_path, decided_by, peaks, order):
    threshold = Threshold(0.25, source="calibrated", target_fpr=0.05, pixel_threshold=0.6, decided_by=decided_by)
    page_of(tmp_path, [0] * 3, [0.1, 0.2, 0.3], threshold, overlay=None, peaks=peaks)
    open_page(chromium, tmp_path / REPORT_FILE)
    assert column(chromium, 2) == [f"{n}.png" for n in order]  # without overlays there is one picture
    assert sorting(chromium, "peak" if decided_by == "map" else "score") == "descending"
    if peaks:
        assert sorted(column(chromium, 5)) == ["0.16", "0.83", "1.50"]
    else:
        assert not chromium.find_elements("css selector", "[data-key=peak]")


def first_words(driver, number):
    return [text.split(":")[0] for text in column(driver, number)]


@pytest.mark.parametrize(
    ("key", "place", "first", "last"), [("label", 4, "anomalous", "normal"), ("decision", 7, "pass", "reject")]
)
def test_the_table_sorts_by_words(page, key, place, first, last):
    page.execute_script("filters.per_page.value = 200")
    tab_to(page, f"[data-key={key}]")
    press(page, Keys.ENTER)
    forth, how = first_words(page, place), sorting(page, key)
    assert (forth, forth[0], forth[-1], how) == (sorted(forth), first, last, "ascending")
    press(page, Keys.ENTER)
    back, how = first_words(page, place), sorting(page, key)
    assert (back, back[0], how) == (sorted(back, reverse=True), last, "descending")


@pytest.mark.parametrize(("typed", "name"), [("<IMG", HOSTILE), ("<script>", SCRIPT)])
def test_a_hostile_name_is_text(page, typed, name):
    tab_to(page, "[name=text]")
    press(page, typed)
    assert column(page, 3) == [f"bad/{name}"]
    tab_to(page, "#images tbody button")
    press(page, Keys.ENTER)
    assert page.find_element("id", "viewed").text == f"bad/{name}"
    wait_for_pictures(page)
    assert page.find_elements("css selector", "img[src=x]") == []
    assert len(page.find_elements("css selector", "script")) == 2  # the rows, and the page's own
    assert page.title == "wall: results on parts"


def gap_near(scores, place):
    """A number in the widest gap between descending scores around a place."""
    around = scores[place - 5 : place + 5]
    gap = int(np.argmax(-np.diff(around)))
    return (around[gap] + around[gap + 1]) / 2


def test_the_table_filters_by_keyboard(page):
    status = page.find_element("id", "count")
    assert status.text == "1 to 10 of 63 images"
    tab_to(page, "[name=per_page]")
    press(page, "5")
    assert status.text == "1 to 50 of 63 images"
    tab_to(page, "[name=text]")
    press(page, "good/1")
    assert sorted(column(page, 3)) == sorted(f"good/{n}.png" for n in (1, *range(10, 20)))
    assert status.text == "1 to 11 of 11 images, chosen from 63"
    press(page, Keys.BACKSPACE * 6)
    tab_to(page, "[name=label]")
    press(page, "a", "n")  # of anomalous
    assert column(page, 4) == ["anomalous: bad"] * 3
    press(page, Keys.HOME)
    assert status.text == "1 to 50 of 63 images"
    tab_to(page, "[name=decision]")
    press(page, "r")  # of reject
    assert set(first_words(page, 7)) == {"reject"}
    assert status.text == "1 to 31 of 31 images, chosen from 63"  # the one in the middle is not above itself
    press(page, Keys.ARROW_DOWN)  # pass
    assert set(first_words(page, 7)) == {"pass"}
    press(page, Keys.ARROW_DOWN)  # reject: false alarm
    assert set(column(page, 7)) == {"reject: false alarm"}
    press(page, Keys.HOME)
    assert status.text == "1 to 50 of 63 images"
    scores = column(page, 5)
    low, high = (gap_near(list(map(float, scores)), place) for place in (30, 10))
    tab_to(page, "[name=low]")
    press(page, str(low))
    assert column(page, 5) == [score for score in scores if float(score) > low]
    tab_to(page, "[name=high]")
    press(page, str(high))
    assert column(page, 5) == [score for score in scores if low < float(score) < high]
    tab_to(page, "[type=reset]")
    press(page, Keys.ENTER)
    WebDriverWait(page, 5).until(lambda _: status.text == "1 to 10 of 63 images")
    tab_to(page, "#on")
    press(page, Keys.ENTER)
    assert status.text == "11 to 20 of 63 images"


def wait_for(driver, condition):
    WebDriverWait(driver, 5).until(lambda driver: driver.execute_script(f"return {condition}"))


def wait_for_pictures(driver, names=("picture", "plain")):
    for name in names:
        wait_for(driver, f"{name}.complete && {name}.naturalWidth > 0 && !{name}.hidden")


def open_viewer(driver, pictures=("picture", "plain")):
    driver.find_element("css selector", "#images tbody button").send_keys(Keys.ENTER)
    wait_for_pictures(driver, pictures)


def test_the_viewer_opens_steps_and_closes_by_keyboard(page):
    assert not any("/overlays/" in url for url in requested(page))
    page.refresh()  # for the fixture, which looks for the request of the page
    tab_to(page, "[data-key=name]")
    press(page, Keys.ENTER)
    tab_to(page, "#images tbody button")
    press(page, Keys.ENTER)
    heading = page.find_element("id", "viewed")
    for name in (f"bad/{HOSTILE}", f"bad/{SCRIPT}", r"bad/caf\xe9 #1?%41.png", "good/0.png"):
        assert heading.text == name
        wait_for_pictures(page)
        press(page, Keys.ARROW_RIGHT)
    press(page, Keys.ARROW_LEFT)
    assert heading.text == "good/0.png"
    press(page, Keys.ESCAPE)
    assert not page.execute_script("return viewer.open")
    wait_for(page, "document.activeElement.textContent === 'good/0.png'")


def test_the_viewer_shows_the_image_beside_its_overlay_and_what_the_colours_mean(page, report):
    open_viewer(page)
    sides = page.execute_script("return [plain, picture].map(image => [image.naturalWidth, image.naturalHeight])")
    assert sides == [[256, 256]] * 2
    (plain,), (overlay,) = boxes(page, "#plain"), boxes(page, "#picture")
    assert plain[2:] == overlay[2:]
    assert plain[1] < overlay[0]
    rows = read(report)[1]
    votes = page.find_element("id", "shares").text.split(": ")[-1].split(", ")
    assert [float(text) for text in votes] == pytest.approx(max(rows, key=lambda row: row["score"])["shares"], rel=0.05)
    document = json.loads((report.parent / "metrics.json").read_text())
    scale, limit = document["colour_scale"], document["decision"]["pixel_threshold"]
    above = limit - 0.5  # the typical distance
    assert (scale["low"], scale["high"]) == (pytest.approx(0.5 + 0.25 * above), pytest.approx(0.5 + 1.25 * above))
    in_thresholds = [f"{scale[name] / limit:.2f}" for name in ("low", "high")]
    assert page.find_element("id", "legend").text.split() == in_thresholds  # the threshold is marked
    ((mark, *_),) = boxes(page, "#legend i")
    ((left, right, top, bottom),) = boxes(page, "#legend .scale")
    assert (mark - left) / (right - left) == pytest.approx(0.75, abs=0.01)
    assert right - left > 400
    assert bottom - top > 10


def test_the_contrast_of_one_image_can_be_switched_on_and_off(page, report):
    """Where the map of an image is highest it then has the last colour, however low that is; both ways are seen."""
    lowest = min(read(report)[1], key=lambda row: row["peak"])
    page.execute_script("state.chosen = rows; view(rows.findIndex(row => row.name === arguments[0]))", lowest["name"])
    wait_for_pictures(page)
    before, legend = shot_of(page, "#pictures div"), page.find_element("id", "legend").text
    tab_to(page, "#contrast")
    press(page, Keys.ENTER)
    wait_for_pictures(page, ("picture", "plain", "map"))
    after = shot_of(page, "#pictures div")
    yellow = [((pixels[..., 0] > 180) & (pixels[..., 2] < pixels[..., 0] - 40)).sum() for pixels in (before, after)]
    assert yellow[0] < yellow[1]
    assert yellow[1] > 20
    assert page.find_element("id", "legend").text.split()[:2] == ["its", "lowest"]
    press(page, Keys.ENTER)
    wait_for_pictures(page)
    assert np.array_equal(shot_of(page, "#pictures div"), before)
    assert page.find_element("id", "legend").text == legend


def shot_of(driver, selector):
    """What an element looks like, `(h, w, 3)`, without what may glow around it."""
    picture = Image.open(io.BytesIO(driver.find_element("css selector", selector).screenshot_as_png))
    return np.asarray(picture.convert("RGB")).astype(int)


def test_the_viewer_falls_back_on_the_small_picture(chromium, large):
    open_page(chromium, large)  # no pictures beside it
    open_viewer(chromium, ["plain"])
    wait_for(chromium, "!byId('lost').hidden")
    assert chromium.execute_script("return [plain.naturalWidth, picture.hidden]") == [THUMBNAIL_SIDE, True]


@pytest.mark.parametrize("with_viewer", [False, True])
def test_a_phone_shows_all_of_it(page, with_viewer):
    resize_window(page, 390, 844)
    page.refresh()
    if with_viewer:
        open_viewer(page)
        ((left, right, top, bottom),) = boxes(page, "#viewer")
        assert 0 <= left < right <= 390
        assert 0 <= top < bottom <= 844
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    assert max(right for _, right, _, _ in boxes(page, "#images *")) <= 390


def test_a_phone_shows_images_on_its_first_screen(page):
    resize_window(page, 390, 844)
    page.refresh()
    images = boxes(page, "#images img")[:2]
    assert len(images) == 2
    assert max(bottom for *_, bottom in images) < 844
    assert min(bottom - top for _, _, top, bottom in images) > 60


def test_long_and_many_words_leave_the_images_on_the_first_screen_of_a_phone(chromium, tmp_path):
    jpeg = pixels_as_jpeg()
    found = [ImageResult(Sample(Path("x"), "x" * 250, n), np.array([0.5]), None, jpeg, jpeg, 0.1) for n in range(2)]
    write(tmp_path, found, Threshold(0.3, None, "calibrated", 0.05), test_dir="y" * 250, warnings=["long " * 60] * 9)
    open_page(chromium, tmp_path / REPORT_FILE, 390, 844)
    assert boxes(chromium, "#images img")[0][2] < 844
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= 390
    chromium.find_element("css selector", "#images tbody button").send_keys(Keys.ENTER)
    assert max(right for _, right, _, _ in boxes(chromium, "#viewer *")) <= 390


def pixels_as_jpeg():
    stream = io.BytesIO()
    Image.fromarray(np.full((88, 88, 3), 90, np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def test_on_a_phone_fingers_find_few_tidy_cards(page):
    resize_window(page, 390, 844)
    page.refresh()
    cards = boxes(page, "#images tbody tr")
    assert len(cards) == 10
    page.find_element("css selector", "#filtering summary").click()
    buttons = "#images button, #filters :is(input, select, button), nav button"
    assert min(bottom - top for _, _, top, bottom in boxes(page, buttons)) >= 40
    # A label, a score and a decision stand on a line of their own, one below the other, and need no second line.
    for title in ("Label", "Score", "Map", "Decision"):
        cells = boxes(page, f"#images tbody [data-title={title}]")
        assert {left - card[0] for (left, *_), card in zip(cells, cards, strict=True)} == {cells[0][0] - cards[0][0]}
        assert max(bottom - top for _, _, top, bottom in cells) < 36


@pytest.mark.parametrize("width", [390, 600, 800, 1280])
def test_the_figures_leave_no_hole(page, width):
    resize_window(page, width, 844)
    page.refresh()
    tiles = boxes(page, ".tiles div")
    assert len(tiles) == 5
    ends = {}
    for _, right, top, _ in tiles:
        ends[top] = max(right, ends.get(top, 0))
    assert len({round(end) for end in ends.values()}) == 1
    assert len(ends) == {1280: 1}.get(width, 2)


def test_of_many_rows_a_page_is_made_and_sorting_is_quick(chromium, large):
    open_page(chromium, large)
    assert len(column(chromium, 3)) == 10
    script = "const start = performance.now(); sortBy('name'); return performance.now() - start"
    assert chromium.execute_script(script) < 200  # milliseconds, about 10
