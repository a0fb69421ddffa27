"""Paris Buildings (Philbin et al. 2008) under the protocol, from its published files.

Normal for a landmark is the union of its five ok-lists. An image that is only in good or junk lists, or in none, counts
as anomalous for every landmark. The training images are drawn from the test images and leave the test set.
"""

from collections.abc import Mapping
from pathlib import Path

from hta.data.archives import unpack_into
from hta.data.image_sets import NO_CLASS, Benchmark, FileImages
from hta.data.specs import BenchmarkSpec
from hta.errors import UserError

_QUERIES = range(1, 6)
_REMEDY = "unpack paris_1.tgz, paris_2.tgz and paris_120310.tgz into it"
# The published archives hold error pages in place of these twenty; the data set's own page lists them.
_CORRUPT = frozenset(
    {
        "paris_louvre_000136",
        "paris_louvre_000146",
        "paris_moulinrouge_000422",
        "paris_museedorsay_001059",
        "paris_notredame_000188",
        "paris_pantheon_000284",
        "paris_pantheon_000960",
        "paris_pantheon_000974",
        "paris_pompidou_000195",
        "paris_pompidou_000196",
        "paris_pompidou_000201",
        "paris_pompidou_000467",
        "paris_pompidou_000640",
        "paris_sacrecoeur_000299",
        "paris_sacrecoeur_000330",
        "paris_sacrecoeur_000353",
        "paris_triomphe_000662",
        "paris_triomphe_000833",
        "paris_triomphe_000863",
        "paris_triomphe_000867",
    }
)


def load_paris(spec: BenchmarkSpec, data_root: Path) -> Benchmark:
    """Load Paris.

    Args:
        spec: Its row of the table.
        data_root: Holds `paris/` with the images (`paris_<landmark>_NNNNNN.jpg`, in subfolders or not) and the lists
            (`<landmark>_{1..5}_ok.txt`, which may lie anywhere in data_root), or the published archives.

    Raises:
        UserError: Images or lists are missing.
    """
    folder = _image_folder(data_root)
    lists = {path.name: path for path in _files(data_root, "*_ok.txt")}
    ok_names = {name: _ok_list_union(name, lists, folder) for name in spec.classes}
    files = _kept_files(folder, frozenset().union(*ok_names.values()))
    index = {path.stem: position for position, path in enumerate(files)}
    members = tuple(_positions(ok_names[name], index, folder) for name in spec.classes)
    label = {position: number for number in reversed(range(len(members))) for position in members[number]}
    images = FileImages(folder, files)
    return Benchmark(
        spec=spec,
        train=images,
        test=images,
        train_members=members,
        normals=tuple(frozenset(positions) for positions in members),
        strata=tuple(_stratum(label.get(position, NO_CLASS), spec) for position in range(len(files))),
        one_pool=True,
    )


def _image_folder(data_root: Path) -> Path:
    """Find the folder of the images, unpacking the archives where only they are there."""
    folder = data_root / "paris"
    _unpack_missing(folder, data_root)
    for place in (folder, data_root):
        if _files(place, "paris_*.jpg"):
            return place
    raise UserError(
        f"--data_root {data_root}: no images of Paris (paris_<landmark>_NNNNNN.jpg) in its folder paris; {_REMEDY}"
    )


def _unpack_missing(folder: Path, data_root: Path) -> None:
    """Unpack the archives of data_root whose contents are not there yet."""
    # The newer copies of the image archives have -v1 in their names.
    images = [_first_file(data_root / f"paris_{part}.tgz", data_root / f"paris_{part}-v1.tgz") for part in (1, 2)]
    lists = _first_file(data_root / "paris_120310.tgz")
    # One half alone would pass for the whole the next time.
    if all(images) and not _files(data_root, "paris_*.jpg"):
        unpack_into([path for path in images if path], folder)
    if lists and not _files(data_root, "*_ok.txt"):
        unpack_into([lists], folder)


def _first_file(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _files(folder: Path, pattern: str) -> list[Path]:
    """List the files below a folder, less what an interrupted unpacking may have left in a hidden folder."""
    below = sorted(folder.rglob(pattern))
    return [path for path in below if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _ok_list_union(landmark: str, lists: Mapping[str, Path], folder: Path) -> frozenset[str]:
    """Return the names in a landmark's five ok-lists."""
    names: set[str] = set()
    for query in _QUERIES:
        file_name = f"{landmark}_{query}_ok.txt"
        found = lists.get(file_name, folder / file_name)
        try:
            lines = found.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{folder}: the list {file_name} is missing or unreadable; {_REMEDY}") from error
        names.update(line.removesuffix(".jpg") for line in lines)
    return frozenset(names) - _CORRUPT


def _kept_files(folder: Path, ok_names: frozenset[str]) -> tuple[Path, ...]:
    """Return the images in order of their names, less the corrupt ones and the general views in no ok-list."""
    files = {path.stem: path for path in _files(folder, "paris_*.jpg")}
    kept = (name for name in files if name not in _CORRUPT and (name in ok_names or "_general_" not in name))
    return tuple(files[name] for name in sorted(kept))


def _positions(names: frozenset[str], index: Mapping[str, int], folder: Path) -> tuple[int, ...]:
    missing = sorted(names - index.keys())
    if missing:
        raise UserError(f"{folder}: {len(missing)} images of the ok-lists are missing, as {missing[0]}.jpg; {_REMEDY}")
    return tuple(sorted(index[name] for name in names))


def _stratum(label: int, spec: BenchmarkSpec) -> str:
    return "none" if label == NO_CLASS else spec.classes[label]
