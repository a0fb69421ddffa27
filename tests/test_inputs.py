"""What is said of test images that do not look like the training images."""

import numpy as np
import pytest

from hta.images import to_tensor
from hta.inputs import differences, traits_of


def flat(value, height=40, width=60):
    return np.full((height, width, 3), value, dtype=np.float32)


def coloured(value=0.5, height=40, width=60):
    image = flat(value, height, width)
    image[..., 0] += 0.05
    return image


def lines(images, *, gray=(True, True), training=(0.4, 0.6)):
    kinds = [flat if is_gray else coloured for is_gray in gray]
    tensors = to_tensor([kind(value, 20, 30) for kind, value in zip(kinds, training, strict=True)])
    return differences([traits_of(image) for image in images], tensors, (40, 60))


def test_images_like_the_training_images_are_not_spoken_of():
    assert lines([flat(0.5), flat(0.26), flat(0.74), flat(0.5, 80, 120), flat(0.5, 20, 30), flat(0.5, 100, 151)]) == []
    assert lines([coloured()], gray=(False, False)) == []
    assert lines([]) == []


@pytest.mark.parametrize(
    ("image", "gray", "words"),
    [
        (coloured(), True, "in colour, the training images gray"),
        (flat(0.5), False, "gray, the training images in colour"),
        (flat(0.24), True, "much darker"),
        (flat(0.76), True, "much brighter"),
        (flat(0.5, 18, 27), True, "smaller than the model's working size of 30 x 20 px"),
        (flat(0.5, 40, 62), True, "another aspect ratio"),  # by more than two per cent
        (flat(0.5, 40, 58), True, "another aspect ratio"),
        (flat(0.5, 60, 40), True, "another aspect ratio"),
    ],
)
def test_each_difference_is_one_line_with_its_count(image, gray, words):
    like = flat(0.5) if gray else coloured()
    (line,) = lines([like, image, image], gray=(gray, gray))
    assert line.startswith("2 of 3 test images are ")
    assert words in line


def test_where_some_training_images_are_gray_and_some_are_not_neither_is_spoken_of():
    for gray in ((True, False), (False, True)):
        assert lines([flat(0.5), coloured()], gray=gray) == []
