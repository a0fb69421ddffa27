"""Vote shares against the explicit definition; aggregates by hand."""

import itertools
import math

import numpy as np
import pytest
import torch

from hta.errors import UserError
from hta.evaluation.scorer import Scorer
from hta.evaluation.scores import (
    anomaly_scores,
    default_fraction,
    level_text,
    levels,
    score_text,
    vote_shares,
    voting_patches,
)
from hta.models.scales import image_pyramid
from hta.speed.explicit import transformation_list, vote_share
from tests import oracle
from tests.helpers import random_images, random_pyramid

FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
SHARES = np.array([[0.2, 0.9, 0.3], [0.4, 0.5, 0.3], [0.6, 0.7, 0.3]])


@pytest.mark.parametrize("num_transforms", [54, 42, 4])
@pytest.mark.parametrize("size", [(22, 22), (16, 22)])
def test_scores_equal_the_explicit_definition(size, num_transforms):
    pyramid, all_params = random_pyramid(size, num_transforms)
    images = random_images(size, 2)
    levels, t_list = image_pyramid(images, pyramid.plan.sizes), transformation_list(num_transforms)
    shares = Scorer(pyramid).shares(images, FRACTIONS)
    for of_fraction, fraction in zip(shares, FRACTIONS, strict=True):
        networks = zip(all_params, levels, strict=True)
        expected = torch.stack([vote_share(params, x, t_list, fraction) for params, x in networks])
        np.testing.assert_allclose(of_fraction.T, expected, rtol=0, atol=1e-9)
        for aggregate, explicit in [("mean", oracle.anomaly_score), ("minmax", oracle.minmax_anomaly_score)]:
            score = anomaly_scores(of_fraction, aggregate)
            np.testing.assert_allclose(score, explicit(expected), rtol=0, atol=1e-9)
    assert (np.diff(shares, axis=0) >= 0).all()  # the lowest votes come first
    assert (shares[-1] > shares[0]).all()
    flat = Scorer(pyramid).shares(torch.full((2, 3, *size), -0.4, dtype=torch.float64), FRACTIONS)
    np.testing.assert_allclose(flat, 1 / num_transforms, rtol=0, atol=1e-12)  # a flat gray image: chance


def test_vote_shares_by_hand():
    votes = torch.tensor([[[[0.4, 0.1], [0.2, 0.9]], [[0.0, 1.0], [0.5, 0.5]]]])
    # 1 of 4: (0.1 + 0.0) / 2; 2 of 4: (0.15 + 0.25) / 2; 3 of 4: (0.7 + 1.0) / 6; all: (1.6 + 2.0) / 8
    expected = torch.tensor([[0.05], [0.05], [0.2], [1.7 / 6], [0.45]])
    torch.testing.assert_close(vote_shares(votes, [0.01, 0.49, 0.5, 0.99, 1.0]), expected)


def test_voting_patches_are_the_floor_of_the_product_but_for_rounding():
    assert 0.29 * 100 < 29
    assert voting_patches(0.29, 100) == 29
    assert [voting_patches(f, 289) for f in FRACTIONS] == [2, 14, 28, 57, 144, 289]
    assert voting_patches(0.01, 5) == voting_patches(1.0, 1) == voting_patches(0.05, 20) == 1
    assert voting_patches(0.1, 2916) == 291
    for fraction, patches in itertools.product(FRACTIONS, range(1, 3000)):
        assert voting_patches(fraction, patches) == max(1, math.floor(fraction * patches))


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(UserError, match="--fraction_defect"):
        vote_shares(torch.rand(1, 4, 3, 3), [fraction])


def test_default_fractions():
    assert default_fraction("defect", 1) == 0.05
    assert default_fraction("defect", 2) == default_fraction("defect", 10) == 0.10
    assert default_fraction("class", 1) == default_fraction("class", 10) == 1.0


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        ("mean", [1 - 1.4 / 3, 1 - 1.2 / 3, 1 - 1.6 / 3]),
        # scale 0 becomes 0 0.5 1, scale 1 becomes 1 0 0.5, the tied scale 0 0 0
        ("minmax", [1 - 1 / 3, 1 - 0.5 / 3, 1 - 1.5 / 3]),
        # deviations 3 1 -1, then 0 2 1; the scale without spread counts 0
        ("calibrated", [3 / 3, 3 / 3, 0 / 3]),
    ],
)
def test_aggregates_by_hand(aggregate, expected):
    views = np.array([[0.4, 0.7, 0.3], [0.5, 0.9, 0.3], [0.6, 1.1, 0.3]])  # mean 0.5 0.9 0.3, spread 0.1 0.2 0
    np.testing.assert_allclose(anomaly_scores(SHARES, aggregate, views), expected, rtol=0, atol=1e-12)
    if aggregate != "minmax":
        np.testing.assert_allclose(anomaly_scores(SHARES[1:2], aggregate, views), expected[1:2], rtol=0, atol=1e-12)


def test_an_image_without_votes_does_not_change_the_minmax_scores_of_others():
    nothing = np.zeros((1, SHARES.shape[1]))
    found = anomaly_scores(np.concatenate([SHARES, nothing]), "minmax")
    np.testing.assert_array_equal(found, [*anomaly_scores(SHARES, "minmax"), 1])
    np.testing.assert_array_equal(anomaly_scores(np.concatenate([nothing, nothing]), "minmax"), [1, 1])


@pytest.mark.parametrize(("aggregate", "images"), [("minmax", 1), ("minmax", 0), ("median", 3)])
def test_what_cannot_be_aggregated_is_refused(aggregate, images):
    with pytest.raises(UserError, match=f"--aggregate {aggregate}"):
        anomaly_scores(SHARES[:images], aggregate)


def test_scores_near_0_and_1_are_printed_with_more_digits():
    scores = [0.5, 12.3456789, -0.25, 0.0, 1.0, 1.00001, 0.9998, 1 - 3.2e-9, 1 - 5e-5, np.float64(4.5e-7), -2e-5]
    plain = ["0.500000", "12.345679", "-0.250000", "0.000000", "1.000000", "1.000010", "0.999800"]
    assert [score_text(score) for score in scores] == [*plain, "0.99999999680", "0.9999500", "4.50e-07", "-2.00e-05"]


@pytest.mark.parametrize(
    ("values", "limit", "aggregate", "shown"),
    [
        # log 0.01 / log 0.01 = 1; the shares 1e-4 and 0.1 are two times and half as far; a share of 1 is 0.
        ([0.0, 0.9, 0.99, 0.9999], 0.99, "mean", ["0.00", "0.50", "1.00", "2.00"]),
        ([1 - 5e-10, 1 - 3e-10, 1 - 2.999e-10, 1.0], 1 - 3e-10, "mean", ["0.98", "1.00", "1.01", "1.68"]),
        ([0.2, 0.4, 0.4 + 1e-15, 0.5], 0.4, None, ["0.50", "1.00", "1.01", "1.25"]),
        ([-0.7, 0.0, 1.5, 3000], 1.0, "a later one", ["-0.70", "0.00", "1.50", "over 999"]),
        ([-1.0, 2.0], 2.0, "calibrated", ["-0.50", "1.00"]),
        ([0.25, -0.0001, 3], None, "minmax", ["0.250", "0.000", "3.000"]),
        ([0.25, 0.5], 0, "mean", ["0.250", "0.500"]),
    ],
)
def test_values_are_told_by_their_thresholds_in_the_same_order(values, limit, aggregate, shown):
    found = levels(values, limit, aggregate)
    assert [level_text(level, is_relative=bool(limit)) for level in found] == shown
    assert (np.argsort(found, kind="stable") == np.argsort(values, kind="stable")).all()


def test_levels_and_their_texts_never_contradict_the_decision():
    for limit in (1e-6, 0.3, 0.999, 1 - 1e-12, 1.0):
        values = np.sort(
            np.concatenate([np.random.default_rng(0).random(200), 1 - 0.1 ** np.linspace(1, 17, 200), [limit]])
        )
        found = levels(values, limit, "mean")
        assert (np.diff(found) >= 0).all()
        numbers = np.array([float(level_text(level).replace("over ", "")) for level in found])
        assert ((numbers > 1) == (values > limit)).all()
        assert (np.diff(numbers) >= 0).all()
