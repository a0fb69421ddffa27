"""The errors that a user of hta sees.

Each carries one line that names the argument or the file and what to do about it. The scripts print that line on
stderr and exit with the error's `exit_status`; a library caller catches `HtaError`.
"""


class HtaError(Exception):
    """Base class of every error that hta raises on purpose."""

    exit_status = 1


class UserError(HtaError):
    """A mistake in an argument or an input file: nothing has been written, exit status 2."""

    exit_status = 2


class RunError(HtaError):
    """A run that was started rightly and could not go on (full disk, loss that is not finite): exit status 1.

    What was saved before, the last checkpoint included, is intact.
    """
