"""Archives of data sets, checked and unpacked so that nothing is written outside the target folder.

Only regular files and folders are taken. A member is refused, and with it the whole archive, when its name is absolute
or climbs with `..`, or when it is a link, a device or a pipe. Contents are copied out one by one, so that owners, modes
and times of the archive have no effect, under every version of Python alike.
"""

import gzip
import hashlib
import logging
import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import IO

from hta.errors import RunError, UserError

logger = logging.getLogger(__name__)

_BROKEN_ARCHIVE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    RuntimeError,
)
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Checksum:
    """What a published archive must be."""

    num_bytes: int
    sha256: str


# The files of Paris come without a published sum; CIFAR10's archive is checked by torchvision.
PUBLISHED: Mapping[str, Checksum] = MappingProxyType(
    {
        "mvtec_anomaly_detection.tar.xz": Checksum(
            5_264_982_680, "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d"
        ),
    }
)


def check_archive(archive: Path, published: Mapping[str, Checksum] = PUBLISHED) -> None:
    """Compare an archive with its published size and checksum; one without passes.

    Raises:
        UserError: It is another file than the published one.
    """
    expected = published.get(archive.name)
    if expected is None:
        return
    num_bytes = archive.stat().st_size
    if num_bytes != expected.num_bytes:
        raise UserError(
            f"{archive}: {num_bytes} bytes instead of {expected.num_bytes}; get it again or unpack it yourself"
        )
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != expected.sha256:
        raise UserError(f"{archive}: its SHA-256 is not the published one; get it again, or unpack it yourself")


def extract_archive(archive: Path, target: Path) -> None:
    """Unpack a tar archive (plain, gz, bz2, xz) or a zip archive.

    A refused or broken archive leaves what came before the fault; `unpack_into` leaves nothing.

    Args:
        archive: The file.
        target: Folder that everything goes into; created where missing.

    Raises:
        UserError: The archive cannot be read, or holds a member that is refused.
        RunError: The files cannot be written.
    """
    try:
        with archive.open("rb"):
            pass
    except OSError as error:
        raise UserError(f"{archive}: cannot be opened ({error.strerror}); check the path") from error
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, content in _zip_members(archive) if zipfile.is_zipfile(archive) else _tar_members(archive):
            _copy_out(content, target / _checked_name(archive, name))
    except _BROKEN_ARCHIVE as error:
        raise UserError(f"{archive}: broken or no archive ({error}); get it again") from error
    except OSError as error:
        raise RunError(
            f"{archive}: unpacking into {target} failed ({error}); make room there or unpack it yourself"
        ) from error


def unpack_into(archives: Sequence[Path], folder: Path) -> None:
    """Check archives, then unpack them into one folder: all or nothing.

    Args:
        archives: The files.
        folder: Where their top-level entries go, created where missing; an entry that is already there stays as it is.

    Raises:
        UserError: An archive is not the published one, cannot be read, or holds a member that is refused.
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
                extract_archive(archive, Path(workshop))
            folder.mkdir(exist_ok=True)
            for entry in Path(workshop).iterdir():
                if not (folder / entry.name).exists():
                    entry.rename(folder / entry.name)
    except OSError as error:
        raise RunError(f"{folder}: unpacking into it failed ({error}); unpack the archives yourself") from error


def _tar_members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Yield name and content of each member, no content for a folder."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if not (member.isfile() or member.isdir()):
                raise UserError(_refusal(archive, member.name))
            yield member.name, tar.extractfile(member) if member.isfile() else None
        # The compressed stream carries its checksum at the very end, behind what tar needs to read.
        while tar.fileobj.read(_CHUNK_BYTES):
            pass


def _zip_members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Yield name and content of each member, no content for a folder."""
    with zipfile.ZipFile(archive) as package:
        for member in package.infolist():
            # The upper half holds the Unix mode; 0 where the archive was made elsewhere.
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(_refusal(archive, member.filename))
            yield member.filename, None if member.is_dir() else package.open(member)


def _checked_name(archive: Path, name: str) -> PurePosixPath:
    """Refuse a name that could lead out of the target, whether read the POSIX or the Windows way."""
    windows = PureWindowsPath(name)
    if PurePosixPath(name).is_absolute() or windows.anchor or ".." in windows.parts or "\0" in name:
        raise UserError(
            f"{archive}: member {name!r} leads out of the folder, which is refused; get the archive elsewhere"
        )
    return PurePosixPath(name)


def _copy_out(content: IO[bytes] | None, path: Path) -> None:
    if content is None:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with content, path.open("wb") as file:
        shutil.copyfileobj(content, file, _CHUNK_BYTES)


def _refusal(archive: Path, member: str) -> str:
    return f"{archive}: member {member!r} is a link or a device, which is refused; get the archive elsewhere"
