"""Frames that cannot show what the training images show: blank, saturated, or out of focus.

All transformations of a uniform patch look alike: every one gets 1 / M of the votes, more than many patches of a good
image get. A lens cap would pass for the most normal image of all. Such frames are told by their pixels instead.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hta.models.transforms import to_grayscale

# Chosen on the good images of FashionMNIST (T-shirt to coat), CIFAR10 (bird, cat), solar cells, magnetic tiles, papers,
# toy figures and the demo: relative to one training image, the contrast of 2,100 good ones goes down to 0.26 and their
# sharpness to 0.33; that of images blurred by a Gaussian of 5 % of their side is below 0.2.
_LEAST_CONTRAST, _LEAST_SHARPNESS = 0.2, 0.38
_CLIPPED, _MORE_CLIPPED = 0.98, 0.4  # values beyond are clipped; the share of such pixels that may be added


class FrameCheck:
    """Compares images with the training images by contrast, sharpness, and share of black and of white pixels.

    Args:
        training_images: `(N, 3, h, w)` in [-1, 1], at the working size.
    """

    def __init__(self, training_images: Tensor):
        contrast, sharpness, black, white = _statistics(training_images.cpu())
        self._contrast = _LEAST_CONTRAST * float(contrast.min())
        self._sharpness = _LEAST_SHARPNESS * float(sharpness.min())
        self._black, self._white = (_MORE_CLIPPED + float(share.max()) for share in (black, white))

    def faults(self, images: Tensor) -> list[str | None]:
        """What is wrong with each of `(B, 3, h, w)` images in [-1, 1] at the working size; None where nothing is."""
        contrast, sharpness, black, white = _statistics(images.cpu())
        found = {
            "nearly uniform": contrast < self._contrast,
            "black for the most part": black > self._black,
            "white for the most part": white > self._white,
            "out of focus": sharpness < self._sharpness,
        }
        return [next((name for name, has in found.items() if has[i]), None) for i in range(len(images))]


def fault_words(faults: Sequence[str | None]) -> list[str]:
    """One line about the images with faults, if there are any."""
    kinds = [fault for fault in faults if fault]
    parts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    one = f"{len(kinds)} of {len(faults)} images cannot show what the training images show"
    return [f"{one} ({parts}): rejected, and ranked above all others"] if kinds else []


def _statistics(images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Contrast, sharpness, and shares of black and of white pixels of `(B, 3, h, w)` images in [-1, 1]: `(B,)` each.

    Sharpness is the part of the contrast that averages over 3 x 3 pixels remove.
    """
    luma = to_grayscale(images)[:, :1]
    detail = luma - F.avg_pool2d(F.pad(luma, [1] * 4, mode="replicate"), 3, stride=1)
    contrast = luma.std(dim=(1, 2, 3))
    sharpness = detail.std(dim=(1, 2, 3)) / contrast.clamp(min=1e-6)
    black, white = (images.amax(dim=1) <= -_CLIPPED), (images.amin(dim=1) >= _CLIPPED)
    return contrast, sharpness, black.float().mean(dim=(1, 2)), white.float().mean(dim=(1, 2))
