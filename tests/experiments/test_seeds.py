"""What seeds and images move, and what a mean over seeds gains: by hand, and what scores that do not fit leave out."""

import io
import math
import os
import time
import zipfile

import numpy as np
import pytest
from scipy import stats

from hta.evaluation.metrics import image_auroc
from hta.experiments import seeds
from hta.experiments.__main__ import main
from hta.experiments.results import load_runs, load_scores
from tests.experiments.helpers import write_result

LABELS = np.array([0, 0, 1, 1])
NAMES = np.array(["a", "b", "c", "d"])
ONE, TWO = [0.1, 0.6, 0.5, 0.8], [0.6, 0.1, 0.5, 0.8]
"""Scores of two seeds: each has 3 of 4 pairs in order, their mean (0.35, 0.35, 0.5, 0.8) has all."""


def write_seed(folder, seed, auroc=None, scores=None, *, draw=1, labels=LABELS, names=NAMES, settings=(), **spec):
    """A result of one seed of the training, with scores if there are any; returns the path of the scores."""
    if scores is not None:
        auroc = round(image_auroc(labels, scores)["value"], 6)
    settings = tuple(sorted([*settings, ("manualSeed", seed)]))
    spec = write_result(folder, auroc, draw=draw, settings=settings, **{"data_sha256": f"image {draw}"} | spec)
    path = folder / f"{spec.name}.npz"
    if scores is not None:
        np.savez_compressed(path, scores=np.array(scores), labels=labels, names=names)
    return path


def printed(capsys, folder):
    assert main(["seeds", "--results", str(folder)]) == 0
    captured = capsys.readouterr()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in captured.out.splitlines()]
    return [row for row in rows[2:] if row != [""]], captured.err.splitlines()


def test_the_spread_over_seeds_stands_beside_that_over_images(tmp_path, capsys):
    for seed, auroc in ((1, 0.80), (2, 0.70), (3, 0.60)):
        write_seed(tmp_path, seed, auroc)
    write_seed(tmp_path, 1, 0.60, draw=2)
    write_seed(tmp_path, 1, 0.90, pos_class="coat")
    write_seed(tmp_path, 2, 0.80, pos_class="coat")
    write_seed(tmp_path, 1, 0.50, settings=(("niter", 100),))
    write_seed(tmp_path, 7, 0.01, variant="e")  # not the method
    write_result(tmp_path, 0.02, data_sha256="image 1")  # no seed of its own
    rows, warnings = printed(capsys, tmp_path)
    setup, root = "FashionMNIST, 1 training image, 42 transformations, preset fast, 1000 test images", math.sqrt(2)
    changed, spread = f"{setup}, niter=100", f"{10 * root:.1f}"
    assert warnings == []
    assert rows == [
        [setup, "bag", "3", "70.0 ± 10.0", "2", f"70.0 ± {spread}", "", ""],
        [setup, "coat", "2", f"85.0 ± {5 * root:.1f}", "1", "90.0", "", ""],
        [changed, "bag", "1", "50.0", "1", "50.0", "", ""],
        [setup, "mean of 2", "2 to 3", f"77.5 ± {(10 + 5 * root) / 2:.1f}", "1 to 2", f"80.0 ± {spread}", "", ""],
        [changed, "mean of 1", "1", "50.0", "1", "50.0", "", ""],
    ]


def test_the_models_of_all_seeds_are_joined(tmp_path, capsys):
    for name, other in (("bag", TWO), ("coat", ONE)):
        write_seed(tmp_path, 1, scores=ONE, pos_class=name)
        write_seed(tmp_path, 2, scores=other, pos_class=name)
    write_seed(tmp_path, 1, 0.5, draw=2)  # another image, without scores
    (bag, coat, mean), warnings = printed(capsys, tmp_path)
    assert warnings == []
    # Of the bag, each seed misses one of the two pairs of the anomaly c, and none of d. So a resample gains 0, 25 or 50
    # points, as c is none, one or both of its anomalies.
    assert bag[2:4] == ["2", "75.0 ± 0.0"]
    assert bag[6:] == ["100.0", "+25.0 (+0.0 to +50.0)"]
    assert coat[6:] == ["75.0", "+0.0 (+0.0 to +0.0)"]
    half = stats.t.ppf(0.975, 1) * 12.5
    assert mean[1:] == ["mean of 2", "2", "75.0 ± 0.0", "1 to 2", mean[5], "87.5", f"+12.5 ± {half:.1f}"]


def test_the_gain_and_its_interval_are_those_of_resampled_images():
    draw = np.random.default_rng(1)
    labels = np.array([0] * 8 + [1] * 12)
    scores = (draw.random((3, 20)) + labels / 4).round(1)  # with ties

    def gain(chosen):
        each = [image_auroc(labels[chosen], one[chosen])["value"] for one in scores]
        return image_auroc(labels[chosen], scores.mean(axis=0)[chosen])["value"] - np.mean(each)

    joined, pairs = seeds.join(scores, labels)
    assert joined == image_auroc(labels, scores.mean(axis=0))["value"]
    assert pairs.mean() == pytest.approx(gain(np.arange(20)), abs=1e-12)
    normal, anomalous = draw.integers(0, 8, (500, 8)), draw.integers(8, 20, (500, 12))
    gains = [gain(np.concatenate(pair)) for pair in zip(normal, anomalous, strict=True)]
    low, high = seeds.mean_interval(pairs)
    assert (low, high) == tuple(seeds.mean_interval(pairs))
    np.testing.assert_allclose([low, high], np.quantile(gains, [0.025, 0.975]), atol=0.3 * np.std(gains))


def test_an_interval_takes_seconds_for_a_thousand_images():
    draw = np.random.default_rng(0)
    labels = np.repeat([0, 1], [100, 900])
    start = time.process_time()
    seeds.mean_interval(seeds.join(draw.random((5, 1000)), labels)[1])
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "changed", [dict(names=NAMES[::-1]), dict(labels=1 - LABELS), dict(labels=LABELS[[0, 2, 3]], names=NAMES[:3])]
)
def test_seeds_scored_on_other_images_are_not_joined(tmp_path, capsys, changed):
    write_seed(tmp_path, 1, scores=ONE)
    write_seed(tmp_path, 2, scores=ONE[: len(changed.get("labels", LABELS))], **changed)
    (bag, _), warnings = printed(capsys, tmp_path)
    assert (bag[2], bag[6:], warnings) == ("2", ["", ""], [])


def test_training_images_that_differ_are_not_one_image(tmp_path, capsys):
    for seed in (1, 2, 3):
        write_seed(tmp_path, seed, scores=ONE, data_sha256="same" if seed < 3 else "other")
    (bag, _), _ = printed(capsys, tmp_path)
    assert bag[2:4] == ["2", "75.0 ± 0.0"]


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def bomb():
    """An archive of a few bytes with an array of 4 GB of zeros, according to its header, of which 32 MB are there."""
    file, header = io.BytesIO(), io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (2**29,)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("scores.npy", header.getvalue() + bytes(2**25))
    return file.getvalue()


GOOD = dict(scores=np.array(TWO), labels=LABELS, names=NAMES)
DAMAGED = {
    "empty": b"",
    "no archive": b"PK\x03\x04" + bytes(range(256)),
    "cut": npz(**GOOD)[:-200],
    "array": b"\x93NUMPY\x01\x00" + bytes(100),
    "pickle": b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00]\x94.",
    "objects": npz(**GOOD | {"names": np.array([{}, "b", "c", "d"], dtype=object)}),
    "a part missing": npz(scores=GOOD["scores"], labels=LABELS),
    "words": npz(**GOOD | {"scores": NAMES}),
    "fewer names": npz(**GOOD | {"names": NAMES[:3]}),
    "a table": npz(**{name: array.reshape(2, 2) for name, array in GOOD.items()}),
    "not finite": npz(**GOOD | {"scores": np.array([0.1, 0.2, np.nan, 0.8])}),
    "other labels": npz(**GOOD | {"labels": np.array([0, 0, 1, 2])}),
    "one class": npz(**GOOD | {"labels": np.array([1, 1, 1, 1])}),
    "another AUROC": npz(**GOOD | {"scores": np.array([0.1, 0.2, 0.3, 0.4])}),
    "too large": bomb(),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_scores_are_named_and_left_out(tmp_path, capsys, content):
    write_seed(tmp_path, 1, scores=ONE)
    path = write_seed(tmp_path, 2, scores=TWO)
    path.write_bytes(content)
    (bag, _), warnings = printed(capsys, tmp_path)
    assert bag[2:4] == ["2", "75.0 ± 0.0"]
    assert bag[6:] == ["", ""]
    (line,) = warnings
    assert line.startswith(f"{path}: left out, not the scores of its result (")
    assert len(line) < 700


def test_scores_that_are_no_file_are_named_and_missing_ones_are_not(tmp_path, capsys):
    write_seed(tmp_path, 1, scores=ONE)
    path = write_seed(tmp_path, 2, scores=TWO)
    path.unlink()
    assert printed(capsys, tmp_path)[1] == []
    os.mkfifo(path)
    (line,) = printed(capsys, tmp_path)[1]
    assert "no plain file" in line


def test_any_damaged_byte_is_survived(tmp_path):
    path = write_seed(tmp_path, 1, scores=ONE)
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    (run,) = load_runs(tmp_path).itertuples()
    assert load_scores(tmp_path, run)["scores"].tolist() == ONE
    for _ in range(300):
        content = bytearray(whole)
        for place in draw.integers(0, len(whole), 3):
            content[place] = draw.integers(256)
        path.write_bytes(content)
        found = load_scores(tmp_path, run)
        assert found is None or found["scores"].shape == (4,)


def test_without_a_seed_of_its_own_no_run_is_shown(tmp_path, capsys):
    write_result(tmp_path, 0.5)
    assert printed(capsys, tmp_path) == ([], [])
