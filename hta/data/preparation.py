"""Resampling and CLAHE of the benchmarks' images, as the protocol prescribes for each data set (paper, section 4).

Resampling is Pillow's, on 8-bit images: that is what the named filters mean on the images of these data sets (bicubic
has a = -0.5; all filters widen when shrinking). CLAHE comes after the resampling unless the geometry says otherwise.
"""

import numpy as np
from PIL import Image

from hta.data.specs import BenchmarkSpec


def prepare_training_image(image: np.ndarray, spec: BenchmarkSpec) -> np.ndarray:
    """Prepare an image to train on, `(H, W, 3)` to `(size, size, 3)`, both float32 in [0, 1]."""
    return _to_mean(_resampled_training_image(image, spec), spec)


def _resampled_training_image(image: np.ndarray, spec: BenchmarkSpec) -> np.ndarray:
    if spec.geometry != "fit_then_squash":
        resampled = resample(image, spec.geometry, spec.size, spec.train_filter)
        return clahe(resampled) if spec.train_clahe else resampled
    # A smaller image stays as it is. The paper names no filter for this step: bicubic, as in the squash that follows.
    picture = _to_picture(image)
    picture.thumbnail((spec.size, spec.size), Image.Resampling.BICUBIC, reducing_gap=None)
    fitted = _to_array(picture)
    return resample(clahe(fitted) if spec.train_clahe else fitted, "squash", spec.size, spec.train_filter)


def prepare_test_image(image: np.ndarray, spec: BenchmarkSpec) -> np.ndarray:
    """Prepare an image to score; the same shapes and ranges as `prepare_training_image`, never with CLAHE."""
    return _to_mean(resample(image, spec.geometry, spec.size, spec.test_filter), spec)


def _to_mean(image: np.ndarray, spec: BenchmarkSpec) -> np.ndarray:
    """Multiply an image so that its mean is `mean_intensity` (0: leave it), less what is cut off at white."""
    if not spec.mean_intensity:
        return image
    factor = spec.mean_intensity / np.maximum(image.mean(), np.finfo(np.float32).tiny)
    return np.clip(image * np.float32(factor), 0, 1)


def prepare_mask(mask: np.ndarray, spec: BenchmarkSpec) -> np.ndarray:
    """Resample a mask as its image is, by nearest neighbour: bool `(H, W)` to `(size, size)`, true on the defect."""
    return resample(mask, spec.geometry, spec.size, "nearest") > 0.5


def resample(image: np.ndarray, geometry: str, size: int, filter_name: str) -> np.ndarray:
    """Resize an image `(H, W, 3)` or `(H, W)`, values in [0, 1], to size x size px, cropped or squashed; float32."""
    picture, resampling = _to_picture(image), Image.Resampling[filter_name.upper()]
    if geometry != "crop":
        return _to_array(picture.resize((size, size), resampling))
    shorter = min(picture.size)
    width, height = (side * size // shorter for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    return _to_array(picture.resize((width, height), resampling).crop((left, top, left + size, top + size)))


def _to_picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(image * 255).astype(np.uint8))


def _to_array(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, dtype=np.float32) / 255


# --- CLAHE ---------------------------------------------------------------------------------------------------------

_CLAHE_TILES = 8
_CLAHE_CLIP = 2.0
_BINS = 256


def clahe(image: np.ndarray) -> np.ndarray:
    """Equalise local contrast on V of 8-bit HSV: 8 x 8 tiles, clip at twice the uniform bin height (paper, section 4).

    This is the usual 8-bit CLAHE. `skimage.exposure.equalize_adapthist` cannot replace it: it stretches the image's
    range first, takes the size of tiles instead of a grid, and clips at a fraction of the tile. Compared with OpenCV on
    noise and smooth images of nine sizes, HSV is equal, V differs by one level in at most 0.9 % of the pixels (ties),
    and a third of the colour values differ by one or two levels, because OpenCV truncates and this rounds.

    Takes an array (H, W, 3), uint8, or float in [0, 1], which is rounded to 8 bits first. Returns one of the same
    shape: uint8 for uint8, else float32 in [0, 1].
    """
    if image.dtype != np.uint8:
        return clahe(np.rint(image * 255).astype(np.uint8)).astype(np.float32) / 255
    hue, saturation, value = _rgb_to_hsv(image)
    return _hsv_to_rgb(hue, saturation, _equalise(value))


def _rgb_to_hsv(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Convert uint8 RGB (H, W, 3) to 8-bit HSV planes: H in [0, 180) by 2 degrees, S and V in [0, 255]."""
    red, green, blue = np.moveaxis(image.astype(np.int32), 2, 0)
    value = image.max(axis=2).astype(np.int32)
    span = value - image.min(axis=2)
    choices = [green - blue, blue - red + 2 * span]
    sector = np.select([value == red, value == green], choices, default=red - green + 4 * span)
    return _fixed_point_ratio(sector, span, 30) % 180, _fixed_point_ratio(span, value, 255), value


def _fixed_point_ratio(numerator: np.ndarray, denominator: np.ndarray, scale: int) -> np.ndarray:
    """Return scale * numerator / denominator, rounded, 0 for 0 / 0.

    The reciprocal has 12 binary places, as in the usual definition of 8-bit HSV, so that ties are rounded alike.
    """
    reciprocal = np.rint((scale << 12) / np.maximum(denominator, 1)).astype(np.int64)
    return (numerator * reciprocal + (1 << 11)) >> 12


def _hsv_to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Convert 8-bit HSV planes back to uint8 RGB (H, W, 3), rounded."""
    chroma = value * (saturation / 255)
    sector = hue / 30
    channels = []
    for offset in (5, 3, 1):  # red, green, blue: each is V less the chroma times a trapezoid over the six sectors
        phase = (sector + offset) % 6
        channels.append(value - chroma * np.clip(np.minimum(phase, 4 - phase), 0, 1))
    return np.rint(np.stack(channels, axis=2)).astype(np.uint8)


def _equalise(value: np.ndarray) -> np.ndarray:
    """Equalise one plane (H, W), integers in [0, 255]: the look-up tables of the four nearest tiles, interpolated."""
    height, width = value.shape
    padded = value
    # If one side does not fit the grid, both are mirrored at their end, a fitting one by a whole row of the grid: the
    # tiles are then those of OpenCV.
    if any(side % _CLAHE_TILES for side in value.shape):
        padded = np.pad(value, [(0, _CLAHE_TILES - side % _CLAHE_TILES) for side in value.shape], mode="reflect")
    tables = _tile_tables(padded)
    upper, lower, down = _tile_neighbours(height, padded.shape[0] // _CLAHE_TILES)
    left, right, across = _tile_neighbours(width, padded.shape[1] // _CLAHE_TILES)
    upper, lower, down = upper[:, None], lower[:, None], down[:, None]
    above = tables[upper, left, value] * (1 - across) + tables[upper, right, value] * across
    below = tables[lower, left, value] * (1 - across) + tables[lower, right, value] * across
    return np.rint(above * (1 - down) + below * down).astype(np.int32)


def _tile_tables(padded: np.ndarray) -> np.ndarray:
    """Return the look-up table of every tile, its clipped cumulative histogram as levels: (8, 8, 256)."""
    height, width = (side // _CLAHE_TILES for side in padded.shape)
    pixels = height * width
    tiles = padded.reshape(_CLAHE_TILES, height, _CLAHE_TILES, width).swapaxes(1, 2).reshape(-1, pixels)
    keys = tiles + _BINS * np.arange(len(tiles))[:, None]
    histograms = np.bincount(keys.ravel(), minlength=_BINS * len(tiles)).reshape(-1, _BINS)

    limit = max(1, int(_CLAHE_CLIP * pixels / _BINS))
    clipped = np.minimum(histograms, limit)
    share, rest = np.divmod((histograms - clipped).sum(axis=1, keepdims=True), _BINS)
    # The remainder is distributed by one count per bin, to every step-th bin from the first on.
    step = _BINS // np.maximum(rest, 1)
    bins = np.arange(_BINS)
    equal = clipped + share + ((bins % step == 0) & (bins // step < rest))
    levels = np.rint(equal.cumsum(axis=1) * (255 / pixels))
    return levels.reshape(_CLAHE_TILES, _CLAHE_TILES, _BINS)


def _tile_neighbours(side: int, tile: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for each pixel of a side, the tiles with centres before and after it, and the weight of the second."""
    position = np.arange(side) / tile - 0.5
    first = np.floor(position).astype(np.int64)
    return np.clip(first, 0, _CLAHE_TILES - 1), np.clip(first + 1, 0, _CLAHE_TILES - 1), position - first
