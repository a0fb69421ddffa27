"""Any other data set: a tree with one folder a class, `train/<class>/*` and `test/<class>/*`."""

from dataclasses import replace
from pathlib import Path

from hta.data.image_sets import Benchmark, FileImages, images_in, labelled_benchmark
from hta.data.specs import CIFAR, FOLDER, FOLDER_GRAY, BenchmarkSpec
from hta.errors import UserError
from hta.images import is_gray, read_image


def load_class_folders(data_root: Path) -> Benchmark:
    """Load a class-per-folder tree.

    A tree in colour is prepared like CIFAR10, a gray one (judged by the first training image of each class) like MNIST;
    images that are not square are squashed. Where all folders are classes of CIFAR10, they get the paper's names.

    Raises:
        UserError: The tree has another form.
    """
    train = _class_files(data_root / "train")
    test = _class_files(data_root / "test")
    if odd := sorted(train.keys() ^ test.keys()):
        raise UserError(
            f"--data_root {data_root}: class {odd[0]} is not in both train and test; add the missing folder"
        )
    images, labels = _flatten(data_root, train)
    test_images, test_labels = _flatten(data_root, test)
    return labelled_benchmark(_spec_of(data_root, train), images, labels, test_images, test_labels)


def _class_files(folder: Path) -> dict[str, list[Path]]:
    """List the images of each class, classes and files by name."""
    if not folder.is_dir():
        raise UserError(f"--data_root: no folder {folder}; lay the images out as train/<class>/* and test/<class>/*")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    files = {path.name: images_in(path) for path in classes}
    if not files:
        raise UserError(f"{folder}: no class folder in it; lay the images out as train/<class>/* and test/<class>/*")
    for name, images in files.items():
        if not images:
            raise UserError(f"{folder / name}: no image in it; add some or remove the folder from train and test")
    return files


def _flatten(root: Path, files: dict[str, list[Path]]) -> tuple[FileImages, list[int]]:
    labels = [label for label, images in enumerate(files.values()) for _ in images]
    return FileImages(root, tuple(path for images in files.values() for path in images)), labels


def _spec_of(root: Path, train: dict[str, list[Path]]) -> BenchmarkSpec:
    gray = all(is_gray(read_image(images[0])) for images in train.values())
    spec = replace(FOLDER_GRAY if gray else FOLDER, title=f"{root.resolve().name} (folder)", classes=tuple(train))
    paper_names = dict(CIFAR.aliases)
    renamed = tuple(paper_names.get(name, name) for name in train)
    if set(renamed) <= set(CIFAR.classes) and len(set(renamed)) == len(renamed):
        return replace(spec, classes=renamed, aliases=tuple(pair for pair in CIFAR.aliases if pair[1] in renamed))
    return spec
