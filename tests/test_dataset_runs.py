"""main_train.py and main_eval.py on a data set: one run of the paper's protocol from the command line."""

import contextlib
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hta
import main_eval
import main_train
from hta import runs
from hta.config import RuntimeConfig
from hta.data.preparation import clahe
from hta.experiments.__main__ import main as experiments
from hta.images import resize, to_tensor
from hta.models.scales import plan_of
from hta.models.storage import RunFolder
from hta.runs import TrainingSet
from tests.data.trees import mvtec_class, write_mnist
from tests.experiments.helpers import make_tree, records, run_arguments
from tests.helpers import enter_copy

SIZES = ["--min_size", "11", "--max_size", "13", "--nfc", "3", "--niter", "1", "--Gsteps", "1", "--Dsteps", "1"]
MACHINE = ["--threads", "1", "--not_cuda", "--precision", "float32"]
SANDALS, SNEAKER = 5, 7
LABELS = [SANDALS, SNEAKER, SANDALS, SANDALS, SNEAKER, SANDALS]
TEST_LABELS = [SNEAKER, SANDALS, SANDALS, SNEAKER, SNEAKER]
FASHION = ["--dataset", "fashionmnist", "--data_root", "data", "--pos_class", "Sandal"]
SECOND_PAIR = ["--num_images", "2", "--index_download", "2"]
NAME = "fashionmnist_sandals_2shot_2"


def train(*arguments):
    return main_train.main([*map(str, arguments), *SIZES, *MACHINE, "--num_samples", "0"])


def evaluate(*arguments, out="out"):
    return main_eval.main([*map(str, arguments), "--out", out, *MACHINE])


def rows_of(folder="out"):
    with Path(folder, "scores.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def document_of(folder="out"):
    return json.loads(Path(folder, "metrics.json").read_text())


def record_of(name):
    return RunFolder(Path("TrainedModels", name)).read_record()


def load(name):
    return hta.load(name, "TrainedModels", RuntimeConfig(threads=1, not_cuda=True, precision="float32"))


def prepared(pixels, mode):
    """A gray picture squashed to 128 x 128 by Pillow, as MNIST is."""
    gray = np.asarray(Image.fromarray(pixels).resize((128, 128), mode), dtype=np.float32) / 255
    return np.repeat(gray[..., None], 3, axis=2)


def assert_images(training_set, images):
    record = training_set.record
    size = plan_of(record.config.model, record.image_size).working_size
    torch.testing.assert_close(training_set.images, resize(to_tensor(images), size), rtol=0, atol=0)


@pytest.fixture
def planned(monkeypatch):
    """Runs main_train.py up to the training, and returns its model's name and its images with their settings."""
    plans = []
    monkeypatch.setattr(main_train, "_print_plan", lambda folder, images, *_: plans.append((folder.path.name, images)))

    def plan(*arguments):
        assert train(*arguments, "--dry_run") == 0
        return plans.pop()

    return plan


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """A folder with a tiny FashionMNIST, a model of its second pair of sandals, and what its training printed."""
    root = tmp_path_factory.mktemp("fashion")
    write_mnist(root / "data" / "FashionMNIST" / "raw", LABELS, TEST_LABELS)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as output:
        patch.chdir(root)
        assert train(*FASHION, *SECOND_PAIR) == 0
    (root / "printed.txt").write_text(output.getvalue())
    return root


@pytest.fixture
def place(fashion, tmp_path, monkeypatch):
    """A working directory with data and model."""
    return enter_copy(fashion, tmp_path, monkeypatch)


@pytest.fixture
def pictures(place):
    """The gray pictures of both splits of the tiny FashionMNIST, uint8."""
    raw = (place / "data/FashionMNIST/raw/train-images-idx3-ubyte").read_bytes()
    return np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)


def raises_one_line(capsys, status, *words):
    assert status == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert all(word in line for word in words), line


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_model_is_of_the_images_that_index_download_takes(place, pictures):
    model = load(NAME)
    assert model.record.sources == ("train/3", "train/5")  # the third and fourth sandal
    assert model.record.image_size == (128, 128)
    assert (model.record.config.model.task, model.record.config.model.num_transforms) == ("class", 42)
    images = [prepared(pictures[index], Image.Resampling.BILINEAR) for index in (3, 5)]
    assert_images(TrainingSet(model.record, model.training_images), images)


def test_training_images_in_colour_go_through_clahe_and_the_set_settles_the_transformations(tmp_path, planned):
    tree = make_tree(tmp_path / "tree")
    gray = np.random.default_rng(1).integers(0, 256, (20, 20), dtype=np.uint8)
    Image.fromarray(gray).save(tree / "train/bee/1.png")
    options = ["--dataset", "folder", "--data_root", tree, "--pos_class", "bee", "--index_download", "2"]
    name, training_set = planned(*options)
    assert_images(training_set, [clahe(prepared(gray, Image.Resampling.BICUBIC))])
    # This one image is gray, its data set is not.
    assert training_set.record.is_gray
    assert training_set.record.config.model.num_transforms == 54
    assert (name, training_set.record.sources) == ("folder_bee_1shot_2", ("train/bee/1.png",))


@pytest.mark.parametrize("dataset", ["mvtec", "defects"])
@pytest.mark.parametrize(
    ("arguments", "task", "num_transforms", "with_clahe"),
    [
        ([], "defect", 4, False),
        (["--task", "class"], "class", 54, True),
        (["--num_transforms", 42], "defect", 42, True),
    ],
)
def test_task_and_preparation_of_defects(tmp_path, planned, dataset, arguments, task, num_transforms, with_clahe):
    folder = mvtec_class(tmp_path, "bottle")
    root = tmp_path if dataset == "mvtec" else folder
    name, training_set = planned("--dataset", dataset, "--data_root", root, "--pos_class", "bottle", *arguments)
    assert name == f"{dataset}_bottle_1shot_1"
    model = training_set.record.config.model
    assert (model.task, model.num_transforms) == (task, num_transforms)
    with Image.open(folder / "train/good/000.png") as picture:
        lanczos = np.asarray(picture.resize((128, 128), Image.Resampling.LANCZOS), dtype=np.float32) / 255
    assert_images(training_set, [clahe(lanczos) if with_clahe else lanczos])


def test_a_dry_run_writes_nothing_and_a_model_is_not_overwritten_unasked(place, capsys):
    assert train(*FASHION, "--dry_run") == 0
    assert "train/0" in capsys.readouterr().out
    assert [path.name for path in Path("TrainedModels").iterdir()] == [NAME]
    raises_one_line(capsys, train(*FASHION, *SECOND_PAIR), NAME, "--overwrite")


def test_a_stopped_run_is_resumed_with_the_same_images_only(place, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "train_run", stop)
        assert train(*FASHION, "--name", "mine") == 130
    assert not RunFolder(Path("TrainedModels/mine")).finished
    raises_one_line(capsys, train(*FASHION, "--name", "mine", "--index_download", 3, "--resume"), "train/3", "mine")
    assert main_train.main([*FASHION, "--name", "mine", "--resume", "--num_samples", "0"]) == 0
    assert RunFolder(Path("TrainedModels/mine")).finished


def test_the_next_command_scores_the_test_set(place):
    last = Path("printed.txt").read_text().splitlines()[-1]
    words = last.removeprefix("next: python main_eval.py ").split()
    assert evaluate(*words, "--no_maps") == 0
    assert len(rows_of()) == len(TEST_LABELS)


# --- scoring ----------------------------------------------------------------------------------------------------------


def test_the_test_images_are_scored_as_the_protocol_prepares_and_labels_them(place, pictures, capsys):
    assert evaluate("--input_name", NAME, *FASHION) == 0
    rows = rows_of()
    assert [(row["path"], row["label"]) for row in rows] == [
        (f"test/{index}", "0" if label == SANDALS else "1") for index, label in enumerate(TEST_LABELS)
    ]
    bicubic = Image.Resampling.BICUBIC
    images = [prepared(pictures[index], bicubic) for index in range(len(TEST_LABELS))]
    scores = load(NAME).score(images, fraction_defect=1.0, with_maps=False, score="paper").anomaly_scores
    assert [float(row["anomaly_score"]) for row in rows] == scores.tolist()

    files = {path.relative_to("out").as_posix() for path in Path("out").rglob("*.png")}
    assert files == {f"{kind}/test/{index}.png" for kind in ("maps", "overlays") for index in range(len(TEST_LABELS))}
    document = document_of()
    pairs = [scores[bad] > scores[good] for bad in (0, 3, 4) for good in (1, 2)]
    assert document["metrics"]["image_auroc"]["value"] == pytest.approx(np.mean(pairs))
    assert set(document["metrics"]["auroc_by_kind"]) == {"sneaker"}
    assert document["dataset"] == {"name": "fashionmnist", "pos_class": "sandals", "test_limit": None}
    assert (document["test_dir"], document["images"], document["images_available"]) == ("data", 5, 5)
    assert document["warnings"] == []
    assert "5 image(s) scored" in capsys.readouterr().out


def test_the_model_of_the_same_options_and_its_default_folder(place, capsys):
    assert main_eval.main([*FASHION, *SECOND_PAIR, "--no_maps", *MACHINE]) == 0
    results = Path("TrainedModels", NAME, "results", "fashionmnist_sandals")
    assert {path.name for path in results.iterdir()} >= {"scores.csv", "metrics.json"}
    raises_one_line(capsys, evaluate(*FASHION), "fashionmnist_sandals_1shot_1", "no model here")
    options = ["--input_name", NAME, *FASHION, "--num_images", "2"]
    raises_one_line(capsys, evaluate(*options), NAME, "--index_download")
    assert evaluate(*options, "--index_download", 2, "--no_maps") == 0


def test_images_auroc_and_scores_are_those_of_the_runner(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tree = make_tree(tmp_path / "tree", train=4, test=5)
    settings = ("min_size=11", "max_size=13", "nfc=3", "niter=1", "Gsteps=1", "Dsteps=1")
    more = ["--classes", "bee", "--shots", "2", "--test_limit", "6", "--keep_scores", "--threads", "1"]
    arguments = run_arguments(tree, tmp_path / "results", *more, "--precision", "float32", tiny=settings)
    assert experiments(arguments) == 0
    (record,) = records(tmp_path / "results").values()

    protocol = ["--dataset", "folder", "--data_root", tree, "--pos_class", "bee", "--num_images", 2]
    protocol += ["--random_images_download"]
    assert train(*protocol, "--num_transforms", 4, "--manualSeed", 1) == 0  # the runner's seed of its draw 1
    assert evaluate(*protocol, "--test_limit", 6, "--no_maps") == 0

    assert list(record_of("folder_bee_2shot_draw1").sources) == record["training_images"]
    document = document_of()
    assert round(document["metrics"]["image_auroc"]["value"], 6) == record["results"]["auroc"]["mean"]
    assert (document["images"], document["images_available"], document["dataset"]["test_limit"]) == (6, 10, 6)
    assert "6 of 10 image(s) scored" in capsys.readouterr().out
    with np.load(next((tmp_path / "results").glob("*.npz"))) as kept:
        assert [row["path"] for row in rows_of()] == kept["names"].tolist()
        assert [int(row["label"]) for row in rows_of()] == kept["labels"].tolist()
        np.testing.assert_allclose([float(row["anomaly_score"]) for row in rows_of()], kept["scores"], atol=1e-6)


def test_masks_are_prepared_like_their_images(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    folder = mvtec_class(tmp_path / "data", "bottle")
    corner = np.zeros((40, 60), np.uint8)
    corner[:10, 10:30] = 255  # the centre crop takes columns 10 to 50: a quarter of the height, half of the width
    Image.fromarray(corner).save(folder / "ground_truth/contamination/000_mask.png")
    with Image.open(folder / "test/contamination/000.png") as picture:
        picture.resize((60, 40)).save(folder / "test/contamination/000.png")
    assert train("--dataset", "mvtec", "--pos_class", "bottle") == 0
    anomalous = 128 * 128 // 2 + 128 * 128 // 8
    expected = {"images": 3, "regions": 2, "normal": 3 * 128**2 - anomalous, "anomalous": anomalous}
    for dataset, root, below in (("mvtec", "data", "bottle/"), ("defects", folder, "")):
        named = [] if dataset == "mvtec" else ["--input_name", "mvtec_bottle_1shot_1"]
        protocol = ["--dataset", dataset, "--data_root", root, "--pos_class", "bottle"]
        caplog.clear()
        assert evaluate(*named, *protocol, out=dataset) == 0
        assert caplog.messages.count("3 images: 1 good, 2 in 2 kinds of defect, 2 masks") == 1
        document = document_of(dataset)
        assert document["metrics"]["pixels"] == expected
        assert set(document["metrics"]["auroc_by_kind"]) == {"broken_large", "contamination"}
        assert document["scoring"]["fraction_defect"] == 0.05
        assert Path(f"{dataset}/maps/{below}test/contamination/000.png.png").is_file()


def test_a_model_of_other_images_is_told(place, caplog):
    assert evaluate("--input_name", NAME, *FASHION[:-1], "sneaker", "--no_maps") == 0
    assert document_of()["warnings"] == ["the model was trained on images of another class than sneaker"]
    # The same names in another data set are told apart by their pixels, here black.
    write_mnist(place / "data" / "MNIST" / "raw", [5] * 6, [5, 7])
    images = place / "data/MNIST/raw/train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:16] + bytes(6 * 28 * 28))
    assert evaluate("--input_name", NAME, "--dataset", "mnist", "--pos_class", 5, "--no_maps", out="black") == 0
    (warning,) = document_of("black")["warnings"]
    assert warning == "the model was not trained on images of MNIST as the protocol prepares them"
    Image.fromarray(np.tile(np.arange(60, 126, 2, dtype=np.uint8), (30, 1))).save("wall.png")
    assert "another aspect ratio" not in caplog.text
    assert train("--input_name", "wall.png") == 0
    assert evaluate("--input_name", "wall", "--dataset", "mnist", "--pos_class", 5, "--no_maps", out="wall_out") == 0
    untrained, task = document_of("wall_out")["warnings"]
    assert "--task class" in task
    assert untrained == warning
    assert untrained in caplog.text
    assert caplog.text.count("another aspect ratio") == 1


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("both", ["--dataset", "fashionmnist"], ["--pos_class is missing"]),
        ("both", ["--dataset", "shoes", "--pos_class", "1"], ["--dataset shoes", "no such data set"]),
        ("both", [*FASHION[:-1], "boat"], ["--pos_class boat", "ankle_boot"]),
        ("both", ["--pos_class", "1"], ["--pos_class", "without --dataset"]),
        ("both", ["--data_root", "data"], ["--data_root", "without --dataset"]),
        ("both", [*FASHION, "--index_download", "0"], ["--index_download 0"]),
        ("train", [*FASHION, "--input_name", "wall.png"], ["--input_name", "--dataset"]),
        ("train", [*FASHION, "--size_image", "64"], ["--size_image", "--dataset"]),
        ("train", [*FASHION, "--num_images", "5"], ["--num_images 5", "4 images"]),
        ("train", [*FASHION, *SECOND_PAIR[:3], "3"], ["--index_download 3", "1 to 2"]),
        ("train", ["--dataset", "mnist", "--data_root", "data", "--pos_class", "1"], ["MNIST"]),
        ("train", ["--dataset", "mnist", "--data_root", "none", "--pos_class", "1"], ["--data_root none"]),
        ("train", [*FASHION, "--mode", "random_samples"], ["no effect with --mode random_samples"]),
        ("eval", [*FASHION, "--input_name", NAME, "--test_dir", "data"], ["--test_dir", "--dataset"]),
        ("eval", [*FASHION, "--input_name", NAME, "--labels_csv", "a.csv"], ["--labels_csv", "--dataset"]),
        ("eval", [*FASHION, "--input_name", NAME, "--test_limit", "0"], ["--test_limit 0"]),
        ("eval", ["--input_name", NAME, "--test_dir", "data", "--test_limit", "3"], ["--test_limit", "--dataset"]),
        ("eval", ["--input_name", NAME, *FASHION[:3], "none", *FASHION[4:]], ["--data_root none"]),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(place, capsys, script, arguments, words):
    before = sorted(Path().rglob("*"))
    for name, command in (("train", train), ("eval", evaluate)):
        if script in (name, "both"):
            raises_one_line(capsys, command(*arguments), *words)
    assert sorted(Path().rglob("*")) == before
