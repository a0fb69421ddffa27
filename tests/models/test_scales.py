"""Scale plans by hand arithmetic and against the explicit definition, and the image pyramid."""

import itertools

import numpy as np
import pytest
import torch

from hta.config import ModelConfig
from hta.errors import UserError
from hta.models.scales import guarded_ceil, image_pyramid, network_width, plan_of
from tests import oracle


def squares(*sides):
    return tuple((side, side) for side in sides)


def plan_scales(height, width, **settings):
    return plan_of(ModelConfig(**settings), (height, width))


@pytest.mark.parametrize(
    ("size", "settings", "sizes"),
    [
        ((128, 128), {}, squares(25, 32, 40, 51, 64)),
        ((450, 450), {}, squares(25, 31, 37, 44, 54, 64)),
        ((100, 200), {}, ((25, 50), (29, 57), (32, 64))),
        ((200, 100), {}, ((50, 25), (57, 29), (64, 32))),
        ((128, 128), {"min_size": 100, "max_size": 100}, squares(100)),  # equal bounds mean one scale
        ((40, 40), {"min_size": 40, "max_size": 40}, squares(40)),
        # Not enlarged. ceil(log(25/40) / log(0.75)) + 1 = 3 steps, none skipped; ratio (25/40) ** (1/3) = 0.855.
        ((40, 40), {}, squares(25, 30, 35, 40)),
    ],
)
def test_plans_by_hand(size, settings, sizes):
    plan = plan_scales(*size, **settings)
    assert plan.sizes == sizes
    assert plan.num_scales == len(plan.widths) == len(sizes)
    assert plan.working_size == sizes[-1]


def test_widths_double_every_four_scales_up_to_a_limit():
    assert [network_width(n, 32) for n in (0, 3, 4, 7, 8, 11, 12, 40)] == [32, 32, 64, 64, 128, 128, 128, 128]
    assert [network_width(n, 100) for n in (0, 3, 4, 40)] == [100, 100, 128, 128]
    assert {network_width(n, nfc) for n in (0, 4, 40) for nfc in (128, 200)} == {128}
    assert plan_scales(450, 450).widths == (32, 32, 32, 32, 64, 64)
    assert plan_scales(450, 450, nfc=3).widths == (3, 3, 3, 3, 6, 6)


def test_float_noise_adds_no_pixel():
    values = (25.0000000001, 24.9999999999, 25.001, 24.1)
    assert [guarded_ceil(value) for value in values] == [25, 25, 26, 25]


@pytest.mark.parametrize("settings", [{}, {"min_size": 14, "max_size": 22}, {"scale_factor": 0.9}, {"min_size": 11}])
def test_plans_equal_the_definition_over_many_sizes(settings):
    names = {"scale_factor": "factor"}
    explicit = {names.get(name, name): value for name, value in settings.items()}
    outcomes = set()
    for size in itertools.product((11, 18, 25, 26, 40, 63, 64, 65, 99, 128, 301, 450, 1024), repeat=2):
        try:
            expected = tuple(oracle.scale_plan(*size, **explicit))
        except ValueError:
            with pytest.raises(UserError):
                plan_scales(*size, **settings)
            outcomes.add("refused")
            continue
        plan = plan_scales(*size, **settings)
        assert plan.sizes == expected, size
        assert min(plan.sizes[0]) == settings.get("min_size", 25)
        assert len(plan.widths) == plan.num_scales
        outcomes.add("planned")
    assert outcomes == {"planned", "refused"}


@pytest.mark.parametrize(
    ("size", "settings", "words"),
    [
        ((5, 5), {}, ("5 x 5", "--min_size", "larger image")),
        ((60, 400), {}, ("400 x 60", "--min_size", "--max_size", "crop")),
        ((24, 64), {}, ("64 x 24", "--min_size")),
        ((64, 64), {"scale_factor": 0.9999999}, ("--scale_factor 0.9999999", "at most 64", "give a smaller one")),
        ((64, 64), {"scale_factor": 0.986}, ("gives 69 scales",)),
        ((25, 20_000_000), {"max_size": 20_000_000}, ("--max_size 20000000", "above 16777216 pixels")),
        ((64, 64), {"min_size": 11, "num_layer": 6}, ("--min_size 11", "13 px")),
    ],
)
def test_an_image_that_does_not_fit_is_refused_with_a_remedy(size, settings, words):
    with pytest.raises(UserError) as caught:
        plan_scales(*size, **settings)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_every_level_is_resized_directly_from_the_working_size():
    images = torch.rand(2, 3, 48, 61, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    sizes = ((15, 19), (22, 28), (33, 42))
    working = oracle.resize_image(images.numpy(), sizes[-1])
    levels = image_pyramid(images, sizes)
    assert [tuple(level.shape) for level in levels] == [(2, 3, *size) for size in sizes]
    for level, size in zip(levels, sizes, strict=True):
        np.testing.assert_allclose(level.numpy(), oracle.resize_image(working, size), rtol=0, atol=1e-9)
    assert levels[0].abs().max() <= 1
