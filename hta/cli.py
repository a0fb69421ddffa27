"""Command lines built from the dataclasses of settings, and one-line errors. Imported by scripts only."""

import argparse
import dataclasses
import errno
import logging
import os
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

from tqdm.contrib.logging import logging_redirect_tqdm

from hta.errors import HtaError, RunError, UserError
from hta.settings import describe_range, field_type

EXIT_INTERRUPTED, EXIT_UNREAD = 130, 141
NOT_FOR_SCORING = ("checkpoint_every", "compile")
"""Runtime settings that do not apply to a trained model."""

# Errors of the operating system that a wrong argument causes.
_BAD_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM)

_NEGATIVE = ("no_", "not_")  # flags without an opposite: `--no-no_maps` would help nobody


class Parser(argparse.ArgumentParser):
    """A parser that accepts no abbreviations and reports errors in one line, like all other mistakes of the user."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message as a UserError, instead of printing the usage and exiting."""
        raise UserError(f"{message.removeprefix('argument ')}; see --help")


def add_settings(parser: argparse.ArgumentParser, title: str, cls: type, exclude: Collection[str] = ()) -> None:
    """Add a group of options, one for each field of the dataclass of settings `cls`, except those in `exclude`.

    Options that are not given are absent from the namespace, which distinguishes "given" from "default".
    """
    group = parser.add_argument_group(title)
    for f in dataclasses.fields(cls):
        if f.name in exclude:
            continue
        kind = field_type(cls, f.name)
        options: dict[str, Any] = {"help": _help_text(f), "default": argparse.SUPPRESS}
        if kind is bool:
            negative = f.name.startswith(_NEGATIVE)
            options["action"] = "store_true" if negative else argparse.BooleanOptionalAction
        elif kind is tuple:
            options.update(nargs="+", metavar="FILE")
        else:
            options.update(type=kind, metavar=(f.metadata["unit"] or kind.__name__).upper())
        group.add_argument(f"--{f.name}", **options)


def _help_text(f: dataclasses.Field) -> str:
    """The help text of a field with its range and default."""
    limits = describe_range(f.metadata)
    unit = f" {f.metadata['unit']}" if f.metadata["unit"] else ""
    has_default = f.default not in (None, (), "", dataclasses.MISSING)
    default = f"default {f.default}{unit}{f.metadata['default_note']}" if has_default else ""
    notes = "; ".join(note for note in (limits, default) if note)
    return (f.metadata["text"] + (f" ({notes})" if notes else "")).replace("%", "%%")


def take_settings(cls: type, given: dict[str, Any]) -> Any:
    """Build a dataclass of settings from the given options; those of other dataclasses are ignored."""
    return cls(**{f.name: given[f.name] for f in dataclasses.fields(cls) if f.name in given})


def run_command(
    command: Callable[[Sequence[str] | None], None],
    argv: Sequence[str] | None,
    interrupted: str,
    *,
    out_of_memory: str = "close other programs",
) -> int:
    """Run a script, and turn its errors into one line on stderr and an exit status.

    Args:
        command: the script's work; takes the arguments.
        argv: the arguments; None means those of the process.
        interrupted: what Ctrl-C leaves behind, for the message.
        out_of_memory: the remedy if memory runs out, for the message.

    Returns:
        The exit status: 0 for success, 1 for a failed run, 2 for a mistake of the user, 130 for Ctrl-C, 141 if the
        reader of the output is gone (as after `| head`).
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("hta").setLevel(logging.INFO)
    try:
        with logging_redirect_tqdm():
            command(argv)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains again on exit
        return EXIT_UNREAD
    except HtaError as error:
        return _failed(str(error), error.exit_status)
    except OSError as error:
        if error.errno is None:  # not from the operating system
            raise
        reason = error.strerror or str(error)
        message = reason if error.filename is None else f"{error.filename}: {reason}; check the path"
        return _failed(message, (UserError if error.errno in _BAD_PATH else RunError).exit_status)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _failed(f"out of memory; {out_of_memory}", RunError.exit_status)
    except KeyboardInterrupt:
        print(f"interrupted: {interrupted}", file=sys.stderr)  # noqa: T201
        return EXIT_INTERRUPTED
    return 0


def _failed(message: str, status: int) -> int:
    """Print an error as one line and return the exit status."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return status


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; on the CPU, torch says so in the message only."""
    torch = sys.modules.get("torch")  # not imported for this question: `--help` does without it
    kinds = MemoryError if torch is None else (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)
