"""Scoring in batches: the same numbers as one by one, read as they are needed."""

import itertools
import threading

import numpy as np
import pytest
import torch

from hta.errors import UserError
from hta.evaluation.maps import anomaly_maps, upsample_map
from hta.evaluation.scorer import Evaluator, ImageVotes
from hta.evaluation.scores import vote_shares
from hta.evaluation.votes import VoteScorer
from hta.models.scales import image_pyramid
from tests.helpers import random_images, random_pyramid

FRACTIONS = (0.05, 1.0)


@pytest.fixture(scope="module")
def pyramid():
    return random_pyramid((19, 22), 4, dtype=torch.float32)[0]


def arrays(count, height=19, width=22, seed=0):
    return list(np.random.default_rng(seed).random((count, height, width, 3), dtype=np.float32))


def test_a_batch_holds_shares_and_maps_of_every_scale(pyramid):
    images = random_images((19, 22), 3, dtype=torch.float32)
    scores = Evaluator(pyramid, FRACTIONS).score(images)
    votes = VoteScorer(pyramid).votes(image_pyramid(images, pyramid.plan.sizes))
    assert scores.shares.shape == (2, 3, pyramid.plan.num_scales)
    assert scores.shares.dtype == np.float64
    for n, scale in enumerate(votes):
        expected = vote_shares(scale.probabilities, FRACTIONS).double().numpy()
        np.testing.assert_array_equal(scores.shares[:, :, n], expected)
    np.testing.assert_array_equal(scores.maps, anomaly_maps(votes, (19, 22)).numpy())
    assert scores.maps.dtype == np.float32
    assert Evaluator(pyramid, FRACTIONS, with_maps=False).score(images).maps is None


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_a_stream_gives_what_the_images_give_alone(pyramid, batch_size):
    evaluator = Evaluator(pyramid, FRACTIONS)
    images = arrays(5)
    results = list(evaluator.score_stream(iter(images), batch_size))
    assert len(results) == 5
    for image, (shares, anomaly_map) in zip(images, results, strict=True):
        alone = evaluator.score(evaluator.to_working_size(image)[None])
        np.testing.assert_allclose(shares, alone.shares[:, 0], rtol=0, atol=1e-6)
        np.testing.assert_allclose(anomaly_map, alone.maps[0], rtol=0, atol=1e-6)


def test_recognition_counts_in_units_of_chance(pyramid):
    images = random_images((19, 22), 3, dtype=torch.float32)
    evaluator = Evaluator(pyramid, (0.1,))
    shares = Evaluator(pyramid, (1.0,)).score(images).shares[0]
    np.testing.assert_allclose(evaluator.recognition(images).numpy(), 4 * shares.mean(axis=1), rtol=1e-5)


def test_an_image_of_another_size_is_brought_to_the_working_size(pyramid):
    evaluator = Evaluator(pyramid)
    (image,) = arrays(1, 40, 30)
    assert evaluator.to_working_size(image).shape == (3, 19, 22)
    sizes = [anomaly_map.shape for _, anomaly_map in evaluator.score_stream([image, *arrays(1)], 2)]
    assert sizes == [(19, 22)] * 2
    votes = ImageVotes(np.zeros(3), np.random.default_rng(0).random((19, 22), dtype=np.float32), (40, 30))
    expected = upsample_map(torch.from_numpy(votes.anomaly_map), (40, 30)).numpy()
    np.testing.assert_array_equal(votes.full_size_map(), expected)


def test_images_are_read_ahead_by_two_batches_at_most(pyramid):
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(threading.get_ident())
            yield arrays(1, seed=number)[0]

    stream = Evaluator(pyramid, with_maps=False).score_stream(endless(), 3)
    for number in range(1, 10):
        next(stream)
        assert len(taken) <= 3 * ((number - 1) // 3 + 2)
    stream.close()
    assert len(taken) <= 12
    assert threading.get_ident() not in taken


def test_a_stream_of_nothing_ends(pyramid):
    assert list(Evaluator(pyramid).score_stream([], 4)) == []


def test_an_error_of_the_reader_reaches_the_caller(pyramid):
    def broken():
        yield arrays(1)[0]
        raise UserError("b.png: damaged")

    with pytest.raises(UserError, match=r"b\.png"):
        list(Evaluator(pyramid).score_stream(broken(), 1))
