"""What a run trains and measures: every variant against a tiny, explicit definition, AUROC and decisions by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hta.config import AblationConfig, Config, ModelConfig, ScoringConfig, TrainingConfig, default_config
from hta.evaluation.calibration import NUM_VIEWS, VIEWS_SEED
from hta.evaluation.scorer import Scorer
from hta.evaluation.scores import anomaly_scores
from hta.experiments import run
from hta.experiments.plan import RunSpec
from hta.experiments.run import (
    GEOM_SIDE,
    Geom,
    WideResNet,
    decide_by_views,
    errors_of,
    measure,
    real_probabilities,
    score_images,
    similarities,
    train_variant,
    transformed_pixels,
    votes_on_views,
)
from hta.model import Model
from hta.models.networks import Discriminator
from hta.models.pyramid import Pyramid
from hta.models.scales import image_pyramid, plan_of
from hta.models.views import view_rule
from hta.runs import prepare
from hta.runtime import Runtime
from hta.speed.explicit import patch_cross_entropy, transformation_list
from hta.training.losses import PatchTargets, fake_loss, plan_of_objective, transformation_loss
from hta.training.scale import ScaleTrainer
from hta.training.trainer import train_pyramid
from tests.helpers import random_images
from tests.oracle import random_network

CPU = torch.device("cpu")
RUNTIME = Runtime(CPU, torch.float32)
TINY = (("Dsteps", 1), ("Gsteps", 1), ("max_size", 13), ("min_size", 11), ("nfc", 3), ("niter", 1))
SHAPE = (16, 19)
EXACT = dict(rtol=0, atol=1e-9)


def settings(objective, num_transforms=42):
    return AblationConfig(
        objective=objective, task="class", num_transforms=num_transforms, min_size=12, max_size=16, nfc=3
    )


def decision_on_views(spec, shares_of, training_set, scores, labels):
    return decide_by_views(anomaly_scores(votes_on_views(spec, shares_of, training_set).shares), scores, labels)


def discriminator_on_plan(objective, images):
    """Logits on the objective's windows, their targets, and the discriminator written plainly."""
    config = settings(objective)
    plain = random_network(3, 6, config.num_classes).train()
    D = Discriminator(6, config.num_classes, 3, 5, torch.float64).double()
    D.body.load_state_dict(plain.state_dict())
    plan = plan_of_objective(config, SHAPE)
    num_classes = D.num_classes - (objective == "transformations_only")
    targets = PatchTargets(plan, num_classes, D.margin, len(images), torch.float64, CPU)
    return D(plan.render(images), D.coverages(plan, len(images), CPU)), targets, plain


def test_without_a_generator_the_class_fake_is_no_part_of_the_loss():
    images = random_images(SHAPE, 2)
    logits, targets, plain = discriminator_on_plan("transformations_only", images)
    expected = patch_cross_entropy(lambda batches: [z[:, :42] for z in plain(batches)], images, transformation_list(42))
    torch.testing.assert_close(transformation_loss([z[:, :-1] for z in logits], targets), expected, **EXACT)


@pytest.mark.parametrize(("objective", "count"), [("real_fake", 1), ("real_fake_augmented", 42)])
def test_real_against_fake(objective, count):
    images = random_images(SHAPE, 2)
    logits, targets, plain = discriminator_on_plan(objective, images)
    t_list = transformation_list(42)[:count]
    assert t_list[0] == (0, 0, 0, 0, 0)
    assert logits[0].shape[1] == 2
    for loss, target in ((transformation_loss, 0), (fake_loss, 1)):
        expected = patch_cross_entropy(plain, images, t_list, target)
        torch.testing.assert_close(loss(logits, targets), expected, **EXACT)


def tiny_image():
    return (random_images((20, 20), 1, dtype=torch.float32)[0].permute(1, 2, 0).numpy() + 1) / 2


def pyramid_of(objective):
    config = Config(settings(objective, 4), TrainingConfig(niter=1, Gsteps=1, Dsteps=1, manualSeed=1))
    training_set = prepare([tiny_image()], ["image"], config)
    return training_set, train_pyramid(training_set.images, training_set.record, RUNTIME)


def test_without_a_generator_only_the_discriminator_learns():
    config = settings("transformations_only", 4)
    pyramid = Pyramid(config, (20, 20), 1, CPU, torch.float32)
    trainer = ScaleTrainer(
        pyramid, random_images(pyramid.plan.sizes[0], 1, dtype=torch.float32), TrainingConfig(niter=2)
    )
    G, D = trainer.scale.generator, trainer.scale.discriminator
    before_g = [p.clone() for p in G.parameters()]
    before_d, fake_row = [p.clone() for p in D.parameters()], D.body.tail.weight[-1].clone()
    losses = list(trainer.run())
    assert all(loss.d_real > 0 and loss.d_fake == loss.g_adversarial == loss.g_reconstruction == 0 for loss in losses)
    assert all(torch.equal(a, b) for a, b in zip(before_g, G.parameters(), strict=True))
    assert not torch.equal(before_d[0], next(D.parameters()))
    assert torch.equal(fake_row, D.body.tail.weight[-1])


@pytest.mark.parametrize("objective", ["real_fake", "real_fake_augmented"])
def test_the_real_probability_is_a_mean_over_patches_of_the_untransformed_image(objective):
    _, pyramid = pyramid_of(objective)
    images = random_images(pyramid.plan.working_size, 3, seed=4, dtype=torch.float32)
    shares = real_probabilities(pyramid, images)
    assert shares.shape == (1, 3, pyramid.plan.num_scales)
    for n, level in enumerate(image_pyramid(images, pyramid.plan.sizes)):
        (z,) = pyramid.scales[n].discriminator([level[1:2]])
        odds = torch.exp(z[0, 0] - z[0, 1])
        assert shares[0, 1, n] == pytest.approx(float((odds / (1 + odds)).mean()), abs=1e-6)


def test_the_distance_is_the_mean_over_training_images_of_the_squared_error():
    training = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)])
    images = torch.stack([torch.full((3, 2, 2), 0.5), torch.full((3, 2, 2), -1.0)])
    # 0.5: (0.25 + 0.25) / 2; -1: (1 + 4) / 2
    np.testing.assert_allclose(similarities(images, training)[0, :, 0], [1 - 0.25, 1 - 2.5])


def spec_of(variant, preset="paper", **more):
    return RunSpec("fashionmnist", "FashionMNIST", "bag", 1, 1, variant, preset, 42, "", **more)


@pytest.mark.parametrize(
    ("variant", "preset", "sides", "niter"),
    [
        ("ours", "paper", [25, 32, 40, 51, 64], 500),
        ("ours", "fast", [25, 32, 41, 51], 250),
        ("d", "paper", [100], 500),
        ("d", "fast", [100], 250),
        ("e", "paper", [20], 500),
        ("c", "paper", [25, 32, 40, 51, 64], 500),
    ],
)
def test_scales_and_schedule_of_presets_and_variants(variant, preset, sides, niter):
    config = spec_of(variant, preset).config()
    assert plan_of(config.model, (128, 128)).sizes == tuple((side, side) for side in sides)
    assert (config.training.niter, config.model.num_transforms) == (niter, 42)


def test_objectives_of_the_variants_and_seed_of_a_draw():
    objectives = {variant: spec_of(variant).config().model.objective for variant in "abcdefg"}
    ablated = {"a": "transformations_only", "b": "real_fake", "c": "real_fake_augmented"}
    assert objectives == dict.fromkeys("defg", "transformations") | ablated
    assert spec_of("ours", seed=10).config().training.manualSeed == 11
    assert type(spec_of("ours").config().model) is ModelConfig


def test_geoms_transformations_move_pixels_as_they_say():
    image = np.arange(GEOM_SIDE * GEOM_SIDE).reshape(GEOM_SIDE, GEOM_SIDE)
    padded = np.pad(image, 8, mode="symmetric")
    found = {tuple(row.tolist()) for row in transformed_pixels()}
    assert len(found) == 72
    for flip in (False, True):
        turned = padded[:, ::-1] if flip else padded
        for dx in (-8, 0, 8):
            for dy in (-8, 0, 8):
                moved = turned[8 - dy : 8 - dy + GEOM_SIDE, 8 - dx : 8 - dx + GEOM_SIDE]
                assert all(tuple(np.rot90(moved, turns).ravel().tolist()) in found for turns in range(4))
    assert torch.equal(transformed_pixels()[0], torch.arange(GEOM_SIDE * GEOM_SIDE))


def test_geom_is_a_wide_resnet_of_depth_10_that_scores_by_the_right_transformation(monkeypatch):
    network = WideResNet()
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 + 2 == 10  # WRN counts the stem, six of the blocks, and three shortcuts
    training_set, pyramid = pyramid_of("transformations")
    monkeypatch.setattr("hta.experiments.run._TRAIN_BATCH", 4)
    one, again = (Geom(pyramid, steps=2, seed=0, runtime=RUNTIME, num_samples=2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.network.parameters(), again.network.parameters(), strict=True))
    image = (training_set.images[0].permute(1, 2, 0).numpy() + 1) / 2
    shares = score_images(one.shares, [image], pyramid.plan.working_size)
    assert shares.shape == (1, 1, 1)
    small = F.interpolate(
        training_set.images, (GEOM_SIDE, GEOM_SIDE), mode="bicubic", antialias=True, align_corners=False
    ).clamp(-1, 1)
    right = [
        F.softmax(one.network(small.flatten(2)[..., row].view_as(small)), dim=1)[0, number]
        for number, row in enumerate(transformed_pixels())
    ]
    assert shares[0, 0, 0] == pytest.approx(float(torch.stack(right).mean()), rel=1e-4)


@pytest.mark.parametrize("variant", ["ours", "a", "b", "e"])
def test_every_variant_is_trained_and_scored_by_its_own_way(variant):
    """`train_variant` returns what the parts that are tested above give from the same seed."""
    spec = spec_of(variant, "fast", settings=TINY)
    training_set = prepare([tiny_image()], ["image"], spec.config())
    pyramid = train_pyramid(training_set.images, training_set.record, RUNTIME)
    images = random_images(pyramid.plan.working_size, 3, seed=4, dtype=torch.float32)
    expected = real_probabilities(pyramid, images) if variant == "b" else Scorer(pyramid).shares(images)
    np.testing.assert_array_equal(train_variant(spec, training_set, RUNTIME)(images), expected)
    assert expected.shape == (1, 3, 1 if variant == "e" else 3)


def test_geom_is_trained_for_the_steps_of_the_preset_and_by_the_seed_of_the_draw(monkeypatch):
    seen = []
    monkeypatch.setattr(run, "train_pyramid", lambda *_: None)
    monkeypatch.setattr(run, "Geom", lambda _, *numbers: seen.append(numbers[:2]) or SimpleNamespace(shares=None))
    for changed in (TINY, (*TINY, ("manualSeed", 3))):
        spec = spec_of("g", "fast", settings=changed, seed=7)
        train_variant(spec, prepare([tiny_image()], ["image"], spec.config()), RUNTIME)
    assert seen == [(1_000, 8), (1_000, 3)]


def test_auroc_by_aggregate_fraction_and_scale():
    spec = RunSpec("defects", "x", "x", 1, 1, "ours", "fast", 4, "", fractions=(0.05, 1.0))
    labels = np.array([0, 0, 1, 1])
    # Shares of 2 fractions, 4 images and 2 scales; the second scale counts ten times as much until it is normalised.
    lowest = np.array([[0.9, 5.0], [0.8, 9.0], [0.1, 6.0], [0.2, 4.0]]) / 10
    shares = np.stack([lowest, lowest[::-1]])
    results, scores = measure(spec, shares, labels)
    # Means over scales: normal 0.295 and 0.49, anomalous 0.305 and 0.21: three pairs of four are in order.
    assert results["auroc"]["mean"] == 0.75
    # Normalised: normal (1 + 0.2) / 2 and (0.875 + 1) / 2, anomalous (0 + 0.4) / 2 and (0.125 + 0) / 2.
    assert results["auroc"]["minmax"] == 1
    assert results["auroc_by_scale"] == [1, 0.75]
    assert results["auroc_by_fraction"]["1"]["mean"] == 0.25
    assert results["fraction"] == 0.05
    np.testing.assert_allclose(scores, [0.705, 0.51, 0.695, 0.79])


def test_the_decision_is_the_products_views_and_threshold():
    spec = RunSpec("folder", "x", "x", 1, 1, "ours", "fast", 4, "", seed=5)
    images = [np.random.default_rng(n).random((20, 20, 3), dtype=np.float32) for n in range(2)]
    config = default_config(task="class", num_transforms=4, min_size=11, max_size=13)
    training_set = prepare(images, ["a", "b"], config)
    share, seen = 1 / 3, []  # a score of 2 / 3, which rounded is above it

    def shares_of(views):
        seen.append(views)
        return np.full((1, len(views), 2), share)

    scores = np.array([0.6666663, 1 - share, 0.6666669, 0.7])
    decision = decision_on_views(spec, shares_of, training_set, scores, np.array([0, 0, 1, 1]))
    assert decision["threshold"] == 0.666667
    assert list(decision["confusion"].values()) == [2, 0, 2, 0]
    expected = view_rule("class", 4).draw(training_set.images, NUM_VIEWS, VIEWS_SEED, None)
    assert torch.equal(torch.cat(seen), expected)


def test_the_errors_of_views_and_images_are_those_to_the_nearest_training_image():
    spec = RunSpec("folder", "x", "x", 2, 1, "ours", "fast", 4, "")
    images = [np.full((12, 12, 3), level, dtype=np.float32) for level in (0.0, 0.5)]
    images = [np.clip(image + np.eye(12, dtype=np.float32)[..., None] / 10, 0, 1) for image in images]
    training_set = prepare(images, ["a", "b"], default_config(task="class", num_transforms=4, min_size=11, max_size=12))
    np.testing.assert_allclose(errors_of([images[1], images[1] + 0.25], training_set.images), [0, 0.25], atol=1e-6)
    votes = votes_on_views(spec, lambda views: np.ones((1, len(views), 1)), training_set)
    views = view_rule("class", 4).draw(training_set.images, NUM_VIEWS, VIEWS_SEED, None)
    expected = [min(((view - image) ** 2).mean() for image in training_set.images) for view in views]
    np.testing.assert_allclose(votes.errors, expected, rtol=1e-5)


def test_the_decision_on_defects_takes_the_mirror_images_that_the_run_recognises():
    spec = RunSpec("defects", "x", "good", 1, 1, "ours", "fast", 4, "", fractions=(0.1, 1.0))
    images = [np.random.default_rng(n).random((20, 20, 3), dtype=np.float32) for n in range(2)]
    config = default_config(task="defect", min_size=11, max_size=13)
    training_set = prepare(images, ["a", "b"], config)
    mirrors = torch.cat([training_set.images.flip(-1), training_set.images.flip(-2)])
    # Chance is 1 / 4, half of it 1 / 8: of the four mirror images the second alone is recognised, by all patches.
    of_mirrors, seen = np.array([[0.9, 0.1, 0.9, 0.9], [0.12, 0.13, 0.12, 0.12]]), []

    def shares_of(views):
        if len(views) == len(mirrors) and torch.equal(views, mirrors):
            return of_mirrors[..., None]
        seen.append(views)
        return np.full((2, len(views), 1), 0.5)

    decision_on_views(spec, shares_of, training_set, np.array([0.1, 0.9]), np.array([0, 1]))

    def recognition(images):
        return torch.tensor([0.0, 1.0, 0.0, 0.0])

    expected = view_rule("defect", 4).draw(training_set.images, NUM_VIEWS, VIEWS_SEED, recognition)
    assert torch.equal(torch.cat(seen), expected)


def test_the_variant_views_scores_and_decides_by_the_maxima_of_the_products_maps():
    spec = RunSpec("defects", "x", "good", 1, 1, "views", "fast", 4, "", settings=TINY)
    assert spec.config().training.recipe == "views"
    noise = np.random.default_rng(1)
    image, other = noise.random((2, 20, 20, 3), dtype=np.float32)
    training_set = prepare([image], ["a"], spec.config())
    shares_of = train_variant(spec, training_set, RUNTIME)
    pyramid = train_pyramid(training_set.images, training_set.record, RUNTIME)
    model = Model(training_set.record, pyramid, RUNTIME, training_set.images)
    size = pyramid.plan.working_size
    shares = score_images(shares_of, [image, other], size)
    peaks = [votes.peak for votes in model.stream([image, other], ScoringConfig(no_frame_check=True))]
    np.testing.assert_allclose(1 - shares[0, :, 0], peaks, **EXACT)
    decision = decision_on_views(spec, shares_of, training_set, 1 - shares[0, :, 0], np.array([0, 1]))
    assert decision["threshold"] == round(model.threshold(ScoringConfig()).pixel_threshold, 6)
