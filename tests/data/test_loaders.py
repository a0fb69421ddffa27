"""The data sets on small trees of their published forms."""

import pickle
import shutil
import tarfile
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hta.data.benchmark import Selection, draw_images, select
from hta.data.loaders import Benchmark, array_samples, load_dataset
from hta.data.preparation import clahe
from hta.data.specs import DatasetOptions, benchmark_spec
from hta.errors import RunError, UserError
from tests.data.trees import as_float, mvtec_class, paris_tree, picture, save, write_mnist


def training_names(benchmark: Benchmark, pos_class: str) -> list[str]:
    return [sample.relative for sample in benchmark.training_candidates(pos_class)]


def selection(benchmark: Benchmark, pos_class: str) -> Selection:
    """A run on the first image of the class."""
    return draw_images(benchmark, pos_class, 1, 1, in_order=True)


def labels(benchmark: Benchmark, pos_class: str) -> dict[str, int | None]:
    return {sample.relative: sample.label for sample in selection(benchmark, pos_class).test_samples()}


# --- torchvision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashionmnist", "FashionMNIST")])
def test_idx_files_load(tmp_path, name, folder):
    images = write_mnist(tmp_path / folder / "raw", [5, 0, 5, 9], [9, 5])
    benchmark = load_dataset(name, tmp_path)
    assert training_names(benchmark, "5") == ["train/0", "train/2"]
    assert labels(benchmark, "5") == {"test/0": 1, "test/1": 0}
    assert benchmark.spec.is_gray
    assert benchmark.test[0].read_mask() is None
    (prepared,) = selection(benchmark, "5").training_images()
    gray = as_float(Image.fromarray(images[0]).resize((128, 128), Image.BILINEAR))
    np.testing.assert_array_equal(prepared, np.repeat(gray[..., None], 3, axis=2))
    with pytest.raises(UserError, match="--pos_class 7: no image of this class"):
        benchmark.training_candidates("7")
    damaged = tmp_path / folder / "raw" / "train-labels-idx1-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{folder} is missing or incomplete"):
        load_dataset(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar", "cifar-10-batches-py.*, or use --download"),
        ("mnist", "MNIST/raw/.*, or use --download"),
        ("fashionmnist", "FashionMNIST/raw/.*, or use --download"),
        ("paris", "paris_120310.tgz"),
        ("mvtec", "mvtec_anomaly_detection.tar.xz"),
        ("folder", "train/<class>"),
        ("defects", "train/good"),
    ],
)
def test_missing_files_say_what_to_put_where(tmp_path, name, expected):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"--data_root.*{expected}") as caught:
            load_dataset(name, root)
        assert "\n" not in str(caught.value)
        assert ("no such folder" in str(caught.value)) == (root != tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_is_fetched_when_asked_and_only_where_it_is_missing(tmp_path, monkeypatch):
    fetched = []

    def download(url, filename, **_):
        fetched.append(filename)
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", download)
    with pytest.raises(RunError, match=r"--download: MNIST not fetched .*; put MNIST/raw/ with train-images") as caught:
        load_dataset("mnist", tmp_path / "data", download=True)
    assert "\n" not in str(caught.value)
    assert fetched
    fetched.clear()
    write_mnist(tmp_path / "data" / "MNIST" / "raw", [5], [5])
    assert len(load_dataset("mnist", tmp_path / "data", download=True).test) == 1
    assert not fetched


class Opener:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_foreign_pickle_is_not_opened(tmp_path):
    marker = tmp_path / "opened"
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(Opener(marker)))
    with pytest.raises(UserError, match="CIFAR10"):
        load_dataset("cifar", tmp_path)
    assert not marker.exists()


def test_samples_of_arrays():
    data = np.stack([picture(n, 32, 32) for n in range(3)])
    spec = benchmark_spec("cifar")
    samples = array_samples(spec, SimpleNamespace(data=data, targets=torch.tensor([1, 0, 2])), "test")
    assert [sample.relative for sample in samples] == ["test/0", "test/1", "test/2"]
    assert [sample.classes for sample in samples] == [("car",), ("plane",), ("bird",)]
    np.testing.assert_array_equal(samples[1].read(), data[1].astype(np.float32) / 255)
    tested = selection(Benchmark(spec, samples, samples[1:]), "car").test_samples()
    assert [(sample.label, sample.defect) for sample in tested] == [(1, "plane"), (1, "bird")]
    squashed = Image.fromarray(data[1]).resize((128, 128), Image.BICUBIC)
    np.testing.assert_array_equal(tested[0].read(), as_float(squashed))
    for labels_that_do_not_fit in ([0, 1], [0, 1, 10], [-1, 0, 1]):
        with pytest.raises(UserError, match="train files do not match"):
            array_samples(spec, SimpleNamespace(data=data, targets=labels_that_do_not_fit), "train")


# --- folders --------------------------------------------------------------------------------------------------------


def test_class_folders(tmp_path):
    for name in ("airplane", "automobile", "bird"):
        for number in (1, 0):
            save(tmp_path / "train" / name / f"{number:04}.png", seed=number)
        save(tmp_path / "test" / name / "0000.png")
    (tmp_path / "train" / "bird" / "notes.txt").write_text("no image")
    benchmark = load_dataset("folder", tmp_path)
    assert benchmark.spec.classes == ("plane", "car", "bird")
    assert benchmark.spec.title == f"{tmp_path.name} (folder)"
    assert not benchmark.spec.is_gray
    expected = ["train/airplane/0000.png", "train/airplane/0001.png"]
    assert training_names(benchmark, "airplane") == training_names(benchmark, "plane") == expected
    for normal, name in enumerate(benchmark.spec.classes):
        assert list(labels(benchmark, name).values()) == [int(index != normal) for index in range(3)]
    (prepared,) = selection(benchmark, "bird").training_images()
    squashed = as_float(Image.fromarray(picture(0)).resize((128, 128), Image.BICUBIC))
    np.testing.assert_array_equal(prepared, clahe(squashed))


def test_gray_class_folders_are_prepared_like_mnist_and_names_that_would_be_shared_stay(tmp_path):
    for split, name in product(("train", "test"), ("airplane", "plane")):
        save(tmp_path / split / name / "0.png", picture(0)[..., 0])
    spec = load_dataset("folder", tmp_path).spec
    assert (spec.is_gray, spec.train_filter, spec.train_clahe, spec.num_transforms) == (True, "bilinear", False, 42)
    assert spec.classes == ("airplane", "plane")


def test_class_folders_of_another_form_are_errors(tmp_path):
    save(tmp_path / "train" / "a" / "0.png")
    with pytest.raises(UserError, match="test"):
        load_dataset("folder", tmp_path)
    save(tmp_path / "test" / "b" / "0.png")
    with pytest.raises(UserError, match="class a is not in both"):
        load_dataset("folder", tmp_path)
    (tmp_path / "test" / "a").mkdir()
    with pytest.raises(UserError, match="no image in it"):
        load_dataset("folder", tmp_path)


# --- MVTec ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["mvtec", "mvtec_anomaly_detection", "."])
def test_mvtec_and_a_folder_of_defects(tmp_path, place):
    for name in ("bottle", "metal_nut"):
        mvtec_class(tmp_path / place, name)
    root = tmp_path / place / "metal_nut"
    mvtec, defects = load_dataset("mvtec", tmp_path), load_dataset("defects", root)
    assert (len(mvtec.spec.classes), defects.spec.classes) == (15, ("metal_nut",))
    for benchmark, prefix in ((mvtec, "metal_nut/"), (defects, "")):
        assert (benchmark.spec.num_transforms, benchmark.spec.train_clahe) == (4, False)
        expected = [f"{prefix}train/good/00{number}.png" for number in (0, 1)]
        assert training_names(benchmark, "metal_nut") == expected
        tested = selection(benchmark, "metal_nut").test_samples()
        assert [(sample.relative, sample.label, sample.defect) for sample in tested] == [
            (f"{prefix}test/broken_large/000.png", 1, "broken_large"),
            (f"{prefix}test/contamination/000.png", 1, "contamination"),
            (f"{prefix}test/good/000.png", 0, None),
        ]
        mask = tested[0].read_mask()
        assert mask[:64].all()
        assert not mask[64:].any()
        assert tested[2].read_mask() is None
    with pytest.raises(UserError, match="--pos_class zipper"):
        selection(mvtec, "zipper")
    assert load_dataset("defects", root, num_transforms=42).spec.train_clahe
    shutil.rmtree(root / "ground_truth")
    sample = selection(load_dataset("defects", root), "metal_nut").test_samples()[0]
    assert (sample.label, sample.read_mask(), sample.read().shape) == (1, None, (128, 128, 3))


def test_an_object_with_other_names_for_normal(tmp_path):
    folder = mvtec_class(tmp_path, "wood")
    for split in ("train", "test"):
        (folder / split / "good").rename(folder / split / "OK")
    chosen = selection(load_dataset("defects", folder), "wood")
    assert chosen.training_ids() == ["train/OK/000.png"]
    assert [sample.label for sample in chosen.test_samples()] == [0, 1, 1]


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("train/good", "--data_root: no image in .*/wood/train/good"),
        ("test/good", "--data_root: no image in .*/wood/test/good"),
    ],
)
def test_a_folder_of_another_form_is_an_error(tmp_path, lost, message):
    folder = mvtec_class(tmp_path / "mvtec", "wood")
    for path in (folder / lost).iterdir():
        path.unlink()
    for dataset, root in (("mvtec", tmp_path), ("defects", folder)):
        with pytest.raises(UserError, match=message):
            load_dataset(dataset, root)


@pytest.mark.parametrize("inner", ["", "all"])
def test_masks_tell_good_from_defective_where_no_folder_does(tmp_path, inner):
    folder = mvtec_class(tmp_path, "wood")
    for part in ("test", "ground_truth"):
        shutil.rmtree(folder / part)
    for number in range(6):
        mask = np.zeros((40, 40), np.uint8)
        mask[5:9, 5:9] = 255 * (number % 2)
        save(folder / "test" / inner / f"{number}.png", picture(number, 40, 40))
        save(last := folder / "masks" / inner / f"{number}.png", mask)
    chosen = selection(load_dataset("defects", folder), "wood")
    assert [(sample.label, sample.defect) for sample in chosen.test_samples()] == [(0, None), (1, None)] * 3
    assert [sample.label for sample in chosen.test_samples(test_limit=2)] in ([0, 1], [1, 0])
    last.write_bytes(b"")
    with pytest.raises(UserError, match=r"masks.*5\.png"):
        load_dataset("defects", folder)


def test_images_without_a_mask_are_no_error(tmp_path):
    folder = mvtec_class(tmp_path, "screw")
    (folder / "test" / "unnamed").mkdir()
    for name in ("unnamed/010(1)", "contamination/001"):
        shutil.copy(folder / "test" / "contamination" / "000.png", folder / "test" / f"{name}.png")
    found = [(sample.label, sample.defect, len(sample.masks)) for sample in load_dataset("mvtec", tmp_path).test]
    kinds = ("broken_large", "contamination", "contamination", "unnamed")
    assert sorted(found) == [(0, None, 0), *((1, kind, n) for kind, n in zip(kinds, (1, 0, 1, 0), strict=True))]


@pytest.mark.parametrize("place", ["root", "root/mvtec", "mvtec/mvtec", "mvtec/mvtec_anomaly_detection"])
def test_mvtec_at_another_level_is_an_error_that_names_the_folder(tmp_path, place):
    tree = tmp_path / place
    folder = mvtec_class(tree, "wood")
    for given in (tmp_path, folder):
        with pytest.raises(UserError) as caught:
            load_dataset("mvtec", given)
        assert str(caught.value).endswith(f"give --data_root {tree}")
    assert training_names(load_dataset("mvtec", tree), "wood")


def test_mvtec_class_archives_add_to_the_tree(tmp_path):
    mvtec_class(tmp_path / "root" / "mvtec", "tile")
    source = mvtec_class(tmp_path / "source", "wood")
    with tarfile.open(tmp_path / "root" / "mvtec" / "wood.tar.xz", "w:xz") as tar:
        tar.add(source, "wood")
    benchmark = load_dataset("mvtec", tmp_path / "root")
    assert len(training_names(benchmark, "tile")) == len(training_names(benchmark, "wood")) == 2


def test_mvtec_archive_that_is_not_the_published_one_is_refused(tmp_path):
    (tmp_path / "mvtec_anomaly_detection.tar.xz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="10 bytes instead of 5264982680"):
        load_dataset("mvtec", tmp_path)
    assert not (tmp_path / "mvtec").exists()


# --- Paris ----------------------------------------------------------------------------------------------------------


def test_paris(tmp_path):
    paris_tree(tmp_path)
    benchmark = load_dataset("paris", tmp_path)
    assert len(benchmark.test) == 11 * 4 + 1  # without the corrupt file and the general view of no ok-list
    names = [sample.relative for sample in benchmark.test]
    assert not any("000136" in name or "general_000001" in name for name in names)
    normal = [f"eiffel/paris_eiffel_00000{n}.jpg" for n in (0, 1)] + ["general/paris_general_000002.jpg"]
    assert training_names(benchmark, "eiffel") == normal
    run = selection(benchmark, "eiffel")
    labels_of_run = {sample.relative: sample.label for sample in run.test_samples()}
    # The training image leaves the test set.
    assert labels_of_run.keys() == set(names) - {normal[0]}
    assert [name for name, label in labels_of_run.items() if label == 0] == normal[1:]
    assert run.training_images()[0].shape == run.test_samples()[0].read().shape == (450, 450, 3)
    again = select(DatasetOptions("paris", str(tmp_path), "eiffel"), 1, sources=[normal[1], "elsewhere.png"])
    assert again.training_ids() == [normal[1]]
    assert {sample.relative for sample in again.test_samples()} == set(names) - {normal[1]}
    # Images of good and junk lists are anomalous, even for their own landmark.
    louvre = labels(benchmark, "louvre")
    assert louvre["louvre/paris_louvre_000002.jpg"] == louvre["louvre/paris_louvre_000003.jpg"] == 1


def test_paris_with_a_list_or_an_image_missing_is_an_error(tmp_path):
    lists = paris_tree(tmp_path)
    (tmp_path / "paris" / "pompidou" / "paris_pompidou_000001.jpg").unlink()
    with pytest.raises(UserError, match=r"1 images of the ok-lists are missing, as paris_pompidou_000001\.jpg"):
        load_dataset("paris", tmp_path)
    shutil.rmtree(tmp_path / "paris" / "louvre")
    with pytest.raises(UserError, match=r"2 images of the ok-lists are missing, as paris_louvre_000000\.jpg"):
        load_dataset("paris", tmp_path)
    (lists / "triomphe_3_ok.txt").unlink()
    with pytest.raises(UserError, match=r"triomphe_3_ok\.txt is missing"):
        load_dataset("paris", tmp_path)


def test_paris_flat_and_from_archives(tmp_path):
    source, root = tmp_path / "source", tmp_path / "root"
    lists = paris_tree(source)
    root.mkdir()
    folders = sorted((source / "paris").iterdir())
    for part, chosen in (("paris_1-v1", folders[:6]), ("paris_2-v1", folders[6:])):
        with tarfile.open(root / f"{part}.tgz", "w:gz") as tar:
            for folder in chosen:
                tar.add(folder, f"paris/{folder.name}")
    with tarfile.open(root / "paris_120310.tgz", "w:gz") as tar:
        for path in lists.iterdir():
            tar.add(path, path.name)
    for _ in range(2):  # unpacked, then found in place
        assert len(load_dataset("paris", root).test) == 45
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == ["paris"]

    for path in sorted((root / "paris").rglob("*.jpg")):
        path.rename(root / "paris" / path.name)
    assert len(load_dataset("paris", root).test) == 45


def test_half_of_paris_is_not_unpacked(tmp_path):
    source = save(tmp_path / "paris_louvre_000001.png")
    (tmp_path / "root").mkdir()
    with tarfile.open(tmp_path / "root" / "paris_1.tgz", "w:gz") as tar:
        tar.add(source, "paris/louvre/paris_louvre_000001.jpg")
    with pytest.raises(UserError, match=r"paris_2\.tgz"):
        load_dataset("paris", tmp_path / "root")
    assert not (tmp_path / "root" / "paris").exists()
