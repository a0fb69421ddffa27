"""Command lines made from the dataclasses of settings, and errors in one line. Only scripts import this."""

import argparse
import dataclasses
import errno
import logging
import os
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from hta.errors import HtaError, RunError, UserError
from hta.settings import describe_range, field_type

EXIT_INTERRUPTED, EXIT_UNREAD = 130, 141

NOT_FOR_SCORING = ("checkpoint_every", "compile")
"""Settings of the machine that mean nothing to a model that is trained."""

# Refusals of the system that an argument has caused.
_BAD_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM)

_NEGATIVE = ("no_", "not_")  # such a flag has no opposite: `--no-no_maps` helps nobody


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like every other mistake of a user, and which guesses no abbreviations."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise UserError(f"{message.removeprefix('argument ')}; see --help")


def add_settings(parser: argparse.ArgumentParser, title: str, cls: type, exclude: Collection[str] = ()) -> None:
    """Add one group of options: a flag for each field of a dataclass of settings.

    Options that are not given leave no trace in the namespace, so that "given" and "default" can be told apart.

    Args:
        parser: gets the group.
        title: of the group in the help.
        cls: a dataclass whose fields were made by `hta.config.option`.
        exclude: fields that mean nothing to this script.
    """
    group = parser.add_argument_group(title)
    for f in dataclasses.fields(cls):
        if f.name in exclude:
            continue
        kind, _ = field_type(cls, f.name)
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
    """The help of a field with its range and default."""
    limits = describe_range(f.metadata)
    unit = f" {f.metadata['unit']}" if f.metadata["unit"] else ""
    default = (
        ""
        if f.default in (None, (), "", dataclasses.MISSING)
        else f"default {f.default}{unit}{f.metadata['default_note']}"
    )
    notes = "; ".join(note for note in (limits, default) if note)
    text = f.metadata["text"] + (f" ({notes})" if notes else "")
    return text.replace("%", "%%")


def take_settings(cls: type, given: dict[str, Any]) -> Any:
    """Build a dataclass of settings from the options that were given.

    Raises:
        UserError: a value out of range.
    """
    names = {f.name for f in dataclasses.fields(cls)}
    values = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if name in names
    }
    return cls(**values)


def run_command(
    command: Callable[[Sequence[str] | None], None],
    argv: Sequence[str] | None,
    interrupted: str,
    *,
    out_of_memory: str = "close other programs",
) -> int:
    """Run a script's work, and turn its errors into one line on stderr and an exit status.

    Args:
        command: takes the arguments.
        argv: the arguments; None for those of the process.
        interrupted: what Ctrl-C leaves behind, for the message.
        out_of_memory: what helps where the memory is too small, for the message.

    Returns:
        The exit status: 0, 1 for a run that broke, 2 for a mistake of the user, 130 for Ctrl-C, 141 where whoever read
        the output has gone, as `head` does.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("hta").setLevel(logging.INFO)
    try:
        with logging_redirect_tqdm():
            command(argv)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains again at its end
        return EXIT_UNREAD
    except HtaError as error:
        return _failed(str(error), error.exit_status)
    except OSError as error:
        if error.errno is None:  # not the system's
            raise
        return _failed(_system_error(error), (UserError if error.errno in _BAD_PATH else RunError).exit_status)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _failed(f"out of memory; {out_of_memory}", RunError.exit_status)
    except KeyboardInterrupt:
        print(f"interrupted: {interrupted}", file=sys.stderr)  # noqa: T201
        return EXIT_INTERRUPTED
    return 0


def _failed(message: str, status: int) -> int:
    """Say in one line what went wrong, and hand on the exit status."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return status


def _system_error(error: OSError) -> str:
    """The last resort for a path that the system refuses in a place where nobody expected it."""
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}; check the path"


def _is_out_of_memory(error: Exception) -> bool:
    """Whether the memory was too small: of a CPU's torch only says it in the text."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
