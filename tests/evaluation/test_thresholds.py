"""Reject or pass, and what it costs: thresholds by hand, and against known binomial intervals."""

import json

import numpy as np
import pytest

from hta.errors import UserError
from hta.evaluation.metrics import confusion
from hta.evaluation.thresholds import (
    Threshold,
    check_enough,
    conformal_limit,
    decide,
    decision_text,
    images_needed,
    make_threshold,
    pixel_false_alarms,
    proportion,
    summarize_decision,
)

LABELS = [1, 1, 1, 0, 0, 0, 0, 0]
SCORES = np.array([0.9, 0.5, 0.6, 0.4, 0.7, 0.5, 0.2, 0.50001])
AT_HALF = Threshold(0.5, None, "calibrated", 0.05, 0.8)
NOTHING = {"value": None, "interval_95": None}


# --- making thresholds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target_fpr", "of_scores", "of_pixels"), [(0.25, 0.45, 0.4), (0.5, 0.4, 0.3), (0.1, 0.48, 0.46)]
)
def test_a_calibrated_threshold_is_a_quantile(target_fpr, of_scores, of_pixels):
    scores, peaks = np.array([0.4, 0.3, 0.5, 0.35, 0.45]), np.array([0.3, 0.1, 0.5, 0.2, 0.4])
    threshold = make_threshold(scores, peaks, target_fpr, "calibrated")
    assert threshold.threshold == pytest.approx(of_scores, abs=1e-12)
    assert threshold.pixel_threshold == pytest.approx(of_pixels, abs=1e-12)
    assert (threshold.source, threshold.target_fpr, threshold.reason) == ("calibrated", target_fpr, None)
    assert threshold.decided_by == "score"
    by_map = make_threshold(scores, peaks, target_fpr, "calibrated", by_map=True)
    assert (by_map.threshold, by_map.decided_by) == (threshold.threshold, "map")
    given = make_threshold(scores, peaks, target_fpr, "calibrated", given=0.7, by_map=True)
    assert given == Threshold(0.7, None, "given", None, threshold.pixel_threshold, "score")


@pytest.mark.parametrize("source", ["calibrated", "good images"])
def test_minmax_has_no_threshold_unless_maps_decide(source):
    threshold = make_threshold(None, np.arange(19.0), 0.25, source)
    assert (threshold.threshold, threshold.source, threshold.target_fpr) == (None, None, None)
    assert "depend on the test set" in threshold.reason
    assert "--threshold" in threshold.reason
    assert threshold.pixel_threshold == {"calibrated": 13.5, "good images": 14}[source]
    by_map = make_threshold(None, np.arange(19.0), 0.25, source, by_map=True)
    assert by_map == Threshold(None, None, source, 0.25, threshold.pixel_threshold, "map")


@pytest.mark.parametrize(("target_fpr", "rejected"), [(0.05, 10), (0.5, 100), (0.9, 180), (0.01, 2)])
def test_it_rejects_the_wanted_share_of_the_views(target_fpr, rejected):
    scores, peaks = np.random.default_rng(0).random((2, 200))
    threshold = make_threshold(scores, peaks, target_fpr, "calibrated")
    assert decide(scores, threshold).sum() == (peaks > threshold.pixel_threshold).sum() == rejected


def test_a_conformal_limit_is_the_value_of_its_rank():
    values = np.arange(19, 0, -1.0)
    assert images_needed(0.05) == 19
    assert conformal_limit(values, 0.05) == 19  # the 20 * 0.95 = 19th of 19
    assert conformal_limit(values, 0.1) == 18
    assert conformal_limit(np.arange(1, 40.0), 0.05) == 38  # the 40 * 0.95 = 38th of 39
    assert [images_needed(target) for target in (1 - 1e-12, 0.5, 0.25, 0.1, 0.01)] == [1, 1, 3, 9, 99]
    assert conformal_limit(values, 1 - 1e-12) == 1
    assert make_threshold(values, None, 0.1, "good images") == Threshold(18, None, "good images", 0.1)


@pytest.mark.parametrize(("count", "target"), [(19, 0.05), (30, 0.05), (30, 0.2), (9, 0.1)])
def test_further_values_exceed_the_limit_as_rarely_as_promised(count, target):
    draws = np.random.default_rng(0).random((20_000, count + 1))
    above = np.mean([draw[-1] > conformal_limit(draw[:-1], target) for draw in draws])
    assert target - 1 / (count + 1) - 0.006 < above < target + 0.006


@pytest.mark.parametrize(
    ("count", "target", "source", "words"),
    [
        (18, 0.05, "good images", "18 good images, but --target_fpr 0.05 needs at least 19"),
        (1, 0.1, "good images", "1 good image, but --target_fpr 0.1 needs at least 9"),
        (200, 0.0049, "calibrated", "--target_fpr 0.0049: 200 views .* rate below 0.005; .* 204 or more good images"),
    ],
)
def test_a_target_beyond_the_images_is_refused(count, target, source, words):
    with pytest.raises(UserError, match=words):
        check_enough(count, target, source)
    check_enough(images_needed(target), target, source)


# --- deciding ---------------------------------------------------------------------------------------------------------


def test_an_image_is_rejected_above_the_threshold_and_not_at_it():
    rejected = decide(SCORES, AT_HALF)
    assert rejected.dtype == bool
    assert rejected.tolist() == [True, False, True, False, True, False, False, True]
    by_map = Threshold(None, None, "calibrated", 0.05, 0.8, "map")
    assert decide(SCORES[:3], by_map, np.array([0.8, 0.81, 0.1])).tolist() == [False, True, False]


def test_without_a_threshold_nothing_is_decided():
    threshold = Threshold(None, "because", pixel_threshold=0.8)
    assert decide(SCORES, threshold) is None
    summary = summarize_decision(LABELS, None, threshold)
    assert summary == {
        "threshold": None,
        "reason": "because",
        "source": None,
        "target_fpr": None,
        "pixel_threshold": 0.8,
        "decided_by": "score",
        "rejected": None,
        "confusion": None,
        "false_positive_rate": NOTHING,
        "recall": NOTHING,
    }
    assert decision_text(summary) == "no decision: because"


def test_the_confusion_matrix_by_hand():
    counts = {"true_positives": 2, "false_positives": 2, "true_negatives": 3, "false_negatives": 1}
    assert confusion(np.array(LABELS), decide(SCORES, AT_HALF)) == counts
    summary = summarize_decision(LABELS, decide(SCORES, AT_HALF), AT_HALF)
    assert summary["confusion"] == counts
    assert list(summary["confusion"]) == list(counts)
    assert summary["rejected"] == 4
    assert summary["false_positive_rate"]["value"] == 2 / 5
    assert summary["recall"]["value"] == 2 / 3
    assert summary["false_positive_rate"]["interval_95"] == pytest.approx([0.0527, 0.8534], abs=1e-4)
    assert (summary["threshold"], summary["source"], summary["target_fpr"]) == (0.5, "calibrated", 0.05)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


@pytest.mark.parametrize("labels", [[None] * 8, [None, *LABELS[1:]]])
def test_without_all_labels_only_the_rejected_are_counted(labels):
    summary = summarize_decision(labels, decide(SCORES, AT_HALF), AT_HALF)
    assert summary["rejected"] == 4
    assert summary["confusion"] is None
    assert summary["false_positive_rate"] == summary["recall"] == NOTHING


def test_one_kind_of_image_leaves_the_other_rate_undefined():
    summary = summarize_decision([0, 0], np.array([False, True]), AT_HALF)
    assert summary["recall"] == NOTHING
    assert summary["false_positive_rate"]["value"] == 0.5


def test_a_normal_image_with_one_pixel_above_the_pixel_threshold_is_a_false_alarm_of_the_maps():
    peaks = np.array([0.9, 0.1, 0.9, 0.8, 0.81, 0.2, 0.79, 1.0], dtype=np.float32)
    alarms = pixel_false_alarms(LABELS, peaks, float(np.float32(0.8)))
    assert alarms == proportion(2, 5)  # 0.81 and 1, not at 0.8
    assert pixel_false_alarms([0, 0], peaks[:2], 0.05)["value"] == 1


def test_a_decision_in_words():
    by_score = summarize_decision(LABELS, decide(SCORES, AT_HALF), AT_HALF) | {"pixel_false_alarms": proportion(1, 3)}
    lines = decision_text(by_score).splitlines()
    assert lines[0] == "4 rejected: anomaly score above 0.500000 (calibrated, for 5 % false alarms)"
    assert lines[1] == "  false alarms: 40.0% (95 % interval 5.3% to 85.3%)"
    assert lines[3] == "  false alarms of the maps: 33.3% (95 % interval 0.8% to 90.6%)"
    assert len(lines) == 4
    assert "of the maps" not in decision_text(by_score | {"pixel_false_alarms": NOTHING})
    by_map = decision_text(by_score | {"decided_by": "map", "source": "given", "target_fpr": None})
    assert by_map.splitlines()[0] == "4 rejected: anomaly map anywhere above 0.800000 (given)"
    assert by_map.count("false alarms: ") == 1
    assert "of the maps" not in by_map  # they would be the same


@pytest.mark.parametrize(
    ("labels", "peaks", "pixel_threshold"),
    [([None, 0], np.ones(2), 0.5), ([1, 1], np.ones(2), 0.5), ([0, 0], None, 0.5), ([0, 0], np.ones(2), None)],
)
def test_without_labels_normal_images_maps_or_pixel_threshold_no_false_alarms_of_the_maps(
    labels, peaks, pixel_threshold
):
    assert pixel_false_alarms(labels, peaks, pixel_threshold) == NOTHING


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
    assert proportion(0, 0) == NOTHING
