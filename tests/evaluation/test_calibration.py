"""Thresholds from normal images only: by hand, kept beside the model, and never used where they are not for."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import hta
from hta.config import RuntimeConfig, ScoringConfig, default_config
from hta.errors import UserError
from hta.evaluation.calibration import CALIBRATION_FILE, Calibration, calibrate, kept_calibration, save_calibration
from hta.evaluation.nearest import RULE
from hta.models.storage import RunFolder
from hta.models.views import ViewRule, view_rule
from tests.helpers import picture

RUNTIME = {"threads": 1, "precision": "float32", "not_cuda": True}
CONFIG = {"min_size": 14, "max_size": 22, "nfc": 4, "niter": 4, **RUNTIME}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The models `wall` and `other`, alike but for their image, and `votes`, by the paper's recipe; only to be read."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("wall", "other")):
        hta.train(picture(seed), default_config(**CONFIG), folder=root / name, num_samples=0)
    hta.train(picture(0), default_config(**CONFIG, recipe="paper"), folder=root / "votes", num_samples=0)
    return root


@pytest.fixture
def models(kept, tmp_path):
    """A copy of the models, to be changed."""
    return shutil.copytree(kept, tmp_path / "models")


def load(root, name="wall", **runtime):
    return hta.load(name, root, RuntimeConfig(**RUNTIME | runtime))


def edit(root, name="wall", **changes):
    """Change values in the kept statistics; None removes a key."""
    path = root / name / CALIBRATION_FILE
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    return path.read_bytes()


def marked(root, name="wall"):
    """Mark the kept statistics, so that it shows where they are used: the first peak becomes 0.123456."""
    peaks = json.loads((root / name / CALIBRATION_FILE).read_text())["peaks"]
    return edit(root, name, peaks=[0.123456, *peaks[1:]])


def assert_equal(one, two):
    for name in ("fraction", "rule", "precision", "seed", "score"):
        assert getattr(one, name) == getattr(two, name)
    np.testing.assert_array_equal(one.shares, two.shares)
    np.testing.assert_array_equal(one.peaks, two.peaks)
    np.testing.assert_array_equal(one.errors, two.errors)


def test_statistics_are_those_of_each_view_alone(kept):
    model = load(kept)
    rule = ViewRule(2.0, mirrored=True)
    before = torch.get_rng_state()
    statistics = calibrate(model.scorer, model.training_images, 0.2, rule, seed=4, num_views=20)
    assert (statistics.fraction, statistics.rule, statistics.precision, statistics.seed) == (0.2, rule, "float32", 4)
    assert statistics.shares.shape == (20, model.pyramid.plan.num_scales)
    assert statistics.shares.dtype == statistics.peaks.dtype == np.float64
    assert torch.equal(torch.get_rng_state(), before)
    for i, view in enumerate(rule.draw(model.training_images, 20, 4, model.scorer.recognition)):
        shares, maps = model.scorer.score(view[None], 0.2)
        np.testing.assert_allclose(statistics.shares[i], shares[0], rtol=0, atol=1e-6)
        assert statistics.peaks[i] == pytest.approx(maps.max(), abs=1e-6)
        assert statistics.errors[i] == pytest.approx(float(((view - model.training_images) ** 2).mean()), rel=1e-5)


def test_statistics_of_the_nearest_patches_are_those_of_each_view_alone(kept):
    model = load(kept)
    statistics = calibrate(model.scorer, model.training_images, 0.2, RULE, num_views=20, nearest=model.nearest)
    assert (statistics.rule, statistics.score) == (RULE, "nearest")
    for i, view in enumerate(RULE.draw(model.training_images, 20, 0, model.scorer.recognition)):
        shares, _ = model.scorer.score(view[None], 0.2)
        np.testing.assert_allclose(statistics.shares[i], shares[0], rtol=0, atol=1e-6)
        assert statistics.peaks[i] == pytest.approx(model.nearest.maps(view[None]).max().item(), abs=1e-6)


@pytest.mark.parametrize("name", ["wall", "votes"])
def test_a_model_in_memory_or_without_the_file_has_the_same_statistics_scores_and_maps(models, name):
    settings = CONFIG if name == "wall" else CONFIG | {"recipe": "paper"}
    trained, loaded, bare = hta.train(picture(0), default_config(**settings)), load(models, name), load(models, name)
    assert trained.folder is None
    loaded.calibration()
    (models / name / CALIBRATION_FILE).unlink()
    for other in (trained, bare):
        assert_equal(other.calibration(), loaded.calibration())
        for aggregate in ("mean", "calibrated"):
            one, two = (m.score(picture(3), aggregate=aggregate, target_fpr=0.5) for m in (other, loaded))
            for values, expected in zip(one, two, strict=True):
                np.testing.assert_array_equal(values, expected)
    assert not (models / name / CALIBRATION_FILE).exists()


@pytest.mark.parametrize("score", ["nearest", "paper"])
def test_saved_and_read_to_the_bit(models, score):
    draw, folder = np.random.default_rng(1), RunFolder(models / "wall")
    rule, shares, peaks, errors = ViewRule(0.1 + 0.2, mirrored=True), draw.random((9, 3)), *draw.random((2, 9))
    statistics = Calibration(shares, peaks, 1 / 3, rule, "bfloat16", 7, score, errors=errors)
    save_calibration(folder, statistics)
    assert_equal(kept_calibration(folder, 3), statistics)


@pytest.mark.parametrize(("name", "score", "strength"), [("wall", "nearest", 1.0), ("votes", "paper", 2.0)])
def test_training_keeps_the_statistics_for_the_models_task(kept, name, score, strength):
    data = json.loads((kept / name / CALIBRATION_FILE).read_text())
    assert (data["fraction"], data["strength"], data["mirrored"], data["seed"]) == (0.05, strength, True, 0)
    assert (data["format_version"], data["precision"], data["score"]) == (3, "float32", score)
    assert (np.shape(data["shares"]), np.shape(data["peaks"])) == ((200, 3), (200,))


@pytest.mark.parametrize(
    ("name", "other_settings"),
    [("wall", dict(threshold=0.5, score="nearest")), ("votes", dict(aggregate="calibrated"))],
)
def test_kept_statistics_are_used_and_not_made_again(models, name, other_settings):
    marked(models, name)
    model = load(models, name)
    statistics = model.calibration()
    assert statistics.peaks[0] == 0.123456
    for changed in (dict(target_fpr=0.3), other_settings, dict(fraction_defect=0.05)):
        assert model.calibration(ScoringConfig(**changed)) is statistics


def test_statistics_without_a_score_are_of_votes(models):
    """They were kept before there was another score."""
    edit(models, "votes", score=None)
    marked(models, "votes")
    assert load(models, "votes").calibration().peaks[0] == 0.123456


def test_errors_that_are_missing_are_measured_where_they_are_needed(models):
    """They were kept before there was the score "combined"."""
    kept = load(models, "votes").calibration().errors
    edit(models, "votes", errors=None)
    marked(models, "votes")
    model = load(models, "votes")
    assert model.calibration().errors is None
    again = model.calibration(ScoringConfig(score="combined"))
    assert again.peaks[0] == 0.123456
    np.testing.assert_array_equal(again.errors, kept)


@pytest.mark.parametrize(
    ("name", "scoring", "task", "precision", "strength", "fraction", "score"),
    [
        ("votes", ScoringConfig(0.3), "defect", "float32", 2.0, 0.3, "paper"),
        ("votes", ScoringConfig(), "class", "float32", 2.0, 1.0, "paper"),
        ("votes", ScoringConfig(0.3), "class", "float32", 2.0, 0.3, "paper"),
        ("votes", ScoringConfig(), "defect", "bfloat16", 2.0, 0.05, "paper"),
        ("votes", ScoringConfig(), "defect", "float32", 123.0, 0.05, "paper"),
        ("votes", ScoringConfig(score="nearest"), "defect", "float32", 2.0, 0.05, "nearest"),
        ("wall", ScoringConfig(0.3), "defect", "float32", 1.0, 0.3, "nearest"),
        ("wall", ScoringConfig(), "class", "float32", 1.0, 1.0, "paper"),
        ("wall", ScoringConfig(aggregate="calibrated"), "defect", "float32", 1.0, 0.05, "paper"),
        ("wall", ScoringConfig(score="paper"), "defect", "float32", 1.0, 0.05, "paper"),
        ("wall", ScoringConfig(), "defect", "bfloat16", 1.0, 0.05, "nearest"),
        ("wall", ScoringConfig(), "defect", "float32", 2.0, 0.05, "nearest"),
    ],
)
def test_statistics_for_others_are_made_anew(models, caplog, name, scoring, task, precision, strength, fraction, score):
    marked(models, name)
    before = edit(models, name, strength=strength)
    model = replace(load(models, name, precision=precision), task=task)
    with caplog.at_level("INFO", "hta"):
        other = model.calibration(scoring)
    rule, nearest = (RULE, model.nearest) if score == "nearest" else (view_rule(task, 4), None)
    assert_equal(other, calibrate(model.scorer, model.training_images, fraction, rule, nearest=nearest))
    assert (other.precision, other.score, other.peaks[0] == 0.123456) == (precision, score, False)
    asked = model.score_name(scoring)  # "combined" has the statistics of "paper"
    said = f"calibrating anew for fraction {fraction:g}, this task, {precision} and score {asked}"
    assert caplog.text.count(said) == 1
    assert model.calibration(scoring) is other
    if scoring != ScoringConfig() or task == "class":
        model.task = "defect"
        assert model.calibration().peaks[0] == 0.123456
    assert (models / name / CALIBRATION_FILE).read_bytes() == before


PEAKS, SHARES, ERRORS = [0.1, 0.2], [[0.5, 0.5, 0.5], [0.4, 0.4, 0.4]], [0.01, 0.02]
NOT_VALUES = {
    "shares": [SHARES[:1], [[0.5, 0.5], [0.4, 0.4]], [SHARES[0], [0.5]], [[-0.1, 0.5, 0.5], SHARES[1]]],
    "peaks": [[0.1], [[0.1], [0.2]], 0.5, [0.1, math.nan], ["0.1", "0.2"], [0.1, 1.2], [0.1, 10**400]],
    "errors": [[0.01], [[0.01], [0.02]], 0.5, [0.1, math.nan], ["a", "b"], [0.1, -1.0], [0.1, 4.1], {"a": 1}],
    "fraction": ["0.05", 0],
    "strength": [[1.0]],
    "seed": [math.inf],
    "mirrored": [1],
    "precision": ["float16", ["float32"]],
    "score": ["votes", 1, ["paper"]],
}
NOT_STATISTICS = [{"shares": SHARES[:1], "peaks": [0.1], "errors": [0.01]}, {"shares": [], "peaks": [], "errors": []}]
NOT_STATISTICS += [{name: value} for name, values in NOT_VALUES.items() for value in values]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (b"", "cannot be read as JSON"),
        (b'{"format_version": 3, "fraction', "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"[" * 200_000, "cannot be read as JSON"),
        ("a folder", "is not a plain file"),
        (b"[1, 2]", "has format None"),
        ({"format_version": 2}, "has format 2"),
        ({"format_version": None}, "has format None"),
        ({"peaks": None}, "missing key peaks"),
        ({"extra": 1}, "unknown key extra"),
        (CALIBRATION_FILE, "belongs to another model"),
        ("scale_2.safetensors", "belongs to another model"),
        ("training_images.safetensors", "belongs to another model"),
        *((values, "not the statistics of a model of 3 scales") for values in NOT_STATISTICS),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it_and_the_remedy(models, damage, words):
    """The file gets this content or these values, or is a folder; or a file of this name is that of the other model."""
    path = models / "wall" / CALIBRATION_FILE
    edit(models, shares=SHARES, peaks=PEAKS, errors=ERRORS)
    assert load(models).calibration().peaks.tolist() == PEAKS
    if isinstance(damage, dict):
        edit(models, **damage)
    elif isinstance(damage, bytes):
        path.write_bytes(damage)
    elif damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        shutil.copy(models / "other" / damage, models / "wall" / damage)
        folder = RunFolder(models / "wall")
        folder.write_record(replace(folder.read_record(), training_shares=()))  # by which the model would be known
    with pytest.raises(UserError) as caught:
        load(models).score(picture(3))
    message = str(caught.value)
    assert message.startswith(f"{path}: {words}")
    assert "remove the file" in message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize("name", ["scale_2.safetensors", "training_images.safetensors"])
def test_a_file_of_another_model_is_known_by_the_votes(models, name):
    shutil.copy(models / "other" / name, models / "wall" / name)
    (models / "wall" / CALIBRATION_FILE).unlink()
    with pytest.raises(UserError, match="wall: votes on its training image otherwise than when it was saved"):
        load(models).score(picture(3))
