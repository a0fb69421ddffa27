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


def fit(size: tuple[int, ...], side: float) -> tuple[int, int]:
    """Scale a size to a longer side.

    Args:
        size: (height, width, ...) in px, such as the shape of a picture.
        side: Longer side of the result, px.

    Returns:
        (height, width) of the same aspect ratio, at least 1 px each.
    """
    height, width = (max(1, round(length * side / max(size[:2]))) for length in size[:2])
    return height, width


def jpeg_of(picture: np.ndarray, quality: int) -> bytes:
    """Encode a picture as JPEG.

    Args:
        picture: (H, W, 3) uint8.
        quality: From 1 to 95.

    Returns:
        The content of the file.
    """
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="JPEG", quality=quality)
    return content.getvalue()


def png_of(array: np.ndarray) -> bytes:
    """Encode a picture, (H, W) uint8 or uint16 or (H, W, 3) uint8, as PNG: the content of the file."""
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(content, format="PNG")
    return content.getvalue()


def write_png(path: str | Path, array: np.ndarray) -> None:
    """Write a picture as PNG, whole or not at all: a reader never sees half a file.

    Args:
        path: The file, replaced if it exists; its folder must exist.
        array: (H, W) uint8 or uint16, or (H, W, 3) uint8.

    Raises:
        RunError: The file cannot be written.
    """
    write_atomically(Path(path), png_of(array))


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
