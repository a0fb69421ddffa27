"""What the scripts share: errors of the system and of the memory in one line, with the right exit status."""

import errno

import pytest
import torch

from hta.cli import run_command


def ended(capsys, command, **options):
    """Exit status of a command, and what stands on stderr."""
    return run_command(command, [], "nothing was written", **options), capsys.readouterr().err


def failing(error):
    def command(argv):
        raise error

    return command


@pytest.mark.parametrize(
    ("number", "status"),
    [(errno.ENAMETOOLONG, 2), (errno.ENOENT, 2), (errno.EACCES, 2), (errno.ENOSPC, 1), (errno.EIO, 1)],
)
def test_a_path_that_the_system_refuses_is_named(capsys, number, status):
    error = OSError(number, "no good", "some/path")
    assert ended(capsys, failing(error)) == (status, "error: some/path: no good; check the path\n")


def test_an_error_of_the_system_without_a_path(capsys):
    assert ended(capsys, failing(OSError(errno.ENOSPC, "disk full"))) == (1, "error: disk full\n")


def test_a_bug_keeps_its_traceback():
    for error in (RuntimeError("a bug"), OSError("could not get source code"), ValueError("a bug")):
        with pytest.raises(type(error), match=str(error)):
            run_command(failing(error), [], "nothing was written")


def test_too_little_memory_is_told_with_what_helps(capsys):
    def command(argv):
        torch.empty(2**60, dtype=torch.uint8)

    for short in (command, failing(MemoryError()), failing(torch.OutOfMemoryError("CUDA out of memory"))):
        assert ended(capsys, short, out_of_memory="eat less") == (1, "error: out of memory; eat less\n")
