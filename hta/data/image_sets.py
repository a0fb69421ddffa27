"""A benchmark in hand: lazily read training and test images, and which of them are normal for which class."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hta.data.folders import read_mask
from hta.data.preparation import prepare_mask, prepare_test_image, prepare_training_image
from hta.data.specs import BenchmarkSpec, class_index
from hta.errors import UserError
from hta.images import IMAGE_SUFFIXES, image_size, read_image, to_array

NO_CLASS = -1


class ImageSource(Protocol):
    """Images by index, in data-set order; nothing is decoded before it is asked for."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """Return an image as it is, `(H, W, 3)` float32 in [0, 1]."""
        ...

    def identifier(self, index: int) -> str:
        """Return what names the image in a record of a run."""
        ...


@dataclass(frozen=True)
class ArrayImages:
    """Images of one array or tensor, `(N, H, W)` gray or `(N, H, W, 3)`, uint8."""

    data: Any
    split: str

    def __len__(self) -> int:
        return len(self.data)

    def read(self, index: int) -> np.ndarray:
        """Return an image as it is, `(H, W, 3)` float32 in [0, 1]; gray is repeated on three channels."""
        return to_array(np.asarray(self.data[index]))

    def identifier(self, index: int) -> str:
        """Return split and index, as in `train/17`."""
        return f"{self.split}/{index}"


@dataclass(frozen=True)
class FileImages:
    """Image files below a folder."""

    root: Path
    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> np.ndarray:
        """Return an image as it is, `(H, W, 3)` float32 in [0, 1]."""
        return read_image(self.files[index])

    def identifier(self, index: int) -> str:
        """Return the file's path below the folder."""
        return self.files[index].relative_to(self.root).as_posix()


@dataclass(frozen=True)
class Benchmark:
    """A data set under the protocol.

    Attributes:
        spec: Its row of the table.
        train: The images to draw training images from.
        test: The images to score.
        train_members: For each class, the indices of its training images, in data-set order.
        normals: For each class, the indices of the test images that are normal for it.
        strata: For each test image, the group that a stratified part of the test set keeps in proportion.
        scored: For each class, the test images that are scored for it; None: all of them for every class.
        masks: Masks of defective test images by index; None: the data set has no masks.
        one_pool: Training and test indices mean the same images, so that training images must leave the test set.
    """

    spec: BenchmarkSpec
    train: ImageSource
    test: ImageSource
    train_members: tuple[tuple[int, ...], ...]
    normals: tuple[frozenset[int], ...]
    strata: tuple[str, ...]
    scored: tuple[tuple[int, ...], ...] | None = None
    masks: Mapping[int, Path] | None = None
    one_pool: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order, in the paper's spelling."""
        return self.spec.classes

    @property
    def is_gray(self) -> bool:
        """Whether the images are gray."""
        return self.spec.is_gray

    @property
    def test_size(self) -> int:
        """Number of test images, over all classes."""
        return len(self.test)

    def class_index(self, pos_class: str | int) -> int:
        """Return the label of a class by name, usual spelling or number; UserError lists the choices."""
        return class_index(self.spec, pos_class)

    def train_indices(self, pos_class: str | int) -> list[int]:
        """Return the indices of a class's training images, in data-set order.

        Raises:
            UserError: The data set, as it lies on the disk, has no training image of this class.
        """
        label = self.class_index(pos_class)
        if not self.train_members[label]:
            raise UserError(f"--pos_class {pos_class}: {self.spec.title} lies there without this class; add its files")
        return list(self.train_members[label])

    def train_image(self, index: int) -> np.ndarray:
        """Return a training image, prepared, CLAHE included: `(size, size, 3)` float32 in [0, 1]."""
        return prepare_training_image(self.train.read(index), self.spec)

    def train_id(self, index: int) -> str:
        """Return what names a training image in a record of a run."""
        return self.train.identifier(index)

    def test_candidates(self, pos_class: str | int, training: Collection[int] = ()) -> list[int]:
        """Return the indices of the test images that are scored for a class.

        Args:
            pos_class: The normal class.
            training: Indices of the training images, left out where they are among the test images.
        """
        label = self.class_index(pos_class)
        indices: Sequence[int] = range(self.test_size) if self.scored is None else self.scored[label]
        left_out = set(training) if self.one_pool else set()
        return [index for index in indices if index not in left_out]

    def is_normal(self, index: int, pos_class: str | int) -> bool:
        """Return whether a test image is normal for a class."""
        return index in self.normals[self.class_index(pos_class)]

    def test_image(self, index: int) -> np.ndarray:
        """Return a test image, prepared: `(size, size, 3)` float32 in [0, 1]."""
        return prepare_test_image(self.test.read(index), self.spec)

    def test_id(self, index: int) -> str:
        """Return what names a test image in a record of a run."""
        return self.test.identifier(index)

    def test_mask(self, index: int) -> np.ndarray | None:
        """Return a test image's defect mask, `(size, size)` bool; None where there is none.

        Raises:
            UserError: The mask has another size than its image.
        """
        mask = (self.masks or {}).get(index)
        if mask is None:
            return None
        image = self.test.read(index)
        if image_size(mask) != image.shape[:2]:
            raise UserError(f"{mask}: its size is not that of {self.test_id(index)}; restore both from the data set")
        return prepare_mask(read_mask(mask), self.spec)


def labelled_benchmark(
    spec: BenchmarkSpec, train: ImageSource, train_labels: Sequence[int], test: ImageSource, test_labels: Sequence[int]
) -> Benchmark:
    """Return the benchmark of a data set with one label an image.

    Args:
        spec: Its row of the table.
        train: Training images.
        train_labels: Their labels, indices into `spec.classes`.
        test: Test images.
        test_labels: Their labels.
    """
    return Benchmark(
        spec=spec,
        train=train,
        test=test,
        train_members=_members(train_labels, len(spec.classes)),
        normals=tuple(frozenset(members) for members in _members(test_labels, len(spec.classes))),
        strata=tuple(spec.classes[int(label)] for label in test_labels),
    )


def array_benchmark(spec: BenchmarkSpec, train: Any, test: Any) -> Benchmark:
    """Return the benchmark of two data sets in torchvision's manner, each with `data` (uint8) and `targets`.

    Raises:
        UserError: Numbers of images and labels differ, or a label is out of range.
    """
    for split, dataset in (("train", train), ("test", test)):
        labels = np.asarray(dataset.targets)
        if len(dataset.data) != len(labels) or np.any((labels < 0) | (labels >= len(spec.classes))):
            raise UserError(
                f"{spec.title}: images and labels of its {split} files do not fit together; get the files again"
            )
    return labelled_benchmark(
        spec, ArrayImages(train.data, "train"), _ints(train), ArrayImages(test.data, "test"), _ints(test)
    )


def images_in(folder: Path) -> list[Path]:
    """Return the image files that lie directly in a folder, sorted by name; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != ".")


def _ints(dataset: Any) -> list[int]:
    return [int(label) for label in np.asarray(dataset.targets)]


def _members(labels: Sequence[int], num_classes: int) -> tuple[tuple[int, ...], ...]:
    array = np.asarray(labels)
    return tuple(tuple(np.flatnonzero(array == label).tolist()) for label in range(num_classes))
