"""Trees as they are published: what main_eval.py reads them as, what it says of them, and where the user decides."""

import csv
import io
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest

import hta
import main_eval
from hta.config import default_config
from hta.data.folders import find_test_images
from hta.data.loaders import load_dataset
from hta.errors import UserError
from tests.data import trees
from tests.data.trees import picture, save, save_all, save_marks

QUICK = ["--threads", "1", "--precision", "float32", "--not_cuda"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder of a tiny model; only to be read."""
    folder = tmp_path_factory.mktemp("models")
    runtime = {"threads": 1, "precision": "float32", "not_cuda": True}
    config = default_config(nfc=4, min_size=14, max_size=20, niter=1, **runtime)
    hta.train(picture(0), config, folder=folder / "part", num_samples=0)
    return folder


@pytest.fixture
def evaluate(models, tmp_path):
    """Score a folder; returns the lines that are printed until the images are scored, and the label of every image."""

    def run(test_dir, *arguments):
        common = ["--models_dir", str(models), "--input_name", "part", "--out", str(tmp_path / "out"), "--overwrite"]
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(printed):
            status = main_eval.main([*common, "--test_dir", str(test_dir), *QUICK, "--no_maps", *map(str, arguments)])
        assert status == 0
        with (tmp_path / "out" / "scores.csv").open(encoding="utf-8", newline="") as stream:
            labels = {row["path"]: row["label"] for row in csv.DictReader(stream)}
        before, said, after = printed.getvalue().partition(" image(s) scored")
        assert said
        assert " masks" not in after
        return before.splitlines(), labels

    return run


SUMMARIES = {
    "btad": "5 images: 2 good, 3 in 1 kind of defect, 3 masks",
    "visa": "6 images: 3 good, 3 in 1 kind of defect, 3 masks",
    "toy": "5 images: 2 good, 3 in 2 kinds of defect, 3 masks",
    "loco": "4 images: 2 good, 2 in 2 kinds of defect, 3 masks",
    "mpdd": "4 images: 1 good, 3 in 2 kinds of defect, 3 masks",
    "ksdd": "6 images: 4 good, 2 defective, 6 masks",
    "ksdd2": "3 images: 2 good, 1 defective, 3 masks",
}
TREES = {name: getattr(trees, f"{name}_tree") for name in SUMMARIES}


@pytest.mark.parametrize("name", SUMMARIES)
def test_what_a_tree_is_read_as_is_said_once_before_the_scores(tmp_path, evaluate, name):
    lines, labels = evaluate(TREES[name](tmp_path / name))
    assert [line for line in lines if " images: " in line] == [SUMMARIES[name]]
    good, bad = (list(labels.values()).count(label) for label in "01")
    assert SUMMARIES[name].startswith(f"{good + bad} images: {good} good, {bad} ")


def found_in(*arguments, **options):
    """Label, kind and number of masks of every image, by its path."""
    return {s.relative: (s.label, s.defect, len(s.masks)) for s in find_test_images(*arguments, **options)}


def summary_of(*arguments, **options):
    find_test_images(*arguments, notes=(notes := []), **options)
    return notes[0]


# --- labels by masks --------------------------------------------------------------------------------------------------


def test_where_every_image_has_a_mask_and_no_folder_tells_labels_an_all_black_one_means_good(tmp_path):
    root = trees.ksdd_tree(tmp_path / "ksdd")
    found = {f"{item}/Part{n}.jpg": (0, None, 1) for item in ("kos01", "kos02", "kos03") for n in (0, 5)}
    assert found_in(root) == found | {f"{item}/Part5.jpg": (1, None, 1) for item in ("kos01", "kos03")}
    found_in(root / "kos01", notes=(notes := []))
    assert notes == [
        "2 images: 1 good, 1 defective, 2 masks",
        "labels: by the masks; where nothing is marked = good",
    ]
    # All black, and none at all.
    save_marks(root, "kos01/Part5_label.bmp", mark=None)
    assert summary_of(root / "kos01") == "2 images: 2 good, 2 masks"
    (root / "kos01" / "Part5_label.bmp").unlink()
    assert summary_of(root / "kos01") == "2 images: 2 without a label, 1 mask"


def test_labels_by_masks_that_mark_what_is_good(tmp_path):
    root = trees.ksdd2_tree(tmp_path)
    for path in root.glob("test/*_GT.png"):
        save(path, 255 - np.asarray(trees.Image.open(path)))
    assert summary_of(root, invert_masks=True) == "3 images: 2 good, 1 defective, 3 masks"
    assert all(sample.invert_masks for sample in find_test_images(root, invert_masks=True))


def test_an_image_whose_mask_cannot_be_read_is_skipped_as_ever(tmp_path, evaluate):
    root = trees.ksdd2_tree(tmp_path / "ksdd2")
    (root / "test" / "20002_GT.png").write_text("no image")
    lines, labels = evaluate(root, "--skip_unreadable")
    assert labels == {"test/20000.png": "1", "test/20001.png": "0"}
    assert "3 images: 1 good, 1 defective, 1 without a label, 3 masks" in lines


# --- VisA's lists -----------------------------------------------------------------------------------------------------

VISA_BY_LIST = {
    **{f"Data/Images/Normal/000{number}.JPG": (0, None, 0) for number in range(3)},
    "Data/Images/Anomaly/000.JPG": (1, "burnt", 1),
    "Data/Images/Anomaly/001.JPG": (1, "burnt,melt", 1),
    "Data/Images/Anomaly/002.JPG": (1, "melt", 1),
}


def test_the_list_of_a_class_of_visa_is_read_as_it_is(tmp_path, evaluate):
    folder = trees.visa_tree(tmp_path)
    labels_csv = folder / "image_anno.csv"
    assert found_in(folder, labels_csv) == VISA_BY_LIST
    lines, labels = evaluate(folder, "--labels_csv", labels_csv)
    assert "6 images: 3 good, 3 in 3 kinds of defect, 3 masks" in lines
    assert list(labels.values()) == ["1", "1", "1", "0", "0", "0"]
    below = {name.removeprefix("Data/Images/"): found for name, found in VISA_BY_LIST.items()}
    assert found_in(folder / "Data" / "Images", labels_csv) == below
    # Two defects are the same kind in any order; the folder may have another name; a list may be elsewhere.
    labels_csv.write_text(labels_csv.read_text().replace("burnt,melt", "melt, burnt"))
    renamed, elsewhere = folder.rename(tmp_path / "wax"), tmp_path / "deeper" / "lists" / "l.csv"
    assert found_in(renamed, renamed / "image_anno.csv") == VISA_BY_LIST
    elsewhere.parent.mkdir(parents=True)
    (renamed / "image_anno.csv").rename(elsewhere)
    assert found_in(renamed, elsewhere) == VISA_BY_LIST


def test_a_list_of_all_classes_of_visa_leaves_other_classes_and_the_images_to_train_on_out(tmp_path, evaluate):
    folder, labels_csv = trees.visa_tree(tmp_path), trees.visa_split(tmp_path)
    expected = {name: (label, label and "anomaly", masks) for name, (label, _, masks) in VISA_BY_LIST.items()}
    expected = {name: (label, kind or None, masks) for name, (label, kind, masks) in expected.items()}
    del expected["Data/Images/Normal/0000.JPG"]
    assert found_in(folder, labels_csv) == expected
    assert len(found_in(tmp_path, labels_csv)) == 5
    lines, _ = evaluate(folder, "--labels_csv", labels_csv)
    assert "5 images: 2 good, 3 in 1 kind of defect, 3 masks" in lines
    assert f"{labels_csv}: 6 rows of other images, 1 images to train on left out" in lines
    save(folder / "Data/Images/Normal/0009.JPG")
    with pytest.raises(UserError, match=r"1cls.csv: no row for Data/Images/Normal/0009.JPG"):
        find_test_images(folder, labels_csv)
    labels_csv.write_text(labels_csv.read_text().replace("Normal/0001", "Normal/0000"))
    with pytest.raises(UserError, match=r"two rows for candle/Data/Images/Normal/0000.JPG"):
        find_test_images(folder, labels_csv)


# --- several classes, some of them missing ----------------------------------------------------------------------------


def test_some_classes_of_mvtec_and_masks_of_some_images_are_no_error(tmp_path, evaluate):
    root = trees.mvtec_part(tmp_path)
    lines, _ = evaluate(root / "wood")
    assert lines[:2] == [
        "4 images: 1 good, 3 in 2 kinds of defect, 1 mask",
        "labels: good = good; broken_large, contamination = defective",
    ]
    found = {name: masks for name, (_, _, masks) in found_in(root).items()}
    assert found == {
        **dict.fromkeys(("bottle/test/broken_large/000.png", "bottle/test/contamination/000.png"), 1),
        **{"bottle/test/good/000.png": 0, "wood/test/broken_large/000.png": 1, "wood/test/broken_large/001.png": 0},
        **{"wood/test/contamination/000.png": 0, "wood/test/good/000.png": 0},
    }
    assert summary_of(root) == "7 images: 2 good, 5 in 2 kinds of defect, 3 masks"
    assert [len(sample.masks) for sample in load_dataset("mvtec", root).test] == [1, 1, 0, 1, 0, 0, 0]


def test_only_what_is_for_testing_counts_in_a_root_of_classes(tmp_path):
    trees.btad_tree(tmp_path / "btad")
    trees.loco_tree(tmp_path / "btad" / "02")
    assert summary_of(tmp_path / "btad") == "9 images: 4 good, 5 in 3 kinds of defect, 6 masks"
    # A folder without images to train on beside it is what it is.
    save_all(tmp_path / "mine", "a/test/0.png", "a/validation/1.png", "good/test/2.png", "good/test/3/4.png")
    assert found_in(tmp_path / "mine") == {
        "a/test/0.png": (1, "a", 0),
        "a/validation/1.png": (1, "a", 0),
        "good/test/2.png": (0, None, 0),
        "good/test/3/4.png": (0, None, 0),
    }


# --- where a guess fails ----------------------------------------------------------------------------------------------


def test_masks_of_one_kind_alone_may_be_given(tmp_path, evaluate):
    root = trees.toy_tree(tmp_path / "toy")
    lines, _ = evaluate(root, "--mask_dir", root / "mask" / "crack")
    assert lines[0] == "5 images: 2 good, 3 in 2 kinds of defect, 2 masks"
    found = found_in(root, mask_dir=root / "mask" / "crack")
    assert {name: masks for name, (label, _, masks) in found.items() if label} == {
        "colour/00.jpg": 0,
        "crack/00.jpg": 1,
        "crack/01.jpg": 1,
    }


def test_a_guess_that_fails_is_decided_by_the_user(tmp_path, evaluate):
    # Folders that say nothing, and masks in a folder that is not named for it.
    save_all(tmp_path, "in/lot_a/0.png", "in/lot_a/1.png", "in/lot_b/0.png")
    save_marks(tmp_path, "drawn/lot_a/1.png", "drawn/lot_b/0.png")
    lines, labels = evaluate(tmp_path / "in")
    assert lines[0] == "3 images: 3 without a label, no masks"
    assert "give --labels_csv" in lines[1]
    assert set(labels.values()) == {""}
    (tmp_path / "l.csv").write_text("image,label,mask\nlot_a/0.png,normal,\nlot_a/1.png,cut,\nlot_b/0.png,1,\n")
    options = ("--labels_csv", tmp_path / "l.csv", "--mask_dir", tmp_path / "drawn")
    lines, labels = evaluate(tmp_path / "in", *options)
    assert lines[0] == "3 images: 1 good, 1 in 1 kind of defect, 1 defective, 2 masks"
    assert labels == {"lot_a/0.png": "0", "lot_a/1.png": "1", "lot_b/0.png": "1"}
    # The masks would tell otherwise.
    root = trees.ksdd2_tree(tmp_path / "ksdd2")
    (tmp_path / "l.csv").write_text("path,label\n20000.png,0\n20001.png,crack\n20002.png,0\n")
    found = found_in(root / "test", tmp_path / "l.csv")
    assert found == {"20000.png": (0, None, 1), "20001.png": (1, "crack", 1), "20002.png": (0, None, 1)}


def test_a_csv_decides_over_the_folders_of_training_images(tmp_path, evaluate):
    """Of a folder with `train` and `test`, images are tested that the CSV names."""
    for name in ("train/good/a.png", "train/good/b.png", "test/good/a.png", "test/hole/a.png"):
        save(tmp_path / "class" / name, picture(len(name)))
        save(tmp_path / "other" / name, picture(len(name)))
    labels = tmp_path / "labels.csv"
    rows = ["class/train/good/a.png,0", *(f"{one}/test/{kind},{label}" for one in ("class", "other")
            for kind, label in (("good/a.png", 0), ("hole/a.png", 1)))]  # fmt: skip
    labels.write_text("\n".join(["path,label", *rows]))
    assert len(found_in(tmp_path, labels)) == 5
