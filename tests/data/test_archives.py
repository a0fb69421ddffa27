"""Archives: what is unpacked, and what is refused."""

import hashlib
import io
import tarfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from hta.data.loaders import PUBLISHED, check_archive, load_dataset, unpack_into
from hta.errors import UserError


def tar_with(path: Path, *members: tarfile.TarInfo, content: bytes = b"data") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for info in members:
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o4000
    return info


def refused(archive: Path, *words: str) -> None:
    """The archive is refused in one line, and nothing is left beside it."""
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        unpack_into([archive], archive.parent / "target")
    assert all(word in str(caught.value) for word in (archive.name, *words))
    assert "\n" not in str(caught.value)
    assert sorted(archive.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "bad",
    [
        member("../evil.txt"),
        member("inside/../../evil.txt"),
        member("inside/../evil.txt"),
        member("/etc/evil.txt"),
        member("..\\evil.txt"),
        member("C:\\evil.txt"),
        member("link", tarfile.SYMTYPE, "/etc"),
        member("link", tarfile.SYMTYPE, "fine.txt"),
        member("link", tarfile.LNKTYPE, "fine.txt"),
        member("device", tarfile.CHRTYPE),
        member("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}",
)
def test_a_tar_that_could_write_elsewhere_is_refused_whole(tmp_path, bad):
    refused(tar_with(tmp_path / "bad.tgz", member("fine.txt"), bad), repr(bad.name), "refused")


@pytest.mark.parametrize(
    ("dataset", "fine", "bad"),
    [
        ("paris", "paris_1.tgz", "paris_2.tgz"),
        ("paris", None, "paris_120310.tgz"),
        ("mvtec", "bottle.tar.xz", "wood.tar.xz"),
        ("mvtec", None, "mvtec/wood.tar.xz"),
    ],
)
def test_archives_of_data_sets_are_refused_alike(tmp_path, dataset, fine, bad):
    root = tmp_path / "root"
    if fine:
        tar_with(root / fine, member("fine.txt"))
    tar_with(root / bad, member("fine.txt"), member("wood/../../../evil.txt"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"{bad}: member 'wood/../../../evil.txt' .* refused"):
        load_dataset(dataset, root)
    assert sorted(tmp_path.rglob("*")) == before


def test_archives_unpack_and_existing_entries_are_kept(tmp_path):
    first = tar_with(tmp_path / "1.tgz", member("folder", tarfile.DIRTYPE), member("folder/a.txt"))
    second = tar_with(tmp_path / "2.tgz", member("folder/b.txt"), member("old/new.txt"), member("c", tarfile.DIRTYPE))
    target = tmp_path / "target"
    (target / "old").mkdir(parents=True)
    unpack_into([first, second], target)
    found = {path.relative_to(target).as_posix() for path in target.rglob("*")}
    assert found == {"folder", "folder/a.txt", "folder/b.txt", "c", "old"}
    assert (target / "folder" / "b.txt").read_text() == "data"
    assert (target / "folder" / "a.txt").stat().st_mode & 0o7000 == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
def test_a_broken_archive_leaves_nothing(tmp_path, damage):
    noise = np.random.default_rng(0).bytes(1 << 16)
    archive = tar_with(tmp_path / "broken.tgz", member("noise.bin"), content=noise)
    content = bytearray(archive.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 255
    archive.write_bytes({"cut": content[: len(content) // 2], "flipped": content, "text": b"<html>"}[damage])
    refused(archive, "broken or no archive")
    refused(tmp_path / "none.tgz", "cannot be opened")


def test_checksums(tmp_path, monkeypatch):
    archive = tmp_path / "some.tgz"
    archive.write_bytes(b"data")
    check_archive(archive)
    digest = hashlib.sha256(b"data").hexdigest()
    for size, checksum, message in ((4, digest, None), (5, digest, "4 bytes instead of 5"), (4, "0" * 64, "SHA-256")):
        monkeypatch.setitem(PUBLISHED, "some.tgz", (size, checksum))
        with pytest.raises(UserError, match=message) if message else nullcontext():
            check_archive(archive)
