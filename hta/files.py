"""Writing files and folders so that a reader finds the old content or the new one, never a part."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hta.errors import RunError

_PART = ".part"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file in one step: under a temporary name beside it, then renamed.

    Args:
        path: the file; an existing one is replaced.
        data: its whole content.

    Raises:
        RunError: the disk is full, or the folder cannot be written; what was there before is intact.
    """
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a folder under a temporary name beside its place; it appears there when the block ends without an error.

    Args:
        path: the folder's place; folders above it are made, and removed again where nothing comes to lie in them.
        replace: whether an existing folder gives way, in one step with the new one's arrival.

    Yields:
        The folder to fill.

    Raises:
        RunError: the disk is full, the place cannot be written, or it is taken.
    """
    fresh, old = _temporary(path), path.with_name(f".{path.name}.{os.getpid()}.old{_PART}")
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        fresh.mkdir(parents=True)
        yield fresh
        if replace and path.exists():
            path.rename(old)
        fresh.rename(path)
    except OSError as error:
        if old.exists():
            with suppress(OSError):
                old.rename(path)
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        for parent in missing:
            with suppress(OSError):  # not empty: the folder is in it
                parent.rmdir()


def sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder."""
    for leftover in folder.glob(f".*{_PART}"):
        shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> RunError:
    """The error for a file or folder that cannot be written."""
    return RunError(f"{path}: cannot be written ({error.strerror or error}); free some space or choose another folder")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{_PART}")
