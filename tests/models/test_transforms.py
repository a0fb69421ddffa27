"""The sets of transformations, and the canvases whose windows they are, against a pixel by pixel definition."""

import pytest
import torch

from hta.models.canvas import plan_canvases
from hta.models.transforms import TRANSFORMATION_SETS, mirror_pad, shift_px
from hta.speed.explicit import transform, transformation_list
from tests.oracle import transform_by_pixels

SIZES = [(20, 27), (13, 11)]


def distinct_images(height, width):
    """(2, 3, height, width), float64, no value twice."""
    return torch.arange(6.0 * height * width, dtype=torch.float64).view(2, 3, height, width)


@pytest.mark.parametrize("count", [54, 42, 4])
def test_sets_have_distinct_members_in_the_order_of_the_paper(count):
    members = [(int(t.grayscale), int(t.flip), t.tx, t.ty, t.rotation) for t in TRANSFORMATION_SETS[count]]
    assert len(members) == len(set(members)) == count
    assert members == transformation_list(count)


def windows_of(plan, images):
    """Every window as the canvases show it, `(N, 3, h, w)`, by its class."""
    windows = {}
    for group, batch in zip(plan.groups, plan.render(images), strict=True):
        assert batch.shape == (len(group.canvases) * len(images), 3, *group.size)
        for canvas, drawn in zip(group.canvases, batch.split(len(images)), strict=True):
            for window in canvas.windows:
                rows, columns = window.valid(0)
                windows[window.index] = drawn[:, :, rows, columns]
    return windows


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [54, 42, 4])
def test_every_window_of_the_canvases_equals_its_transformation(count, size):
    images = distinct_images(*size)
    windows = windows_of(plan_canvases(*size, count), images)
    assert sorted(windows) == list(range(count))
    for index, transformation in enumerate(transformation_list(count)):
        for window, image in zip(windows[index], images, strict=True):
            wanted = torch.from_numpy(transform_by_pixels(image.numpy(), transformation))
            torch.testing.assert_close(window, wanted, rtol=0, atol=1e-9)
            if not transformation[0]:
                assert torch.isin(window, image).all()  # copies of pixels, to the last bit


def test_gradients_go_back_to_where_pixels_came_from():
    image = distinct_images(20, 27)[:1].requires_grad_()
    windows = windows_of(plan_canvases(20, 27, 54), image)
    for index, transformation in enumerate(transformation_list(54)):
        wanted = transform(image, transformation)
        weights = torch.rand(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        mine, theirs = (
            torch.autograd.grad((x * weights).sum(), image, retain_graph=True)[0] for x in (windows[index], wanted)
        )
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("count", "canvases"), [(54, 16), (42, 8), (4, 4)])
def test_canvases_are_as_few_and_as_small_as_they_can_be(count, canvases):
    plan = plan_canvases(20, 27, count)
    assert sum(len(group.canvases) for group in plan.groups) == canvases
    for group in plan.groups:
        assert (group.coverage(0).amax(dim=1) > 0).all()
        assert (group.coverage(0).amax(dim=2) > 0).all()


def test_the_mirror_repeats_the_edge_pixel():
    row = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    assert mirror_pad(row, 2, 1, 0, 0)[0, 0, 0].tolist() == [2, 1, 1, 2, 3, 4, 4]
    assert mirror_pad(row, 0, 0, 1, 1)[0, 0, :, 0].tolist() == [1, 1, 1]


def test_the_shift_is_fifteen_percent_rounded_down():
    assert [shift_px(side) for side in (6, 7, 11, 20, 25, 26, 27, 33, 64)] == [0, 1, 1, 3, 3, 3, 4, 4, 9]
    assert all(shift_px(side) == int(0.15 * side) for side in range(1, 2000))
