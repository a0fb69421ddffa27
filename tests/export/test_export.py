"""An exported graph scores as the model does: in onnxruntime, in torch.export, and without torch."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import hta
from hta.config import RuntimeConfig, default_config
from hta.export.__main__ import main
from hta.vacancy import foreign_files
from tests.helpers import picture, save, snapshot

ROOT = Path(__file__).parents[2]
TINY = {"min_size": 14, "max_size": 22, "scale_factor": 0.6, "nfc": 4, "niter": 2, "not_cuda": True, "threads": 1}
FLOAT32 = RuntimeConfig(precision="float32", not_cuda=True, threads=1)
MODELS = {
    "nearest": {"precision": "float32"},
    "votes": {"task": "class", "precision": "bfloat16"},  # 54 transformations, since the picture is in colour
    "paper": {"recipe": "paper", "precision": "float32"},
}
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder of the models, each with its graph; only to be read."""
    root = tmp_path_factory.mktemp("models")
    for name, settings in MODELS.items():
        hta.train(picture(), default_config(**TINY | settings), folder=root / name, num_samples=0)
        assert export(root, name) == 0
    return root


def export(root, name, *arguments):
    return main(["--input_name", name, "--models_dir", str(root), "--threads", "1", *arguments])


def opened(path):
    """A session, and what its file says."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    return session, session.get_modelmeta().custom_metadata_map


def images_of(count, height, width):
    """Pictures that the model was not trained on; the third is of a single colour: `(count, H, W, 3)` in [0, 1]."""
    pictures = np.stack([picture(seed, height, width) for seed in range(1, count + 1)])
    pictures[2:] = 99
    return pictures.astype(np.float32) / 255


def first_axes(images):
    return images.transpose(0, 3, 1, 2)


@every_model
@pytest.mark.parametrize("shape", [(1, 20, 24), (3, 31, 37), (3, 22, 26)])
def test_scores_shares_maps_and_decisions_are_those_of_the_model(models, name, shape):
    session, about = opened(models / name / "model.onnx")
    assert [output.name for output in session.get_outputs()] == ["anomaly_score", "vote_shares", "anomaly_map"]
    model = hta.load(models / name, runtime=FLOAT32)
    images = images_of(*shape)
    scores, shares, maps = session.run(None, {"images": first_axes(images)})
    expected, votes = model.score(images), list(model.stream(images))
    assert [bool(image.fault) for image in votes] == [False, False, True][: shape[0]]
    # Shares of two steps of training hardly differ from image to image; the score "nearest" does.
    tolerance = 1e-4 if name == "nearest" else 2e-6
    np.testing.assert_allclose(scores, expected.anomaly_scores, rtol=1e-6, atol=tolerance)
    np.testing.assert_allclose(shares, [image.shares for image in votes], rtol=0, atol=2e-6)
    np.testing.assert_allclose(maps, [image.anomaly_map for image in votes], rtol=0, atol=1e-5)
    decides = {"anomaly_score": scores, "anomaly_map": maps.max(axis=(1, 2))}[about["decided_by"]]
    assert (decides > float(about["limit"])).tolist() == expected.decisions.tolist()
    assert shape[0] == 1 or abs(scores[0] - scores[1]) > 3 * tolerance  # else they could be those of any image


@every_model
def test_the_file_says_what_it_is(models, name):
    session, about = opened(models / name / "model.onnx")
    assert [axis if isinstance(axis, int) else 0 for axis in session.get_inputs()[0].shape] == [0, 3, 0, 0]
    model = hta.load(models / name, runtime=FLOAT32)
    limits, config = model.threshold(model_scoring(about)), model.record.config
    found = {key: about[key] for key in ("hta_version", "task", "recipe", "transformations", "working_size")}
    size = json.dumps(model.pyramid.plan.working_size)
    numbers = str(config.model.num_transforms)
    assert list(found.values()) == [hta.__version__, model.task, config.training.recipe, numbers, size]
    assert json.loads(about["thresholds"])["pixel_threshold"] == pytest.approx(limits.pixel_threshold, abs=1e-6)
    assert json.loads(about["scoring"])["score"] == {"nearest": "nearest", "votes": "combined"}.get(name, "paper")
    assert about["decided_by"] == {"paper": "anomaly_map"}.get(name, "anomaly_score")
    assert about["limit"] in about["decision"]
    text = (models / name / "model.onnx").read_bytes()
    assert str(ROOT).encode() not in text
    assert str(models).encode() not in text


def model_scoring(about):
    return hta.config.ScoringConfig(**json.loads(about["scoring"]))


def test_options_of_scoring_go_into_the_graph(models, tmp_path):
    """The votes' score of a model for defects, calibrated, for half of the patches, without a look at the frame."""
    options = {"score": "paper", "aggregate": "calibrated", "fraction_defect": 0.5}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    path = tmp_path / "other.pt2"
    words += ["--no_frame_check", "--format", "pt2", "--output", str(path)]
    assert export(models, "nearest", *words) == 0
    extra = {"metadata.json": ""}
    graph = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra).module()
    assert json.loads(extra["metadata.json"])["scoring"]["fraction_defect"] == 0.5
    images = images_of(3, 27, 20)
    scores, _, maps = graph(torch.from_numpy(first_axes(images).copy()))
    expected = hta.load(models / "nearest", runtime=FLOAT32).score(images, frame_check=False, **options)
    np.testing.assert_allclose(scores, expected.anomaly_scores, rtol=0, atol=1e-4)
    assert maps.shape == (3, 19, 22)


def test_a_graph_is_not_replaced_unasked_and_belongs_to_its_model(models, tmp_path, capsys):
    before = snapshot(models)
    (tmp_path / "folder.onnx").mkdir()
    refused = {
        (): "model.onnx: exists",
        ("--output", str(models / "paper" / "scale_0.safetensors"), "--overwrite"): "must be a file .onnx",
        ("--output", str(tmp_path / "none" / "a.onnx")): "in a folder that exists",
        ("--output", str(tmp_path / "folder.onnx"), "--overwrite"): "exists",
        ("--aggregate", "minmax", "--output", str(tmp_path / "a.onnx")): "--aggregate minmax",
    }
    for words, reason in refused.items():
        assert export(models, "paper", *words) == 2
        assert reason in capsys.readouterr().err.splitlines()[-1]
    assert snapshot(models) == before
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]
    assert foreign_files(models / "paper") == []
    hta.train(picture(), default_config(**TINY | MODELS["paper"]), folder=models / "paper", overwrite=True)
    assert not (models / "paper" / "model.onnx").exists()  # it was of the model that is gone


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(models, monkeypatch, capsys, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    assert export(models, "nearest") == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"pip install {missing}")


def test_the_example_scores_without_torch_and_hta(models, tmp_path):
    save(tmp_path / "a.png", picture(1, 40, 30))
    blocked = "import runpy, sys; sys.modules.update(torch=None, hta=None); runpy.run_path(sys.argv.pop(1))"
    command = [sys.executable, "-c", blocked, ROOT / "examples" / "score_onnx.py"]
    graph = models / "votes" / "model.onnx"
    printed = subprocess.run([*command, graph, tmp_path / "a.png"], capture_output=True, text=True, check=True).stdout
    path, score, word = printed.split()
    expected = hta.load(models / "votes", runtime=FLOAT32).score(tmp_path / "a.png")
    assert path == str(tmp_path / "a.png")
    assert float(score) == pytest.approx(float(expected.anomaly_scores[0]), abs=1e-4)
    assert word == ("reject" if expected.decisions[0] else "pass")


def test_the_page_shows_the_example():
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert (ROOT / "examples" / "score_onnx.py").read_text(encoding="utf-8").endswith(f'"""\n\n{code}')
