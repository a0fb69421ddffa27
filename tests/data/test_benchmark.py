"""Draws of training images, parts of the test set, and one run's images from options."""

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from hta.data.benchmark import Selection, draw_images, select
from hta.data.loaders import Benchmark
from hta.data.sample import Sample
from hta.data.specs import BenchmarkSpec, DatasetOptions, benchmark_spec
from hta.errors import UserError
from tests.experiments.helpers import make_tree

PIXELS = np.zeros((4, 4), np.uint8)


def make_benchmark(train_labels, test_labels, spec: BenchmarkSpec) -> Benchmark:
    def samples(split, labels):
        return [Sample(PIXELS, f"{split}/{i}", classes=(spec.classes[label],)) for i, label in enumerate(labels)]

    return Benchmark(spec, samples("train", train_labels), samples("test", test_labels))


@pytest.fixture(scope="module")
def interleaved() -> Benchmark:
    """Ten classes, 20 images each, in turn: image i is of class i % 10."""
    return make_benchmark([i % 10 for i in range(200)], [i % 10 for i in range(200)], benchmark_spec("cifar"))


def drawn(*arguments, **which) -> list[int]:
    """Indices of the training images in the data set."""
    return [int(name.split("/")[1]) for name in draw_images(*arguments, **which).training_ids()]


def chosen(benchmark: Benchmark, pos_class: str, *limit_and_seed, training=()) -> list[int]:
    """Indices of the test images in the data set."""
    samples = Selection(benchmark, pos_class, training).test_samples(*limit_and_seed)
    return [int(sample.relative.split("/")[1]) for sample in samples]


def test_index_download_takes_consecutive_images_of_the_class(interleaved):
    cats = [3 + 10 * i for i in range(20)]
    assert drawn(interleaved, "cat", 5, 1, in_order=True) == cats[:5]
    assert drawn(interleaved, "cat", 5, 4, in_order=True, seed=9) == cats[15:20]
    assert drawn(interleaved, "cat", 1, 7, in_order=True) == cats[6:7]


def test_a_draw_is_by_hash_of_data_set_class_draw_and_seed(interleaved):
    """The definition, written out: it may never change, or records of runs lose their meaning."""
    keys = {i: hashlib.sha256(f"draw|cifar|cat|2|5|{i}".encode()).hexdigest() for i in range(20)}
    expected = [3 + 10 * i for i in sorted(range(20), key=keys.__getitem__)]
    assert drawn(interleaved, "cat", 20, 2, seed=5) == expected


def test_a_larger_draw_begins_with_the_smaller_and_draws_seeds_and_classes_differ(interleaved):
    ten = drawn(interleaved, "dog", 10, 0)
    assert drawn(interleaved, "5", 5, 0) == ten[:5]
    assert drawn(interleaved, 5, 1, 0) == ten[:1]
    assert len(set(ten)) == 10
    assert all(index % 10 == 5 for index in ten)
    assert drawn(interleaved, "dog", 10, 1) != ten
    assert drawn(interleaved, "dog", 10, 0, seed=1) != ten
    assert drawn(interleaved, "frog", 10, 0) != [i + 1 for i in ten]


def test_the_preparation_does_not_change_a_draw():
    full, rotations = (make_benchmark([0] * 50, [0], benchmark_spec("mvtec", number)) for number in (54, 4))
    assert full.spec != rotations.spec
    assert drawn(full, "bottle", 5, 3) == drawn(rotations, "bottle", 5, 3)


def test_draws_spread_evenly(interleaved):
    """Over 400 draws of 1 of 20 images each is expected 20 times; 40 is more than four standard deviations off."""
    counts = np.bincount([drawn(interleaved, 0, 1, d)[0] // 10 for d in range(400)], minlength=20)
    assert counts.min() >= 5
    assert counts.max() <= 40


@pytest.mark.parametrize(
    ("num_images", "number", "in_order", "message"),
    [
        (0, 0, False, "--num_images 0"),
        (21, 0, False, "--num_images 21"),
        (5, 0, True, "--index_download 0: .*choose 1 to 4"),
        (5, 5, True, "--index_download 5: .*choose 1 to 4"),
    ],
)
def test_impossible_draws_are_errors(interleaved, num_images, number, in_order, message):
    with pytest.raises(UserError, match=message):
        draw_images(interleaved, "cat", num_images, number, in_order=in_order)


def test_a_part_of_the_test_set_is_by_hash_and_keeps_the_shares():
    """60, 30 and 10 of 100: of 15 they get 9, 4.5 and 1.5; the tie of the remainders goes to the first name, bird."""
    labels = [0] * 60 + [1] * 10 + [2] * 30
    benchmark = make_benchmark([0], labels, benchmark_spec("cifar"))
    indices = chosen(benchmark, "plane", 15, 4)
    assert Counter(labels[index] for index in indices) == {0: 9, 1: 1, 2: 5}
    assert indices == sorted(set(indices))
    keys = {i: hashlib.sha256(f"test|cifar|bird|4|{i}".encode()).hexdigest() for i in range(70, 100)}
    assert [index for index in indices if index >= 70] == sorted(sorted(keys, key=keys.__getitem__)[:5])


def test_a_part_is_seeded_and_the_same_for_all_classes(interleaved):
    part = chosen(interleaved, "cat", 100, 1)
    assert part == chosen(interleaved, "truck", 100, 1)
    assert part != chosen(interleaved, "cat", 100, 2)
    assert np.bincount([index % 10 for index in part]).tolist() == [10] * 10


def test_the_whole_test_set_and_none_of_it(interleaved):
    for limit in (None, 200, 10_000):
        assert chosen(interleaved, "cat", limit, training=tuple(interleaved.train[:2])) == list(range(200))
    with pytest.raises(UserError, match="--test_limit 0"):
        chosen(interleaved, "cat", 0)


def test_training_images_that_are_test_images_are_never_scored(interleaved):
    pool = replace(interleaved, test=interleaved.train)
    training = draw_images(pool, "cat", 5, 0).training
    indices = [interleaved.train.index(sample) for sample in training]
    assert chosen(pool, "cat", training=training) == [i for i in range(200) if i not in indices]
    assert not set(indices) & set(chosen(pool, "cat", 194, training=training))


def test_defects_are_scored_for_their_own_class_alone_and_grouped_by_kind():
    spec = benchmark_spec("mvtec")
    benchmark = make_benchmark([0], [i % 10 for i in range(200)], spec)
    defective = [replace(s, defect="crack") if i >= 100 else s for i, s in enumerate(benchmark.test)]
    benchmark = replace(benchmark, test=defective)
    own = list(range(2, 200, 10))
    assert chosen(benchmark, spec.classes[2]) == own
    part = chosen(benchmark, spec.classes[2], 6)
    assert set(part) < set(own)
    assert sum(index >= 100 for index in part) == 3
    assert {s.defect for s in Selection(benchmark, spec.classes[2], ()).test_samples()} == {None, "crack"}


def test_images_of_one_run_in_data_set_order_or_drawn(tmp_path):
    tree = str(make_tree(tmp_path / "tree", train=20))
    options = DatasetOptions("folder", tree, "bee", index_download=2)
    selection = select(options, 5)
    assert selection.training_ids() == [f"train/bee/{n}.png" for n in range(13, 18)]  # after 0, 1, 10, 11, 12
    assert selection.training_images()[0].shape == (128, 128, 3)
    assert [sample.label for sample in selection.test_samples()] == [1, 1, 1, 1, 0, 0, 0, 0]
    drawn_ones = [replace(options, index_download=k, random_images_download=True) for k in (1, 2)]
    chosen_ids = [selection.training_ids(), *(select(one, 5).training_ids() for one in drawn_ones)]
    assert len({tuple(sorted(names)) for names in chosen_ids}) == 3


def test_missing_options_are_named():
    for options, missing in ((DatasetOptions(pos_class="8"), "dataset"), (DatasetOptions("mnist"), "pos_class")):
        with pytest.raises(UserError, match=f"--{missing} is missing"):
            select(options, 1)
