"""Reject or pass, and what it costs: thresholds by hand, and against known binomial intervals."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from hta.errors import RunError, UserError
from hta.evaluation.thresholds import (
    Threshold,
    advice,
    check_enough,
    decide,
    decision_text,
    make_threshold,
    pixel_false_alarms,
    proportion,
    summarize_decision,
)

LABELS = [1, 1, 1, 0, 0, 0, 0, 0]
SCORES = np.array([0.9, 0.5, 0.6, 0.4, 0.7, 0.5, 0.2, 0.50001])
AT_HALF = Threshold(0.5, None, "calibrated", 0.05, 0.8)
NOTHING = {"value": None, "interval_95": None}


@pytest.mark.parametrize(
    ("target_fpr", "of_scores", "of_pixels"), [(0.25, 0.45, 0.4), (0.5, 0.4, 0.3), (0.1, 0.48, 0.46)]
)
def test_a_calibrated_threshold_is_a_quantile(target_fpr, of_scores, of_pixels):
    normal = np.array([0.4, 0.3, 0.5, 0.35, 0.45]), np.array([0.3, 0.1, 0.5, 0.2, 0.4]), target_fpr, "calibrated"
    threshold = make_threshold(*normal)
    limits = threshold.threshold, threshold.pixel_threshold
    assert limits == pytest.approx((of_scores, of_pixels), abs=1e-12)
    assert threshold == Threshold(limits[0], None, "calibrated", target_fpr, limits[1], "score")
    assert make_threshold(*normal, by_map=True) == replace(threshold, decided_by="map")
    assert make_threshold(*normal, given=0.7, by_map=True) == Threshold(0.7, None, "given", None, limits[1], "score")


@pytest.mark.parametrize("source", ["calibrated", "good images"])
def test_minmax_has_no_threshold_unless_maps_decide(source):
    threshold = make_threshold(None, np.arange(19.0), 0.25, source)
    assert (threshold.threshold, threshold.source, threshold.target_fpr) == (None, None, None)
    assert "depend on the test set" in threshold.reason
    assert "--threshold" in threshold.reason
    assert threshold.pixel_threshold == {"calibrated": 13.5, "good images": 14}[source]
    by_map = make_threshold(None, np.arange(19.0), 0.25, source, by_map=True)
    assert by_map == Threshold(None, None, source, 0.25, threshold.pixel_threshold, "map")


@pytest.mark.parametrize(
    ("count", "target", "rank"),
    [(19, 0.05, 19), (19, 0.1, 18), (39, 0.05, 38), (1, 0.5, 1), (3, 0.25, 3), (99, 0.01, 99), (19, 1 - 1e-12, 1)],
)
def test_a_conformal_limit_is_the_value_of_its_rank(count, target, rank):
    values = np.arange(count, 0, -1.0)
    assert make_threshold(values, None, target, "good images") == Threshold(rank, None, "good images", target)


@pytest.mark.parametrize(("count", "target"), [(19, 0.05), (30, 0.05), (30, 0.2), (9, 0.1)])
def test_further_values_exceed_the_limit_as_rarely_as_promised(count, target):
    draws = np.random.default_rng(0).random((20_000, count + 1))
    above = [draw[-1] > make_threshold(None, draw[:-1], target, "good images").pixel_threshold for draw in draws]
    assert target - 1 / (count + 1) - 0.006 < np.mean(above) < target + 0.006


@pytest.mark.parametrize(
    ("count", "needed", "target", "source", "words"),
    [
        (18, 19, 0.05, "good images", "18 good images, but --target_fpr 0.05 needs at least 19"),
        (1, 9, 0.1, "good images", "1 good image, but --target_fpr 0.1 needs at least 9"),
        (0, 1, 1 - 1e-12, "good images", "0 good images"),
        (200, 204, 0.0049, "calibrated", "--target_fpr 0.0049: 200 views .* below 0.005; .* 204 or more good images"),
    ],
)
def test_a_target_beyond_the_images_is_refused(count, needed, target, source, words):
    for too_few in (count, needed - 1):
        with pytest.raises(UserError, match=words if too_few == count else "--target_fpr"):
            check_enough(too_few, target, source)
    check_enough(needed, target, source)


def test_an_image_is_rejected_above_the_threshold_and_not_at_it():
    rejected = decide(SCORES, AT_HALF)
    assert rejected.dtype == bool
    assert rejected.tolist() == [True, False, True, False, True, False, False, True]
    by_map = Threshold(None, None, "calibrated", 0.05, 0.8, "map")
    assert decide(SCORES[:3], by_map, np.array([0.8, 0.81, 0.1])).tolist() == [False, True, False]
    faults = [None, None, "out of focus"]  # rejected whatever its score
    assert decide(SCORES[:3], by_map, np.array([0.8, 0.81, 0.1]), faults).tolist() == [False, True, True]
    assert decide(np.zeros(3), AT_HALF, None, faults).tolist() == [False, False, True]


def test_without_a_threshold_nothing_is_decided():
    threshold = Threshold(None, "because", pixel_threshold=0.8)
    assert decide(SCORES, threshold) is None
    summary = summarize_decision(LABELS, None, threshold)
    undecided = {"rejected": None, "confusion": None, "false_positive_rate": NOTHING, "recall": NOTHING}
    assert list(summary.items()) == list((asdict(threshold) | undecided).items())
    assert decision_text(summary) == "no decision: because"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_decided(value):
    by_map = replace(AT_HALF, decided_by="map")
    for arguments in (
        ([0.1, value], AT_HALF),
        ([0.1], replace(AT_HALF, threshold=value)),
        ([0.1], by_map, [value]),
        ([0.1], replace(by_map, pixel_threshold=value), [0.1]),
    ):
        with pytest.raises(RunError, match="not finite: the model is damaged"):
            decide(*arguments)
    assert decide([value], by_map, [0.9]).tolist() == [True]  # scores decide nothing here


def test_the_confusion_matrix_by_hand():
    counts = {"true_positives": 2, "false_positives": 2, "true_negatives": 3, "false_negatives": 1}
    summary = summarize_decision(LABELS, decide(SCORES, AT_HALF), AT_HALF)
    assert list(summary["confusion"].items()) == list(counts.items())
    rates = {"false_positive_rate": proportion(2, 5), "recall": proportion(2, 3)}
    assert summary == asdict(AT_HALF) | {"rejected": 4, "confusion": counts} | rates
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_without_all_labels_only_the_rejected_are_counted():
    for labels in ([None] * 8, [None, *LABELS[1:]]):
        summary = summarize_decision(labels, decide(SCORES, AT_HALF), AT_HALF)
        assert (summary["rejected"], summary["confusion"]) == (4, None)
        assert summary["false_positive_rate"] == summary["recall"] == NOTHING
    summary = summarize_decision([0, 0], np.array([False, True]), AT_HALF)
    assert (summary["recall"], summary["false_positive_rate"]["value"]) == (NOTHING, 0.5)


def test_a_normal_image_with_one_pixel_above_the_pixel_threshold_is_a_false_alarm_of_the_maps():
    peaks = np.array([0.9, 0.1, 0.9, 0.8, 0.81, 0.2, 0.79, 1.0], dtype=np.float32)
    alarms = pixel_false_alarms(LABELS, peaks, float(np.float32(0.8)))
    assert alarms == proportion(2, 5)  # 0.81 and 1, not at 0.8
    assert pixel_false_alarms([0, 0], peaks[:2], 0.05)["value"] == 1
    # Without all labels, normal images, maps or a pixel threshold there are none.
    for undefined in (([None, 0], peaks[:2], 0.5), ([1, 1], peaks[:2], 0.5), ([0], None, 0.5), ([0], peaks[:1], None)):
        assert pixel_false_alarms(*undefined) == NOTHING


def test_a_decision_in_words():
    by_score = summarize_decision(LABELS, decide(SCORES, AT_HALF), AT_HALF) | {"pixel_false_alarms": proportion(1, 3)}
    lines = [
        "4 rejected: anomaly score above 0.500000 (calibrated, for 5 % false alarms)",
        "  false alarms: 40.0% (95 % interval 5.3% to 85.3%)",
        "  recall: 66.7% (95 % interval 9.4% to 99.2%)",
        "  false alarms of the maps: 33.3% (95 % interval 0.8% to 90.6%)",
        "  40 % of the normal images were rejected, not 5 %: try to make the threshold of good images (--good_dir)",
    ]
    assert decision_text(by_score).splitlines() == lines
    assert decision_text(by_score | {"pixel_false_alarms": NOTHING}).splitlines() == [*lines[:3], lines[4]]
    by_map = decision_text(by_score | {"decided_by": "map", "source": "given", "target_fpr": None})
    first = "4 rejected: anomaly map anywhere above 0.800000 (given)"
    assert by_map.splitlines() == [first, *lines[1:3]]  # those of the maps would be the same


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 150, 0.0, 1 - 0.025 ** (1 / 150)), (10, 10, 0.025 ** (1 / 10), 1.0), (81, 263, 0.2527, 0.3676)],
)
def test_exact_binomial_intervals(successes, trials, low, high):
    share = proportion(successes, trials)
    assert share == {"value": successes / trials, "interval_95": pytest.approx([low, high], abs=1e-4)}
    assert proportion(0, 0) == NOTHING


@pytest.mark.parametrize(
    ("source", "target", "rejected", "said", "unsaid"),
    [
        ("calibrated", 0.05, 0, ("no anomalous image was", "--good_dir", "--target_fpr above 0.05", "--niter"), ()),
        ("calibrated", 0.05, 1, ("only 10 % of the anomalous images were",), ()),
        ("good images", 0.1, 0, ("--target_fpr above 0.1", "--niter"), ("--good_dir",)),
        ("given", None, 0, ("a lower --threshold", "--niter"), ("--good_dir", "--target_fpr")),
    ],
)
def test_where_few_are_found_the_text_says_what_to_try(source, target, rejected, said, unsaid):
    threshold = Threshold(0.5, source=source, target_fpr=target)
    decision = summarize_decision([1] * 10 + [0] * 10, np.arange(20) < rejected, threshold)
    text = decision_text(decision | {"pixel_false_alarms": NOTHING}).splitlines()[-1]
    assert text.startswith("  ")
    assert all(words in text for words in said)
    assert not any(words in text for words in unsaid)


def test_where_most_are_found_there_is_nothing_to_try():
    assert advice(summarize_decision([1, 1, 0, 0], np.array([True, False, False, False]), AT_HALF)) == []
    assert advice(summarize_decision([None, None], np.array([False, False]), AT_HALF)) == []
    assert advice(summarize_decision([0, 0], np.array([False, True]), AT_HALF)) == []  # 1 of 2: from 1.3 % on
