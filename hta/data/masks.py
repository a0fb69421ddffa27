"""Masks: which image each belongs to, which pixels it marks, and what is odd about those of a folder."""

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import numpy as np

from hta.data.names import composed, fold, image_stem, mask_kind
from hta.errors import UserError
from hta.images import read_levels

_LOSSLESS = (".png", ".apng", ".tif", ".tiff", ".bmp", ".gif")
_MAX_CLASSES = 16  # a mask of more gray levels has edges that were smoothed or compressed
_MOSTLY, _BORDER = 0.5, 0.75  # shares of an image and of its border that a mask seldom marks unless it is inverted

Key = tuple[str, ...]
Marked = tuple[float, float, int | None]
"""The shares of the pixels of an image and of its border that its masks mark, and its label."""


def key_of(path: Path, base: Path, *, is_mask: bool) -> Key:
    """What an image and its masks have in common: the folders below `base` that say something, and the stem."""
    folders = path.relative_to(base).parent.parts
    kinds = [fold(name) if not is_mask or mask_kind(name) is None else mask_kind(name) for name in folders]
    return (*filter(None, kinds), composed(path.stem).casefold())


def match_masks(
    masks: Mapping[Path, Key], images: Mapping[Path, Key], normal: Container[Path]
) -> tuple[dict[Path, tuple[Path, ...]], list[Path]]:
    """Find the masks of images, both with their keys; returns those of each image, and the masks that fit none.

    A mask has the folders of its image and its stem, with or without an ending such as `_mask`; or it is in a folder
    that has the name of its image. If only the end of an image's path fits, that must be the sole one not normal.
    Several masks of an image are in a folder of its own or numbered, else they are a `UserError`.
    """
    by_key: dict[Key, list[Path]] = defaultdict(list)
    by_end: dict[Key, list[Path]] = defaultdict(list)
    for path, key in images.items():
        by_key[key].append(path)
        for start in range(len(key) if path not in normal else 0):
            by_end[key[start:]].append(path)
    found: dict[Path, list[Path]] = defaultdict(list)
    strays: list[Path] = []
    for mask, key in masks.items():
        own_folder = (*key[:-2], composed(mask.parent.name).casefold()) if len(key) > 1 else ()
        keys = (key, (*key[:-1], image_stem(key[-1])), own_folder)
        owners = next((index[wanted] for index in (by_key, by_end) for wanted in keys if wanted in index), [])
        if len(owners) > 1:
            raise UserError(f"{mask}: the mask of both {owners[0]} and {owners[1]}; lay masks out like their images")
        found[owners[0]].append(mask) if owners else strays.append(mask)
    for image, several in found.items():
        if len(several) > 1 and not all(
            mask.parent.name == image.stem or (mask.stem[-1].isdigit() and mask.stem != image.stem) for mask in several
        ):
            raise UserError(f"{image}: two masks, {several[0]} and {several[1]}; remove one of them")
    return {image: tuple(several) for image, several in found.items()}, strays


def read_mask(path: Path) -> np.ndarray:
    """Read the pixels that a mask marks: bool (H, W).

    Of a few levels all but black mark, of many (JPEG, smooth edges) those above half of the brightest. Transparent
    pixels are black, unless all others are: then these are the marks.
    """
    levels = read_levels(path)
    if not levels.any():
        ink = 1 - read_levels(path, background=1.0)
        levels = ink if ink.min() < 1 else levels  # 1 everywhere: opaque
    brightest = levels.max()
    used = np.bincount((levels * 255).astype(np.uint8).ravel(), minlength=256)
    is_smooth = brightest > _MOSTLY and np.count_nonzero(used) > _MAX_CLASSES
    return levels > (brightest / 2 if is_smooth or path.suffix.lower() not in _LOSSLESS else 0)


def measure(mask: np.ndarray, label: int | None) -> Marked:
    """Measure a mask, bool (H, W), of an image with a label."""
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return float(mask.mean()), float(border.mean()), label


def oddities(marked: Sequence[Marked], *, inverted: bool) -> list[str]:
    """What is odd about the masks of a folder, one line for each kind; `inverted`: as the user asked."""
    black = sum(share == 0 and label == 1 for share, _, label in marked)
    turned = sum(
        (_MOSTLY < share < 1 and border > _BORDER) or (share == 1 and label == 0) for share, border, label in marked
    )
    remedy = f"if they are the wrong way round, {'leave out' if inverted else 'give'} --invert_masks"
    lines = [] if marked or not inverted else ["there is no mask that --invert_masks could turn round"]
    if turned and 2 * turned > len(marked) - black:
        lines.append(f"{turned} of {len(marked)} masks mark most of their image and of its border; {remedy}")
    if black:
        what = "mark nothing in an anomalous image; correct or remove them, or, "
        lines.append(f"{black} of {len(marked)} masks {what}{remedy}")
    return lines
