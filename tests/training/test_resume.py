"""A run that is interrupted and killed, and then resumed, ends in the same bits as one that is left alone."""

import json
import multiprocessing
import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import main_train
from hta.models.storage import RunFolder
from tests.helpers import save, snapshot

ITERATIONS = 4
ARGUMENTS = [
    *("--input_name", "shots", "--min_size", "14", "--max_size", "22", "--nfc", "3", "--checkpoint_every", "1"),
    *("--niter", str(ITERATIONS), "--milestone_d", "2", "--milestone_g", "3", "--Gsteps", "1", "--Dsteps", "1"),
    *("--num_samples", "1", "--threads", "1", "--not_cuda"),
]
FOLDER = Path("TrainedModels") / "shots"
PATIENCE_S = 120

# A server that has the slow imports behind it and starts a fresh process by forking; no thread of torch runs in it.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["hta.runs", "torch._dynamo", "matplotlib.backends.backend_agg"])

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX systems")


def work(folder, arguments):
    """The body of a process: the command, in a working directory, with its messages in a file."""
    os.chdir(folder)
    sys.stderr = sys.stdout = open("messages.txt", "w")  # noqa: PTH123, SIM115 (until the process ends)
    sys.exit(main_train.main(arguments))


def position(folder):
    """How many iterations the checkpoint has behind it, over all scales; -1 before the run has started."""
    try:
        data = (folder / FOLDER / "checkpoint.safetensors").read_bytes()
    except FileNotFoundError:
        return -1
    # A length, then a JSON header; read in one go, since the file may be replaced at any moment.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    return int(header["scale"]) * ITERATIONS + int(header["iteration"])


def stop(folder, arguments, target, sign):
    """Start a run, and send it a signal once its checkpoint is in the middle of a scale, at `target` or later.

    Returns:
        The exit code of the process, and the position of its checkpoint.
    """
    process = CONTEXT.Process(target=work, args=(str(folder), arguments))
    process.start()
    end = time.monotonic() + PATIENCE_S
    while True:
        assert process.is_alive(), "the run has ended before the moment it was to be stopped at"
        assert time.monotonic() < end
        if position(folder) >= target:
            os.kill(process.pid, signal.SIGSTOP)  # so that it stays there
            if position(folder) % ITERATIONS:
                break
            os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.002)
    os.kill(process.pid, sign)
    os.kill(process.pid, signal.SIGCONT)
    process.join(PATIENCE_S)
    return process.exitcode, position(folder)


def run(folder, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main_train.main([*ARGUMENTS, *arguments]) == 0
    return snapshot(folder / FOLDER)


def make_workspace(folder):
    """A working directory with two training images."""
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (22, 24, 3), dtype=np.uint8)
        save(folder / "shots" / f"{number}.png", pixels)
    return folder


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        # The fifth of six scales is wider, and does not start from the scale before it.
        (["--precision", "float32", "--scale_factor", "0.9"], 6),
        (["--precision", "bfloat16", "--scale_factor", "0.7", "--no-compile", "--recipe", "views", "--animate"], 3),
    ],
)
def test_interrupted_killed_and_resumed_the_bits_are_the_same(tmp_path, settings, scales):
    undisturbed = run(make_workspace(tmp_path / "undisturbed"), *settings)
    assert len([name for name in undisturbed if name.startswith("scale_")]) == scales
    assert len(undisturbed["metrics.csv"].splitlines()) == 1 + scales * ITERATIONS

    folder = make_workspace(tmp_path / "stopped")
    arguments = [*ARGUMENTS, *settings]
    status, interrupted_at = stop(folder, arguments, 1, signal.SIGINT)
    messages = (folder / "messages.txt").read_text()
    assert (status, messages.count("Traceback"), messages.count("interrupted")) == (130, 0, 1)
    assert messages.splitlines()[-1].startswith("interrupted: ")
    assert "--resume" in messages.splitlines()[-1]

    resumed = [*arguments, "--resume"]
    target = max(interrupted_at + 1, (scales - 2) * ITERATIONS)
    status, killed_at = stop(folder, resumed, target, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert 0 < interrupted_at < killed_at < scales * ITERATIONS
    with RunFolder(folder / FOLDER).locked():  # a killed process leaves no lock behind
        pass
    found = run(folder, *settings, "--resume")
    assert set(found) == set(undisturbed)
    pages = [re.sub(rb"; trained in \d+ s(.*)<", rb"<", files.pop("train.html")) for files in (found, undisturbed)]
    assert pages[0] == pages[1]  # but for the duration
    assert [name for name in sorted(found) if found[name] != undisturbed[name]] == []
