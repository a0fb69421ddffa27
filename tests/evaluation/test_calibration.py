"""Thresholds from normal images only: by hand, kept beside the model, and never used where they are not for."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import hta
from hta.config import RuntimeConfig, ScoringConfig, default_config
from hta.errors import UserError
from hta.evaluation.calibration import CALIBRATION_FILE, NUM_VIEWS, Calibration, calibrate
from hta.evaluation.scorer import Evaluator
from hta.evaluation.views import ViewRule, view_rule

RUNTIME = {"threads": 1, "precision": "float32", "not_cuda": True}
CONFIG = {"min_size": 14, "max_size": 22, "nfc": 4, "niter": 4, **RUNTIME}

# The second scale says nothing: all views are alike there.
BY_HAND = Calibration(
    fraction=0.05,
    rule=ViewRule(1.0, mirrored=False),
    precision="float32",
    seed=0,
    shares=np.array([[0.7, 0.5], [0.9, 0.5], [0.5, 0.5], [0.8, 0.5], [0.6, 0.5]]),
    peaks=np.array([0.3, 0.1, 0.5, 0.2, 0.4]),
)
STD = np.sqrt(0.1 / 4)  # of 0.5, 0.6, 0.7, 0.8, 0.9


def picture(seed, height=20, width=24):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with the models `wall` and `other`, alike but for their image; only to be read."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("wall", "other")):
        hta.train(picture(seed), default_config(**CONFIG), folder=root / name)
    return root


@pytest.fixture
def models(kept, tmp_path):
    """A copy of the models, to be changed."""
    return shutil.copytree(kept, tmp_path / "models")


def load(root, name="wall", **runtime):
    return hta.load(name, root, RuntimeConfig(**RUNTIME | runtime))


def edit(root, **changes):
    """Change values in the kept statistics; None removes a key."""
    path = root / "wall" / CALIBRATION_FILE
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in data.items() if value is not None}))


def marked(root):
    """Mark the kept statistics, so that it shows where they are used: the first peak becomes 0.123456."""
    peaks = json.loads((root / "wall" / CALIBRATION_FILE).read_text())["peaks"]
    edit(root, peaks=[0.123456, *peaks[1:]])


def assert_equal(one, two):
    for name in ("fraction", "rule", "precision", "seed"):
        assert getattr(one, name) == getattr(two, name)
    np.testing.assert_array_equal(one.shares, two.shares)
    np.testing.assert_array_equal(one.peaks, two.peaks)


# --- thresholds by hand -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target_fpr", "of_mean", "of_pixels"), [(0.25, 0.45, 0.4), (0.5, 0.4, 0.3), (0.1, 0.48, 0.46)]
)
def test_the_threshold_of_the_mean(target_fpr, of_mean, of_pixels):
    threshold = BY_HAND.threshold("mean", target_fpr)  # of 0.3, 0.35, 0.4, 0.45, 0.5
    assert threshold.threshold == pytest.approx(of_mean, abs=1e-12)
    assert threshold.pixel_threshold == pytest.approx(of_pixels, abs=1e-12)
    assert (threshold.source, threshold.target_fpr, threshold.reason) == ("calibrated", target_fpr, None)


@pytest.mark.parametrize(("target_fpr", "share"), [(0.25, 0.6), (0.5, 0.7), (0.1, 0.54)])
def test_the_threshold_of_calibrated_scores(target_fpr, share):
    threshold = BY_HAND.threshold("calibrated", target_fpr)
    assert threshold.threshold == pytest.approx((0.7 - share) / STD / 2, abs=1e-12)  # the mean of two scales


def test_calibrated_scores_of_other_images():
    scores = BY_HAND.scores(np.array([[0.7, 0.5], [0.7, 0.0], [0.2, 0.5]]), "calibrated")
    np.testing.assert_allclose(scores, [0, 0, 0.5 / STD / 2], rtol=0, atol=1e-12)


def test_minmax_has_no_threshold_and_says_why():
    threshold = BY_HAND.threshold("minmax", 0.25)
    assert (threshold.threshold, threshold.source, threshold.target_fpr) == (None, None, None)
    assert "depend on the test set" in threshold.reason
    assert "--threshold" in threshold.reason
    assert threshold.pixel_threshold == pytest.approx(0.4)


@pytest.mark.parametrize(("target_fpr", "rejected"), [(0.05, 10), (0.5, 100), (0.9, 180), (0.01, 2)])
@pytest.mark.parametrize("aggregate", ["mean", "calibrated"])
def test_it_rejects_the_wanted_share_of_the_views(aggregate, target_fpr, rejected):
    draw = np.random.default_rng(0)
    views = Calibration(1.0, ViewRule(1.0, mirrored=True), "float32", 0, draw.random((200, 3)), draw.random(200))
    threshold = views.threshold(aggregate, target_fpr)
    assert (views.scores(views.shares, aggregate) > threshold.threshold).sum() == rejected
    assert (views.peaks > threshold.pixel_threshold).sum() == rejected


# --- the statistics of a model ----------------------------------------------------------------------------------------


def test_statistics_are_those_of_each_view_alone(kept):
    model = load(kept)
    evaluator = Evaluator(model.pyramid, (0.2,))
    rule = ViewRule(2.0, mirrored=True)
    statistics = calibrate(evaluator, model.training_images, rule, seed=4, num_views=20)
    assert (statistics.fraction, statistics.rule, statistics.precision, statistics.seed) == (0.2, rule, "float32", 4)
    assert statistics.shares.shape == (20, model.pyramid.plan.num_scales)
    assert statistics.shares.dtype == statistics.peaks.dtype == np.float64
    for i, view in enumerate(rule.draw(model.training_images, 20, 4, model.evaluator((1.0,)).recognition)):
        alone = evaluator.score(view[None])
        np.testing.assert_allclose(statistics.shares[i], alone.shares[0, 0], rtol=0, atol=1e-6)
        assert statistics.peaks[i] == pytest.approx(alone.maps.max(), abs=1e-6)


def test_statistics_in_memory_are_those_of_the_model_saved_and_loaded(kept):
    trained = hta.train(picture(0), default_config(**CONFIG))
    loaded = load(kept)
    assert trained.folder is None
    assert_equal(trained.calibration(), loaded.calibration())
    images = [picture(seed) for seed in range(5)]
    for aggregate in ("mean", "calibrated"):
        one, two = (m.score(images, aggregate=aggregate, target_fpr=0.5) for m in (trained, loaded))
        assert one.anomaly_scores.tolist() == two.anomaly_scores.tolist()
        assert one.decisions.tolist() == two.decisions.tolist()


def test_the_global_random_state_is_left_alone(kept):
    model = load(kept)
    before = torch.get_rng_state()
    calibrate(model.evaluator((1.0,)), model.training_images, view_rule("defect", 4), num_views=2)
    assert torch.equal(torch.get_rng_state(), before)


# --- kept beside the model --------------------------------------------------------------------------------------------


def test_json_and_back_to_the_bit():
    draw = np.random.default_rng(1)
    rule, shares, peaks = ViewRule(0.1 + 0.2, mirrored=True), draw.random((9, 4)), draw.random(9)
    statistics = Calibration(1 / 3, rule, "bfloat16", 7, shares, peaks)
    assert_equal(Calibration.from_json(statistics.to_json("abc"), "file", "abc", 4), statistics)


def test_training_keeps_the_statistics_for_the_models_task(kept):
    data = json.loads((kept / "wall" / CALIBRATION_FILE).read_text())
    assert (data["fraction"], data["strength"], data["mirrored"], data["seed"]) == (0.05, 2.0, True, 0)
    assert (data["format_version"], data["precision"]) == (3, "float32")
    assert np.shape(data["shares"]) == (NUM_VIEWS, 3)
    assert np.shape(data["peaks"]) == (NUM_VIEWS,)


def test_kept_statistics_are_used_and_not_made_again(models):
    marked(models)
    model = load(models)
    statistics = model.calibration()
    assert statistics.peaks[0] == 0.123456
    assert model.calibration(ScoringConfig(target_fpr=0.3)) is statistics
    assert model.calibration(ScoringConfig(aggregate="calibrated")) is statistics
    assert model.calibration(ScoringConfig(fraction_defect=0.05), "defect") is statistics


@pytest.mark.parametrize(
    ("scoring", "task", "fraction"),
    [(ScoringConfig(0.3), None, 0.3), (ScoringConfig(), "class", 1.0), (ScoringConfig(0.3), "class", 0.3)],
)
def test_another_fraction_or_task_is_calibrated_anew(models, scoring, task, fraction):
    marked(models)
    before = (models / "wall" / CALIBRATION_FILE).read_bytes()
    model = load(models)
    model.calibration()
    other = model.calibration(scoring, task)
    expected = calibrate(Evaluator(model.pyramid, (fraction,)), model.training_images, view_rule(task or "defect", 4))
    assert_equal(other, expected)
    assert other.peaks[0] != 0.123456
    assert model.calibration(scoring, task) is other
    assert model.calibration().peaks[0] == 0.123456
    assert (models / "wall" / CALIBRATION_FILE).read_bytes() == before


def test_another_precision_is_calibrated_anew(models, caplog):
    marked(models)
    before = (models / "wall" / CALIBRATION_FILE).read_bytes()
    model = load(models, precision="bfloat16")
    with caplog.at_level("INFO", "hta"):
        other = model.calibration()
    expected = calibrate(Evaluator(model.pyramid, (0.05,)), model.training_images, view_rule("defect", 4))
    assert_equal(other, expected)
    assert (other.precision, other.peaks[0] == 0.123456) == ("bfloat16", False)
    assert caplog.text.count("calibrated anew for fraction 0.05, this task and bfloat16") == 1
    assert model.calibration() is other
    assert load(models).calibration().peaks[0] == 0.123456
    assert (models / "wall" / CALIBRATION_FILE).read_bytes() == before


def test_statistics_of_views_of_another_strength_are_made_anew(models):
    marked(models)
    edit(models, strength=123.0)
    statistics = load(models).calibration()
    assert (statistics.rule, statistics.peaks[0] == 0.123456) == (view_rule("defect", 4), False)


def test_a_model_without_the_file_is_calibrated(models):
    first = load(models)
    (models / "wall" / CALIBRATION_FILE).unlink()
    second = load(models)
    assert_equal(first.calibration(), second.calibration())
    assert not (models / "wall" / CALIBRATION_FILE).exists()


def test_a_new_process_finds_the_same_thresholds(kept):
    model = load(kept)
    own = [model.threshold(ScoringConfig(fraction)).threshold for fraction in (None, 0.3)]
    code = (
        "import hta, hta.config as c\n"
        f"model = hta.load('wall', {str(kept)!r}, c.RuntimeConfig(**{RUNTIME}))\n"
        "print(*(repr(model.threshold(c.ScoringConfig(f)).threshold) for f in (None, 0.3)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert list(map(float, done.stdout.split())) == own


def write(content):
    return lambda root: (root / "wall" / CALIBRATION_FILE).write_bytes(content)


def truncate(root):
    path = root / "wall" / CALIBRATION_FILE
    path.write_bytes(path.read_bytes()[:-20])


def become_a_folder(root):
    (root / "wall" / CALIBRATION_FILE).unlink()
    (root / "wall" / CALIBRATION_FILE).mkdir()


def copy_from_other(name):
    return lambda root: shutil.copy(root / "other" / name, root / "wall" / name)


def change(**changes):
    return lambda root: edit(root, **changes)


ROWS = [[0.5, 0.5, 0.5], [0.4, 0.4, 0.4]]
DAMAGES = {
    "empty": (write(b""), "not valid JSON"),
    "truncated": (truncate, "not valid JSON"),
    "not text": (write(b"\xff\xfe\x00"), "cannot be read"),
    "nested without end": (write(b"[" * 200_000), "not valid JSON"),
    "a folder": (become_a_folder, "cannot be read"),
    "a list": (write(b"[1, 2]"), "calibration format None"),
    "another format": (change(format_version=2), "calibration format 2"),
    "no format": (change(format_version=None), "calibration format None"),
    "a key less": (change(peaks=None), "missing key peaks"),
    "a key more": (change(extra=1), "unknown key extra"),
    "another model's": (copy_from_other(CALIBRATION_FILE), "belongs to another model"),
    "another scale": (copy_from_other("scale_2.safetensors"), "belongs to another model"),
    "another image": (copy_from_other("training_images.safetensors"), "belongs to another model"),
    "another number of scales": (change(shares=[[0.5, 0.5], [0.4, 0.4]], peaks=[0.1, 0.2]), "3 scales"),
    "fewer peaks than shares": (change(shares=ROWS, peaks=[0.1]), "3 scales"),
    "one view": (change(shares=ROWS[:1], peaks=[0.1]), "3 scales"),
    "no view": (change(shares=[], peaks=[]), "3 scales"),
    "peaks in two dimensions": (change(shares=ROWS, peaks=[[0.1], [0.2]]), "3 scales"),
    "peaks that are one number": (change(peaks=0.5), "3 scales"),
    "rows of two lengths": (change(shares=[[0.5, 0.5, 0.5], [0.5]], peaks=[0.1, 0.2]), "not the statistics"),
    "not a number": (change(shares=ROWS, peaks=[0.1, float("nan")]), "3 scales"),
    "words": (change(shares=ROWS, peaks=["0.1", "0.2"]), "3 scales"),
    "above 1": (change(shares=ROWS, peaks=[0.1, 1.2]), "3 scales"),
    "below 0": (change(shares=[[-0.1, 0.5, 0.5], ROWS[1]], peaks=[0.1, 0.2]), "3 scales"),
    "huge numbers": (change(shares=ROWS, peaks=[0.1, 10**400]), "3 scales"),
    "a word for the fraction": (change(fraction="0.05"), "3 scales"),
    "fraction 0": (change(fraction=0), "3 scales"),
    "an infinite seed": (change(seed=float("inf")), "3 scales"),
    "a list for the strength": (change(strength=[1.0]), "3 scales"),
    "a number for mirrored": (change(mirrored=1), "3 scales"),
    "a precision that is none": (change(precision="float16"), "3 scales"),
    "a list for the precision": (change(precision=["float32"]), "3 scales"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_line_that_names_it_and_the_remedy(models, damage):
    change_it, words = DAMAGES[damage]
    change_it(models)
    model = load(models)
    for use in (model.calibration, lambda: model.score(picture(3))):
        with pytest.raises(UserError) as caught:
            use()
        message = str(caught.value)
        assert words in message
        assert str(models / "wall" / CALIBRATION_FILE) in message
        assert "remove the file" in message
        assert "\n" not in message
        assert len(message) < 500


# --- decisions of a model ---------------------------------------------------------------------------------------------


def test_an_image_is_decided_alike_alone_and_among_others(kept):
    model, images = load(kept), [picture(seed) for seed in range(20)]
    for aggregate in ("mean", "calibrated"):
        together = model.score(images, aggregate=aggregate, target_fpr=0.5)
        assert set(together.decisions.tolist()) == {True, False}
        for i in (0, 7, 19):
            alone = model.score(images[i], aggregate=aggregate, target_fpr=0.5)
            assert alone.anomaly_scores[0] == pytest.approx(together.anomaly_scores[i], abs=1e-5)
            assert alone.decisions[0] == together.decisions[i]


def test_calibrated_scores_are_standardised_by_the_kept_statistics(kept):
    model, images = load(kept), [picture(2), picture(3)]
    shares = np.stack([votes.shares for votes in model.stream(images)])
    views = model.calibration().shares
    deviations = (views.mean(axis=0) - shares) / views.std(axis=0, ddof=1)
    scores = model.score(images, aggregate="calibrated").anomaly_scores
    np.testing.assert_allclose(scores, deviations.mean(axis=1), rtol=1e-9)


def test_a_threshold_of_ones_own_overrides(kept):
    model, images = load(kept), [picture(seed) for seed in range(6)]
    scores = model.score(images).anomaly_scores
    middle = float(np.median(scores))
    assert model.score(images, threshold=middle).decisions.tolist() == (scores > middle).tolist()
    threshold = model.threshold(ScoringConfig(threshold=middle))
    assert (threshold.threshold, threshold.source, threshold.target_fpr) == (middle, "given", None)
    assert threshold.pixel_threshold == model.threshold(ScoringConfig()).pixel_threshold
    by_minmax = [model.score(images, aggregate="minmax", threshold=t, with_maps=False).decisions for t in (None, 0.5)]
    assert by_minmax[0] is None
    assert by_minmax[1].tolist() == (model.score(images, aggregate="minmax").anomaly_scores > 0.5).tolist()


def test_defects_are_decided_by_their_maps_and_classes_by_their_scores(kept):
    model, images = load(kept), [picture(seed) for seed in range(6)]
    peaks = np.array([votes.anomaly_map.max() for votes in model.stream(images)])
    target = 0.5
    limit = model.threshold(ScoringConfig(target_fpr=target))
    assert (limit.decided_by, limit.source, limit.target_fpr) == ("map", "calibrated", target)
    decisions = model.score(images, target_fpr=target).decisions
    assert decisions.tolist() == (peaks > limit.pixel_threshold).tolist()
    by_minmax = model.threshold(ScoringConfig(target_fpr=target, aggregate="minmax"))
    assert (by_minmax.decided_by, by_minmax.reason) == ("map", None)
    for settings in (dict(task="class"), dict(with_maps=False)):
        assert model.threshold(ScoringConfig(), **settings).decided_by == "score"
    assert model.threshold(ScoringConfig(threshold=0.5)).decided_by == "score"


def test_the_target_moves_the_threshold_along_the_views(kept):
    model = load(kept)
    views = model.calibration()
    for aggregate in ("mean", "calibrated"):
        for target_fpr, rejected in ((0.5, NUM_VIEWS // 2), (0.05, NUM_VIEWS // 20)):
            threshold = model.threshold(ScoringConfig(aggregate=aggregate, target_fpr=target_fpr)).threshold
            assert (views.scores(views.shares, aggregate) > threshold).sum() == rejected


def test_a_target_below_what_the_views_can_tell_is_refused(kept):
    model = load(kept)
    for options in ({}, {"with_maps": False}, {"task": "class"}):
        with pytest.raises(UserError, match=r"--target_fpr 0\.0049: 200 views .* tell 0\.005 at least; .* 204 or more"):
            model.threshold(ScoringConfig(target_fpr=0.0049), **options)
    assert model.threshold(ScoringConfig(target_fpr=1 / 201)).target_fpr == 1 / 201
    assert model.threshold(ScoringConfig(target_fpr=0.0001, threshold=0.5)).source == "given"


@pytest.mark.parametrize("setting", [{"target_fpr": 0}, {"target_fpr": 1}, {"threshold": float("nan")}])
def test_settings_out_of_range_are_named(kept, setting):
    with pytest.raises(UserError, match=f"--{next(iter(setting))} "):
        load(kept).score(picture(0), **setting)


def test_a_changed_setting_of_a_frozen_calibration_makes_another_one():
    rule = ViewRule(1.0, mirrored=False)
    assert replace(BY_HAND, fraction=0.1).fits(0.05, rule, "float32") is False
    assert BY_HAND.fits(0.05, rule, "float32") is True
    assert BY_HAND.fits(0.05, rule, "bfloat16") is False
    assert BY_HAND.fits(0.05, ViewRule(2.0, mirrored=False), "float32") is False
    assert BY_HAND.fits(0.05, ViewRule(1.0, mirrored=True), "float32") is False
