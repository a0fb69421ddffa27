"""Image files: what is read, refused and written; tensors and resizing."""

import contextlib
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from hta import images
from hta.errors import RunError, UserError
from hta.images import image_size, is_gray, read_image, resize, to_array, to_tensor, to_uint8, write_png
from tests.data.trees import smooth
from tests.fuzzing import TIMES

SHAPE = (5, 7)
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
RGB16 = RNG.integers(0, 65536, (*SHAPE, 3), dtype=np.uint16)
RGBA16 = RNG.integers(0, 65536, (*SHAPE, 4), dtype=np.uint16)
GRAY16 = RGB16[..., 0]
GIF = images.iio.imwrite("<bytes>", RGB[..., 0], extension=".gif")
FLOAT = RNG.random((*SHAPE, 3), dtype=np.float32)
GRAY_ALPHA = Image.fromarray(np.ascontiguousarray(RGB[..., :2]), "LA")
# Clear, half (128 / 255) and opaque red, by itself and on white.
RED = np.array([[[255, 0, 0, 0], [255, 0, 0, 128], [255, 0, 0, 255]]], dtype=np.uint8)
RED_ON_WHITE = np.array([[[1, 1, 1], [1, 127 / 255, 127 / 255], [1, 0, 0]]])
PALETTE_COLOURS = [(10, 20, 30), (40, 50, 60)]
PALETTE = Image.new("P", (2, 1))
PALETTE.putpalette([level for colour in PALETTE_COLOURS for level in colour])
PALETTE.putpixel((1, 0), 1)


def save(path, array, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)
    return path


def save_tiff(path, array, *, planar=False, **options):
    options |= {"planarconfig": "separate"} if planar else {}
    tifffile.imwrite(path, np.moveaxis(array, 2, 0) if planar else array, **options)
    return path


ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def png_file(size, rows, *, bits=8, interlaced=False):
    """An RGB PNG made by hand, with any (width, height) in its header and any rows."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", *size, bits, 2, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def rgb16_png(path, array):
    """Write a 16-bit RGB PNG, which Pillow cannot."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    path.write_bytes(png_file(array.shape[1::-1], rows, bits=16))
    return path


def jpeg_file(array, **options):
    stream = BytesIO()
    Image.fromarray(array).save(stream, "JPEG", **options)
    return stream.getvalue()


def set_tag(path, tag, *values):
    """Overwrite a tag of unsigned shorts in a little-endian TIFF file."""
    data = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    entries = range(start + 2, start + 2 + 12 * count, 12)
    entry = next(at for at in entries if data[at : at + 2] == struct.pack("<H", tag))
    place = entry + 8 if len(values) < 3 else struct.unpack_from("<I", data, entry + 8)[0]
    struct.pack_into(f"<{len(values)}H", data, place, *values)
    path.write_bytes(data)
    return path


def scaled(array):
    return array.astype(np.float32) / (1 if array.dtype.kind == "f" else np.iinfo(array.dtype).max)


def run_python(*arguments):
    """What a Python of its own prints, which must not write to stderr."""
    paths = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120 * TIMES, env=paths)
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


def refused(call, *words):
    with pytest.raises(UserError) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


class TestReadImage:
    @pytest.mark.parametrize(
        ("name", "array", "options", "expected"),
        [
            *[(f"a.{suffix}", RGB, {}, scaled(RGB)) for suffix in ("png", "tif", "tiff", "bmp")],
            ("a.webp", RGB, {"lossless": True}, scaled(RGB)),
            ("png_whatever_its_suffix.jpg", RGB, {"format": "PNG"}, scaled(RGB)),
            ("gray.png", RGB[..., 0], {}, scaled(RGB[..., 0])),
            ("16_bits.png", GRAY16, {}, scaled(GRAY16)),
            *[(f"1_bit.{suffix}", RGB[..., 0] > 127, {}, RGB[..., 0] > 127) for suffix in ("png", "bmp", "tif")],
            *[(f"palette.{suffix}", PALETTE, {}, np.array([PALETTE_COLOURS]) / 255) for suffix in ("png", "tif")],
            ("clear.png", PALETTE, {"transparency": 0}, np.array([[(255, 255, 255), PALETTE_COLOURS[1]]]) / 255),
            ("gray_alpha.png", GRAY_ALPHA, {}, 1 - (1 - scaled(RGB[..., 0])) * scaled(RGB[..., 1])),
            *[(f"alpha.{suffix}", RED, {}, RED_ON_WHITE) for suffix in ("png", "tif")],
            ("alpha.webp", RED, {"lossless": True, "exact": True}, RED_ON_WHITE),
        ],
    )
    def test_lossless_files(self, tmp_path, name, array, options, expected):
        image = read_image(save(tmp_path / name, array, **options))
        assert image.dtype == np.float32
        assert is_gray(image) == (np.ndim(expected) == 2)
        expected = np.repeat(expected[..., None], 3, axis=2) if np.ndim(expected) == 2 else expected
        np.testing.assert_allclose(image, expected, atol=1e-6)

    def test_alpha_on_another_background(self, tmp_path):
        path = save(tmp_path / "a.png", RED)
        np.testing.assert_allclose(read_image(path, background=0.0)[0, :2, 0], [0, 128 / 255], atol=1e-6)

    @pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "16-bit tif"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, tmp_path, suffix, orientation):
        upright = smooth((24, 40))
        # How each orientation is stored: what has to be done to it is the tag's definition, read backwards.
        stored = {
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.swapaxes(0, 1),
            6: np.rot90(upright),
            7: np.rot90(upright, 2).swapaxes(0, 1),
            8: np.rot90(upright, -1),
        }[orientation]
        if suffix == "16-bit tif":
            tags = [(274, 3, 1, orientation, True)]
            path = save_tiff(tmp_path / "a.tif", stored * np.uint16(257), photometric="rgb", extratags=tags)
        else:
            exif = Image.Exif()
            exif[0x0112] = orientation
            path = save(tmp_path / f"a.{suffix}", np.ascontiguousarray(stored), exif=exif)
        assert image_size(path) == (24, 40)
        image = read_image(path)
        assert image.shape == (24, 40, 3)
        assert np.abs(image - upright / 255).mean() < 0.03
        np.testing.assert_allclose(to_array(Image.open(path)), image, atol=1e-6)

    def test_16_bit_png_in_colour_keeps_8_bits(self, tmp_path):
        image = read_image(rgb16_png(tmp_path / "b.png", RGB16))
        np.testing.assert_array_equal(image, (RGB16 >> 8).astype(np.float32) / 255)

    def test_cmyk_jpeg(self, tmp_path):
        picture = Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK")
        image = read_image(save(tmp_path / "a.jpg", picture))
        assert np.abs(image - np.array([200, 100, 50]) / 255).max() < 0.03

    def test_a_jpeg_with_a_preview_of_a_phone(self, tmp_path):
        frames = [Image.fromarray(smooth((32, 48))), Image.new("RGB", (16, 16))]
        path = save(tmp_path / "a.jpg", frames[0], format="MPO", save_all=True, append_images=frames[1:])
        assert np.abs(read_image(path) - np.asarray(frames[0]) / 255).mean() < 0.03


COLOUR, ALPHA = scaled(RGBA16[..., :3]), scaled(RGBA16[..., 3:])
PREMULTIPLIED = RGBA16 // np.array([4, 4, 4, 1], np.uint16)
PREMULTIPLIED_ON_WHITE = np.minimum(scaled(PREMULTIPLIED[..., :3]) + 1 - ALPHA, 1)
GRAY_ON_WHITE = 1 - (1 - COLOUR[..., 2]) * ALPHA[..., 0]
GRAY_ALPHA_8 = np.ascontiguousarray(RGB[..., :2])
GRAY_8_ON_WHITE = 1 - (1 - scaled(RGB[..., 0])) * scaled(RGB[..., 1])
SIX = np.concatenate([RGBA16[..., :3], GRAY16[..., None], RGBA16[..., 3:], GRAY16[..., None]], axis=2)
SIX_TAGS = dict(photometric="rgb", extrasamples=["unspecified", "unassalpha", "unspecified"], planarconfig="contig")
SIX_ON_WHITE = 1 - (1 - COLOUR) * ALPHA


class TestTiff:
    @pytest.mark.parametrize("compression", [None, "zlib"])
    @pytest.mark.parametrize("byteorder", ["<", ">"])
    @pytest.mark.parametrize(
        ("array", "options", "expected"),
        [
            (RGB16, dict(photometric="rgb"), scaled(RGB16)),
            (RGB16, dict(photometric="rgb", planar=True), scaled(RGB16)),
            (RGB16, dict(photometric="rgb", tile=(16, 16)), scaled(RGB16)),
            (RGB16, dict(photometric="rgb", rowsperstrip=2), scaled(RGB16)),
            (RGB16.astype(np.uint32), dict(photometric="rgb"), scaled(RGB16)),
            (GRAY16, dict(photometric="minisblack"), scaled(GRAY16)),
            (GRAY16, dict(photometric="miniswhite"), 1 - scaled(GRAY16)),
            (RGB[..., 0], dict(photometric="miniswhite"), 1 - scaled(RGB[..., 0])),
            (RGB, dict(photometric="rgb", planar=True), scaled(RGB)),
            (FLOAT, dict(photometric="rgb"), FLOAT),
            (FLOAT, dict(photometric="rgb", planar=True), FLOAT),
            (FLOAT[..., 0], dict(photometric="minisblack"), FLOAT[..., 0]),
            (FLOAT.astype(np.float64), dict(photometric="rgb"), FLOAT),
            (FLOAT.astype(np.float16), dict(photometric="rgb"), FLOAT.astype(np.float16)),
            (RGBA16, dict(photometric="rgb", extrasamples=["unspecified"]), COLOUR),
            (RGBA16, dict(photometric="rgb", extrasamples=["unassalpha"]), 1 - (1 - COLOUR) * ALPHA),
            (PREMULTIPLIED, dict(photometric="rgb", extrasamples=["assocalpha"]), PREMULTIPLIED_ON_WHITE),
            (RGBA16, dict(photometric="separated"), (1 - COLOUR) * (1 - ALPHA)),
            (RGBA16, dict(photometric="rgb", extrasamples=["unassalpha"], planar=True), 1 - (1 - COLOUR) * ALPHA),
            (RGBA16, dict(photometric="rgb", extrasamples=["unassalpha"], tile=(16, 16)), 1 - (1 - COLOUR) * ALPHA),
            (RGBA16[..., 2:], dict(photometric="minisblack", extrasamples=["unassalpha"]), GRAY_ON_WHITE),
            (RGBA16[..., 2:], dict(photometric="minisblack", extrasamples=["unassalpha"], planar=True), GRAY_ON_WHITE),
            (RGBA16[..., 2:], dict(photometric="miniswhite", extrasamples=["unspecified"]), 1 - COLOUR[..., 2]),
            (GRAY_ALPHA_8, dict(photometric="minisblack", extrasamples=["unassalpha"], planar=True), GRAY_8_ON_WHITE),
            (SIX, SIX_TAGS, SIX_ON_WHITE),
        ],
    )
    def test_every_layout_of_samples(self, tmp_path, array, options, expected, byteorder, compression):
        path = save_tiff(tmp_path / "a.tif", array, byteorder=byteorder, compression=compression, **options)
        image = read_image(path)
        assert image.dtype == np.float32
        expected = np.repeat(expected[..., None], 3, axis=2) if expected.ndim == 2 else expected
        np.testing.assert_allclose(image, expected, atol=1e-6)
        assert image_size(path) == SHAPE

    @pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "I;16", "F"])
    def test_every_compression_that_pillow_writes(self, tmp_path, mode, compression):
        if compression == "jpeg" and mode in ("I;16", "F"):
            pytest.skip("JPEG has 8 bits")
        wide = {"I;16": GRAY16, "F": FLOAT[..., 0]}
        picture = Image.fromarray(wide[mode]) if mode in wide else Image.fromarray(smooth((24, 40))).convert(mode)
        path = save(tmp_path / "a.tif", picture, compression=compression)
        tolerance = 0.05 if compression == "jpeg" else 1e-6
        np.testing.assert_allclose(read_image(path), to_array(picture), atol=tolerance)

    def test_16_bit_colour_in_lzw_is_cut_to_8_bits(self, tmp_path, monkeypatch):
        """Without imagecodecs; the file is an 8-bit one of twice the width whose header is changed."""
        picture = np.ascontiguousarray(RGB16).view(np.uint8).reshape(SHAPE[0], 2 * SHAPE[1], 3)
        path = save(tmp_path / "a.tif", picture, compression="tiff_lzw")
        set_tag(set_tag(path, 256, SHAPE[1], 0), 258, 16, 16, 16)
        monkeypatch.setattr("hta.images.find_spec", lambda name: None)
        np.testing.assert_array_equal(read_image(path), (RGB16 >> 8).astype(np.float32) / 255)

    def test_16_bit_gray_in_lzw_keeps_16_bits_and_its_polarity(self, tmp_path, monkeypatch):
        path = save(tmp_path / "a.tif", Image.fromarray(GRAY16), compression="tiff_lzw")
        monkeypatch.setattr("hta.images.find_spec", lambda name: None)
        np.testing.assert_array_equal(read_image(path)[..., 0], scaled(GRAY16))
        np.testing.assert_array_equal(read_image(set_tag(path, 262, 0))[..., 0], 1 - scaled(GRAY16))

    def test_32_bit_integers_only_within_16_bits(self, tmp_path):
        path = save(tmp_path / "a.tif", np.array([[0, 13107, 65535]], dtype=np.int32))
        np.testing.assert_allclose(read_image(path)[0, :, 0], [0, 0.2, 1], atol=1e-7)
        path = save(tmp_path / "a.tif", np.array([[0, 65536]], dtype=np.int32))
        refused(lambda: read_image(path), "a.tif: type int32")

    @pytest.mark.parametrize("value", [200, -0.1, np.nan])
    def test_float_out_of_range_is_refused(self, tmp_path, value):
        path = save_tiff(tmp_path / "a.tif", np.full((*SHAPE, 3), value, np.float32), photometric="rgb")
        refused(lambda: read_image(path), "a.tif: values outside [0, 1]")

    @pytest.mark.parametrize(
        ("array", "options", "message"),
        [
            (RGB16, dict(photometric="cielab"), "CIELAB"),
            (RGB16, dict(photometric="ycbcr"), "YCBCR"),
            (RGB, dict(photometric="ycbcr"), "YCBCR"),
            (RGB, dict(photometric="cielab"), "CIELAB"),
            (GRAY16, dict(photometric="palette", colormap=np.zeros((3, 65536), np.uint16)), "not an image"),
            (RGB[..., 0].view(np.int8), dict(photometric="minisblack"), "signed bytes"),
            (RGB16.astype(np.int32) - 40000, dict(photometric="rgb"), "type int32"),
            (np.repeat(RGB16[..., :1], 5, axis=2), dict(photometric="minisblack", planarconfig="contig"), "5 samples"),
        ],
    )
    def test_layouts_that_would_be_misread_are_refused(self, tmp_path, array, options, message):
        for compression in (None, "zlib"):
            path = save_tiff(tmp_path / "a.tif", array, compression=compression, **options)
            refused(lambda path=path: read_image(path), "a.tif: ", message)

    def test_12_bits_are_refused_and_so_are_planes_that_only_pillow_decodes(self, tmp_path, monkeypatch):
        path = save_tiff(tmp_path / "a.tif", GRAY16, photometric="minisblack")
        refused(lambda: read_image(set_tag(path, 258, 12)), "12 bits per sample")
        path = save_tiff(tmp_path / "a.tif", RGB16, photometric="rgb", planar=True)
        monkeypatch.setattr("hta.images.find_spec", lambda name: None)
        refused(lambda: read_image(set_tag(path, 259, 5)), "separate planes")

    def test_missing_strips_are_refused(self, tmp_path):
        path = save_tiff(tmp_path / "a.tif", RGB16, photometric="rgb", rowsperstrip=1)
        refused(lambda: read_image(set_tag(path, 257, 9)), "a.tif: damaged", "missing")

    @pytest.mark.parametrize("array", [RGB, RGB16])
    def test_the_first_of_several_frames_with_a_notice(self, tmp_path, array, caplog):
        path = save_tiff(tmp_path / "a.tif", np.stack([array, array[::-1]]), photometric="rgb")
        with caplog.at_level(logging.INFO):
            np.testing.assert_array_equal(read_image(path), scaled(array))
        assert len(caplog.messages) == 1
        assert "first of its frames" in caplog.text

    def test_tifffile_stays_quiet(self, tmp_path, caplog, recwarn):
        path = save_tiff(tmp_path / "a.tif", RGB16, photometric="rgb")
        data = path.read_bytes()
        for length in range(8, len(data), 31):
            path.write_bytes(data[:length])
            with contextlib.suppress(UserError):
                read_image(path)
        assert not caplog.messages
        assert not recwarn.list


class TestBadFiles:
    @pytest.mark.parametrize("reader", [read_image, image_size])
    def test_no_image(self, tmp_path, reader):
        path = tmp_path / "bad.png"
        refused(lambda: reader(tmp_path), str(tmp_path), "is a folder")
        refused(lambda: reader(path), str(path), "no such file")
        for content, message in ((b"", "empty"), (b"some text\n" * 9, "not an image"), (GIF, "not an image")):
            path.write_bytes(content)
            refused(lambda: reader(path), str(path), message)

    @pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "16-bit tif", "16-bit zlib tif"])
    @pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.9])
    def test_truncated(self, tmp_path, suffix, part):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        if "16-bit" in suffix:
            compression = "zlib" if "zlib" in suffix else None
            path = save_tiff(tmp_path / "a.tif", noise * np.uint16(257), photometric="rgb", compression=compression)
        else:
            path = save(tmp_path / f"a.{suffix}", noise)
        data = path.read_bytes()
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(UserError, match=r"a\..*: (not an image|damaged)") as error:
            read_image(path)
        assert "\n" not in str(error.value)

    def test_damaged_bytes_never_escape_as_another_error(self, tmp_path):
        rng = np.random.default_rng(0)
        paths = [save(tmp_path / f"a.{suffix}", smooth((16, 16))) for suffix in ("png", "jpg", "tif", "webp", "bmp")]
        paths.append(save_tiff(tmp_path / "b.tif", RGB16, photometric="rgb", compression="zlib"))
        for path in paths:
            data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
            for _ in range(40 * TIMES):
                broken = data.copy()
                broken[rng.integers(0, len(data), 4)] = rng.integers(0, 256, 4)
                path.write_bytes(broken.tobytes())
                with contextlib.suppress(UserError):
                    image = read_image(path)
                    assert 0 <= image.min() <= image.max() <= 1

    @pytest.mark.parametrize("limit", [100, 50])
    @pytest.mark.parametrize("name", ["a.png", "a.tif"])
    def test_too_many_pixels(self, tmp_path, monkeypatch, recwarn, limit, name):
        path = save(tmp_path / name, np.zeros((10, 11), dtype=np.uint16))  # 110: above one, and above twice, the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        refused(lambda: read_image(path), "million pixels; crop it")
        assert not recwarn.list

    def test_more_pixels_can_be_allowed(self, tmp_path, monkeypatch):
        path = save(tmp_path / "a.png", np.zeros((10, 11), dtype=np.uint8))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
        monkeypatch.setenv(images.LIMIT_VARIABLE, "1")
        assert read_image(path).shape == (10, 11, 3)
        monkeypatch.setenv(images.LIMIT_VARIABLE, "1e3")
        refused(lambda: read_image(path), "HTA_MAX_MEGAPIXELS: '1e3' is not a number")

    def test_only_regular_files_of_a_sane_size(self, tmp_path):
        os.mkfifo(tmp_path / "a.png")
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(str(tmp_path / "b.png"))
            for path in (tmp_path / "a.png", tmp_path / "b.png", "/dev/zero"):
                for reader in (read_image, image_size):
                    refused(lambda path=path, reader=reader: reader(path), "is a pipe, a socket or a device")
        sparse = save(tmp_path / "c.png", RGB)
        os.truncate(sparse, 8 << 30)
        refused(lambda: read_image(sparse), "8.0 GiB, too large")

    def test_headers_that_promise_too_much(self, tmp_path):
        path = tmp_path / "a.png"
        for width, height in ((1, 89_478_484), (89_478_484, 1)):
            path.write_bytes(png_file((width, height), b""))
            refused(lambda: read_image(path), f"{width} x {height} px")
            refused(lambda: image_size(path), f"{width} x {height} px")
        data = bytearray(jpeg_file(smooth((64, 64))))
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", 9400, 9400)
        path.write_bytes(data)
        refused(lambda: read_image(path), "too few for 9400 x 9400 px")
        data = jpeg_file(smooth((64, 64)), progressive=True)
        path.write_bytes(data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 1000 + data[-2:])
        refused(lambda: read_image(path), "scans")

    def test_a_strip_that_is_a_bomb(self, tmp_path, monkeypatch):
        path = save_tiff(tmp_path / "a.tif", np.zeros((64, 64, 3), np.uint16), photometric="rgb", compression="zlib")
        monkeypatch.setattr(images, "_BOMB_BYTES", 10)
        assert read_image(path).max() == 0
        refused(lambda: read_image(set_tag(set_tag(path, 257, 60), 278, 60)), "holds more than its pixels")

    @pytest.mark.parametrize("missing", [1, 17, 47, 48])
    @pytest.mark.parametrize("interlaced", [False, True])
    def test_png_with_too_few_rows(self, tmp_path, missing, interlaced):
        black = np.zeros((48, 64, 3), np.uint8)
        for array in (smooth((48, 64)), black):
            steps = ADAM7 if interlaced else [(0, 0, 1, 1)]
            rows = [b"\0" + row.tobytes() for x, y, dx, dy in steps for row in array[y::dy, x::dx]]
            path = tmp_path / "a.png"
            path.write_bytes(png_file((64, 48), b"".join(rows), interlaced=interlaced))
            np.testing.assert_array_equal(read_image(path), scaled(array))
            path.write_bytes(png_file((64, 48), b"".join(rows[:-missing]), interlaced=interlaced))
            refused(lambda path=path: read_image(path), "early" if rows[:-missing] else "truncated")

    @pytest.mark.parametrize("progressive", [False, True])
    @pytest.mark.parametrize("subsampling", [0, 2])
    @pytest.mark.parametrize("part", [0.8, 0.9])
    def test_jpeg_cut_before_its_end_marker(self, tmp_path, progressive, subsampling, part):
        noise = np.random.default_rng(0).integers(0, 256, (49, 65, 3), dtype=np.uint8)
        for array in (noise, smooth((96, 96)), np.full((96, 96, 3), 200, np.uint8)):
            data = jpeg_file(array, progressive=progressive, subsampling=subsampling)
            path = tmp_path / "a.jpg"
            path.write_bytes(data)
            assert read_image(path).shape == array.shape
            start = data.index(b"\xff\xda") + 20  # not within the header
            path.write_bytes(data[: max(start, int(len(data) * part))].rstrip(b"\xff") + b"\xff\xd9")
            refused(lambda path=path: read_image(path), "a.jpg: damaged")

    def test_mutated_files_give_an_image_or_one_line_and_nothing_else(self, tmp_path):
        """In a process of its own, whose memory and stderr are watched."""
        script = Path(__file__).with_name("mutated_images.py")
        found = json.loads(run_python(script, tmp_path))
        assert found.pop("odd") == []
        assert found.pop("slowest_s") < 10
        assert found.pop("grown_mib") < 1024
        assert min(found["read"], found["refused"]) > 20


class TestLarge:
    """Images from 20 megapixels on, here from 3,000 pixels on."""

    @pytest.fixture(autouse=True)
    def _small_limits(self, monkeypatch):
        monkeypatch.setattr(images, "LARGE", 3000)
        monkeypatch.setattr(images, "_REDUCED", 1000)
        monkeypatch.setattr(images, "_BAND", 16)

    @pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "16-bit tif", "array", "PIL"])
    @pytest.mark.parametrize("orientation", [1, 6])
    def test_boxes_are_averaged_and_the_size_is_kept(self, tmp_path, suffix, orientation):
        stored = smooth((50, 66))  # 3,300 pixels: boxes of 2 x 2
        expected = scaled(stored).reshape(25, 2, 33, 2, 3).mean(axis=(1, 3))
        exif = Image.Exif()
        exif[0x0112] = orientation
        path, upright = tmp_path / f"a.{suffix}", orientation == 1 or suffix in ("array", "PIL", "bmp")
        if suffix == "array":
            image = to_array(stored)
        elif suffix == "PIL":
            image = to_array(Image.fromarray(stored))
        elif suffix == "16-bit tif":
            tags = [(274, 3, 1, orientation, True)]
            image = read_image(save_tiff(path, stored * np.uint16(257), photometric="rgb", extratags=tags))
        else:
            options = {"bmp": {}, "webp": {"lossless": True, "exif": exif}}.get(suffix, {"exif": exif})
            image = read_image(save(path, stored, **options))
            assert image_size(path) == ((50, 66) if upright else (66, 50))
        if not upright:
            expected = expected.swapaxes(0, 1)[:, ::-1]
        assert images.full_size(image) == ((50, 66) if upright else (66, 50))
        assert np.abs(image - expected).mean() < (0.02 if suffix == "jpg" else 1e-6)

    def test_odd_sides_and_transparency(self, tmp_path):
        rgba = np.dstack([smooth((55, 101)), np.full((55, 101), 255, np.uint8)])  # 5,555 pixels: boxes of 4 x 4
        rgba[:4, :4, 3] = 0
        image = read_image(save(tmp_path / "a.png", rgba))
        assert (image.shape, images.full_size(image)) == ((14, 26, 3), (55, 101))
        np.testing.assert_allclose(image[0, 0], 1)
        np.testing.assert_allclose(image[1, 1], scaled(rgba)[4:8, 4:8, :3].mean(axis=(0, 1)), atol=1e-6)
        np.testing.assert_allclose(image[-1, 0], scaled(rgba)[[52, 53, 54, 54], :4, :3].mean(axis=(0, 1)), atol=1e-6)

    @pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
    def test_a_mask_keeps_every_pixel(self, tmp_path, suffix):
        mask = np.zeros((50, 66), np.uint8)
        mask[31, 47] = 255
        levels = images.read_levels(
            save(tmp_path / f"a.{suffix}", mask, **({"quality": 95} if suffix == "jpg" else {}))
        )
        assert levels.shape == (50, 66)
        assert np.argwhere(levels > 0.5).tolist() == [[31, 47]]

    def test_a_smaller_image_is_untouched(self, tmp_path):
        array = smooth((50, 59))
        image = read_image(save(tmp_path / "a.png", array))
        assert type(image) is np.ndarray
        np.testing.assert_array_equal(image, scaled(array))


def test_24_megapixels_take_little_memory(tmp_path):
    array = np.zeros((4000, 6000, 3), np.uint8)
    array[::2] = 255
    paths = [save(tmp_path / "a.jpg", array), save(tmp_path / "a.png", array, compress_level=1)]
    code = "import sys, resource; from hta.images import read_image; peak = lambda: resource.getrusage(0).ru_maxrss\n"
    code += "first = peak()\nfor path in sys.argv[1:]: print(read_image(path)[::1999, ::2999].tolist())\n"
    code += "print((peak() - first) // 1024)"
    *pictures, grown = run_python("-c", code, *paths).splitlines()
    assert int(grown) < 500
    for picture in pictures:
        np.testing.assert_allclose(json.loads(picture), np.full((2, 2, 3), 0.5), atol=0.01)


class TestArrays:
    @pytest.mark.parametrize(
        ("array", "expected"),
        [
            (np.array([[0, 51, 255]], dtype=np.uint8), [0, 0.2, 1]),
            (np.array([[0, 13107, 65535]], dtype=np.uint16), [0, 0.2, 1]),
            (np.array([[False, True]]), [0, 1]),
            (np.array([[0, 0.25, 1]], dtype=np.float64), [0, 0.25, 1]),
            (np.array([[0, 0.25, 1]], dtype=np.float16), [0, 0.25, 1]),
        ],
    )
    @pytest.mark.parametrize("channels", [0, 1, 3])
    def test_accepted_types_and_shapes(self, array, expected, channels):
        given = np.repeat(array[..., None], channels, axis=2) if channels else array
        result = to_array(given)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, np.repeat(np.array([expected])[..., None], 3, axis=2), atol=1e-7)
        assert not np.shares_memory(result, given)

    def test_path_text_and_pil_image_agree(self, tmp_path):
        path = save(tmp_path / "a.png", RGB)
        for image in (path, str(path), Image.open(path), RGB):
            np.testing.assert_array_equal(to_array(image), scaled(RGB))

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (np.full((2, 2), np.nan), "NaN"),
            (np.full((2, 2), 1.5), "outside [0, 1]"),
            (np.full((2, 2), -0.1), "outside [0, 1]"),
            (np.zeros((2, 2), dtype=np.int64), "int64"),
            (np.zeros((2, 2), dtype=np.complex64), "complex64"),
            (np.zeros((3, 8, 8), dtype=np.uint8), "shape"),
            (np.zeros(4, dtype=np.uint8), "shape"),
            (np.zeros((0, 4), dtype=np.uint8), "shape"),
            ([[0.5]], "list"),
        ],
    )
    def test_rejected(self, bad, message):
        refused(lambda: to_array(bad), message)


class TestWritePng:
    def test_round_trip_replaces(self, tmp_path):
        for array in (RGB, RGB[..., 0], GRAY16, GRAY16[:1, :1]):
            write_png(tmp_path / "a.png", array)
            np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), array)
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

    def test_failures_leave_no_temporary_file(self, tmp_path):
        (tmp_path / "a.png").mkdir()
        for path in (tmp_path / "none" / "a.png", tmp_path / "a.png"):
            with pytest.raises(RunError, match=r"a\.png: cannot be written") as error:
                write_png(path, RGB)
            assert "\n" not in str(error.value)
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

    def test_full_disk_keeps_the_old_file(self, tmp_path):
        resource = pytest.importorskip("resource")
        write_png(tmp_path / "a.png", RGB)
        noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
        try:
            with pytest.raises(RunError, match="too large"):
                write_png(tmp_path / "a.png", noise)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), RGB)
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


class TestTensors:
    def test_is_gray_is_exact(self):
        image = np.full((2, 2, 3), 0.5, dtype=np.float32)
        assert is_gray(image)
        image[1, 0, 2] = np.nextafter(np.float32(0.5), np.float32(1))
        assert not is_gray(image)

    def test_tensor_and_back(self):
        levels = np.arange(256, dtype=np.uint8).reshape(8, 32)
        image = np.stack([levels, levels[::-1], levels.T.reshape(8, 32)], axis=2)
        tensor = to_tensor([to_array(image), to_array(image[:, ::-1])])
        assert tensor.shape == (2, 3, 8, 32)
        assert tensor.dtype == torch.float32
        assert (tensor.min(), tensor.max()) == (-1, 1)
        np.testing.assert_array_equal(to_uint8(tensor), [image, image[:, ::-1]])
        np.testing.assert_array_equal(to_uint8(tensor[0]), image)

    def test_to_uint8_clamps_and_rounds(self):
        # 127.5 * (x + 1): 0.4 and 0.6 levels above 100 go to 100 and 101.
        tensor = torch.tensor([-2.0, 1.7, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1]).expand(3, 1, 4)
        np.testing.assert_array_equal(to_uint8(tensor)[0, :, 0], [0, 255, 100, 101])

    def test_to_tensor_rejects_other_sizes_and_nothing(self):
        with pytest.raises(UserError, match="number 1 is 3 x 2 px"):
            to_tensor([np.zeros((2, 2, 3)), np.zeros((2, 3, 3))])
        with pytest.raises(UserError, match="none given"):
            to_tensor([])


def resampling_matrix(target, source):
    """Rows of normalised weights of the cubic kernel, a = -0.5, widened by the ratio when shrinking; float64."""
    a, ratio = -0.5, source / target
    distance = (np.arange(source)[None] + 0.5 - (np.arange(target)[:, None] + 0.5) * ratio) / max(ratio, 1)
    x = np.abs(distance)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(axis=1, keepdims=True)


class TestResize:
    @pytest.mark.parametrize("target", [(13, 9), (41, 50), (13, 50), (20, 31)])
    def test_equals_an_independent_float64_bicubic(self, rng, target):
        images = rng.uniform(-1, 1, (2, 3, 20, 30))
        expected = resampling_matrix(target[0], 20) @ images @ resampling_matrix(target[1], 30).T
        result = resize(torch.from_numpy(images), target)
        assert result.dtype == torch.float64
        np.testing.assert_allclose(result, expected.clip(-1, 1), atol=1e-12)
        single = resize(torch.from_numpy(images).float(), target)
        assert single.dtype == torch.float32
        np.testing.assert_allclose(single, expected.clip(-1, 1), atol=1e-5)

    def test_clamps_before_and_after(self):
        step = torch.full((1, 1, 8, 8), -5.0)
        step[..., 4:] = 5
        clamped = resize(step.clamp(-1, 1), (8, 20))
        result = resize(step, (8, 20))
        assert torch.equal(result, clamped)
        assert result.abs().max() == 1  # bicubic overshoots at the step
        assert torch.equal(resize(step, (8, 8)), step.clamp(-1, 1))

    def test_an_image_does_not_depend_on_its_batch_and_bfloat16_is_computed_in_float32(self, rng):
        images = torch.from_numpy(rng.uniform(-1, 1, (4, 3, 20, 30))).bfloat16()
        together = resize(images.float(), (13, 17))
        assert torch.equal(together, torch.cat([resize(image[None], (13, 17)) for image in images]))
