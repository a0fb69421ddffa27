"""Frames that cannot show what the training images show: blank, saturated, out of focus, or of something else entirely.

All transformations of a uniform patch look alike: every one gets 1 / M of the votes, more than many patches of a good
image get. A lens cap would pass for the most normal image of all. Such frames are told by simple statistics instead.

The limits were chosen on the good images of FashionMNIST (T-shirt to coat), CIFAR10 (airplane, bird, cat), solar cells,
magnetic tiles, papers, toy figures and the demo. Relative to one training image, the contrast of 2,100 good images goes
down to 0.26 and their sharpness to 0.33; a Gaussian of 5 % of the side brings the sharpness below 0.25. Their detail
goes down to 0.15 (2,000 images of FashionMNIST, 10 classes); a uniform frame with a spot, an edge or faint noise has
less than 0.05.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hta.models.transforms import to_grayscale

_LEAST_CONTRAST, _LEAST_DETAIL, _LEAST_SHARPNESS = 0.2, 0.1, 0.3  # relative to the training images
_MOST_OCTAVES = 2.0  # by which the share of a band of sizes in the contrast may differ
_MORE_CLIPPED = 0.6  # share of black or white pixels that may be added
_BACKGROUND = 0.25  # share of black or white pixels that is a background
_LEAST_BACKGROUND = 0.5  # part of it that must be left
_COLOURED, _GRAY = 0.04, 0.005  # chroma, of values in [-1, 1]: more than a gray image has, less than one in colour
_CLIPPED, _NEARLY_CLIPPED = 0.95, 0.8
_DETAIL_SIDE = 5  # of the squares whose contrasts give the detail, pixels
_COLOUR_BINS = 12  # per axis of the histogram of the chroma
_LEAST_COMMON_COLOURS = 0.7  # good and defective parts have 0.8 in common, most other photographs less than 0.68
_BANDS = (3, 7, 15)  # sides of the averages between which the bands lie, pixels


class _Statistics(NamedTuple):
    """Of B images: `(B,)` each, `bands` `(B, 4)`."""

    contrast: Tensor  # standard deviation of the luma
    detail: Tensor  # upper quartile of the contrast within small squares, to which one spot adds nothing
    bands: Tensor  # base-2 logarithm of the parts of the contrast by size, finest first
    black: Tensor  # share of pixels
    white: Tensor
    saturated: Tensor  # share of white in what is not black: an object may have a black background
    nearly_black: Tensor
    nearly_white: Tensor
    chroma: Tensor  # standard deviation of the channels less their mean

    @property
    def sharpness(self) -> Tensor:
        return self.bands[:, 0].exp2()


class FrameCheck:
    """Compares images with the training images by simple statistics of all their pixels.

    Args:
        training_images: `(N, 3, h, w)` in [-1, 1], at the working size.
        same_colours: whether normal images have the colours of the training images, as parts do; not all classes do.
    """

    def __init__(self, training_images: Tensor, *, same_colours: bool = False):
        self._training = _statistics(training_images.cpu())
        self._colours = _colours(training_images.cpu()) if same_colours else None

    def faults(self, images: Tensor) -> list[str | None]:
        """What is wrong with each of `(B, 3, h, w)` images in [-1, 1] at the working size; None where nothing is."""
        found = self.kinds(images.cpu())
        return [next((name for name, has in found.items() if has[i]), None) for i in range(len(images))]

    def kinds(self, images: Tensor) -> dict[str, Tensor]:
        """Which images have which fault, by its name: `(B,)` bool each."""
        own, these = self._training, _statistics(images)
        distance = (these.bands[:, None] - own.bands).abs().amax(dim=2).amin(dim=1)
        gray, colour = own.chroma.max() <= _GRAY, own.chroma.min() >= _COLOURED
        found = {
            "nearly uniform": these.contrast < _LEAST_CONTRAST * own.contrast.min(),
            "black for the most part": these.black > own.black.max() + _MORE_CLIPPED,
            "white for the most part": these.white > own.white.max() + _MORE_CLIPPED,
            "saturated": these.saturated > own.saturated.max() + _MORE_CLIPPED,
            "out of focus": these.sharpness < _LEAST_SHARPNESS * own.sharpness.min(),
            "in colour, unlike the training images": these.chroma > torch.where(gray, _COLOURED, torch.inf),
            "gray, unlike the training images": these.chroma < torch.where(colour, _GRAY, 0.0),
            "without the black background": _lacks(these.nearly_black, own.black.min()),
            "without the white background": _lacks(these.nearly_white, own.white.min()),
            "uniform for the most part": these.detail < _LEAST_DETAIL * own.detail.min(),
            "of another texture": distance > _MOST_OCTAVES,
        }
        if self._colours is not None:
            common = torch.minimum(_colours(images)[:, None], self._colours).sum(dim=2).amax(dim=1)
            found["of other colours"] = common < _LEAST_COMMON_COLOURS
        return found


def fault_words(faults: Sequence[str | None], *, decided: bool = True) -> list[str]:
    """One line about the images with faults, if there are any; without a threshold, they are only ranked."""
    kinds = [fault for fault in faults if fault]
    parts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    one = f"{len(kinds)} of {len(faults)} images cannot show what the training images show"
    return [f"{one} ({parts}): {'rejected, and ' * decided}ranked above all others"] if kinds else []


def _colours(images: Tensor) -> Tensor:
    """Histograms of the chroma (R and B less the luma), smoothed, of `(B, 3, h, w)` images: `(B, bins)`, sum 1."""
    axes = (images[:, [0, 2]] - to_grayscale(images)[:, :2] + 1) / 2 * _COLOUR_BINS
    red, blue = axes.floor().clamp(0, _COLOUR_BINS - 1).long().flatten(2).unbind(dim=1)
    counts = images.new_zeros(images.shape[0], _COLOUR_BINS**2)
    counts.scatter_add_(1, red * _COLOUR_BINS + blue, torch.ones_like(red, dtype=counts.dtype))
    square = F.pad(counts.view(-1, 1, _COLOUR_BINS, _COLOUR_BINS), [1] * 4)
    smooth = F.avg_pool2d(square, 3, stride=1).flatten(1)
    return smooth / smooth.sum(dim=1, keepdim=True)


def _lacks(shares: Tensor, background: Tensor) -> Tensor:
    """Whether the training images have a background that images with these shares of it lack."""
    return shares < torch.where(background >= _BACKGROUND, _LEAST_BACKGROUND * background, 0.0)


def _statistics(images: Tensor) -> _Statistics:
    """The statistics of `(B, 3, h, w)` images in [-1, 1]."""
    luma = to_grayscale(images)[:, :1]
    averages = [
        luma,
        *(F.avg_pool2d(F.pad(luma, [side // 2] * 4, mode="replicate"), side, stride=1) for side in _BANDS),
    ]
    parts = [finer - coarser for finer, coarser in pairwise(averages)] + averages[-1:]
    contrast = luma.std(dim=(1, 2, 3))
    mean, square = (F.avg_pool2d(power, _DETAIL_SIDE, stride=2) for power in (luma, luma**2))
    detail = (square - mean**2).clamp(min=0).sqrt().flatten(1).quantile(0.75, dim=1)
    bands = torch.stack([part.std(dim=(1, 2, 3)) for part in parts], dim=1) / contrast.clamp(min=1e-6).unsqueeze(1)
    low, high = images.amin(dim=1), images.amax(dim=1)
    clipped = high <= -_CLIPPED, low >= _CLIPPED, high <= -_NEARLY_CLIPPED, low >= _NEARLY_CLIPPED
    chroma = (images - images.mean(dim=1, keepdim=True)).std(dim=(2, 3)).mean(dim=1)
    black, white, nearly_black, nearly_white = (has.float().mean(dim=(1, 2)) for has in clipped)
    octaves = bands.clamp(min=1e-6).log2()
    saturated = white / (1 - black).clamp(min=1e-6)
    return _Statistics(contrast, detail, octaves, black, white, saturated, nearly_black, nearly_white, chroma)
