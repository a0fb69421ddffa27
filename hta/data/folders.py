"""Images in folders: what to train on, what to test, with which labels and masks; finding apart from reading."""

import csv
import difflib
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from hta.errors import UserError
from hta.images import IMAGE_SUFFIXES, image_size, read_image, resize, to_tensor

logger = logging.getLogger(__name__)

NORMAL_FOLDER = "good"
MASK_FOLDER = "ground_truth"
TEST_FOLDER = "test"
TRAIN_FOLDER = "train"
MASK_ENDING = "_mask"

NORMAL_LABELS = (NORMAL_FOLDER, "normal", "ok")
"""Words of a CSV, in any case, that mean normal as 0 does."""

LABELS_RULE = f"0, {' or '.join(NORMAL_LABELS)} is normal, 1 or the name of a defect anomalous"
"""What labels of a CSV may be, in words."""

_LISTED = 5  # how many offending files a message names before it only counts them


@dataclass(frozen=True)
class TestItem:
    """One image to score.

    Attributes:
        path: The image file.
        relative: Its path below the folder that was given, with forward slashes; unique.
        label: 1 = anomalous, 0 = normal, None = not known.
        defect: Name of the kind of defect, None for normal images and where it is not known.
        mask: Image of the anomalous pixels, None where there is none.
    """

    path: Path
    relative: str
    label: int | None = None
    defect: str | None = None
    mask: Path | None = None

    def read(self) -> np.ndarray:
        """Read the image, `(H, W, 3)` float32 in [0, 1]; UserError if the file cannot be read."""
        return read_image(self.path)

    def read_mask(self) -> np.ndarray | None:
        """Read the mask, `(H, W)` bool; None where there is none.

        Raises:
            UserError: The mask cannot be read, or is not as large as the image.
        """
        if self.mask is None:
            return None
        mask, image_shape = read_mask(self.mask), image_size(self.path)
        if mask.shape != image_shape:
            raise UserError(
                f"{self.mask}: {mask.shape[0]} x {mask.shape[1]} px (height x width), but its image {self.path} has "
                f"{image_shape[0]} x {image_shape[1]}; make the mask as large as the image"
            )
        return mask


# --- training images ------------------------------------------------------------------------------------------------


def find_training_images(names: Sequence[str], input_dir: Path, num_images: int | None = None) -> list[Path]:
    """Find the files to train on.

    Args:
        names: Files of `input_dir` or paths to files, or one folder, whose image files are taken sorted by name.
        input_dir: Where names without a folder are looked for first.
        num_images: How many images of a folder, the first by name; it must hold so many. All by default.

    Returns:
        Paths of existing files, none twice.

    Raises:
        UserError: A name does not exist, a folder stands among several names or holds no or too few images, a file is
            given twice, or `num_images` does not fit.
    """
    if not names:
        raise UserError("--input_name: none given; name an image file or a folder of images")
    if num_images is not None and num_images < 1:
        raise UserError(f"--num_images: {num_images} is below 1; give a positive number")
    paths = [locate(name, input_dir) for name in names]
    folders = [path for path in paths if path.is_dir()]
    if folders and len(paths) > 1:
        raise UserError(f"--input_name: the folder {folders[0]} among other names; give one folder, or files only")
    if folders:
        paths = _images_of_folder(folders[0], num_images)
    elif num_images not in (None, len(paths)):
        raise UserError(f"--num_images: {num_images} asked, {len(paths)} files named; leave it out, or give a folder")
    _refuse_duplicates(paths)
    return paths


def load_training_images(paths: Sequence[Path], size_image: int | None = None) -> Iterator[np.ndarray]:
    """Read training images one after the other and bring them to one size, that of the first.

    Args:
        paths: Image files.
        size_image: Length in px to which the SHORTER side of the first image is brought first, aspect kept: a square
            image becomes size_image x size_image.

    Returns:
        Arrays (H, W, 3), float32 in [0, 1], each read when it is asked for. Images of another size are resized, aspect
        given up, with a notice.

    Raises:
        UserError: A file cannot be read, or `size_image` is below 1.
    """
    if size_image is not None and size_image < 1:
        raise UserError(f"--size_image: {size_image} is below 1; give a length in px")
    first, *others = (image_size(path) for path in paths)
    unlike = sum(size != first for size in others)
    target = first if size_image is None else _shorter_side_to(first, size_image)
    if unlike:
        text = "%d of %d training images differ in size from %s: resized to %d x %d (height x width) like it"
        logger.warning(text, unlike, len(paths), paths[0], *target)
    return (_resize_array(read_image(path), target) for path in paths)


def locate(name: str, input_dir: Path) -> Path:
    """Find a file or folder: a plain name in the input folder first, else as a path of its own first.

    Raises:
        UserError: There is none.
    """
    places = [input_dir / name, Path(name)]
    if os.path.dirname(name.rstrip("/")):  # noqa: PTH120 - pathlib would forget that `./a.png` is a path
        places.reverse()
    for path in places:
        if name and os.access(path, os.F_OK):
            return path
    present = _names(input_dir) if input_dir.is_dir() else []
    close = difflib.get_close_matches(name, present, n=3)
    remedy = f"did you mean {' or '.join(close)}?" if close else "check the name"
    raise UserError(f"--input_name: no file or folder {name!r}, neither in {input_dir} nor as a path; {remedy}")


def _images_of_folder(folder: Path, num_images: int | None) -> list[Path]:
    """List the image files directly in a folder, sorted by name and capped."""
    paths = [folder / name for name in _names(folder) if _is_image_name(name) and (folder / name).is_file()]
    if not paths:
        raise UserError(f"{folder}: holds no image file ({_suffix_text()}); give the folder that holds the images")
    if num_images is None:
        return paths
    if len(paths) < num_images:
        raise UserError(f"--num_images: {num_images} asked, but {folder} holds {len(paths)}; ask for fewer or add some")
    if len(paths) > num_images:
        logger.info("%s: the first %d of its %d images, by name, are used", folder, num_images, len(paths))
    return paths[:num_images]


def _refuse_duplicates(paths: Sequence[Path]) -> None:
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise UserError(f"--input_name: {path} is given twice; name each image once")
        seen.add(path.resolve())


def _shorter_side_to(size: tuple[int, int], length: int) -> tuple[int, int]:
    """Scale (height, width) so that the shorter side is `length`."""
    height, width = (max(1, round(side * length / min(size))) for side in size)
    return height, width


def _resize_array(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) in [0, 1]; the channels go alike, so a gray image stays gray to the bit."""
    if image.shape[:2] == tuple(size):
        return image
    return (resize(to_tensor([image]), size)[0].permute(1, 2, 0).numpy() + 1) / 2


# --- test images ----------------------------------------------------------------------------------------------------


def find_test_images(test_dir: Path, labels_csv: Path | None = None) -> list[TestItem]:
    """Find the images to score, with the labels and masks that the folder's layout or a CSV file gives.

    In MVTec's layout (the class folder, of which only `test` is scored, or its test folder), and in any folder that
    holds a folder `good`, labels are known: `good` is normal, every other folder a kind of defect. Any other folder is
    searched whole, without labels. Masks, `ground_truth/<defect>/<stem>_mask.png` or `<stem>.png`, are never scored.

    Args:
        test_dir: A folder, or one image file.
        labels_csv: CSV with the header `path,label`, a row for every image. Paths count from `test_dir`, else from the
            CSV's folder; labels are 0 or one of `NORMAL_LABELS` for normal, 1 or a kind of defect for anomalous. They
            replace the layout's.

    Returns:
        Items sorted by their relative path.

    Raises:
        UserError: There is no image, a mask fits no image or two masks fit one, or the CSV does not fit the images.
    """
    test_dir = Path(test_dir)
    if not os.access(test_dir, os.F_OK):
        raise UserError(f"--test_dir: no file or folder {test_dir}; check the path")
    if test_dir.is_dir():
        items, base = _items_of_folder(test_dir), test_dir
    else:
        items, base = [TestItem(test_dir, test_dir.name)], test_dir.parent
    if labels_csv is not None:
        items = _with_csv_labels(items, base, Path(labels_csv))
    return sorted(items, key=lambda item: item.relative)


def find_good_images(good_dir: Path, test: Sequence[Path] = ()) -> list[Path]:
    """Find normal images to make a threshold of: all images of a folder and the folders in it, each once.

    Args:
        good_dir: The folder.
        test: Files that will be scored; none of them may be among the good ones.

    Returns:
        Their paths, sorted, without copies of one another.

    Raises:
        UserError: There is no such folder or no image in it, or one of them will be scored.
    """
    if not good_dir.is_dir():
        raise UserError(f"--good_dir: no folder {good_dir}; check the path")
    paths = list({path.resolve(): path for path in reversed(_walk_images(good_dir))}.values())[::-1]
    if not paths:
        raise UserError(f"--good_dir {good_dir}: no image in it; {_suffix_text()}")
    scored = {path.resolve() for path in test}
    both = next((path for path in paths if path.resolve() in scored), None)
    if both is not None:
        _refuse_scored(good_dir, f"{both} is also a test image")
    alike = _first_alike(paths)
    for path, first in alike.items():
        if first != path:
            logger.info("--good_dir: %s is left out, it is a copy of %s", path, first)
    return [path for path, first in alike.items() if first == path]


def refuse_copies(good_dir: Path, good: Sequence[Path], test: Sequence[Path]) -> None:
    """Refuse good images that are copies of images that will be scored.

    Raises:
        UserError: One is; it is named.
    """
    scored = set(test)
    for path, first in _first_alike([*test, *good]).items():
        if first in scored and path not in scored:
            _refuse_scored(good_dir, f"{path} is a copy of the test image {first}")


def _refuse_scored(good_dir: Path, what: str) -> NoReturn:
    raise UserError(
        f"--good_dir {good_dir}: {what}, which would make the false alarms look rarer than they are; give images that "
        "are not scored"
    )


def _first_alike(paths: Sequence[Path]) -> dict[Path, Path]:
    """For each file the first of them that holds the same bytes, itself where no other does."""
    sizes = {path: path.stat().st_size for path in paths if path.is_file() and os.access(path, os.R_OK)}
    counts = Counter(sizes.values())
    firsts: dict[bytes, Path] = {}
    alike = {}
    for path in paths:
        # Only files of one size are read. What cannot be read is left to whoever reads the images.
        if counts[sizes.get(path)] > 1:
            alike[path] = firsts.setdefault(hashlib.sha256(path.read_bytes()).digest(), path)
        else:
            alike[path] = path
    return alike


def read_mask(path: Path) -> np.ndarray:
    """Read a mask.

    Args:
        path: Image file; transparent pixels count as black.

    Returns:
        Array (H, W), bool, True where any channel is above 0: anomalous.

    Raises:
        UserError: The file cannot be read.
    """
    return (read_image(path, background=0.0) > 0).any(axis=2)


def _items_of_folder(folder: Path) -> list[TestItem]:
    """Index a folder of any layout."""
    root, masks_root = _find_layout(folder)
    labelled = (root / NORMAL_FOLDER).is_dir() or masks_root is not None
    items = [_item(path, folder, root if labelled else None) for path in _walk_images(root, skip=MASK_FOLDER)]
    if not items:
        raise UserError(f"--test_dir: {root} holds no image file ({_suffix_text()}); give a folder of images")
    return items if masks_root is None else _with_masks(items, root, masks_root)


def _find_layout(folder: Path) -> tuple[Path, Path | None]:
    """Tell where the test images are, and where their masks, if the layout has any."""
    test, masks = folder / TEST_FOLDER, folder / MASK_FOLDER
    if test.is_dir() and any(path.is_dir() for path in (test / NORMAL_FOLDER, masks, folder / TRAIN_FOLDER)):
        return test, masks if masks.is_dir() else None
    places = [masks] if (folder / NORMAL_FOLDER).is_dir() else []
    # A sibling is taken only beside a folder of MVTec's name: elsewhere it may belong to anything.
    if _absolute(folder).name == TEST_FOLDER:
        places.append(_absolute(folder).parent / MASK_FOLDER)
    return folder, next((place for place in places if place.is_dir()), None)


def _item(path: Path, given: Path, root: Path | None) -> TestItem:
    """Make an item; in a labelled `root` the first folder is the kind of defect."""
    relative = path.relative_to(given).as_posix()
    if root is None:
        return TestItem(path, relative)
    parts = path.relative_to(root).parts
    if len(parts) == 1:
        raise UserError(
            f"{path}: lies beside the folders that are its label; put it into {NORMAL_FOLDER} or a defect's"
        )
    normal = parts[0] == NORMAL_FOLDER
    return TestItem(path, relative, label=0 if normal else 1, defect=None if normal else parts[0])


def _with_masks(items: Sequence[TestItem], root: Path, masks_root: Path) -> list[TestItem]:
    """Give every item its mask; each mask must find its image, and only one."""
    masks: dict[Path, Path] = {}  # by the path below the masks' folder, without suffix
    for path in _walk_images(masks_root):
        other = masks.setdefault(path.relative_to(masks_root).with_suffix(""), path)
        if other != path:
            raise UserError(f"{path}: a second mask beside {other}; remove one of them")
    owners: dict[Path, TestItem] = {}
    matched = []
    for item in items:
        stem = item.path.relative_to(root).with_suffix("")
        found = [masks[key] for key in (stem.with_name(stem.name + MASK_ENDING), stem) if key in masks]
        if len(found) > 1:
            raise UserError(f"{item.path}: two masks, {found[0]} and {found[1]}; remove one of them")
        for mask in found:
            owner = owners.setdefault(mask, item)
            if owner is not item:
                raise UserError(f"{mask}: the mask of both {owner.path} and {item.path}; rename one of the images")
        matched.append(replace(item, mask=found[0] if found else None))
    without = [str(mask) for mask in masks.values() if mask not in owners]
    if without:
        raise UserError(f"mask without an image in {root}: {_listing(without)}; remove it or add the image")
    return matched


def _with_csv_labels(items: Sequence[TestItem], base: Path, labels_csv: Path) -> list[TestItem]:
    """Set the labels of a CSV file, which must name exactly the items."""
    by_path = {_absolute(item.path): item for item in items}
    labelled: dict[Path, TestItem] = {}
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
    missing = [item.relative for path, item in by_path.items() if path not in labelled]
    if missing:
        raise UserError(f"{labels_csv}: no row for {_listing(missing)}; add the rows or take the images away")
    return list(labelled.values())


def _relabelled(item: TestItem, label: str, labels_csv: Path) -> TestItem:
    """Set a label as it stands in the CSV: a number, a word for normal, or the name of a kind of defect."""
    if label.lower() in NORMAL_LABELS:
        return replace(item, label=0, defect=None)
    try:
        value = float(label)
    except ValueError:
        return replace(item, label=1, defect=label)
    if value not in (0, 1):
        raise UserError(f"{labels_csv}: label {label} of {item.relative}; {LABELS_RULE}")
    return replace(item, label=int(value), defect=item.defect if value else None)


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


def _names(folder: Path) -> list[str]:
    """List a folder, sorted."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        _refuse_folder(error)


def _is_image_name(name: str) -> bool:
    """Tell an image by its suffix; hidden files (`._photo.png` of some systems) are none."""
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def _absolute(path: Path) -> Path:
    """Make a path comparable without following links: two links to one file stay two items."""
    return Path(os.path.normpath(path.absolute()))


def _suffix_text() -> str:
    return " ".join(sorted(IMAGE_SUFFIXES))


def _listing(names: Sequence[str]) -> str:
    """Name the first few, count the others."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
