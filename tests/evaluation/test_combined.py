"""The score "combined" by hand, and on images that differ in place or in content alone."""

import numpy as np
import pytest
import torch

import hta
from hta.config import ScoringConfig, default_config
from hta.errors import UserError
from hta.evaluation.combined import error_per_vote, squared_errors
from hta.images import resize, to_tensor
from tests.helpers import picture

TINY = {"min_size": 14, "max_size": 22, "niter": 3, "nfc": 4, "precision": "float32", "not_cuda": True}
SETTINGS = TINY | {"task": "class", "num_transforms": 4}


def test_the_error_is_that_to_the_nearest_training_image():
    training = torch.stack([torch.full((3, 2, 2), -1.0), torch.full((3, 2, 2), 0.5)])
    images = torch.stack([torch.full((3, 2, 2), -1.0), torch.zeros(3, 2, 2), torch.ones(3, 2, 2)])
    images[0, 0, 0, 0] = 0
    found = squared_errors(images, training)
    np.testing.assert_allclose(found, [1 / 12, 0.25, 0.25])
    assert found.dtype == np.float64
    alone = [squared_errors(image[None], training)[0] for image in images]
    np.testing.assert_array_equal(found, alone)


def test_the_score_is_the_error_over_the_mean_share_of_the_scales():
    shares = np.array([[0.2, 0.4], [0.2, 0.4], [0.1, 0.1], [0.0, 0.0]])
    found = error_per_vote(shares, np.array([0.6, 0.3, 0.3, 0.0]))
    np.testing.assert_allclose(found, [2, 1, 3, 1])


def test_an_image_that_is_a_training_image_has_the_least_score():
    errors, shares = np.array([0.0, 1e-3]), np.full((2, 3), 0.9)
    same, other = error_per_vote(shares, errors)
    assert 0 < same < other


@pytest.fixture(scope="module")
def model():
    return hta.train([picture(0), picture(1)], default_config(**SETTINGS))


def test_scores_are_0_for_views_and_1_at_the_threshold_of_the_error_per_vote(model):
    images = [picture(seed) for seed in range(4)] + [255 - picture()]
    scores, decisions, maps = model.score(images)
    limits, views = model.threshold(ScoringConfig()), model.calibration()
    of_views = [max(error, 1e-4) / shares.mean() for error, shares in zip(views.errors, views.shares, strict=True)]
    assert limits.unit == pytest.approx(np.quantile(of_views, 0.95))
    assert (limits.threshold, limits.decided_by) == (1.0, "score")
    expected = []
    for image in images:
        x = resize(to_tensor([image / np.float32(255)]), model.pyramid.plan.working_size).double()
        error = min(float(((x - one) ** 2).mean()) for one in model.training_images.double())
        share = model.scorer.shares(x.float())[0, 0].mean()
        expected.append((max(error, 1e-4) / share - np.mean(of_views)) / (limits.unit - np.mean(of_views)))
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    assert decisions.tolist() == (scores > 1).tolist()
    assert scores[0] < 0
    assert scores[1] < 0
    paper = model.score(images, score="paper")
    for of_votes, drawn in zip(paper.anomaly_maps, maps, strict=True):
        np.testing.assert_array_equal(of_votes, drawn)


def test_an_image_scores_alike_alone_without_maps_and_after_saving(model, tmp_path):
    images = [picture(seed) for seed in range(5)]
    scores = model.score(images).anomaly_scores
    alone = [float(model.score(image, with_maps=False).anomaly_scores[0]) for image in images]
    np.testing.assert_allclose(alone, scores, rtol=0, atol=1e-5)
    model.save(tmp_path / "saved")
    loaded = hta.load(tmp_path / "saved", runtime=model.record.config.runtime)
    assert loaded.score(images).anomaly_scores.tolist() == scores.tolist()
    of_votes = loaded.score(images, score="paper").anomaly_scores
    np.testing.assert_allclose(of_votes, [1 - v.shares.mean() for v in loaded.stream(images)], rtol=0, atol=1e-12)
    with pytest.raises(UserError, match="aggregate calibrated"):
        loaded.score(images, score="combined", aggregate="calibrated")
    assert loaded.score_name(ScoringConfig(aggregate="calibrated")) == "paper"


def test_good_images_set_the_unit(model):
    good = [picture(seed) for seed in range(20, 40)]
    found = model.score(good, good_images=good, target_fpr=0.05)
    assert found.anomaly_scores.max() == pytest.approx(1)
    assert not found.decisions.any()
    given = model.score(good, threshold=-1e9)
    assert given.decisions.all()


def test_a_frame_that_cannot_be_normal_scores_highest(model):
    """Also one that is near the training images pixel by pixel, as a blank one of their brightness may be."""
    size = model.pyramid.plan.working_size
    blank = np.full((*size, 3), float(model.training_images.mean() + 1) / 2, np.float32)
    (votes,) = model.stream([blank])
    assert (votes.fault, votes.error) == ("nearly uniform", 4)
    scores, decisions, _ = model.score([blank, 255 - picture()])
    assert scores[0] > scores[1]
    assert decisions[0]


def test_votes_for_another_score_are_refused(model):
    votes, _ = model.votes([picture(3)], ScoringConfig(score="paper"))
    with pytest.raises(UserError, match="made for another score"):
        model.anomaly_scores(votes, ScoringConfig())
    with pytest.raises(UserError, match="made for another score"):
        model.threshold(ScoringConfig(target_fpr=0.5), good=votes)
