"""The errors that users of hta see: one line that names the argument or file, and the remedy.

The scripts print it to stderr and exit with the error's `exit_status`; library callers catch `HtaError`.
"""


class HtaError(Exception):
    """Base class of all errors that hta raises deliberately."""

    exit_status = 1


class UserError(HtaError):
    """A mistake in an argument or input file: nothing was written; exit status 2."""

    exit_status = 2


class RunError(HtaError):
    """A valid run that could not continue (disk full, loss not finite); what was saved is intact; exit status 1."""
