"""Blank, saturated and blurred frames against real photographs; pictures of the same kind are left alone."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage import data

from hta.evaluation.frames import FrameCheck, fault_words
from hta.images import resize, to_tensor
from hta.models.views import draw_views


def photograph(name):
    """Five crops of a photograph, `(5, 3, 64, 64)`: to train on the first."""
    pixels = np.atleast_3d(getattr(data, name)()).astype(np.float32) / 255
    crops = [
        pixels[top : top + 160, left : left + 160]
        for top, left in ((100, 100), (96, 120), (120, 90), (90, 96), (110, 110))
    ]
    return resize(to_tensor([np.broadcast_to(crop, (160, 160, 3)) for crop in crops]), (64, 64))


def frames_like(image):
    """Frames, by what is wrong with them, at the size of a `(1, 3, h, w)` image."""
    side = image.shape[-1]
    mean, ramp = image.mean(dim=(2, 3), keepdim=True), torch.linspace(-0.02, 0.02, side).expand(1, 3, side, side)
    noise = 0.01 * torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    changes = torch.cat([0 * image, ramp, noise.expand_as(image)])
    spot, edge = mean.expand_as(image).clone(), mean.expand_as(image).clone()
    spot[..., :4, :4], edge[..., : side // 12] = 1, -1
    uniform = [(value + changes).clamp(-1, 1) for value in (mean, -1.0, 0.0, 1.0)]
    blurred = [
        torch.from_numpy(gaussian_filter(image.numpy(), (0, 0, part * side, part * side))) for part in (0.05, 0.1)
    ]
    return {
        "nearly uniform": torch.cat(uniform),
        "uniform for the most part": torch.cat([spot, edge]),
        "out of focus": torch.cat(blurred),
        "white for the most part": torch.where(torch.arange(side) < side // 8, image, torch.ones(())),
        "black for the most part": torch.where(torch.arange(side) < side // 8, image, -torch.ones(())),
    }


@pytest.mark.parametrize("name", ["brick", "grass", "gravel", "coffee", "astronaut", "chelsea"])
def test_frames_without_content_are_found_and_real_pictures_are_not(name):
    crops = photograph(name)
    check = FrameCheck(crops[:1])
    for fault, frames in frames_like(crops[:1]).items():
        found = check.faults(frames)
        assert None not in found
        assert fault in found
    assert check.faults(crops) == [None] * 5
    assert check.faults(draw_views(crops[:1], 40, 2.0, 0)) == [None] * 40


def test_statistics_by_hand():
    """Columns of black and white have contrast 1; averages over three of them have a third of it, opposite in sign."""
    stripes = torch.ones(1, 3, 12, 12)
    stripes[..., ::2] = -1
    check = FrameCheck(0.5 * stripes)  # contrast 0.5, not clipped
    faint, clipped = 0.09 * stripes, torch.where(torch.arange(12) < 8, torch.ones(()), 0.5 * stripes)
    assert check.faults(torch.cat([0.9 * stripes, 0.11 * stripes, faint, clipped])) == [
        None,
        None,
        "nearly uniform",
        "white for the most part",
    ]
    assert FrameCheck(torch.cat([0.5 * stripes, 0.4 * stripes])).faults(faint) == [None]  # the faintest counts


def test_a_saturated_object_on_black_is_found():
    object_on_black = torch.full((1, 3, 32, 32), -1.0)
    object_on_black[..., 8:24, 8:24] = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    saturated = torch.where(object_on_black > -1, 1, object_on_black)
    saturated[..., 8:24:4, 8:24:2] = 0.5  # some texture is left
    check = FrameCheck(object_on_black)
    assert check.faults(torch.cat([object_on_black, saturated])) == [None, "saturated"]


@pytest.mark.parametrize("name", ["coffee", "astronaut", "chelsea", "rocket"])
def test_photographs_in_other_colours_are_found_where_colours_are_the_same(name):
    others = torch.cat(
        [photograph(other)[:1] for other in ("coffee", "astronaut", "chelsea", "rocket") if other != name]
    )
    crops = photograph(name)
    checks = [FrameCheck(crops[:1], same_colours=same) for same in (True, False)]
    found, left = (check.faults(others) for check in checks)
    assert None not in found
    assert "of other colours" in found
    assert "of other colours" not in left
    assert checks[0].faults(torch.cat([crops, draw_views(crops[:1], 20, 1.5, 0)])) == [None] * 25


def test_words_count_each_kind():
    assert fault_words([None, None]) == []
    assert fault_words(["out of focus"], decided=False)[0].endswith("(1 out of focus): ranked above all others")
    (line,) = fault_words(["out of focus", None, "nearly uniform", "out of focus"])
    assert line.startswith("3 of 4 images")
    assert "2 out of focus, 1 nearly uniform" in line
