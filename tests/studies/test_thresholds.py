"""The study of thresholds: what it reads, what it counts, and a short run of it."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import hta
import main_eval
from hta.errors import UserError
from hta.evaluation.scores import score_text
from hta.studies import thresholds
from hta.studies.__main__ import main
from hta.studies.demo import cut, write_demo

NAMES = (
    "training images",
    "reconstructions",
    "random samples from scale 0 on",
    "random samples from scale 1 on",
    "noise alone, strength 3.5",
    "mirrored, strength 0.5",
)


@pytest.fixture(scope="module")
def scored(wall_model, tmp_path_factory):
    """Results of the model on two good crops and two that are white, and the arguments that name both."""
    place = tmp_path_factory.mktemp("study")
    files = {f"test/good/{i}.png": cut(40 * i, 0) for i in range(2)}
    files |= {f"test/white/{i}.png": np.full((128, 128), 250 + i, np.uint8) for i in range(2)}
    write_demo(files, place, overwrite=False)
    model = ["--input_name", str(wall_model.folder.path), "--threads", "1"]
    assert main_eval.main([*model, "--test_dir", str(place / "test"), "--out", str(place / "out")]) == 0
    return place, ["thresholds", *model, "--results", str(place / "out")]


def test_every_candidate_has_its_rows(scored, capsys):
    assert main([*scored[1], "--num_views", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 normal and 2 anomalous images, target 5%"
    assert all(sum(line.startswith(f"{name} ") for line in lines) == 2 for name in NAMES)


def test_the_product_s_own_row_is_what_main_eval_decided(scored, monkeypatch, capsys):
    everything = thresholds.candidates
    monkeypatch.setattr(
        thresholds, "candidates", lambda *args: (found for found in everything(*args) if "product's" in found[0])
    )
    assert main(scored[1]) == 0
    by_score, by_map = capsys.readouterr().out.splitlines()[2:]
    decision = json.loads((scored[0] / "out/metrics.json").read_text())["decision"]
    assert score_text(decision["threshold"]) in by_score
    assert score_text(decision["pixel_threshold"]) in by_map
    assert decision["decided_by"] == "map"
    assert f"{decision['false_positive_rate']['value']:.1%} (" in by_map


def test_each_image_is_scored_by_a_model_of_the_others(scored, monkeypatch):
    config = hta.default_config(niter=1, min_size=25, max_size=25, threads=1)
    crops = [cut(top, 150) for top in (0, 130, 260)]
    model = hta.train(crops, config)
    votes = thresholds.leave_one_out(model, 0.1)
    assert (votes.shares.shape, votes.peaks.shape) == ((3, 1), (3,))
    alone = hta.train([crops[0], crops[2]], config)
    own = alone.scorer.shares(model.training_images[1:2], [0.1])[0]
    np.testing.assert_allclose(votes.shares[1], own[0], atol=1e-6)

    monkeypatch.setattr(thresholds, "leave_one_out", lambda *_: votes)
    options = thresholds.ThresholdOptions("three", results=str(scored[0] / "out"), num_views=2, leave_one_out=True)
    assert list(thresholds.run(options, model))[-1].startswith("leave one out")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--leave_one_out"], "--leave_one_out: the model has one training image only"),
        (["--results", "nowhere"], "--results nowhere: not a results folder"),
        (["--results", ""], "--results is missing"),
        (["--input_name", ""], "--input_name is missing"),
    ],
)
def test_what_cannot_be_studied_is_refused(scored, argv, said, capsys):
    assert main([*scored[1], *argv]) == 2
    assert said in capsys.readouterr().err


def test_results_that_are_not_of_votes_are_refused(scored, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(scored[0] / "out", folder)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    metrics["scoring"]["score"] = "nearest"
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    with pytest.raises(UserError, match="not scored by votes; score again with --score paper"):
        thresholds.read_results(folder, (32, 32))


def test_maps_of_another_size_and_results_without_labels(scored, tmp_path, wall_model):
    assert thresholds.read_results(scored[0] / "out", (32, 32)).peaks.shape == (4,)
    assert thresholds.read_results(scored[0] / "out", (40, 40)).peaks is None
    image = tmp_path / "one.png"
    Image.new("L", (40, 40)).save(image)
    argv = ["--input_name", str(wall_model.folder.path), "--test_dir", str(image), "--out", str(tmp_path / "bare")]
    assert main_eval.main([*argv, "--no_maps", "--threads", "1"]) == 0
    with pytest.raises(UserError, match="labels"):
        thresholds.read_results(tmp_path / "bare", (32, 32))
