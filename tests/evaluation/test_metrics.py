"""Metrics against hand-computed values, brute force, and the undefined cases."""

import json

import numpy as np
import pytest

from hta.errors import UserError
from hta.evaluation import metrics
from tests.metric_references import auroc_by_pairs, f1_by_loop


def random_labels(seed, n, levels=8):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    labels[:2] = 0, 1
    return labels, (rng.integers(0, levels, n) + labels) / levels


def test_image_metrics_equal_hand_computed_values_with_ties():
    labels, scores = [0, 0, 1, 1, 1], [0.1, 0.5, 0.5, 0.9, 0.3]
    summary = metrics.summarize_image_metrics(labels, scores)
    # six pairs: 0.5 beats 0.1, ties 0.5; 0.9 beats both; 0.3 beats 0.1
    assert metrics.image_auroc(labels, scores)["value"] == pytest.approx(4.5 / 6)
    # recall 1/3 at precision 1, 2/3 at 2/3 (the tie enters together), 1 at 3/4
    assert summary["average_precision"]["value"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    counts = {"true_positives": 3, "false_positives": 1, "false_negatives": 0, "true_negatives": 1}
    assert summary["f1_max"] == {"value": pytest.approx(6 / 7), "threshold": 0.3, "confusion": counts}
    assert list(summary["f1_max"]["confusion"]) == list(counts)
    assert metrics.metric_text(summary["image_auroc"]).startswith("0.750 (95 % interval 0.")
    assert metrics.metric_text(summary["f1_max"]) == "0.857 (at threshold 0.300000)"
    assert metrics.metric_text({"value": 0.25, "max_fpr": 0.3}) == "0.250 (false positive rate up to 0.3)"
    assert metrics.metric_text(metrics.undefined("no labels")) == "not defined, no labels"
    # Of equally good thresholds the highest; at 0.9: tp 1, fn 1, F1 2/3; at 0.1: tp 2, fp 2, F1 2/3
    best = metrics.summarize_image_metrics([1, 0, 0, 1], [0.9, 0.5, 0.4, 0.1])["f1_max"]
    assert (best["value"], best["threshold"]) == (pytest.approx(2 / 3), 0.9)


@pytest.mark.parametrize("seed", range(10))
def test_image_metrics_equal_brute_force(seed):
    labels, scores = random_labels(seed, 40)
    summary = metrics.summarize_image_metrics(labels, scores, ["dent"] * 40)
    assert summary["image_auroc"]["value"] == pytest.approx(auroc_by_pairs(labels, scores), abs=1e-12)
    value, threshold = f1_by_loop(labels, scores)
    best = summary["f1_max"]
    assert (best["value"], best["threshold"]) == (pytest.approx(value, abs=1e-12), threshold)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_image_metrics_follow_ranks_alone_and_not_the_order():
    labels, scores = random_labels(3, 60)
    kinds = [f"kind{i % 3}" for i in range(60)]
    plain = metrics.summarize_image_metrics(labels, scores, kinds)
    order = np.random.default_rng(4).permutation(60)
    shuffled = metrics.summarize_image_metrics(labels[order], scores[order], [kinds[i] for i in order])
    assert shuffled == plain
    stretched = metrics.summarize_image_metrics(labels, np.exp(5 * scores) - 7, kinds)
    assert stretched["f1_max"].pop("threshold") != plain["f1_max"].pop("threshold")
    assert stretched == plain


def test_auroc_by_kind_takes_each_kind_against_all_good():
    labels, scores = [0, 0, 1, 1, 1], [0.2, 0.4, 0.3, 0.9, 0.1]
    kinds = ["good", "good", "dent", "dent", "crack"]
    by_kind = metrics.summarize_image_metrics(labels, scores, kinds)["auroc_by_kind"]
    assert {kind: metric["value"] for kind, metric in by_kind.items()} == {"crack": 0.0, "dent": 0.75}
    alone = metrics.summarize_image_metrics([1, 1], [0.1, 0.2], ["dent", "crack"])["auroc_by_kind"]
    assert alone["dent"] == {"value": None, "reason": "no normal images"}


def test_bootstrap_interval_is_seeded_contains_the_estimate_and_narrows():
    rng, widths = np.random.default_rng(0), []
    for n in (20, 200, 2000):
        labels = np.repeat([0, 1], n // 2)
        scores = rng.normal(labels, 1.0)
        interval, again, other = (metrics.bootstrap_auroc(labels, scores, np.random.default_rng(i)) for i in (1, 1, 2))
        assert interval["low"] < metrics.image_auroc(labels, scores)["value"] < interval["high"]
        assert interval == again != other
        widths.append(interval["high"] - interval["low"])
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_bootstrap_equals_resampling_by_hand(monkeypatch):
    labels, scores = random_labels(5, 30)
    groups = scores[labels == 0], scores[labels == 1]
    rng = np.random.default_rng(6)
    areas = []
    for _ in range(3000):
        normal, anomalous = (rng.choice(group, group.size) for group in groups)
        areas.append(auroc_by_pairs(np.repeat([0, 1], [normal.size, anomalous.size]), [*normal, *anomalous]))
    monkeypatch.setattr(metrics, "_BOOTSTRAP_CELLS", 1000)  # several chunks
    monkeypatch.setattr(metrics, "RESAMPLES", 3000)
    interval = metrics.bootstrap_auroc(labels, scores, np.random.default_rng(7))
    assert (interval["low"], interval["high"]) == pytest.approx(tuple(np.quantile(areas, [0.025, 0.975])), abs=0.02)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [([0, 0], "no anomalous images"), ([1, 1], "no normal images"), ([], "no normal and no anomalous images")],
)
def test_one_class_gives_null_and_a_reason(labels, reason):
    summary = metrics.summarize_image_metrics(labels, [0.5] * len(labels), ["x"] * len(labels))
    for name in ("image_auroc", "average_precision", "f1_max"):
        assert (summary[name]["value"], summary[name]["reason"]) == (None, reason)
    assert summary["image_auroc"]["interval_95"]["low"] is None
    assert "confusion" not in summary["f1_max"]
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize(
    ("labels", "scores", "kinds", "message"),
    [
        ([0, 1], [0.1, np.nan], None, "scores: 1 of 2 .* index 1"),
        ([0, 1], [np.inf, 0.1], None, "scores: 1 of 2 .* index 0"),
        ([0, 2], [0.1, 0.2], None, "labels: only 0"),
        (["good", "bad"], [0.1, 0.2], None, "labels: only 0"),
        ([0, 1, 1], [0.1, 0.2], None, "labels: shape"),
        ([0, 1], [0.1, 0.2], ["dent"], "kinds: 1 names for 2"),
    ],
)
def test_wrong_labels_scores_and_kinds_are_named(labels, scores, kinds, message):
    with pytest.raises(UserError, match=message):
        metrics.summarize_image_metrics(labels, scores, kinds)
