"""The transformations and their sets against an independent, pixel by pixel definition."""

import pytest
import torch

from hta.models.canvas import plan_canvases
from hta.models.transforms import TRANSFORMATION_SETS, Transformation, apply_transformation, mirror_pad, shift_px
from tests import oracle

SIZES = [(20, 27), (13, 11)]
EXACT = dict(rtol=0, atol=1e-9)


def distinct_image(height, width):
    """(1, 3, height, width), float64, no value twice."""
    return torch.arange(3.0 * height * width, dtype=torch.float64).view(1, 3, height, width)


def as_tuple(t: Transformation):
    return (int(t.grayscale), int(t.flip), t.tx, t.ty, t.rotation)


def expected(image, t: Transformation):
    return torch.from_numpy(oracle.transform_by_pixels(image[0].numpy(), as_tuple(t)))[None]


@pytest.mark.parametrize("count", [54, 42, 4])
def test_sets_have_distinct_members_in_the_stated_order(count):
    members = [as_tuple(t) for t in TRANSFORMATION_SETS[count]]
    assert len(members) == len(set(members)) == count
    assert members == oracle.transformation_list(count)


def test_the_order_of_the_sets_by_hand():
    full = [as_tuple(t) for t in TRANSFORMATION_SETS[54]]
    assert full[:5] == [(0, 0, 0, 0, 0), (0, 0, 0, 0, 1), (0, 0, 0, 0, 2), (0, 0, 0, 0, 3), (0, 0, 0, 1, 0)]
    assert full[31:35] == [(0, 1, 1, 1, 3), (0, 0, -1, -1, 0), (0, 0, 1, -1, 0), (0, 0, 0, -1, 0)]
    assert full[38:43] == [(0, 0, -1, 1, 0), (0, 0, -1, 0, 0), (0, 1, -1, 1, 0), (0, 1, -1, 0, 0), (1, 0, 0, 0, 0)]
    assert full[50:] == [(1, 0, 1, 0, 0), (1, 0, -1, 0, 0), (1, 0, 0, 1, 0), (1, 0, 0, -1, 0)]
    assert set(TRANSFORMATION_SETS) == {54, 42, 4}
    assert [as_tuple(t) for t in TRANSFORMATION_SETS[42]] == full[:42]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("transformation", TRANSFORMATION_SETS[54], ids=str)
def test_every_transformation_equals_its_definition(transformation, size):
    image = distinct_image(*size)
    result = apply_transformation(image, transformation)
    torch.testing.assert_close(result, expected(image, transformation), **EXACT)
    if not transformation.grayscale:
        # A copy of pixels, to the last bit: nothing is blurred or rounded.
        assert torch.isin(result, image).all()


@pytest.mark.parametrize("size", SIZES)
def test_no_two_transformations_give_the_same_image(size):
    image = distinct_image(*size)
    results = {tuple(apply_transformation(image, t).flatten().tolist()) for t in TRANSFORMATION_SETS[54]}
    assert len(results) == 54


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [54, 42, 4])
def test_every_window_of_the_canvases_equals_its_transformation(count, size):
    images = torch.cat([distinct_image(*size), -distinct_image(*size).flip(1)])
    plan = plan_canvases(*size, count)
    seen = []
    for group, batch in zip(plan.groups, plan.render(images), strict=True):
        assert batch.shape == (len(group.canvases) * len(images), 3, *group.size)
        for number, canvas in enumerate(group.canvases):
            drawn = batch[number * len(images) : (number + 1) * len(images)]
            for window in canvas.windows:
                rows, columns = window.valid(0)
                for one, source in zip(drawn[:, :, rows, columns], images, strict=True):
                    wanted = expected(source[None], TRANSFORMATION_SETS[count][window.index])[0]
                    torch.testing.assert_close(one, wanted, **EXACT)
                seen.append(window.index)
    assert sorted(seen) == list(range(count))


@pytest.mark.parametrize(("count", "canvases"), [(54, 16), (42, 8), (4, 4)])
def test_canvases_are_as_few_as_they_can_be(count, canvases):
    assert sum(len(group.canvases) for group in plan_canvases(20, 27, count).groups) == canvases


def test_no_canvas_has_a_row_or_column_that_no_window_needs():
    for group in plan_canvases(20, 27, 54).groups:
        assert (group.coverage(0).amax(dim=(1)) > 0).all()
        assert (group.coverage(0).amax(dim=(2)) > 0).all()


@pytest.mark.parametrize("size", SIZES)
def test_flips_and_rotations_have_exact_inverses(size):
    image = distinct_image(*size)
    flip = Transformation(False, True, 0, 0, 0)
    assert torch.equal(apply_transformation(apply_transformation(image, flip), flip), image)
    for k in range(4):
        turned = apply_transformation(image, Transformation(False, False, 0, 0, k))
        assert turned.shape[-2:] == (size if k % 2 == 0 else size[::-1])
        assert torch.equal(apply_transformation(turned, Transformation(False, False, 0, 0, -k % 4)), image)
        # A flip comes before the turn, so the inverse turns back before it flips back.
        both = apply_transformation(image, Transformation(False, True, 0, 0, k))
        back = apply_transformation(both, Transformation(False, False, 0, 0, -k % 4))
        assert torch.equal(apply_transformation(back, flip), image)


def test_directions_by_hand():
    image = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).expand(1, 3, 2, 3)
    quarter = apply_transformation(image, Transformation(False, False, 0, 0, 1))
    assert quarter[0, 0].tolist() == [[3, 6], [2, 5], [1, 4]]  # counter-clockwise
    row = torch.arange(1.0, 21.0).expand(1, 3, 1, 20)  # 15 % of 20 px are 3 px
    right = apply_transformation(row, Transformation(False, False, 1, 0, 0))
    assert right[0, 0, 0].tolist() == [3, 2, 1, *range(1, 18)]
    left = apply_transformation(row, Transformation(False, False, -1, 0, 0))
    assert left[0, 0, 0].tolist() == [*range(4, 21), 20, 19, 18]
    down = apply_transformation(row.transpose(2, 3), Transformation(False, False, 0, 1, 0))
    assert down[0, 0, :, 0].tolist() == [3, 2, 1, *range(1, 18)]
    colour = torch.tensor([100.0, 10.0, 1.0]).view(1, 3, 1, 1)
    gray = apply_transformation(colour, Transformation(True, False, 0, 0, 0))
    torch.testing.assert_close(gray, torch.full((1, 3, 1, 1), 29.9 + 5.87 + 0.114))


def test_the_mirror_repeats_the_edge_pixel():
    row = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    assert mirror_pad(row, 2, 1, 0, 0)[0, 0, 0].tolist() == [2, 1, 1, 2, 3, 4, 4]
    assert mirror_pad(row, 0, 0, 1, 1)[0, 0, :, 0].tolist() == [1, 1, 1]


def test_the_shift_is_fifteen_percent_rounded_down():
    assert [shift_px(side) for side in (6, 7, 11, 20, 25, 26, 27, 33, 34, 64, 100)] == [
        0,
        1,
        1,
        3,
        3,
        3,
        4,
        4,
        5,
        9,
        15,
    ]
    assert all(shift_px(side) == int(0.15 * side) for side in range(1, 2000))


def test_gradients_go_back_to_where_pixels_came_from():
    image = distinct_image(20, 27).requires_grad_()
    for t in TRANSFORMATION_SETS[54]:
        weights = torch.randn(expected(image.detach(), t).shape, generator=torch.Generator().manual_seed(1)).double()
        (mine,) = torch.autograd.grad((apply_transformation(image, t) * weights).sum(), image)
        (theirs,) = torch.autograd.grad((oracle.transform(image, as_tuple(t)) * weights).sum(), image)
        torch.testing.assert_close(mine, theirs, **EXACT)
