"""The errors that users of hta see: one line that names the argument or file, and the remedy.

The scripts print it to stderr and exit with the error's `exit_status`; library callers catch `HtaError`. Messages name
options as they are typed, `--niter`; where none was typed, `parameters_named` makes parameters of them.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_OPTION = re.compile(r"(?<!\.py )--([A-Za-z]\w*)")
# Options of the scripts that the library knows by another name, or not at all.
_PARAMETERS = {
    "overwrite": "overwrite=True",
    "name": "folder",
    "input_name": "name_or_path",
    "good_dir": "good_images",
    "resume": "main_train.py --resume",
}
_options_typed = ContextVar("options_typed", default=False)


class HtaError(Exception):
    """Base class of all errors that hta raises deliberately."""

    exit_status = 1


class UserError(HtaError):
    """A mistake in an argument or input file: nothing was written; exit status 2."""

    exit_status = 2


class RunError(HtaError):
    """A valid run that could not continue (disk full, loss not finite); what was saved is intact; exit status 1."""


@contextmanager
def options_typed() -> Iterator[None]:
    """A command line is behind what a block does: its errors name options."""
    token = _options_typed.set(True)
    try:
        yield
    finally:
        _options_typed.reset(token)


@contextmanager
def options_renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Let the errors of a block name options of this command, `names`, instead of those of the scripts."""
    try:
        yield
    except HtaError as error:
        error.args = (_OPTION.sub(lambda option: f"--{names.get(option[1], option[1])}", str(error)),)
        raise


@contextmanager
def parameters_named() -> Iterator[None]:
    """Let the errors of a block, or of a decorated function of the library, name parameters, not options."""
    try:
        yield
    except HtaError as error:
        if not _options_typed.get():
            error.args = (_OPTION.sub(lambda option: _PARAMETERS.get(option[1], option[1]), str(error)),)
        raise
