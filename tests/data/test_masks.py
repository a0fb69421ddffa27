"""Pixels of masks, and what is odd about them."""

import numpy as np
import pytest
from PIL import Image

from hta.data.masks import measure, oddities, read_mask
from hta.data.sample import Sample
from hta.errors import UserError
from tests.data.test_folders import make

BLOB = np.zeros((64, 64), dtype=bool)
BLOB[10:30, 20:47] = True
BLOB[50:53, 5:60] = True


def saved(path, pixels, mode=None, **options):
    Image.fromarray(np.asarray(pixels), mode).save(path, **options)
    return path


def palette(path, colours):
    picture = Image.fromarray(BLOB.astype(np.uint8), "P")
    picture.putpalette(colours)
    picture.save(path)
    return path


def rgba(value, alpha):
    return np.stack([np.broadcast_to(np.uint8(plane), BLOB.shape) for plane in (value, value, value, alpha)], axis=2)


FORMS = {
    "0 and 1": ("m.png", BLOB.astype(np.uint8), {}),
    "0 and 3": ("m.png", BLOB * np.uint8(3), {}),
    "0 and 255": ("m.png", BLOB * np.uint8(255), {}),
    "1 bit": ("m.png", BLOB, {}),
    "16 bits": ("m.png", BLOB * np.uint16(65535), {}),
    "16 bits, 0 and 1": ("m.tif", BLOB.astype(np.uint16), {}),
    "classes": ("m.png", BLOB * (1 + np.arange(64) % 7).astype(np.uint8) * 40, {}),
    "colour": ("m.png", BLOB[..., None] * np.array([0, 0, 200], dtype=np.uint8), {}),
    "opaque gray": ("m.png", rgba(BLOB * 255, 255), {}),
    "white on transparent": ("m.png", rgba(255, BLOB * 255), {}),
    "black on transparent": ("m.png", rgba(0, BLOB * 255), {}),
    **{f"JPEG {quality}": ("m.jpg", BLOB * np.uint8(255), {"quality": quality}) for quality in (60, 75, 95)},
    "JPEG in TIFF": ("m.tif", BLOB * np.uint8(255), {"compression": "jpeg"}),
    "WebP": ("m.webp", BLOB * np.uint8(255), {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_pixels_in_every_form(tmp_path, form):
    name, pixels, options = FORMS[form]
    mask = read_mask(saved(tmp_path / name, pixels, **options))
    assert mask.dtype == bool
    assert np.count_nonzero(mask != BLOB) <= (30 if name[-3:] in ("jpg", "ebp") or options else 0)


def test_palettes_and_smooth_edges(tmp_path):
    np.testing.assert_array_equal(read_mask(palette(tmp_path / "m.png", [0, 0, 0, 128, 0, 0])), BLOB)
    large = Image.fromarray(BLOB).resize((192, 192))
    smooth = large.convert("L").resize((64, 64), Image.Resampling.LANCZOS).rotate(0.2, Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "s.png")
    assert np.count_nonzero(read_mask(tmp_path / "s.png") != BLOB) < 60
    noisy = Image.open(saved(tmp_path / "n.jpg", BLOB * np.uint8(255)))  # a JPEG file that was saved as PNG
    noisy.save(tmp_path / "n.png")
    assert np.count_nonzero(read_mask(tmp_path / "n.png") != BLOB) <= 30


def test_an_empty_mask_is_empty_in_every_form(tmp_path):
    for number, pixels in enumerate((np.zeros((8, 8), np.uint8), rgba(0, 255), rgba(255, 0), rgba(0, 0))):
        assert not read_mask(saved(tmp_path / f"{number}.png", pixels)).any()
    assert not read_mask(saved(tmp_path / "m.jpg", np.zeros((8, 8), np.uint8))).any()


def test_masks_are_united_and_inverted(tmp_path):
    parts = [BLOB & (np.arange(64) < 30), BLOB & (np.arange(64) >= 30)]
    image = make(tmp_path, "a.png", size=(64, 64))[0]
    for inverted in (False, True):
        masks = tuple(saved(tmp_path / f"{n}_{inverted}.png", part != inverted) for n, part in enumerate(parts))
        sample = Sample(image, "a.png", masks=masks, invert_masks=inverted)
        np.testing.assert_array_equal(sample.read_mask(), BLOB)


def said(masks, labels=None, inverted=False):
    labels = labels or [1] * len(masks)
    return oddities([measure(mask, label) for mask, label in zip(masks, labels, strict=True)], inverted=inverted)


def test_inverted_and_black_masks_are_spoken_of_with_the_remedy():
    black, large = np.zeros((64, 64), bool), np.ones((64, 64), bool)
    large[:8] = large[:, -8:] = False  # a defect of most of the image does not reach all of the border
    (line,) = said([~BLOB, ~BLOB, BLOB])
    assert line.startswith("2 of 3 masks mark most")
    assert "give --invert_masks" in line
    (line,) = said([black, BLOB])
    assert line.startswith("1 of 2 masks mark nothing")
    assert "give --invert_masks" in line
    assert "leave out --invert_masks" in said([~BLOB], inverted=True)[0]
    assert "no mask that --invert_masks" in said([], inverted=True)[0]
    # Masks of good images are black, or white when they are inverted.
    assert len(said([~black, ~BLOB], labels=[0, 1])) == 1
    for quiet in ([BLOB], [large], [large, large, BLOB], [~BLOB, BLOB, BLOB], [~black, BLOB], []):
        assert said(quiet) == []
    assert said([black, BLOB], labels=[0, 1]) == said([black], labels=[None]) == []


def test_size_must_be_that_of_the_image(tmp_path):
    image, mask = make(tmp_path, "a.png", "a_mask.png")
    item = Sample(image, "a.png", masks=(mask,))
    assert item.read_mask().shape == (4, 6)
    assert Sample(image, "a.png").read_mask() is None
    Image.new("L", (4, 6)).save(mask)
    with pytest.raises(UserError, match="6 x 4") as error:
        item.read_mask()
    assert str(image) in str(error.value)
    assert str(mask) in str(error.value)
