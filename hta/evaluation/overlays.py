"""Pictures for people: an image with its anomaly map over it and its mask outlined, large and as a thumbnail."""

import math
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from hta.errors import UserError
from hta.evaluation.maps import upsample_map
from hta.images import fit, resize, to_tensor, to_uint8

THUMBNAIL_SIDE = 88

_SHORT_SIDE, _LONG_SIDE = 256, 512
_COLORMAP = "inferno"  # perceptually uniform: equal steps of the map look equal
_FIRST_COLOUR = 0.25  # of the colour map: the ones before are so dark that they look like dirt in the image
_OPACITY = 0.75  # of the highest value; the lowest is transparent, so that a normal place looks like itself
_OUTLINE = (0, 255, 255)  # not a colour of the map
_FIRST, _LAST = 0.25, 1.25  # of a scale, in thresholds of a pixel: most of a good image is below, its worst place above
_LEAST_LIMIT = 0.02  # that a scale is made for: a factor of 1.7 in the probability of a patch


@dataclass(frozen=True)
class ColourScale:
    """Which values of an anomaly map get the first and the last colour: one for all images of a run.

    Attributes:
        low, high: 0 <= low < high <= 1; values outside take the nearest colour.
    """

    low: float
    high: float

    def __post_init__(self):
        if not 0 <= self.low < self.high <= 1:
            raise UserError(
                f"colour scale: {self.low} to {self.high} is not a range within [0, 1]; give 0 <= low < high"
            )

    @classmethod
    def around(cls, limit: float, usual: float = 0.0) -> "ColourScale":
        """Choose a run's scale, before the first test image, by the threshold of a pixel and a usual value, in [0, 1].

        A threshold made of views is often too high, since they differ more than good images do: what is well below it
        must be seen, too.
        """
        usual = min(usual, max(0.0, limit - _LEAST_LIMIT))
        above = max(limit - usual, _LEAST_LIMIT)
        return cls(usual + _FIRST * above, min(usual + _LAST * above, 1.0))

    def colours(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Colours in which the values of a map, of any shape, are laid over a picture.

        Returns:
            Colours, a last axis of 3 added, in [0, 255], and opacities in [0, 1], of the shape of `values`, which rise
            steeply at first: a defect of which only the middle is conspicuous must be seen.
        """
        position = np.clip((values - self.low) / (self.high - self.low), 0, 1)
        colours = matplotlib.colormaps[_COLORMAP](_FIRST_COLOUR + (1 - _FIRST_COLOUR) * position)
        return colours[..., :3] * 255, _OPACITY * (1 - (1 - position) ** 2)


def picture_of(image: np.ndarray) -> np.ndarray:
    """An image `(H, W, 3)`, float32 in [0, 1], at the size of its overlay, `(h, w, 3)` uint8.

    The longer side is at most 512 px; a small image is enlarged to a shorter side of 256 px.
    """
    short, long = sorted(image.shape[:2])
    size = fit(image.shape, min(_LONG_SIDE, max(long, _SHORT_SIDE * long / short)))
    return to_uint8(resize(to_tensor([image]), size))[0]


def draw_overlay(
    picture: np.ndarray, anomaly_map: np.ndarray, scale: ColourScale, mask: np.ndarray | None = None
) -> np.ndarray:
    """Lay a map over a picture of its image, more opaque the more anomalous, and outline the mask.

    Args:
        picture: `(h, w, 3)` uint8, as the result.
        anomaly_map: of any size, in [0, 1], higher = more anomalous.
        scale: of the run.
        mask: of any size, bool; True = anomalous; None without a mask.

    Raises:
        UserError: a value of the map is not finite.
    """
    if not np.isfinite(anomaly_map).all():
        raise UserError("the anomaly map of an image is not finite: the model is damaged, train it again")
    height, width = picture.shape[:2]
    colours, opacities = scale.colours(upsample_map(torch.from_numpy(anomaly_map), (height, width)).numpy())
    opacity = opacities[..., None]
    blended = np.rint(picture * (1 - opacity) + colours * opacity).astype(np.uint8)
    if mask is not None:
        blended[_outline(mask, (height, width))] = _OUTLINE
    return blended


def _outline(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels around a mask, `(h, w)` bool: outside of it, so that they hide nothing of it."""
    from scipy import ndimage

    # Maxima instead of a resize: a scratch of one pixel must not vanish from a smaller picture.
    shrunk = F.adaptive_max_pool2d(torch.from_numpy(mask)[None, None].float(), size)[0, 0].numpy() > 0
    return ndimage.binary_dilation(shrunk, iterations=math.ceil(min(size) / _SHORT_SIDE)) & ~shrunk


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """Shrink a picture, `(h, w, 3)` uint8, to a longer side of `THUMBNAIL_SIDE` px."""
    height, width = fit(picture.shape, THUMBNAIL_SIDE)
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))
