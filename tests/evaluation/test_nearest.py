"""Maps by the nearest patches against the explicit definition, pair by pair in float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import hta
from hta.config import ScoringConfig, default_config
from hta.errors import UserError
from hta.evaluation import nearest
from hta.evaluation.nearest import RULE, NearestMaps, ratios
from hta.evaluation.scorer import Scorer
from hta.models.scales import image_pyramid
from hta.models.views import draw_views, view_rule
from hta.runtime import seeded_generator
from tests.helpers import picture, random_images, random_pyramid

TINY = {"min_size": 14, "max_size": 22, "niter": 3, "nfc": 4, "precision": "float32", "not_cuda": True}


@pytest.fixture(scope="module")
def pyramid():
    return random_pyramid((19, 22), 4)[0]


def views_of(count, seed=1):
    """Images at the working size; views are drawn in float32."""
    return random_images((19, 22), count, seed=seed, dtype=torch.float32)


@pytest.fixture
def small(monkeypatch):
    """Few views and patches, which a loop over pairs compares quickly."""
    for name, value in {"_BANK_VIEWS": 1, "_STATISTICS_VIEWS": 3, "_BANK_PATCHES": 40}.items():
        monkeypatch.setattr(nearest, name, value)


def explicit_features(pyramid, n, image):
    """Each patch of `(3, h, w)` at scale n by the frozen network, layer by layer: a list of (row, column, values)."""
    x = image_pyramid(image[None].double(), pyramid.plan.sizes)[n]
    for block in pyramid.scales[n].discriminator.body.blocks:
        (x,) = block([x])
    return [(row, column, x[0, :, row, column].numpy()) for row in range(x.shape[2]) for column in range(x.shape[3])]


def bilinear(values, size):
    """Each pixel of a larger map from the four nearest ones, pixel centres at (i + 1/2) / n."""
    rows, columns = (
        np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        for new, old in zip(size, values.shape, strict=True)
    )
    along = np.array([[np.interp(x, np.arange(values.shape[1]), row) for x in columns] for row in values])
    return np.array([[np.interp(y, np.arange(values.shape[0]), column) for column in along.T] for y in rows])


def explicit_distances(pyramid, images, others, scored):
    """The mean distance over scales at each pixel of each image in `scored`, by loops over patches and the bank."""
    in_bank = torch.cat([images, draw_views(images, len(images), 1.0, (0, "bank"))])
    totals = [0.0] * len(scored)
    for n, size in enumerate(pyramid.plan.sizes):
        known = [patch for one in in_bank for patch in explicit_features(pyramid, n, one)]
        values = np.array([value for _, _, value in known])
        spread = values.std(axis=0, ddof=1)
        scale = (spread + 1e-3 * spread.mean() + 1e-12) * math.sqrt(values.shape[1])
        height, width = 1 + known[-1][0], 1 + known[-1][1]
        unit = 0.1 * max(height, width)
        chosen = torch.randperm(len(known), generator=seeded_generator("bank", n))[: 40 * len(images)]
        bank = [known[i] for i in chosen]

        def distance(patch, bank=bank, scale=scale, unit=unit):
            row, column, value = patch
            return min(
                math.sqrt((((value - other) / scale) ** 2).sum() + ((row - y) / unit) ** 2 + ((column - x) / unit) ** 2)
                for y, x, other in bank
            )

        normal = np.mean([distance(patch) for one in others for patch in explicit_features(pyramid, n, one)])
        margin = (size[0] - height) // 2
        for i, image in enumerate(scored):
            found = (
                torch.tensor([distance(patch) for patch in explicit_features(pyramid, n, image)], dtype=torch.float64)
                / normal
            )
            whole = F.pad(found.reshape(1, 1, height, width), [margin] * 4, mode="replicate")
            totals[i] = totals[i] + bilinear(whole[0, 0].numpy(), pyramid.plan.working_size)
    means = [
        F.pad(torch.from_numpy(total)[None, None] / len(pyramid.plan.sizes), [2] * 4, mode="replicate")
        for total in totals
    ]
    return [F.avg_pool2d(mean, 5, stride=1)[0, 0].numpy() for mean in means]


def explicit_map(pyramid, images, image):
    """The map of one image by the definition: its distances in units of its own median, within limits."""
    others = draw_views(images, 3, 1.0, (0, "statistics"))
    *of_views, of_image = explicit_distances(pyramid, images, others, [*others, image])
    typical = np.mean([np.median(one) for one in of_views])
    unit = min(max(np.median(of_image), 1.2 * typical), 3 * typical)
    return torch.from_numpy(of_image / (of_image + unit))


def maps_of(pyramid, images):
    return NearestMaps(Scorer(pyramid).features, pyramid.plan, images)


def test_maps_are_those_of_a_loop_over_all_pairs_of_patches(pyramid, small):
    images, (one,) = views_of(2), views_of(1, seed=9)
    maps = maps_of(pyramid, images)
    torch.testing.assert_close(maps.maps(one[None])[0], explicit_map(pyramid, images, one), rtol=0, atol=1e-6)


def test_batches_and_order_change_nothing(pyramid, small):
    maps = maps_of(pyramid, views_of(1))
    images = views_of(5, seed=4)
    together, order = maps.maps(images), [3, 0, 4, 1, 2]
    torch.testing.assert_close(torch.cat([maps.maps(image[None]) for image in images]), together, rtol=0, atol=1e-9)
    torch.testing.assert_close(maps.maps(images[order]), together[order], rtol=0, atol=1e-9)


def test_the_training_image_is_nearer_than_another(pyramid):
    images = views_of(2)
    own, other = maps_of(pyramid, images[:1]).maps(images)
    assert own.mean() < other.mean()
    assert own[5:-5, 5:-5].max() < 1 / 2 < other.max()


def test_a_map_is_one_half_at_the_typical_distance_and_grows_with_it_without_a_limit(pyramid):
    """An image that is near the training image but for one square: the map there exceeds twice the typical distance."""
    images = views_of(1)
    strange = images.clone()
    strange[:, :, 4:11, 4:11] = 1.0
    (found,) = maps_of(pyramid, images).maps(strange)
    assert found.median() <= 1 / 2 + 1e-6
    assert found.max() > 2 / 3
    assert ratios(np.array([0.0, 0.5, 0.75, 1.0])).tolist() == [0.0, 1.0, 3.0, 1000.0]


@pytest.fixture(scope="module")
def model():
    return hta.train(picture(), default_config(recipe="views", **TINY))


def test_scores_are_0_for_views_and_1_at_the_threshold(model):
    """The threshold rejects 10 of the 200 views; scores are the maxima of the maps, and decide with maps or without."""
    images = [picture(seed) for seed in range(4)] + [255 - picture()]
    scores, decisions, _ = model.score(images)
    limits, normal = model.threshold(ScoringConfig()), model.calibration().peaks
    assert (limits.threshold, limits.decided_by) == (1.0, "score")
    assert (normal > limits.pixel_threshold).sum() == 10
    peaks = np.array([votes.peak for votes in model.stream(images)])
    average = ratios(normal).mean()
    expected = (ratios(peaks) - average) / (ratios(limits.pixel_threshold) - average)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    assert decisions.tolist() == (peaks > limits.pixel_threshold).tolist()
    without = model.score(images, with_maps=False)
    assert without.anomaly_maps is None
    np.testing.assert_allclose(without.anomaly_scores, scores, rtol=0, atol=1e-5)
    alone = [float(model.score(image).anomaly_scores[0]) for image in images]
    np.testing.assert_allclose(alone, scores, rtol=0, atol=1e-5)
    assert model.score(images, threshold=-1e9).decisions.all()


def test_a_threshold_below_the_views_is_1_as_well_and_separates_what_it_decides(model):
    images, scoring = [picture(seed) for seed in range(6)], ScoringConfig(target_fpr=0.9)
    limits, votes = model.threshold(scoring), [votes.peak for votes in model.stream(images)]
    assert limits.pixel_threshold < model.calibration().peaks.mean()
    found = model.score(images, target_fpr=0.9)
    assert found.decisions.tolist() == [bool(peak > limits.pixel_threshold) for peak in votes]
    assert found.decisions.tolist() == (found.anomaly_scores > 1).tolist()


def test_a_saved_model_scores_alike_and_the_paper_s_score_is_one_option_away(model, tmp_path):
    model.save(tmp_path / "saved")
    loaded = hta.load(tmp_path / "saved", runtime=model.record.config.runtime)
    image = picture(3)
    assert loaded.score(image).anomaly_scores.tolist() == model.score(image).anomaly_scores.tolist()
    of_votes = loaded.score(image, score="paper")
    (votes,) = loaded.stream([image])
    np.testing.assert_allclose(of_votes.anomaly_scores, 1 - votes.shares.mean(), rtol=0, atol=1e-12)
    with pytest.raises(UserError, match="aggregate calibrated"):
        loaded.score(image, score="nearest", aggregate="calibrated")


@pytest.mark.parametrize(
    ("settings", "score"),
    [
        ({}, "nearest"),
        ({"task": "class"}, "combined"),
        ({"recipe": "paper"}, "paper"),
        ({"recipe": "views", "task": "class"}, "combined"),
        ({"recipe": "views"}, "nearest"),
    ],
)
def test_the_default_follows_task_and_recipe(settings, score):
    model = hta.train(picture(), default_config(**TINY | {"niter": 1, "num_transforms": 4} | settings))
    assert model.score_name(ScoringConfig()) == score
    calibration = model.calibration()
    rule = RULE if score == "nearest" else view_rule(model.task, 4)
    assert (calibration.score, calibration.rule) == ("nearest" if score == "nearest" else "paper", rule)
