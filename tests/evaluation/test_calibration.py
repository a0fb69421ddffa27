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
from hta.models.storage import RunFolder
from hta.models.views import ViewRule, view_rule
from tests.helpers import picture

RUNTIME = {"threads": 1, "precision": "float32", "not_cuda": True}
CONFIG = {"min_size": 14, "max_size": 22, "nfc": 4, "niter": 4, **RUNTIME}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with the models `wall` and `other`, alike but for their image; only to be read."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("wall", "other")):
        hta.train(picture(seed), default_config(**CONFIG), folder=root / name, num_samples=0)
    return root


@pytest.fixture
def models(kept, tmp_path):
    """A copy of the models, to be changed."""
    return shutil.copytree(kept, tmp_path / "models")


def load(root, **runtime):
    return hta.load("wall", root, RuntimeConfig(**RUNTIME | runtime))


def edit(root, **changes):
    """Change values in the kept statistics; None removes a key."""
    path = root / "wall" / CALIBRATION_FILE
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in data.items() if value is not None}))
    return path.read_bytes()


def marked(root):
    """Mark the kept statistics, so that it shows where they are used: the first peak becomes 0.123456."""
    peaks = json.loads((root / "wall" / CALIBRATION_FILE).read_text())["peaks"]
    return edit(root, peaks=[0.123456, *peaks[1:]])


def assert_equal(one, two):
    for name in ("fraction", "rule", "precision", "seed"):
        assert getattr(one, name) == getattr(two, name)
    np.testing.assert_array_equal(one.shares, two.shares)
    np.testing.assert_array_equal(one.peaks, two.peaks)


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


def test_a_model_in_memory_or_without_the_file_has_the_same_statistics_scores_and_maps(models):
    trained, loaded, bare = hta.train(picture(0), default_config(**CONFIG)), load(models), load(models)
    assert trained.folder is None
    loaded.calibration()
    (models / "wall" / CALIBRATION_FILE).unlink()
    for other in (trained, bare):
        assert_equal(other.calibration(), loaded.calibration())
        for aggregate in ("mean", "calibrated"):
            one, two = (m.score(picture(3), aggregate=aggregate, target_fpr=0.5) for m in (other, loaded))
            for values, expected in zip(one, two, strict=True):
                np.testing.assert_array_equal(values, expected)
    assert not (models / "wall" / CALIBRATION_FILE).exists()


def test_saved_and_read_to_the_bit(models):
    draw, folder = np.random.default_rng(1), RunFolder(models / "wall")
    rule, shares, peaks = ViewRule(0.1 + 0.2, mirrored=True), draw.random((9, 3)), draw.random(9)
    statistics = Calibration(shares, peaks, 1 / 3, rule, "bfloat16", 7)
    save_calibration(folder, statistics)
    assert_equal(kept_calibration(folder, 3), statistics)


def test_training_keeps_the_statistics_for_the_models_task(kept):
    data = json.loads((kept / "wall" / CALIBRATION_FILE).read_text())
    assert (data["fraction"], data["strength"], data["mirrored"], data["seed"]) == (0.05, 2.0, True, 0)
    assert (data["format_version"], data["precision"]) == (3, "float32")
    assert (np.shape(data["shares"]), np.shape(data["peaks"])) == ((200, 3), (200,))


def test_kept_statistics_are_used_and_not_made_again(models):
    marked(models)
    model = load(models)
    statistics = model.calibration()
    assert statistics.peaks[0] == 0.123456
    for changed in (dict(target_fpr=0.3), dict(aggregate="calibrated"), dict(fraction_defect=0.05)):
        assert model.calibration(ScoringConfig(**changed)) is statistics


@pytest.mark.parametrize(
    ("scoring", "task", "precision", "strength", "fraction"),
    [
        (ScoringConfig(0.3), "defect", "float32", 2.0, 0.3),
        (ScoringConfig(), "class", "float32", 2.0, 1.0),
        (ScoringConfig(0.3), "class", "float32", 2.0, 0.3),
        (ScoringConfig(), "defect", "bfloat16", 2.0, 0.05),
        (ScoringConfig(), "defect", "float32", 123.0, 0.05),
    ],
)
def test_statistics_for_others_are_made_anew(models, caplog, scoring, task, precision, strength, fraction):
    marked(models)
    before = edit(models, strength=strength)
    model = replace(load(models, precision=precision), task=task)
    with caplog.at_level("INFO", "hta"):
        other = model.calibration(scoring)
    assert_equal(other, calibrate(model.scorer, model.training_images, fraction, view_rule(task, 4)))
    assert (other.precision, other.peaks[0] == 0.123456) == (precision, False)
    assert caplog.text.count(f"calibrating anew for fraction {fraction:g}, this task, {precision} and score paper") == 1
    assert model.calibration(scoring) is other
    if fraction != 0.05:
        model.task = "defect"
        assert model.calibration().peaks[0] == 0.123456
    assert (models / "wall" / CALIBRATION_FILE).read_bytes() == before


PEAKS, SHARES = [0.1, 0.2], [[0.5, 0.5, 0.5], [0.4, 0.4, 0.4]]
NOT_VALUES = {
    "shares": [SHARES[:1], [[0.5, 0.5], [0.4, 0.4]], [SHARES[0], [0.5]], [[-0.1, 0.5, 0.5], SHARES[1]]],
    "peaks": [[0.1], [[0.1], [0.2]], 0.5, [0.1, math.nan], ["0.1", "0.2"], [0.1, 1.2], [0.1, 10**400]],
    "fraction": ["0.05", 0],
    "strength": [[1.0]],
    "seed": [math.inf],
    "mirrored": [1],
    "precision": ["float16", ["float32"]],
}
NOT_STATISTICS = [{"shares": SHARES[:1], "peaks": [0.1]}, {"shares": [], "peaks": []}]
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
    edit(models, shares=SHARES, peaks=PEAKS)
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
