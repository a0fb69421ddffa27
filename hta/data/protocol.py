"""Which images a run trains on and which it scores (section 7).

Random choices are made by sorting on SHA-256 of (what is chosen for, index), not by a random generator: they are the
same on every machine and under every version of every library. A draw depends on data set, class, draw number and seed
alone, so all variants of the method see the same images; a draw of 5 images begins with the draw of 1.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from hta.data.image_sets import Benchmark
from hta.errors import UserError


def draw_training_images(
    benchmark: Benchmark,
    pos_class: str | int,
    num_images: int,
    *,
    draw: int | None = None,
    index_download: int | None = None,
    seed: int = 0,
) -> list[int]:
    """Choose the N training images of a run; exactly one of `draw` and `index_download` says which.

    Args:
        benchmark: The data set.
        pos_class: The normal class.
        num_images: N.
        draw: Number of a random draw, from 0.
        index_download: k >= 1 takes images [(k-1)N, kN) of the class in data-set order.
        seed: Seed of the random draws; does not touch `index_download`.

    Returns:
        Indices of training images: for a draw in drawn order, else in data-set order.

    Raises:
        UserError: An argument is out of range, or the class has too few images.
    """
    indices = benchmark.train_indices(pos_class)
    if not 1 <= num_images <= len(indices):
        raise UserError(
            f"--num_images {num_images}: class {pos_class} has {len(indices)} images; choose 1 to {len(indices)}"
        )
    if (draw is None) == (index_download is None):
        raise UserError("--index_download: give either it or the number of a random draw")
    if draw is not None:
        class_name = benchmark.classes[benchmark.class_index(pos_class)]
        # Positions within the class, not indices of the data set: the draw does not depend on the other classes.
        order = _shuffled(range(len(indices)), f"draw|{benchmark.spec.name}|{class_name}|{draw}|{seed}")
        return [indices[position] for position in order[:num_images]]
    last = len(indices) // num_images
    if not 1 <= index_download <= last:
        raise UserError(f"--index_download {index_download}: with --num_images {num_images} choose 1 to {last}")
    return indices[(index_download - 1) * num_images : index_download * num_images]


def choose_test_images(
    benchmark: Benchmark,
    pos_class: str | int,
    *,
    training: Collection[int] = (),
    test_limit: int | None = None,
    seed: int = 0,
) -> list[int]:
    """Choose the test images of a run: all that are scored for the class, or a stratified, seeded part of them.

    Each stratum (class; for MVTec defect) keeps its share, rounded by largest remainder. Where the test set is the same
    for all classes, so is the part.

    Args:
        benchmark: The data set.
        pos_class: The normal class.
        training: The run's training images, which leave the test set where they are in it (Paris).
        test_limit: Number of images to keep; None keeps all, as does a number beyond the test set.
        seed: Seed of the choice.

    Returns:
        Indices of test images, ascending.

    Raises:
        UserError: `test_limit` is below 1.
    """
    candidates = benchmark.test_candidates(pos_class, training)
    if test_limit is None:
        return candidates
    if test_limit < 1:
        raise UserError(f"--test_limit {test_limit}: give at least 1, or leave it out for the whole test set")
    if test_limit >= len(candidates):
        return candidates
    strata: defaultdict[str, list[int]] = defaultdict(list)
    for index in candidates:
        strata[benchmark.strata[index]].append(index)
    shares = _largest_remainder({name: len(members) for name, members in strata.items()}, test_limit)
    chosen = (
        _shuffled(members, f"test|{benchmark.spec.name}|{name}|{seed}")[: shares[name]]
        for name, members in strata.items()
    )
    return sorted(index for part in chosen for index in part)


def _largest_remainder(counts: Mapping[str, int], limit: int) -> dict[str, int]:
    """Split `limit` in proportion to the counts; ties go by name."""
    total = sum(counts.values())
    shares = {name: limit * count // total for name, count in counts.items()}
    by_remainder = sorted(counts, key=lambda name: (-(limit * counts[name] % total), name))
    for name in by_remainder[: limit - sum(shares.values())]:
        shares[name] += 1
    return shares


def _shuffled(items: Iterable[int], key: str) -> list[int]:
    return sorted(items, key=lambda item: hashlib.sha256(f"{key}|{item}".encode()).digest())
