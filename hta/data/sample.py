"""An image of a data set or a folder, which can read itself and its mask."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hta.data.masks import Marked, measure, read_mask
from hta.data.preparation import prepare_mask, prepare_test_image
from hta.data.specs import BenchmarkSpec
from hta.errors import UserError
from hta.images import image_size, to_array


@dataclass(frozen=True, eq=False)
class Sample:
    """One image, decoded only when it is read. Two samples are equal only if they are the same object.

    Attributes:
        source: The image file, or the pixels, uint8 `(H, W)` or `(H, W, 3)`.
        relative: Its name, unique within its split: for a file the path relative to the folder that was given, with
            forward slashes, else split and index, as in `test/17`.
        label: 1 = anomalous, 0 = normal, None = unknown.
        defect: The kind of defect, or the class of an image that is anomalous because of it; None for normal images and
            where it is unknown.
        masks: Files of the anomalous pixels, which are united; empty where there are none.
        invert_masks: Whether the masks mark the normal pixels instead.
        classes: The classes of its data set that it belongs to: one, or in Paris any number.
        spec: How a data set prepares the image for scoring; None: it is scored as it is.
    """

    source: Path | np.ndarray
    relative: str
    label: int | None = None
    defect: str | None = None
    masks: tuple[Path, ...] = ()
    invert_masks: bool = False
    classes: tuple[str, ...] = ()
    spec: BenchmarkSpec | None = None

    def read(self) -> np.ndarray:
        """Return the image, `(H, W, 3)` float32 in [0, 1]; an unreadable file is a `UserError`."""
        image = to_array(self.source)
        return image if self.spec is None else prepare_test_image(image, self.spec)

    def read_mask(self) -> np.ndarray | None:
        """Return the anomalous pixels, `(H, W)` bool of the same size as the image; None without a mask.

        Raises:
            UserError: A mask cannot be read, or its size differs from that of the image.
        """
        if not self.masks:
            return None
        shape = image_size(self.source) if isinstance(self.source, Path) else self.source.shape[:2]
        united = np.zeros(shape, dtype=bool)
        for path in self.masks:
            mask = read_mask(path)
            if mask.shape != shape:
                raise UserError(
                    f"{path}: {mask.shape[1]} x {mask.shape[0]} px (width x height), but its image {self.source} has "
                    f"{shape[1]} x {shape[0]}; make the mask as large as the image"
                )
            united |= mask != self.invert_masks
        return united if self.spec is None else prepare_mask(united, self.spec)


def summary(samples: Collection[Sample]) -> str:
    """What a set of images was read as, in a line: `60 images: 24 good, 36 in 3 kinds of defect, 36 masks`."""
    good, anomalous, unknown = (sum(sample.label == label for sample in samples) for label in (0, 1, None))
    named = [sample.defect for sample in samples if sample.defect]
    parts = [f"{good} good"] if good + anomalous else []
    parts += [f"{len(named)} in {_count(len(set(named)), 'kind')} of defect"] if named else []
    parts += [f"{anomalous - len(named)} defective"] if anomalous > len(named) else []
    parts += [f"{unknown} without a label"] if unknown else []
    masks = sum(len(sample.masks) for sample in samples)
    return f"{_count(len(samples), 'image')}: {', '.join(parts)}, {_count(masks, 'mask') if masks else 'no masks'}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def check_readable(samples: Iterable[Sample], marked: list[Marked] | None = None) -> dict[str, str]:
    """Read every image and mask once, to find all faults before the work begins; `marked` receives what masks mark.

    Returns the reason in one line for each image that cannot be read, or whose mask cannot, by its name, in order.
    """
    reasons: dict[str, str] = {}
    for sample in samples:
        try:
            sample.read()
            if (mask := sample.read_mask()) is not None and marked is not None:
                marked.append(measure(mask, sample.label))
        except UserError as error:
            reasons[sample.relative] = str(error)
    return reasons
