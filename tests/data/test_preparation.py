"""The protocol's preparation of images and masks, against torchvision's transforms."""

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf

from hta.data.preparation import clahe, prepare_mask, prepare_test_image, prepare_training_image
from hta.data.specs import benchmark_spec
from tests.data.trees import as_float, picture

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
    ("cifar", None): (
        (32, 32),
        lambda image: clahe(squashed(image, BICUBIC)),
        lambda image: squashed(image, BICUBIC),
        54,
    ),
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
