"""Views of training images: seeded, in range, gray where they were gray, and as strong as asked."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hta.evaluation.views import ALL_CHANGES, MOUNTED_CHANGES, Changes, ViewRule, draw_views, view_rule
from tests.helpers import random_images


def smooth_images(shape=(24, 30), num_images=2, channels=3):
    """`(N, 3, *shape)` in [-0.6, 0.6], without a jump: none of their pixels is clamped."""
    coarse = 0.6 * random_images((4, 5), num_images, dtype=torch.float32)[:, :channels]
    return F.interpolate(coarse, size=shape, mode="bilinear", align_corners=True).expand(-1, 3, -1, -1)


def centre_of_mass(image):
    """(x, y) in pixels from the centre, of an image that is dark, -1, but for a spot."""
    weight = image.mean(dim=0) + 1
    rows, columns = torch.meshgrid(*(torch.arange(side) - (side - 1) / 2 for side in weight.shape), indexing="ij")
    return (float((weight * columns).sum() / weight.sum()), float((weight * rows).sum() / weight.sum()))


def test_strength_0_returns_the_images_in_turn():
    images = smooth_images(num_images=3)
    views = draw_views(images, 7, 0.0, seed=1)
    assert views.shape == (7, 3, 24, 30)
    torch.testing.assert_close(views, images[[0, 1, 2, 0, 1, 2, 0]], rtol=0, atol=1e-4)


def test_mirrored_views_are_of_both_mirror_images_in_turn():
    images = smooth_images(num_images=2)
    views = ViewRule(0.0, mirrored=True).draw(images, 5, 1, recognising(1.0, 1.0, 0.5, 1.0))
    expected = [images[0].flip(-1), images[1].flip(-1), images[0].flip(-2), images[1].flip(-2), images[0].flip(-1)]
    torch.testing.assert_close(views, torch.stack(expected), rtol=0, atol=1e-4)
    plain = ViewRule(1.0, mirrored=False).draw(images, 5, 1, recognising())
    assert torch.equal(plain, draw_views(images, 5, 1.0, seed=1))


def test_views_of_mirror_images_are_of_a_mounted_camera():
    images = smooth_images(num_images=1)
    views = ViewRule(2.0, mirrored=True).draw(images, 4, 1, recognising(1.0, 1.0))
    mirrors = torch.cat([images.flip(-1), images.flip(-2)])
    assert torch.equal(views, draw_views(mirrors, 4, 2.0, 1, MOUNTED_CHANGES))
    assert (MOUNTED_CHANGES.turn, MOUNTED_CHANGES.bend, MOUNTED_CHANGES.shift) == (0, 0, ALL_CHANGES.shift)


def recognising(*values):
    """A model that recognises the mirror images so well, in their order; it is asked for these alone."""

    def recognition(mirrors):
        assert len(mirrors) == len(values)
        return torch.tensor(values)

    return recognition


def test_mirror_images_that_the_model_mistakes_are_left_out():
    images = smooth_images(num_images=2)
    rule = ViewRule(0.0, mirrored=True)
    views = rule.draw(images, 3, 1, recognising(0.49, 3.0, 0.5, 0.0))
    torch.testing.assert_close(
        views, torch.stack([images[1].flip(-1), images[0].flip(-2), images[1].flip(-1)]), rtol=0, atol=1e-4
    )
    views = rule.draw(images, 2, 1, recognising(0.1, 0.2, 0.0, 0.4))
    torch.testing.assert_close(views, images, rtol=0, atol=1e-4)


def test_only_surfaces_whose_model_knows_no_flip_are_mirrored():
    assert view_rule("defect", 4).mirrored
    for task, num_transforms in (("defect", 42), ("defect", 54), ("class", 4), ("class", 42)):
        assert not view_rule(task, num_transforms).mirrored


def test_views_are_of_their_images_in_turn_at_any_strength():
    dark_and_bright = torch.stack([torch.full((3, 12, 12), -0.8), torch.full((3, 12, 12), 0.8)])
    means = draw_views(dark_and_bright, 5, 1.0, seed=0).mean(dim=(1, 2, 3))
    assert (means > 0).tolist() == [False, True, False, True, False]


def test_the_seed_alone_decides():
    images = smooth_images()
    first = draw_views(images, 4, 1.0, seed=3)
    torch.manual_seed(99)
    assert torch.equal(draw_views(images, 4, 1.0, seed=3), first)
    assert not torch.equal(draw_views(images, 4, 1.0, seed=4), first)
    assert not torch.equal(first[0], first[2])  # two views of one image


def test_the_global_random_states_are_left_alone():
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 (the state that must not move)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    draw_views(smooth_images(), 3, 1.0, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


@pytest.mark.parametrize("strength", [0.5, 1.0, 20.0])
def test_values_stay_in_range_and_the_images_as_they_were(strength):
    images = random_images((17, 20), 2, dtype=torch.float32)
    kept = images.clone()
    views = draw_views(images, 6, strength, seed=0)
    assert torch.isfinite(views).all()
    assert views.min() >= -1
    assert views.max() <= 1
    assert torch.equal(images, kept)


def test_gray_stays_gray_and_colour_does_not_become_gray():
    gray = draw_views(smooth_images(channels=1), 5, 1.0, seed=0)
    assert torch.equal(gray[:, 0], gray[:, 1])
    assert torch.equal(gray[:, 0], gray[:, 2])
    colour = draw_views(smooth_images(), 5, 1.0, seed=0)
    assert ((colour[:, 0] - colour[:, 1]).abs().amax(dim=(1, 2)) > 0.05).all()


def test_more_strength_changes_more():
    images = smooth_images(num_images=1)
    change = [float((draw_views(images, 30, s, seed=0) - images).abs().mean()) for s in (0.0, 0.3, 1.0, 3.0)]
    assert change[0] < 1e-4
    assert change[0] < 0.5 * change[1] < 0.5 * change[2] < 0.5 * change[3]


@pytest.mark.parametrize("name", ["shift", "zoom", "turn", "bend", "brightness", "contrast", "noise"])
def test_each_change_changes_the_image(name):
    value = {"turn": 5.0}.get(name, 0.05)
    images = smooth_images(num_images=1)
    views = draw_views(images, 10, 1.0, 0, Changes(**{name: value}))
    assert (views - images).abs().amax(dim=(1, 2, 3)).median() > 5e-3
    torch.testing.assert_close(draw_views(images, 10, 2.0, 0, Changes(**{name: value / 2})), views)


def test_brightness_is_added_within_its_range():
    images = smooth_images(num_images=1)
    added = draw_views(images, 200, 1.0, 0, Changes(brightness=0.2)) - images
    levels = added.mean(dim=(1, 2, 3))
    torch.testing.assert_close(added, levels.view(-1, 1, 1, 1).expand_as(added), rtol=0, atol=1e-4)
    assert -0.2 <= levels.min() < -0.15
    assert 0.15 < levels.max() <= 0.2


def test_contrast_is_about_the_mean():
    images = smooth_images(num_images=1)
    views = draw_views(images, 200, 1.0, 0, Changes(contrast=0.3))
    torch.testing.assert_close(views.mean(dim=(1, 2, 3)), images.mean().expand(200), rtol=0, atol=1e-4)
    factors = views.std(dim=(1, 2, 3)) / images.std()
    assert 0.7 - 1e-3 <= factors.min() < 0.75
    assert 1.25 < factors.max() <= 1.3 + 1e-3


def test_a_shift_is_a_part_of_each_side():
    images = torch.full((1, 3, 40, 80), -1.0)
    images[:, :, 18:22, 38:42] = 1.0
    places = np.array([centre_of_mass(view) for view in draw_views(images, 100, 1.0, 0, Changes(shift=0.1))])
    assert 0.9 * 8 < np.abs(places[:, 0]).max() <= 8.1  # a tenth of 80 px
    assert 0.9 * 4 < np.abs(places[:, 1]).max() <= 4.1


@pytest.mark.parametrize("shape", [(60, 60), (40, 80), (80, 40)])
def test_a_turn_keeps_the_distance_to_the_centre_on_rectangles_too(shape):
    radius = 14
    images = torch.full((1, 3, *shape), -1.0)
    row, column = shape[0] // 2, shape[1] // 2 + radius
    images[:, :, row - 2 : row + 2, column - 2 : column + 2] = 1.0
    places = np.array([centre_of_mass(view) for view in draw_views(images, 40, 1.0, 0, Changes(turn=30.0))])
    np.testing.assert_allclose(np.hypot(*places.T), radius, rtol=0, atol=0.3)
    angles = np.degrees(np.arctan2(places[:, 1], places[:, 0]))
    assert 25 < angles.max() <= 31
    assert -31 <= angles.min() < -25
