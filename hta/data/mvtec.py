"""MVTec AD (Bergmann et al. 2019) under the protocol, from its published tree.

    <class>/train/good/NNN.png
    <class>/test/{good,<defect>}/NNN.png
    <class>/ground_truth/<defect>/NNN_mask.png

Each class is scored on its own test images; normal are those in `good`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hta.data.archives import unpack_into
from hta.data.image_sets import Benchmark, FileImages, images_in
from hta.data.specs import BenchmarkSpec
from hta.errors import UserError

_ARCHIVE = "mvtec_anomaly_detection.tar.xz"
_GOOD = "good"


@dataclass(frozen=True)
class _TestFile:
    path: Path
    label: int
    defect: str
    mask: Path | None


def load_mvtec(spec: BenchmarkSpec, data_root: Path) -> Benchmark:
    """Load MVTec AD, or those of its classes that are there.

    Args:
        spec: Its row of the table.
        data_root: Holds `mvtec/<class>/`, `mvtec_anomaly_detection/<class>/`, `<class>/`, or the published archives.

    Raises:
        UserError: No class is there, or a class's folder is not of the published form.
    """
    tree = _find_tree(spec.classes, data_root)
    present = [label for label, name in enumerate(spec.classes) if (tree / name).is_dir()]
    train = {label: _training_files(tree / spec.classes[label]) for label in present}
    tests = [file for label in present for file in _test_files(tree / spec.classes[label], label)]
    labels = range(len(spec.classes))
    return Benchmark(
        spec=spec,
        train=FileImages(tree, tuple(path for label in present for path in train[label])),
        test=FileImages(tree, tuple(file.path for file in tests)),
        train_members=_consecutive([len(train.get(label, ())) for label in labels]),
        normals=tuple(
            frozenset(i for i, file in enumerate(tests) if file.label == label and file.defect == _GOOD)
            for label in labels
        ),
        strata=tuple(file.defect for file in tests),
        scored=tuple(tuple(i for i, file in enumerate(tests) if file.label == label) for label in labels),
        masks={i: file.mask for i, file in enumerate(tests) if file.mask is not None},
    )


def _find_tree(classes: Sequence[str], data_root: Path) -> Path:
    """Find the folder of the classes, unpacking the archives of what is missing."""
    places = (data_root / "mvtec", data_root / "mvtec_anomaly_detection", data_root)
    tree = next((place for place in places if any((place / name).is_dir() for name in classes)), None)
    wanted = [f"{name}.tar.xz" for name in classes if tree is None or not (tree / name).is_dir()]
    whole = [] if tree else [data_root / _ARCHIVE, data_root / "mvtec" / _ARCHIVE]
    found = [path for path in whole if path.is_file()][:1]
    found = found or [path for name in wanted for place in places if (path := place / name).is_file()]
    if found:
        tree = tree or data_root / "mvtec"
        unpack_into(found, tree)
    if tree is None or not any((tree / name).is_dir() for name in classes):
        if nearby := _tree_nearby(classes, data_root):
            raise UserError(f"--data_root {data_root}: MVTec AD lies elsewhere; give --data_root {nearby}")
        raise UserError(
            f"--data_root {data_root}: no class of MVTec AD in its folder mvtec; unpack {_ARCHIVE} into that"
        )
    return tree


def _tree_nearby(classes: Sequence[str], data_root: Path) -> Path | None:
    """Find a folder of classes a level too deep, or the one above a class, for a message."""
    below = [path for pattern in ("[!.]*", "[!.]*/[!.]*") for path in sorted(data_root.glob(pattern)) if path.is_dir()]
    trees = (path for path in (*below, data_root.parent) if any((path / name / "train").is_dir() for name in classes))
    return next(trees, None)


def _training_files(folder: Path) -> list[Path]:
    files = images_in(folder / "train" / _GOOD)
    if not files:
        raise UserError(f"{folder / 'train' / _GOOD}: no image there; unpack the class again from {_ARCHIVE}")
    return files


def _test_files(folder: Path, label: int) -> list[_TestFile]:
    """List a class's test images, by defect, each with its mask."""
    if not images_in(folder / "test" / _GOOD):
        raise UserError(f"{folder / 'test' / _GOOD}: no image there; unpack the class again from {_ARCHIVE}")
    defects = sorted(path for path in (folder / "test").iterdir() if path.is_dir())
    return [
        _TestFile(path, label, defect.name, None if defect.name == _GOOD else _mask(folder, path))
        for defect in defects
        for path in images_in(defect)
    ]


def _mask(folder: Path, image: Path) -> Path:
    mask = folder / "ground_truth" / image.parent.name / f"{image.stem}_mask.png"
    if not mask.is_file():
        raise UserError(f"{mask}: the mask of {image} is missing; unpack the class again from {_ARCHIVE}")
    return mask


def _consecutive(counts: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Number things through, class after class."""
    starts = [sum(counts[:label]) for label in range(len(counts))]
    return tuple(tuple(range(start, start + count)) for start, count in zip(starts, counts, strict=True))
