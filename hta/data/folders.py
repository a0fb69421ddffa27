"""Image files in folders: which to train on and which to score, with labels and masks."""

import csv
import difflib
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from hta.data.sample import Sample
from hta.errors import UserError
from hta.images import IMAGE_SUFFIXES, image_size, read_image, resize, to_tensor

logger = logging.getLogger(__name__)

NORMAL_FOLDER = "good"
MASK_FOLDER, MASK_ENDING = "ground_truth", "_mask"
TEST_FOLDER, TRAIN_FOLDER = "test", "train"

NORMAL_LABELS = (NORMAL_FOLDER, "normal", "ok")
"""Words that mean normal in a CSV file, as 0 does; case does not matter."""

LABELS_RULE = f"0, {' or '.join(NORMAL_LABELS)} is normal, 1 or the name of a defect anomalous"
"""The labels that a CSV file may have, in words."""

_LISTED = 5  # how many offending files a message names before it only counts them
_SUFFIXES = " ".join(sorted(IMAGE_SUFFIXES))

# --- training images ------------------------------------------------------------------------------------------------


def find_training_images(names: Sequence[str], input_dir: Path, num_images: int | None = None) -> list[Path]:
    """Find the files to train on.

    Args:
        names: Files of `input_dir` or paths of files, or one folder, whose image files are used in order of name.
        input_dir: Where names without a folder are looked up first.
        num_images: How many images of a folder to use, at least 1, the first by name; None: all.

    Raises:
        UserError: A name does not exist, a folder is one of several names or has no or too few images, a file is given
            twice, or `num_images` does not fit.
    """
    paths = [locate(name, input_dir) for name in names]
    folders = [path for path in paths if path.is_dir()]
    if folders and len(paths) > 1:
        raise UserError(f"--input_name: the folder {folders[0]} among other names; give one folder, or files only")
    if folders:
        paths = _images_of_folder(folders[0], num_images)
    elif num_images not in (None, len(paths)):
        raise UserError(f"--num_images: {num_images} asked, {len(paths)} files named; leave it out, or give a folder")
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise UserError(f"--input_name: {path} is given twice; name each image once")
        seen.add(path.resolve())
    return paths


def load_training_images(paths: Sequence[Path], size_image: int | None = None) -> Iterator[np.ndarray]:
    """Read training images one after the other, all resized to the size of the first.

    Args:
        paths: Image files; an unreadable one is refused.
        size_image: Length in px of the SHORTER side of the first image once it is resized, aspect ratio kept: a square
            image becomes size_image x size_image. None: the first keeps its size.

    Returns:
        Arrays (H, W, 3), float32 in [0, 1], each read only when it is needed. Images of another size are resized
        without regard to their aspect ratio, with a notice.
    """
    first, *others = (image_size(path) for path in paths)
    unlike = sum(size != first for size in others)
    height, width = (max(1, round(side * size_image / min(first))) if size_image else side for side in first)
    if unlike:
        text = "%d of %d training images differ in size from %s: resized to %d x %d (height x width) like it"
        logger.warning(text, unlike, len(paths), paths[0], height, width)
    return (_resize_array(read_image(path), (height, width)) for path in paths)


def locate(name: str, input_dir: Path) -> Path:
    """Find a file or folder or refuse: a plain name in the input folder first, a path with a folder as a path first."""
    places = [input_dir / name, Path(name)]
    if os.path.dirname(name.rstrip("/")):  # noqa: PTH120 - pathlib would forget that `./a.png` is a path
        places.reverse()
    for path in places:
        if name and os.access(path, os.F_OK):
            return path
    close = difflib.get_close_matches(name, [path.name for path in _entries(input_dir)], n=3)
    remedy = f"did you mean {' or '.join(close)}?" if close else "check the name"
    raise UserError(f"--input_name: no file or folder {name!r}, neither in {input_dir} nor as a path; {remedy}")


def images_in(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, sorted by name; none where there is no such folder."""
    return [path for path in _entries(folder) if _is_image_name(path.name)]


def _images_of_folder(folder: Path, num_images: int | None) -> list[Path]:
    """List the image files directly in a folder, sorted by name and capped."""
    paths = [path for path in images_in(folder) if path.is_file()]
    if not paths:
        raise UserError(f"{folder}: holds no image file ({_SUFFIXES}); give the folder that holds the images")
    if num_images is None:
        return paths
    if len(paths) < num_images:
        raise UserError(f"--num_images: {num_images} asked, but {folder} holds {len(paths)}; ask for fewer or add some")
    if len(paths) > num_images:
        logger.info("%s: the first %d of its %d images, by name, are used", folder, num_images, len(paths))
    return paths[:num_images]


def _resize_array(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) in [0, 1]; all channels alike, so a gray image stays gray to the bit."""
    if image.shape[:2] == tuple(size):
        return image
    return (resize(to_tensor([image]), size)[0].permute(1, 2, 0).numpy() + 1) / 2


# --- test images ----------------------------------------------------------------------------------------------------


def find_test_images(test_dir: Path, labels_csv: Path | None = None) -> list[Sample]:
    """Find the images to score, sorted by relative path, with labels and masks from the folder's layout or a CSV file.

    In MVTec's layout (the class folder, of which only `test` is scored, or its test folder), and in any folder with a
    subfolder `good`, labels are known: `good` is normal, every other folder a kind of defect. Any other folder is
    searched recursively, without labels. Masks, `ground_truth/<defect>/<stem>_mask.png` or `<stem>.png`, are never
    scored.

    Args:
        test_dir: A folder, or one image file.
        labels_csv: CSV file with the header `path,label` and a row for every image. Paths are relative to `test_dir`,
            else to the CSV's folder; labels are 0 or one of `NORMAL_LABELS` for normal, 1 or a kind of defect for
            anomalous. They replace those of the layout.

    Raises:
        UserError: There is no image, a mask fits no image or two masks fit one, or the CSV does not fit the images.
    """
    if not os.access(test_dir, os.F_OK):
        raise UserError(f"--test_dir: no file or folder {test_dir}; check the path")
    samples = _samples_of_folder(test_dir) if test_dir.is_dir() else [Sample(test_dir, test_dir.name)]
    if labels_csv is not None:
        samples = _with_csv_labels(samples, test_dir if test_dir.is_dir() else test_dir.parent, labels_csv)
    return sorted(samples, key=lambda sample: sample.relative)


def find_good_images(good_dir: Path, scored: Iterable[Sample] = ()) -> list[Sample]:
    """Find normal images to derive a threshold from: all images below a folder, sorted by path, copies left out.

    Raises:
        UserError: There is no such folder or no image in it, or one of them is among the `scored` ones.
    """
    if not good_dir.is_dir():
        raise UserError(f"--good_dir: no folder {good_dir}; check the path")
    paths = list({path.resolve(): path for path in reversed(_walk_images(good_dir))}.values())[::-1]
    if not paths:
        raise UserError(f"--good_dir {good_dir}: no image in it; {_SUFFIXES}")
    scored_files = {path.resolve() for path in _files(scored)}
    if both := next((path for path in paths if path.resolve() in scored_files), None):
        _refuse_scored(good_dir, f"{both} is also a test image")
    firsts = _first_copies(paths)
    for path, first in firsts.items():
        if first != path:
            logger.info("--good_dir: %s is left out, it is a copy of %s", path, first)
    return [Sample(path, path.relative_to(good_dir).as_posix()) for path in paths if firsts[path] == path]


def refuse_copies(good_dir: Path, good: Iterable[Sample], scored: Iterable[Sample]) -> None:
    """Refuse, by a `UserError` that names it, a good image that is a copy of one that will be scored."""
    scored_files = dict.fromkeys(_files(scored))
    for path, first in _first_copies([*scored_files, *_files(good)]).items():
        if first in scored_files and path not in scored_files:
            _refuse_scored(good_dir, f"{path} is a copy of the test image {first}")


def _refuse_scored(good_dir: Path, what: str) -> NoReturn:
    reason = "would make the false alarms look rarer than they are; give images that are not scored"
    raise UserError(f"--good_dir {good_dir}: {what}, which {reason}")


def _files(samples: Iterable[Sample]) -> list[Path]:
    return [sample.source for sample in samples if isinstance(sample.source, Path)]


def _first_copies(paths: Sequence[Path]) -> dict[Path, Path]:
    """Map each file to the first one with the same bytes, which is itself where no other has them."""
    sizes = {path: path.stat().st_size for path in paths if path.is_file() and os.access(path, os.R_OK)}
    counts = Counter(sizes.values())
    firsts: dict[bytes, Path] = {}
    copies = {path: path for path in paths}
    # Only files of equal size are read. Files that cannot be read are reported when the images are read.
    for path in (path for path in paths if counts[sizes.get(path, -1)] > 1):
        copies[path] = firsts.setdefault(hashlib.sha256(path.read_bytes()).digest(), path)
    return copies


def _samples_of_folder(folder: Path) -> list[Sample]:
    """Index a folder of any layout; where it has labels, the first folder below its root is the kind of defect."""
    root, masks_root = _find_layout(folder)
    paths = _walk_images(root, skip=MASK_FOLDER)
    if not paths:
        raise UserError(f"--test_dir: {root} holds no image file ({_SUFFIXES}); give a folder of images")
    masks = {} if masks_root is None else _match_masks(paths, root, masks_root)
    samples = [Sample(path, path.relative_to(folder).as_posix(), mask=masks.get(path)) for path in paths]
    if masks_root is None and not (root / NORMAL_FOLDER).is_dir():
        return samples
    kinds = [path.relative_to(root).parts[0] for path in paths]
    if loose := next((path for path in paths if path.parent == root), None):
        remedy = f"move it into {NORMAL_FOLDER} or a folder of defects"
        raise UserError(f"{loose}: is beside the folders that give the labels; {remedy}")
    return [
        replace(sample, label=0) if kind == NORMAL_FOLDER else replace(sample, label=1, defect=kind)
        for sample, kind in zip(samples, kinds, strict=True)
    ]


def _find_layout(folder: Path) -> tuple[Path, Path | None]:
    """Return the folder of the test images, and that of their masks if the layout has any."""
    test, masks = folder / TEST_FOLDER, folder / MASK_FOLDER
    if test.is_dir() and any(path.is_dir() for path in (test / NORMAL_FOLDER, masks, folder / TRAIN_FOLDER)):
        return test, masks if masks.is_dir() else None
    places = [masks] if (folder / NORMAL_FOLDER).is_dir() else []
    # A sibling counts only beside a folder of MVTec's name: elsewhere it may belong to anything.
    if _absolute(folder).name == TEST_FOLDER:
        places.append(_absolute(folder).parent / MASK_FOLDER)
    return folder, next((place for place in places if place.is_dir()), None)


def _match_masks(paths: Sequence[Path], root: Path, masks_root: Path) -> dict[Path, Path]:
    """Find the masks of images; each mask must fit one image, and only one."""
    masks: dict[Path, Path] = {}  # by the path below the masks' folder, without suffix
    for path in _walk_images(masks_root):
        other = masks.setdefault(path.relative_to(masks_root).with_suffix(""), path)
        if other != path:
            raise UserError(f"{path}: a second mask beside {other}; remove one of them")
    owners: dict[Path, Path] = {}
    for path in paths:
        stem = path.relative_to(root).with_suffix("")
        found = [masks[key] for key in (stem.with_name(stem.name + MASK_ENDING), stem) if key in masks]
        if len(found) > 1:
            raise UserError(f"{path}: two masks, {found[0]} and {found[1]}; remove one of them")
        for mask in found:
            if (owner := owners.setdefault(mask, path)) != path:
                raise UserError(f"{mask}: the mask of both {owner} and {path}; rename one of the images")
    if without := [str(mask) for mask in masks.values() if mask not in owners]:
        raise UserError(f"mask without an image in {root}: {_listing(without)}; remove it or add the image")
    return {path: mask for mask, path in owners.items()}


def _with_csv_labels(samples: Sequence[Sample], base: Path, labels_csv: Path) -> list[Sample]:
    """Set the labels from a CSV file, which must name exactly the samples."""
    by_path = {_absolute(base / sample.relative): sample for sample in samples}
    labelled: dict[Path, Sample] = {}
    unknown = []
    for name, label in _csv_rows(labels_csv):
        places = [_absolute(folder / name) for folder in (base, labels_csv.parent)]
        place = next((place for place in places if place in by_path), None)
        if place is None:
            unknown.append(name)
        elif place in labelled:
            raise UserError(f"{labels_csv}: two rows for {name}; remove one")
        else:
            labelled[place] = _relabelled(by_path[place], label, labels_csv)
    if unknown:
        raise UserError(f"{labels_csv}: no such test image: {_listing(unknown)}; correct or remove these rows")
    if missing := [sample.relative for path, sample in by_path.items() if path not in labelled]:
        raise UserError(f"{labels_csv}: no row for {_listing(missing)}; add the rows or take the images away")
    return list(labelled.values())


def _relabelled(sample: Sample, label: str, labels_csv: Path) -> Sample:
    """Set a label from the CSV file: a number, a word for normal, or the name of a kind of defect."""
    if label.lower() in NORMAL_LABELS:
        return replace(sample, label=0, defect=None)
    try:
        value = float(label)
    except ValueError:
        return replace(sample, label=1, defect=label)
    if value not in (0, 1):
        raise UserError(f"{labels_csv}: label {label} of {sample.relative}; {LABELS_RULE}")
    return replace(sample, label=int(value), defect=sample.defect if value else None)


def _csv_rows(labels_csv: Path) -> Iterator[tuple[str, str]]:
    """Read (path, label) of every row."""
    try:
        with labels_csv.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"path", "label"} <= set(reader.fieldnames or ()):
                raise UserError(f"{labels_csv}: its first line lacks path,label; add this header")
            for row in reader:
                path, label = row["path"] or "", (row["label"] or "").strip()  # names may begin with a space
                if not path.strip() or not label:
                    raise UserError(f"{labels_csv}: line {reader.line_num} lacks a path or a label; complete it")
                yield path, label
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{labels_csv}: cannot be read as a CSV file ({error}); check the path and the text") from error


# --- walking --------------------------------------------------------------------------------------------------------


def _walk_images(root: Path, skip: str | None = None) -> list[Path]:
    """List the image files below a folder, sorted; links to folders are followed, each folder is entered once."""
    found: list[Path] = []
    entered: set[Path] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_refuse_folder):
        place = Path(folder).resolve()
        if place in entered:  # by another way, or by a link that leads back up
            subfolders.clear()
            continue
        entered.add(place)
        subfolders[:] = sorted(name for name in subfolders if name != skip and not name.startswith("."))
        found += [Path(folder, name) for name in names if _is_image_name(name)]
    return sorted(found)


def _refuse_folder(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename}: cannot be opened ({error.strerror}); check its permissions") from error


def _entries(folder: Path) -> list[Path]:
    """List a folder, sorted; empty where there is no such folder."""
    try:
        return sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        _refuse_folder(error)


def _is_image_name(name: str) -> bool:
    """Recognise an image by its suffix; hidden files (`._photo.png` of some systems) are not images."""
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def _absolute(path: Path) -> Path:
    """Make a path comparable without following links: two links to one file stay two samples."""
    return Path(os.path.normpath(path.absolute()))


def _listing(names: Sequence[str]) -> str:
    """Name the first few, count the others."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
