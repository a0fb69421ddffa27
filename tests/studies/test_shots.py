"""The study of several shots: results that are completed, their tables, and halves of the images on two devices."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from hta.config import ModelConfig, TrainingConfig
from hta.models.pyramid import Pyramid
from hta.runs import prepare
from hta.runtime import Runtime
from hta.studies import shots
from hta.studies.__main__ import main
from hta.studies.shots import CHANGES, STATISTICS, ShotsOptions, TwoDevices
from hta.training.scale import ScaleTrainer
from tests.data.trees import write_mnist
from tests.helpers import picture, random_images

CPU = torch.device("cpu")
CLOSE = dict(rtol=0, atol=1e-5)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(shots, "MARKS", (1, 2))


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """FashionMNIST with four training images of two classes, and six test images that are noise as well."""
    folder = tmp_path_factory.mktemp("data")
    write_mnist(folder / "FashionMNIST" / "raw", [0, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1])
    return folder


def study(data_root, folder, capsys, *more):
    argv = ["shots", "--shots", "2", "--size", "13", "--threads", "1", "--results", str(folder), *more]
    assert main([*argv, *(["--data_root", str(data_root)] if data_root else [])]) == 0
    return capsys.readouterr().out


def test_a_result_is_completed_by_a_longer_training_with_the_same_seed(data_root, tmp_path, capsys):
    folder = tmp_path / "shots"
    assert "1 iterations" in study(data_root, folder, capsys, "--niter", "1")
    (path,) = folder.iterdir()
    assert path.name == "t_shirt_2shot_draw1_13px_nothing.json"
    short = json.loads(path.read_text(encoding="utf-8"))
    assert list(short["marks"]) == ["1"]
    fields = dict(pos_class="t_shirt", shots=2, draw=1, size=13, change="nothing", test_limit=1000)
    assert {name: short[name] for name in fields} == fields
    assert len(short["training_images"]) == 2

    assert "2 iterations" in study(data_root, folder, capsys, "--niter", "2")
    long = json.loads(path.read_text(encoding="utf-8"))
    assert list(long["marks"]) == ["1", "2"]
    assert long["marks"]["1"] == short["marks"]["1"]
    for measured in long["marks"].values():
        assert set(measured) == {"training_images", "running"}
        assert measured["training_images"]["training_share"] != measured["running"]["training_share"]
        assert all(0 <= value <= 1 for one in measured.values() for value in one.values())

    before = path.read_bytes()
    assert study(data_root, folder, capsys, "--niter", "2") == f"{path} is complete\n"
    assert path.read_bytes() == before


def test_without_data_the_results_are_printed(tmp_path, capsys):
    marks = {"1": (0.5, 0.25), "2": (0.75, 0.125)}
    for draw, change, known in ((1, "alpha=50", "1"), (1, "nothing", "12"), (2, "nothing", "")):
        measured = {
            mark: {
                "training_images": {"auroc": marks[mark][0], "training_share": marks[mark][1]},
                "running": {"auroc": marks[mark][1], "training_share": marks[mark][0]},
            }
            for mark in known
        }
        record = dict(pos_class="bag", shots=draw, draw=draw, size=25, change=change, marks=measured)
        (tmp_path / f"{draw}_{change}.json").write_text(json.dumps(record), encoding="utf-8")
    lines = study(None, tmp_path, capsys).splitlines()
    assert lines == [
        "",
        "| batch_statistics=training_images | 1 | 2 |",
        "| --- | ---: | ---: |",
        "| bag, 1 image, draw 1, 25 px | 50.0 (0.250) | 75.0 (0.125) |",
        "| bag, 1 image, draw 1, 25 px, alpha=50 | 50.0 (0.250) |  |",
        "| bag, 2 images, draw 2, 25 px |  |  |",
        "",
        "| batch_statistics=running | 1 | 2 |",
        "| --- | ---: | ---: |",
        "| bag, 1 image, draw 1, 25 px | 25.0 (0.500) | 12.5 (0.750) |",
        "| bag, 1 image, draw 1, 25 px, alpha=50 | 25.0 (0.500) |  |",
        "| bag, 2 images, draw 2, 25 px |  |  |",
    ]


def votes(niter, marks):
    """The votes for four images after so many iterations, by what statistics the discriminator keeps."""
    config = shots._config(ShotsOptions(niter=niter, draw=3, size=13))
    training_set = prepare([picture(seed, 16, 16) / 255 for seed in range(2)], ["a", "b"], config)
    trained = shots.trained(ScaleTrainer, training_set, Runtime(CPU, torch.float32), marks)
    images = random_images((13, 13), 4, dtype=torch.float32)
    return {(mark, name): scorer.votes(images)[0] for mark, scorers in trained for name, scorer in scorers.items()}


def test_a_short_training_is_the_beginning_of_a_longer_one():
    short, long = votes(1, [1]), votes(2, [1, 2])
    assert list(short) == [(1, name) for name in STATISTICS]
    assert list(long) == [(mark, name) for mark in (1, 2) for name in STATISTICS]
    assert all(torch.equal(value, long[key]) for key, value in short.items())
    assert not torch.equal(long[1, "running"], long[2, "running"])  # measuring does not stop the training
    assert not torch.equal(long[2, "training_images"], long[2, "running"])


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_trained_and_named(data_root, tmp_path, capsys, change):
    study(data_root, tmp_path, capsys, "--niter", "1", "--change", change)
    (path,) = tmp_path.iterdir()
    assert path.name == f"t_shirt_2shot_draw1_13px_{change.replace(' ', '-')}.json"
    assert json.loads(path.read_text(encoding="utf-8"))["change"] == change


def test_changes_and_the_draw_are_those_of_the_settings():
    plain, strong, without = (
        shots._config(ShotsOptions(draw=3, change=name)) for name in ("nothing", "alpha=50", "no generator")
    )
    assert (plain.training.manualSeed, plain.training.niter) == (3, 2000)
    assert strong == replace(plain, training=replace(plain.training, alpha=50.0))
    assert without.model.objective == "transformations_only"
    assert (without.training, without.model.nfc) == (plain.training, plain.model.nfc)


def halves(num_images=4):
    """A scale in training as if on two devices, and its discriminator as each device would have it."""
    config = ModelConfig(task="class", num_transforms=42, min_size=13, max_size=13, nfc=4)
    pyramid = Pyramid(config, (13, 13), num_images, CPU, torch.float32)
    images = random_images((13, 13), num_images, dtype=torch.float32)
    trainer = TwoDevices(pyramid, images, TrainingConfig(niter=1))
    return trainer, images.chunk(2), [deepcopy(trainer.scale.discriminator) for _ in range(2)]


def test_each_of_two_devices_sees_its_half_of_the_images_alone():
    trainer, images, discriminators = halves()
    before = [block.norm.momentum for block in trainer.scale.discriminator.body.blocks]
    logits = trainer._discriminate(trainer.canvases.render(trainer.real))
    coverages = discriminators[0].coverages(trainer.canvases, 2, CPU)
    expected = [D(trainer.canvases.render(half), coverages) for D, half in zip(discriminators, images, strict=True)]
    for batch, *parts in zip(logits, *expected, strict=True):
        by_image = batch.unflatten(0, (-1, 4))  # of each canvas, the images in their order
        for found, part in zip(by_image.chunk(2, dim=1), parts, strict=True):
            torch.testing.assert_close(found, part.unflatten(0, (-1, 2)), **CLOSE)
    state, first, second = (D.state_dict() for D in (trainer.scale.discriminator, *discriminators))
    kept = [name for name in state if "running" in name]
    assert kept
    for name in kept:
        torch.testing.assert_close(state[name], first[name], **CLOSE)
        assert not torch.allclose(state[name], second[name], **CLOSE)
    assert [block.norm.momentum for block in trainer.scale.discriminator.body.blocks] == before
    assert trainer.index.tolist() == [0, 1, 0, 1]


def test_halves_that_are_alike_are_trained_as_one():
    """Of the discriminator alone: its losses are means over patches, and each half has the statistics of the whole."""
    trainer, (first, _), _ = halves()
    twice = first.repeat(2, 1, 1, 1)
    both = TwoDevices(trainer.pyramid, twice, trainer.config)
    whole = ScaleTrainer(trainer.pyramid, twice, trainer.config)
    for mine, plain in zip(
        both._discriminate(both.real_canvases), whole._discriminate(whole.real_canvases), strict=True
    ):
        torch.testing.assert_close(mine, plain, **CLOSE)
