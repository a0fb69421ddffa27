"""The data sets on small trees of their published forms, and the protocol's table against torchvision's transforms."""

import gzip
import hashlib
import io
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf

from hta.data.archives import Checksum, check_archive, extract_archive, unpack_into
from hta.data.benchmarks import load_benchmark
from hta.data.clahe import clahe
from hta.data.image_sets import array_benchmark
from hta.data.preparation import prepare_mask, prepare_test_image, prepare_training_image
from hta.data.specs import SPECS, benchmark_spec, class_index
from hta.errors import RunError, UserError


def picture(seed: int, height: int = 20, width: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray | None = None, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed) if pixels is None else pixels).save(path)
    return path


# --- the table ------------------------------------------------------------------------------------------------------


def as_float(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32) / 255


def squashed(image: Image.Image, side: int, mode: InterpolationMode) -> np.ndarray:
    return as_float(tvf.resize(image, [side, side], mode))


def mvtec_row(image: Image.Image) -> np.ndarray:
    return as_float(tvf.center_crop(tvf.resize(image, 128, InterpolationMode.LANCZOS), [128, 128]))


def paris_training_row(image: Image.Image) -> np.ndarray:
    longer = max(image.size)
    fitted = tvf.resize(
        image, [450 * image.size[1] // longer, 450 * image.size[0] // longer], InterpolationMode.BICUBIC
    )
    equalised = Image.fromarray(np.rint(clahe(as_float(fitted)) * 255).astype(np.uint8))
    return squashed(equalised, 450, InterpolationMode.BICUBIC)


BICUBIC, BILINEAR = InterpolationMode.BICUBIC, InterpolationMode.BILINEAR
TABLE = {
    ("cifar", "full"): (
        (32, 32),
        lambda image: clahe(squashed(image, 128, BICUBIC)),
        lambda image: squashed(image, 128, BICUBIC),
        54,
    ),
    ("mnist", "full"): (
        (28, 28),
        lambda image: squashed(image, 128, BILINEAR),
        lambda image: squashed(image, 128, BICUBIC),
        42,
    ),
    ("fashionmnist", "full"): (
        (28, 28),
        lambda image: squashed(image, 128, BILINEAR),
        lambda image: squashed(image, 128, BICUBIC),
        42,
    ),
    ("paris", "full"): ((600, 900), paris_training_row, lambda image: squashed(image, 450, BILINEAR), 54),
    ("mvtec", "full"): ((256, 320), lambda image: clahe(mvtec_row(image)), mvtec_row, 54),
    ("mvtec", "rotations"): ((256, 320), mvtec_row, mvtec_row, 4),
}


@pytest.mark.parametrize("row", TABLE)
def test_preparation_follows_the_table(row):
    (height, width), training_row, test_row, num_transforms = TABLE[row]
    spec = benchmark_spec(*row)
    pixels = picture(3, height, width)
    image = pixels.astype(np.float32) / 255

    trained, tested = prepare_training_image(image, spec), prepare_test_image(image, spec)

    np.testing.assert_array_equal(trained, training_row(Image.fromarray(pixels)))
    np.testing.assert_array_equal(tested, test_row(Image.fromarray(pixels)))
    assert trained.dtype == tested.dtype == np.float32
    assert spec.num_transforms == num_transforms
    assert spec.is_gray == (row[0] in ("mnist", "fashionmnist"))


def test_a_small_image_of_paris_is_not_enlarged_before_clahe():
    spec = benchmark_spec("paris")
    image = picture(1, 300, 200).astype(np.float32) / 255
    expected = Image.fromarray(np.rint(clahe(image) * 255).astype(np.uint8)).resize((450, 450), Image.BICUBIC)
    np.testing.assert_array_equal(prepare_training_image(image, spec), as_float(expected))


def test_a_mask_takes_the_place_of_its_image():
    mask = np.zeros((128, 256), bool)
    mask[10:20, 64 + 30 : 64 + 50] = True  # the centre crop begins at column 64
    expected = np.zeros((128, 128), bool)
    expected[10:20, 30:50] = True
    np.testing.assert_array_equal(prepare_mask(mask, benchmark_spec("mvtec")), expected)


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "spelling", "label"),
    [
        ("cifar", "plane", 0),
        ("cifar10", "Airplane", 0),
        ("cifar", "automobile", 1),
        ("CIFAR10", "9", 9),
        ("mnist", "7", 7),
        ("mnist", "3 - three", 3),
        ("fashion-mnist", "T-shirt/top", 0),
        ("fashionmnist", "t_shirt", 0),
        ("fashionmnist", "Sandal", 5),
        ("fashionmnist", "Ankle boot", 9),
        ("fashionmnist", 8, 8),
        ("mvtec", "metal nut", 7),
        ("paris", "Musee d'Orsay", 5),
    ],
)
def test_classes_go_by_their_usual_spellings(dataset, spelling, label):
    assert class_index(benchmark_spec(dataset), spelling) == label


@pytest.mark.parametrize("wrong", ["zebra", "10", "-1", ""])
def test_an_unknown_class_lists_the_choices(wrong):
    with pytest.raises(UserError, match=r"--pos_class .*plane, car, bird"):
        class_index(benchmark_spec("cifar"), wrong)


def test_the_aliases_lead_to_classes():
    assert all(name in spec.classes for spec in SPECS.values() for _, name in spec.aliases)


@pytest.mark.parametrize(("name", "preparation"), [("svhn", "full"), ("cifar", "rotations"), ("mvtec", "half")])
def test_an_unknown_data_set_or_preparation_is_an_error(name, preparation, tmp_path):
    with pytest.raises(UserError):
        load_benchmark(name, tmp_path, preparation=preparation)


# --- torchvision's data sets ----------------------------------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.tobytes())


def write_mnist(folder: Path, train_labels: list[int], test_labels: list[int]) -> np.ndarray:
    """Write the four files that torchvision reads, and return the training images."""
    images = np.random.default_rng(0).integers(0, 256, (len(train_labels), 28, 28), dtype=np.uint8)
    write_idx(folder / "train-images-idx3-ubyte", images)
    write_idx(folder / "train-labels-idx1-ubyte", np.array(train_labels, np.uint8))
    write_idx(folder / "t10k-images-idx3-ubyte", images[: len(test_labels)])
    write_idx(folder / "t10k-labels-idx1-ubyte", np.array(test_labels, np.uint8))
    return images


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashionmnist", "FashionMNIST")])
def test_idx_files_load(tmp_path, name, folder):
    images = write_mnist(tmp_path / folder / "raw", [5, 0, 5, 9], [9, 5])
    benchmark = load_benchmark(name, tmp_path)
    assert benchmark.train_indices("5") == [0, 2]
    assert benchmark.test_size == 2
    assert benchmark.is_normal(1, "5")
    assert not benchmark.is_normal(0, "5")
    assert (benchmark.train_id(2), benchmark.test_id(1)) == ("train/2", "test/1")
    assert benchmark.is_gray
    assert benchmark.test_mask(0) is None
    gray = as_float(Image.fromarray(images[2]).resize((128, 128), Image.BILINEAR))
    np.testing.assert_array_equal(benchmark.train_image(2), np.repeat(gray[..., None], 3, axis=2))


def test_damaged_idx_files_are_named(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    write_mnist(raw, [1, 2, 3], [1])
    labels = raw / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(UserError, match="MNIST"):
        load_benchmark("mnist", tmp_path)


def test_a_class_without_images_is_an_error(tmp_path):
    write_mnist(tmp_path / "MNIST" / "raw", [1, 2], [1])
    with pytest.raises(UserError, match="--pos_class 7"):
        load_benchmark("mnist", tmp_path).train_indices("7")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar", "cifar-10-batches-py"),
        ("mnist", "MNIST/raw/"),
        ("fashionmnist", "FashionMNIST/raw/"),
        ("paris", "paris_120310.tgz"),
        ("mvtec", "mvtec_anomaly_detection.tar.xz"),
        ("folder", "train/<class>"),
    ],
)
def test_missing_files_say_what_to_put_where(tmp_path, name, expected):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"--data_root.*{expected}") as caught:
            load_benchmark(name, root)
        assert "\n" not in str(caught.value)
        assert ("no such folder" in str(caught.value)) == (root != tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["cifar", "mnist", "fashionmnist"])
def test_what_can_be_fetched_says_how(tmp_path, name):
    with pytest.raises(UserError, match="or use --download"):
        load_benchmark(name, tmp_path / "nowhere")


def test_a_data_set_is_fetched_when_asked_and_only_where_it_is_missing(tmp_path, monkeypatch):
    fetched = []

    def download(url, filename, **_):
        fetched.append(filename)
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", download)
    with pytest.raises(RunError, match=r"--download: MNIST not fetched .*; put MNIST/raw/ with train-images") as caught:
        load_benchmark("mnist", tmp_path / "data", download=True)
    assert "\n" not in str(caught.value)
    assert fetched
    fetched.clear()
    write_mnist(tmp_path / "data" / "MNIST" / "raw", [5], [5])
    assert load_benchmark("mnist", tmp_path / "data", download=True).test_size == 1
    assert not fetched


def test_a_foreign_pickle_is_not_opened(tmp_path):
    marker = tmp_path / "opened"
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(Opener(marker)))
    with pytest.raises(UserError, match="CIFAR10"):
        load_benchmark("cifar", tmp_path)
    assert not marker.exists()


class Opener:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_arrays_in_torchvisions_manner():
    train = SimpleNamespace(data=np.stack([picture(n, 32, 32) for n in range(4)]), targets=[1, 0, 1, 2])
    test = SimpleNamespace(data=np.stack([picture(n, 32, 32) for n in range(2)]), targets=torch.tensor([2, 1]))
    benchmark = array_benchmark(benchmark_spec("cifar"), train, test)
    assert benchmark.train_indices("automobile") == [0, 2]
    np.testing.assert_array_equal(
        benchmark.test_image(1), as_float(Image.fromarray(test.data[1]).resize((128, 128), Image.BICUBIC))
    )
    assert benchmark.test_candidates("car", training=[0]) == [0, 1]  # training images are other images here


@pytest.mark.parametrize("targets", [[0], [0, 10], [-1, 0]])
def test_labels_that_do_not_fit_are_an_error(targets):
    split = SimpleNamespace(data=np.zeros((2, 32, 32, 3), np.uint8), targets=targets)
    with pytest.raises(UserError, match="train files do not fit"):
        array_benchmark(benchmark_spec("cifar"), split, split)


# --- class folders --------------------------------------------------------------------------------------------------


def test_class_folders(tmp_path):
    for name in ("airplane", "automobile", "bird"):
        for number in (1, 0):
            save(tmp_path / "train" / name / f"{number:04}.png", seed=number)
        save(tmp_path / "test" / name / "0000.png")
    (tmp_path / "train" / "bird" / "notes.txt").write_text("no image")
    benchmark = load_benchmark("folder", tmp_path)
    assert benchmark.classes == ("plane", "car", "bird")
    assert benchmark.train_indices("airplane") == benchmark.train_indices("plane") == [0, 1]
    assert benchmark.train_id(3) == "train/automobile/0001.png"
    assert [[i for i in range(3) if benchmark.is_normal(i, name)] for name in benchmark.classes] == [[0], [1], [2]]
    assert benchmark.spec.title == f"{tmp_path.name} (folder)"
    assert not benchmark.is_gray
    np.testing.assert_array_equal(
        benchmark.train_image(1), clahe(as_float(Image.fromarray(picture(1)).resize((128, 128), Image.BICUBIC)))
    )


def test_gray_class_folders_are_prepared_like_mnist(tmp_path):
    gray = np.repeat(picture(0)[..., :1], 3, axis=2)
    for split in ("train", "test"):
        save(tmp_path / split / "a" / "0.png", gray)
    benchmark = load_benchmark("folder", tmp_path)
    assert benchmark.is_gray
    assert (benchmark.spec.train_filter, benchmark.spec.train_clahe, benchmark.spec.num_transforms) == (
        "bilinear",
        False,
        42,
    )
    assert benchmark.classes == ("a",)


def test_class_folders_of_another_form_are_errors(tmp_path):
    save(tmp_path / "train" / "a" / "0.png")
    with pytest.raises(UserError, match="test"):
        load_benchmark("folder", tmp_path)
    save(tmp_path / "test" / "b" / "0.png")
    with pytest.raises(UserError, match="class a is not in both"):
        load_benchmark("folder", tmp_path)
    (tmp_path / "test" / "a").mkdir()
    with pytest.raises(UserError, match="no image in it"):
        load_benchmark("folder", tmp_path)


# --- Paris ----------------------------------------------------------------------------------------------------------


def paris_tree(root: Path) -> Path:
    """Write, for each landmark, images 0 (ok), 1 (ok in another list), 2 (good), 3 (junk), and some special ones."""
    lists = root / "lists"
    lists.mkdir(parents=True)
    for seed, landmark in enumerate(benchmark_spec("paris").classes):
        for number in range(4):
            save(root / "paris" / landmark / f"paris_{landmark}_{number:06}.jpg", seed=seed)
        for query in range(1, 6):
            ok = 1 if query == 4 else 0
            (lists / f"{landmark}_{query}_ok.txt").write_text(f"paris_{landmark}_{ok:06}\n")
            (lists / f"{landmark}_{query}_good.txt").write_text(f"paris_{landmark}_000002\n")
            (lists / f"{landmark}_{query}_junk.txt").write_text(f"paris_{landmark}_000003\n")
    save(root / "paris" / "general" / "paris_general_000001.jpg")
    save(root / "paris" / "general" / "paris_general_000002.jpg")
    (lists / "eiffel_5_ok.txt").write_text("paris_eiffel_000000\nparis_general_000002\n")
    (root / "paris" / "louvre" / "paris_louvre_000136.jpg").write_text("<html>302 Found</html>")
    return lists


def index_of(benchmark, name: str) -> int:
    names = [benchmark.test_id(index) for index in range(benchmark.test_size)]
    return names.index(name)


def test_paris(tmp_path):
    paris_tree(tmp_path)
    benchmark = load_benchmark("paris", tmp_path)
    names = [benchmark.test_id(index) for index in range(benchmark.test_size)]
    assert len(names) == 11 * 4 + 1  # without the corrupt file and the general view of no ok-list
    assert "general/paris_general_000002.jpg" in names
    assert not any("000136" in name or "general_000001" in name for name in names)
    assert [benchmark.train_id(i) for i in benchmark.train_indices("eiffel")] == [
        "eiffel/paris_eiffel_000000.jpg",
        "eiffel/paris_eiffel_000001.jpg",
        "general/paris_general_000002.jpg",
    ]
    assert benchmark.is_normal(index_of(benchmark, "eiffel/paris_eiffel_000001.jpg"), "eiffel")
    assert benchmark.train_image(0).shape == benchmark.test_image(0).shape == (450, 450, 3)


def test_paris_good_and_junk_images_are_anomalous_for_all(tmp_path):
    paris_tree(tmp_path)
    benchmark = load_benchmark("paris", tmp_path)
    for name in ("louvre/paris_louvre_000002.jpg", "louvre/paris_louvre_000003.jpg"):
        index = index_of(benchmark, name)
        assert not any(benchmark.is_normal(index, landmark) for landmark in benchmark.classes)
        assert index in benchmark.test_candidates("louvre")


def test_paris_training_images_leave_the_test_set(tmp_path):
    paris_tree(tmp_path)
    benchmark = load_benchmark("paris", tmp_path)
    training = benchmark.train_indices("defense")[:1]
    assert benchmark.test_candidates("defense", training) == [
        i for i in range(benchmark.test_size) if i not in training
    ]


def test_paris_with_a_list_or_an_image_missing_is_an_error(tmp_path):
    lists = paris_tree(tmp_path)
    (tmp_path / "paris" / "pompidou" / "paris_pompidou_000001.jpg").unlink()
    with pytest.raises(UserError, match=r"1 images of the ok-lists are missing, as paris_pompidou_000001\.jpg"):
        load_benchmark("paris", tmp_path)
    (lists / "triomphe_3_ok.txt").unlink()
    with pytest.raises(UserError, match=r"triomphe_3_ok\.txt is missing"):
        load_benchmark("paris", tmp_path)


def test_paris_without_the_lists_or_the_images_of_a_landmark_is_an_error(tmp_path):
    lists = paris_tree(tmp_path)
    for path in lists.glob("louvre_*"):
        path.unlink()
    with pytest.raises(UserError, match=r"louvre_1_ok\.txt is missing"):
        load_benchmark("paris", tmp_path)
    paris_tree(tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "paris" / "louvre")
    with pytest.raises(UserError, match=r"2 images of the ok-lists are missing, as paris_louvre_000000\.jpg"):
        load_benchmark("paris", tmp_path / "again")


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
    for _ in range(2):  # unpacked, then found as it lies
        assert load_benchmark("paris", root).test_size == 45
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == ["paris"]

    for path in sorted((root / "paris").rglob("*.jpg")):
        path.rename(root / "paris" / path.name)
    assert load_benchmark("paris", root).test_size == 45


def test_half_of_paris_is_not_unpacked(tmp_path):
    source = save(tmp_path / "paris_louvre_000001.png")
    (tmp_path / "root").mkdir()
    with tarfile.open(tmp_path / "root" / "paris_1.tgz", "w:gz") as tar:
        tar.add(source, "paris/louvre/paris_louvre_000001.jpg")
    with pytest.raises(UserError, match=r"paris_2\.tgz"):
        load_benchmark("paris", tmp_path / "root")
    assert not (tmp_path / "root" / "paris").exists()


# --- MVTec ----------------------------------------------------------------------------------------------------------


def mvtec_class(root: Path, name: str) -> Path:
    """Write a class with two training images, one good test image, and two defects with masks."""
    folder = root / name
    for number in (1, 0):
        save(folder / "train" / "good" / f"{number:03}.png", picture(number, 40, 40))
    save(folder / "test" / "good" / "000.png", picture(2, 40, 40))
    for defect in ("broken_large", "contamination"):
        save(folder / "test" / defect / "000.png", picture(3, 40, 40))
        mask = np.zeros((40, 40), np.uint8)
        mask[:20] = 255
        save(folder / "ground_truth" / defect / "000_mask.png", mask)
    return folder


@pytest.mark.parametrize("place", ["mvtec", "mvtec_anomaly_detection", "."])
def test_mvtec(tmp_path, place):
    for name in ("bottle", "metal_nut"):
        mvtec_class(tmp_path / place, name)
    benchmark = load_benchmark("mvtec", tmp_path)
    assert len(benchmark.classes) == 15
    assert [benchmark.train_id(i) for i in benchmark.train_indices("metal_nut")] == [
        "metal_nut/train/good/000.png",
        "metal_nut/train/good/001.png",
    ]
    scored = benchmark.test_candidates("metal_nut")
    assert [benchmark.test_id(i) for i in scored] == [
        "metal_nut/test/broken_large/000.png",
        "metal_nut/test/contamination/000.png",
        "metal_nut/test/good/000.png",
    ]
    assert [benchmark.is_normal(i, "metal_nut") for i in scored] == [False, False, True]
    mask = benchmark.test_mask(scored[0])
    assert mask[:64].all()
    assert not mask[64:].any()
    assert benchmark.test_mask(scored[2]) is None
    with pytest.raises(UserError, match="--pos_class zipper"):
        benchmark.train_indices("zipper")


def test_mvtec_rotations_leave_clahe_out(tmp_path):
    mvtec_class(tmp_path / "mvtec", "tile")
    image = load_benchmark("mvtec", tmp_path, preparation="rotations").train_image(0)
    np.testing.assert_array_equal(
        image, as_float(Image.fromarray(picture(0, 40, 40)).resize((128, 128), Image.LANCZOS))
    )
    assert np.abs(load_benchmark("mvtec", tmp_path).train_image(0) - image).max() > 0.01


@pytest.mark.parametrize("lost", ["train/good", "test/good", "ground_truth/contamination"])
def test_mvtec_of_another_form_is_an_error(tmp_path, lost):
    folder = mvtec_class(tmp_path / "mvtec", "wood")
    for path in (folder / lost).iterdir():
        path.unlink()
    with pytest.raises(UserError, match=f"wood/{lost}"):
        load_benchmark("mvtec", tmp_path)


@pytest.mark.parametrize("place", ["root", "root/mvtec", "mvtec/mvtec", "mvtec/mvtec_anomaly_detection"])
def test_mvtec_at_another_level_is_an_error_that_names_the_folder(tmp_path, place):
    tree = tmp_path / place
    folder = mvtec_class(tree, "wood")
    for given in (tmp_path, folder):
        with pytest.raises(UserError) as caught:
            load_benchmark("mvtec", given)
        assert str(caught.value).endswith(f"give --data_root {tree}")
    assert load_benchmark("mvtec", tree).train_indices("wood")


def test_mvtec_mask_of_another_size_is_an_error(tmp_path):
    folder = mvtec_class(tmp_path / "mvtec", "wood")
    save(folder / "ground_truth" / "contamination" / "000_mask.png", np.zeros((40, 39), np.uint8))
    benchmark = load_benchmark("mvtec", tmp_path)
    with pytest.raises(UserError, match=r"000_mask\.png.*test/contamination/000\.png"):
        benchmark.test_mask(index_of(benchmark, "wood/test/contamination/000.png"))


def test_mvtec_class_archives_add_to_the_tree(tmp_path):
    mvtec_class(tmp_path / "root" / "mvtec", "tile")
    source = mvtec_class(tmp_path / "source", "wood")
    with tarfile.open(tmp_path / "root" / "mvtec" / "wood.tar.xz", "w:xz") as tar:
        tar.add(source, "wood")
    benchmark = load_benchmark("mvtec", tmp_path / "root")
    assert len(benchmark.train_indices("tile")) == len(benchmark.train_indices("wood")) == 2


def test_mvtec_archive_that_is_not_the_published_one_is_refused(tmp_path):
    with tarfile.open(tmp_path / "mvtec_anomaly_detection.tar.xz", "w:xz") as tar:
        tar.add(mvtec_class(tmp_path / "elsewhere", "wood"), "wood")
    with pytest.raises(UserError, match="bytes instead of 5264982680"):
        load_benchmark("mvtec", tmp_path)
    assert not (tmp_path / "mvtec").exists()


# --- archives -------------------------------------------------------------------------------------------------------


def tar_with(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            member.size = 4 if member.isreg() else 0
            tar.addfile(member, io.BytesIO(b"data") if member.isreg() else None)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o4000
    return info


BAD_MEMBERS = pytest.mark.parametrize(
    "bad",
    [
        member("../evil.txt"),
        member("inside/../../evil.txt"),
        member("/tmp/evil.txt"),
        member("..\\evil.txt"),
        member("C:\\evil.txt"),
        member("link", tarfile.SYMTYPE, "/etc"),
        member("link", tarfile.LNKTYPE, "fine.txt"),
        member("device", tarfile.CHRTYPE),
        member("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}",
)


@pytest.mark.parametrize(
    "bad", [member("../evil.txt"), member("wood/../../../evil.txt"), member("link", tarfile.SYMTYPE, "/etc")]
)
@pytest.mark.parametrize(
    ("dataset", "fine", "refused"),
    [
        ("paris", ["paris_1.tgz"], "paris_2.tgz"),
        ("paris", [], "paris_120310.tgz"),
        ("mvtec", ["bottle.tar.xz"], "wood.tar.xz"),
        ("mvtec", [], "mvtec/wood.tar.xz"),
    ],
)
def test_archives_of_data_sets_that_could_write_elsewhere_are_refused(tmp_path, bad, dataset, fine, refused):
    root = tmp_path / "root"
    (root / refused).parent.mkdir(parents=True)
    for name in fine:
        tar_with(root / name, member("fine.txt"))
    tar_with(root / refused, member("fine.txt"), bad)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="refused") as caught:
        load_benchmark(dataset, root)
    assert refused in str(caught.value)
    assert bad.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@BAD_MEMBERS
def test_a_tar_that_could_write_elsewhere_is_refused_whole(tmp_path, bad):
    archive = tar_with(tmp_path / "bad.tgz", member("fine.txt"), bad)
    with pytest.raises(UserError, match="refused"):
        unpack_into([archive], tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tgz"]


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "link"])
def test_a_zip_that_could_write_elsewhere_is_refused(tmp_path, name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (0o120777 if name == "link" else 0o100644) << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as package:
        package.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="refused"):
        extract_archive(tmp_path / "bad.zip", tmp_path / "target")
    assert list((tmp_path / "target").iterdir()) == []


def test_archives_unpack(tmp_path):
    tar = tar_with(tmp_path / "good.tgz", member("folder", tarfile.DIRTYPE), member("folder/a.txt"))
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as package:
        package.writestr("folder/b.txt", "zipped")
        package.writestr("empty/", "")
    unpack_into([tar, tmp_path / "good.zip"], tmp_path / "target")
    found = {path.relative_to(tmp_path / "target").as_posix() for path in (tmp_path / "target").rglob("*")}
    assert found == {"folder", "folder/a.txt", "folder/b.txt", "empty"}
    assert (tmp_path / "target" / "folder" / "b.txt").read_text() == "zipped"
    assert (tmp_path / "target" / "folder" / "a.txt").stat().st_mode & 0o7000 == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
def test_a_broken_archive_leaves_nothing(tmp_path, damage):
    archive = tmp_path / "broken.tgz"
    noise = np.random.default_rng(0).bytes(1 << 16)
    with tarfile.open(archive, "w:gz") as tar:
        info = tarfile.TarInfo("noise.bin")
        info.size = len(noise)
        tar.addfile(info, io.BytesIO(noise))
    content = bytearray(archive.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 255
    archive.write_bytes({"cut": content[: len(content) // 2], "flipped": content, "text": b"<html>"}[damage])
    with pytest.raises(UserError, match=r"broken\.tgz"):
        unpack_into([archive], tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_checksums(tmp_path):
    archive = tmp_path / "some.tgz"
    archive.write_bytes(gzip.compress(b"data"))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    size = archive.stat().st_size
    check_archive(archive, {"some.tgz": Checksum(size, digest)})
    check_archive(archive, {})
    with pytest.raises(UserError, match="bytes instead of"):
        check_archive(archive, {"some.tgz": Checksum(size + 1, digest)})
    with pytest.raises(UserError, match="SHA-256"):
        check_archive(archive, {"some.tgz": Checksum(size, "0" * 64)})
