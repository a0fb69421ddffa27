"""Contrast equalisation against its definition and against values of OpenCV."""

import numpy as np
import pytest

from hta.data.preparation import clahe
from hta.images import is_gray
from tests.data.trees import picture, smooth


def clahe_by_definition(value):
    """CLAHE of a plane whose sides are multiples of 8, one pixel and one tile at a time."""
    rows, columns = value.shape[0] // 8, value.shape[1] // 8
    tables = {}
    for i in range(8):
        for j in range(8):
            tile = value[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].ravel().tolist()
            counts = [tile.count(level) for level in range(256)]
            limit = max(1, int(2.0 * len(tile) / 256))
            excess = sum(max(0, count - limit) for count in counts)
            counts = [min(count, limit) + excess // 256 for count in counts]
            rest, level = excess % 256, 0
            step = max(1, 256 // rest) if rest else 1
            while rest and level < 256:
                counts[level] += 1
                rest, level = rest - 1, level + step
            tables[i, j] = [round(sum(counts[: level + 1]) * 255 / len(tile)) for level in range(256)]
    result = np.zeros(value.shape)
    for y in range(value.shape[0]):
        for x in range(value.shape[1]):
            across, down = x / columns - 0.5, y / rows - 0.5
            for i in (int(np.floor(down)), int(np.floor(down)) + 1):
                for j in (int(np.floor(across)), int(np.floor(across)) + 1):
                    weight = (1 - abs(down - i)) * (1 - abs(across - j))
                    result[y, x] += weight * tables[min(max(i, 0), 7), min(max(j, 0), 7)][value[y, x]]
    return result


# Made once with OpenCV 5.0 (createCLAHE(2.0, (8, 8)) on V of COLOR_RGB2HSV) from the images that the tests build.
REFERENCE_GRAY = [
    [64, 128, 96, 128, 96, 128, 96, 128, 96, 128],
    [191, 255, 223, 255, 223, 255, 223, 255, 223, 255],
    [160, 192, 176, 192, 176, 192, 176, 192, 176, 192],
    [191, 255, 223, 255, 223, 255, 223, 255, 223, 255],
    [160, 192, 176, 192, 176, 192, 176, 192, 176, 192],
    [191, 255, 223, 255, 223, 255, 223, 255, 223, 255],
    [160, 192, 176, 192, 176, 192, 176, 192, 176, 192],
    [191, 255, 223, 255, 223, 255, 223, 255, 223, 255],
    [223, 255, 239, 255, 239, 255, 239, 255, 239, 255],
]
REFERENCE_COLOUR = [  # every fourth row, every third column
    [[128, 32, 96], [137, 255, 101], [65, 223, 47], [52, 255, 37]],
    [[160, 13, 38], [160, 101, 152], [126, 147, 207], [113, 191, 24]],
    [[255, 13, 37], [255, 97, 255], [192, 137, 105], [155, 160, 17]],
]


class TestClahe:
    @pytest.mark.parametrize("shape", [(32, 48), (48, 24), (128, 136)])
    def test_gray_equals_the_definition(self, shape):
        value = np.random.default_rng(0).integers(60, 180, shape) if shape[0] < 100 else smooth(shape)[..., 0]
        result = clahe(np.repeat(value[..., None].astype(np.uint8), 3, axis=2))
        assert is_gray(result)
        assert np.abs(result[..., 0] - clahe_by_definition(value)).max() <= 0.5 + 1e-9

    def test_reference_values_with_padding(self):
        # A 9 x 10 ramp, padded to 16 x 16 by mirroring: tiles of 4 pixels, so levels are quarters, mixed.
        value = (np.arange(90).reshape(9, 10) * 2 + 20).astype(np.uint8)
        result = clahe(np.repeat(value[..., None], 3, axis=2))[..., 0]
        np.testing.assert_array_equal(result, REFERENCE_GRAY)

    def test_reference_values_in_colour(self):
        y, x = np.mgrid[:9, :10]
        image = np.stack([y * 20 + 40, x * 22 + 10, (y * x * 7 + 30) % 256], axis=2).astype(np.uint8)
        np.testing.assert_allclose(clahe(image)[::4, ::3], REFERENCE_COLOUR, atol=1)

    def test_hue_and_saturation_stay(self):
        image = np.clip(smooth((64, 64)).astype(int), 30, 225).astype(np.uint8)
        before, after = (x.max(axis=2, keepdims=True) / np.maximum(x, 1) for x in (image.astype(float), clahe(image)))
        assert np.abs(before - after).max() < 0.15
        assert np.abs(clahe(image).max(axis=2).astype(int) - image.max(axis=2)).max() > 10

    def test_float_goes_by_8_bits(self):
        image = smooth((32, 40))
        result = clahe(image.astype(np.float32) / 255)
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, clahe(image).astype(np.float32) / 255)

    def test_input_stays_as_it_was(self):
        image = picture(0)
        clahe(image)
        np.testing.assert_array_equal(image, picture(0))
