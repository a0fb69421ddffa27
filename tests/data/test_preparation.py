"""The protocol's preparation, against torchvision's transforms, and CLAHE, against its definition and OpenCV."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf

from hta.data.preparation import clahe, prepare_mask, prepare_test_image, prepare_training_image
from hta.data.specs import benchmark_spec
from hta.images import is_gray
from tests.data.trees import as_float, picture, smooth

BICUBIC, BILINEAR, LANCZOS = InterpolationMode.BICUBIC, InterpolationMode.BILINEAR, InterpolationMode.LANCZOS


def squashed(image: Image.Image, mode: InterpolationMode, side: int = 128) -> np.ndarray:
    return as_float(tvf.resize(image, [side, side], mode))


def mvtec_row(image: Image.Image) -> np.ndarray:
    return as_float(tvf.center_crop(tvf.resize(image, 128, LANCZOS), [128, 128]))


def paris_training_row(image: Image.Image) -> np.ndarray:
    longer = max(image.size)
    fitted = tvf.resize(image, [450 * image.size[1] // longer, 450 * image.size[0] // longer], BICUBIC)
    equalised = Image.fromarray(np.rint(clahe(as_float(fitted)) * 255).astype(np.uint8))
    return squashed(equalised, BICUBIC, 450)


GRAY_ROW = ((28, 28), lambda image: squashed(image, BILINEAR), lambda image: squashed(image, BICUBIC), 42)
TABLE = {
    ("cifar", None): ((32, 32), lambda x: clahe(squashed(x, BICUBIC)), lambda x: squashed(x, BICUBIC), 54),
    ("mnist", None): GRAY_ROW,
    ("fashionmnist", None): GRAY_ROW,
    ("paris", None): ((600, 900), paris_training_row, lambda image: squashed(image, BILINEAR, 450), 54),
    ("mvtec", 54): ((256, 320), lambda image: clahe(mvtec_row(image)), mvtec_row, 54),
    ("mvtec", 4): ((256, 320), mvtec_row, mvtec_row, 4),
    ("defects", None): ((256, 320), mvtec_row, mvtec_row, 4),
}


@pytest.mark.parametrize("row", TABLE)
def test_preparation_follows_the_table(row):
    (height, width), training_row, test_row, num_transforms = TABLE[row]
    spec = benchmark_spec(*row)
    pixels = picture(3, height, width)
    image = pixels.astype(np.float32) / 255

    trained, tested = prepare_training_image(image, spec), prepare_test_image(image, spec)

    np.testing.assert_array_equal(trained, training_row(Image.fromarray(pixels)))
    np.testing.assert_array_equal(tested, test_row(Image.fromarray(pixels)))
    assert trained.dtype == tested.dtype == np.float32
    assert spec.num_transforms == num_transforms
    assert spec.is_gray == (row[0] in ("mnist", "fashionmnist"))


def test_all_images_can_be_given_one_mean():
    spec = replace(benchmark_spec("mvtec", 54), mean_intensity=0.25)
    image = smooth((160, 128)).astype(np.float32) / 255
    for prepare in (prepare_training_image, prepare_test_image):
        plain = prepare(image, benchmark_spec("mvtec", 54))
        bright, dark = prepare(image, spec), prepare(image / 2, replace(spec, train_clahe=False))
        assert bright.dtype == np.float32
        assert bright.mean() == pytest.approx(0.25, abs=1e-5)
        assert dark.mean() == pytest.approx(0.25, abs=1e-5)
        np.testing.assert_allclose(bright, plain * (0.25 / plain.mean()), atol=1e-6)
    black = np.zeros((128, 128, 3), dtype=np.float32)
    assert not prepare_test_image(black, spec).any()
    assert prepare_test_image(image, replace(spec, mean_intensity=0.9)).max() == 1  # what would be brighter is white


def test_a_small_image_of_paris_is_not_enlarged_before_clahe():
    image = picture(1, 300, 200).astype(np.float32) / 255
    expected = Image.fromarray(np.rint(clahe(image) * 255).astype(np.uint8)).resize((450, 450), Image.BICUBIC)
    np.testing.assert_array_equal(prepare_training_image(image, benchmark_spec("paris")), as_float(expected))


def test_a_mask_is_cropped_like_its_image():
    mask = np.zeros((128, 256), bool)
    mask[10:20, 64 + 30 : 64 + 50] = True  # the centre crop begins at column 64
    expected = np.zeros((128, 128), bool)
    expected[10:20, 30:50] = True
    np.testing.assert_array_equal(prepare_mask(mask, benchmark_spec("mvtec")), expected)


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
RAMP = (np.arange(90).reshape(9, 10) * 2 + 20).astype(np.uint8)
_ROWS = [(64, 128, 96), *[(191, 255, 223), (160, 192, 176)] * 3, (191, 255, 223), (223, 255, 239)]
REFERENCE_RAMP = [[first, *(second, third) * 4, second] for first, second, third in _ROWS]
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
        np.testing.assert_array_equal(clahe(np.repeat(RAMP[..., None], 3, axis=2))[..., 0], REFERENCE_RAMP)

    def test_reference_values_in_colour(self):
        y, x = np.mgrid[:9, :10]
        image = np.stack([y * 20 + 40, x * 22 + 10, (y * x * 7 + 30) % 256], axis=2).astype(np.uint8)
        np.testing.assert_allclose(clahe(image)[::4, ::3], REFERENCE_COLOUR, atol=1)

    def test_hue_and_saturation_stay(self):
        image = np.clip(smooth((64, 64)).astype(int), 30, 225).astype(np.uint8)
        before, after = (x.max(axis=2, keepdims=True) / np.maximum(x, 1) for x in (image.astype(float), clahe(image)))
        assert np.abs(before - after).max() < 0.15
        assert np.abs(clahe(image).max(axis=2).astype(int) - image.max(axis=2)).max() > 10

    def test_float_goes_by_8_bits_and_the_input_stays_as_it_was(self):
        image = picture(0)
        result = clahe(image.astype(np.float32) / 255)
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, clahe(image).astype(np.float32) / 255)
        np.testing.assert_array_equal(image, picture(0))
