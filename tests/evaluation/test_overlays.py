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
    ("limit", "low", "high"), [(0.4, 0.1, 0.5), (0.9, 0.225, 1.0), (1.0, 0.25, 1.0), (0.0, 0.005, 0.025)]
)
def test_the_scale_of_a_run_surrounds_the_threshold_of_a_pixel(limit, low, high):
    scale = ColourScale.around(limit)
    assert (scale.low, scale.high) == (pytest.approx(low), pytest.approx(high))


def test_the_scale_begins_above_a_usual_value_if_the_threshold_does():
    scale = ColourScale.around(0.7, 0.5)
    assert (scale.low, scale.high) == (pytest.approx(0.55), pytest.approx(0.75))
    assert ColourScale.around(0.4, 0.5).low < 0.4
    assert ColourScale.around(1.0, 0.5) == ColourScale(0.625, 1.0)


@pytest.mark.parametrize("limit", [0.2, 0.416, 0.683, 1.0])
def test_a_map_can_be_seen_from_half_of_the_threshold_on_and_a_good_image_looks_like_itself(limit):
    opacities = ColourScale.around(limit).colours(np.array([0.1, 0.25, 0.5, 1.0]) * limit)[1]
    assert opacities[:2].tolist() == [0, 0]
    assert opacities[2] > 0.3
    assert opacities[3] > 0.7


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_map_that_is_not_finite_is_not_drawn(value):
    anomaly_map = np.zeros((8, 8), dtype=np.float32)
    anomaly_map[3, 3] = value
    with pytest.raises(UserError, match="not finite"):
        draw_overlay(np.zeros((16, 16, 3), np.uint8), anomaly_map, SCALE)


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
