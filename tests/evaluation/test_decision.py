"""Reject or pass, and what it costs: by hand, and against known binomial intervals."""

import json

import numpy as np
import pytest

from hta.evaluation.thresholds import (
    Threshold,
    confusion,
    decide,
    pixel_false_alarms,
    proportion,
    score_text,
    summarize_decision,
)

LABELS = [1, 1, 1, 0, 0, 0, 0, 0]
SCORES = np.array([0.9, 0.5, 0.6, 0.4, 0.7, 0.5, 0.2, 0.50001])
AT_HALF = Threshold(0.5, None, "calibrated", 0.05, 0.8)


def test_an_image_is_rejected_above_the_threshold_and_not_at_it():
    rejected = decide(SCORES, AT_HALF)
    assert rejected.dtype == bool
    assert rejected.tolist() == [True, False, True, False, True, False, False, True]


def test_where_the_maps_decide_the_scores_do_not():
    by_map = Threshold(0.5, None, "calibrated", 0.05, 0.8, "map")
    assert decide(SCORES[:3], by_map, np.array([0.8, 0.81, 0.1])).tolist() == [False, True, False]
    without_score = Threshold(None, "because", "calibrated", 0.05, 0.8, "map")
    assert decide(SCORES[:2], without_score, np.array([0.9, 0.1])).tolist() == [True, False]


def test_without_a_threshold_nothing_is_decided():
    assert decide(SCORES, Threshold(None, "because")) is None
    summary = summarize_decision(LABELS, None, Threshold(None, "because", pixel_threshold=0.8))
    nothing = {"value": None, "interval_95": None}
    assert summary == {
        "threshold": None,
        "reason": "because",
        "source": None,
        "target_fpr": None,
        "pixel_threshold": 0.8,
        "decided_by": "score",
        "rejected": None,
        "confusion": None,
        "false_positive_rate": nothing,
        "recall": nothing,
    }


def test_the_confusion_matrix_by_hand():
    counts = {"true_positives": 2, "false_positives": 2, "true_negatives": 3, "false_negatives": 1}
    assert confusion(np.array(LABELS), decide(SCORES, AT_HALF)) == counts
    summary = summarize_decision(LABELS, decide(SCORES, AT_HALF), AT_HALF)
    assert summary["confusion"] == counts
    assert summary["rejected"] == 4
    assert summary["false_positive_rate"]["value"] == 2 / 5
    assert summary["recall"]["value"] == 2 / 3
    assert summary["false_positive_rate"]["interval_95"] == pytest.approx([0.0527, 0.8534], abs=1e-4)
    assert (summary["threshold"], summary["source"], summary["target_fpr"]) == (0.5, "calibrated", 0.05)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


@pytest.mark.parametrize("labels", [[None] * 8, [None, *LABELS[1:]]])
def test_without_all_labels_it_is_only_counted_who_is_rejected(labels):
    summary = summarize_decision(labels, decide(SCORES, AT_HALF), AT_HALF)
    assert summary["rejected"] == 4
    assert summary["confusion"] is None
    assert summary["false_positive_rate"] == summary["recall"] == {"value": None, "interval_95": None}


def test_one_kind_of_image_leaves_the_other_rate_undefined():
    summary = summarize_decision([0, 0], np.array([False, True]), AT_HALF)
    assert summary["recall"] == {"value": None, "interval_95": None}
    assert summary["false_positive_rate"]["value"] == 0.5


def test_a_normal_image_with_one_pixel_above_the_pixel_threshold_is_a_false_alarm_of_the_maps():
    peaks = np.array([0.9, 0.1, 0.9, 0.8, 0.81, 0.2, 0.79, 1.0], dtype=np.float32)
    alarms = pixel_false_alarms(LABELS, peaks, float(np.float32(0.8)))
    assert alarms == proportion(2, 5)  # 0.81 and 1, not at 0.8
    assert pixel_false_alarms([0, 0], peaks[:2], 0.05)["value"] == 1


@pytest.mark.parametrize(
    ("labels", "peaks", "pixel_threshold"),
    [
        ([None, 0], np.ones(2), 0.5),
        ([1, 1], np.ones(2), 0.5),
        ([0, 0], None, 0.5),
        ([0, 0], np.ones(2), None),
    ],
)
def test_without_labels_normal_images_maps_or_pixel_threshold_no_false_alarms_of_the_maps(
    labels, peaks, pixel_threshold
):
    assert pixel_false_alarms(labels, peaks, pixel_threshold) == {"value": None, "interval_95": None}


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 150, 0.0, 1 - 0.025 ** (1 / 150)),  # 0.0243
        (10, 10, 0.025 ** (1 / 10), 1.0),
        (5, 10, 0.1871, 0.8129),
        (1, 20, 0.0013, 0.2487),
        (81, 263, 0.2527, 0.3676),
    ],
)
def test_exact_binomial_intervals(successes, trials, low, high):
    share = proportion(successes, trials)
    assert share["value"] == successes / trials
    assert share["interval_95"] == pytest.approx([low, high], abs=1e-4)


def test_the_interval_of_no_false_alarm_in_150():
    assert proportion(0, 150)["interval_95"][1] == pytest.approx(0.0243, abs=5e-5)


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (0.5, "0.500000"),
        (12.3456789, "12.345679"),
        (-0.25, "-0.250000"),
        (0.0, "0.000000"),
        (1.0, "1.000000"),
        (1.00001, "1.000010"),
        (0.9998, "0.999800"),
        (1 - 3.2e-9, "1 - 3.20e-09"),
        (1 - 5e-5, "1 - 5.00e-05"),
        (np.float64(4.5e-7), "4.50e-07"),
        (-2e-5, "-2.00e-05"),
    ],
)
def test_scores_that_nearly_all_or_no_votes_give_can_be_told_apart(score, text):
    assert score_text(score) == text


def test_a_share_of_nothing_is_undefined():
    assert proportion(0, 0) == {"value": None, "interval_95": None}
