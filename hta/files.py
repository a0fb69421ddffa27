"""Writing files so that a reader finds the old content or the new one, never a part."""

import contextlib
import os
import tempfile
from pathlib import Path

from hta.errors import RunError


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file in one step: under a temporary name beside it, then renamed.

    Args:
        path: the file; an existing one is replaced.
        data: its whole content.

    Raises:
        RunError: the disk is full, or the folder cannot be written; what was there before is intact.
    """
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
            os.fchmod(stream.fileno(), 0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink(missing_ok=True)
        raise RunError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another folder"
        ) from error
