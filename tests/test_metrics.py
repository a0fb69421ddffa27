"""Metrics against hand-computed values, brute force, and the undefined cases."""

import json
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from hta.errors import UserError
from hta.evaluation import metrics
from hta.evaluation.metrics import PixelMetrics

TOP = metrics.LEVELS - 1


# --- independent references: slow, and written from the definitions ---------------------------------------------------


def auroc_by_pairs(labels, scores):
    wins = [
        1.0 if a > n else 0.5 if a == n else 0.0
        for a in np.asarray(scores)[np.asarray(labels) == 1]
        for n in np.asarray(scores)[np.asarray(labels) == 0]
    ]
    return sum(wins) / len(wins)


def f1_by_loop(labels, scores):
    best = (-1.0, None)
    for threshold in sorted(set(scores), reverse=True):
        alarm = scores >= threshold
        tp, fp, fn = np.sum(alarm & (labels == 1)), np.sum(alarm & (labels == 0)), np.sum(~alarm & (labels == 1))
        best = max(best, (2 * tp / (2 * tp + fp + fn), threshold), key=lambda pair: pair[0])
    return best


def regions_by_flood(mask):
    left, regions = {tuple(place) for place in np.argwhere(mask)}, []
    while left:
        stack, region = [left.pop()], []
        while stack:
            y, x = stack.pop()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            stack.extend(near)
        regions.append(tuple(np.array(region).T))
    return regions


def aupro_by_loop(masks, maps, limit):
    values = sorted({value for anomaly_map in maps for value in anomaly_map.ravel()}, reverse=True)
    curve = [(0.0, 0.0)]
    for threshold in values:
        overlaps = [np.mean(m[r] >= threshold) for k, m in zip(masks, maps, strict=True) for r in regions_by_flood(k)]
        normal = np.concatenate([m[~k] for k, m in zip(masks, maps, strict=True)])
        curve.append((np.mean(normal >= threshold), np.mean(overlaps)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x1 > limit and x0 < limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def random_labels(rng, n, levels=8):
    labels = rng.integers(0, 2, n)
    labels[:2] = 0, 1
    return labels, (rng.integers(0, levels, n) + labels) / levels


def random_maps(rng, count=4, levels=9):
    """Masks with several regions of different sizes, maps of few levels (ties) that a 16-bit image holds exactly."""
    sizes = [(9, 7), (6, 11), (8, 8), (5, 13)][:count]
    masks = [rng.random(size) < 0.15 for size in sizes]
    masks[0][0, 0] = True
    maps = [rng.integers(0, levels, size) * (TOP // levels) / TOP for size in sizes]
    return masks, maps


# --- images -----------------------------------------------------------------------------------------------------------


def test_image_metrics_equal_hand_computed_values_with_ties():
    labels, scores = [0, 0, 1, 1, 1], [0.1, 0.5, 0.5, 0.9, 0.3]
    # six pairs: 0.5 beats 0.1, ties 0.5; 0.9 beats both; 0.3 beats 0.1
    assert metrics.image_auroc(labels, scores).value == pytest.approx(4.5 / 6)
    # recall 1/3 at precision 1, 2/3 at 2/3 (the tie enters together), 1 at 3/4
    assert metrics.average_precision(labels, scores).value == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    best = metrics.f1_max(labels, scores)
    assert (best.value, best.threshold) == (pytest.approx(6 / 7), 0.3)
    counts = metrics.confusion_at(labels, scores, 0.5)
    assert counts == metrics.Confusion(true_positives=2, false_positives=1, false_negatives=1, true_negatives=1)


def test_equally_good_thresholds_give_the_highest():
    # at 0.9: tp 1, fn 1, F1 2/3; at 0.1: tp 2, fp 2, F1 2/3
    best = metrics.f1_max([1, 0, 0, 1], [0.9, 0.5, 0.4, 0.1])
    assert (best.value, best.threshold) == (pytest.approx(2 / 3), 0.9)


@pytest.mark.parametrize("seed", range(10))
def test_image_metrics_equal_brute_force(seed):
    labels, scores = random_labels(np.random.default_rng(seed), 40)
    assert metrics.image_auroc(labels, scores).value == pytest.approx(auroc_by_pairs(labels, scores), abs=1e-12)
    value, threshold = f1_by_loop(labels, scores)
    best = metrics.f1_max(labels, scores)
    assert (best.value, best.threshold) == (pytest.approx(value, abs=1e-12), threshold)


def test_image_metrics_follow_ranks_alone_and_not_the_order():
    rng = np.random.default_rng(3)
    labels, scores = random_labels(rng, 60)
    kinds = [f"kind{i % 3}" for i in range(60)]
    plain = metrics.summarize_image_metrics(labels, scores, kinds)
    order = rng.permutation(60)
    shuffled = metrics.summarize_image_metrics(labels[order], scores[order], [kinds[i] for i in order])
    assert shuffled == plain
    stretched = metrics.summarize_image_metrics(labels, np.exp(5 * scores) - 7, kinds)
    assert stretched["f1_max"].pop("threshold") != plain["f1_max"].pop("threshold")
    assert stretched == plain


def test_auroc_by_kind_takes_each_kind_against_all_good():
    labels, scores = [0, 0, 1, 1, 1], [0.2, 0.4, 0.3, 0.9, 0.1]
    by_kind = metrics.auroc_by_kind(labels, scores, ["good", "good", "dent", "dent", "crack"])
    assert {kind: metric.value for kind, metric in by_kind.items()} == {"crack": 0.0, "dent": 0.75}
    alone = metrics.auroc_by_kind([1, 1], [0.1, 0.2], ["dent", "crack"])
    assert alone["dent"] == metrics.Metric(None, "no normal images")


# --- intervals --------------------------------------------------------------------------------------------------------


def test_bootstrap_interval_contains_the_estimate_and_narrows():
    rng = np.random.default_rng(0)
    widths = []
    for n in (20, 200, 2000):
        labels = np.repeat([0, 1], n // 2)
        scores = rng.normal(labels, 1.0)
        interval = metrics.bootstrap_auroc(labels, scores, np.random.default_rng(1))
        assert interval.low < metrics.image_auroc(labels, scores).value < interval.high
        widths.append(interval.high - interval.low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_bootstrap_equals_resampling_by_hand(monkeypatch):
    labels, scores = random_labels(np.random.default_rng(5), 30)
    groups = scores[labels == 0], scores[labels == 1]
    rng = np.random.default_rng(6)
    areas = []
    for _ in range(3000):
        normal, anomalous = (rng.choice(group, group.size) for group in groups)
        areas.append(auroc_by_pairs(np.repeat([0, 1], [normal.size, anomalous.size]), [*normal, *anomalous]))
    monkeypatch.setattr(metrics, "_BOOTSTRAP_CELLS", 1000)  # several chunks
    interval = metrics.bootstrap_auroc(labels, scores, np.random.default_rng(7), resamples=3000)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(areas, [0.025, 0.975])), abs=0.02)


def test_bootstrap_is_seeded():
    labels, scores = random_labels(np.random.default_rng(5), 50, levels=1000)
    draws = [metrics.bootstrap_auroc(labels, scores, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_rate_interval_inverts_the_binomial_tails():
    interval = metrics.rate_interval(0, 10)
    assert (interval.low, interval.high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 10)))
    interval = metrics.rate_interval(10, 10)
    assert (interval.low, interval.high) == (pytest.approx(0.025 ** (1 / 10)), 1.0)
    interval = metrics.rate_interval(1, 2)  # P(X >= 1) = 1 - (1 - p)^2 = 0.025, and symmetric
    assert (interval.low, interval.high) == pytest.approx((1 - 0.975**0.5, 0.975**0.5))
    assert metrics.rate_interval(0, 0).reason == "no trials"


# --- pixels -----------------------------------------------------------------------------------------------------------


def test_pixel_metrics_equal_hand_computed_values():
    mask = np.array([[1, 1, 0, 0], [0, 0, 0, 1]])
    anomaly_map = np.array([[1.0, 0.2, 0.6, 0.0], [0.2, 0.0, 0.0, 0.6]])
    # pairs of 3 anomalous (1, 0.2, 0.6) and 5 normal (0.6, 0.2, 0, 0, 0): 5 + 3.5 + 4.5 of 15
    assert metrics.pixel_auroc([mask], [anomaly_map]).value == pytest.approx(13 / 15)
    # at 0.6: tp 2, fp 1, fn 1: 2/3; at 0.2: tp 3, fp 2: 3/4
    best = metrics.pixel_f1_max([mask], [anomaly_map])
    assert (best.value, best.threshold) == (pytest.approx(3 / 4), pytest.approx(0.2))
    # curve (fpr, overlap): (0, 0) (0, 1/4) (1/5, 3/4) (2/5, 1) (1, 1); at 0.3 it is 7/8
    area = 0.2 * (1 / 4 + 3 / 4) / 2 + 0.1 * (3 / 4 + 7 / 8) / 2
    assert metrics.aupro([mask], [anomaly_map]).value == pytest.approx(area / 0.3)
    assert metrics.aupro([mask], [anomaly_map], max_fpr=0.2).value == pytest.approx(0.5)  # a point at the limit
    assert metrics.aupro([mask], [anomaly_map], max_fpr=1).value == pytest.approx(0.1 + 0.175 + 0.6)


def test_regions_touch_at_corners_and_weigh_alike():
    mask = np.zeros((8, 8), dtype=bool)
    mask[0, 0] = mask[1, 1] = True  # one region, by the corner
    mask[4:8, 4:8] = True
    accumulator = PixelMetrics()
    accumulator.update(np.where(np.arange(8) < 2, 1.0, 0.0) * mask, mask)
    assert accumulator.regions == 2
    # the small region is found without a false alarm, the large one only with all pixels: the line from 1/2 to 1
    assert accumulator.aupro(1.0).value == pytest.approx(0.75)


@pytest.mark.parametrize("seed", range(10))
def test_pixel_metrics_equal_brute_force(seed):
    masks, maps = random_maps(np.random.default_rng(seed))
    labels = np.concatenate([mask.ravel() for mask in masks]).astype(int)
    scores = np.concatenate([anomaly_map.ravel() for anomaly_map in maps])
    assert metrics.pixel_auroc(masks, maps).value == pytest.approx(auroc_by_pairs(labels, scores), abs=1e-12)
    value, threshold = f1_by_loop(labels, scores)
    best = metrics.pixel_f1_max(masks, maps)
    assert (best.value, best.threshold) == (pytest.approx(value, abs=1e-12), pytest.approx(threshold, abs=1e-12))
    for limit in (0.05, 0.3, 1.0):
        expected = aupro_by_loop(masks, maps, limit)
        assert metrics.aupro(masks, maps, limit).value == pytest.approx(expected, abs=1e-12)


def test_pixel_metrics_of_a_perfect_a_constant_and_an_inverted_map():
    mask = np.zeros((10, 10), dtype=bool)
    mask[2:4, 2:4] = mask[6:9, 6:8] = True
    for anomaly_map, area, f1, overlap in ((mask, 1, 1, 1), (mask * 0, 0.5, 20 / 110, 0.15), (~mask, 0, 20 / 110, 0)):
        summary = metrics.summarize_pixel_metrics([mask], [anomaly_map.astype(float)])
        assert summary["pixel_auroc"]["value"] == area
        assert summary["pixel_f1_max"]["value"] == pytest.approx(f1)
        assert summary["aupro"]["value"] == pytest.approx(overlap, abs=1e-12)


def test_pixel_metrics_follow_ranks_alone_and_not_the_order():
    masks, maps = random_maps(np.random.default_rng(1))
    masks[3][:] = False
    plain = metrics.summarize_pixel_metrics(masks, maps)
    backwards = metrics.summarize_pixel_metrics([None, *masks[2::-1]], maps[::-1])
    squared = metrics.summarize_pixel_metrics(masks, [anomaly_map**2 for anomaly_map in maps])
    scaled = metrics.summarize_pixel_metrics(masks, [7 * anomaly_map - 2 for anomaly_map in maps], bounds=(-2, 5))
    for other in (backwards, squared, scaled):
        assert other["pixels"] == plain["pixels"]
        for name in ("pixel_auroc", "pixel_f1_max", "aupro"):
            assert other[name]["value"] == pytest.approx(plain[name]["value"], abs=1e-12)
    assert scaled["pixel_f1_max"]["threshold"] == pytest.approx(7 * plain["pixel_f1_max"]["threshold"] - 2)


def test_quantising_moves_fine_maps_by_little():
    rng = np.random.default_rng(2)
    mask = np.zeros((40, 50), dtype=bool)
    mask[5:12, 8:20] = mask[30:33, 30:32] = True
    fine = rng.random(mask.shape) * 0.7 + 0.3 * mask
    assert metrics.pixel_auroc([mask], [fine]).value == pytest.approx(
        auroc_by_pairs(mask.ravel(), fine.ravel()), abs=1e-4
    )
    assert metrics.aupro([mask], [fine]).value == pytest.approx(aupro_by_loop([mask], [fine], 0.3), abs=1e-4)
    assert metrics.quantize([-0.1, 0.0, 0.4 / TOP, 0.6 / TOP, 1.0, 1.1]).tolist() == [0, 0, 0, 1, TOP, TOP]


def test_memory_does_not_grow_with_the_images():
    rng = np.random.default_rng(0)
    masks, maps = rng.random((4, 64, 64)) < 0.3, rng.random((4, 64, 64))
    accumulator = PixelMetrics()

    def held_after(count):
        for i in range(count):
            accumulator.update(maps[i % 4], masks[i % 4])
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first = held_after(20)
        assert held_after(300) - first < 20_000
    finally:
        tracemalloc.stop()


# --- undefined, and wrong input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "reason"),
    [([0, 0], "no anomalous images"), ([1, 1], "no normal images"), ([], "no normal and no anomalous images")],
)
def test_one_class_gives_null_and_a_reason(labels, reason):
    summary = metrics.summarize_image_metrics(labels, [0.5] * len(labels), ["x"] * len(labels))
    for name in ("image_auroc", "average_precision", "f1_max"):
        assert summary[name]["value"] is None
        assert summary[name]["reason"] == reason
    assert summary["image_auroc"]["interval_95"]["low"] is None
    assert "confusion" not in summary["f1_max"]
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize(
    ("masks", "reason"),
    [
        ([None], "no anomalous pixels"),
        ([np.zeros((2, 2))], "no anomalous pixels"),
        ([np.ones((2, 2))], "no normal pixels"),
        ([], "no normal and no anomalous pixels"),
    ],
)
def test_masks_of_one_kind_give_null_and_a_reason(masks, reason):
    summary = metrics.summarize_pixel_metrics(masks, [np.full((2, 2), 0.5)] * len(masks))
    for name in ("pixel_auroc", "pixel_f1_max", "aupro"):
        assert summary[name]["value"] is None
        assert summary[name]["reason"] == reason
    json.dumps(summary, allow_nan=False)


def test_summaries_survive_json():
    labels, scores = random_labels(np.random.default_rng(0), 20)
    masks, maps = random_maps(np.random.default_rng(0))
    for summary in (
        metrics.summarize_image_metrics(labels, scores, ["dent"] * 20),
        metrics.summarize_pixel_metrics(masks, maps),
    ):
        assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert metrics.summarize_image_metrics(labels, scores)["f1_max"].keys() == {"value", "threshold", "confusion"}


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [0.1, np.nan], "scores: 1 of 2 .* index 1"),
        ([0, 1], [np.inf, 0.1], "scores: 1 of 2 .* index 0"),
        ([0, 2], [0.1, 0.2], "labels: only 0"),
        (["good", "bad"], [0.1, 0.2], "labels: only 0"),
        ([0, 1, 1], [0.1, 0.2], "labels: shape"),
    ],
)
def test_wrong_labels_and_scores_are_named(labels, scores, message):
    with pytest.raises(UserError, match=message):
        metrics.summarize_image_metrics(labels, scores)


@pytest.mark.parametrize(
    ("anomaly_map", "mask", "message"),
    [
        (np.array([[0.5, np.nan]]), None, "anomaly map 1: holds NaN"),
        (np.array([[0.5, 1.2]]), None, "anomaly map 1: values from 0.5 to 1.2"),
        (np.array([0.5]), None, "anomaly map 1: shape"),
        (np.array([[0.5, 0.6]]), np.ones((2, 1)), "mask 1: shape"),
    ],
)
def test_a_wrong_map_or_mask_is_named_and_not_added(anomaly_map, mask, message):
    accumulator = PixelMetrics()
    accumulator.update(np.array([[0.1, 0.9]]), np.array([[0, 1]]))
    before = accumulator.compute()
    with pytest.raises(UserError, match=message):
        accumulator.update(anomaly_map, mask)
    assert accumulator.compute() == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.auroc_by_kind([0, 1], [0.1, 0.2], ["dent"]), "kinds: 1 names for 2"),
        (lambda: metrics.bootstrap_auroc([0, 1], [0.1, 0.2], np.random.default_rng(0), resamples=0), "resamples: 0"),
        (lambda: metrics.bootstrap_auroc([0, 1], [0.1, 0.2], np.random.default_rng(0), level=95), "level: 95"),
        (lambda: metrics.confusion_at([0, 1], [0.1, 0.2], float("nan")), "threshold: nan"),
        (lambda: metrics.rate_interval(3, 2), "successes: 3 of 2"),
        (lambda: metrics.aupro([], [], max_fpr=0), "max_fpr: 0"),
        (lambda: metrics.aupro([None], []), "masks: 1 for 0 maps"),
        (lambda: PixelMetrics(bounds=(1, 1)), "bounds: "),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
