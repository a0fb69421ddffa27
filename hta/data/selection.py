"""One run of the protocol: a data set, its normal class, the images to train on and those to score (section 7)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hta.config import Checked, option
from hta.data.benchmarks import SPECS, Benchmark, load_benchmark
from hta.data.defect_folder import DEFECTS, load_defect_folder
from hta.data.protocol import choose_test_images, draw_training_images
from hta.data.specs import benchmark_spec
from hta.errors import UserError

ROTATIONS = 4
"""The number of transformations for which MVTec AD, and defects like its, have a preparation of their own."""


@dataclass(frozen=True)
class BenchmarkOptions(Checked):
    """A data set of the protocol instead of images of one's own."""

    dataset: str | None = option(None, f"data set of the protocol: {', '.join((*SPECS, DEFECTS))}")
    data_root: str = option("data", "folder of its files")
    pos_class: str | None = option(None, "the class that is normal: its name or number")
    index_download: int = option(1, "which images of the class: k takes the k-th --num_images of them", low=1)
    random_images_download: bool = option(False, "take the random draw of number --index_download instead")
    download: bool = option(False, "fetch CIFAR10, MNIST or FashionMNIST into --data_root")


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

    def labels(self, indices: list[int]) -> np.ndarray:
        """`(N,)` labels of test images, 1 = anomalous."""
        return np.array([int(not self.benchmark.is_normal(index, self.pos_class)) for index in indices])


def is_defect_set(dataset: str) -> bool:
    """Whether a data set's anomalies are defects, not images of another class."""
    return dataset == DEFECTS or benchmark_spec(dataset).name == "mvtec"


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
    if options.dataset is None or options.pos_class is None:
        missing = "dataset" if options.dataset is None else "pos_class"
        raise UserError(f"--{missing} is missing: name a data set and its normal class")
    benchmark = load_dataset(
        options.dataset, options.data_root, num_transforms=num_transforms, download=options.download
    )
    kind = "draw" if options.random_images_download else "index_download"
    training = draw_training_images(benchmark, options.pos_class, num_images, **{kind: options.index_download})
    return Selection(benchmark, benchmark.classes[benchmark.class_index(options.pos_class)], tuple(training))


def training_images(options: BenchmarkOptions, num_images: int) -> tuple[list[np.ndarray], list[str]]:
    """The prepared training images of one run, `(size, size, 3)` float32 in [0, 1], and what names them."""
    selection = select(options, num_images)
    return selection.training_images(), selection.training_ids()
