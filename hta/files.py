"""File names, and atomic writing: a reader finds the old content of a file or folder or the new, never a part of it."""

import io
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from hta.errors import RunError, UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HAS_LOCKS = sys.platform != "win32"
"""Whether files can be locked here; Windows has no such locks."""

if HAS_LOCKS:
    import fcntl

OWN_FILES = r"\.[^/]+\.part(/.+)?"
"""Pattern of the paths, relative to a folder written in, that a killed writer leaves behind."""

_PART = ".part"
# Contents of a workshop: the new folder, the old one that it replaces, and a file that its process keeps locked.
_NEW, _OLD, _ALIVE = "new", "old", "alive"
_SETTLED_S = 3600  # the file of a younger workshop may not be locked yet


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file, or replace it, in one step: under a temporary name beside it, then renamed.

    Raises a RunError if the disk is full or the folder cannot be written; what was there before is then intact.
    """
    temporary = _unused(path.parent)
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_figure(figure: "Figure", path: Path) -> None:
    """Write a matplotlib figure as PNG at its own `dpi`, atomically; the same figure gives the same bytes."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})  # no version of matplotlib in the file
    write_atomically(path, picture.getvalue())


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill the yielded folder, which has a temporary name until the block ends without an error.

    Args:
        path: the folder's place, or a link to it. Parent folders are created, and removed again if they stay empty.
        replace: whether an existing folder is replaced, in one step with the arrival of the new one.

    Raises:
        RunError: the disk is full, the place cannot be written, or it is taken.
    """
    place = Path(os.path.realpath(path))
    try:
        with _workshop(place) as workshop:
            new, old = workshop / _NEW, workshop / _OLD
            new.mkdir()
            yield new
            try:
                if replace and place.exists():
                    place.rename(old)
                new.rename(place)
            finally:
                if old.exists() and not place.exists():  # stopped between the two renames, by Ctrl-C for example
                    with suppress(OSError):
                        old.rename(place)
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def _workshop(place: Path) -> Iterator[Path]:
    """A temporary folder beside a place, marked as in use, in parent folders that are created as needed.

    It outlasts the block only if it holds the sole old copy, and new parents only if they are not empty.
    """
    workshop = _unused(place.parent)
    missing = [parent for parent in place.parents if not parent.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        workshop.mkdir()
        if HAS_LOCKS:
            _sweep_dead(place.parent)
        with (workshop / _ALIVE).open("w") as mark:
            if HAS_LOCKS:
                try_lock(mark)
            yield workshop
    finally:
        if not (workshop / _OLD).exists() or place.exists():
            shutil.rmtree(workshop, ignore_errors=True)
        for parent in missing:
            with suppress(OSError):  # not empty
                parent.rmdir()


def check_replaceable(path: Path, named: str, remedy: str) -> None:
    """Refuse, with a UserError, to replace a folder, `named` so there, that contains the working directory."""
    if Path.cwd().is_relative_to(os.path.realpath(path)):
        raise UserError(f"{named}: contains your current working directory and cannot be replaced; {remedy}")


def printable(name: str | Path) -> str:
    """A file name or path in printable form: bytes that are not UTF-8 become `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder that only the caller writes in."""
    for leftover in folder.glob(f".*{_PART}"):
        shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def _sweep_dead(folder: Path) -> None:
    """Remove the workshops of killed processes from a folder that other processes may write in too."""
    for workshop in folder.glob(f".*{_PART}"):
        if (workshop / _NEW).exists() and (workshop / _OLD).exists():
            continue  # killed between the two renames: it holds the only copy of the old folder
        with suppress(OSError), (workshop / _ALIVE).open("r+") as mark:
            if time.time() - os.fstat(mark.fileno()).st_mtime > _SETTLED_S and try_lock(mark):
                shutil.rmtree(workshop, ignore_errors=True)


def try_lock(stream: IO) -> bool:
    """Lock an open file until it is closed or the process ends; False if it is locked already."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def cannot_write(path: Path, error: OSError) -> RunError:
    """The error for a file or folder that cannot be written."""
    return RunError(f"{path}: cannot be written ({error.strerror or error}); free some space or choose another folder")


def _unused(folder: Path) -> Path:
    """An unused path in a folder; random, since process numbers recur, especially in containers."""
    return folder / f".{secrets.token_hex(8)}{_PART}"
