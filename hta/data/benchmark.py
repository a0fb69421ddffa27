"""The paper's protocol: which images of a data set a run trains on and which it scores (paper, section 4).

Random choices are made by sorting on SHA-256 of (what is chosen for, index), not by a random generator: they are the
same on every machine and under every version of every library. A draw depends on data set, class, draw number and seed
alone, so all variants of the method see the same images; a draw of 5 images begins with the draw of 1.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hta.data.loaders import Benchmark, load_dataset
from hta.data.names import NORMAL_FOLDER
from hta.data.preparation import prepare_training_image
from hta.data.sample import Sample
from hta.data.specs import BenchmarkSpec, DatasetOptions, required_options
from hta.errors import UserError


@dataclass(frozen=True)
class Selection:
    """The images of one run: its normal class in the paper's spelling, and its training images, not prepared."""

    benchmark: Benchmark
    pos_class: str
    training: tuple[Sample, ...]

    def training_ids(self) -> list[str]:
        """Names of the training images."""
        return [sample.relative for sample in self.training]

    def training_images(self) -> list[np.ndarray]:
        """The training images, prepared, CLAHE included: `(size, size, 3)` float32 in [0, 1]."""
        return [prepare_training_image(sample.read(), self.benchmark.spec) for sample in self.training]

    def test_samples(self, test_limit: int | None = None, seed: int = 0) -> list[Sample]:
        """Choose the test images: all that are scored for the class, or a stratified, seeded part of them.

        Images with defects are scored for their own class alone. Training images leave the test set where they are in
        it (Paris). Of a part, each stratum (class, or kind of defect) keeps its share, rounded by largest remainder.
        Where the test set is the same for all classes, so is the part.

        Args:
            test_limit: Number of images to keep; None keeps all, as does a number beyond the test set.
            seed: Seed of the choice.

        Returns:
            Labelled samples in data-set order, prepared by the protocol when they are read.

        Raises:
            UserError: `test_limit` is below 1.
        """
        spec, trained = self.benchmark.spec, set(self.training_ids())
        indices: Sequence[int] = [
            index
            for index, sample in enumerate(self.benchmark.test)
            if (not spec.has_defects or self.pos_class in sample.classes) and sample.relative not in trained
        ]
        if test_limit is not None:
            indices = self._part(indices, test_limit, seed)
        return [self._labelled(self.benchmark.test[index]) for index in indices]

    def _part(self, indices: Sequence[int], limit: int, seed: int) -> Sequence[int]:
        if limit < 1:
            raise UserError(f"--test_limit {limit}: give at least 1, or leave it out for the whole test set")
        if limit >= len(indices):
            return indices
        strata: defaultdict[str, list[int]] = defaultdict(list)
        for index in indices:
            strata[_stratum(self.benchmark.test[index], self.benchmark.spec)].append(index)
        shares = _largest_remainder({name: len(members) for name, members in strata.items()}, limit)
        key = f"test|{self.benchmark.spec.name}"
        chosen = (_shuffled(members, f"{key}|{name}|{seed}")[: shares[name]] for name, members in strata.items())
        return sorted(index for part in chosen for index in part)

    def _labelled(self, sample: Sample) -> Sample:
        spec = self.benchmark.spec
        if spec.has_defects:
            return replace(sample, spec=spec)
        if self.pos_class in sample.classes:
            return replace(sample, label=0, spec=spec)
        return replace(sample, label=1, defect=_stratum(sample, spec), spec=spec)


def draw_images(
    benchmark: Benchmark, pos_class: str | int, num_images: int, number: int, *, in_order: bool = False, seed: int = 0
) -> Selection:
    """Choose the N training images of a run, in drawn order for a random draw, else in data-set order.

    Args:
        benchmark, pos_class: The data set and the normal class.
        num_images: N.
        number: Number of a random draw, from 0; with `in_order`, k >= 1 takes images [(k-1)N, kN) of the class.
        in_order: Take the images in data-set order instead of at random.
        seed: Seed of the random draws; does not affect images in order.

    Raises:
        UserError: An argument is out of range, or the class has too few images.
    """
    candidates = benchmark.training_candidates(pos_class)
    name = benchmark.spec.class_name(pos_class)
    if not 1 <= num_images <= len(candidates):
        raise UserError(
            f"--num_images {num_images}: class {pos_class} has {len(candidates)} images; choose 1 to {len(candidates)}"
        )
    if in_order:
        last = len(candidates) // num_images
        if not 1 <= number <= last:
            raise UserError(f"--index_download {number}: with --num_images {num_images} choose 1 to {last}")
        order = list(range((number - 1) * num_images, len(candidates)))
    else:
        # Positions within the class, not indices of the data set: the draw does not depend on the other classes.
        order = _shuffled(range(len(candidates)), f"draw|{benchmark.spec.name}|{name}|{number}|{seed}")
    return Selection(benchmark, name, tuple(candidates[position] for position in order[:num_images]))


def select(
    options: DatasetOptions, num_images: int, num_transforms: int | None = None, sources: Sequence[str] | None = None
) -> Selection:
    """Choose the images of one run from the options of a command line, or find those of a model.

    Args:
        options: Data set and class.
        num_images: N, the number of training images.
        num_transforms: M; None: the paper's.
        sources: Names of a model's training images, which are then chosen instead of the options'; those that the data
            set does not have are ignored.

    Raises:
        UserError: An option is missing or does not fit the data set.
    """
    dataset, pos_class = required_options(options)
    benchmark = load_dataset(dataset, options.data_root, num_transforms=num_transforms, download=options.download)
    if sources is None:
        in_order = not options.random_images_download
        return draw_images(benchmark, pos_class, num_images, options.index_download, in_order=in_order)
    benchmark.training_candidates(pos_class)  # refuses a class that is not on the disk
    samples = {sample.relative: sample for sample in benchmark.train}
    training = tuple(samples[name] for name in sources if name in samples)
    return Selection(benchmark, benchmark.spec.class_name(pos_class), training)


def _stratum(sample: Sample, spec: BenchmarkSpec) -> str:
    """Return the group of a test image whose share a part of the test set keeps: kind of defect, or class."""
    if spec.has_defects:
        return sample.defect or ("" if sample.label else NORMAL_FOLDER)
    return sample.classes[0] if sample.classes else "none"


def _largest_remainder(counts: Mapping[str, int], limit: int) -> dict[str, int]:
    """Split `limit` in proportion to the counts; ties are broken by name."""
    total = sum(counts.values())
    shares = {name: limit * count // total for name, count in counts.items()}
    by_remainder = sorted(counts, key=lambda name: (-(limit * counts[name] % total), name))
    for name in by_remainder[: limit - sum(shares.values())]:
        shares[name] += 1
    return shares


def _shuffled(items: Iterable[int], key: str) -> list[int]:
    return sorted(items, key=lambda item: hashlib.sha256(f"{key}|{item}".encode("utf-8", "surrogateescape")).digest())
