"""The profile: kernels that note their seconds change nothing, and the parts add up to the iteration."""

import pytest
import torch

from hta.config import RuntimeConfig
from hta.runtime import resolve
from hta.speed import profile
from hta.speed.profile import PARTS, TimedKernels, format_profile, measure_profile
from hta.speed.workload import benchmark_config, scale_trainer


def trained(timed):
    runtime = resolve(RuntimeConfig(not_cuda=True, precision="float32"))
    trainer = scale_trainer(benchmark_config(1, "float32", num_transforms=4), runtime, 0)
    kernels = TimedKernels(trainer.pyramid.kernels)
    if timed:
        kernels.put_into(trainer)
    losses = next(trainer.run())
    return losses, trainer.state(), kernels


def test_kernels_that_are_timed_compute_the_same():
    (losses, state, unused), (others, same, kernels) = trained(False), trained(True)
    assert losses == others
    assert all(torch.equal(state[name], same[name]) for name in state)
    assert set(unused.seconds.values()) == {0.0}
    assert min(kernels.seconds.values()) > 0
    assert kernels.extra == pytest.approx(kernels.seconds["input gradient"])


def test_the_parts_of_an_iteration_add_up(monkeypatch):
    monkeypatch.setattr(profile, "SIDES", (25,))
    monkeypatch.setattr(profile, "TRANSFORMS", (4,))
    rows = list(measure_profile(1, "float32"))
    assert [(row["side"], row["num_transforms"], row["threads"]) for row in rows] == [(25, 4, 1)]
    times = rows[0]["milliseconds"]
    assert list(times) == ["iteration", *PARTS, "the rest"]
    assert times["iteration"] == pytest.approx(sum(times[part] for part in (*PARTS, "the rest")))
    lines = format_profile(rows).splitlines()
    assert lines[2].startswith("| side (px) | M | threads | iteration | forward |")
    assert len(lines) == 5
    assert lines[4].count("|") == lines[2].count("|")
