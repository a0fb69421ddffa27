"""Views of training images: seeded, in range, gray where they were gray, and as strong as asked."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hta.models.views import ALL_CHANGES, MOUNTED_CHANGES, Changes, ViewRule, draw_views, view_rule
from tests.helpers import random_images


def smooth_images(num_images=1, channels=3):
    """`(N, 3, 24, 30)` in [-0.6, 0.6], without a jump: none of their pixels is clamped."""
    coarse = 0.6 * random_images((4, 5), num_images, dtype=torch.float32)[:, :channels]
    return F.interpolate(coarse, size=(24, 30), mode="bilinear", align_corners=True).expand(-1, 3, -1, -1)


def spot_positions(shape, row, column, count, changes):
    """(x, y) in pixels from the centre, `(count, 2)`, of a spot of 4 x 4 px at (row, column) in views of an image."""
    image = torch.full((1, 3, *shape), -1.0)
    image[..., row - 2 : row + 2, column - 2 : column + 2] = 1.0
    weights = draw_views(image, count, 1.0, 0, changes).mean(dim=1) + 1
    rows, columns = torch.meshgrid(*(torch.arange(side) - (side - 1) / 2 for side in shape), indexing="ij")
    return np.array([[float((w * place).sum() / w.sum()) for place in (columns, rows)] for w in weights])


def test_strength_0_returns_the_images_in_turn():
    images = smooth_images(3)
    torch.testing.assert_close(draw_views(images, 7, 0.0, seed=1), images[[0, 1, 2, 0, 1, 2, 0]], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("recognised", "kept"),
    [([1.0, 1.0, 0.5, 1.0], [0, 1, 2, 3]), ([0.49, 3.0, 0.5, 0.0], [1, 2]), ([0.1, 0.2, 0.0, 0.4], [4, 5])],
)
def test_views_are_of_the_mirror_images_that_the_model_recognises_by_a_mounted_camera(recognised, kept):
    images = smooth_images(2)
    mirrors = torch.cat([images.flip(-1), images.flip(-2)])

    def recognition(asked):
        assert torch.equal(asked, mirrors)
        return torch.tensor(recognised)

    sources = torch.cat([mirrors, images])[kept]
    views = ViewRule(2.0, mirrored=True).draw(images, 5, 1, recognition)
    assert torch.equal(views, draw_views(sources, 5, 2.0, 1, MOUNTED_CHANGES))
    plain = ViewRule(1.0, mirrored=False).draw(images, 5, 1, None)
    assert torch.equal(plain, draw_views(images, 5, 1.0, seed=1))
    assert (MOUNTED_CHANGES.turn, MOUNTED_CHANGES.bend, MOUNTED_CHANGES.shift) == (0, 0, ALL_CHANGES.shift)


def test_only_surfaces_whose_model_knows_no_flip_are_mirrored():
    assert view_rule("defect", 4).mirrored
    for task, num_transforms in (("defect", 42), ("defect", 54), ("class", 4), ("class", 42)):
        assert not view_rule(task, num_transforms).mirrored


def test_the_seed_alone_decides_and_the_global_random_states_are_left_alone():
    images = smooth_images(2)
    first = draw_views(images, 4, 1.0, seed=3)
    torch.manual_seed(99)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert torch.equal(draw_views(images, 4, 1.0, seed=3), first)
    assert not torch.equal(draw_views(images, 4, 1.0, seed=4), first)
    assert not torch.equal(first[0], first[2])  # two views of one image
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


@pytest.mark.parametrize("strength", [0.5, 1.0, 20.0])
def test_values_stay_in_range_and_the_images_as_they_were(strength):
    images = random_images((17, 20), 2, dtype=torch.float32)
    kept = images.clone()
    views = draw_views(images, 6, strength, seed=0)
    assert (views.abs() <= 1).all()  # NaN is not
    assert torch.equal(images, kept)


def test_gray_stays_gray_and_colour_does_not_become_gray():
    gray, colour = (draw_views(smooth_images(2, channels), 5, 1.0, seed=0) for channels in (1, 3))
    assert torch.equal(gray, gray[:, :1].expand(-1, 3, -1, -1))
    assert ((colour[:, 0] - colour[:, 1]).abs().amax(dim=(1, 2)) > 0.05).all()


@pytest.mark.parametrize("name", ["shift", "zoom", "turn", "bend", "brightness", "contrast", "noise"])
def test_each_change_changes_the_image(name):
    value = {"turn": 5.0}.get(name, 0.05)
    images = smooth_images()
    views = draw_views(images, 10, 1.0, 0, Changes(**{name: value}))
    assert (views - images).abs().amax(dim=(1, 2, 3)).median() > 5e-3
    torch.testing.assert_close(draw_views(images, 10, 2.0, 0, Changes(**{name: value / 2})), views)


def test_brightness_is_added_and_contrast_is_about_the_mean_within_their_ranges():
    images = smooth_images()
    added = draw_views(images, 200, 1.0, 0, Changes(brightness=0.2)) - images
    levels = added.mean(dim=(1, 2, 3))
    torch.testing.assert_close(added, levels.view(-1, 1, 1, 1).expand_as(added), rtol=0, atol=1e-4)
    assert -0.2 <= levels.min() < -0.15 < 0.15 < levels.max() <= 0.2
    views = draw_views(images, 200, 1.0, 0, Changes(contrast=0.3))
    torch.testing.assert_close(views.mean(dim=(1, 2, 3)), images.mean().expand(200), rtol=0, atol=1e-4)
    factors = views.std(dim=(1, 2, 3)) / images.std()
    assert 0.7 - 1e-3 <= factors.min() < 0.75 < 1.25 < factors.max() <= 1.3 + 1e-3


def test_a_shift_is_a_part_of_each_side():
    x, y = np.abs(spot_positions((40, 80), 20, 40, 100, Changes(shift=0.1))).max(axis=0)
    assert 0.9 * 8 < x <= 8.1  # a tenth of 80 px
    assert 0.9 * 4 < y <= 4.1


@pytest.mark.parametrize("shape", [(60, 60), (40, 80), (80, 40)])
def test_a_turn_keeps_the_distance_to_the_centre_on_rectangles_too(shape):
    places = spot_positions(shape, shape[0] // 2, shape[1] // 2 + 14, 40, Changes(turn=30.0))
    np.testing.assert_allclose(np.hypot(*places.T), 14, rtol=0, atol=0.3)
    angles = np.degrees(np.arctan2(places[:, 1], places[:, 0]))
    assert -31 <= angles.min() < -25 < 25 < angles.max() <= 31
