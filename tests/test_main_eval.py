"""main_eval.py from the command line: what it writes, what it refuses, and that the numbers depend on nothing else."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hta
import main_eval
import main_train
from hta import inputs, runs
from hta.config import RuntimeConfig, ScoringConfig, default_config
from hta.evaluation.nearest import ratios
from hta.evaluation.thresholds import proportion
from hta.model import Model
from hta.models.storage import RunFolder
from tests.helpers import enter_copy, picture, save, snapshot

ROOT = Path(__file__).parents[1]
RUNTIME = {"threads": 1, "precision": "float32", "not_cuda": True}
QUICK = ["--threads", "1", "--precision", "float32", "--not_cuda"]
TINY = {"min_size": 14, "max_size": 22, "niter": 3, **RUNTIME}  # three scales for 20 x 24 px; working size 19 x 22


def make_test_set(folder):
    """MVTec's layout: three good images, two dents with masks."""
    for i in range(3):
        save(folder / "test" / "good" / f"{i}.png", picture(seed=i))
    for i in range(2):
        pixels, mask = picture(seed=i).copy(), np.zeros((20, 24), dtype=np.uint8)
        pixels[5:11, 8:14], mask[5:11, 8:14] = np.random.default_rng(i).integers(0, 256, (6, 6, 3)), 255
        save(folder / "test" / "dent" / f"{i}.png", pixels)
        save(folder / "ground_truth" / "dent" / f"{i}_mask.png", mask)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Models and a test set; only to be read.

    `wall`, `votes` (of the same image by the paper's recipe), `other` (wider, other images) and `begun` (unfinished).
    """
    root = tmp_path_factory.mktemp("trained")
    of_votes = default_config(nfc=4, recipe="paper", **TINY)
    hta.train(picture(), default_config(nfc=4, **TINY), folder=root / "TrainedModels" / "wall", num_samples=0)
    hta.train(picture(), of_votes, folder=root / "TrainedModels" / "votes", num_samples=0)
    hta.train(picture(1, 24, 20), default_config(nfc=6, **TINY), folder=root / "TrainedModels" / "other", num_samples=0)
    unfinished = runs.prepare([picture().astype(np.float32) / 255], ["wall.png"], default_config(nfc=4, **TINY))
    with runs.new_run(RunFolder(root / "TrainedModels" / "begun"), unfinished):
        pass
    make_test_set(root / "parts")
    return root


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A working directory with models and test set."""
    return enter_copy(trained, tmp_path, monkeypatch)


def run(*arguments, model="wall", test_dir="parts", out="out"):
    return main_eval.main(
        ["--input_name", model, "--test_dir", str(test_dir), "--out", out, *QUICK, *map(str, arguments)]
    )


def rows_of(folder="out"):
    with (Path(folder) / "scores.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def scores_of(folder="out"):
    return {row["path"]: float(row["anomaly_score"]) for row in rows_of(folder)}


def document_of(folder="out"):
    return json.loads((Path(folder) / "metrics.json").read_text())


def pixels_of(path):
    with Image.open(path) as image:
        return np.array(image)


def load(name="wall"):
    return hta.load(name, "TrainedModels", RuntimeConfig(**RUNTIME))


def scores_by_distance(peaks, limit, name="wall"):
    """What maxima of maps score: 0 at the mean of the views that were kept beside the model, 1 at the threshold."""
    normal = ratios(kept_statistics(name)[1]).mean()
    return (ratios(np.array(peaks)) - normal) / (ratios(np.array(limit)) - normal)


IMAGES = [f"test/dent/{i}.png" for i in range(2)] + [f"test/good/{i}.png" for i in range(3)]


# --- what a run leaves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["wall", "votes"])
def test_a_labelled_folder_gives_scores_metrics_maps_and_overlays(place, capsys, model):
    assert run(model=model) == 0
    pictures = {kind.format(name) for kind in ("maps/{}.png", "overlays/{}.png", "overlays/{}.jpg") for name in IMAGES}
    files = {path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file()}
    assert files == pictures | {"scores.csv", "metrics.json", "report.html"}
    assert {path.name for path in place.iterdir()} == {"TrainedModels", "parts", "out"}

    rows = rows_of()
    shares = [f"vote_share_scale_{n}" for n in range(3)]
    assert list(rows[0]) == ["path", "label", "anomaly_score", *shares, "decision", "map_peak", "fault"]
    assert [(row["path"], row["label"]) for row in rows] == list(zip(IMAGES, "11000", strict=True))
    for row in rows:
        shares = [float(row[f"vote_share_scale_{n}"]) for n in range(3)]
        if model == "votes":
            assert float(row["anomaly_score"]) == pytest.approx(1 - np.mean(shares), abs=1e-15)
        levels = pixels_of(f"out/maps/{row['path']}.png")
        assert float(row["map_peak"]) == pytest.approx(levels.max() / 65535, abs=1e-5)

    out = capsys.readouterr().out
    assert all(words in out for words in ("5 image(s) scored", "image AUROC", "95 % interval", "AUPRO"))
    ranked_by, title = "map_peak", "highest value of the map"  # maps of votes decide on defects
    if model == "wall":
        ranked_by, title = "anomaly_score", "anomaly score"
        expected = scores_by_distance(
            [float(row["map_peak"]) for row in rows], document_of()["decision"]["pixel_threshold"]
        )
        np.testing.assert_allclose(list(scores_of().values()), expected, rtol=0, atol=1e-5)
    best = max(rows, key=lambda row: float(row[ranked_by]))["path"]
    ranking = out.split(f"most anomalous ({title}, 1 = threshold, image):")[1]
    assert ranking.splitlines()[1].split()[1] == best
    assert out.splitlines()[-2:] == ["results: out", "report: out/report.html"]


@pytest.mark.parametrize(("model", "score", "quantity"), [("wall", "nearest", "score"), ("votes", "paper", "map")])
def test_metrics_json_tells_what_was_measured_and_how(place, model, score, quantity):
    assert run("--batch_size", 2, model=model) == 0
    document, scores = document_of(), scores_of()
    pairs = [scores[bad] > scores[good] for bad in IMAGES[:2] for good in IMAGES[2:]]
    metrics = document["metrics"]
    assert metrics["image_auroc"]["value"] == pytest.approx(np.mean(pairs))
    assert metrics["image_auroc"]["interval_95"]["low"] <= metrics["image_auroc"]["value"]
    peaks = {row["path"]: float(row["map_peak"]) for row in rows_of()}
    pairs = [(peaks[bad] > peaks[good]) + (peaks[bad] == peaks[good]) / 2 for bad in IMAGES[:2] for good in IMAGES[2:]]
    assert metrics["map_auroc"]["value"] == pytest.approx(np.mean(pairs))
    assert metrics["deciding"]["quantity"] == quantity
    deciding = metrics["image_auroc" if quantity == "score" else "map_auroc"]
    assert metrics["deciding"]["image_auroc"] == deciding
    assert metrics["deciding"]["auroc_by_kind"]["dent"]["value"] == deciding["value"]
    headline = re.search(r'<dt>image AUROC</dt><dd class="value">([0-9.]+)<', Path("out/report.html").read_text())[1]
    assert headline == f"{deciding['value']:.3f}"
    assert metrics["map_auroc"]["interval_95"]["high"] >= metrics["map_auroc"]["value"]
    assert set(metrics["auroc_by_kind"]) == {"dent"}
    assert metrics["pixels"] == {"images": 5, "regions": 2, "normal": 5 * 480 - 72, "anomalous": 72}
    assert all(0 <= metrics[name]["value"] <= 1 for name in ("pixel_auroc", "pixel_f1_max", "aupro"))
    settings = {
        "fraction_defect": 0.05,
        "aggregate": "mean",
        "score": score,
        "batch_size": 2,
        "target_fpr": 0.05,
        "no_frame_check": False,
    }
    assert document["scoring"] == settings | {"threshold": None, "task": "defect"}
    assert document["model"]["config"]["model"]["nfc"] == 4
    assert document["model"]["config"]["training"]["recipe"] == ("views" if model == "wall" else "paper")
    assert document["seed"] == {"training": 0, "bootstrap": 0}
    assert {"hta", "torch", "numpy", "python"} <= set(document["versions"])
    assert document["machine"] == {"device": "cpu", "dtype": "float32", "threads": 1}
    assert document["seconds"]["per_image"] > 0


def test_the_default_folder_is_the_models_and_a_name_may_be_that_of_the_image(place):
    for name, test_dir in (("wall.png", "parts"), ("TrainedModels/wall", "parts/test/good/1.png")):
        assert main_eval.main(["--input_name", name, "--test_dir", test_dir, *QUICK]) == 0
    assert {path.name for path in Path("TrainedModels/wall/results").iterdir()} == {"parts", "1"}


def test_stored_maps_are_those_of_the_model(place):
    assert run() == 0
    assert run("--full_size_maps", out="full") == 0
    model = load()
    for name, votes in zip(IMAGES, model.stream([f"parts/{name}" for name in IMAGES]), strict=True):
        small, full = (pixels_of(Path(folder) / "maps" / f"{name}.png") for folder in ("out", "full"))
        assert small.dtype == full.dtype == np.uint16
        assert (small.shape, full.shape) == ((19, 22), (20, 24))
        np.testing.assert_allclose(small / 65535, votes.anomaly_map, rtol=0, atol=0.51 / 65535)
        np.testing.assert_allclose(full / 65535, votes.full_size_map(), rtol=0, atol=0.51 / 65535)


def test_equal_stems_do_not_collide(place):
    for number, name in enumerate(("a.png", "a.jpg", "a.jpg.png", "b/a.png", "b/c/a.bmp")):
        save(place / "stems" / name, picture(seed=number))
    assert run(test_dir="stems") == 0
    maps = {path.relative_to("out/maps").as_posix(): path.read_bytes() for path in Path("out/maps").rglob("*.png")}
    assert set(maps) == {"a.png.png", "a.jpg.png", "a.jpg.png.png", "b/a.png.png", "b/c/a.bmp.png"}
    assert len(set(maps.values())) == 5


def test_one_colour_scale_whatever_else_is_scored(place):
    assert run() == 0
    save(place / "two" / "same.png", picture(seed=1))
    save(place / "two" / "white.png", np.full((30, 20, 3), 255, np.uint8))
    assert run(test_dir="two", out="out2") == 0
    assert document_of("out")["colour_scale"] == document_of("out2")["colour_scale"]
    overlays = [pixels_of(path) for path in ("out/overlays/test/good/1.png.png", "out2/overlays/same.png.png")]
    np.testing.assert_array_equal(*overlays)
    assert overlays[0].shape == (256, 307, 3)
    assert pixels_of("out2/overlays/white.png.png").shape == (384, 256, 3)


def test_overlays_outline_the_mask(place):
    assert run() == 0
    cyan = [
        (pixels_of(f"out/overlays/test/{name}.png.png") == (0, 255, 255)).all(axis=2) for name in ("dent/0", "good/0")
    ]
    rows, columns = np.nonzero(cyan[0])
    found, factor = [rows.min(), rows.max(), columns.min(), columns.max()], 256 / 20
    np.testing.assert_allclose(found, [5 * factor, 11 * factor, 8 * factor, 14 * factor], rtol=0, atol=3)
    assert not cyan[0][80:125, 115:165].any()
    assert not cyan[1].any()


def test_scores_alone_without_maps(place):
    assert run("--no_maps") == 0
    assert {path.name for path in Path("out").iterdir()} == {"scores.csv", "metrics.json", "report.html"}
    document = document_of()
    assert document["metrics"]["aupro"] == {"value": None, "reason": "no masks, or no maps"}
    assert document["metrics"]["image_auroc"]["value"] is not None
    assert document["colour_scale"] is None
    assert run(out="with") == 0
    assert scores_of("with") == scores_of("out")


# --- labels -----------------------------------------------------------------------------------------------------------


def test_masks_the_wrong_way_round_are_said_and_turned(place, capsys, caplog):
    assert run("--batch_size", 2) == 0
    expected = document_of()
    for path in Path("parts/ground_truth/dent").glob("*.png"):
        save(path, 255 - pixels_of(path))
    Path("parts/ground_truth").rename("marks")
    Path("parts/test/good").rename("parts/test/OK")
    assert run("--batch_size", 2, "--overwrite", "--mask_dir", "marks") == 0
    (warning,) = document_of()["warnings"]
    assert "2 of 2 masks" in warning
    assert "give --invert_masks" in warning
    assert "labels: OK = good; dent = defective" in caplog.text
    assert run("--batch_size", 2, "--overwrite", "--mask_dir", "marks", "--invert_masks") == 0
    assert document_of()["warnings"] == []
    for name in ("image_auroc", "pixel_auroc", "aupro"):
        assert document_of()["metrics"][name] == expected["metrics"][name]


@pytest.mark.parametrize(("model", "quantity"), [("wall", "score"), ("votes", "map")])
def test_without_labels_metrics_are_null_with_a_reason(place, capsys, model, quantity):
    assert run(model=model, test_dir="parts/test/dent") == 0
    assert [row["label"] for row in rows_of()] == ["", ""]
    metrics = document_of()["metrics"]
    deciding = metrics.pop("deciding")
    assert deciding.pop("quantity") == quantity
    for name, metric in [*metrics.items(), *deciding.items()]:
        assert (metric["value"], bool(metric["reason"])) == (None, True), name
    assert "image AUROC: not defined, no labels" in capsys.readouterr().out
    decision = document_of()["decision"]
    assert decisions_of() == decisions_by_map(decision["pixel_threshold"])
    assert (decision["confusion"], decision["recall"]["value"]) == (None, None)


def test_labels_of_a_csv(place):
    Path("labels.csv").write_text("path,label\n0.png,good\n1.png,scratch\n2.png,1\n")
    assert run("--labels_csv", "labels.csv", test_dir="parts/test/good") == 0
    assert [row["label"] for row in rows_of()] == ["0", "1", "1"]
    assert set(document_of()["metrics"]["auroc_by_kind"]) == {"scratch", "unnamed"}


def test_an_anomalous_image_without_a_mask_is_left_out_of_the_pixel_metrics(place):
    Path("parts/ground_truth/dent/1_mask.png").unlink()
    assert run() == 0
    document = document_of()
    assert document["metrics"]["pixels"]["images"] == 4
    assert document["warnings"] == ["1 images that may be anomalous have no mask: the pixel metrics leave them out"]


@pytest.mark.parametrize("name", ["one.png", "deep.png"])
def test_one_image_alone(place, name):
    pixels = picture(seed=3) if name == "one.png" else (picture(seed=3)[..., 0].astype(np.uint16) * 257)
    save(place / name, pixels)
    assert run(test_dir=name) == 0
    assert list(scores_of()) == [name]
    assert pixels_of(f"out/maps/{name}.png").shape == (19, 22)
    assert pixels_of(f"out/overlays/{name}.png").dtype == np.uint8


# --- settings ---------------------------------------------------------------------------------------------------------


def test_fraction_task_and_aggregate(place):
    votes = {}
    for fraction in (0.05, 0.3, 1.0):
        assert run("--fraction_defect", fraction, "--no_maps", "--overwrite", model="votes") == 0
        votes[fraction] = rows_of()
    shares = [[float(row["vote_share_scale_0"]) for row in rows] for rows in votes.values()]
    assert np.all(np.diff(shares, axis=0) > 0)  # the lowest votes come first
    assert run("--no_maps", "--overwrite", model="votes") == 0
    assert rows_of() == votes[0.05]
    assert run("--task", "class", "--score", "paper", "--no_maps", "--overwrite", model="votes") == 0
    # The decisions are by a threshold of the task's own.
    assert [list(row.values())[:-3] for row in rows_of()] == [list(row.values())[:-3] for row in votes[1.0]]
    assert document_of()["scoring"]["fraction_defect"] == 1

    assert run("--aggregate", "minmax", "--no_maps", "--overwrite", model="votes") == 0
    table = np.array([[float(row[f"vote_share_scale_{n}"]) for n in range(3)] for row in rows_of()])
    stretched = (table - table.min(axis=0)) / np.ptp(table, axis=0)
    np.testing.assert_allclose(list(scores_of().values()), 1 - stretched.mean(axis=1), rtol=0, atol=1e-12)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_new_process_on_a_folder_whose_name_is_not_utf_8_gives_the_same_bits(place):
    assert run() == 0
    shutil.copytree("parts", os.fsdecode(b"caf\xe9"))
    arguments = ["--input_name", "wall", "--test_dir", os.fsdecode(b"caf\xe9"), *QUICK]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    script = [sys.executable, str(ROOT / "main_eval.py"), *arguments]
    result = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "report: TrainedModels/wall/results/caf\\xe9/report.html" in result.stdout
    again = Path(os.fsdecode(b"TrainedModels/wall/results/caf\xe9"))
    assert (again / "scores.csv").read_bytes() == Path("out/scores.csv").read_bytes()
    assert document_of(again)["decision"] == document_of()["decision"]
    for path in Path("out").rglob("*.png"):
        assert path.read_bytes() == (again / path.relative_to("out")).read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses such names")
def test_any_name_is_the_same_when_scores_csv_is_read_and_none_is_a_formula(place, capsys):
    formulas = ["=1+1.png", "+1.png", "-1.png", "@s.png", "\tt.png", "\rq.png", "\nq.png", "=d/e.png", "'=q.png"]
    plain = ["cr\rx.png", "nl\nx.png", "a'b.png", "esc\x1b[31m.png", 'quote",.png']
    for name in formulas + plain:
        save(place / "odd" / name, picture())
    assert run("--no_maps", test_dir="odd") == 0
    paths = [row["path"] for row in rows_of()]
    assert {path.removeprefix("'") for path in paths} == {*formulas, *plain}
    assert {path for path in paths if path.startswith("'")} == {f"'{name}" for name in formulas}
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("broken", ["shares", "anomaly_map"])
def test_a_score_that_is_not_finite_is_not_written(place, capsys, monkeypatch, broken):
    stream = Model.stream

    def poisoned(*arguments, **options):
        for votes in stream(*arguments, **options):
            yield votes._replace(**{broken: np.full_like(getattr(votes, broken), np.nan)})

    monkeypatch.setattr(Model, "stream", poisoned)
    assert run() == 1
    error = capsys.readouterr().err
    assert "error: test/dent/0.png: its score is not finite" in error
    assert not Path("out").exists()


def test_images_unlike_the_training_image_are_said_and_kept(place, caplog):
    save(place / "odd" / "gray.png", np.repeat(picture()[..., :1], 3, axis=2))
    save(place / "odd" / "dark.png", picture() // 8)
    save(place / "odd" / "small.png", picture(0, 10, 12))
    save(place / "odd" / "wide.png", picture(0, 20, 48))
    assert run(test_dir="odd") == 0
    warnings = document_of()["warnings"]
    for words in ("are gray", "much darker", "smaller than", "another aspect ratio"):
        assert [line.startswith("1 of 4 test images") for line in warnings if words in line] == [True]
        assert caplog.text.count(words) == 1
    assert len(rows_of()) == 4


@pytest.mark.parametrize("task", ["defect", "class"])
@pytest.mark.parametrize("name_of_model", ["wall", "votes"])
def test_blank_and_blurred_frames_are_rejected_above_every_other_image(place, caplog, task, name_of_model):
    frames = {
        "black": np.zeros_like(picture()),
        "white": np.full_like(picture(), 255),
        "gray": np.full_like(picture(), 130),
    }
    for name, pixels in frames.items():
        save(place / "parts" / "test" / "blank" / f"{name}.png", pixels)
    names = [f"test/blank/{name}.png" for name in sorted(frames)]
    for arguments in ([], ["--no_maps"], ["--aggregate", "calibrated", "--no_maps"]):
        assert run("--task", task, *arguments, "--overwrite", model=name_of_model) == 0
        rows = {row["path"]: row for row in rows_of()}
        others = [float(row["anomaly_score"]) for path, row in rows.items() if path not in names]
        for name in names:
            assert (rows[name]["decision"], rows[name]["fault"]) == ("reject", "nearly uniform")
            assert float(rows[name]["anomaly_score"]) > max(others)
        assert {row["fault"] for path, row in rows.items() if path not in names} == {""}
    assert "3 of 8 images cannot show what the training images show (3 nearly uniform)" in caplog.text
    model = load(name_of_model)
    alone = model.score(frames["gray"])
    highest = [1.0]
    if name_of_model == "wall":
        # The map is 1 everywhere, which stands for a ratio of 1,000 and not for an infinite one.
        highest = [scores_by_distance(1.0, model.threshold(ScoringConfig()).pixel_threshold)]
        assert 100 < highest[0] < np.inf
    assert (alone.anomaly_scores.tolist(), alone.decisions.tolist()) == (pytest.approx(highest, rel=1e-9), [True])
    assert alone.anomaly_maps[0].min() > 0.999
    assert run("--no_frame_check", "--overwrite", model=name_of_model) == 0
    assert max(scores_of()[name] for name in names) < highest[0]
    assert max(float(row["map_peak"]) for row in rows_of()) < 1


# --- reject or pass ---------------------------------------------------------------------------------------------------


def decisions_of(folder="out"):
    return [row["decision"] for row in rows_of(folder)]


def expected_decisions(threshold, folder="out"):
    return ["reject" if score > threshold else "pass" for score in scores_of(folder).values()]


def decisions_by_map(pixel_threshold, folder="out"):
    """Of the images, in the order of scores.csv, by the maps as they are written."""
    maps = [pixels_of(f"{folder}/maps/{name}.png").max() / 65535 for name in scores_of(folder)]
    assert min(abs(peak - pixel_threshold) for peak in maps) > 1e-5  # rounding decides nothing
    return ["reject" if peak > pixel_threshold else "pass" for peak in maps]


def kept_statistics(name="wall"):
    """Scores of the views with the mean aggregate, and the peaks of their maps."""
    data = json.loads(Path(f"TrainedModels/{name}/calibration.json").read_text())
    return 1 - np.mean(data["shares"], axis=1), np.array(data["peaks"])


@pytest.mark.parametrize("target_fpr", [None, 0.5])
@pytest.mark.parametrize(("model", "decided_by"), [("wall", "score"), ("votes", "map")])
def test_the_threshold_is_that_of_the_kept_statistics(place, capsys, target_fpr, model, decided_by):
    assert run(*([] if target_fpr is None else ["--target_fpr", target_fpr]), model=model) == 0
    decision, (scores, peaks) = document_of()["decision"], kept_statistics(model)
    wanted = target_fpr or 0.05
    assert (decision["source"], decision["target_fpr"], decision["reason"]) == ("calibrated", wanted, None)
    if model == "wall":
        assert decision["threshold"] == 1.0
        scores = scores_by_distance(peaks, decision["pixel_threshold"])
        assert decisions_of() == expected_decisions(1.0)
    assert np.mean(scores > decision["threshold"]) == pytest.approx(wanted, abs=1e-12)
    assert np.mean(peaks > decision["pixel_threshold"]) == pytest.approx(wanted, abs=1e-12)
    assert decision["decided_by"] == decided_by
    assert decisions_of() == decisions_by_map(decision["pixel_threshold"])
    assert f"for {100 * wanted:g} % false alarms" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["wall", "votes"])
def test_the_decision_is_counted_against_the_labels(place, model):
    assert run("--no_maps", model=model) == 0
    assert not Path("out/maps").exists()
    middle = float(np.median(list(scores_of().values())))
    assert run("--threshold", repr(middle), model=model, out="given") == 0
    decision, rejected = document_of("given")["decision"], decisions_of("given")
    assert (decision["threshold"], decision["source"], decision["target_fpr"]) == (middle, "given", None)
    assert decision["pixel_threshold"] == document_of()["decision"]["pixel_threshold"]
    assert rejected == expected_decisions(middle)
    assert decision["rejected"] == rejected.count("reject") == 2  # three of five are not above their median
    right, false = rejected[:2].count("reject"), rejected[2:].count("reject")
    assert list(decision["confusion"].values()) == [right, false, 3 - false, 2 - right]
    assert (decision["recall"]["value"], decision["false_positive_rate"]["value"]) == (right / 2, false / 3)
    peaks = [float(row["map_peak"]) for row in rows_of("given")][2:]
    assert decision["pixel_false_alarms"] == proportion(sum(p > decision["pixel_threshold"] for p in peaks), 3)
    # The maxima of the maps decide, or the scores that are made of them, although no map is written.
    limit = document_of()["decision"]["pixel_threshold"]
    assert decisions_of() == ["reject" if float(row["map_peak"]) > limit else "pass" for row in rows_of()]


def test_minmax_decides_by_a_given_threshold_only(place, capsys):
    assert run("--aggregate", "minmax", "--no_maps") == 0
    assert decisions_of() == [""] * 5
    decision = document_of()["decision"]
    assert (decision["threshold"], decision["rejected"], decision["confusion"]) == (None, None, None)
    assert "depend on the test set" in decision["reason"]
    assert f"no decision: {decision['reason']}" in capsys.readouterr().out
    assert run("--aggregate", "minmax", "--no_maps", "--threshold", 0.5, out="given") == 0
    assert decisions_of("given") == expected_decisions(0.5, "given")


def test_scores_near_one_are_told_apart_and_kept_in_full(place, capsys, monkeypatch):
    shares = 1e-10 * np.arange(1, 6)
    monkeypatch.setattr(Model, "anomaly_scores", lambda *_: 1 - shares)
    assert run("--threshold", repr(1 - 2.5e-10), "--no_maps", model="votes") == 0
    assert list(scores_of().values()) == (1 - shares).tolist()
    assert decisions_of() == ["reject"] * 2 + ["pass"] * 3
    out = capsys.readouterr().out
    assert "2 rejected: anomaly score above 0.999999999750 (given)" in out
    listed = out.split("most anomalous")[1].splitlines()[1:6]
    levels = ["1.04", "1.01", "0.99", "0.98", "0.97"]  # log(n * 1e-10) / log(2.5e-10)
    assert listed == [f"  {level}  {name}" for level, name in zip(levels, IMAGES, strict=True)]


@pytest.mark.parametrize("aggregate", ["mean", "calibrated"])
def test_batch_sizes_and_the_library_give_the_same_scores_and_decisions(place, aggregate):
    options = ["--aggregate", aggregate, "--target_fpr", 0.5, "--no_maps"]
    for size in (1, 2, 64):
        assert run(*options, "--batch_size", size, out=f"out{size}") == 0
        assert decisions_of(f"out{size}") == decisions_of("out1")
        numbers = [[list(map(float, list(row.values())[3:-3])) for row in rows_of(f"out{n}")] for n in (1, size)]
        np.testing.assert_allclose(*numbers, rtol=0, atol=1e-6)
    images = [f"parts/{name}" for name in IMAGES]
    scores = load().score(images, aggregate=aggregate, target_fpr=0.5, with_maps=False)
    assert ["reject" if rejected else "pass" for rejected in scores.decisions] == decisions_of("out64")
    assert scores.anomaly_scores.tolist() == list(scores_of("out64").values())


# --- a threshold made of good images ----------------------------------------------------------------------------------


@pytest.fixture
def good(place):
    """19 good pictures in two folders, beside them the training image and a copy of the first."""
    save(place / "spare" / "training.png", picture())
    for seed in range(200, 219):
        save(place / "spare" / str(seed % 2) / f"{seed}.png", picture(seed=seed))
    shutil.copy("spare/0/200.png", "spare/copy.png")
    return "spare"


@pytest.mark.parametrize(("model", "decided_by"), [("wall", "score"), ("votes", "map")])
def test_maps_decide_by_the_maxima_of_the_good_images(good, capsys, model, decided_by):
    assert run(model=model, test_dir=good, out="of_good") == 0
    peaks = {row["path"]: float(row["map_peak"]) for row in rows_of("of_good")}
    assert peaks.pop("training.png") < max(peaks.values())
    assert max(peaks.values()) < 1  # none of them is a frame that cannot be judged
    capsys.readouterr()
    assert run("--good_dir", good, model=model) == 0
    decision, document = document_of()["decision"], document_of()
    assert decision["pixel_threshold"] == pytest.approx(max(peaks.values()), abs=1e-6)
    assert (decision["source"], decision["decided_by"], decision["target_fpr"]) == ("good images", decided_by, 0.05)
    assert decisions_of() == decisions_by_map(decision["pixel_threshold"])
    if model == "wall":
        assert decision["threshold"] == 1.0
        assert decisions_of() == expected_decisions(1.0)
        expected = scores_by_distance([float(row["map_peak"]) for row in rows_of()], decision["pixel_threshold"])
        np.testing.assert_allclose(list(scores_of().values()), expected, rtol=0, atol=1e-5)
    assert document["good_images"] == {"dir": "spare", "images": 19}
    said = capsys.readouterr()
    assert "(good images, for 5 % false alarms)" in said.out
    assert "training.png is left out, the model was trained on it" in said.err
    assert "--good_dir: spare/copy.png is left out, it is a copy of spare/0/200.png" in said.err
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "The threshold was made of 19 good images that the model was not trained on" in page
    assert "19 good images of spare" in page
    assert document_of("of_good")["good_images"] is None


@pytest.mark.parametrize("asked", [["--task", "class", "--score", "paper"], ["--aggregate", "calibrated"]])
def test_scores_decide_by_those_of_the_good_images(good, asked):
    options = ["--no_maps", *asked]
    assert run(*options, test_dir=good, out="of_good") == 0
    scores = sorted(float(row["anomaly_score"]) for row in rows_of("of_good") if "/" in row["path"])
    assert run(*options, "--good_dir", good, "--target_fpr", 0.1) == 0
    decision = document_of()["decision"]
    assert decision["threshold"] == pytest.approx(scores[17], abs=1e-6)  # the 20 * 0.9 = 18th
    assert (decision["source"], decision["pixel_threshold"]) == ("good images", None)
    above = [float(row["anomaly_score"]) > decision["threshold"] for row in rows_of()]
    assert [row["decision"] == "reject" for row in rows_of()] == above


def test_another_class_is_scored_in_units_of_the_threshold(place):
    assert run("--task", "class", model="votes") == 0
    document, model = document_of(), load("votes")
    assert (document["scoring"]["score"], document["decision"]["threshold"]) == ("combined", 1.0)
    assert document["metrics"]["deciding"]["quantity"] == "score"
    of_class = replace(model, task="class")
    images = [row["path"] for row in rows_of()]
    found = of_class.score([Path("parts", image) for image in images])
    np.testing.assert_allclose(list(scores_of().values()), found.anomaly_scores, rtol=1e-5, atol=1e-5)
    assert [row["decision"] == "reject" for row in rows_of()] == found.decisions.tolist()


def test_a_given_threshold_and_minmax_leave_the_good_images_the_maps(good):
    assert run("--good_dir", good, "--threshold", 0.5, model="votes", out="given") == 0
    assert run("--good_dir", good, "--aggregate", "minmax", model="votes", out="minmax") == 0
    given, minmax = document_of("given")["decision"], document_of("minmax")["decision"]
    assert given["pixel_threshold"] == minmax["pixel_threshold"]
    assert (given["source"], given["decided_by"]) == ("given", "score")
    assert (minmax["threshold"], minmax["source"], minmax["decided_by"]) == (None, "good images", "map")
    assert given["pixel_threshold"] < 1
    assert run("--good_dir", good, "--threshold", 0.5, out="of_distances") == 0
    assert run("--good_dir", good, out="made") == 0
    given, made = document_of("of_distances")["decision"], document_of("made")["decision"]
    assert given["pixel_threshold"] == made["pixel_threshold"] < 1
    assert (given["threshold"], given["source"], given["decided_by"]) == (0.5, "given", "score")
    assert scores_of("of_distances") == scores_of("made")
    assert decisions_of("of_distances") == expected_decisions(0.5, "of_distances")


# --- from a photograph to decisions, by default -----------------------------------------------------------------------


@pytest.fixture
def photo(good):
    """A model of a photograph, trained by main_train.py with nothing said of how."""
    save(Path("photo.png"), picture())
    small = ["--min_size", "14", "--max_size", "22", "--nfc", "4", "--niter", "3", "--num_samples", "0"]
    assert main_train.main(["--input_name", "photo.png", *small, *QUICK]) == 0
    training = json.loads(Path("TrainedModels/photo/config.json").read_text())["config"]["training"]
    assert training["recipe"] == "views"
    return "photo"


def test_by_default_views_are_trained_on_and_distances_decide_by_good_images(photo, good, capsys):
    assert run("--good_dir", good, model=photo) == 0
    document, decision = document_of(), document_of()["decision"]
    assert (document["scoring"]["score"], document["good_images"]["images"]) == ("nearest", 19)
    assert (decision["threshold"], decision["source"], decision["decided_by"]) == (1.0, "good images", "score")
    assert decisions_of() == expected_decisions(1.0) == decisions_by_map(decision["pixel_threshold"])
    expected = scores_by_distance([float(row["map_peak"]) for row in rows_of()], decision["pixel_threshold"], photo)
    np.testing.assert_allclose(list(scores_of().values()), expected, rtol=0, atol=1e-5)
    assert scores_of()["test/good/0.png"] < 0  # the training image is nearer than views of it
    assert "rejected: anomaly score above 1.000000 (good images, for 5 % false alarms)" in capsys.readouterr().out


def test_by_default_a_blank_frame_is_rejected_above_all_with_a_finite_score(photo, caplog, capsys):
    save(Path("parts/test/blank/gray.png"), np.full_like(picture(), 130))
    assert run("--full_size_maps", model=photo) == 0
    rows, limit = {row["path"]: row for row in rows_of()}, document_of()["decision"]["pixel_threshold"]
    blank = rows.pop("test/blank/gray.png")
    assert (blank["decision"], blank["fault"], float(blank["map_peak"])) == ("reject", "nearly uniform", 1.0)
    score = float(blank["anomaly_score"])
    assert score == pytest.approx(scores_by_distance(1.0, limit, photo), rel=1e-9)
    assert np.isfinite(score)
    assert score > 100 * max(float(row["anomaly_score"]) for row in rows.values())
    assert pixels_of("out/maps/test/blank/gray.png.png").min() == 65535
    assert {row["fault"] for row in rows.values()} == {""}
    assert "1 of 6 images cannot show what the training images show (1 nearly uniform)" in caplog.text
    ranking = capsys.readouterr().out.split("most anomalous (anomaly score, 1 = threshold, image):")[1]
    assert ranking.splitlines()[1].endswith("  test/blank/gray.png")


def test_what_is_no_good_folder_is_refused_in_one_line(good, place, capsys):
    Path("empty").mkdir()
    shutil.copytree(f"{good}/0", "few")
    dataset = ["--dataset", "mnist", "--pos_class", "1", "--good_dir", good]
    Path("links").mkdir()
    for number in range(19):
        Path(f"links/{number}.png").symlink_to(Path("spare/1/201.png").resolve())
    shutil.copytree(good, "copies")
    shutil.copy("parts/test/good/1.png", "copies/renamed.png")
    shutil.copytree(good, "torn")
    Path("torn/torn.png").write_bytes(b"no image")
    for arguments, words in (
        (["--good_dir", good, "--out", f"{good}/new/out"], "is inside --good_dir"),
        (["--good_dir", ""], "--good_dir: is empty"),
        (["--good_dir", "links"], "1 good image, but --target_fpr 0.05 needs at least 19"),
        (["--good_dir", "torn"], "torn.png"),
        (
            ["--good_dir", good, "--no_maps", "--threshold", "0.5", "--score", "paper"],
            "--threshold and --no_maps leave no threshold",
        ),
        (["--good_dir", good, "--no_maps", "--aggregate", "minmax"], "--aggregate minmax and --no_maps leave no"),
        (["--good_dir", "nowhere"], "--good_dir: no folder nowhere"),
        (["--good_dir", "empty"], "--good_dir empty: no image in it"),
        (["--good_dir", "few"], "needs at least 19"),
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


# --- refused ----------------------------------------------------------------------------------------------------------


def assert_refused(capsys, arguments, *words):
    """Exit status 2, one line that holds the words, and not a file changed."""
    before = snapshot()
    assert main_eval.main([*arguments, *QUICK]) == 2
    captured = capsys.readouterr()
    # On a slow machine, progress is said beside the error.
    errors = [line for line in captured.err.splitlines() if line and " %, " not in line]
    assert len(errors) == 1, captured.err
    assert [word for word in words if word not in errors[0]] == [], errors[0]
    assert (captured.out, snapshot()) == ("", before)


def arguments_with(**changes):
    values = {"input_name": "wall", "test_dir": "parts"} | changes
    given = {f"--{name}": str(value) for name, value in values.items() if value is not None}
    return [text for option in given.items() for text in option if text]  # "" is a flag's


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_name": None}, ("--input_name is missing",)),
        ({"test_dir": None}, ("--test_dir is missing",)),
        ({"input_name": "wal"}, ("TrainedModels/wal", "no model here", "--models_dir")),
        ({"input_name": "begun"}, ("TrainedModels/begun", "--resume")),
        ({"test_dir": "nowhere"}, ("--test_dir", "nowhere")),
        ({"test_dir": "empty"}, ("empty", "no image")),
        ({"test_dir": "torn"}, ("0_mask.png", "test/dent/0.png", "23 x 20", "24 x 20")),
        ({"labels_csv": "labels.csv"}, ("labels.csv", "nowhere.png")),
        ({"labels_csv": "no.csv"}, ("no.csv",)),
        ({"fraction_defect": 0}, ("--fraction_defect 0", "0 < value <= 1")),
        ({"aggregate": "median"}, ("--aggregate median", "mean, minmax, calibrated")),
        ({"aggregate": "minmax", "test_dir": "parts/test/good/0.png"}, ("--aggregate minmax", "mean")),
        ({"target_fpr": "5%"}, ("--target_fpr", "5%")),
        ({"threshold": "nan"}, ("--threshold nan",)),
        ({"task": "other"}, ("--task other", "defect, class")),
        ({"batch_size": 0}, ("--batch_size 0",)),
        ({"device": "cuda:99"}, ("--device cuda:99",)),
        ({"out": "parts/results"}, ("--out parts/results", "inside --test_dir")),
        ({"out": "TrainedModels"}, ("--out TrainedModels", "not a result")),
        ({"out": "parts/test/good/0.png/deeper", "test_dir": "parts/test/dent"}, ("0.png is a file",)),
        ({"out": "."}, ("--out .", "which is not a result")),
        ({"full_size_maps": "", "no_maps": ""}, ("--full_size_maps", "--no_maps")),
        ({"fraction": 0.5}, ("--fraction",)),
        ({"no-no_maps": 1}, ("--no-no_maps",)),
        ({"checkpoint_every": 3}, ("--checkpoint_every",)),
        ({"input_name": "x" * 300}, ("x" * 300, "no model here", "check --input_name")),
        *[
            ({name: "x" * 300}, ("x" * 300, "name too long", "check the path"))
            for name in ("models_dir", "out", "good_dir")
        ],
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(place, capsys, changes, words):
    (place / "empty").mkdir()
    shutil.copytree("parts", "torn")
    save(place / "torn/ground_truth/dent/0_mask.png", np.zeros((20, 23), np.uint8))
    (place / "labels.csv").write_text("path,label\nnowhere.png,1\n")
    assert_refused(capsys, arguments_with(**changes), *words)


def test_results_are_overwritten_if_asked_and_foreign_files_never(place, capsys):
    assert run("--no_maps") == 0
    Path("out/scores.csv").write_text("mine")
    capsys.readouterr()
    assert_refused(capsys, arguments_with(out="out"), "--out out", "--overwrite")
    assert run("--overwrite") == 0
    assert len(rows_of()) == 5
    assert sorted(path.name for path in place.iterdir()) == ["TrainedModels", "out", "parts"]
    Path("out/notes.txt").write_text("mine")
    capsys.readouterr()
    assert_refused(capsys, [*arguments_with(out="out"), "--overwrite"], "notes.txt")
    assert_refused(capsys, [*arguments_with(out="parts"), "--overwrite"], "inside --test_dir")


def test_the_folder_that_one_works_in_is_not_replaced(place, capsys, monkeypatch):
    (place / "inside" / "deeper").mkdir(parents=True)
    monkeypatch.chdir("inside")
    arguments = ["--input_name", "../TrainedModels/wall", "--test_dir", "../parts", *QUICK]
    for out in (".", "../inside"):
        assert_refused(capsys, [*arguments, "--out", out], f"--out {out}", "deeper, which is not a result")
    (place / "inside" / "deeper").rmdir()
    for out in (".", "../inside"):
        assert_refused(capsys, [*arguments, "--out", out], f"--out {out}", "working directory", "another folder")


def test_unreadable_images_are_listed_or_left_out(place, capsys, caplog):
    (place / "parts/test/good/broken.png").write_bytes(Path("parts/test/good/0.png").read_bytes()[:60])
    (place / "parts/test/good/text.jpg").write_text("no image")
    assert_refused(capsys, arguments_with(out="out"), "broken.png", "text.jpg", "--skip_unreadable")
    assert run("--skip_unreadable") == 0
    assert list(scores_of()) == IMAGES
    assert set(document_of()["skipped"]) == {"test/good/broken.png", "test/good/text.jpg"}
    assert "left out" in caplog.text
    assert run(out="reference", test_dir="parts/test/dent") == 0
    assert scores_of("reference")["0.png"] == scores_of()["test/dent/0.png"]
    (place / "bad").mkdir()
    for number in range(13):
        (place / "bad" / f"{number:02d}.png").write_text("no image")
    capsys.readouterr()
    arguments = [*arguments_with(test_dir="bad"), "--skip_unreadable"]
    assert_refused(capsys, arguments, "bad/00.png", "bad/09.png", "and 3 more", "none is left")


def test_minmax_counts_what_is_left_and_is_refused_before_scoring(place, capsys, monkeypatch):
    (place / "parts/test/dent/1.png").write_text("no image")
    arguments = [*arguments_with(test_dir="parts/test/dent"), "--aggregate", "minmax", "--skip_unreadable"]
    before = snapshot()
    monkeypatch.delattr(Model, "stream")
    assert main_eval.main([*arguments, *QUICK]) == 2
    assert "--aggregate minmax" in capsys.readouterr().err
    assert snapshot() == before


# --- models that are not whole ----------------------------------------------------------------------------------------


DAMAGES = {
    "removed": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "of another model": lambda path: shutil.copy(path.parents[1] / "other" / path.name, path),
    "of a wider model": lambda path: path.write_text(path.read_text().replace('"nfc": 4', '"nfc": 5')),
}


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("scale_2.safetensors", "removed", ("scale_2.safetensors", "missing")),
        ("training_images.safetensors", "removed", ("training_images.safetensors", "missing")),
        ("training_images.safetensors", "truncated", ("training_images.safetensors", "not a complete")),
        ("scale_1.safetensors", "of another model", ("scale_1.safetensors", "another model")),
        ("training_images.safetensors", "of another model", ("training_images.safetensors", "another model")),
        ("calibration.json", "truncated", ("calibration.json", "cannot be read as JSON", "remove the file")),
        ("config.json", "of a wider model", ("scale_0.safetensors", "another model")),
    ],
)
def test_a_damaged_model_is_refused(place, capsys, name, damage, words):
    DAMAGES[damage](place / "TrainedModels" / "wall" / name)
    assert_refused(capsys, arguments_with(), *words)


# --- a run that breaks ------------------------------------------------------------------------------------------------


def test_a_run_that_breaks_leaves_nothing_and_keeps_the_former_results(place, capsys, monkeypatch):
    assert run("--no_maps") == 0
    before = snapshot()
    (place / "parts/test/good/zzz.png").write_text("no image")
    before["parts/test/good/zzz.png"] = b"no image"
    monkeypatch.setattr(inputs, "check_readable", lambda *_: {})  # as if it broke only after the check
    assert run("--overwrite") == 2
    assert "zzz.png" in capsys.readouterr().err
    assert snapshot() == before
    assert run(out="new/deep/out") == 2
    assert snapshot() == before


def test_a_picture_that_cannot_be_written_ends_the_run(place, capsys):
    # A file name that is a legal one, until `.png` is appended to it.
    save(place / "long" / ("a" * 250 + ".png"), picture())
    save(place / "long" / "b.png", picture())
    assert run(test_dir="long") == 1
    reading, error = capsys.readouterr().err.splitlines()
    assert reading == "2 images: 2 without a label, no masks"
    assert "cannot be written" in error
    assert {path.name for path in place.iterdir()} == {"TrainedModels", "parts", "long"}
