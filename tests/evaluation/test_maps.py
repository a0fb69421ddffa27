"""Anomaly maps against the explicit definition, and planted votes that must land on their pixel."""

import numpy as np
import pytest
import torch

from hta.evaluation.maps import anomaly_maps, scale_map, upsample_map
from hta.evaluation.scorer import Scorer
from hta.models.scales import image_pyramid
from hta.models.transforms import TRANSFORMATION_SETS
from hta.speed.explicit import transformation_list
from tests import oracle
from tests.helpers import random_images, random_pyramid

MARGIN = 5
# From 74 px on a shift outgrows the margin, and a patch can be centred on a mirrored pixel: it must be left out.
SIZES = [(22, 22), (16, 22), (22, 16), (18, 80), (80, 18)]


def surprise(probabilities):
    return probabilities.clamp(min=1e-12).log() / np.log(1e-12)


def assert_close_to(actual, expected):
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_transforms", [54, 42, 4])
@pytest.mark.parametrize("size", SIZES)
def test_maps_equal_the_explicit_definition(size, num_transforms):
    min_size = 18 if max(size) == 80 else 14
    pyramid, all_params = random_pyramid(size, num_transforms, min_size=min_size, max_size=max(size))
    assert pyramid.plan.num_scales >= 2
    images = image_pyramid(random_images(size, 2), pyramid.plan.sizes)
    t_list = transformation_list(num_transforms)
    votes = Scorer(pyramid).votes(images[-1])
    for b in range(2):
        resized = []
        for params, level, of_scale in zip(all_params, images, votes, strict=True):
            assert_close_to(scale_map(of_scale, MARGIN)[b], oracle.localization(params, level[b], t_list))
            resized.append(oracle.localization(params, level[b], t_list, size).clip(0, 1))
        assert_close_to(anomaly_maps(votes, MARGIN, size)[b], np.mean(resized, axis=0))


@pytest.mark.parametrize("index", range(54))
def test_a_planted_vote_lands_on_its_pixel(index):
    height, width, y, x = 26, 30, 12, 17
    marker, t = np.zeros((3, height, width)), TRANSFORMATION_SETS[54][index]
    marker[:, y, x] = 1
    moved = oracle.transform_by_pixels(marker, (0, t.flip, t.tx, t.ty, 0))[0]
    if t.flip:
        moved = moved[:, ::-1]
    ((row, column),) = np.argwhere(moved)
    probabilities = torch.ones(1, 54, height - 10, width - 10)
    probabilities[0, index, row - 5, column - 5] = 0
    result = scale_map(probabilities, 5)[0]
    assert (result > 0).nonzero().tolist() == [[y, x]]


def test_one_pixel_more_than_a_patch_and_shifts_beyond_it():
    # 21 px shift by 3, 11 px by 1: a row of a single patch has no clean shifted one.
    votes, t_list, expected = torch.rand(2, 54, 1, 11, dtype=torch.float64), transformation_list(54), []
    for image in votes.numpy():
        turned = [np.rot90(p[:, ::-1] if t[1] else p, t[4]) for p, t in zip(image, t_list, strict=True)]
        expected.append(oracle.localization_from_maps(turned, 11, 21, t_list))
    assert_close_to(scale_map(votes, 5), np.stack(expected))


def test_shifts_larger_than_the_map_leave_the_untranslated_votes():
    # 40 px and a margin of 18 leave 4 x 4 patches, and every translation by 6 px carries them into the mirror.
    votes = torch.rand(1, 54, 4, 4)
    still = [not (t.tx or t.ty) for t in TRANSFORMATION_SETS[54]]
    result = scale_map(votes, 18)
    torch.testing.assert_close(result[0, 18:22, 18:22], surprise(votes[0, still]).mean(dim=0))


def test_the_frame_takes_the_nearest_value():
    votes = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]).expand(1, 4, 2, 3)
    result = scale_map(votes, 5)[0]
    torch.testing.assert_close(result[5:7, 5:8], surprise(votes[0, 0]))
    torch.testing.assert_close(result[0, [0, 6, 12]], surprise(votes[0, 0, 0]))
    torch.testing.assert_close(result[11, [0, 6, 12]], surprise(votes[0, 0, 1]))


@pytest.mark.parametrize(("probability", "expected"), [(1, 0.0), (0.1, 1 / 12), (1e-6, 0.5), (1e-12, 1.0), (0, 1.0)])
def test_surprise_by_hand(probability, expected):
    votes = torch.full((1, 4, 2, 3), probability, dtype=torch.float32)
    torch.testing.assert_close(scale_map(votes, 5), torch.full((1, 12, 13), expected))


def test_resized_maps_stay_in_range():
    step = torch.zeros(2, 10, 12)
    step[..., 6:] = 1
    large = upsample_map(step, (40, 31))
    assert (large.shape, large.min(), large.max()) == ((2, 40, 31), 0, 1)
    assert upsample_map(step[0], (7, 5)).shape == (7, 5)
    expected = np.clip(oracle.resize_bicubic(step[0].numpy(), (40, 31)), 0, 1)
    np.testing.assert_allclose(large[0].numpy(), expected, atol=1e-5)
