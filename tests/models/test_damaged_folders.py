"""Model folders with seeded damage of any kind: a model with finite scores, or one line; no hang, and little memory."""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import hta
from hta.config import RuntimeConfig, ScoringConfig, default_config
from hta.errors import UserError
from tests.fuzzing import TIMES
from tests.helpers import picture

FOLDERS = 160 * TIMES
SECONDS_EACH, MOST_MIB = 10, 2048
RUNTIME = {"threads": 1, "precision": "float32", "not_cuda": True}
VALUES = [
    *(None, True, -1, 0, 1, 2**31, 10**18, 10**400, 1e308, -0.0, 0.9999999, float("nan"), float("inf")),
    *("", "cpu", "\ud800", "\x1b[31m\r\n", "x" * 100_000, [], {}, [[]], [0], [1] * 1000, {"": {}}),
]


def change_value(rng, data):
    """Replace, remove or add a value somewhere in JSON data."""
    place = data
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return data
        key = keys[rng.integers(len(keys))]
        if rng.random() < 0.6 and isinstance(place[key], dict | list) and place[key]:
            place = place[key]
            continue
        value = VALUES[rng.integers(len(VALUES))]
        if rng.random() < 0.1:
            del place[key]
        elif rng.random() < 0.1 and isinstance(place, dict):
            place["extra"] = value
        else:
            place[key] = value
        return data


def damage_json(rng, path):
    data = json.loads(path.read_text())
    for _ in range(rng.integers(1, 3)):
        change_value(rng, data)
    path.write_text(json.dumps(data))


def damage_text(rng, path):
    text = path.read_text()
    start = int(rng.integers(len(text)))
    middle = ["[" * 100_000, '{"a":' * 50_000, "\x00", "NaN", "9" * 5000, "", "\ufeff"][rng.integers(7)]
    path.write_text(text[:start] + middle + text[start + int(rng.integers(20)) :])


def flip_bits(rng, path):
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little") if path.suffix == ".safetensors" else len(data)
    first, last = ((0, header), (header, len(data)))[int(rng.integers(2))] if header < len(data) else (0, len(data))
    for _ in range(2 ** rng.integers(6)):
        data[rng.integers(first, last)] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def change_header(rng, path):
    """Change the shapes, types and offsets that a file of tensors states."""
    if path.suffix != ".safetensors":
        damage_json(rng, path)
        return
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(change_value(rng, json.loads(data[8:end]))).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[end:])


def change_numbers(rng, path):
    """Overwrite some numbers in a file of tensors by ones that make no sense, or scale all of them."""
    if path.suffix != ".safetensors":
        damage_json(rng, path)
        return
    data = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(data[:8], "little")
    numbers = np.frombuffer(data, np.float32, (len(data) - end) // 4, end)
    if rng.random() < 0.5:
        chosen = rng.integers(len(numbers), size=2 ** rng.integers(10))
        numbers[chosen] = rng.choice(np.float32([np.nan, np.inf, -1e38, 1e20, 1e11, -1, 1e-45, 0]))
    else:
        numbers *= rng.choice(np.float32([-1, 0, 1e-30, 1e5, 1e30]))
    path.write_bytes(data)


def resize(rng, path):
    size = path.stat().st_size
    os.truncate(path, [0, 1, 7, 8, size // 2, size - 1, size + 1, size + 4096, 3 << 30, 1 << 40][rng.integers(10)])


def replace_file(rng, path):
    other = [p for p in path.parent.iterdir() if p.is_file() and p != path]
    content = other[rng.integers(len(other))].read_bytes()
    path.unlink()
    kind = rng.integers(6)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to(["/dev/zero", "/dev/stdin", path.name, "/proc/self/mem"][rng.integers(4)])
    elif kind == 2:
        path.mkdir()
    elif kind > 3:
        path.write_bytes(content)


DAMAGES = [damage_json, damage_text, flip_bits, change_header, change_numbers, resize, replace_file]


def attack(folder, count):
    """Damage copies of a model, and use each: in a process of its own, whose memory is looked at."""
    outcomes = {"works": 0, "refused": 0}
    image = picture(5)
    for seed in range(count):
        rng = np.random.default_rng(seed)
        place = folder / "wall"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder / "sound", place)
        if rng.random() < 0.5:
            (place / "calibration.json").unlink()
        files = sorted(path for path in place.iterdir() if path.suffix in (".json", ".safetensors"))
        damage = DAMAGES[seed % len(DAMAGES)]
        path = files[rng.integers(len(files))] if damage not in (damage_json, damage_text) else place / "config.json"
        damage(rng, path)
        start, message = time.monotonic(), ""
        try:
            model = hta.load(place, runtime=RuntimeConfig(**RUNTIME))
            if (place / "calibration.json").exists():
                model.calibration(ScoringConfig())
            (votes,) = model.stream([image])
            assert np.isfinite(votes.shares).all(), (seed, damage)
            assert np.isfinite(votes.peak), (seed, damage)
            outcomes["works"] += 1
        except UserError as error:
            message = str(error)
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, {damage.__name__} of {path.name}") from error
        assert message.isprintable(), (seed, damage, message)
        assert len(message) < 2000, (seed, damage, message)
        assert time.monotonic() - start < SECONDS_EACH, (seed, damage)
    return outcomes


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="files of POSIX systems")
def test_a_damaged_model_works_or_is_refused_in_one_line_and_little_memory(tmp_path):
    config = default_config(min_size=14, max_size=22, nfc=4, niter=2, compile=False, **RUNTIME)
    hta.train(picture(), config).save(tmp_path / "sound")
    script = [sys.executable, "-m", "tests.models.test_damaged_folders", str(tmp_path), str(FOLDERS)]
    result = subprocess.run(script, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300 * TIMES)
    assert result.returncode == 0, result.stderr[-3000:]
    outcomes = json.loads(result.stdout)
    assert outcomes["works"] + outcomes["refused"] == FOLDERS
    assert outcomes["works"] > FOLDERS // 32  # not everything that is different is damaged
    assert outcomes["refused"] > FOLDERS // 2
    assert outcomes["peak_mib"] < MOST_MIB


if __name__ == "__main__":
    import resource

    outcomes = attack(Path(sys.argv[1]), int(sys.argv[2]))
    outcomes["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(outcomes))
