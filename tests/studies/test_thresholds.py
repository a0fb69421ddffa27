"""The study of calibrations: what it reads, what it counts, and a short run of it."""

import json
from dataclasses import astuple

import numpy as np
import pytest
from PIL import Image

import hta
import main_eval
from hta.errors import UserError
from hta.evaluation.scores import score_text
from hta.studies import thresholds as calibration_study
from hta.studies.demo import TRAINING_CORNER, brick_wall, cut, write_demo


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A model, and its results on two good crops and two that are white."""
    place = tmp_path_factory.mktemp("study")
    wall = brick_wall()
    files = {f"test/good/{i}.png": cut(wall, 40 * i, 0) for i in range(2)}
    files |= {f"test/white/{i}.png": np.full((128, 128), 250 + i, np.uint8) for i in range(2)}
    write_demo(files, place, overwrite=False)
    config = hta.default_config(niter=4, max_size=32, threads=1)
    hta.train(cut(wall, *TRAINING_CORNER), config, folder=place / "models/wall")
    argv = ["--input_name", str(place / "models/wall"), "--test_dir", str(place / "test"), "--out", str(place / "out")]
    assert main_eval.main([*argv, "--threads", "1"]) == 0
    return place


def test_the_product_s_own_row_is_what_main_eval_decided(scored, capsys):
    argv = ["--input_name", str(scored / "models/wall"), "--results", str(scored / "out"), "--threads", "1"]
    assert calibration_study.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 normal and 2 anomalous images, target 5%"
    own = [line for line in lines if "(the product's)" in line]
    decision = json.loads((scored / "out/metrics.json").read_text())["decision"]
    by_score, by_map = own
    assert score_text(decision["threshold"]) in by_score
    assert score_text(decision["pixel_threshold"]) in by_map
    assert decision["decided_by"] == "map"
    assert f"{decision['false_positive_rate']['value']:.1%} (" in by_map
    for name in (
        "training images",
        "reconstructions",
        "random samples from scale 0 on",
        "noise alone, strength 3.5",
        "mirrored, strength 0.5",
    ):
        assert any(line.startswith(name) for line in lines)


def test_each_image_is_scored_by_a_model_of_the_others(scored, capsys):
    config = hta.default_config(niter=4, max_size=32, threads=1)
    crops = [cut(brick_wall(), top, 150) for top in (0, 130, 260)]
    model = hta.train(crops, config, folder=scored / "models/three")
    shares, peaks = astuple(calibration_study.leave_one_out(model, 0.1))
    assert shares.shape == (3, model.pyramid.plan.num_scales)
    assert peaks.shape == (3,)
    alone = hta.train([crops[0], crops[2]], config)
    own = alone.scorer.shares(model.training_images[1:2], [0.1])[0]
    np.testing.assert_allclose(shares[1], own[0], atol=1e-6)

    argv = ["--input_name", str(scored / "models/three"), "--results", str(scored / "out"), "--threads", "1"]
    assert calibration_study.main([*argv, "--num_views", "2", "--leave_one_out"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("leave one out")


def test_one_image_cannot_be_left_out(scored, capsys):
    argv = ["--input_name", str(scored / "models/wall"), "--results", str(scored / "out"), "--leave_one_out"]
    assert calibration_study.main(argv) == 2
    assert "--leave_one_out: the model has one training image only" in capsys.readouterr().err


def test_results_that_cannot_be_used_are_refused(scored, tmp_path):
    with pytest.raises(UserError, match="not a results folder"):
        calibration_study.read_results(tmp_path, (32, 32))
    Image.new("L", (40, 40)).save(tmp_path / "one.png")
    argv = ["--input_name", str(scored / "models/wall"), "--test_dir", str(tmp_path), "--out", str(scored / "bare")]
    assert main_eval.main([*argv, "--no_maps", "--threads", "1"]) == 0
    assert calibration_study.read_results(scored / "out", (40, 40)).peaks is None
    with pytest.raises(UserError, match="labels"):
        calibration_study.read_results(scored / "bare", (32, 32))
