"""Draws of training images and parts of the test set."""

import hashlib
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from hta.data.image_sets import Benchmark, array_benchmark
from hta.data.protocol import choose_test_images, draw_training_images
from hta.data.specs import benchmark_spec
from hta.errors import UserError


def make_benchmark(train_labels, test_labels, name="cifar", **changes) -> Benchmark:
    def split(labels):
        return SimpleNamespace(data=np.zeros((len(labels), 4, 4, 3), np.uint8), targets=labels)

    benchmark = array_benchmark(benchmark_spec(name), split(train_labels), split(test_labels))
    return Benchmark(**{**vars(benchmark), **changes})


@pytest.fixture
def interleaved() -> Benchmark:
    """Ten classes, 20 images each, in turn: image i is of class i % 10."""
    return make_benchmark([i % 10 for i in range(200)], [i % 10 for i in range(200)])


def test_index_download_takes_consecutive_images_of_the_class(interleaved):
    cats = [3 + 10 * i for i in range(20)]
    assert draw_training_images(interleaved, "cat", 5, index_download=1) == cats[:5]
    assert draw_training_images(interleaved, "cat", 5, index_download=4, seed=9) == cats[15:20]
    assert draw_training_images(interleaved, "cat", 1, index_download=7) == cats[6:7]


def test_a_draw_is_by_hash_of_data_set_class_draw_and_seed(interleaved):
    """The definition, written out: it may never change, or records of runs lose their meaning."""
    keys = {i: hashlib.sha256(f"draw|cifar|cat|2|5|{i}".encode()).hexdigest() for i in range(20)}
    expected = [3 + 10 * i for i in sorted(range(20), key=keys.__getitem__)]
    assert draw_training_images(interleaved, "cat", 20, draw=2, seed=5) == expected


def test_a_larger_draw_begins_with_the_smaller(interleaved):
    ten = draw_training_images(interleaved, "dog", 10, draw=0)
    assert draw_training_images(interleaved, "5", 5, draw=0) == ten[:5]
    assert draw_training_images(interleaved, 5, 1, draw=0) == ten[:1]
    assert len(set(ten)) == 10
    assert all(index % 10 == 5 for index in ten)


def test_draws_seeds_and_classes_differ(interleaved):
    first = draw_training_images(interleaved, "plane", 10, draw=0)
    assert draw_training_images(interleaved, "plane", 10, draw=1) != first
    assert draw_training_images(interleaved, "plane", 10, draw=0, seed=1) != first
    assert [i + 1 for i in first] != draw_training_images(interleaved, "car", 10, draw=0)


def test_the_preparation_does_not_change_a_draw():
    spec, rotations = benchmark_spec("mvtec"), benchmark_spec("mvtec", "rotations")
    full = make_benchmark([0] * 50, [0], name="mvtec")
    assert full.spec == spec
    assert draw_training_images(full, "bottle", 5, draw=3) == draw_training_images(
        make_benchmark([0] * 50, [0], name="mvtec", spec=rotations), "bottle", 5, draw=3
    )


def test_draws_spread_evenly(interleaved):
    """Over 400 draws of 1 of 20 images each is expected 20 times; 40 lies more than four standard deviations off."""
    counts = np.bincount([draw_training_images(interleaved, 0, 1, draw=d)[0] // 10 for d in range(400)], minlength=20)
    assert counts.min() >= 5
    assert counts.max() <= 40


@pytest.mark.parametrize(
    ("num_images", "choice", "message"),
    [
        (0, {"draw": 0}, "--num_images 0"),
        (21, {"draw": 0}, "--num_images 21"),
        (5, {"index_download": 0}, "choose 1 to 4"),
        (5, {"index_download": 5}, "choose 1 to 4"),
        (5, {}, "--index_download"),
        (5, {"draw": 0, "index_download": 1}, "--index_download"),
    ],
)
def test_impossible_draws_are_errors(interleaved, num_images, choice, message):
    with pytest.raises(UserError, match=message):
        draw_training_images(interleaved, "cat", num_images, **choice)


def test_a_part_of_the_test_set_keeps_the_shares():
    """60, 30 and 10 of 100: of 15 they get 9, 4.5 and 1.5; the tie of the remainders goes to the first name, bird."""
    benchmark = make_benchmark([0], [0] * 60 + [1] * 10 + [2] * 30)
    chosen = choose_test_images(benchmark, "plane", test_limit=15)
    assert Counter(benchmark.strata[index] for index in chosen) == {"plane": 9, "car": 1, "bird": 5}
    assert chosen == sorted(set(chosen))


def test_a_part_is_seeded_and_the_same_for_all_classes(interleaved):
    part = choose_test_images(interleaved, "cat", test_limit=100, seed=1)
    assert part == choose_test_images(interleaved, "truck", test_limit=100, seed=1)
    assert part != choose_test_images(interleaved, "cat", test_limit=100, seed=2)
    assert np.bincount([index % 10 for index in part]).tolist() == [10] * 10


@pytest.mark.parametrize("limit", [None, 200, 10_000])
def test_the_whole_test_set(interleaved, limit):
    assert choose_test_images(interleaved, "cat", training=[0, 1], test_limit=limit) == list(range(200))


def test_training_images_of_one_pool_are_never_scored(interleaved):
    pool = Benchmark(**{**vars(interleaved), "one_pool": True})
    training = draw_training_images(pool, "cat", 5, draw=0)
    assert choose_test_images(pool, "cat", training=training) == [i for i in range(200) if i not in training]
    assert not set(training) & set(choose_test_images(pool, "cat", training=training, test_limit=194))


def test_only_the_images_of_the_class_are_scored_where_it_has_its_own(interleaved):
    own = tuple(tuple(range(label, 200, 10)) for label in range(10))
    benchmark = Benchmark(**{**vars(interleaved), "scored": own, "strata": ("good", "crack") * 100})
    assert choose_test_images(benchmark, "bird") == list(own[2])
    assert set(choose_test_images(benchmark, "bird", test_limit=7)) < set(own[2])


@pytest.mark.parametrize("limit", [0, -3])
def test_an_empty_part_is_an_error(interleaved, limit):
    with pytest.raises(UserError, match="--test_limit"):
        choose_test_images(interleaved, "cat", test_limit=limit)
