"""Images: the project's only reader and writer of image files, and its only resizer.

Files are read into arrays (H, W, 3), float32 in [0, 1]; arrays become tensors (N, 3, H, W), float32 in [-1, 1], for the
networks. Pillow reads the files, because it keeps to a list of formats and applies palettes and their transparency,
which imageio does not; TIFF of more than 8 bits per sample, which Pillow cuts or refuses, is read by imageio's tifffile
plugin.
"""

import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import imageio.v3 as iio
import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from hta.errors import UserError
from hta.files import write_atomically

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
"""Suffixes, in lower case, by which a folder's image files are recognised."""

ALPHA_BACKGROUND = 1.0
"""The gray value that shows through the transparent pixels of an image: white, as on a page."""

# Only these are tried on a file, whatever its suffix: some of Pillow's other formats start programs (EPS).
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")

# All that the readers raise on damaged files; they do not translate the errors of the modules they use.
_DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, AttributeError, EOFError, LookupError, ArithmeticError),
    *(struct.error, zlib.error),
)


def read_image(path: str | Path, background: float = ALPHA_BACKGROUND) -> np.ndarray:
    """Read a PNG, JPEG, TIFF, BMP or WebP file of any common pixel format, upright by its EXIF orientation.

    Gray, 1-bit, palette, CMYK and RGB images, with or without transparency, are read at 8 bits, 16-bit gray ones and
    16-bit TIFF in colour at 16. Floating-point TIFF must have values in [0, 1], 32-bit integers values within 16 bits.
    Of 16-bit colour the low byte is lost in PNG (neither Pillow nor imageio reads it) and, unless the imagecodecs
    package is installed, in TIFF compressed by other methods than Deflate or PackBits. Of several frames the first is
    read.

    Args:
        path: The file.
        background: Gray value in [0, 1] on which transparent pixels are composited.

    Returns:
        Array (H, W, 3), float32 in [0, 1].

    Raises:
        UserError: The file is missing, not a file, not an image of these formats, damaged or too large.
    """
    with _opened(path) as (stream, tags):
        if tags is not None:
            with _tiff_file(stream) as tiff:
                frames = tiff.properties(index=..., page=...).n_images
                pixels = _from_tiff(tiff.read(index=..., page=0), tags, background, str(path))
        else:
            with _pillow_image(stream) as image:
                frames = getattr(image, "n_frames", 1)
                pixels = _from_pil(image, background, str(path))
    if frames > 1:
        logger.info("%s: only the first of its %d frames is used", path, frames)
    return pixels


def image_size(path: str | Path) -> tuple[int, int]:
    """Return the upright (H, W) of a file that `read_image` reads from its header, and refuse what that refuses."""
    with _opened(path) as (stream, tags):
        if tags is not None:
            width, height, turned = tags["ImageWidth"], tags["ImageLength"], (tags.get("Orientation") or 1) >= 5
        else:
            with _pillow_image(stream) as image:
                width, height = image.size
                # Pillow turns TIFF headers itself, other formats only when their pixels are transposed.
                turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (width, height) if turned else (height, width)


def to_array(image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """Convert an image in any of the accepted forms to an array.

    Args:
        image: A path, a PIL image, or an array (H, W), (H, W, 1) or (H, W, 3): uint8, uint16, bool or float in [0, 1].

    Returns:
        Array (H, W, 3), float32 in [0, 1], which shares no memory with the argument.

    Raises:
        UserError: The file cannot be read, or shape, type or range of the array is not accepted.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        try:
            return _from_pil(image, ALPHA_BACKGROUND, "image")
        except _DECODE_ERRORS as error:
            raise UserError(f"image: a PIL image that cannot be decoded ({_brief(error)}); give another one") from error
    if isinstance(image, np.ndarray):
        return _scaled(image, "image")
    raise UserError(f"image: {type(image).__name__} is not accepted; give a path, a PIL image or a numpy array")


def jpeg_of(picture: np.ndarray, quality: int) -> bytes:
    """Encode a picture, (H, W, 3) uint8, as a JPEG file; quality from 1 to 95."""
    return iio.imwrite("<bytes>", picture, extension=".jpg", plugin="pillow", quality=quality)


def png_of(array: np.ndarray) -> bytes:
    """Encode a picture, (H, W) uint8 or uint16 or (H, W, 3) uint8, as a PNG file."""
    return iio.imwrite("<bytes>", np.ascontiguousarray(array), extension=".png", plugin="pillow")


def write_png(path: str | Path, array: np.ndarray) -> None:
    """Write a picture as `png_of` encodes it by `write_atomically`: whole or not at all."""
    write_atomically(Path(path), png_of(array))


# --- reading --------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[BinaryIO, dict[str, Any] | None]]:
    """Open an image file, with its tags if tifffile reads it, and turn every failure inside into a `UserError`."""
    path = Path(path)
    _check_file(path)
    try:
        with warnings.catch_warnings(), path.open("rb") as stream:
            # Of a damaged file the readers also warn, and of a picture up to twice its limit Pillow only warns.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield stream, _deep_tiff_tags(stream)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise UserError(f"{path}: more than {limit} million pixels; crop it or make it smaller") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image that can be read; give a PNG, JPEG, TIFF, BMP or WebP file") from error
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


def _pillow_image(stream: BinaryIO) -> Image.Image:
    """Read the header."""
    image = Image.open(stream, formats=_FORMATS)
    if 0 in image.size:
        raise ValueError("it has no pixels")
    return image


# --- TIFF of more than 8 bits per sample -----------------------------------------------------------------------------

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MIN_IS_WHITE, _SEPARATED = 0, 5
_COLOURS = {_MIN_IS_WHITE: 1, 1: 1, 2: 3, _SEPARATED: 4}  # photometric interpretation: number of samples in colour
_PLANAR = 2
_OWN_CODECS = (1, 8, 32946, 32773)  # none, Deflate and PackBits; tifffile needs imagecodecs for the others
_ALPHA_PREMULTIPLIED, _ALPHA = 1, 2


@contextmanager
def _tiff_file(stream: BinaryIO) -> Iterator[Any]:
    """Open imageio's tifffile plugin; what tifffile logs either ends in an error here or does not matter."""
    log = logging.getLogger("tifffile")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with iio.imopen(stream, "r", plugin="tifffile") as tiff:
            yield tiff
    finally:
        log.setLevel(level)
        stream.seek(0)


def _deep_tiff_tags(stream: BinaryIO) -> dict[str, Any] | None:
    """Return the tags of a TIFF file of more than 8 bits per sample; None for others and what only Pillow decodes."""
    start = stream.read(4)
    stream.seek(0)
    if start not in _TIFF_STARTS:
        return None
    try:
        with _tiff_file(stream) as tiff:
            tags = tiff.metadata(index=..., page=0)
    except _DECODE_ERRORS:
        return None  # Pillow finds the fault too, and names it
    has_codec = tags["compression"] in _OWN_CODECS and tags["predictor"] in (1, 2)
    is_deep = set(np.atleast_1d(tags.get("BitsPerSample", 1))) <= {16, 32, 64}
    is_known = tags.get("PhotometricInterpretation") in _COLOURS and tags.get("ImageDepth", 1) == 1
    if not (is_deep and is_known and (has_codec or find_spec("imagecodecs"))):
        return None
    if Image.MAX_IMAGE_PIXELS is not None and tags["ImageWidth"] * tags["ImageLength"] > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError
    _check_chunks(tags)
    return tags


def _check_chunks(tags: dict[str, Any]) -> None:
    """Refuse a page that lacks strips or tiles, which tifffile would fill with zeros."""
    width, height = tags["ImageWidth"], tags["ImageLength"]
    across, down = tags.get("TileWidth", width), tags.get("TileLength", tags.get("RowsPerStrip", height))
    planes = tags.get("SamplesPerPixel", 1) if tags["planar_configuration"] == _PLANAR else 1
    counts = tags["TileByteCounts"] if "TileByteCounts" in tags else tags["StripByteCounts"]
    if np.count_nonzero(counts) < planes * math.ceil(width / across) * math.ceil(height / down):
        raise ValueError("strips or tiles are missing")


def _from_tiff(array: np.ndarray, tags: dict[str, Any], background: float, name: str) -> np.ndarray:
    """Turn the samples of a TIFF page into (H, W, 3), float32 in [0, 1]; `name` is used in messages."""
    if tags["planar_configuration"] == _PLANAR and array.ndim == 3:
        array = np.moveaxis(array, 0, 2)
    samples = _as_16_bit(array).reshape(tags["ImageLength"], tags["ImageWidth"], -1)
    photometric, extras = tags["PhotometricInterpretation"], tags.get("ExtraSamples") or (0,)
    colours = _COLOURS[photometric]
    pixels = _scaled(samples[..., : min(colours, 3)], name)
    if photometric == _SEPARATED:
        pixels = (1 - pixels) * (1 - _scaled(samples[..., 3:4], name))
    elif photometric == _MIN_IS_WHITE:
        pixels = 1 - pixels
    if extras[0] in (_ALPHA_PREMULTIPLIED, _ALPHA):
        alpha = _scaled(samples[..., colours : colours + 1], name)
        visible = pixels * alpha if extras[0] == _ALPHA else pixels
        pixels = np.minimum(visible + np.float32(background) * (1 - alpha), 1)
    return _upright(pixels, tags.get("Orientation") or 1)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror an image by its orientation tag."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels[::-1] if orientation in (3, 4, 7, 8) else pixels)


# --- pixels ---------------------------------------------------------------------------------------------------------


def _from_pil(image: Image.Image, background: float, name: str) -> np.ndarray:
    """Turn a PIL image into (H, W, 3), float32 in [0, 1], upright; `name` is used in messages."""
    # Pillow inverts these at 8 bits alone.
    is_negative = getattr(image, "tag_v2", {}).get(ExifTags.Base.PhotometricInterpretation) == _MIN_IS_WHITE
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        pixels = _scaled(_as_16_bit(np.asarray(image)), name)
        return 1 - pixels if is_negative else pixels
    if not image.has_transparency_data:
        return _scaled(np.asarray(image.convert("RGB")), name)
    rgba = np.asarray(image.convert("RGBA")).astype(np.float32) / 255
    alpha = rgba[..., 3:]
    return rgba[..., :3] * alpha + np.float32(background) * (1 - alpha)


def _as_16_bit(values: np.ndarray) -> np.ndarray:
    """Narrow wider integers, in which some 16-bit images are stored, where their values allow it."""
    if values.dtype.kind in "iu" and values.itemsize > 1 and 0 <= values.min() <= values.max() <= 65535:
        return values.astype(np.uint16)
    return values


def _scaled(array: np.ndarray, name: str) -> np.ndarray:
    """Check an array and scale it to (H, W, 3), float32 in [0, 1]; `name` is used in messages."""
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or pixels.size == 0:
        raise UserError(f"{name}: shape {array.shape} is not accepted; give (H, W), (H, W, 1) or (H, W, 3)")
    kind = array.dtype.kind
    if not (kind in "fb" or (kind == "u" and array.dtype.itemsize <= 2)):
        raise UserError(f"{name}: type {array.dtype} is not accepted; give uint8, uint16, bool or float in [0, 1]")
    # Written so that a NaN fails it too.
    if kind == "f" and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise UserError(f"{name}: values outside [0, 1] or NaN; scale it to [0, 1], or give uint8 or uint16")
    pixels = pixels.astype(np.float32) / (np.iinfo(array.dtype).max if kind == "u" else 1)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _brief(error: BaseException) -> str:
    """One line for an exception, whatever its text; the caller names the file."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def is_gray(array: np.ndarray) -> bool:
    """Return whether every pixel of an image (H, W, 3), or of a stack (..., 3), has exactly R = G = B."""
    return bool((array[..., :1] == array[..., 1:]).all())


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
    sizes = [f"{array.shape[0]} x {array.shape[1]} px" for array in arrays]
    if other := next((number for number, size in enumerate(sizes) if size != sizes[0]), None):
        raise UserError(f"images: number {other} is {sizes[other]}, the first {sizes[0]}; resize them to one size")
    stack = np.stack(arrays).astype(np.float32, copy=False).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(stack * 2 - 1))


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Turn network images (..., 3, H, W), clamped to [-1, 1] here, into pictures (..., H, W, 3), uint8, rounded."""
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


def fit(size: tuple[int, ...], side: float) -> tuple[int, int]:
    """Scale (height, width, ...) to a longer side; returns (height, width), at least 1 px each."""
    height, width = (max(1, round(length * side / max(size[:2]))) for length in size[:2])
    return height, width
