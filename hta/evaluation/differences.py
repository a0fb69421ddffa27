"""Whether test images look like the images that a model was trained on; where they do not, scores say little."""

import numpy as np
from torch import Tensor

from hta.images import is_gray

_ASPECT_TOLERANCE = 0.02
_BRIGHTNESS_TOLERANCE = 0.15
_GRAY_TOLERANCE = 1e-5  # of [-1, 1]: what resizing may make of equal channels


def has_other_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether the aspect ratios of two sizes, (height, width) each, differ by more than is lost in rounding."""
    ratio = (size[1] / size[0]) / (other[1] / other[0])
    return max(ratio, 1 / ratio) > 1 + _ASPECT_TOLERANCE


class InputComparison:
    """Counts, image by image, what plainly differs from the training images.

    Args:
        training_images: `(N, 3, h, w)` in [-1, 1], at the working size.
        image_size: (height, width) of the training images themselves.
    """

    def __init__(self, training_images: Tensor, image_size: tuple[int, int]):
        brightness = (training_images.double().mean(dim=(1, 2, 3)) + 1) / 2
        self._darkest, self._brightest = float(brightness.min()), float(brightness.max())
        self._image_size, self._working_size = image_size, tuple(training_images.shape[-2:])
        # Both, where some training images are gray and some are not.
        self._kinds = {
            bool((image.amax(dim=0) - image.amin(dim=0) <= _GRAY_TOLERANCE).all()) for image in training_images
        }
        self._images = self._other_colour = self._darker = self._brighter = self._smaller = self._other_aspect = 0

    def add(self, image: np.ndarray) -> None:
        """Take a test image, `(H, W, 3)` float32 in [0, 1]."""
        height, width = image.shape[:2]
        brightness = float(image.mean(dtype=np.float64))
        self._images += 1
        self._other_colour += is_gray(image) not in self._kinds
        self._darker += brightness < self._darkest - _BRIGHTNESS_TOLERANCE
        self._brighter += brightness > self._brightest + _BRIGHTNESS_TOLERANCE
        self._smaller += height < self._working_size[0] or width < self._working_size[1]
        self._other_aspect += has_other_aspect((height, width), self._image_size)

    def warnings(self) -> list[str]:
        """One line for each kind of difference, with how many images it concerns."""
        height, width = self._working_size
        trained_on, found = ("gray", "in colour") if True in self._kinds else ("in colour", "gray")
        kinds = [
            (self._other_colour, f"{found}, the training images {trained_on}"),
            (self._darker, f"much darker than the training images (mean brightness below {self._darkest:.2f})"),
            (self._brighter, f"much brighter than the training images (mean brightness above {self._brightest:.2f})"),
            (self._smaller, f"smaller than the model's working size of {width} x {height} px (width x height)"),
            (
                self._other_aspect,
                f"of another aspect ratio than the training images, and squeezed to {width} x {height} px",
            ),
        ]
        return [f"{count} of {self._images} test images are {text}" for count, text in kinds if count]
