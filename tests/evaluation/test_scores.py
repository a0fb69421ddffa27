"""Vote shares against the explicit definition; aggregates by hand."""

import math

import pytest
import torch

from hta.errors import UserError
from hta.evaluation.scores import anomaly_scores, calibrated_scores, default_fraction, vote_shares, voting_patches
from hta.evaluation.votes import VoteScorer
from hta.models.scales import image_pyramid
from tests import oracle
from tests.helpers import random_images, random_pyramid

FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
SHARES = torch.tensor([[0.2, 0.9, 0.3], [0.4, 0.5, 0.3], [0.6, 0.7, 0.3]])


@pytest.mark.parametrize("num_transforms", [54, 42, 4])
@pytest.mark.parametrize("size", [(22, 22), (16, 22)])
def test_scores_equal_the_explicit_definition(size, num_transforms):
    pyramid, all_params = random_pyramid(size, num_transforms)
    images = image_pyramid(random_images(size, 2), pyramid.plan.sizes)
    t_list = oracle.transformation_list(num_transforms)
    shares = torch.stack([vote_shares(v.probabilities, FRACTIONS) for v in VoteScorer(pyramid).votes(images)])
    for f, fraction in enumerate(FRACTIONS):
        expected = torch.stack(
            [oracle.vote_share(params, x, t_list, fraction) for params, x in zip(all_params, images, strict=True)]
        )
        torch.testing.assert_close(shares[:, f], expected, rtol=0, atol=1e-9)
        for aggregate, explicit in [("mean", oracle.anomaly_score), ("minmax", oracle.minmax_anomaly_score)]:
            score = anomaly_scores(shares[:, f].T, aggregate)
            torch.testing.assert_close(score, explicit(expected), rtol=0, atol=1e-9)
    assert (shares.diff(dim=1) >= 0).all()  # the lowest votes come first
    assert (shares[:, -1] > shares[:, 0]).all()


@pytest.mark.parametrize("num_transforms", [54, 42, 4])
@pytest.mark.parametrize("size", [(22, 22), (16, 22)])
def test_a_flat_gray_image_scores_chance(size, num_transforms):
    pyramid, _ = random_pyramid(size, num_transforms)
    flat = image_pyramid(torch.full((2, 3, *size), -0.4, dtype=torch.float64), pyramid.plan.sizes)
    for votes in VoteScorer(pyramid).votes(flat):
        shares = vote_shares(votes.probabilities, FRACTIONS)
        torch.testing.assert_close(shares, torch.full_like(shares, 1 / num_transforms), rtol=0, atol=1e-12)


def test_vote_shares_by_hand():
    votes = torch.tensor([[[[0.4, 0.1], [0.2, 0.9]], [[0.0, 1.0], [0.5, 0.5]]]])
    # 1 of 4: (0.1 + 0.0) / 2; 2 of 4: (0.15 + 0.25) / 2; 3 of 4: (0.7 + 1.0) / 6; all: (1.6 + 2.0) / 8
    expected = torch.tensor([[0.05], [0.05], [0.2], [1.7 / 6], [0.45]])
    torch.testing.assert_close(vote_shares(votes, [0.01, 0.49, 0.5, 0.99, 1.0]), expected)


def test_voting_patches_by_hand():
    assert 0.29 * 100 < 29
    assert voting_patches(0.29, 100) == 29
    assert [voting_patches(f, 289) for f in FRACTIONS] == [2, 14, 28, 57, 144, 289]
    assert voting_patches(0.01, 5) == 1
    assert voting_patches(1.0, 1) == 1


def test_voting_patches_equal_the_plain_floor_at_the_papers_fractions():
    for fraction in FRACTIONS:
        for patches in range(1, 3000):
            assert voting_patches(fraction, patches) == max(1, math.floor(fraction * patches))


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(UserError, match="--fraction_defect"):
        vote_shares(torch.rand(1, 4, 3, 3), [fraction])


def test_default_fractions():
    assert default_fraction("defect", 1) == 0.05
    assert default_fraction("defect", 2) == default_fraction("defect", 10) == 0.10
    assert default_fraction("class", 1) == default_fraction("class", 10) == 1.0


def test_mean_by_hand():
    expected = torch.tensor([1 - 1.4 / 3, 1 - 1.2 / 3, 1 - 1.6 / 3], dtype=torch.float64)
    torch.testing.assert_close(anomaly_scores(SHARES), expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(anomaly_scores(SHARES[:1]), expected[:1], rtol=0, atol=1e-7)


def test_minmax_by_hand():
    # scale 0 becomes 0 0.5 1, scale 1 becomes 1 0 0.5, the tied scale 0 0 0
    expected = torch.tensor([1 - 1 / 3, 1 - 0.5 / 3, 1 - 1.5 / 3], dtype=torch.float64)
    torch.testing.assert_close(anomaly_scores(SHARES, "minmax"), expected, rtol=0, atol=1e-6)


def test_minmax_of_one_image_is_refused():
    with pytest.raises(UserError, match="--aggregate minmax"):
        anomaly_scores(SHARES[:1], "minmax")


def test_an_unknown_aggregate_is_refused():
    with pytest.raises(UserError, match="--aggregate median"):
        anomaly_scores(SHARES, "median")


def test_calibrated_by_hand():
    mean, std = torch.tensor([0.5, 0.9, 0.3]), torch.tensor([0.1, 0.2, 0.0])
    # deviations 3 1 -1, then 0 2 1; the scale without spread counts 0
    expected = torch.tensor([3 / 3, 3 / 3, 0 / 3], dtype=torch.float64)
    torch.testing.assert_close(calibrated_scores(SHARES, mean, std), expected, rtol=0, atol=1e-6)
    other = calibrated_scores(SHARES[1:2], mean, std)
    torch.testing.assert_close(other, expected[1:2], rtol=0, atol=1e-6)
