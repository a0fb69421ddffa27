"""The study of a model's own images."""

import pytest
import torch

from hta.studies.__main__ import main
from hta.studies.samples import radial_power, spectrum_ratios
from hta.training.samples import draw_samples


def test_power_of_a_wave_is_in_its_ring():
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


def test_a_model_is_measured(wall_model, capsys):
    argv = ["samples", "--input_name", str(wall_model.folder.path), "--num_samples", "4", "--threads", "1"]
    printed = []
    for seed in ("0", "0", "1"):
        assert main([*argv, "--seed", seed]) == 0
        printed.append(capsys.readouterr().out.splitlines())
    assert printed[0] == printed[1] != printed[2]
    assert [line.split(":")[0] for line in printed[0]] == [
        "reconstruction", "samples from the coarsest scale on", "samples from the finest scale on", "power spectrum",
    ]  # fmt: skip
    last = wall_model.pyramid.plan.num_scales - 1
    fine = torch.cat(list(draw_samples(wall_model.pyramid, 4, 0, gen_start_scale=last))).float()
    for images, line in ((wall_model.pyramid.reconstruct().float(), 0), (fine, 2)):
        rmse = (images - wall_model.training_images).square().mean().sqrt().item()
        assert f": RMSE {rmse:.3f} " in printed[0][line]
