"""JPEG pictures of images: small ones, to be held in memory and embedded in a page, and large ones."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from hta.evaluation.overlays import ColourScale, draw_overlay

THUMBNAIL_SIDE = 88
_QUALITY = 70  # noise, the worst picture, then takes 5 kB: 2,000 pairs stay below 30 MB, base64 included
_LARGE_QUALITY = 90


class Thumbnails(NamedTuple):
    """JPEG files, longer side `THUMBNAIL_SIDE` px.

    Attributes:
        image: the image itself.
        overlay: the image with its map and mask; None where there is no map.
    """

    image: bytes
    overlay: bytes | None


def make_thumbnails(
    picture: np.ndarray,
    anomaly_map: np.ndarray | None = None,
    scale: ColourScale | None = None,
    mask: np.ndarray | None = None,
) -> Thumbnails:
    """Make the thumbnails of an image.

    Args:
        picture: `(h, w, 3)` uint8.
        anomaly_map: of any size, in [0, 1], higher = more anomalous; None for no overlay.
        scale: of the run; needed with a map.
        mask: of any size, bool; True = anomalous.
    """
    small = _shrunk(picture)
    if anomaly_map is None:
        return Thumbnails(_jpeg(small), None)
    # Drawn again, not made smaller: the outline of a mask is a line of one pixel.
    return Thumbnails(_jpeg(small), _jpeg(draw_overlay(small, anomaly_map, scale, mask)))


def large_jpeg(picture: np.ndarray) -> bytes:
    """A picture `(h, w, 3)` uint8 at its own size, to be looked at closely."""
    return _jpeg(picture, _LARGE_QUALITY)


def _shrunk(picture: np.ndarray) -> np.ndarray:
    factor = THUMBNAIL_SIDE / max(picture.shape[:2])
    height, width = (max(1, round(side * factor)) for side in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def _jpeg(pixels: np.ndarray, quality: int = _QUALITY) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="JPEG", quality=quality)
    return content.getvalue()
