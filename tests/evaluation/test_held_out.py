"""Thresholds made of good images: hand-computed limits, what they promise, and main_eval.py --good_dir."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import hta
import main_eval
from hta.config import ScoringConfig, default_config
from hta.data.folders import load_training_images
from hta.errors import UserError
from hta.evaluation.held_out import HeldOut, conformal_limit, images_needed
from hta.images import read_image
from tests.test_main_eval import TINY, _restored_threads, document_of, load, picture, place, rows_of, run, save, trained

__all__ = ["_restored_threads", "place", "trained"]  # fixtures


def test_the_limit_is_the_value_of_its_rank():
    values = np.arange(19, 0, -1.0)
    assert images_needed(0.05) == 19
    assert conformal_limit(values, 0.05) == 19  # the 20 * 0.95 = 19th of 19
    assert conformal_limit(values, 0.1) == 18
    assert conformal_limit(np.arange(1, 40.0), 0.05) == 38  # the 40 * 0.95 = 38th of 39
    assert [images_needed(target) for target in (1 - 1e-12, 0.5, 0.25, 0.1, 0.01)] == [1, 1, 3, 9, 99]
    assert conformal_limit(values, 1 - 1e-12) == 1


@pytest.mark.parametrize(("count", "target"), [(19, 0.05), (30, 0.05), (30, 0.2), (9, 0.1)])
def test_further_values_lie_above_as_seldom_as_promised(count, target):
    draws = np.random.default_rng(0).random((20_000, count + 1))
    above = np.mean([draw[-1] > conformal_limit(draw[:-1], target) for draw in draws])
    assert target - 1 / (count + 1) - 0.006 < above < target + 0.006


def test_too_few_images_are_refused():
    with pytest.raises(UserError, match=r"18 good images, --target_fpr 0.05 takes at least 19"):
        HeldOut(np.zeros(18), None, 18).threshold(0.05)
    assert HeldOut(np.arange(18.0), np.arange(18.0), 18).threshold(0.1).pixel_threshold == 17
    assert HeldOut(None, np.arange(18.0), 18).threshold(0.1).threshold is None


def save_at(path, pixels):
    save(path, pixels)
    return path


# --- main_eval.py -----------------------------------------------------------------------------------------------------


@pytest.fixture
def good(place):
    """19 good pictures in two folders, the training image among them."""
    save(place / "spare" / "training.png", picture())
    for seed in range(100, 119):
        save(place / "spare" / str(seed % 2) / f"{seed}.png", picture(seed=seed))
    return "spare"


def test_maps_decide_by_the_maxima_of_the_good_images(good, capsys):
    assert run(test_dir=good, out="of_good") == 0
    peaks = {row["path"]: float(row["map_peak"]) for row in rows_of("of_good")}
    assert peaks.pop("training.png") < max(peaks.values())
    capsys.readouterr()
    assert run("--good_dir", good) == 0
    decision, document = document_of()["decision"], document_of()
    assert decision["pixel_threshold"] == pytest.approx(max(peaks.values()), abs=1e-6)
    assert (decision["source"], decision["decided_by"], decision["target_fpr"]) == ("good images", "map", 0.05)
    assert document["good_images"] == {"dir": "spare", "images": 19}
    said = capsys.readouterr()
    assert "(good images, for 5 % false alarms)" in said.out
    assert "training.png is left out, the model was trained on it" in said.err
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "The threshold was made of 19 good images that the model was not trained on" in page
    assert "19 good images of spare" in page
    assert document_of("of_good")["good_images"] is None


@pytest.mark.parametrize("aggregate", ["mean", "calibrated"])
def test_scores_decide_by_those_of_the_good_images(good, aggregate):
    options = ["--no_maps", "--aggregate", aggregate]
    assert run(*options, test_dir=good, out="of_good") == 0
    scores = sorted(float(row["anomaly_score"]) for row in rows_of("of_good") if row["path"] != "training.png")
    assert run(*options, "--good_dir", good, "--target_fpr", 0.1) == 0
    decision = document_of()["decision"]
    assert decision["threshold"] == pytest.approx(scores[17], abs=1e-6)  # the 20 * 0.9 = 18th
    assert (decision["source"], decision["pixel_threshold"]) == ("good images", None)
    above = [float(row["anomaly_score"]) > decision["threshold"] for row in rows_of()]
    assert [row["decision"] == "reject" for row in rows_of()] == above


def test_a_given_threshold_and_minmax_leave_the_good_images_the_maps(good):
    assert run("--good_dir", good, "--threshold", 0.5, out="given") == 0
    assert run("--good_dir", good, "--aggregate", "minmax", out="minmax") == 0
    given, minmax = document_of("given")["decision"], document_of("minmax")["decision"]
    assert given["pixel_threshold"] == minmax["pixel_threshold"]
    assert (given["source"], given["decided_by"]) == ("given", "score")
    assert (minmax["threshold"], minmax["source"], minmax["decided_by"]) == (None, "good images", "map")


def test_the_library_takes_good_images(good, place):
    images = [picture(seed=seed) for seed in range(100, 119)]
    model, scoring = load(), ScoringConfig()
    peaks = model.hold_out(images, scoring).peaks
    scores = model.score([picture(seed=200), picture()], good_images=images)
    expected = [bool(anomaly_map.max() > peaks.max()) for anomaly_map in model.score([picture(seed=200), picture()])[2]]
    assert scores.decisions.tolist() == expected
    with pytest.raises(UserError, match="takes at least 19"):
        model.score(picture(), good_images=images[:5])


def test_what_is_no_good_folder_is_refused_in_one_line(good, place, capsys):
    Path("empty").mkdir()
    shutil.copytree(f"{good}/0", "few")
    dataset = ["--dataset", "mnist", "--pos_class", "1", "--good_dir", good]
    Path("links").mkdir()
    for number in range(19):
        Path(f"links/{number}.png").symlink_to(Path("spare/1/101.png").resolve())
    shutil.copytree(good, "copies")
    shutil.copy("parts/test/good/1.png", "copies/renamed.png")
    shutil.copytree(good, "torn")
    Path("torn/torn.png").write_bytes(b"no image")
    for arguments, words in (
        (["--good_dir", good, "--out", f"{good}/new/out"], "lies inside --good_dir"),
        (["--good_dir", ""], "--good_dir: is empty"),
        (["--good_dir", "links"], "1 good image, --target_fpr 0.05 takes at least 19"),
        (["--good_dir", "torn"], "torn.png"),
        (["--good_dir", good, "--no_maps", "--threshold", "0.5"], "--threshold and --no_maps leave no threshold"),
        (["--good_dir", good, "--no_maps", "--aggregate", "minmax"], "--aggregate minmax and --no_maps leave no"),
        (["--good_dir", "nowhere"], "--good_dir: no folder nowhere"),
        (["--good_dir", "empty"], "--good_dir empty: no image in it"),
        (["--good_dir", "few"], "takes at least 19"),
        (["--good_dir", "parts/test/good"], "0.png is also a test image"),
        (["--good_dir", "copies"], "copies/renamed.png is a copy of the test image parts/test/good/1.png"),
    ):
        capsys.readouterr()
        assert run(*arguments) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert words in error
    assert main_eval.main(["--input_name", "wall", *dataset]) == 2
    assert "--good_dir: contradicts --dataset" in capsys.readouterr().err
    assert not Path("out").exists()
    assert not Path(good, "new").exists()
    assert run("--good_dir", "torn", "--skip_unreadable") == 0
    assert document_of()["good_images"]["images"] == 19


def test_a_copy_of_a_good_image_counts_once_and_is_told(good, capsys):
    shutil.copy(f"{good}/0/100.png", f"{good}/copy.png")
    assert run("--good_dir", good) == 0
    assert document_of()["good_images"]["images"] == 19
    assert "--good_dir: spare/copy.png is left out, it is a copy of spare/0/100.png" in capsys.readouterr().err


def test_a_training_image_is_known_through_a_change_of_its_size(tmp_path):
    original = picture(40, 48)
    images = load_training_images([save_at(tmp_path / "wall.png", original)], 30)
    model = hta.train(list(images), default_config(nfc=4, **TINY))
    assert model.was_trained_on(read_image(tmp_path / "wall.png"))
    brighter = np.clip(original.astype(int) + 3, 0, 255).astype(np.uint8)
    assert not model.was_trained_on(read_image(save_at(tmp_path / "brighter.png", brighter)))
