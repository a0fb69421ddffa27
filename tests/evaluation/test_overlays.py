"""Overlays: sizes, colours and outlines by hand."""

import numpy as np
import pytest

from hta.errors import UserError
from hta.evaluation.overlays import ColourScale, draw_overlay, picture_of

SCALE = ColourScale(0.2, 0.6)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 64), (256, 256)),
        ((100, 400), (128, 512)),
        ((300, 400), (300, 400)),
        ((1000, 2000), (256, 512)),
        ((2000, 1000), (512, 256)),
        ((1, 5000), (1, 512)),
    ],
)
def test_sizes(size, expected):
    assert picture_of(np.zeros((*size, 3), dtype=np.float32)).shape == (*expected, 3)


@pytest.mark.parametrize(
    ("peaks", "low", "high"),
    [
        (np.linspace(0.3, 0.7, 101), 0.4, 0.75),  # 0.68 + 0.18 would be 0.86: a span above 0.35
        (np.linspace(0.4, 0.6, 101), 0.45, 0.7),  # 0.59 + 0.09, a span of 0.23
        (np.linspace(0.3, 0.54, 101), 0.36, 0.636),  # 0.528 + 0.108, a span of 0.276
        (np.full(9, 0.5), 0.5, 0.75),
        (np.zeros(9), 0.0, 0.25),
        (np.full(9, 0.9), 0.75, 1.0),
        (np.ones(2), 0.75, 1.0),
        (np.linspace(0.7, 0.9, 101), 0.75, 1.0),
    ],
)
def test_the_scale_of_a_model_begins_at_what_is_normal_and_ends_above_it(peaks, low, high):
    scale = ColourScale.of_normal_peaks(peaks)
    assert (scale.low, scale.high) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize("shift", [-0.05, 0, 0.1])
def test_a_scale_from_views_that_are_a_little_off_leaves_good_images_calm_and_shows_defects(shift):
    good, defects = np.linspace(0.3, 0.6, 101), np.linspace(0.6, 0.8, 101)  # peaks
    scale = ColourScale.of_normal_peaks(good + shift)
    opacities = [scale.colours(peaks)[1] for peaks in (good, defects)]
    assert np.median(opacities[0]) < 0.5
    assert np.median(opacities[1]) > 0.5
    assert opacities[1].min() > 0.3


def test_values_lie_on_the_scale():
    _, opacities = SCALE.colours(np.array([0, 0.2, 0.3, 0.6, 1]))
    np.testing.assert_allclose(opacities, 0.75 * (1 - (1 - np.array([0, 0, 0.25, 1, 1])) ** 2))


@pytest.mark.parametrize("bounds", [(0.5, 0.5), (0.6, 0.2), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 1)])
def test_a_scale_that_is_no_range_is_refused(bounds):
    with pytest.raises(UserError, match="colour scale"):
        ColourScale(*bounds)


def test_a_normal_place_looks_like_itself_and_others_do_not():
    picture = picture_of(np.random.default_rng(0).random((300, 300, 3), dtype=np.float32))
    anomaly_map = np.full((30, 30), 0.2, dtype=np.float32)
    np.testing.assert_array_equal(draw_overlay(picture, anomaly_map, SCALE), picture)
    anomaly_map[:, 15:] = 0.9
    overlay = draw_overlay(picture, anomaly_map, SCALE)
    np.testing.assert_array_equal(overlay[:, :120], picture[:, :120])
    # the last colour of the map, three quarters opaque
    expected = np.rint(picture[:, 180:] * 0.25 + 0.75 * np.array([0.988362, 0.998364, 0.644924]) * 255)
    assert np.abs(overlay[:, 180:] - expected).max() <= 1


def test_a_thin_mask_keeps_its_outline_in_a_smaller_picture():
    picture = picture_of(np.zeros((1000, 1000, 3), dtype=np.float32))
    mask = np.zeros((1000, 1000), dtype=bool)
    mask[:, 500] = True
    overlay = draw_overlay(picture, np.zeros((20, 20), dtype=np.float32), SCALE, mask)
    outlined = (overlay == (0, 255, 255)).all(axis=2)
    assert outlined[100].nonzero()[0].tolist() == [254, 255, 257, 258]
