"""Each part of the ablation against a tiny, explicit definition."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hta.config import AblationConfig, Config, ModelConfig, TrainingConfig
from hta.evaluation.scorer import Scorer
from hta.experiments import variants
from hta.experiments.geom import SIDE, Geom, WideResNet, transformed_pixels
from hta.experiments.spec import RunSpec
from hta.experiments.variants import real_probabilities, score_images, similarities, train_variant
from hta.models.networks import Discriminator
from hta.models.pyramid import Pyramid, plan_of
from hta.models.scales import image_pyramid
from hta.runs import prepare
from hta.runtime import Runtime
from hta.speed.explicit import patch_cross_entropy, transformation_list
from hta.training.losses import PatchTargets, fake_loss, plan_of_objective, transformation_loss
from hta.training.scale import ScaleTrainer
from hta.training.trainer import train_pyramid
from tests.helpers import random_images
from tests.oracle import random_network

CPU = torch.device("cpu")
SHAPE = (16, 19)
EXACT = dict(rtol=0, atol=1e-9)


def settings(objective, num_transforms=42):
    return AblationConfig(
        objective=objective, task="class", num_transforms=num_transforms, min_size=12, max_size=16, nfc=3
    )


def discriminator_on_plan(objective, images):
    """Logits on the objective's windows, their targets, and the discriminator written plainly."""
    config = settings(objective)
    plain = random_network(3, 6, config.num_classes).train()
    D = Discriminator(6, config.num_classes, 3, 5, torch.float64).double()
    D.body.load_state_dict(plain.state_dict())
    plan = plan_of_objective(config, SHAPE)
    num_classes = D.num_classes - (objective == "transformations_only")
    targets = PatchTargets.of_plan(plan, num_classes, D.margin, len(images), torch.float64, CPU)
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


def pyramid_of(objective, **training):
    config = Config(settings(objective, 4), TrainingConfig(niter=2, manualSeed=1, **training))
    image = (random_images((20, 20), 1, dtype=torch.float32)[0].permute(1, 2, 0).numpy() + 1) / 2
    training_set = prepare([image], ["image"], config)
    return training_set, train_pyramid(training_set.images, training_set.record, Runtime(CPU, torch.float32))


def test_without_a_generator_only_the_discriminator_learns():
    config = settings("transformations_only", 4)
    pyramid = Pyramid.planned(config, (20, 20), 1, CPU, torch.float32)
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
    image = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    padded = np.pad(image, 8, mode="symmetric")
    found = {tuple(row.tolist()) for row in transformed_pixels()}
    assert len(found) == 72
    for flip in (False, True):
        turned = padded[:, ::-1] if flip else padded
        for dx in (-8, 0, 8):
            for dy in (-8, 0, 8):
                moved = turned[8 - dy : 8 - dy + SIDE, 8 - dx : 8 - dx + SIDE]
                assert all(tuple(np.rot90(moved, turns).ravel().tolist()) in found for turns in range(4))
    assert torch.equal(transformed_pixels()[0], torch.arange(SIDE * SIDE))


def test_geom_is_a_wide_resnet_of_depth_10_that_scores_by_the_right_transformation():
    network = WideResNet()
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 + 2 == 10  # WRN counts the stem, six of the blocks, and three shortcuts
    training_set, pyramid = pyramid_of("transformations", Gsteps=1, Dsteps=1)
    geom = Geom(pyramid, steps=2, seed=0, runtime=Runtime(CPU, torch.float32), num_samples=4)
    again = Geom(pyramid, steps=2, seed=0, runtime=Runtime(CPU, torch.float32), num_samples=4)
    images = [(training_set.images[0].permute(1, 2, 0).numpy() + 1) / 2] * 2
    shares = score_images(geom.shares, images, pyramid.plan.working_size)
    assert shares.shape == (1, 2, 1)
    np.testing.assert_array_equal(shares, score_images(again.shares, images, pyramid.plan.working_size))
    small = torch.nn.functional.interpolate(
        training_set.images, (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False
    ).clamp(-1, 1)
    right = [
        F.softmax(geom.network(small.flatten(2)[..., row].view_as(small)), dim=1)[0, number]
        for number, row in enumerate(transformed_pixels())
    ]
    assert shares[0, 0, 0] == pytest.approx(float(torch.stack(right).mean()), rel=1e-4)


def test_every_variant_is_trained_and_scored_by_its_own_way():
    """What `train_variant` hands out is what the parts give that are tested above, from the same seed."""
    tiny = (("Dsteps", 1), ("Gsteps", 1), ("max_size", 13), ("min_size", 11), ("nfc", 3), ("niter", 2))
    image = (random_images((20, 20), 1, dtype=torch.float32)[0].permute(1, 2, 0).numpy() + 1) / 2
    runtime = Runtime(CPU, torch.float32)
    for variant in ("ours", "a", "b", "c", "e"):
        spec = spec_of(variant, "fast", settings=tiny)
        training_set = prepare([image], ["image"], spec.config())
        pyramid = train_pyramid(training_set.images, training_set.record, runtime)
        images = random_images(pyramid.plan.working_size, 3, seed=4, dtype=torch.float32)
        expected = real_probabilities(pyramid, images) if variant in "bc" else Scorer(pyramid).shares(images)
        np.testing.assert_array_equal(train_variant(spec, training_set, runtime)(images), expected)
        assert expected.shape == (1, 3, 1 if variant == "e" else 3)


def test_geom_is_trained_for_the_steps_of_the_preset_and_by_the_seed_of_the_draw(monkeypatch):
    seen = []

    def geom(pyramid, steps, seed, runtime):
        seen.append((steps, seed))
        return SimpleNamespace(shares=None)

    monkeypatch.setattr(variants, "Geom", geom)
    tiny = (("Dsteps", 1), ("Gsteps", 1), ("max_size", 13), ("min_size", 11), ("nfc", 3), ("niter", 1))
    image = (random_images((20, 20), 1, dtype=torch.float32)[0].permute(1, 2, 0).numpy() + 1) / 2
    spec = spec_of("g", "fast", settings=tiny, seed=7)
    train_variant(spec, prepare([image], ["image"], spec.config()), Runtime(CPU, torch.float32))
    assert seen == [(1_000, 8)]
