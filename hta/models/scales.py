"""The scales of a pyramid: a pure function of the image size and the settings (paper, section 3.2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hta.config import MAX_WIDTH, ModelConfig
from hta.errors import UserError
from hta.images import resize

_MOST_SCALES = 64
_MOST_PIXELS = 1 << 24  # of the working size; the networks would take hundreds of GiB there


@dataclass(frozen=True)
class ScalePlan:
    """Sizes and widths of all scales; scale 0 is the coarsest.

    Attributes:
        sizes: (height, width) of every scale, pixels; the last is the working size.
        widths: channels of the networks of every scale.
    """

    sizes: tuple[tuple[int, int], ...]
    widths: tuple[int, ...]

    @property
    def num_scales(self) -> int:
        """The number of scales S."""
        return len(self.sizes)

    @property
    def working_size(self) -> tuple[int, int]:
        """(height, width) of the finest scale; every image is resized to it first."""
        return self.sizes[-1]

    def describe(self) -> str:
        """Return the sizes, width x height, as one line of text, coarsest first."""
        return " ".join(f"{h}" if h == w else f"{w}x{h}" for h, w in self.sizes)


def guarded_ceil(value: float) -> int:
    """Round up, but treat a value within 1e-6 of an integer as that integer (rounding errors must not add a pixel)."""
    nearest = round(value)
    return nearest if abs(value - nearest) < 1e-6 else math.ceil(value)


def network_width(scale: int, nfc: int) -> int:
    """Channels of the networks of a scale: doubled every four scales, at most 128."""
    return min(nfc * 2 ** (scale // 4), MAX_WIDTH)


def _num_scales(height: int, width: int, min_size: int, max_size: int, scale_factor: float) -> int:
    """The number of scales S: steps down to min_size, minus those above max_size (paper, section 3.2)."""
    if min_size == max_size:
        return 1
    longest = max(height, width)
    steps = guarded_ceil(math.log(min_size / min(height, width)) / math.log(scale_factor)) + 1
    skipped = guarded_ceil(math.log(min(max_size, longest) / longest) / math.log(scale_factor))
    # Rounding height and width up can leave an image exactly at min_size with -1 steps.
    return max(steps - skipped, 0) + 1


def plan_of(config: ModelConfig, image_size: tuple[int, int]) -> ScalePlan:
    """Plan the scales of a model (paper, section 3.2); the factor is adjusted so that the coarsest is exactly min_size.

    Args:
        config: sizes, factor and widths of the model.
        image_size: (height, width) of the training images, pixels.

    Raises:
        UserError: a side of the working image is below min_size, a scale is smaller than the receptive field, or the
            scales are too many or too large.
    """
    height, width = image_size
    min_size, max_size, field = config.min_size, config.max_size, config.receptive_field
    shrink = min(max_size / max(height, width), 1.0)
    working = guarded_ceil(height * shrink), guarded_ceil(width * shrink)
    if min(height, width) < min_size:
        raise UserError(f"image of {width} x {height} px: a side is below --min_size {min_size}; give a larger image")
    if min(working) < min_size:
        needed = math.ceil(min_size * max(height, width) / min(height, width))
        raise UserError(
            f"image of {width} x {height} px: at --max_size {max_size} it is {working[1]} x {working[0]} px, below "
            f"--min_size {min_size}; give --max_size {needed} or more, or crop the longer side"
        )
    if working[0] * working[1] > _MOST_PIXELS:
        size = f"a working size of {working[1]} x {working[0]} px"
        raise UserError(f"--max_size {max_size}: gives {size}, above {_MOST_PIXELS} pixels; give a smaller one")
    last = _num_scales(height, width, min_size, max_size, config.scale_factor) - 1
    if last >= _MOST_SCALES:
        found = f"gives {last + 1} scales, where at most {_MOST_SCALES} make sense"
        raise UserError(f"--scale_factor {config.scale_factor}: {found}; give a smaller one, such as 0.75")
    factor = (min_size / min(working)) ** (1 / last) if last else 1.0
    sizes = tuple(
        (guarded_ceil(working[0] * factor ** (last - n)), guarded_ceil(working[1] * factor ** (last - n)))
        for n in range(last + 1)
    )
    smallest = min(min(size) for size in sizes)
    if smallest < field:
        raise UserError(
            f"--min_size {min_size}: the coarsest scale would be {smallest} px, below the patch size of {field} px; "
            f"give --min_size {field} or more"
        )
    return ScalePlan(sizes, tuple(network_width(n, config.nfc) for n in range(last + 1)))


def image_pyramid(images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Resize `(N, 3, H, W)` images in [-1, 1] to every scale, each directly from the working size, the last of them."""
    working = resize(images, sizes[-1])
    return [resize(working, size) for size in sizes[:-1]] + [working]
