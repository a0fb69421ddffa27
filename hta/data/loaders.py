"""The data sets of the paper, their archives, and folders laid out like them.

Nothing of an archive is written outside its target folder.
"""

import gzip
import hashlib
import logging
import lzma
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from hta.data.folders import TEST_FOLDER, TRAIN_FOLDER, find_test_images, images_in, subfolders
from hta.data.names import NORMAL_FOLDER, is_normal
from hta.data.sample import Sample
from hta.data.specs import CIFAR, FOLDER_GRAY, BenchmarkSpec, benchmark_spec
from hta.errors import RunError, UserError
from hta.images import is_gray

logger = logging.getLogger(__name__)

# gzip.BadGzipFile is an OSError, but one of the archive.
_BROKEN_ARCHIVE = (tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)
_CHUNK_BYTES = 1 << 20

# Size in bytes and SHA-256. The archives of Paris have no published sum; torchvision checks that of CIFAR10.
_MVTEC_SHA256 = "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d"
PUBLISHED = {"mvtec_anomaly_detection.tar.xz": (5_264_982_680, _MVTEC_SHA256)}


@dataclass(frozen=True)
class Benchmark:
    """A data set: its row of the protocol's table and its images, in data-set order and not prepared."""

    spec: BenchmarkSpec
    train: Sequence[Sample]
    test: Sequence[Sample]

    def training_candidates(self, pos_class: str | int) -> list[Sample]:
        """Return a class's training images in data-set order; refuse an unknown class and one without images here."""
        name = self.spec.class_name(pos_class)
        candidates = [sample for sample in self.train if name in sample.classes]
        if not candidates:
            raise UserError(f"--pos_class {pos_class}: no image of this class in {self.spec.title} here; add its files")
        return candidates


def load_dataset(
    dataset: str, data_root: str | Path, *, num_transforms: int | None = None, download: bool = False
) -> Benchmark:
    """Load a data set of the protocol, or a folder that is laid out like one.

    Args:
        dataset: Its name, a key of `SPECS`.
        data_root: The folder of its files; the docstrings of the other loaders have the layouts.
        num_transforms: M; None: the paper's, for defects the 4 rotations.
        download: Whether torchvision may fetch CIFAR10, MNIST or FashionMNIST into `data_root`.

    Raises:
        UserError: No such data set, or its files are missing or of another form.
        RunError: A download or an archive could not be written.
    """
    spec, root = benchmark_spec(dataset, num_transforms), Path(data_root)
    loaders = {"paris": load_paris, "mvtec": load_mvtec, "folder": load_class_folders, "defects": load_defect_folder}
    try:
        return loaders[spec.name](spec, root) if spec.name in loaders else load_torchvision(spec, root, download)
    except UserError as error:
        if root.is_dir():
            raise
        raise UserError(f"{error}; there is no such folder yet") from error


# --- torchvision ----------------------------------------------------------------------------------------------------

_IDX_FILES = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte"


def load_torchvision(spec: BenchmarkSpec, data_root: Path, download: bool) -> Benchmark:
    """Load CIFAR10, MNIST or FashionMNIST through torchvision's own classes, whose `root` is `data_root`.

    CIFAR10's published files are pickles: torchvision compares each with its published checksum before it opens it. hta
    itself opens no pickle. With `download`, an archive that is already there is checked and unpacked.
    """
    # Slow to import, and needed for these three data sets alone.
    from torchvision import datasets

    layout = f"{spec.title}/raw/ with {_IDX_FILES}"
    if spec.name == "cifar":
        layout = "the folder cifar-10-batches-py of cifar-10-python.tar.gz"
    dataset = getattr(datasets, spec.title)
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
        remedy = "delete them and use --download"
        raise UserError(f"--data_root {data_root}: files of {spec.title} are damaged; {remedy}") from error
    return Benchmark(spec, array_samples(spec, train, "train"), array_samples(spec, test, "test"))


def array_samples(spec: BenchmarkSpec, dataset: Any, split: str) -> list[Sample]:
    """Return the samples of one split of a torchvision data set, with `data` (uint8) and `targets` that must fit."""
    data, labels = np.asarray(dataset.data), np.asarray(dataset.targets)
    if len(data) != len(labels) or np.any((labels < 0) | (labels >= len(spec.classes))):
        raise UserError(f"{spec.title}: images and labels of its {split} files do not match; get the files again")
    return [
        Sample(pixels, f"{split}/{index}", classes=(spec.classes[label],))
        for index, (pixels, label) in enumerate(zip(data, labels, strict=True))
    ]


# --- folders --------------------------------------------------------------------------------------------------------


def load_class_folders(spec: BenchmarkSpec, data_root: Path) -> Benchmark:
    """Load any data set with one folder per class, `train/<class>/*` and `test/<class>/*`.

    Colour images are prepared as in CIFAR10, gray ones (judged by the first training image of each class) as in MNIST;
    images that are not square are squashed. Where all folders are classes of CIFAR10, they get the paper's names.
    """
    train, test = _class_files(data_root / "train"), _class_files(data_root / "test")
    for odd in sorted(train.keys() ^ test.keys()):
        raise UserError(f"--data_root {data_root}: class {odd} is not in both train and test; add the missing folder")
    aliases = CIFAR.aliases
    renamed = {name: dict(aliases).get(name, name) for name in train}
    if not set(renamed.values()) <= set(CIFAR.classes) or len(set(renamed.values())) < len(renamed):
        aliases, renamed = (), {name: name for name in train}
    gray = all(is_gray(Sample(paths[0], name).read()) for name, paths in train.items())
    spec = replace(
        FOLDER_GRAY if gray else spec,
        title=f"{data_root.resolve().name} (folder)",
        classes=tuple(renamed.values()),
        aliases=tuple(pair for pair in aliases if pair[1] in renamed.values()),
    )
    samples = (
        [_file_sample(path, data_root, renamed[name]) for name, paths in files.items() for path in paths]
        for files in (train, test)
    )
    return Benchmark(spec, *samples)


def _class_files(folder: Path) -> dict[str, list[Path]]:
    """List the images of each class, classes and files by name."""
    layout = "lay the images out as train/<class>/* and test/<class>/*"
    if not folder.is_dir():
        raise UserError(f"--data_root: no folder {folder}; {layout}")
    files = {path.name: images_in(path) for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] != "."}
    if not files:
        raise UserError(f"{folder}: no class folder in it; {layout}")
    for name, images in files.items():
        if not images:
            raise UserError(f"{folder / name}: no image in it; add some or remove the folder from train and test")
    return files


def _file_sample(path: Path, root: Path, *classes: str) -> Sample:
    return Sample(path, path.relative_to(root).as_posix(), classes=classes)


# --- MVTec AD -------------------------------------------------------------------------------------------------------

_MVTEC_ARCHIVE = "mvtec_anomaly_detection.tar.xz"


def load_defect_folder(spec: BenchmarkSpec, data_root: Path) -> Benchmark:
    """Load defects of any one object, laid out like a class of MVTec AD and named by its folder; masks are optional."""
    name = data_root.resolve().name
    return Benchmark(replace(spec, title=name, classes=(name,)), *_object_samples(data_root, name))


def load_mvtec(spec: BenchmarkSpec, data_root: Path) -> Benchmark:
    """Load MVTec AD (Bergmann et al. 2019), or those of its classes that are present.

        <class>/train/good/NNN.png
        <class>/test/{good,<defect>}/NNN.png
        <class>/ground_truth/<defect>/NNN_mask.png

    `data_root` is the parent of `mvtec/<class>/`, `mvtec_anomaly_detection/<class>/`, `<class>/`, or of the published
    archives. Masks may be missing.
    """
    tree = _mvtec_tree(spec.classes, data_root)
    parts = [_object_samples(tree / name, name, f"{name}/") for name in spec.classes if (tree / name).is_dir()]
    train, test = ([sample for part in parts for sample in part[index]] for index in (0, 1))
    return Benchmark(spec, train, test)


def _object_samples(folder: Path, name: str, prefix: str = "") -> tuple[list[Sample], list[Sample]]:
    """List training and test images of one object in MVTec's layout, their names after the prefix."""
    paths = [path for place in subfolders(folder / TRAIN_FOLDER) if is_normal(place.name) for path in images_in(place)]
    train = [Sample(path, prefix + path.relative_to(folder).as_posix(), classes=(name,)) for path in paths]
    found = find_test_images(folder) if train else []
    for sample in found:
        if sample.label is None:
            sample.read_mask()  # which tells the label, and cannot be read
    if not any(sample.label == 0 for sample in found):
        place = folder / (TEST_FOLDER if train else TRAIN_FOLDER) / NORMAL_FOLDER
        raise UserError(f"--data_root: no image in {place}; add normal images, or unpack the data set again")
    return train, [replace(sample, relative=prefix + sample.relative, classes=(name,)) for sample in found]


def _mvtec_tree(classes: Sequence[str], data_root: Path) -> Path:
    """Find the folder of the classes, after unpacking the archives of those that are missing."""
    places = (data_root / "mvtec", data_root / "mvtec_anomaly_detection", data_root)

    def find_tree() -> Path | None:
        return next((place for place in places if any((place / name).is_dir() for name in classes)), None)

    tree = find_tree()
    wanted = [name for name in classes if tree is None or not (tree / name).is_dir()]
    archives = [] if tree else _existing(place / _MVTEC_ARCHIVE for place in (data_root, data_root / "mvtec"))[:1]
    archives = archives or _existing(place / f"{name}.tar.xz" for name in wanted for place in places)
    if archives:
        unpack_into(archives, tree or data_root / "mvtec")
    if (tree := find_tree()) is None:
        if nearby := _mvtec_nearby(classes, data_root):
            raise UserError(f"--data_root {data_root}: MVTec AD is elsewhere; give --data_root {nearby}")
        remedy = f"unpack {_MVTEC_ARCHIVE} into that"
        raise UserError(f"--data_root {data_root}: no class of MVTec AD in its folder mvtec; {remedy}")
    return tree


def _mvtec_nearby(classes: Sequence[str], data_root: Path) -> Path | None:
    """Find a folder of classes up to two levels below the given one, or the one above a class, for a message."""
    below = [path for pattern in ("[!.]*", "[!.]*/[!.]*") for path in sorted(data_root.glob(pattern))]
    trees = (*below, data_root.parent)
    return next((path for path in trees if any((path / name / "train").is_dir() for name in classes)), None)


# --- Paris ----------------------------------------------------------------------------------------------------------

_PARIS_REMEDY = "unpack paris_1.tgz, paris_2.tgz and paris_120310.tgz into it"
# The published archives have error pages in place of these twenty; the data set's own page lists them.
_CORRUPT_NUMBERS = (
    "louvre_000136 louvre_000146 moulinrouge_000422 museedorsay_001059 notredame_000188 pantheon_000284 "
    "pantheon_000960 pantheon_000974 pompidou_000195 pompidou_000196 pompidou_000201 pompidou_000467 pompidou_000640 "
    "sacrecoeur_000299 sacrecoeur_000330 sacrecoeur_000353 triomphe_000662 triomphe_000833 triomphe_000863 "
    "triomphe_000867"
)
_CORRUPT = frozenset(f"paris_{number}" for number in _CORRUPT_NUMBERS.split())


def load_paris(spec: BenchmarkSpec, data_root: Path) -> Benchmark:
    """Load Paris Buildings (Philbin et al. 2008).

    Normal for a landmark is the union of its five ok-lists. An image that is only in good or junk lists, or in none,
    is anomalous for every landmark. Training and test images are the same, so those drawn leave the test set.

    `data_root` is the parent of `paris/` with the images (`paris_<landmark>_NNNNNN.jpg`, in subfolders or not) and of
    the lists (`<landmark>_{1..5}_ok.txt`, anywhere in it), or of the published archives.
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
            problem = f"{len(missing)} images of the ok-lists are missing, as {missing[0]}.jpg"
            raise UserError(f"{folder}: {problem}; {_PARIS_REMEDY}")
    samples = [
        _file_sample(files[name], folder, *(landmark for landmark in spec.classes if name in ok_names[landmark]))
        for name in kept
    ]
    return Benchmark(spec, samples, samples)


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
    problem = "no images of Paris (paris_<landmark>_NNNNNN.jpg) in its folder paris"
    raise UserError(f"--data_root {data_root}: {problem}; {_PARIS_REMEDY}")


def _ok_list_union(landmark: str, lists: Mapping[str, Path], folder: Path) -> frozenset[str]:
    """Return the names in a landmark's five ok-lists, without the corrupt images."""
    names: set[str] = set()
    for query in range(1, 6):
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


# --- archives ---------------------------------------------------------------------------------------------------------


def check_archive(archive: Path) -> None:
    """Compare an archive with its published size and checksum; one that has none passes if it can be opened.

    Raises:
        UserError: It cannot be opened or differs from the published one.
    """
    try:
        with archive.open("rb") as file:
            if archive.name not in PUBLISHED:
                return
            expected_bytes, expected_sha256 = PUBLISHED[archive.name]
            if (num_bytes := archive.stat().st_size) != expected_bytes:
                remedy = "get it again or unpack it yourself"
                raise UserError(f"{archive}: {num_bytes} bytes instead of {expected_bytes}; {remedy}")
            digest = hashlib.sha256()
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise UserError(f"{archive}: cannot be opened ({error.strerror}); check the path") from error
    if digest.hexdigest() != expected_sha256:
        raise UserError(f"{archive}: its SHA-256 is not the published one; get it again, or unpack it yourself")


def unpack_into(archives: Sequence[Path], folder: Path) -> None:
    """Check archives, then unpack them into one folder: all or nothing.

    Args:
        archives: Tar files (plain, gz, bz2, xz).
        folder: Where their top-level entries go, created where missing; an entry that already exists is kept.

    Raises:
        UserError: An archive is not the published one, cannot be read, or has a member that is a link, a device, a
            pipe, or has a name that is absolute or climbs with `..`.
        RunError: The files cannot be written.
    """
    for archive in archives:
        check_archive(archive)
    try:
        # Close to the target, because only a move within one file system is a rename.
        place = folder if folder.is_dir() else folder.parent
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=place) as workshop:
            for archive in archives:
                logger.info("unpacking %s into %s", archive, folder)
                _extract(archive, Path(workshop))
            folder.mkdir(exist_ok=True)
            for entry in Path(workshop).iterdir():
                if not (folder / entry.name).exists():
                    entry.rename(folder / entry.name)
    except OSError as error:
        raise RunError(f"{folder}: unpacking into it failed ({error}); unpack the archives yourself") from error


def _extract(archive: Path, target: Path) -> None:
    """Unpack one archive; a refused or broken one leaves what came before the fault."""

    def checked(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        # By the rules of Windows, which include those of POSIX. The data filter would repair names, or follow links.
        windows = PureWindowsPath(member.name)
        leads_out = windows.anchor or ".." in windows.parts or "\0" in member.name
        if leads_out or not (member.isfile() or member.isdir()):
            reason = "leads out of the folder" if leads_out else "is a link or a device"
            raise UserError(f"{archive}: member {member.name!r} {reason}, which is refused; get the archive elsewhere")
        return tarfile.data_filter(member, path)

    try:
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter=checked)
            # The compressed stream ends with its checksum, which tar does not need to read.
            while tar.fileobj.read(_CHUNK_BYTES):
                pass
    except _BROKEN_ARCHIVE as error:
        reason = " ".join(str(error).split())  # tarfile's text may have several lines
        raise UserError(f"{archive}: broken or no archive ({reason}); get it again") from error
