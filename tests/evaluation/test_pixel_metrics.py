"""Pixel metrics against hand-computed values, brute force, and the undefined cases."""

import json
import pickle

import numpy as np
import pytest

from hta.errors import UserError
from hta.evaluation.pixel_metrics import LEVELS, PixelMetrics, quantize
from tests.metric_references import aupro_by_loop, auroc_by_pairs, f1_by_loop, regions_by_flood

TOP = LEVELS - 1


def accumulated(masks, maps):
    metrics = PixelMetrics()
    for mask, anomaly_map in zip(masks, maps, strict=True):
        metrics.update(anomaly_map, mask)
    return metrics


def random_maps(seed):
    """Masks with several regions of different sizes, maps of few levels (ties) that a 16-bit image holds exactly."""
    rng, sizes = np.random.default_rng(seed), [(9, 7), (6, 11), (8, 8), (5, 13)]
    masks = [rng.random(size) < 0.15 for size in sizes]
    masks[0][0, 0] = True
    return masks, [rng.integers(0, 9, size) * (TOP // 9) / TOP for size in sizes]


def test_pixel_metrics_equal_hand_computed_values():
    mask = np.array([[1, 1, 0, 0], [0, 0, 0, 1]])
    anomaly_map = np.array([[1.0, 0.2, 0.6, 0.0], [0.2, 0.0, 0.0, 0.6]])
    metrics = accumulated([mask], [anomaly_map])
    # pairs of 3 anomalous (1, 0.2, 0.6) and 5 normal (0.6, 0.2, 0, 0, 0): 5 + 3.5 + 4.5 of 15
    assert metrics.auroc()["value"] == pytest.approx(13 / 15)
    # at 0.6: tp 2, fp 1, fn 1: 2/3; at 0.2: tp 3, fp 2: 3/4
    assert metrics.f1_max() == {"value": pytest.approx(3 / 4), "threshold": pytest.approx(0.2)}
    # curve (fpr, overlap): (0, 0) (0, 1/4) (1/5, 3/4) (2/5, 1) (1, 1); at 0.3 it is 7/8
    area = 0.2 * (1 / 4 + 3 / 4) / 2 + 0.1 * (3 / 4 + 7 / 8) / 2
    assert metrics.aupro()["value"] == pytest.approx(area / 0.3)
    assert metrics.aupro(0.2)["value"] == pytest.approx(0.5)  # a point at the limit
    assert metrics.aupro(1)["value"] == pytest.approx(0.1 + 0.175 + 0.6)


@pytest.mark.parametrize("seed", range(10))
def test_pixel_metrics_equal_brute_force(seed):
    masks, maps = random_maps(seed)
    metrics = accumulated(masks, maps)
    labels = np.concatenate([mask.ravel() for mask in masks]).astype(int)
    scores = np.concatenate([anomaly_map.ravel() for anomaly_map in maps])
    assert metrics.auroc()["value"] == pytest.approx(auroc_by_pairs(labels, scores), abs=1e-12)
    value, threshold = f1_by_loop(labels, scores)
    assert metrics.f1_max() == pytest.approx({"value": value, "threshold": threshold}, abs=1e-12)
    for limit in (0.05, 0.3, 1.0):
        assert metrics.aupro(limit)["value"] == pytest.approx(aupro_by_loop(masks, maps, limit), abs=1e-12)
    summary = metrics.compute()
    assert summary["pixels"]["regions"] == sum(len(regions_by_flood(mask)) for mask in masks)
    assert json.loads(json.dumps(summary)) == summary


def test_pixel_metrics_of_a_perfect_a_constant_and_an_inverted_map():
    mask = np.zeros((10, 10), dtype=bool)
    mask[2:4, 2:4] = mask[6:9, 6:8] = True
    for anomaly_map, area, f1, overlap in ((mask, 1, 1, 1), (mask * 0, 0.5, 20 / 110, 0.15), (~mask, 0, 20 / 110, 0)):
        summary = accumulated([mask], [anomaly_map.astype(float)]).compute()
        assert summary["pixel_auroc"]["value"] == area
        assert summary["pixel_f1_max"]["value"] == pytest.approx(f1)
        assert summary["aupro"]["value"] == pytest.approx(overlap, abs=1e-12)


def test_quantising_moves_fine_maps_by_little():
    rng = np.random.default_rng(2)
    mask = np.zeros((40, 50), dtype=bool)
    mask[5:12, 8:20] = mask[30:33, 30:32] = True
    fine = rng.random(mask.shape) * 0.7 + 0.3 * mask
    metrics = accumulated([mask], [fine])
    assert metrics.auroc()["value"] == pytest.approx(auroc_by_pairs(mask.ravel(), fine.ravel()), abs=1e-4)
    assert metrics.aupro()["value"] == pytest.approx(aupro_by_loop([mask], [fine], 0.3), abs=1e-4)
    assert quantize([-0.1, 0.0, 0.4 / TOP, 0.6 / TOP, 1.0, 1.1]).tolist() == [0, 0, 0, 1, TOP, TOP]


def test_memory_does_not_grow_with_the_images():
    masks, maps = random_maps(0)
    few, many = (len(pickle.dumps(accumulated(masks * times, maps * times))) for times in (1, 50))
    assert many - few < 100  # 196 images


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
    summary = accumulated(masks, [np.full((2, 2), 0.5)] * len(masks)).compute()
    for name in ("pixel_auroc", "pixel_f1_max", "aupro"):
        assert (summary[name]["value"], summary[name]["reason"]) == (None, reason)
    json.dumps(summary, allow_nan=False)


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
    accumulator = accumulated([np.array([[0, 1]])], [np.array([[0.1, 0.9]])])
    before = accumulator.compute()
    with pytest.raises(UserError, match=message):
        accumulator.update(anomaly_map, mask)
    assert accumulator.compute() == before
