"""One run of the protocol: a data set, its normal class, the images to train on and those to score (section 7)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hta.data.benchmarks import load_benchmark
from hta.data.defect_folder import load_defect_folder
from hta.data.image_sets import Benchmark
from hta.data.protocol import choose_test_images, draw_training_images
from hta.data.specs import DEFECTS, BenchmarkOptions, is_defect_set, require_class

ROTATIONS = 4
"""The number of transformations for which MVTec AD, and defects like its, have a preparation of their own."""


@dataclass(frozen=True)
class SelectedImage:
    """A test image of a run, prepared as the protocol says when it is read; a `hta.data.scored.ScoredImage`.

    Attributes:
        selection: The run's images.
        index: Of the image in the data set.
    """

    selection: "Selection"
    index: int

    @property
    def relative(self) -> str:
        """What names it, such as `test/17`."""
        return self.selection.benchmark.test_id(self.index)

    @property
    def label(self) -> int:
        """1 = anomalous, 0 = normal."""
        return int(not self.selection.benchmark.is_normal(self.index, self.selection.pos_class))

    @property
    def defect(self) -> str | None:
        """The kind of defect or the class of an anomalous image, None for a normal one."""
        return self.selection.benchmark.strata[self.index] if self.label else None

    @property
    def mask(self) -> Path | None:
        """The file of its defect, None where there is none."""
        return (self.selection.benchmark.masks or {}).get(self.index)

    def read(self) -> np.ndarray:
        """Return the prepared image, `(size, size, 3)` float32 in [0, 1]."""
        return self.selection.benchmark.test_image(self.index)

    def read_mask(self) -> np.ndarray | None:
        """Return the defect, prepared like its image, `(size, size)` bool; None without a mask."""
        return self.selection.benchmark.test_mask(self.index)


@dataclass(frozen=True)
class Selection:
    """The images of a run.

    Attributes:
        benchmark: The data set.
        pos_class: The normal class, in the paper's spelling.
        training: Indices of the training images.
    """

    benchmark: Benchmark
    pos_class: str
    training: tuple[int, ...]

    def training_ids(self) -> list[str]:
        """What names the training images."""
        return [self.benchmark.train_id(index) for index in self.training]

    def training_images(self) -> list[np.ndarray]:
        """The prepared training images, `(size, size, 3)` float32 in [0, 1]."""
        return [self.benchmark.train_image(index) for index in self.training]

    def test_indices(self, test_limit: int | None = None, seed: int = 0) -> list[int]:
        """Indices of the test images; see `choose_test_images`."""
        return choose_test_images(
            self.benchmark, self.pos_class, training=self.training, test_limit=test_limit, seed=seed
        )

    def test_images(self, indices: Sequence[int]) -> list[SelectedImage]:
        """The test images of these indices, ready to be read."""
        return [SelectedImage(self, index) for index in indices]

    def labels(self, indices: list[int]) -> np.ndarray:
        """`(N,)` labels of test images, 1 = anomalous."""
        return np.array([image.label for image in self.test_images(indices)])


def load_dataset(
    dataset: str, data_root: str | Path, *, num_transforms: int | None = None, download: bool = False
) -> Benchmark:
    """Load any data set of the protocol, or a folder of defects ("defects").

    Args:
        dataset: Its name.
        data_root: Where its files lie.
        num_transforms: M; by default the paper's, for defects the 4 rotations.
        download: Whether torchvision may fetch it.

    Raises:
        UserError: No such data set, or its files are missing or of another form.
    """
    rotations = num_transforms in (None, ROTATIONS)
    if dataset == DEFECTS:
        return load_defect_folder(Path(data_root), rotations=rotations)
    preparation = "rotations" if rotations and is_defect_set(dataset) else "full"
    return load_benchmark(dataset, data_root, download=download, preparation=preparation)


def select(options: BenchmarkOptions, num_images: int, num_transforms: int | None = None) -> Selection:
    """Choose the images of one run from the options of a command line.

    Args:
        options: Data set and class.
        num_images: N, the number of training images.
        num_transforms: M; by default the paper's.

    Raises:
        UserError: An option is missing or does not fit the data set.
    """
    benchmark = _load(options, num_transforms)
    kind = "draw" if options.random_images_download else "index_download"
    training = draw_training_images(benchmark, options.pos_class, num_images, **{kind: options.index_download})
    return Selection(benchmark, benchmark.classes[benchmark.class_index(options.pos_class)], tuple(training))


def select_again(options: BenchmarkOptions, sources: Sequence[str], num_transforms: int | None = None) -> Selection:
    """Find the images of a model that was trained by the protocol.

    Args:
        options: Data set and class; which images of the class is told by `sources`.
        sources: What names the model's training images. Names that the data set does not have are passed over.
        num_transforms: M of the model.

    Raises:
        UserError: An option is missing or does not fit the data set.
    """
    benchmark = _load(options, num_transforms)
    pos_class = benchmark.classes[benchmark.class_index(options.pos_class)]
    benchmark.train_indices(pos_class)  # refuses a class that is not on the disk
    index_of = {benchmark.train_id(index): index for index in range(len(benchmark.train))}
    return Selection(benchmark, pos_class, tuple(index_of[name] for name in sources if name in index_of))


def _load(options: BenchmarkOptions, num_transforms: int | None) -> Benchmark:
    require_class(options)
    return load_dataset(options.dataset, options.data_root, num_transforms=num_transforms, download=options.download)
