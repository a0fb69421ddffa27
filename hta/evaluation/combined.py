"""The score "combined": how far an image is from the training images, pixel by pixel, for each vote that it gets.

Votes tell whether the patches of an image look like those of the training images, and hardly where they are; the
squared error of the pixels tells whether the same is at the same place, and nothing about patches. Images of another
class differ in one or the other.
"""

import numpy as np
import torch
from torch import Tensor

HIGHEST_ERROR = 4.0
"""Of pixels in [-1, 1]."""

LEAST = 1e-4  # of shares and errors: half a gray level of 256


def squared_errors(images: Tensor, training_images: Tensor) -> np.ndarray:
    """Mean squared error of the pixels to the nearest training image, at the working size.

    Args:
        images: `(B, 3, h, w)` in [-1, 1], and `training_images`, `(N, 3, h, w)`, likewise.

    Returns:
        `(B,)` float64 in [0, 4]; higher = more anomalous.
    """
    return least_errors(images, training_images.to(images)).double().cpu().numpy()


def least_errors(images: Tensor, training_images: Tensor) -> Tensor:
    """The same as a tensor, of images on one device."""
    return torch.stack([(images - image).square().mean(dim=(1, 2, 3)) for image in training_images]).amin(dim=0)


def error_per_vote(shares: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Squared errors `(N,)` over vote shares `(N, S)`, their mean over the scales: `(N,)`, higher = more anomalous."""
    return np.maximum(errors, LEAST) / np.maximum(shares.mean(axis=-1), LEAST)
