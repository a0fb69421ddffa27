"""The score "combined" by hand, and on images that differ in place or in content alone."""

import numpy as np
import torch

from hta.evaluation.combined import error_per_vote, squared_errors


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
