"""The figures of a model's own images."""

import pytest
import torch

import hta
from hta.studies.samples import measure, radial_power, spectrum_ratios


def test_power_of_a_wave_lies_in_its_ring():
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(16) / 16).expand(1, 1, 16, 16)
    power = radial_power(wave)
    assert int(power.argmax()) == 2  # rings count from 1
    # Two of the ring's frequencies hold (256 / 2) ** 2 each.
    ring = sum(1 for y in range(-8, 8) for x in range(-8, 8) if round((x * x + y * y) ** 0.5) == 3)
    assert power[2].item() == pytest.approx(2 * 128**2 / ring, rel=1e-4)


def test_ratios_by_hand():
    image = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    # Powers of 4 and 16 times the image's: relative errors 3 and 15, logarithms 1 to 2.
    relative, logarithmic = spectrum_ratios(2 * image, image, 4 * image)
    assert relative == pytest.approx(5, rel=1e-3)
    assert logarithmic == pytest.approx(4, rel=1e-3)


def test_a_model_is_measured():
    image = torch.rand(32, 32, 3, generator=torch.Generator().manual_seed(0)).numpy()
    model = hta.train([image], hta.default_config(niter=3, max_size=32, threads=1))
    found = measure(model, 4, seed=0)
    assert found.pairwise_rmse > 0
    assert found.spectrum_ratio > 0
    assert found == measure(model, 4, seed=0)
