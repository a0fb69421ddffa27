"""Names of files, and writing files and folders so that a reader finds the old content or the new, never a part."""

import io
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from hta.errors import RunError, UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None
HAS_LOCKS = fcntl is not None

_PART = ".part"
# What a workshop holds: the folder that is being filled, the one that gives way, and the mark of a living process.
_NEW, _OLD, _ALIVE = "new", "old", "alive"
_SETTLED_S = 3600  # a workshop as young as this may not have its mark locked yet


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file in one step: under a temporary name beside it, then renamed.

    Args:
        path: the file; an existing one is replaced.
        data: its whole content.

    Raises:
        RunError: the disk is full, or the folder cannot be written; what was there before is intact.
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
    """Write a matplotlib figure as PNG at its own resolution; the same figure gives the same bytes.

    Args:
        figure: the drawing; its `dpi` sets the resolution.
        path: the file; an existing one is replaced.

    Raises:
        RunError: the file cannot be written; what was there before is intact.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})  # no version of matplotlib in the file
    write_atomically(path, picture.getvalue())


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a folder under a temporary name beside its place; it appears there when the block ends without an error.

    Args:
        path: the folder's place, or a link to it; folders above it are made, and removed again where nothing comes to
            lie in them.
        replace: whether an existing folder gives way, in one step with the new one's arrival.

    Yields:
        The folder to fill.

    Raises:
        RunError: the disk is full, the place cannot be written, or it is taken.
    """
    place = Path(os.path.realpath(path))
    workshop = _unused(place.parent)
    fresh, old = workshop / _NEW, workshop / _OLD
    missing = [parent for parent in place.parents if not parent.exists()]
    try:
        workshop.mkdir(parents=True)
        if HAS_LOCKS:
            _sweep_dead(place.parent)
        with (workshop / _ALIVE).open("w") as mark:
            if HAS_LOCKS:
                try_lock(mark)
            fresh.mkdir()
            yield fresh
            if replace and place.exists():
                place.rename(old)
            fresh.rename(place)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        # Stopped between the two renames, by Ctrl-C too: the old folder goes back, and never goes before another came.
        if old.exists() and not place.exists():
            with suppress(OSError):
                old.rename(place)
        if place.exists() or not old.exists():
            shutil.rmtree(workshop, ignore_errors=True)
        for parent in missing:
            with suppress(OSError):  # not empty: the folder is in it
                parent.rmdir()


def check_replaceable(path: Path, named: str, remedy: str) -> None:
    """Refuse to replace a folder that the process works in or below: it would be pulled away.

    Args:
        path: the folder.
        named: argument or folder, as the user knows it.
        remedy: what to do instead.

    Raises:
        UserError: the process works there.
    """
    if Path.cwd().is_relative_to(os.path.realpath(path)):
        raise UserError(f"{named}: is the folder that you work in, which cannot be replaced; {remedy}")


def printable(name: str | Path) -> str:
    """A file name or path that can be printed: bytes of it that are not UTF-8 become `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder that is the caller's alone."""
    for leftover in folder.glob(f".*{_PART}"):
        shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def _sweep_dead(folder: Path) -> None:
    """Remove the workshops of killed processes from a folder that others write in too."""
    for workshop in folder.glob(f".*{_PART}"):
        if (workshop / _NEW).exists() and (workshop / _OLD).exists():
            continue  # killed between the two renames: the only copy of the old folder is in it
        with suppress(OSError), (workshop / _ALIVE).open("r+") as mark:
            if time.time() - os.fstat(mark.fileno()).st_mtime > _SETTLED_S and try_lock(mark):
                shutil.rmtree(workshop, ignore_errors=True)


def try_lock(stream: IO) -> bool:
    """Lock an open file until it is closed, at the latest by the end of the process; False where it is locked."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def cannot_write(path: Path, error: OSError) -> RunError:
    """The error for a file or folder that cannot be written."""
    return RunError(f"{path}: cannot be written ({error.strerror or error}); free some space or choose another folder")


def _unused(folder: Path) -> Path:
    """A path in a folder that nothing else has: numbers of processes would come again, in containers above all."""
    return folder / f".{secrets.token_hex(8)}{_PART}"
