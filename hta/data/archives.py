"""Archives of data sets, checked and unpacked so that nothing is written outside the target folder."""

import gzip
import hashlib
import logging
import lzma
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from hta.errors import RunError, UserError

logger = logging.getLogger(__name__)

# gzip.BadGzipFile is an OSError, but one of the archive.
_BROKEN_ARCHIVE = (tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)
_CHUNK_BYTES = 1 << 20

# Size in bytes and SHA-256. The archives of Paris have no published sum; torchvision checks that of CIFAR10.
_MVTEC_SHA256 = "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d"
PUBLISHED = {"mvtec_anomaly_detection.tar.xz": (5_264_982_680, _MVTEC_SHA256)}


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
