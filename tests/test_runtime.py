"""What belongs to the user's process stays as it is, and a process that is forked from it computes."""

import os
import subprocess
import sys

import pytest
import torch

from hta.config import RuntimeConfig
from hta.runtime import full_precision, own_process, set_up

# A process of its own: it starts threads, which the other tests must not have when they fork.
_USER = """
import ctypes, multiprocessing, os, sys
import numpy as np, torch
import hta

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks a b c d e f".split()]

def maps_large_blocks():
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype, libc.malloc.restype = Info, ctypes.c_void_p
    before = libc.mallinfo2().hblks
    libc.malloc(ctypes.c_size_t(64 << 20))
    return libc.mallinfo2().hblks == before + 1

def state():
    return (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32,
            torch.random.initial_seed(), {k: v for k, v in os.environ.items() if not k.startswith("TORCHINDUCTOR")})

def work(i):
    return float(model.score(image).anomaly_scores[0])

def train_again(i):
    return float(hta.train(image, config).score(image).anomaly_scores[0])

torch.set_num_threads(2)
before = state()
image = np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8)
config = hta.default_config(niter=1, min_size=25, max_size=36, nfc=8, not_cuda=True, compile=False)
hta.train(image, config, folder=sys.argv[1], num_samples=0)
model = hta.load(sys.argv[1])
own = work(0)
assert state() == before
assert sys.platform != "linux" or maps_large_blocks()
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map_async(work, range(2)).get(60) == [own] * 2
    assert pool.map_async(train_again, [0]).get(60)
print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
def test_the_library_leaves_the_process_as_it_is_and_forked_pools_compute(tmp_path):
    command = [sys.executable, "-c", _USER, str(tmp_path / "model")]
    idle = os.environ | {"OMP_WAIT_POLICY": "passive"}  # two threads on a busy core would wait for each other
    result = subprocess.run(command, capture_output=True, text=True, timeout=180, env=idle)
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr


def test_threads_are_set_where_the_settings_say_so_and_by_scripts():
    set_up(RuntimeConfig(not_cuda=True))
    assert torch.get_num_threads() == 1  # see conftest.py
    set_up(RuntimeConfig(not_cuda=True, threads=3))
    assert torch.get_num_threads() == 3
    own_process(RuntimeConfig(threads=2))
    assert torch.get_num_threads() == 2


def test_convolutions_are_in_full_precision_for_as_long_as_they_are_computed(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with full_precision():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32
