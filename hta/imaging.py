"""Image files and pixels: the project's only reader, writer and resizer, and its contrast equalisation.

Three forms of an image are used. A file is read into an array (H, W, 3), float32 in [0, 1]; arrays are stacked into a
tensor (N, 3, H, W), float32 in [-1, 1], which is what the networks see; pictures are written as uint8 or uint16.
"""

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from hta.errors import UserError
from hta.files import write_atomically

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
"""Suffixes, in lower case, by which the files of a folder are taken for images."""

ALPHA_BACKGROUND = 1.0
"""What shows through the transparent pixels of an image: white, as on a page."""

# Only these are tried on a file, whatever its suffix: some of Pillow's other formats start programs (EPS).
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
_FORMATS_TEXT = "PNG, JPEG, TIFF, BMP or WebP"

# All that Pillow raises on damaged files; its decoders do not translate the errors of the modules they use.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    EOFError,
    LookupError,
    ArithmeticError,
    struct.error,
    zlib.error,
)

_CLAHE_TILES = 8
_CLAHE_CLIP = 2.0
_BINS = 256


def read_image(path: str | Path, background: float = ALPHA_BACKGROUND) -> np.ndarray:
    """Read a PNG, JPEG, TIFF, BMP or WebP file of any common pixel format, upright by its EXIF orientation.

    Gray, 1-bit, palette, CMYK and RGB images, with or without transparency, are read at their 8 bits, 16-bit gray
    ones at 16; 16-bit colour is cut to its high byte, which is all that Pillow gives. Of several frames the first is
    read.

    Args:
        path: The file.
        background: Gray value in [0, 1] on which transparent pixels are composited.

    Returns:
        Array (H, W, 3), float32 in [0, 1].

    Raises:
        UserError: The file is missing, no file, no image of these formats, damaged or too large.
    """
    with _opened(path) as image:
        frames = getattr(image, "n_frames", 1)
        pixels = _from_pil(image, background, str(path))
    if frames > 1:
        logger.info("%s: only the first of its %d frames is used", path, frames)
    return pixels


def image_size(path: str | Path) -> tuple[int, int]:
    """Tell the upright size of an image file from its header, without decoding the pixels.

    Args:
        path: The file, of a format that `read_image` reads.

    Returns:
        (H, W), as `read_image` would give it.

    Raises:
        UserError: The file is missing, no image or too large.
    """
    with _opened(path) as image:
        width, height = image.size
        # Pillow turns TIFF headers itself, other formats only when their pixels are transposed.
        turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (width, height) if turned else (height, width)


def is_gray(array: np.ndarray) -> bool:
    """Tell whether every pixel of an image (H, W, 3), or of a stack (..., 3), has exactly R = G = B."""
    return bool((array[..., :1] == array[..., 1:]).all())


def to_array(image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """Bring an image in any of the accepted forms to the project's array form.

    Args:
        image: A path, a PIL image, or an array (H, W), (H, W, 1) or (H, W, 3): uint8, uint16, bool or float in [0, 1].

    Returns:
        Array (H, W, 3), float32 in [0, 1], which shares no memory with the argument.

    Raises:
        UserError: The file cannot be read, or shape, type or range of the array is another one.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        try:
            return _from_pil(image, ALPHA_BACKGROUND, "image")
        except _DECODE_ERRORS as error:
            raise UserError(f"image: a PIL image that cannot be decoded ({_brief(error)}); give another one") from error
    if isinstance(image, np.ndarray):
        return _from_numpy(image, "image")
    raise UserError(f"image: {type(image).__name__} is not accepted; give a path, a PIL image or a numpy array")


def to_tensor(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    """Stack images of one size for the networks.

    Args:
        arrays: N arrays (H, W, 3), float in [0, 1], or one array (N, H, W, 3).

    Returns:
        Tensor (N, 3, H, W), float32 in [-1, 1], contiguous.

    Raises:
        UserError: There is no image, or the sizes differ.
    """
    if len(arrays) == 0:
        raise UserError("images: none given; give at least one")
    for number, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            raise UserError(
                f"images: number {number} is {_size_text(array.shape)} px, the first {_size_text(arrays[0].shape)} px; "
                "resize them to one size"
            )
    stack = np.stack(arrays).astype(np.float32, copy=False).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(stack * 2 - 1))


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Turn network images into 8-bit pictures, rounded to the nearest level.

    Args:
        images: Tensor (N, 3, H, W) or (3, H, W), floating point, clamped to [-1, 1] here.

    Returns:
        Array (N, H, W, 3) or (H, W, 3), uint8.
    """
    levels = (images.detach().float().clamp(-1, 1) + 1) * 127.5
    return levels.round().to(torch.uint8).movedim(-3, -1).cpu().contiguous().numpy()


def resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize images to an exact size: bicubic (a = -0.5), antialiased when shrinking, clamped before and after.

    Args:
        images: Tensor (N, C, H, W), floating point.
        size: Target (height, width) in px.

    Returns:
        Tensor (N, C, height, width) in [-1, 1]: float64 for float64, else float32.
    """
    images = images.clamp(-1, 1)
    if images.dtype != torch.float64:
        images = images.float()
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    resized = F.interpolate(images, size=tuple(size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(-1, 1)


def clahe(image: np.ndarray) -> np.ndarray:
    """Equalise contrast locally on V of 8-bit HSV: contrast-limited, 8 x 8 tiles, clip at 2 uniform bins (SPEC 7).

    This is the usual 8-bit form of the paper's protocol, written here because the one at hand,
    `skimage.exposure.equalize_adapthist`, means other things by its arguments: it stretches the image's range first,
    takes tiles of a size instead of a grid, and clips at a fraction of the tile.
    Against OpenCV on noise and smooth images of nine sizes: HSV equal, V one level off in at most 0.9 % of the pixels
    (ties), the colours one or two levels off in a third of the values, which OpenCV cuts off and this rounds.

    Args:
        image: Array (H, W, 3), uint8, or float in [0, 1], which is rounded to 8 bits first.

    Returns:
        Array of the same shape; uint8 for uint8, else float32 in [0, 1].
    """
    if image.dtype != np.uint8:
        return clahe(np.rint(image * 255).astype(np.uint8)).astype(np.float32) / 255
    hue, saturation, value = _rgb_to_hsv(image)
    return _hsv_to_rgb(hue, saturation, _equalise(value))


def write_png(path: str | Path, array: np.ndarray) -> None:
    """Write a picture as PNG, whole or not at all: a reader never sees half a file.

    Args:
        path: The file, replaced if it exists; its folder must exist.
        array: (H, W) uint8 or uint16, or (H, W, 3) uint8.

    Raises:
        RunError: The file cannot be written.
    """
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(content, format="PNG")
    write_atomically(Path(path), content.getvalue())


# --- reading --------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file lazily and turn every failure, also of the decoding inside the block, into a `UserError`."""
    path = Path(path)
    _check_file(path)
    try:
        with _open_header(path) as image:
            if 0 in image.size:
                raise UserError(f"{path}: has no pixels; give another file")
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = Image.MAX_IMAGE_PIXELS // 10**6
        raise UserError(f"{path}: more than {limit} million pixels; crop it or make it smaller") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image that can be read; give a {_FORMATS_TEXT} file") from error
    except MemoryError as error:
        raise UserError(f"{path}: too large for the memory; crop it or make it smaller") from error
    except _DECODE_ERRORS as error:
        raise UserError(f"{path}: damaged or not supported ({_brief(error)}); save it anew as PNG") from error


def _check_file(path: Path) -> None:
    """Refuse what is no regular file with content."""
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give an image file")
        if not path.is_file():
            raise UserError(f"{path}: no such file; check the path")
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty; give another one")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be opened ({_brief(error)}); check the path") from error


def _open_header(path: Path) -> Image.Image:
    """Read the header; of a damaged one Pillow may also warn, and of a picture up to twice its limit it only warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(path, formats=_FORMATS)


def _from_pil(image: Image.Image, background: float, name: str) -> np.ndarray:
    """Decode a PIL image into (H, W, 3), float32 in [0, 1]; `name` stands in the messages."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_numpy(_as_16_bit(np.asarray(image)), name)
    if not image.has_transparency_data:
        return _from_numpy(np.asarray(image.convert("RGB")), name)
    rgba = np.asarray(image.convert("RGBA")).astype(np.float32) / 255
    alpha = rgba[..., 3:]
    return rgba[..., :3] * alpha + np.float32(background) * (1 - alpha)


def _as_16_bit(values: np.ndarray) -> np.ndarray:
    """Narrow 32-bit integers, the way in which Pillow hands over some 16-bit files, where their values allow it."""
    if values.dtype.kind == "i" and values.min() >= 0 and values.max() <= np.iinfo(np.uint16).max:
        return values.astype(np.uint16)
    return values


def _from_numpy(array: np.ndarray, name: str) -> np.ndarray:
    """Check an array and bring it to (H, W, 3), float32 in [0, 1]; `name` stands in the messages."""
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or pixels.size == 0:
        raise UserError(f"{name}: shape {array.shape} is not accepted; give (H, W), (H, W, 1) or (H, W, 3)")
    kind, width = array.dtype.kind, array.dtype.itemsize
    if kind == "f":
        # Written so that a NaN fails it too.
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise UserError(f"{name}: values outside [0, 1] or NaN; scale it to [0, 1], or give uint8 or uint16")
        pixels = pixels.astype(np.float32)
    elif kind == "u" and width <= 2:
        pixels = pixels.astype(np.float32) / np.iinfo(array.dtype).max
    elif kind == "b":
        pixels = pixels.astype(np.float32)
    else:
        raise UserError(f"{name}: type {array.dtype} is not accepted; give uint8, uint16, bool or float in [0, 1]")
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _size_text(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _brief(error: BaseException) -> str:
    """One line for an exception, whatever its text; the file is named by the caller."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


# --- contrast equalisation ------------------------------------------------------------------------------------------


def _rgb_to_hsv(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Convert uint8 RGB (H, W, 3) to 8-bit HSV planes: H in [0, 180) by 2 degrees, S and V in [0, 255]."""
    red, green, blue = np.moveaxis(image.astype(np.int32), 2, 0)
    value = image.max(axis=2).astype(np.int32)
    span = value - image.min(axis=2)
    sector = np.select(
        [value == red, value == green],
        [green - blue, blue - red + 2 * span],
        default=red - green + 4 * span,
    )
    hue = _fixed_point_ratio(sector, span, 30) % 180
    saturation = _fixed_point_ratio(span, value, 255)
    return hue, saturation, value


def _fixed_point_ratio(numerator: np.ndarray, denominator: np.ndarray, scale: int) -> np.ndarray:
    """Give scale * numerator / denominator, rounded, 0 for 0 / 0.

    By a reciprocal of 12 binary places, as the usual 8-bit HSV is defined: its ties then fall to the same side.
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
    padded = _pad_to_grid(value)
    tables = _tile_tables(padded)
    upper, lower, down = _tile_neighbours(height, padded.shape[0] // _CLAHE_TILES)
    left, right, across = _tile_neighbours(width, padded.shape[1] // _CLAHE_TILES)
    upper, lower, down = upper[:, None], lower[:, None], down[:, None]
    above = tables[upper, left, value] * (1 - across) + tables[upper, right, value] * across
    below = tables[lower, left, value] * (1 - across) + tables[lower, right, value] * across
    return np.rint(above * (1 - down) + below * down).astype(np.int32)


def _pad_to_grid(value: np.ndarray) -> np.ndarray:
    """Mirror (edge pixel excluded) at the bottom and right until the grid of tiles fits.

    As soon as one side does not fit both are padded, a fitting one by a whole row of the grid: the common
    implementation does so, and the tiles should be the same.
    """
    if all(side % _CLAHE_TILES == 0 for side in value.shape):
        return value
    return np.pad(value, [(0, _CLAHE_TILES - side % _CLAHE_TILES) for side in value.shape], mode="reflect")


def _tile_tables(padded: np.ndarray) -> np.ndarray:
    """Make the look-up table of every tile: its clipped, cumulated histogram as levels; (8, 8, 256)."""
    height, width = (side // _CLAHE_TILES for side in padded.shape)
    pixels = height * width
    tiles = padded.reshape(_CLAHE_TILES, height, _CLAHE_TILES, width).swapaxes(1, 2).reshape(-1, pixels)
    keys = tiles + _BINS * np.arange(len(tiles))[:, None]
    histograms = np.bincount(keys.ravel(), minlength=_BINS * len(tiles)).reshape(-1, _BINS)

    limit = max(1, int(_CLAHE_CLIP * pixels / _BINS))
    clipped = np.minimum(histograms, limit)
    share, rest = np.divmod((histograms - clipped).sum(axis=1, keepdims=True), _BINS)
    # What does not divide evenly goes, one count a bin, to every step-th bin from the first on.
    step = _BINS // np.maximum(rest, 1)
    bins = np.arange(_BINS)
    equal = clipped + share + ((bins % step == 0) & (bins // step < rest))
    levels = np.rint(equal.cumsum(axis=1) * (255 / pixels))
    return levels.reshape(_CLAHE_TILES, _CLAHE_TILES, _BINS)


def _tile_neighbours(side: int, tile: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each pixel of a side: the tiles whose centres lie before and after it, and the weight of the second."""
    position = np.arange(side) / tile - 0.5
    first = np.floor(position).astype(np.int64)
    weight = position - first
    last_tile = _CLAHE_TILES - 1
    return np.clip(first, 0, last_tile), np.clip(first + 1, 0, last_tile), weight
