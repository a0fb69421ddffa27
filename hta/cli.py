"""Command lines built from the dataclasses of settings, and one-line errors. Imported by scripts only."""

import argparse
import contextlib
import dataclasses
import errno
import io
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tqdm.contrib.logging import logging_redirect_tqdm

from hta import __version__
from hta.errors import HtaError, RunError, UserError, options_typed
from hta.files import printable
from hta.settings import describe_range, field_type

EXIT_INTERRUPTED, EXIT_UNREAD = 130, 141
NOT_FOR_SCORING = ("checkpoint_every",)
"""Runtime settings that do not apply to a trained model."""

SPIN_VARIABLE, _SPIN_COUNT = "GOMP_SPINCOUNT", "1000"
"""How often a thread of GNU OpenMP looks for the others before it sleeps: read when torch is loaded."""

# Errors of the operating system that a wrong argument causes.
_BAD_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM)


class Parser(argparse.ArgumentParser):
    """A parser that accepts no abbreviations and reports errors in one line, like all other mistakes of the user."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self.add_argument("--version", action="version", version=f"hta {__version__}", help="show the version and exit")

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message as a UserError, instead of printing the usage and exiting."""
        raise UserError(f"{message.removeprefix('argument ')}; see --help")


def script_parser(name: str, description: str, usage: str) -> Parser:
    """The parser of a script, "train" or "eval"; in its texts, `main_<name>.py` becomes what was called."""
    script, called = f"main_{name}.py", Path(_called(name)[-1]).name
    description = description.replace(f"python {script}", command_line(name))
    return Parser(prog=called, description=description, usage=usage.replace(script, called))


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
            options["action"] = argparse.BooleanOptionalAction if f.default else "store_true"
        elif kind is tuple:
            options.update(nargs="+", choices=f.metadata["choices"])
            options.update({} if f.metadata["choices"] else {"metavar": "FILE"})
        elif f.metadata["choices"]:
            options.update(type=kind, metavar=f"{{{','.join(map(str, f.metadata['choices']))}}}")
        else:
            options.update(type=kind, metavar=(f.metadata["unit"] or kind.__name__).upper())
        group.add_argument(f"--{f.name}", **options)


def _help_text(f: dataclasses.Field) -> str:
    """The help text of a field with its range and default."""
    limits = "" if f.metadata["choices"] else describe_range(f.metadata)  # choices stand beside the option
    unit = f" {f.metadata['unit']}" if f.metadata["unit"] else ""
    has_default = f.default not in (None, (), "", False, dataclasses.MISSING)
    default = f"default {f.default}{unit}{f.metadata['default_note']}" if has_default else ""
    notes = "; ".join(note for note in (limits, default) if note)
    return (f.metadata["text"] + (f" ({notes})" if notes else "")).replace("%", "%%")


def take_settings(cls: type, given: dict[str, Any]) -> Any:
    """Build a dataclass of settings from the given options; those of other dataclasses are ignored."""
    return cls(**{f.name: given[f.name] for f in dataclasses.fields(cls) if f.name in given})


def _called(name: str) -> list[str]:
    """The words that call a script, "train" or "eval", in the way in which this process was called."""
    called, script = Path(sys.argv[0]), f"main_{name}.py"
    if called.stem in ("hta-train", "hta-eval"):
        beside = called.with_name(f"hta-{name}{called.suffix}")
        return [beside.name if shutil.which(beside.name) == str(beside.absolute()) else str(beside)]
    is_script = called.name in ("main_train.py", "main_eval.py")
    return [sys.orig_argv[0], str(called.with_name(script))] if is_script else ["python", script]


def command_line(name: str, **options: str) -> str:
    """The command that calls a script, "train" or "eval", with options, in printable characters for a shell."""
    words = _called(name)
    for option, value in options.items():  # only with an equals sign, a value may look like an option
        words += [f"--{option}={value}"] if value.startswith("-") else [f"--{option}", value]
    escaped = [printable(word.replace("\\", "\\\\").replace("'", "\\'")) for word in words]
    plain = [printable(word) == word for word in words]
    return " ".join(
        shlex.quote(word) if as_is else f"$'{text}'" for word, text, as_is in zip(words, escaped, plain, strict=True)
    )


def announce_torch() -> None:
    """Say, before it happens, that torch is imported, which takes seconds; and let its threads sleep soon.

    A thread that waits busily for another, as is the default for milliseconds, keeps it from its core if there is other
    work, and an iteration then takes many times longer. To sleep at once would cost time where the cores are idle.
    """
    if "torch" not in sys.modules:
        if "OMP_WAIT_POLICY" not in os.environ:
            os.environ.setdefault(SPIN_VARIABLE, _SPIN_COUNT)
        _open_streams()
        _say("loading torch ...")


class _OneLine(logging.Formatter):
    """Log records as single printable lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))


class _PrintableStream:
    """A stream of text that lets no control characters through but line breaks."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, with its control characters escaped."""
        return self._stream.write(printable(text, keep="\n"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run_command(
    command: Callable[[Sequence[str] | None], None],
    argv: Sequence[str] | None,
    interrupted: str,
    *,
    out_of_memory: str = "close other programs",
) -> int:
    """Run a script, and turn its errors into one line on stderr and an exit status.

    Whatever stdout and stderr are, closed or unable to represent a character, results are not lost by printing.

    Args:
        command: the script's work; takes the arguments.
        argv: the arguments; None means those of the process.
        interrupted: what Ctrl-C leaves behind, for the message.
        out_of_memory: the remedy if memory runs out, for the message.

    Returns:
        The exit status: 0 for success, 1 for a failed run, 2 for a mistake of the user, 130 for Ctrl-C, 141 if the
        reader of the output is gone (as after `| head`).
    """
    _open_streams()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("hta").setLevel(logging.INFO)
    status = 0
    try:
        with logging_redirect_tqdm(), contextlib.redirect_stdout(_PrintableStream(sys.stdout)):
            status = _status_of(command, argv, interrupted, out_of_memory)
    finally:  # also after --help, which raises SystemExit
        status = status or _flush(sys.stdout)
        _flush(sys.stderr)
    return status


def _open_streams() -> None:
    """Replace a closed stdout or stderr, whose number the next file would get, and let both write any character."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            while os.open(os.devnull, os.O_RDWR) < 2:  # the lowest free number
                pass
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush(stream: Any) -> int:
    """Write what a stream still holds; returns an exit status if that is impossible, and drops it."""
    try:
        stream.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # a stream of Python's own
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else Python complains again on exit
        return EXIT_UNREAD if isinstance(error, BrokenPipeError) else _failed(f"{stream.name}: {error.strerror}", 1)
    return 0


def _status_of(
    command: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None, interrupted: str, out_of_memory: str
) -> int:
    """The exit status of a command, with its error reported; see `run_command`."""
    try:
        with options_typed():
            command(argv)
    except BrokenPipeError:
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
        _say(f"interrupted: {interrupted}")
        return EXIT_INTERRUPTED
    return 0


def _failed(message: str, status: int) -> int:
    """Report an error and return the exit status."""
    _say(f"error: {message}")
    return status


def _say(text: str) -> None:
    """Print one line on stderr, if anybody reads it."""
    with contextlib.suppress(OSError):
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; on the CPU, torch says so in the message only."""
    torch = sys.modules.get("torch")  # not imported for this question: `--help` does without it
    kinds = MemoryError if torch is None else (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)
