"""Images: the project's only reader and writer of image files, and its only resizer.

Files are read into arrays (H, W, 3), float32 in [0, 1]; arrays become tensors (N, 3, H, W), float32 in [-1, 1], for the
networks. Pillow reads the files, because it keeps to a list of formats and applies palettes and their transparency,
which imageio does not; TIFF of more than 8 bits per sample, which Pillow cuts or refuses, is read by tifffile.
"""

import ctypes
import logging
import math
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import imageio.v3 as iio
import numpy as np
import tifffile
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageChops, JpegImagePlugin, UnidentifiedImageError, _imaging

from hta.errors import UserError
from hta.files import write_atomically

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    {".png", ".apng", *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), ".tif", ".tiff", ".bmp", ".webp"}
)
"""Suffixes, in lower case, by which a folder's image files are recognised."""

ALPHA_BACKGROUND = 1.0
"""The gray value that shows through the transparent pixels of an image: white, as on a page."""

LARGE = 20_000_000
"""From this number of pixels on, an image is averaged down while it is decoded, to at most `_REDUCED`."""
_REDUCED, _BAND = 6_000_000, 64  # rows are converted by this number, a multiple of every factor

LIMIT_VARIABLE = "HTA_MAX_MEGAPIXELS"
"""The environment variable that sets how many million pixels an image may have; by default as many as in Pillow."""
_MAX_SIDE = 65_535  # px; a header may claim a single column of 89 million pixels
_MAX_WEBP = 30_000_000  # pixels; its decoder takes 16 bytes for each
_PIXEL_BYTES = 6  # of the largest file and of its decoded samples, per pixel that an image may have

# Only these are tried on a file, whatever its suffix: some of Pillow's other formats start programs (EPS).
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")

# All that the readers raise on damaged files; they do not translate the errors of the modules they use.
_DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, AttributeError, EOFError, LookupError, ArithmeticError),
    *(struct.error, zlib.error, RuntimeError, AssertionError),
)

with suppress(AttributeError, OSError):  # libtiff is linked into Pillow on some systems
    # It writes its errors, which Pillow also raises, to stderr.
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)

ImageFile = str | bytes | os.PathLike | BinaryIO
"""A path, or a file that is open for reading in binary mode."""

_CHANNELS = (1, 3, 4)


class _Reduced(np.ndarray):
    """An image that was averaged down and knows the (H, W) of its file; an array made from it does not."""

    full_size: tuple[int, int] | None = None


def full_size(image: np.ndarray) -> tuple[int, int]:
    """The (H, W) of an image before it was averaged down, which images of less than 20 megapixels never are."""
    return getattr(image, "full_size", None) or image.shape[:2]


def of_full_size(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """The image as one that was averaged down from (H, W), if it was."""
    reduced = image.view(_Reduced)
    reduced.full_size = (size[0], size[1])
    return image if image.shape[:2] == size else reduced


def read_image(source: ImageFile, background: float = ALPHA_BACKGROUND) -> np.ndarray:
    """Read a PNG, JPEG, TIFF, BMP or WebP file of any common pixel format, upright by its EXIF orientation.

    Gray, 1-bit, palette, CMYK and RGB images, with or without transparency, are read at 8 bits, 16-bit gray ones and
    16-bit TIFF in colour at 16. Floating-point TIFF must have values in [0, 1], integers of other types than uint8 and
    uint16 values within 16 bits, of which 65,535 is white. Layouts of TIFF that would be misread are refused from their
    tags. Of 16-bit colour the low byte is lost in PNG (neither Pillow nor imageio reads it) and, unless the imagecodecs
    package is installed, in TIFF compressed by other methods than Deflate, or PackBits below 16 MB. Of several frames
    the first is read.

    An image of `LARGE` pixels or more is an approximation: each box of 2 x 2, 4 x 4, ... pixels is averaged, so that at
    most 6 million are left, and JPEG is decoded at the smaller size at once; `full_size` gives its own size.

    Args:
        source: The file.
        background: Gray value in [0, 1] on which transparent pixels are composited.

    Returns:
        Array (H, W, 3), float32 in [0, 1].

    Raises:
        UserError: The file is missing, not a regular file, not an image of these formats, damaged or too large.
    """
    return _read(source, background)


def read_levels(source: ImageFile, background: float = 0.0) -> np.ndarray:
    """Read a mask: the brightest channel of every pixel, (H, W) float32 in [0, 1], never averaged; see `read_image`."""
    return _read(source, background, exact=True)[..., 0]


def image_size(source: ImageFile) -> tuple[int, int]:
    """Return the upright (H, W) of a file that `read_image` reads from its header, and refuse what that refuses."""
    with _opened(source) as (_, stream, page):
        if page is not None:
            width, height, turned = page.imagewidth, page.imagelength, _orientation(page) >= 5
        else:
            with _pillow_image(stream) as image:
                width, height = image.size
                # Pillow turns TIFF headers itself, other formats only when their pixels are transposed.
                turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def to_array(image: ImageFile | Image.Image | np.ndarray | torch.Tensor) -> np.ndarray:
    """Convert an image in any of the accepted forms to an array.

    Args:
        image: A path, an open file, a PIL image, or an array or tensor of one image as `unstack` describes it.

    Returns:
        Array (H, W, 3), float32 in [0, 1], which shares no memory with the argument. One of `LARGE` pixels or more is
        averaged down like a file, see `read_image`.

    Raises:
        UserError: The file cannot be read, or shape, type or range of the array is not accepted.
    """
    if isinstance(image, Image.Image):
        try:
            return _assembled(_of_pil(image, ALPHA_BACKGROUND, "image"))
        except _DECODE_ERRORS as error:
            raise UserError(f"image: a PIL image that cannot be decoded ({_brief(error)}); give another one") from error
    if isinstance(image, np.ndarray | torch.Tensor):
        array, *others = unstack(image) or [np.empty(0)]
        if others or array.ndim not in (2, 3) or 0 in array.shape:
            raise UserError(f"image: shape {tuple(image.shape)} is not accepted; give (H, W) or (H, W, C), C 1, 3 or 4")
        rows = lambda top, end: _scaled(array[top:end], "image")  # noqa: E731
        return _assembled(_Decoded(rows, array.shape[:2], full_size(array)))
    if isinstance(image, str | bytes | os.PathLike) or hasattr(image, "read"):
        return read_image(image)
    remedy = "give a path, an open file, a PIL image, a numpy array or a torch tensor"
    raise UserError(f"image: {type(image).__name__} is not accepted; {remedy}")


def unstack(images: np.ndarray | torch.Tensor) -> list[np.ndarray]:
    """Split an array or tensor into its images, (H, W) or (H, W, C) each.

    Args:
        images: uint8, uint16, bool or float in [0, 1]: one image (H, W) or (H, W, C), or a stack (N, H, W) or
            (N, H, W, C), with C 1, 3 or 4, of which the fourth is the opacity. A tensor may also have its channels
            first, (C, H, W) or (N, C, H, W), and is taken so where the third dimension from the end is 1, 3 or 4.
    """
    if isinstance(images, torch.Tensor):
        if images.ndim in (3, 4) and images.shape[-3] in _CHANNELS:
            images = images.movedim(-3, -1)
        images = images.detach().cpu()
        images = (images.float() if images.dtype == torch.bfloat16 else images).numpy()
    elif images.ndim == 3 and images.shape[0] in _CHANNELS[1:] and images.shape[2] > max(_CHANNELS):
        logger.warning("an array %s is read as %d gray images; colours come last: (H, W, 3)", images.shape, len(images))
    is_stack = images.ndim == 4 or (images.ndim == 3 and images.shape[2] > max(_CHANNELS))
    return list(images) if is_stack else [images]


def jpeg_of(picture: np.ndarray, quality: int, comment: bytes = b"") -> bytes:
    """Encode a picture, (H, W, 3) uint8, as a JPEG file; quality from 1 to 95."""
    return iio.imwrite("<bytes>", picture, extension=".jpg", plugin="pillow", quality=quality, comment=comment)


def png_of(array: np.ndarray) -> bytes:
    """Encode a picture, (H, W) uint8 or uint16 or (H, W, 3) uint8, as a PNG file."""
    return iio.imwrite("<bytes>", np.ascontiguousarray(array), extension=".png", plugin="pillow")


def write_png(path: str | Path, array: np.ndarray) -> None:
    """Write a picture as `png_of` encodes it by `write_atomically`: whole or not at all."""
    write_atomically(Path(path), png_of(array))


# --- reading --------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(source: ImageFile) -> Iterator[tuple[str, BinaryIO, Any]]:
    """Open an image file; gives its name for messages, a stream, and the first page of a TIFF that tifffile reads.

    Every failure inside becomes a `UserError`.
    """
    named = getattr(source, "name", "image") if hasattr(source, "read") else os.fsdecode(source)
    name = named if isinstance(named, str) else "image"
    try:
        # Of a damaged file the readers also warn, and of a picture up to twice its limit Pillow only warns.
        with warnings.catch_warnings(), _quiet(), _stream_of(source, name) as stream:
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield name, stream, _tiff_page(stream)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        remedy = f"crop it or make it smaller, or set {LIMIT_VARIABLE}"
        raise UserError(f"{name}: more than {_max_pixels() // 10**6} million pixels; {remedy}") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{name}: not an image that can be read; give a PNG, JPEG, TIFF, BMP or WebP file") from error
    except MemoryError as error:
        raise UserError(f"{name}: too large for the memory; crop it or make it smaller") from error
    except _DECODE_ERRORS as error:
        raise UserError(f"{name}: damaged or not supported ({_brief(error)}); save it anew as PNG") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the readers from logging: what they log either ends in an error or does not matter."""
    logs = [logging.getLogger(name) for name in ("PIL", "tifffile")]
    levels = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _stream_of(source: ImageFile, name: str) -> BinaryIO:
    """Open a regular file of a sane size, or take over what an open one still holds."""
    most = max(_PIXEL_BYTES * _max_pixels(), 1 << 26)
    if not hasattr(source, "read"):
        return _open_file(Path(name), most)
    data = source.read(most + 1)
    if not isinstance(data, bytes) or len(data) > most:
        raise UserError(f"{name}: {'too large' if isinstance(data, bytes) else 'text'}; give a file opened with 'rb'")
    return BytesIO(data)


def _open_file(path: Path, most: int) -> BinaryIO:
    """Open what is a regular file with content, at most so many bytes."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path}: is a folder; give an image file")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: is a pipe, a socket or a device; give an image file")
        if status.st_size == 0:
            raise UserError(f"{path}: the file is empty; give another one")
        if status.st_size > most:
            raise UserError(f"{path}: {status.st_size / 2**30:.1f} GiB, too large for an image; make it smaller")
        return path.open("rb")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; check the path") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be opened ({_brief(error)}); check the path and its permissions") from error


def _max_pixels() -> int:
    """The number of pixels that an image may have."""
    if text := os.environ.get(LIMIT_VARIABLE):
        if not re.fullmatch(r"[0-9]{1,6}", text):
            raise UserError(f"{LIMIT_VARIABLE}: {text!r} is not a number of million pixels; give one, such as 200")
        Image.MAX_IMAGE_PIXELS = int(text) * 10**6
    return Image.MAX_IMAGE_PIXELS or 2**40


def _pillow_image(stream: BinaryIO) -> Image.Image:
    """Read the header."""
    image = Image.open(stream, formats=_FORMATS)
    _check_size(*image.size)
    if image.format == "WEBP" and math.prod(image.size) > _MAX_WEBP:
        raise ValueError(f"WebP of more than {_MAX_WEBP // 10**6} million pixels")
    return image


def _read(source: ImageFile, background: float, exact: bool = False) -> np.ndarray:
    """Read the first frame of a file, see `read_image` and `_assembled`."""
    with _opened(source) as (name, stream, page):
        if page is None:
            with _pillow_image(stream) as image:
                several, size = getattr(image, "is_animated", False), (image.height, image.width)
                _load(image, stream, 1 if exact else reduction(size))
                pixels = _assembled(_of_pil(image, background, name, size), exact)
        else:
            several = page.parent.pages.get(1, page) is not page
            pixels = _assembled(_of_tiff(page, background, name), exact)
    if several:
        logger.info("%s: only the first of its frames is used", name)
    return pixels


def _load(image: Image.Image, stream: BinaryIO, factor: int) -> None:
    """Decode the image of a file, a JPEG reduced by the factor; refuse one that ends early."""
    data = b""
    if image.format in ("JPEG", "MPO", "PNG"):
        place = stream.tell()
        stream.seek(0)
        data = stream.read()
        stream.seek(place)
    if image.format in ("JPEG", "MPO"):
        _load_jpeg(image, data, factor)
    image.load()
    if image.format == "PNG":
        _check_png(image, data)


def _check_size(width: int, height: int) -> None:
    if width * height == 0:
        raise ValueError("it has no pixels")
    if max(width, height) > _MAX_SIDE:
        raise ValueError(f"{width} x {height} px, more than {_MAX_SIDE} px in a row or column")
    if width * height > _max_pixels():
        raise Image.DecompressionBombError


def reduction(size: tuple[int, ...]) -> int:
    """By which power of two the sides of an image of (H, W) are divided when it is read."""
    pixels = math.prod(size)
    return 1 if pixels < LARGE else 2 ** math.ceil(math.log2(pixels / _REDUCED) / 2)


class _Decoded(NamedTuple):
    """An image as its decoder left it.

    Attributes:
        rows: Converts the rows from one number to below another to `(h, W, 3)`, float32 in [0, 1].
        stored: (H, W) of the rows, which the decoder may have reduced.
        size: (H, W) of the file.
        orientation: Its EXIF tag.
    """

    rows: Callable[[int, int], np.ndarray]
    stored: tuple[int, ...]
    size: tuple[int, ...]
    orientation: int = 1


def _assembled(image: _Decoded, exact: bool = False) -> np.ndarray:
    """Put an image together, in bands if it is large, and turn it upright; `exact` keeps all of one channel."""
    num_rows, size = image.stored[0], image.size
    factor = reduction(size) // round(size[0] / num_rows)
    height = _BAND if math.prod(size) >= LARGE else num_rows
    bands = (image.rows(top, min(top + height, num_rows)) for top in range(0, num_rows, height))
    parts = [band.max(axis=2, keepdims=True) if exact else _averaged(band, factor) for band in bands]
    pixels = _upright(parts[0] if len(parts) == 1 else np.concatenate(parts), image.orientation)
    return of_full_size(pixels, (size[1], size[0]) if image.orientation in _TURNED else size)


def _averaged(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Average boxes of `factor` x `factor` pixels, a power of two; the last row or column counts twice if need be."""
    while factor > 1:
        pixels = np.pad(pixels, [(0, side % 2) for side in pixels.shape[:2]] + [(0, 0)], mode="edge")
        pixels = pixels[::2] + pixels[1::2]
        pixels = (pixels[:, ::2] + pixels[:, 1::2]) / 4
        factor //= 2
    return pixels


# --- TIFF of more than 8 bits per sample -----------------------------------------------------------------------------

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MIN_IS_WHITE, _PALETTE, _SEPARATED, _YCBCR = 0, 3, 5, 6
_COLOURS = {_MIN_IS_WHITE: 1, 1: 1, 2: 3, _SEPARATED: 4}  # photometric interpretation: number of samples in colour
_PLANAR, _SIGNED = 2, 2
_DEFLATE = (8, 32946)
_OWN_CODECS = (1, *_DEFLATE, 32773)  # none, Deflate and PackBits; tifffile needs imagecodecs for the others
_JPEG_CODECS = (6, 7)
_SLOW_BYTES = 1 << 24  # PackBits of more is left to Pillow
_BOMB_BYTES = 1 << 19  # Deflate of less has less than 512 MB
_ALPHA_PREMULTIPLIED, _ALPHA = 1, 2
_TURNED = (5, 6, 7, 8)


def _tiff_page(stream: BinaryIO) -> Any:
    """Return the first page of a TIFF file that tifffile reads; None for others and what only Pillow decodes."""
    start = stream.read(4)
    stream.seek(0)
    if start not in _TIFF_STARTS:
        return None
    page = tifffile.TiffFile(stream).pages.first
    stream.seek(0)
    _check_size(page.imagewidth, page.imagelength)
    num_bytes = page.imagewidth * page.imagelength * page.samplesperpixel * page.bitspersample // 8
    at_once = num_bytes + (page.compression > 1) * math.prod(page.chunks) * page.bitspersample // 8
    if at_once > _PIXEL_BYTES * _max_pixels():
        raise ValueError(f"{at_once >> 20} MiB to decode")
    if page.samplesperpixel > 2 and _COLOURS.get(page.photometric) == 1:  # bands of which gray is none in particular
        raise ValueError(f"a TIFF of {page.samplesperpixel} samples per pixel")
    has_codec = page.compression in _OWN_CODECS and page.predictor in (1, 2)
    has_codec &= page.compression != 32773 or num_bytes < _SLOW_BYTES
    is_planar = page.planarconfig == _PLANAR and page.samplesperpixel > _COLOURS.get(page.photometric, 0)
    is_deep = page.bitspersample in (16, 32, 64) or (is_planar and page.bitspersample == 8)
    is_known = page.photometric in _COLOURS and page.imagedepth == 1
    if is_known and is_deep and (has_codec or find_spec("imagecodecs")):
        _check_chunks(page)
        return page
    _check_tags(page)
    return None


def _check_tags(page: Any) -> None:
    """Refuse the layouts that Pillow misreads, or does not read."""
    bits, colour = page.bitspersample, page.photometric
    if bits not in (1, 2, 4, 8, 16, 32):
        raise ValueError(f"a TIFF of {bits} bits per sample")
    if colour not in (*_COLOURS, _PALETTE, _YCBCR) or (colour == _YCBCR and page.compression not in _JPEG_CODECS):
        raise ValueError(f"a TIFF of the photometric interpretation {getattr(colour, 'name', colour)}")
    if page.sampleformat == _SIGNED and bits == 8:
        raise ValueError("a TIFF of signed bytes")
    extras = page.samplesperpixel - _COLOURS.get(colour, page.samplesperpixel)
    if page.planarconfig == _PLANAR and page.samplesperpixel > 1 and (bits > 8 or extras):
        raise ValueError("a TIFF of separate planes in this compression")


def _check_chunks(page: Any) -> None:
    """Refuse a page that lacks strips or tiles, which tifffile would fill with zeros, or has one that is a bomb."""
    if np.count_nonzero(page.databytecounts) < math.prod(page.chunked):
        raise ValueError("strips or tiles are missing")
    largest, stream = math.prod(page.chunks) * page.bitspersample // 8, page.parent.filehandle
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        if page.compression in _DEFLATE and count > _BOMB_BYTES:
            stream.seek(offset)
            if _inflated([stream.read(count)], largest) > largest:
                raise ValueError("a strip or tile holds more than its pixels")


def _inflated(chunks: Iterable[bytes], most: int) -> int:
    """The length of a zlib stream once it is decompressed, or a number above `most`."""
    inflate, total = zlib.decompressobj(), 0
    for chunk in chunks:
        while chunk and total <= most:
            total += len(inflate.decompress(chunk, 1 << 20))
            chunk = inflate.unconsumed_tail
    return total + (len(inflate.flush()) if total <= most else 0)


def _of_tiff(page: Any, background: float, name: str) -> _Decoded:
    # `(planes, 1, H, W, samples)`, one of the two numbers of samples being 1.
    planes = page.asarray(maxworkers=1, squeeze=False)[:, 0]
    size = planes.shape[1:3]
    samples = np.moveaxis(planes, 0, 2).reshape(*size, -1)
    rows = lambda top, end: _from_samples(samples[top:end], page, background, name)  # noqa: E731
    return _Decoded(rows, size, size, _orientation(page))


def _orientation(page: Any) -> int:
    value = page.tags.valueof("Orientation")
    return value if isinstance(value, int) else 1


def _from_samples(samples: np.ndarray, page: Any, background: float, name: str) -> np.ndarray:
    """Turn samples (h, W, S) of a page into (h, W, 3), float32 in [0, 1]."""
    samples, colours = _as_16_bit(samples), _COLOURS[page.photometric]
    pixels = _scaled(samples[..., : min(colours, 3)], name)
    if page.photometric == _SEPARATED:
        pixels = (1 - pixels) * (1 - _scaled(samples[..., 3:4], name))
    elif page.photometric == _MIN_IS_WHITE:
        pixels = 1 - pixels
    alphas = [kind in (_ALPHA_PREMULTIPLIED, _ALPHA) for kind in page.extrasamples]
    if not any(alphas):
        return pixels
    number = alphas.index(True)
    alpha = _scaled(samples[..., colours + number, None], name)
    visible = pixels * alpha if page.extrasamples[number] == _ALPHA else pixels
    return np.minimum(visible + np.float32(background) * (1 - alpha), 1)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror an image by its orientation tag."""
    if orientation in _TURNED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels[::-1] if orientation in (3, 4, 7, 8) else pixels)


# --- JPEG and PNG that end early, whose decoders fill the rest --------------------------------------------------------

_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]", re.DOTALL)
_START_OF_SCAN, _END, _NO_FRAMES, _HUFFMAN = 0xDA, 0xD9, (0xC4, 0xC8, 0xCC), (0xC0, 0xC1, 0xC2)  # the last progressive
_MAX_SCANS = 100  # each takes time for the whole image
_FLAT, _FILLER = 3, bytes(range(33, 97))


def _jpeg_scans(data: bytes) -> tuple[int, list[tuple[int, int]]]:
    """Walk through the markers up to the end: the kind of the frame, and start and end of the bits of each scan."""
    kind, place, scans = 0, 2, []
    while (found := _JPEG_MARKER.search(data, place)) and (marker := data[found.start() + 1]) != _END:
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES:
            kind = marker
        elif marker == _START_OF_SCAN:
            following = _JPEG_MARKER.search(data, place)
            scans.append((place, following.start() if following else len(data)))
            place = scans[-1][1]
    return kind, scans


def _load_jpeg(image: Image.Image, data: bytes, factor: int) -> None:
    """Decode a JPEG file, reduced by the factor; refuse one that ends early.

    Its header may claim more pixels than its bits can hold, or it may have a thousand scans. If a scan is cut, the
    decoder fills the rest, of a sequential file by flat blocks; it would take up bytes that are put after the scan.
    """
    size, (kind, scans) = (image.height, image.width), _jpeg_scans(data)
    if kind in _HUFFMAN and 8 * sum(end - start for start, end in scans) < math.ceil(size[0] / 8) * (size[1] // 8):
        raise ValueError(f"{len(data)} bytes are too few for {image.width} x {image.height} px")
    if len(scans) > _MAX_SCANS:
        raise ValueError(f"{len(scans)} scans")
    reduced = max(1, image.width // factor), max(1, image.height // factor)
    image.draft(None, reduced)
    image.load()
    width, height = image.size
    corner = image.crop(((width - 1) // 8 * 8, (height - 1) // 8 * 8, width, height)).convert("L")
    if kind == _HUFFMAN[2] or np.ptp(np.asarray(corner)) <= _FLAT:
        filled = _FILLER.join(data[start:end] for start, end in pairwise([0, *(end for _, end in scans), len(data)]))
        with JpegImagePlugin.JpegImageFile(BytesIO(filled)) as other:
            other.draft(None, reduced)
            if ImageChops.difference(image, other).getbbox(alpha_only=False):
                raise ValueError("it ends early")


def _check_png(image: Image.Image, data: bytes) -> None:
    """Refuse a file with fewer rows than its header says; the last ones are then 0."""
    last = np.asarray(image.crop((0, max(0, image.height - 2), image.width, image.height)))
    if last.reshape(len(last), -1).any(axis=1).all():
        return
    chunks, place = [], 8
    while place < len(data):
        length = int.from_bytes(data[place : place + 4])
        chunks += [data[place + 8 : place + 8 + length]] * (data[place + 4 : place + 8] == b"IDAT")
        place += 12 + length
    bits = data[24] * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[data[25]]
    row = image.width * bits
    expected = image.height * (row // 8 if data[28] else math.ceil(row / 8) + 1)  # at least so many if interlaced
    if _inflated(chunks, expected) < expected:
        raise ValueError("it ends early")


# --- pixels ---------------------------------------------------------------------------------------------------------


def _of_pil(image: Image.Image, background: float, name: str, size: tuple[int, int] | None = None) -> _Decoded:
    """Prepare the conversion of a PIL image; `size` is its (H, W) before the decoder reduced it."""
    image.load()
    # Pillow inverts these at 8 bits alone.
    is_negative = getattr(image, "tag_v2", {}).get(ExifTags.Base.PhotometricInterpretation) == _MIN_IS_WHITE
    stored = (image.height, image.width)

    def rows(top: int, end: int) -> np.ndarray:
        part = image if (top, end) == (0, image.height) else image.crop((0, top, image.width, end))
        return _pil_pixels(part, background, name, is_negative)

    return _Decoded(rows, stored, size or stored, image.getexif().get(ExifTags.Base.Orientation, 1))


def _pil_pixels(image: Image.Image, background: float, name: str, is_negative: bool) -> np.ndarray:
    """Turn a PIL image into (H, W, 3), float32 in [0, 1], as it is stored."""
    if image.mode == "F" or image.mode.startswith("I"):
        pixels = _scaled(_as_16_bit(np.asarray(image)), name)
        return 1 - pixels if is_negative else pixels
    if not image.has_transparency_data:
        return _scaled(np.asarray(image.convert("RGB")), name)
    rgba = np.asarray(image.convert("RGBA")).astype(np.float32) / 255
    return _composited(rgba[..., :3], rgba[..., 3:], background)


def _composited(pixels: np.ndarray, alpha: np.ndarray, background: float) -> np.ndarray:
    return pixels * alpha + np.float32(background) * (1 - alpha)


def _as_16_bit(values: np.ndarray) -> np.ndarray:
    """Narrow wider integers, in which some 16-bit images are stored, where their values allow it."""
    if values.dtype.kind in "iu" and values.itemsize > 1 and 0 <= values.min() <= values.max() <= 65535:
        return values.astype(np.uint16)
    return values


def _scaled(array: np.ndarray, name: str) -> np.ndarray:
    """Check an array and scale it to (H, W, 3), float32 in [0, 1], on white; `name` is used in messages."""
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.ndim != 3 or pixels.shape[2] not in _CHANNELS or pixels.size == 0:
        raise UserError(f"{name}: shape {array.shape} is not accepted; give (H, W) or (H, W, C), C 1, 3 or 4")
    kind = array.dtype.kind
    if not (kind in "fb" or (kind == "u" and array.dtype.itemsize <= 2)):
        raise UserError(f"{name}: type {array.dtype} is not accepted; give uint8, uint16, bool or float in [0, 1]")
    # Written so that a NaN fails it too.
    if kind == "f" and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise UserError(f"{name}: values outside [0, 1] or NaN; scale it to [0, 1], or give uint8 or uint16")
    pixels = pixels.astype(np.float32) / (np.iinfo(array.dtype).max if kind == "u" else 1)
    if pixels.shape[2] == 4:
        return _composited(pixels[..., :3], pixels[..., 3:], ALPHA_BACKGROUND)
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
    sizes = [f"{array.shape[1]} x {array.shape[0]} px" for array in arrays]
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
    return images if tuple(images.shape[-2:]) == tuple(size) else resample(images, size)


def resample(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`resize` for images in [-1, 1] of any size, whatever it is: one that differs from call to call can be traced."""
    resized = F.interpolate(images, size=tuple(size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(-1, 1)


def fit(size: tuple[int, ...], side: float) -> tuple[int, int]:
    """Scale (height, width, ...) to a longer side; returns (height, width), at least 1 px each."""
    height, width = (max(1, round(length * side / max(size[:2]))) for length in size[:2])
    return height, width
