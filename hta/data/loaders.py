"""The data sets of the paper, and folders laid out like them, each as its specification and two lists of samples."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from hta.data.archives import unpack_into
from hta.data.folders import find_test_images, images_in
from hta.data.sample import Sample
from hta.data.specs import CIFAR, FOLDER, FOLDER_GRAY, BenchmarkSpec
from hta.errors import RunError, UserError
from hta.images import is_gray

Splits = tuple[BenchmarkSpec, Sequence[Sample], Sequence[Sample]]
"""A data set's specification, its training images and its test images, both in data-set order."""


def load_splits(spec: BenchmarkSpec, data_root: Path, *, download: bool) -> Splits:
    """Load a data set.

    Args:
        spec: Its row of the protocol's table.
        data_root: The folder of its files; each loader's docstring has the layout.
        download: Whether torchvision may fetch CIFAR10, MNIST or FashionMNIST into `data_root`.

    Raises:
        UserError: Files are missing or of another form.
        RunError: A download or an archive could not be written.
    """
    try:
        if spec.name == "paris":
            return load_paris(spec, data_root)
        if spec.name == "mvtec":
            return load_mvtec(spec, data_root)
        if spec.name == "folder":
            return load_class_folders(data_root)
        if spec.name == "defects":
            return load_defect_folder(spec, data_root)
        return load_torchvision(spec, data_root, download=download)
    except UserError as error:
        if data_root.is_dir():
            raise
        raise UserError(f"{error}; there is no such folder yet") from error


# --- torchvision ----------------------------------------------------------------------------------------------------

_IDX_FILES = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte"
_LAYOUT = {
    "cifar": ("CIFAR10", "the folder cifar-10-batches-py of cifar-10-python.tar.gz"),
    "mnist": ("MNIST", f"MNIST/raw/ with {_IDX_FILES}"),
    "fashionmnist": ("FashionMNIST", f"FashionMNIST/raw/ with {_IDX_FILES}"),
}


def load_torchvision(spec: BenchmarkSpec, data_root: Path, *, download: bool) -> Splits:
    """Load CIFAR10, MNIST or FashionMNIST through torchvision's own classes.

    CIFAR10's published files are pickles: torchvision compares each with its published checksum before it opens it. hta
    itself opens no pickle.

    Args:
        spec: Its row of the protocol's table.
        data_root: torchvision's `root`.
        download: Whether missing files may be fetched; an archive that is already there is checked and unpacked.

    Raises:
        UserError: The files are missing or damaged.
        RunError: The download failed.
    """
    # Slow to import, and needed for these three data sets alone.
    from torchvision import datasets

    class_name, layout = _LAYOUT[spec.name]
    dataset = getattr(datasets, class_name)
    try:
        train, test = (dataset(str(data_root), train=train, download=download) for train in (True, False))
    except (OSError, RuntimeError) as error:
        if download:
            reason = " ".join(str(error).split())  # torchvision's text has several lines
            raise RunError(f"--download: {spec.title} not fetched ({reason}); put {layout} into {data_root}") from error
        raise UserError(
            f"--data_root {data_root}: {spec.title} is missing or incomplete; put {layout} into it, or use --download"
        ) from error
    except (ValueError, LookupError, AssertionError, EOFError) as error:
        raise UserError(
            f"--data_root {data_root}: files of {spec.title} are damaged; delete them and use --download"
        ) from error
    return spec, array_samples(spec, train, "train"), array_samples(spec, test, "test")


def array_samples(spec: BenchmarkSpec, dataset: Any, split: str) -> list[Sample]:
    """Return the samples of one split of a data set that is like torchvision's, with `data` (uint8) and `targets`.

    Raises:
        UserError: Numbers of images and labels differ, or a label is out of range.
    """
    data, labels = np.asarray(dataset.data), np.asarray(dataset.targets)
    if len(data) != len(labels) or np.any((labels < 0) | (labels >= len(spec.classes))):
        raise UserError(f"{spec.title}: images and labels of its {split} files do not match; get the files again")
    return [
        Sample(pixels, f"{split}/{index}", classes=(spec.classes[label],))
        for index, (pixels, label) in enumerate(zip(data, labels, strict=True))
    ]


# --- folders --------------------------------------------------------------------------------------------------------


def load_class_folders(data_root: Path) -> Splits:
    """Load any data set with one folder per class, `train/<class>/*` and `test/<class>/*`.

    Colour images are prepared as in CIFAR10, gray ones (judged by the first training image of each class) as in MNIST;
    images that are not square are squashed. Where all folders are classes of CIFAR10, they get the paper's names.

    Raises:
        UserError: The tree has another form.
    """
    train, test = _class_files(data_root / "train"), _class_files(data_root / "test")
    if odd := sorted(train.keys() ^ test.keys()):
        raise UserError(
            f"--data_root {data_root}: class {odd[0]} is not in both train and test; add the missing folder"
        )
    aliases = CIFAR.aliases
    renamed = {name: dict(aliases).get(name, name) for name in train}
    if not set(renamed.values()) <= set(CIFAR.classes) or len(set(renamed.values())) < len(renamed):
        aliases, renamed = (), {name: name for name in train}
    samples = [
        [_file_sample(path, data_root, renamed[name]) for name, paths in files.items() for path in paths]
        for files in (train, test)
    ]
    gray = all(is_gray(Sample(paths[0], name).read()) for name, paths in train.items())
    spec = replace(
        FOLDER_GRAY if gray else FOLDER,
        title=f"{data_root.resolve().name} (folder)",
        classes=tuple(renamed.values()),
        aliases=tuple(pair for pair in aliases if pair[1] in renamed.values()),
    )
    return spec, samples[0], samples[1]


def load_defect_folder(spec: BenchmarkSpec, data_root: Path) -> Splits:
    """Load defects of any one object in MVTec's layout, prepared as MVTec AD is; masks are optional.

        DIR/train/good/*
        DIR/test/{good,<defect>}/*
        DIR/ground_truth/<defect>/*

    Args:
        spec: How it is prepared; the folder gives title and class.
        data_root: The folder; its name is the only class.

    Raises:
        UserError: The folder is not of this form.
    """
    training = images_in(data_root / "train" / _GOOD)
    if not training:
        raise UserError(f"--data_root {data_root}: no image in its train/good; give a folder in MVTec's layout")
    test = find_test_images(data_root)
    if any(sample.label is None for sample in test) or all(sample.label for sample in test):
        raise UserError(f"--data_root {data_root}: no image in its test/good; give a folder in MVTec's layout")
    name = data_root.resolve().name
    return (
        replace(spec, title=name, classes=(name,)),
        [_file_sample(path, data_root, name) for path in training],
        [replace(sample, classes=(name,)) for sample in test],
    )


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


def _file_sample(path: Path, root: Path, *classes: str) -> Sample:
    return Sample(path, path.relative_to(root).as_posix(), classes=classes)


# --- MVTec AD -------------------------------------------------------------------------------------------------------

_MVTEC_ARCHIVE = "mvtec_anomaly_detection.tar.xz"
_GOOD = "good"


def load_mvtec(spec: BenchmarkSpec, data_root: Path) -> Splits:
    """Load MVTec AD (Bergmann et al. 2019), or those of its classes that are present.

        <class>/train/good/NNN.png
        <class>/test/{good,<defect>}/NNN.png
        <class>/ground_truth/<defect>/NNN_mask.png

    Args:
        spec: Its row of the protocol's table.
        data_root: The parent of `mvtec/<class>/`, `mvtec_anomaly_detection/<class>/`, `<class>/`, or of the published
            archives.

    Raises:
        UserError: No class is present, or a class's folder is not of the published form.
    """
    tree = _mvtec_tree(spec.classes, data_root)
    present = [name for name in spec.classes if (tree / name).is_dir()]
    train = [_file_sample(path, tree, name) for name in present for path in _good_images(tree / name / "train")]
    return spec, train, [sample for name in present for sample in _mvtec_test(tree, name)]


def _mvtec_test(tree: Path, name: str) -> Iterator[Sample]:
    """Yield a class's test images, by defect, each with its mask."""
    test = tree / name / "test"
    _good_images(test)
    for path in chain.from_iterable(images_in(kind) for kind in sorted(test.iterdir()) if kind.is_dir()):
        sample, kind = _file_sample(path, tree, name), path.parent.name
        if kind != _GOOD:
            mask = tree / name / "ground_truth" / kind / f"{path.stem}_mask.png"
            if not mask.is_file():
                raise UserError(f"{mask}: the mask of {path} is missing; unpack the class again from {_MVTEC_ARCHIVE}")
            sample = replace(sample, defect=kind, mask=mask)
        yield sample


def _good_images(folder: Path) -> list[Path]:
    images = images_in(folder / _GOOD)
    if not images:
        raise UserError(f"{folder / _GOOD}: no image there; unpack the class again from {_MVTEC_ARCHIVE}")
    return images


def _mvtec_tree(classes: Sequence[str], data_root: Path) -> Path:
    """Find the folder of the classes, after unpacking the archives of those that are missing."""
    places = (data_root / "mvtec", data_root / "mvtec_anomaly_detection", data_root)
    tree = next((place for place in places if _has_class(place, classes)), None)
    wanted = [name for name in classes if tree is None or not (tree / name).is_dir()]
    archives = [] if tree else _existing(place / _MVTEC_ARCHIVE for place in (data_root, data_root / "mvtec"))[:1]
    archives = archives or _existing(place / f"{name}.tar.xz" for name in wanted for place in places)
    if archives:
        tree = tree or data_root / "mvtec"
        unpack_into(archives, tree)
    if tree is None or not _has_class(tree, classes):
        if nearby := _mvtec_nearby(classes, data_root):
            raise UserError(f"--data_root {data_root}: MVTec AD is elsewhere; give --data_root {nearby}")
        raise UserError(
            f"--data_root {data_root}: no class of MVTec AD in its folder mvtec; unpack {_MVTEC_ARCHIVE} into that"
        )
    return tree


def _mvtec_nearby(classes: Sequence[str], data_root: Path) -> Path | None:
    """Find a folder of classes up to two levels below the given one, or the one above a class, for a message."""
    below = [path for pattern in ("[!.]*", "[!.]*/[!.]*") for path in sorted(data_root.glob(pattern))]
    trees = (*below, data_root.parent)
    return next((path for path in trees if any((path / name / "train").is_dir() for name in classes)), None)


def _has_class(tree: Path, classes: Sequence[str]) -> bool:
    return any((tree / name).is_dir() for name in classes)


# --- Paris ----------------------------------------------------------------------------------------------------------

_QUERIES = range(1, 6)
_PARIS_REMEDY = "unpack paris_1.tgz, paris_2.tgz and paris_120310.tgz into it"
# The published archives have error pages in place of these twenty; the data set's own page lists them.
_CORRUPT = frozenset(
    f"paris_{landmark}_{number:06}"
    for landmark, numbers in {
        "louvre": (136, 146),
        "moulinrouge": (422,),
        "museedorsay": (1059,),
        "notredame": (188,),
        "pantheon": (284, 960, 974),
        "pompidou": (195, 196, 201, 467, 640),
        "sacrecoeur": (299, 330, 353),
        "triomphe": (662, 833, 863, 867),
    }.items()
    for number in numbers
)


def load_paris(spec: BenchmarkSpec, data_root: Path) -> Splits:
    """Load Paris Buildings (Philbin et al. 2008).

    Normal for a landmark is the union of its five ok-lists. An image that is only in good or junk lists, or in none,
    is anomalous for every landmark. Training and test images are the same, so those drawn leave the test set.

    Args:
        spec: Its row of the protocol's table.
        data_root: The parent of `paris/` with the images (`paris_<landmark>_NNNNNN.jpg`, in subfolders or not) and of
            the lists (`<landmark>_{1..5}_ok.txt`, anywhere in data_root), or of the published archives.

    Raises:
        UserError: Images or lists are missing.
    """
    folder = _paris_folder(data_root)
    lists = {path.name: path for path in _visible_files(data_root, "*_ok.txt")}
    ok_names = {landmark: _ok_list_union(landmark, lists, folder) for landmark in spec.classes}
    known = {name for names in ok_names.values() for name in names}
    files = {path.stem: path for path in _visible_files(folder, "paris_*.jpg")}
    # Without the corrupt images and the general views that no ok-list names.
    kept = sorted(name for name in files if name not in _CORRUPT and (name in known or "_general_" not in name))
    for names in ok_names.values():
        if missing := sorted(names - set(kept)):
            raise UserError(
                f"{folder}: {len(missing)} images of the ok-lists are missing, as {missing[0]}.jpg; {_PARIS_REMEDY}"
            )
    samples = [
        _file_sample(files[name], folder, *(landmark for landmark in spec.classes if name in ok_names[landmark]))
        for name in kept
    ]
    return spec, samples, samples


def _paris_folder(data_root: Path) -> Path:
    """Find the folder of the images, after unpacking the archives whose contents are missing."""
    folder = data_root / "paris"
    # The newer copies of the image archives have -v1 in their names.
    parts = [_existing(data_root / f"paris_{part}{copy}.tgz" for copy in ("", "-v1"))[:1] for part in (1, 2)]
    # With one half alone the data set would pass for whole the next time.
    if all(parts) and not _visible_files(data_root, "paris_*.jpg"):
        unpack_into([*parts[0], *parts[1]], folder)
    lists = _existing([data_root / "paris_120310.tgz"])
    if lists and not _visible_files(data_root, "*_ok.txt"):
        unpack_into(lists, folder)
    for place in (folder, data_root):
        if _visible_files(place, "paris_*.jpg"):
            return place
    raise UserError(
        f"--data_root {data_root}: no images of Paris (paris_<landmark>_NNNNNN.jpg) in its folder paris; "
        f"{_PARIS_REMEDY}"
    )


def _ok_list_union(landmark: str, lists: Mapping[str, Path], folder: Path) -> frozenset[str]:
    """Return the names in a landmark's five ok-lists, without the corrupt images."""
    names: set[str] = set()
    for query in _QUERIES:
        file_name = f"{landmark}_{query}_ok.txt"
        try:
            lines = lists.get(file_name, folder / file_name).read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{folder}: the list {file_name} is missing or unreadable; {_PARIS_REMEDY}") from error
        names.update(line.removesuffix(".jpg") for line in lines)
    return frozenset(names) - _CORRUPT


def _visible_files(folder: Path, pattern: str) -> list[Path]:
    """List the files below a folder, except what an interrupted unpacking may have left in a hidden folder."""
    below = sorted(folder.rglob(pattern))
    return [path for path in below if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _existing(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.is_file()]
