"""Image files in folders: which to train on and which to score, with labels and masks."""

import difflib
import errno
import hashlib
import logging
import math
import os
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NoReturn

import numpy as np

from hta.data.labels import absolute, listing, parse_label, printed, read_labels
from hta.data.masks import key_of, match_masks
from hta.data.names import NORMAL_FOLDER, fold, image_stem, is_answer, is_normal, mask_kind
from hta.data.sample import Sample, summary
from hta.errors import UserError
from hta.images import IMAGE_SUFFIXES, full_size, image_size, of_full_size, read_image, reduction, resize, to_tensor

logger = logging.getLogger(__name__)

TEST_FOLDER, TRAIN_FOLDER = "test", "train"

_TEST_FOLDERS = ("test", "tests", "testing")
_TRAIN_FOLDERS = ("train", "training")
_NOT_TESTED = (*_TRAIN_FOLDERS, "val", "valid", "validation")

_BY_MASKS = "labels: by the masks; where nothing is marked = good"
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
        paths = images_of_folder(folders[0], num_images)
    elif num_images not in (None, len(paths)):
        raise UserError(f"--num_images: {num_images} asked, {len(paths)} files named; leave it out, or give a folder")
    seen: set[str] = set()
    for path in paths:
        if (place := os.path.realpath(path)) in seen:
            raise UserError(f"--input_name: {path} is given twice; name each image once")
        seen.add(place)
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
        text = "%d of %d training images differ in size from %s: resized to %d x %d px (width x height) like it"
        logger.warning(text, unlike, len(paths), paths[0], width, height)
    return (_resize_array(read_image(path), (height, width)) for path in paths)


def locate(name: str, input_dir: Path) -> Path:
    """Find a file or folder or refuse: a plain name in the input folder first, a path with a folder as a path first."""
    places = [input_dir / name, Path(name)]
    if os.path.dirname(name.rstrip("/")):  # noqa: PTH120 - pathlib would forget that `./a.png` is a path
        places.reverse()
    for path in places:
        if name and _exists("--input_name", path):
            return path
    close = difflib.get_close_matches(name, [path.name for path in _entries(input_dir)], n=3)
    remedy = f"did you mean {' or '.join(close)}?" if close else "check the name"
    raise UserError(f"--input_name: no file or folder {name!r}, neither in {input_dir} nor as a path; {remedy}")


def images_in(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, sorted by name; none where there is no such folder."""
    return [path for path in _entries(folder) if is_image_name(path.name)]


def subfolders(folder: Path) -> list[Path]:
    """Return the folders directly in a folder, sorted by name, without hidden ones."""
    return [path for path in _entries(folder) if path.is_dir() and not path.name.startswith(".")]


def images_of_folder(folder: Path, num_images: int | None = None) -> list[Path]:
    """List the image files directly in a folder, without masks of others, sorted by name and capped.

    Raises:
        UserError: there is none, or fewer than `num_images`.
    """
    files = [path for path in _entries(folder) if path.is_file() and not path.name.startswith(".")]
    paths = _images_and_masks([path for path in files if is_image_name(path.name)], folder, [], ())[0]
    if paths and (note := _left_out(str(folder), sorted({*files} - {*paths}))):
        logger.info("%s", note)
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
    if full_size(image) == size:
        return image
    height, width = (math.ceil(side / reduction(size)) for side in size)
    return of_full_size((resize(to_tensor([image]), (height, width))[0].permute(1, 2, 0).numpy() + 1) / 2, size)


# --- test images ----------------------------------------------------------------------------------------------------


def find_test_images(
    test_dir: Path,
    labels_csv: Path | None = None,
    mask_dir: Path | None = None,
    notes: list[str] | None = None,
    *,
    invert_masks: bool = False,
) -> list[Sample]:
    """Find the images to score, sorted by relative path, with labels and masks from the folder's layout or a CSV file.

    Any folder is searched recursively, but of MVTec's class folder, or several of them, only `test`. Labels are known
    where an outermost folder means normal (`hta.data.names`), the others then being kinds of defect; or where a folder
    of each image means normal or anomalous; or where all images have masks, of which an all-black one means normal.
    Masks, which are never scored, are in folders named for it within or beside that of the images, or end in `_mask`
    beside their image.

    Args:
        test_dir: A folder, or one image file.
        labels_csv: Labels instead of those of the layout (`hta.data.labels`), one for every image, with paths relative
            to `test_dir`, the CSV's folder or the folder above either. What it names is no mask.
        mask_dir: The folder of the masks, laid out like that of the images, or that of one kind of defect.
        notes: Receives a line on what was found, and on how names were understood and which files were left out.
        invert_masks: Whether the masks mark the normal pixels.

    Raises:
        UserError: There is no image, a mask fits no image or two masks fit one, or the CSV does not fit the images.
    """
    is_folder = _checked("--test_dir", test_dir).is_dir()
    folder = test_dir if is_folder else test_dir.parent
    root, mask_roots, is_sure = _find_layout(folder) if is_folder else (folder, [], True)
    files, others = _walk(root) if is_folder else ([test_dir], [])
    tested = {*_without_training(files)}
    if mask_dir is not None:
        mask_roots, is_sure = [_checked("--mask_dir", mask_dir, kind="folder")], True
        files = [path for path in files if not absolute(path).is_relative_to(absolute(mask_dir))]
    given, training = ({}, set()) if labels_csv is None else read_labels(labels_csv, files, folder)
    files = [path for path in files if path not in training and (path in tested or path in given)]
    if mask_dir is not None:  # others do not count
        images, masks, strays = _images_and_masks(files, root, [], given)
        files, others = [*images, *strays], [*others, *chain(*masks.values())]
    known = files if mask_dir else given
    images, masks, strays = _images_and_masks(files, root, mask_roots, known)
    if strays and not is_sure:
        images, masks, strays = _images_and_masks(files, root, [], known)
    if not images:
        raise UserError(f"--test_dir: {root} holds no image file ({_SUFFIXES}); give a folder of images")
    if strays and labels_csv is None and is_folder:
        found, remedy = listing([str(path) for path in strays]), "--mask_dir names the masks, --labels_csv the images"
        raise UserError(f"mask without an image in {root}: {found}; remove it or add the image ({remedy})")
    names = {path: path.relative_to(folder).as_posix() for path in images}
    samples = {path: Sample(path, names[path], masks=masks.get(path, ()), invert_masks=invert_masks) for path in images}
    kinds = _kinds_of_folders(images, root, strict=labels_csv is None) if is_folder else {}
    if by_masks := is_folder and not kinds and len(masks) == len(images):
        kinds = _kinds_by_masks(samples, root)
    words = kinds if labels_csv is None else given
    for path, word in words.items():
        samples[path] = _labelled(samples[path], kinds.get(path, NORMAL_FOLDER), word, labels_csv)
    if labels_csv and (missing := [sample.relative for sample in samples.values() if sample.label is None]):
        raise UserError(f"{labels_csv}: no row for {listing(missing)}; add the rows or take the images away")
    if notes is not None:
        others = [path for path in others if absolute(path) != absolute(labels_csv or folder)]
        reading = _BY_MASKS if by_masks and labels_csv is None else _reading(samples, words, root)
        left_out = _left_out("--test_dir", [*others, *strays * is_folder])
        notes += filter(None, (summary(samples.values()), reading, left_out))
    return sorted(samples.values(), key=lambda sample: sample.relative)


def find_good_images(good_dir: Path, scored: Iterable[Sample] = ()) -> list[Sample]:
    """Find normal images to derive a threshold from: all images below a folder, sorted by path, copies left out.

    Raises:
        UserError: There is no such folder or no image in it, an image is in a folder that means anomalous, or one is
            among the `scored` ones.
    """
    files, others = _walk(_checked("--good_dir", good_dir, kind="folder"))
    files, masks, strays = _images_and_masks(files, good_dir, [], ())
    paths = sorted({os.path.realpath(path): path for path in reversed(files)}.values())
    if not paths:
        raise UserError(f"--good_dir {good_dir}: no image in it; {_SUFFIXES}")
    names = {name for path in paths for name in _folders(path, good_dir) if not is_answer(name)}
    if bad := [name for name in sorted(names) if is_normal(name) is False]:
        raise UserError(f"--good_dir {good_dir}: holds images in a folder {bad[0]}; give normal images only")
    scored_files = {os.path.realpath(path) for path in _files(scored)}
    if both := next((path for path in paths if os.path.realpath(path) in scored_files), None):
        _refuse_scored(good_dir, f"{both} is also a test image")
    if note := _left_out("--good_dir", [*others, *strays, *chain(*masks.values())]):
        logger.info("%s", note)
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


def _find_layout(folder: Path) -> tuple[Path, list[Path], bool]:
    """Return the folder of the test images, the folders of masks outside of it, and whether they are surely masks."""
    children = subfolders(folder)
    masks = [child for child in children if mask_kind(child.name) == ""]
    test = next((child for child in children if child.name.casefold() in _TEST_FOLDERS), None)
    names = {child.name.casefold() for child in children}
    if test and (masks or names & {*_TRAIN_FOLDERS} or any(is_normal(part.name) for part in subfolders(test))):
        return test, masks, True
    # Those beside the folder may belong to anything, unless it has a name like `test` or `images`.
    place = absolute(folder)
    beside = subfolders(place.parent) if os.access(place.parent, os.R_OK) else []
    return folder, [sibling for sibling in beside if mask_kind(sibling.name) == ""], not fold(place.name)


def _images_and_masks(
    files: Sequence[Path], root: Path, mask_roots: Sequence[Path], images: Container[Path]
) -> tuple[list[Path], dict[Path, tuple[Path, ...]], list[Path]]:
    """Find the images among files below `root`, of which some are known, their masks, and the masks that fit none.

    The folders in `mask_roots` hold nothing but masks.
    """
    stems = {path.with_suffix("") for path in files}

    def is_mask(path: Path) -> bool:
        bare = path.with_name(image_stem(path.stem))
        is_beside = bare.name != path.stem and bare in stems
        return path not in images and (is_beside or any(mask_kind(name) is not None for name in _folders(path, root)))

    inside = {path: key_of(path, root, is_mask=True) for path in files if is_mask(path)}
    keys = {path: key_of(path, root, is_mask=False) for path in files if path not in inside}
    kinds, masks = {kind for *folders, _ in keys.values() for kind in folders}, dict(inside)
    # The folder of the masks of one kind may be given: its own name tells the kind.
    for place in mask_roots:
        base = place.parent if fold(place.name) in kinds else place
        masks |= {path: key_of(path, base, is_mask=True) for path in _walk(place)[0]}
    normal = {path for path in keys if any(is_normal(name) for name in _folders(path, root))}
    found, strays = match_masks(masks, keys, normal)
    # A folder named after a kind and a mask, such as `torn_mask`, may hold images.
    ordinary = [path for path in strays if path in inside and "" not in map(mask_kind, _folders(path, root))]
    return [*keys, *ordinary], found, [path for path in strays if path not in ordinary]


def _without_training(files: Sequence[Path]) -> list[Path]:
    """Leave out what is not for testing in folders that hold both `train` and `test`, as those of several classes."""
    folders = {folder for path in files for folder in path.parents}
    tests, trains = (
        {folder.parent for folder in folders if folder.name.casefold() in names}
        for names in (_TEST_FOLDERS, _TRAIN_FOLDERS)
    )
    unused = {path for path in folders if path.name.casefold() in _NOT_TESTED and path.parent in tests & trains}
    return [path for path in files if unused.isdisjoint(path.parents)]


def _kinds_of_folders(images: Sequence[Path], root: Path, *, strict: bool) -> dict[Path, str]:
    """Map each image to the folder that tells its label, if they do; `strict` refuses an image beside these."""
    first = {path: _outermost(path, root) for path in images}
    names = {*first.values(), *(child.name for child in subfolders(root))}
    if any(is_normal(name) and not is_answer(name) for name in names):
        if strict and (loose := next((path for path, name in first.items() if not name), None)):
            remedy = f"move it into {NORMAL_FOLDER} or a folder of defects, or give --labels_csv"
            raise UserError(f"{loose}: is beside the folders that give the labels; {remedy}")
        return {path: name for path, name in first.items() if name}
    clear = {path: next((name for name in _folders(path, root) if is_normal(name) is not None), "") for path in images}
    return clear if all(clear.values()) else {}


def _kinds_by_masks(samples: Mapping[Path, Sample], root: Path) -> dict[Path, str]:
    """Map each image that has a mask to a word that means normal if nothing is marked, else to its kind of defect.

    The kind is the outermost folder if every image is in one and has a defect, else unknown and an empty word. Images
    whose mask cannot be read, which is reported when they are checked, have no entry.
    """
    marked: dict[Path, bool] = {}
    for path, sample in samples.items():
        with suppress(UserError):
            mask = sample.read_mask()
            marked[path] = mask is not None and bool(mask.any())
    first = {path: _outermost(path, root) for path in marked}
    are_kinds = all(marked.values()) and all(map(fold, first.values()))
    return {path: (first[path] if are_kinds else "") if has else NORMAL_FOLDER for path, has in marked.items()}


def _labelled(sample: Sample, folder: str, word: str, labels_csv: Path | None) -> Sample:
    """Set label and kind of defect as the name of a folder has them, or the word in a CSV file if there is one."""
    normal = bool(is_normal(folder))
    kind = None if normal else folder or None
    where = f"{labels_csv}: {printed(sample.relative)}"
    label, defect = parse_label(word, where) if labels_csv else (int(not normal), kind)
    return replace(sample, label=label, defect=(defect or kind) if label else None)


def _folders(path: Path, root: Path) -> tuple[str, ...]:
    return path.relative_to(root).parent.parts


def _outermost(path: Path, root: Path) -> str:
    """The outermost folder of an image whose name says something; empty for an image in `root` itself.

    Of a class's folder `test`, it is the one below.
    """
    names = _folders(path, root)
    for number, name in enumerate(names[:-1], 1):
        if name.casefold() in _TEST_FOLDERS and all(is_normal(above) is None for above in names[:number]):
            names = names[number:]
            break
    return next((name for name in names if fold(name)), names[0] if names else "")


def _reading(samples: Mapping[Path, Sample], words: Mapping[Path, str], root: Path) -> str:
    """How the names of folders or the labels of a CSV file were understood, in a line; empty where there are none."""
    if words:
        found = [{words[path] for path, sample in samples.items() if sample.label == label} for label in (0, 1)]
        meanings = zip(("good", "defective"), found, strict=True)
        return f"labels: {'; '.join(f'{listing(sorted(some))} = {what}' for what, some in meanings if some)}"
    if names := sorted({name for path in samples if (name := _outermost(path, root))}):
        remedy = f"name one {NORMAL_FOLDER}, or give --labels_csv"
        return f"no labels: which folders are normal and which anomalous is not clear ({listing(names)}); {remedy}"
    return ""


def _left_out(option: str, paths: Sequence[Path]) -> str:
    """Name the files that are not read as images, in a line; empty where there are none."""
    names = listing(sorted(path.name for path in paths))
    return f"{option}: {len(paths)} file(s) left out: {names}" if paths else ""


# --- walking --------------------------------------------------------------------------------------------------------


def _walk(root: Path) -> tuple[list[Path], list[Path]]:
    """List the images and the other files below a folder; links to folders are followed, each is entered once."""
    found: list[Path] = []
    entered: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_refuse_folder):
        place = os.path.realpath(folder)
        if place in entered:  # by another way, or by a link that leads back up
            subfolders.clear()
            continue
        entered.add(place)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    found.sort()
    images = [path for path in found if is_image_name(path.name)]
    return images, [path for path in found if not is_image_name(path.name)]


def _refuse_folder(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename}: cannot be opened ({error.strerror}); check its permissions") from error


def _exists(option: str, path: Path) -> bool:
    """Whether there is a file or folder; refuses what is there and cannot be opened."""
    try:
        path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            return False
        raise UserError(f"{option}: {path} cannot be opened ({error.strerror}); check permissions and links") from error
    return True


def _checked(option: str, path: Path, kind: str = "file or folder") -> Path:
    """Return a path to what there is; refuses others, and files where a folder is wanted."""
    if not _exists(option, path) or (kind == "folder" and not path.is_dir()):
        raise UserError(f"{option}: no {kind} {path}; check the path")
    return path


def _entries(folder: Path) -> list[Path]:
    """List a folder, sorted; empty where there is no such folder."""
    try:
        return sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        _refuse_folder(error)


def is_image_name(name: str) -> bool:
    """Recognise an image by its suffix; hidden files (`._photo.png` of some systems) are not images."""
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
