"""What the scripts share: errors in one line with the right exit status, output to any stream, and commands to type."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hta
import main_eval
import main_train
from hta import cli
from hta.cli import command_line, run_command
from hta.experiments import __main__ as experiments
from hta.export import __main__ as export
from hta.speed import __main__ as speed
from hta.studies import __main__ as studies

ROOT = Path(__file__).parents[1]
SCRIPTS = pytest.mark.parametrize("script", [main_train, main_eval, experiments, export, studies, speed])
HOSTILE = "a\n\r\x1b[31m\x07\x9b1m\u202egnp\u2028.png"
HARMLESS = r"a\n\r\x1b[31m\x07\u009b1m\u202egnp\u2028.png"


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


# Output


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
def test_a_stream_that_lacks_a_character_gets_its_number(monkeypatch, encoding):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding=encoding, errors="strict"))
    assert run_command(lambda argv: print("caf\udce9 \u65e5\x1b.png\nnext line"), [], "") == 0
    assert printed.getvalue() == b"caf\\xe9 \\u65e5\\x1b.png\nnext line\n"


# Writes a file, prints more than a pipe holds, and ends with an error if it has an argument.
PROGRAM = """
import logging, sys
from pathlib import Path
from hta.cli import run_command
from hta.errors import UserError
def command(argv):
    logging.getLogger("hta.test").info("a notice")
    Path("result").write_text("whole")
    print("much\\n" * 100_000)
    if argv: raise UserError("a mistake")
sys.exit(run_command(command, sys.argv[1:], ""))
"""


@pytest.mark.parametrize(
    ("redirection", "status"),
    [(">&-", 0), ("2>&- >out", 0), (">&- 2>&-", 0), ("<&- >&- 2>&-", 0), ("| head -1 >out", 141), (">/dev/full", 1)],
)
def test_what_becomes_of_the_output_ends_no_run(tmp_path, redirection, status):
    for mistake, wanted in (("", status), ("mistake", status or 2)):
        line = f"set -o pipefail; \"{sys.executable}\" -c '{PROGRAM}' {mistake} {redirection}"
        result = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert result.returncode == wanted, result.stderr
        assert "Traceback" not in result.stderr
        assert "Exception" not in result.stderr
        assert (tmp_path / "result").read_text() == "whole"  # a closed stream's number was not given to it


def test_a_mistake_keeps_its_status_if_nobody_reads_it(tmp_path):
    line = f'"{sys.executable}" {ROOT}/main_train.py --nitre 2>&1 | true; exit ${{PIPESTATUS[0]}}'
    assert subprocess.run(["bash", "-c", line], cwd=tmp_path, check=False).returncode == 2


def test_names_reach_the_terminal_without_control_characters(capsys, caplog):
    def command(argv):
        print(HOSTILE.replace("\n", ""))
        raise OSError(errno.ENOENT, "not there", HOSTILE)

    assert run_command(command, [], "") == 2
    out, err = capsys.readouterr()
    assert out == HARMLESS.replace(r"\n", "") + "\n"
    assert err == f"error: {HARMLESS}: not there; check the path\n"


def test_a_notice_is_one_line_without_control_characters(tmp_path):
    program = "import logging; from hta.cli import run_command as run\n"
    program += f"run(lambda argv: logging.getLogger('other').warning({HOSTILE!r}), [], '')"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stderr == HARMLESS + "\n"


@SCRIPTS
def test_hostile_arguments_are_refused_in_one_harmless_line(capsys, script):
    assert script.main([f"--{HOSTILE}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert line.isprintable()


# Help and commands


@SCRIPTS
def test_the_version(capsys, script):
    with pytest.raises(SystemExit) as caught:
        script.main(["--version"])
    assert (caught.value.code, capsys.readouterr().out) == (0, f"hta {hta.__version__}\n")


COMMANDS = [(script, ()) for script in (main_train, main_eval, experiments, export, studies, speed)]
COMMANDS += [(experiments, (name,)) for name in ("run", "table", "summary", "changes", "scores", "plot")]
COMMANDS += [(studies, (name,)) for name in ("demo", "planted", "samples", "thresholds")]


@pytest.mark.parametrize(("script", "words"), COMMANDS)
def test_the_usage_is_short_and_flags_that_are_off_have_no_opposite(capsys, monkeypatch, script, words):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        script.main([*words, "--help"])
    out = capsys.readouterr().out
    usage = out.split("\n\n")[0].splitlines()
    assert len(usage) <= 5
    assert max(map(len, usage)) <= 80
    assert "--no-" not in out.replace("--no-compile", "")


@pytest.mark.parametrize(
    ("argv", "interpreter", "on_path", "command"),
    [
        ("main_train.py", "python", "", "python main_eval.py"),
        ("../hta/main_train.py", ".venv/bin/python3", "", ".venv/bin/python3 ../hta/main_eval.py"),
        ("{}/hta-train", "python", "{}", "hta-eval"),
        ("{}/hta-train", "python", "", "{}/hta-eval"),
        ("pytest", "python", "", "python main_eval.py"),
    ],
)
def test_the_next_command_is_called_as_this_one(tmp_path, monkeypatch, argv, interpreter, on_path, command):
    (tmp_path / "hta-eval").write_text("")
    (tmp_path / "hta-eval").chmod(0o755)
    monkeypatch.setenv("PATH", on_path.format(tmp_path))
    monkeypatch.setattr(sys, "argv", [argv.format(tmp_path)])
    monkeypatch.setattr(sys, "orig_argv", [interpreter, *sys.argv])
    assert command_line("eval", input_name="my wall") == command.format(tmp_path) + " --input_name 'my wall'"


def test_the_usage_names_the_program_as_called(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/hta-eval"])
    with pytest.raises(SystemExit):
        main_eval.main(["--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: hta-eval --input_name")
    assert "hta-eval --input_name brick" in out.split("\n\n")[1]
    assert "main_eval.py" not in out


def test_a_shell_takes_the_next_command_for_what_it_is():
    names = ["-rf", "my wall", "it's", "$HOME", "a\x1bb", HOSTILE, "back\\slash\n'", "caf\udce9"]
    for name in names:
        line = command_line("eval", input_name=name)
        assert line.isprintable()
        words = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
        *_, last = words.decode("utf-8", "surrogateescape").rstrip("\0").split("\0")
        assert last.removeprefix("--input_name=") == name


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_sleep_soon_unless_the_user_says_otherwise(monkeypatch, given, expected):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    cli.announce_torch()  # too late: torch has been loaded
    assert os.environ.get("GOMP_SPINCOUNT") == given.get("GOMP_SPINCOUNT")
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(cli, "_open_streams", lambda: None)
    cli.announce_torch()
    assert os.environ.get("GOMP_SPINCOUNT") == expected
