"""A run that is killed, or interrupted, and resumed ends in the same bits as one that is left alone."""

import functools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main_train

ROOT = Path(__file__).parents[2]
ITERATIONS = 16
SCALES = 6
# Six scales of 14 to 22 px: the second to fourth and the sixth start from the scale before them, the fifth is wider.
ARGUMENTS = [
    *("--input_name", "shots", "--min_size", "14", "--max_size", "22", "--scale_factor", "0.9", "--nfc", "3"),
    *("--niter", str(ITERATIONS), "--milestone_d", "6", "--milestone_g", "9", "--checkpoint_every", "2"),
    *("--num_samples", "2", "--threads", "1", "--not_cuda"),
]
FOLDER = Path("TrainedModels") / "shots"
PATIENCE_S = 120

# A server that has the slow imports behind it and starts a fresh process by forking; no thread of torch runs in it.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch", "torch._dynamo", "matplotlib.figure", "safetensors.torch", "tqdm", "PIL.Image"]
)

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX systems")


def work(folder, arguments):
    """The body of a process: the command, in a working directory."""
    os.chdir(folder)
    sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 (until the process ends)
    sys.exit(main_train.main(arguments))


def start(folder, *arguments):
    process = CONTEXT.Process(target=work, args=(str(folder), [*ARGUMENTS, *arguments]))
    process.start()
    return process


def finish(process):
    process.join(PATIENCE_S)
    assert process.exitcode == 0


def make_workspace(folder):
    """A working directory with two training images."""
    (folder / "shots").mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (22, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "shots" / f"{number}.png")
    return folder


def position(folder):
    """How many iterations the checkpoint has behind it, over all scales; -1 before the run has begun."""
    run = folder / FOLDER
    if not (run / "config.json").exists():
        return -1
    try:
        data = (run / "checkpoint.safetensors").read_bytes()
    except FileNotFoundError:
        return SCALES * ITERATIONS
    # A length, then a JSON header; read in one go, since the file may be replaced at any moment.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    return int(header["scale"]) * ITERATIONS + int(header["iteration"])


def wait_until(folder, target, is_running):
    """Wait until the checkpoint stands at an iteration, or later."""
    end = time.monotonic() + PATIENCE_S
    while position(folder) < target:
        assert is_running(), "the run has ended before the moment it was to be stopped at"
        assert time.monotonic() < end
        time.sleep(0.002)


def results(folder):
    """Weights, losses and pictures of a run, by name."""
    run = folder / FOLDER
    kept = {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*.*") if path.is_file()}
    # The picture is drawn from losses of full precision or, after a resumption, from the six digits of metrics.csv.
    return {name: data for name, data in kept.items() if name != "curves.png" and not Path(name).name.startswith(".")}


def assert_same_results(one, other):
    assert set(one) == set(other)
    assert [name for name in sorted(one) if one[name] != other[name]] == []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a run of some precision leaves that nothing has stopped."""

    @functools.cache
    def run(precision):
        folder = make_workspace(tmp_path_factory.mktemp("undisturbed"))
        finish(start(folder, "--precision", precision))
        found = results(folder)
        weights = {f"scale_{n}.safetensors" for n in range(SCALES)}
        assert set(found) >= weights | {"metrics.csv", "samples/random_001.png"}
        assert len([name for name in found if name.startswith("scale_")]) == SCALES
        assert len(found["metrics.csv"].splitlines()) == 1 + SCALES * ITERATIONS
        return found

    return run


def moments(seed):
    """Five iterations to be killed at: in different scales, before and after the learning rates have dropped."""
    draw = random.Random(seed)
    return [n * ITERATIONS + draw.randrange(1, ITERATIONS) for n in sorted(draw.sample(range(SCALES - 1), 5))]


def kill(process, folder, target, pause_s, *, mid_scale):
    """Kill a run some time after an iteration, wherever it is by then, in the middle of a file too.

    Args:
        mid_scale: only where the checkpoint stands in the middle of a scale, which is looked at while the run is held.

    Returns:
        The position of the checkpoint.
    """
    while True:
        wait_until(folder, target, process.is_alive)
        time.sleep(pause_s)
        os.kill(process.pid, signal.SIGSTOP)
        if not mid_scale or position(folder) % ITERATIONS:
            break
        target = position(folder) + 1
        os.kill(process.pid, signal.SIGCONT)
    process.kill()
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGKILL
    return position(folder)


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_killed_five_times_and_resumed_the_bits_are_the_same(tmp_path, undisturbed, precision):
    folder = make_workspace(tmp_path)
    pauses = random.Random(1)
    stops = []
    for number, target in enumerate(moments(seed=0)):
        process = start(folder, "--precision", precision, *(["--resume"] if stops else []))
        target = max(target, stops[-1] + 1 if stops else 0)
        stops.append(kill(process, folder, target, pauses.uniform(0, 0.04), mid_scale=number != 2))
    assert stops == sorted(set(stops))
    assert stops[-1] < SCALES * ITERATIONS
    finish(start(folder, "--precision", precision, "--resume"))
    assert_same_results(results(folder), undisturbed(precision))


def test_another_seed_gives_other_bits(tmp_path, undisturbed):
    folder = make_workspace(tmp_path)
    finish(start(folder, "--precision", "float32", "--manualSeed", "1"))
    found, others = results(folder), undisturbed("float32")
    assert set(found) == set(others)
    unlike = {name for name in found if found[name] != others[name]}
    assert unlike >= {f"scale_{n}.safetensors" for n in range(SCALES)} | {"metrics.csv", "samples/random_000.png"}


def test_interrupted_it_says_so_in_one_line_and_can_be_resumed(tmp_path, undisturbed):
    folder = make_workspace(tmp_path)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main_train.py"), *ARGUMENTS, "--precision", "float32"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts commands in the background deaf to Ctrl-C; this one is to hear it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_until(folder, ITERATIONS + 2, lambda: process.poll() is None)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "Traceback" not in errors
    last = errors.splitlines()[-1]
    assert last.startswith("interrupted: ")
    assert "--resume" in last
    assert errors.count("interrupted") == 1
    assert ITERATIONS + 2 <= position(folder) < SCALES * ITERATIONS
    finish(start(folder, "--precision", "float32", "--resume"))
    assert_same_results(results(folder), undisturbed("float32"))
