"""Image files, resizing and contrast equalisation."""

import contextlib
import logging
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from hta.data.clahe import clahe
from hta.errors import RunError, UserError
from hta.images import (
    ALPHA_BACKGROUND,
    image_size,
    is_gray,
    read_image,
    resize,
    to_array,
    to_tensor,
    to_uint8,
    write_png,
)

SHAPE = (5, 7)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def rgb(rng):
    return rng.integers(0, 256, (*SHAPE, 3), dtype=np.uint8)


def smooth(rng, size):
    """Low frequencies only, which JPEG keeps."""
    coarse = Image.fromarray(rng.integers(40, 216, (3, 3, 3), dtype=np.uint8))
    return np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC))


def save(path, array, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)
    return path


def rgb16_png(path, array):
    """Write a 16-bit RGB PNG by hand, since Pillow cannot."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def one_line(error):
    return "\n" not in str(error.value)


class TestReadImage:
    @pytest.mark.parametrize(
        ("suffix", "options"), [("png", {}), ("tif", {}), ("tiff", {}), ("bmp", {}), ("webp", {"lossless": True})]
    )
    def test_lossless_formats_give_the_levels_over_255(self, tmp_path, rgb, suffix, options):
        image = read_image(save(tmp_path / f"a.{suffix}", rgb, **options))
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, rgb.astype(np.float32) / 255)

    def test_jpeg(self, tmp_path, rng):
        array = smooth(rng, (32, 48))
        image = read_image(save(tmp_path / "a.jpg", array, quality=95))
        assert np.abs(image - array / 255).mean() < 0.02

    @pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, tmp_path, rng, suffix, orientation):
        upright = smooth(rng, (24, 40))
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
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = save(tmp_path / f"a.{suffix}", np.ascontiguousarray(stored), exif=exif)
        assert image_size(path) == (24, 40)
        image = read_image(path)
        assert image.shape == (24, 40, 3)
        assert np.abs(image - upright / 255).mean() < 0.03
        np.testing.assert_array_equal(to_array(Image.open(path)), image)

    def test_gray_is_repeated_on_three_channels(self, tmp_path, rgb):
        image = read_image(save(tmp_path / "a.png", rgb[..., 0]))
        np.testing.assert_array_equal(image, np.repeat(rgb[..., :1].astype(np.float32) / 255, 3, axis=2))
        assert is_gray(image)

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_16_bit_gray_keeps_16_bits(self, tmp_path, rng, suffix):
        array = rng.integers(0, 65536, SHAPE, dtype=np.uint16)
        image = read_image(save(tmp_path / f"a.{suffix}", array))
        np.testing.assert_array_equal(image[..., 1], array.astype(np.float32) / 65535)

    def test_big_endian_16_bit_tiff(self, tmp_path, rng):
        array = rng.integers(0, 65536, SHAPE, dtype=np.uint16)
        picture = Image.frombytes("I;16B", SHAPE[::-1], array.astype(">u2").tobytes())
        image = read_image(save(tmp_path / "a.tif", picture))
        np.testing.assert_array_equal(image[..., 0], array.astype(np.float32) / 65535)

    def test_16_bit_colour_is_read_at_8_bits(self, tmp_path, rng):
        array = rng.integers(0, 65536, (*SHAPE, 3), dtype=np.uint16)
        image = read_image(rgb16_png(tmp_path / "a.png", array))
        np.testing.assert_array_equal(image, (array >> 8).astype(np.float32) / 255)

    def test_32_bit_integers_only_within_16_bits(self, tmp_path):
        path = save(tmp_path / "a.tif", np.array([[0, 13107, 65535]], dtype=np.int32))
        np.testing.assert_allclose(read_image(path)[0, :, 0], [0, 0.2, 1], atol=1e-7)
        path = save(tmp_path / "a.tif", np.array([[0, 65536]], dtype=np.int32))
        with pytest.raises(UserError, match=r"a\.tif: type int32"):
            read_image(path)

    @pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
    def test_1_bit(self, tmp_path, rng, suffix):
        bits = rng.integers(0, 2, SHAPE).astype(bool)
        np.testing.assert_array_equal(read_image(save(tmp_path / f"a.{suffix}", bits))[..., 0], bits)

    def test_cmyk_jpeg(self, tmp_path):
        picture = Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK")
        image = read_image(save(tmp_path / "a.jpg", picture))
        assert np.abs(image - np.array([200, 100, 50]) / 255).max() < 0.03

    def test_float_tiff_in_range_is_taken_as_it_is(self, tmp_path, rng):
        array = rng.random(SHAPE, dtype=np.float32)
        np.testing.assert_array_equal(read_image(save(tmp_path / "a.tif", array))[..., 2], array)

    @pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
    def test_alpha_is_composited_on_white(self, tmp_path, suffix):
        # Clear, half (128 / 255) and opaque red.
        pixels = np.array([[[255, 0, 0, 0], [255, 0, 0, 128], [255, 0, 0, 255]]], dtype=np.uint8)
        options = {"lossless": True, "exact": True} if suffix == "webp" else {}
        path = save(tmp_path / f"a.{suffix}", pixels, **options)
        expected = [[[1, 1, 1], [1, 127 / 255, 127 / 255], [1, 0, 0]]]
        assert ALPHA_BACKGROUND == 1.0
        np.testing.assert_allclose(read_image(path), expected, atol=1e-6)
        np.testing.assert_allclose(read_image(path, background=0.0)[0, :2, 0], [0, 128 / 255], atol=1e-6)

    def test_gray_with_alpha_stays_gray(self, tmp_path, rng):
        pixels = rng.integers(0, 256, (*SHAPE, 2), dtype=np.uint8)
        image = read_image(save(tmp_path / "a.png", Image.fromarray(pixels, "LA")))
        value, alpha = pixels[..., 0] / 255, pixels[..., 1] / 255
        np.testing.assert_allclose(image[..., 0], value * alpha + 1 - alpha, atol=1e-6)
        assert is_gray(image)

    def test_palette_with_and_without_transparency(self, tmp_path):
        picture = Image.new("P", (2, 1))
        picture.putpalette([10, 20, 30, 40, 50, 60])
        picture.putpixel((1, 0), 1)
        plain = read_image(save(tmp_path / "a.png", picture))
        np.testing.assert_allclose(plain * 255, [[[10, 20, 30], [40, 50, 60]]], atol=1e-4)
        clear = read_image(save(tmp_path / "b.png", picture, transparency=0))
        np.testing.assert_allclose(clear * 255, [[[255, 255, 255], [40, 50, 60]]], atol=1e-4)

    def test_first_frame_of_several_with_a_notice(self, tmp_path, rgb, caplog):
        frames = [Image.fromarray(rgb), Image.fromarray(255 - rgb)]
        path = save(tmp_path / "a.tif", frames[0], save_all=True, append_images=frames[1:])
        with caplog.at_level(logging.INFO):
            np.testing.assert_array_equal(read_image(path), rgb.astype(np.float32) / 255)
        assert len(caplog.messages) == 1
        assert "2 frames" in caplog.text

    def test_jpeg_with_a_preview_of_a_phone(self, tmp_path, rng):
        frames = [Image.fromarray(smooth(rng, (32, 48))), Image.new("RGB", (16, 16))]
        path = save(tmp_path / "a.jpg", frames[0], format="MPO", save_all=True, append_images=frames[1:])
        assert np.abs(read_image(path) - np.asarray(frames[0]) / 255).mean() < 0.03

    def test_suffix_does_not_matter(self, tmp_path, rgb):
        path = save(tmp_path / "a.jpg", rgb, format="PNG")
        np.testing.assert_array_equal(read_image(path), rgb.astype(np.float32) / 255)


class TestBadFiles:
    @pytest.mark.parametrize("reader", [read_image, image_size])
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "no such file"),
            (b"", "empty"),
            (b"just some text\n" * 9, "not an image"),
            (b"GIF89a", "not an image"),
        ],
    )
    def test_no_image(self, tmp_path, reader, content, message):
        path = tmp_path / "bad.png"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            reader(path)
        assert str(path) in str(error.value)
        assert one_line(error)

    def test_folder(self, tmp_path):
        with pytest.raises(UserError, match="is a folder"):
            read_image(tmp_path)

    @pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp"])
    @pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.9])
    def test_truncated(self, tmp_path, rng, suffix, part):
        path = save(tmp_path / f"a.{suffix}", rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        data = path.read_bytes()
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(UserError, match=r"not an image|damaged") as error:
            read_image(path)
        assert str(path) in str(error.value)
        assert one_line(error)

    def test_damaged_bytes_never_escape_as_another_error(self, tmp_path, rng):
        for suffix in ("png", "jpg", "tif", "webp", "bmp"):
            path = save(tmp_path / f"a.{suffix}", smooth(rng, (16, 16)))
            data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
            for _ in range(40):
                broken = data.copy()
                broken[rng.integers(0, len(data), 4)] = rng.integers(0, 256, 4)
                path.write_bytes(broken.tobytes())
                with contextlib.suppress(UserError):
                    image = read_image(path)
                    assert 0 <= image.min() <= image.max() <= 1

    @pytest.mark.parametrize("pixels", [100, 60])
    def test_decompression_bomb(self, tmp_path, rgb, monkeypatch, recwarn, pixels):
        path = save(
            tmp_path / "a.png", np.zeros((10, 11), dtype=np.uint8)
        )  # 110: above one, and above twice, the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels if pixels == 100 else 50)
        with pytest.raises(UserError, match="million pixels; crop it"):
            read_image(path)
        assert not recwarn.list

    def test_float_tiff_out_of_range(self, tmp_path):
        path = save(tmp_path / "a.tif", np.full(SHAPE, 200, dtype=np.float32))
        with pytest.raises(UserError, match=r"a\.tif: values outside \[0, 1\]"):
            read_image(path)


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

    def test_path_text_and_pil_image_agree(self, tmp_path, rgb):
        path = save(tmp_path / "a.png", rgb)
        for image in (path, str(path), Image.open(path), rgb):
            np.testing.assert_array_equal(to_array(image), rgb.astype(np.float32) / 255)

    def test_shares_no_memory(self):
        given = np.zeros((2, 2, 3), dtype=np.float32)
        assert not np.shares_memory(to_array(given), given)

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (np.full((2, 2), np.nan), "NaN"),
            (np.full((2, 2), 1.5), r"outside \[0, 1\]"),
            (np.full((2, 2), -0.1), r"outside \[0, 1\]"),
            (np.zeros((2, 2), dtype=np.int64), "int64"),
            (np.zeros((2, 2), dtype=np.complex64), "complex64"),
            (np.zeros((2, 2, 4), dtype=np.uint8), "shape"),
            (np.zeros((3, 8, 8), dtype=np.uint8), "shape"),
            (np.zeros(4, dtype=np.uint8), "shape"),
            (np.zeros((0, 4), dtype=np.uint8), "shape"),
            ([[0.5]], "list"),
        ],
    )
    def test_rejected(self, bad, message):
        with pytest.raises(UserError, match=message) as error:
            to_array(bad)
        assert one_line(error)

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
        with pytest.raises(UserError, match="number 1 is 2 x 3 px"):
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

    @pytest.mark.parametrize("target", [(13, 9), (41, 50)])
    def test_equals_pillow_in_float(self, rng, target):
        image = rng.uniform(-0.5, 0.5, (20, 30)).astype(np.float32)
        expected = Image.fromarray(image).resize(target[::-1], Image.Resampling.BICUBIC)
        result = resize(torch.from_numpy(image)[None, None], target)[0, 0]
        np.testing.assert_allclose(result, np.asarray(expected), atol=1e-5)

    def test_clamps_before_and_after(self):
        step = torch.full((1, 1, 8, 8), -5.0)
        step[..., 4:] = 5
        clamped = resize(step.clamp(-1, 1), (8, 20))
        result = resize(step, (8, 20))
        assert torch.equal(result, clamped)
        assert result.abs().max() == 1  # bicubic overshoots at the step

    def test_same_size_returns_the_clamped_input(self, rng):
        images = torch.from_numpy(rng.uniform(-2, 2, (1, 3, 6, 5)))
        assert torch.equal(resize(images, (6, 5)), images.clamp(-1, 1))

    def test_an_image_does_not_depend_on_its_batch(self, rng):
        images = torch.from_numpy(rng.uniform(-1, 1, (4, 3, 20, 30))).float()
        together = resize(images, (13, 17))
        assert torch.equal(together, torch.cat([resize(image[None], (13, 17)) for image in images]))

    def test_bfloat16_is_computed_in_float32(self, rng):
        images = torch.from_numpy(rng.uniform(-1, 1, (1, 3, 20, 30))).bfloat16()
        assert torch.equal(resize(images, (13, 17)), resize(images.float(), (13, 17)))


def clahe_by_definition(value):
    """CLAHE of a plane whose sides are multiples of 8, one pixel and one tile at a time."""
    rows, columns = value.shape[0] // 8, value.shape[1] // 8
    tables = {}
    for i in range(8):
        for j in range(8):
            tile = value[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].ravel().tolist()
            counts = [tile.count(level) for level in range(256)]
            limit = max(1, int(2.0 * len(tile) / 256))
            excess = sum(max(0, count - limit) for count in counts)
            counts = [min(count, limit) + excess // 256 for count in counts]
            rest, level = excess % 256, 0
            step = max(1, 256 // rest) if rest else 1
            while rest and level < 256:
                counts[level] += 1
                rest, level = rest - 1, level + step
            tables[i, j] = [round(sum(counts[: level + 1]) * 255 / len(tile)) for level in range(256)]
    result = np.zeros(value.shape)
    for y in range(value.shape[0]):
        for x in range(value.shape[1]):
            across, down = x / columns - 0.5, y / rows - 0.5
            for i in (int(np.floor(down)), int(np.floor(down)) + 1):
                for j in (int(np.floor(across)), int(np.floor(across)) + 1):
                    weight = (1 - abs(down - i)) * (1 - abs(across - j))
                    result[y, x] += weight * tables[min(max(i, 0), 7), min(max(j, 0), 7)][value[y, x]]
    return result


# Made once with OpenCV 5.0 (createCLAHE(2.0, (8, 8)) on V of COLOR_RGB2HSV) from the images that the tests build.
REFERENCE_GRAY = [
    [64, 128, 96, 128, 96, 128, 96, 128, 96, 128],
    [191, 255, 223, 255, 223, 255, 223, 255, 223, 255],
    [160, 192, 176, 192, 176, 192, 176, 192, 176, 192],
    [191, 255, 223, 255, 223, 255, 223, 255, 223, 255],
    [160, 192, 176, 192, 176, 192, 176, 192, 176, 192],
    [191, 255, 223, 255, 223, 255, 223, 255, 223, 255],
    [160, 192, 176, 192, 176, 192, 176, 192, 176, 192],
    [191, 255, 223, 255, 223, 255, 223, 255, 223, 255],
    [223, 255, 239, 255, 239, 255, 239, 255, 239, 255],
]
REFERENCE_COLOUR = [  # every fourth row, every third column
    [[128, 32, 96], [137, 255, 101], [65, 223, 47], [52, 255, 37]],
    [[160, 13, 38], [160, 101, 152], [126, 147, 207], [113, 191, 24]],
    [[255, 13, 37], [255, 97, 255], [192, 137, 105], [155, 160, 17]],
]


class TestClahe:
    @pytest.mark.parametrize("shape", [(32, 48), (48, 24), (128, 136)])
    def test_gray_equals_the_definition(self, rng, shape):
        value = rng.integers(60, 180, shape) if shape[0] < 100 else smooth(rng, shape)[..., 0]
        result = clahe(np.repeat(value[..., None].astype(np.uint8), 3, axis=2))
        assert is_gray(result)
        assert np.abs(result[..., 0] - clahe_by_definition(value)).max() <= 0.5 + 1e-9

    def test_reference_values_with_padding(self):
        # A 9 x 10 ramp, padded to 16 x 16 by mirroring: tiles of 4 pixels, so levels are quarters, mixed.
        value = (np.arange(90).reshape(9, 10) * 2 + 20).astype(np.uint8)
        result = clahe(np.repeat(value[..., None], 3, axis=2))[..., 0]
        np.testing.assert_array_equal(result, REFERENCE_GRAY)

    def test_reference_values_in_colour(self):
        y, x = np.mgrid[:9, :10]
        image = np.stack([y * 20 + 40, x * 22 + 10, (y * x * 7 + 30) % 256], axis=2).astype(np.uint8)
        np.testing.assert_allclose(clahe(image)[::4, ::3], REFERENCE_COLOUR, atol=1)

    def test_hue_and_saturation_stay(self, rng):
        image = np.clip(smooth(rng, (64, 64)).astype(int), 30, 225).astype(np.uint8)
        before, after = (x.max(axis=2, keepdims=True) / np.maximum(x, 1) for x in (image.astype(float), clahe(image)))
        assert np.abs(before - after).max() < 0.15
        assert np.abs(clahe(image).max(axis=2).astype(int) - image.max(axis=2)).max() > 10

    def test_float_goes_by_8_bits(self, rng):
        image = smooth(rng, (32, 40))
        result = clahe(image.astype(np.float32) / 255)
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, clahe(image).astype(np.float32) / 255)

    def test_input_stays_as_it_was(self, rgb):
        copy = rgb.copy()
        clahe(rgb)
        np.testing.assert_array_equal(rgb, copy)


class TestWritePng:
    @pytest.mark.parametrize(
        ("shape", "dtype"), [(SHAPE, np.uint8), (SHAPE, np.uint16), ((*SHAPE, 3), np.uint8), ((1, 1), np.uint16)]
    )
    def test_round_trip(self, tmp_path, rng, shape, dtype):
        array = rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
        write_png(tmp_path / "a.png", array)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), array)
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

    def test_replaces(self, tmp_path, rgb):
        for array in (rgb, 255 - rgb):
            write_png(tmp_path / "a.png", array)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), 255 - rgb)

    def test_missing_folder(self, tmp_path, rgb):
        with pytest.raises(RunError, match=r"none/a\.png: cannot be written") as error:
            write_png(tmp_path / "none" / "a.png", rgb)
        assert one_line(error)

    def test_failure_leaves_no_temporary_file(self, tmp_path, rgb):
        (tmp_path / "a.png").mkdir()
        with pytest.raises(RunError, match="cannot be written"):
            write_png(tmp_path / "a.png", rgb)
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

    def test_full_disk_keeps_the_old_file(self, tmp_path, rgb, rng):
        resource = pytest.importorskip("resource")
        write_png(tmp_path / "a.png", rgb)
        noise = rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
        try:
            with pytest.raises(RunError, match="too large"):
                write_png(tmp_path / "a.png", noise)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), rgb)
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
