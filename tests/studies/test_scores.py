"""The study of scores: its measures by hand, its readings by their definition, and a whole run on a small tree."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hta
from hta.data.sample import Sample
from hta.evaluation.nearest import merged
from hta.studies import scores
from hta.studies.__main__ import main
from hta.studies.demo import cut
from tests.data.trees import save

TINY = {"recipe": "views", "niter": 1, "min_size": 25, "max_size": 30, "nfc": 4}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Two good and two bad crops of the demo's wall, one of them with a mask, and the training image."""
    folder = tmp_path_factory.mktemp("data") / "small_wall"
    save(folder / "train" / "good" / "a.png", cut(208, 137))
    for number, (kind, top) in enumerate((("good", 0), ("good", 40), ("hole", 20), ("hole", 60))):
        image, mask = cut(top, 0), np.zeros((128, 128), np.uint8)
        if kind == "hole":
            image[30:60, 30:60] = 0
            mask[30:60, 30:60] = 255
            save(folder / "ground_truth" / "hole" / f"{number}_mask.png", mask)
        save(folder / "test" / kind / f"{number}.png", image)
    return folder


def test_maps_are_standardised_by_their_own_median_within_limits_or_by_each_place():
    views = torch.tensor([[[1.0, 1.0, 1.0]], [[1.0, 1.0, 3.0]]])  # their medians are 1
    maps = torch.tensor([[[0.5, 1.0, 4.0]], [[2.0, 2.0, 6.0]], [[9.0, 9.0, 9.0]]])
    found = scores.standardised(maps, views)
    assert torch.equal(found["as it is"], maps)
    own = [[0.5 / 1.2, 1 / 1.2, 4 / 1.2], [1, 1, 3], [3, 3, 3]]  # at least 1.2 times, at most 3 times
    torch.testing.assert_close(found["own typical"][:, 0], torch.tensor(own))
    spread = np.sqrt([views.var() / 4, views.var() / 4, 2 + views.var() / 4])
    torch.testing.assert_close(found["by place"][1, 0], torch.tensor(([1, 1, 4] / spread), dtype=torch.float32))


def test_scores_are_means_of_the_highest_values_of_a_map():
    values = np.random.default_rng(1).permutation(200).astype(np.float32)
    found = scores.pooled(torch.from_numpy(values).view(1, 10, 20))
    assert {name: float(value[0]) for name, value in found.items()} == {
        "maximum": 199,
        "top 1 %": 198.5,
        "top 5 %": 194.5,
        "mean": 99.5,
    }


def test_false_alarms_and_recall_are_at_the_quantile_of_the_views():
    normal = np.arange(101) / 100  # 5 % are above 0.95
    found = scores.measure(np.array([0.1, 0.96, 0.94, 2.0]), normal, np.array([0, 0, 1, 1]))
    assert found == {"auroc": 0.75, "false_alarms": 0.5, "recall": 0.5}


def test_pixels_are_measured_at_the_size_of_the_masks_and_unknown_ones_left_out(tree):
    paths = [tree / "test" / "hole" / f"{n}.png" for n in (2, 3)]
    mask = tree / "ground_truth" / "hole" / "2_mask.png"
    samples = [Sample(paths[0], "a", 1, "hole", (mask,)), Sample(paths[1], "b", 1, "hole")]
    perfect = torch.from_numpy(np.asarray(Image.open(mask)) > 0).float()
    assert scores.measure_pixels(torch.stack([perfect, 1 - perfect]), 1.0, samples)["pixel_auroc"] == 1
    assert scores.measure_pixels(perfect[None], 1.0, samples[1:]) == {}


def test_readings_follow_their_definitions(tree):
    model = hta.train(tree / "train" / "good" / "a.png", hta.default_config(**TINY, precision="float32"))
    images, scorer = model.training_images, model.scorer
    found = scores.readings(scorer, images)
    other = images.flip(-1)
    votes = scorer.votes(other)
    expected = merged([-one.clamp(min=1e-4).log().mean(dim=1) for one in votes], scorer.plan)
    torch.testing.assert_close(found["log votes"](other), expected)
    torch.testing.assert_close(found["nearest features"](other), model.nearest.distances(other))
    assert float(found["squared error"](images).max()) == 0
    assert (found["nearest pixels"](other).mean() > found["nearest pixels"](images).mean()).item()


def test_a_run_writes_its_measures_once_and_the_tables_show_them(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(scores.RECIPES, "views", scores.Recipe(TINY, seeds=2))
    monkeypatch.setattr(scores, "_VIEWS", 4)
    argv = ["scores", "--results", str(tmp_path / "out"), "--threads", "1"]
    assert main(argv) == 0
    assert capsys.readouterr().out == ""
    for said in ("AUROC", "exists"):
        assert main([*argv, "--data_root", str(tree)]) == 0
        assert said in capsys.readouterr().out
    (path,) = Path(tmp_path / "out").iterdir()
    record = json.loads(path.read_text(encoding="utf-8"))
    assert (record["set"], record["training_image"]) == ("small_wall", "train/good/a.png")
    assert record["images"] == {"good": 2, "bad": 2}
    chosen = record["measures"][" | ".join(scores.CHOSEN)]
    assert set(chosen) == {"auroc", "false_alarms", "recall", "pixel_auroc", "aupro"}
    assert len(record["measures"]) == 9 * 3 * 4 + 2
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("| **nearest features, own typical**")]
    assert f"| {100 * chosen['auroc']:.1f} |" in line
    assert sum(line.startswith("| ---") for line in lines) == 3
