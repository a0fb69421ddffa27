"""File names, and atomic writing: a reader finds the old content of a file or folder or the new, never a part of it."""

import errno
import functools
import hashlib
import io
import logging
import os
import re
import secrets
import shutil
import stat
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from hta.errors import HtaError, RunError, UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

OWN_FILES = r"\.[0-9a-f]{16,32}\.(part|lock)(/.*)?|(.+/)?(\.DS_Store|Thumbs\.db|desktop\.ini)"
"""Pattern of the paths, relative to a folder written in, that a killed writer or a desktop leaves behind."""

Foreign = Callable[[Path], list[str]]
"""Finds what must not be lost in a folder that is replaced: relative paths."""

_PART, _LOCK = ".part", ".lock"
_NEW, _OLD = "new", "old"  # in a workshop: the new folder, and a folder that holds the old one under its name
_WORKSHOP = re.compile(r"(\.[0-9a-f]{16})[0-9a-f]{16}\.part")  # the place's claim, and random digits
# Where files cannot be locked, a process is taken for dead after a day, or a minute after it took the old folder away.
_DAY_S, _MINUTE_S = 86_400, 60
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP)
_OTHER_PLACE = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.ENOENT, *_NO_ACCESS)
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # categories of Unicode
_JOINERS = "\u200c\u200d"  # belong to the spelling of some languages, and to emoji


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
def new_folder(path: Path, *, replace: Foreign | None = None, keep: bool = False) -> Iterator[Path]:
    """Fill the yielded folder, which has a temporary name until the block ends without an error.

    Args:
        path: the folder's place, or a link to it; other processes are kept from filling it. Parent folders are created,
            and removed again if they stay empty.
        replace: replace the folder that is there now, in one step with the arrival of the new one, unless this finds
            something in it or another has come.
        keep: give the new folder a name beside its place if that is taken in the end.

    Raises:
        UserError: another process fills the folder, or nothing can be written here.
        RunError: the disk is full, or the place is taken.
    """
    if "\0" in os.fspath(path):
        raise UserError(f"{printable(path)}: contains a null character, which no path can; choose another folder")
    place = Path(os.path.realpath(path))
    if os.path.ismount(place):
        raise UserError(f"{path}: something is mounted here, so it cannot be replaced; choose a folder inside it")
    try:
        with _workshop(place, path) as workshop:
            before = place.lstat() if replace and place.is_dir() else None
            if before is None and os.path.lexists(place) and (not place.is_dir() or any(place.iterdir())):
                raise FileExistsError(errno.EEXIST, "it exists")
            new = workshop / _NEW
            new.mkdir()
            with os.scandir(place) if before else nullcontext():  # open: its inode's number goes to no other folder
                yield new
            try:
                _arrive(place, new, before, replace)
            except OSError as error:
                if not keep or not new.exists():
                    raise
                spare = new.rename(_unused_beside(place))
                raise RunError(f"{path}: left as it is ({error.strerror}); the new folder is {spare}") from error
    except OSError as error:
        raise cannot_write(path, error) from error


def _arrive(place: Path, new: Path, before: os.stat_result | None, foreign: Foreign | None) -> None:
    """Move a new folder to its place, where the folder `before` was, if any; an OSError if something else is there."""
    old = new.parent / _OLD / place.name
    old.parent.mkdir()
    try:
        if before is None:
            with suppress(OSError):
                place.rmdir()  # an empty one: Windows does not rename over it
        elif place.exists():
            place.rename(old)
            if not os.path.samestat(old.lstat(), before):
                raise FileExistsError(errno.EEXIST, "another process has replaced it")
            if foreign and (found := foreign(old)):
                raise FileExistsError(errno.EEXIST, f"{found[0]} has come into it")
        new.rename(place)
        if old.exists():
            old.rename(new)  # no longer the only copy
    finally:
        if os.path.lexists(old) and not os.path.lexists(place):  # or Ctrl-C came between the two renames
            with suppress(OSError):
                old.rename(place)


@contextmanager
def _workshop(place: Path, named: Path) -> Iterator[Path]:
    """A temporary folder beside a place that it claims, in parent folders that are created as needed.

    It outlasts the block only if it holds the sole old copy, and new parents only if they are not empty.
    """
    claim = place.parent / f".{hashlib.sha256(os.fsencode(place.name)).hexdigest()[:16]}"
    workshop = claim.with_name(f"{claim.name}{secrets.token_hex(8)}{_PART}")
    missing = [parent for parent in place.parents if not parent.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        recover(place)
        busy = f"{named}: another process is writing there; wait, or choose another folder"
        with locked(claim.with_name(claim.name + _LOCK), busy):
            workshop.mkdir()
            try:
                yield workshop
            finally:
                if _old_copy(workshop) is None or os.path.lexists(place):
                    shutil.rmtree(workshop, ignore_errors=True)
    finally:
        for parent in missing:
            with suppress(OSError):  # not empty
                parent.rmdir()


def recover(place: Path) -> None:
    """Put back what killed processes took away beside a place, to replace it, and remove all else that they left."""
    if "\0" in os.fspath(place):  # no path, as its user will be told
        return
    folder = Path(os.path.realpath(place)).parent
    for workshop in folder.glob(f".*{_PART}"):
        claim = _WORKSHOP.fullmatch(workshop.name)
        if claim and not workshop.is_symlink():
            with suppress(OSError, HtaError), locked(folder / f"{claim[1]}{_LOCK}") as is_dead:
                _settle(workshop, is_dead)


def _settle(workshop: Path, is_dead: bool) -> None:
    """End the work of a process that is dead, or seems to be for its age."""
    old = _old_copy(workshop)
    is_gone = old is not None and not os.path.lexists(workshop.with_name(old.name))
    if not is_dead and time.time() - workshop.stat().st_mtime < (_MINUTE_S if is_gone else _DAY_S):
        return
    if old is not None and (is_gone or (workshop / _NEW).exists()):
        home = old.rename(_unused_beside(workshop.with_name(old.name)))
        logger.warning("%s: put back; a process that was replacing it was killed", printable(home))
    shutil.rmtree(workshop, ignore_errors=True)


def _old_copy(workshop: Path) -> Path | None:
    """The folder that was taken away to be replaced."""
    return next((workshop / _OLD).glob("*"), None)


@contextmanager
def locked(file: Path, busy: str = "", moved: Path | None = None) -> Iterator[bool]:
    """Lock a file during the block, made if it is missing; a killed process leaves no lock behind.

    No link is followed (OSError), and the file keeps its content; an empty one is removed afterwards, from `moved` if
    that is where it will be. The lock of another process raises a UserError with the text `busy`.

    Yields whether the lock is certain; False where there are no locks, as on Windows and some network file systems.
    """
    if sys.platform == "win32":
        yield False
        return
    with ExitStack() as stack:
        while True:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            stack.callback(os.close, descriptor)
            sure = _try_lock(descriptor, busy)
            if _is_at(descriptor, file):  # otherwise its owner removed it just now
                break
        stack.callback(_remove_empty, descriptor, moved or file)
        yield sure


def _try_lock(descriptor: int, busy: str) -> bool:
    """Lock an open file until it is closed; False where that is impossible, a UserError if another has locked it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            raise UserError(busy) from None
        _say_no_locks(error.strerror)
        return False
    return True


@functools.cache  # once is enough
def _say_no_locks(reason: str) -> None:
    logger.warning("this file system cannot lock files (%s): let no other process write to the same folder", reason)


def _is_at(descriptor: int, place: Path) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), place.lstat())
    except OSError:
        return False


def _remove_empty(descriptor: int, place: Path) -> None:
    """Remove an open file from a path, unless another is there, or something is in it."""
    if _is_at(descriptor, place) and not os.fstat(descriptor).st_size:
        place.unlink(missing_ok=True)


def foreign(folder: Path, is_own: Callable[[str], object], inside: str = "") -> list[str]:
    """The relative paths of what does not belong in a folder, sorted: links, and all that `is_own` denies.

    Both name the entries below `inside`; `is_own` gets folders with a `/` at their end.
    """
    found = []
    for path in sorted(folder.iterdir()):
        name, is_folder = inside + path.name, path.is_dir()
        if path.is_symlink() or not is_own(name + "/" * is_folder):
            found.append(name)
        elif is_folder:
            found += foreign(path, is_own, f"{name}/")
    return found


def check_plain(path: Path, most_bytes: int) -> None:
    """Refuse, with a UserError, to read what is no file on a disk (a pipe never ends) or is larger than makes sense."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: is not a plain file")
    if found.st_size > most_bytes:
        raise UserError(f"{path}: has {found.st_size} bytes, where at most {most_bytes} make sense")


def check_replaceable(path: Path, named: str, remedy: str) -> None:
    """Refuse, with a UserError, to replace a folder, `named` so there, that contains the working directory."""
    if Path.cwd().is_relative_to(os.path.realpath(path)):
        raise UserError(f"{named}: contains your current working directory and cannot be replaced; {remedy}")


def printable(text: str | Path, keep: str = "") -> str:
    r"""A name, a path or another text in a single line that can be printed: what controls a terminal is escaped.

    That is every control character but those in `keep`, line breaks included, characters that reverse or hide text, and
    bytes that are not UTF-8 (`\xff`). In the quotes `$'...'` a shell understands the escapes.
    """
    return "".join(
        _escaped(c) if unicodedata.category(c) in _UNSEEN and c not in _JOINERS + keep else c for c in str(text)
    )


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as Python represents it in names
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if 0x80 <= code <= 0xFF else ascii(character)[1:-1]  # "\\x" is left to such bytes


def sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder that only the caller writes in."""
    recover(_unused(folder))
    for leftover in folder.glob(".*"):
        if re.fullmatch(r"\.[0-9a-f]{16,32}\.(part|lock)", leftover.name):
            is_folder = leftover.is_dir() and not leftover.is_symlink()
            shutil.rmtree(leftover, ignore_errors=True) if is_folder else leftover.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> HtaError:
    """The error for a file or folder that cannot be written; a UserError if the place is a wrong one."""
    remedy = "see what is there" if error.errno in _OTHER_PLACE else "free some space"
    kind = UserError if error.errno in _NO_ACCESS else RunError
    return kind(f"{path}: cannot be written ({error.strerror or error}); {remedy} or choose another folder")


def _unused(folder: Path) -> Path:
    """An unused path in a folder; random, since process numbers recur, especially in containers."""
    return folder / f".{secrets.token_hex(8)}{_PART}"


def _unused_beside(place: Path) -> Path:
    """The first free path of a place, `<place>-1`, `<place>-2` and so on."""
    others = (place.with_name(f"{place.name}-{number}") for number in count(1))
    return next(path for path in chain([place], others) if not os.path.lexists(path))
