"""Shared canvases against the explicit way of oracle.py, in float64: equal to 1e-9."""

import pytest
import torch

from hta.models.canvas import plan_canvases
from hta.models.networks import Discriminator, Generator
from hta.training.losses import PatchTargets, fake_loss, transformation_loss
from tests import oracle
from tests.helpers import copy_parameters

WIDTH = 6
SHAPES = [(22, 22), (20, 27)]
CPU = torch.device("cpu")
EXACT = dict(rtol=0, atol=1e-9)


def require_grad(params):
    names = ("weight", "bias", "gamma", "beta")
    leaves = [block[name].requires_grad_() for block in params for name in names if name in block]
    return leaves


def package_leaves(network):
    leaves = []
    for block in network.body.blocks:
        leaves += [block.conv.weight, block.conv.bias, block.norm.weight, block.norm.bias]
    return [*leaves, network.body.tail.weight, network.body.tail.bias]


def running_of(params):
    return [{key: block[key].clone() for key in ("running_mean", "running_var")} for block in params[:-1]]


def assert_running_equal(network, running):
    for block, statistics in zip(network.body.blocks, running, strict=True):
        torch.testing.assert_close(block.norm.running_mean, statistics["running_mean"], **EXACT)
        torch.testing.assert_close(block.norm.running_var, statistics["running_var"], **EXACT)


def images_of(shape, num_images, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(num_images, 3, *shape, generator=draw, dtype=torch.float64) * 2 - 1


def discriminator_pair(num_transforms, seed=0):
    params = oracle.random_parameters(3, WIDTH, num_transforms + 1, seed)
    network = Discriminator(WIDTH, num_transforms + 1, 3, 5, torch.float64).double()
    copy_parameters(params, network)
    return params, network


def canvas_loss(network, images, num_transforms, loss):
    plan = plan_canvases(*images.shape[-2:], num_transforms)
    targets = PatchTargets.of_plan(plan, network.num_classes, network.margin, len(images), torch.float64, CPU)
    coverages = network.coverages(plan, len(images), CPU)
    return loss(network(plan.render(images), coverages), targets)


@pytest.mark.parametrize("num_transforms", [54, 42, 4])
@pytest.mark.parametrize("num_images", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("loss", "explicit"), [(transformation_loss, oracle.real_loss), (fake_loss, oracle.fake_loss)])
def test_discriminator_losses_equal_the_explicit_way(loss, explicit, shape, num_images, num_transforms):
    params, network = discriminator_pair(num_transforms)
    leaves, running = require_grad(params), running_of(params)
    images = images_of(shape, num_images)
    explicit_images, canvas_images = images.clone().requires_grad_(), images.clone().requires_grad_()

    expected = explicit(params, explicit_images, oracle.transformation_list(num_transforms), running)
    expected.backward()
    actual = canvas_loss(network, canvas_images, num_transforms, loss)
    actual.backward()

    torch.testing.assert_close(actual, expected, **EXACT)
    torch.testing.assert_close(canvas_images.grad, explicit_images.grad, **EXACT)
    assert explicit_images.grad.abs().max() > 1e-6
    for mine, theirs in zip(package_leaves(network), leaves, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, **EXACT)
    assert_running_equal(network, running)


@pytest.mark.parametrize("num_transforms", [54, 42, 4])
@pytest.mark.parametrize("num_images", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_generator_loss_equals_the_explicit_way(shape, num_images, num_transforms):
    d_params, D = discriminator_pair(num_transforms)
    g_params = oracle.random_parameters(4, WIDTH, 3, seed=5)
    G = Generator(WIDTH, 3, 5, torch.float64).double()
    copy_parameters(g_params, G)
    leaves, d_running, g_running = require_grad(g_params), running_of(d_params), running_of(g_params)
    images, noise, fixed, previous = (images_of(shape, num_images, seed) for seed in range(4))
    index = torch.arange(num_images)

    fakes = oracle.generator(g_params, noise, previous, index, True, g_running)
    rebuilt = oracle.generator(g_params, fixed, previous, index, True, g_running)
    t_list = oracle.transformation_list(num_transforms)
    expected = oracle.generator_loss(d_params, fakes, rebuilt, images, t_list, d_running)
    expected.backward()

    coverages = G.coverages(num_images, shape, CPU)
    fakes = G(noise, previous, index, coverages)
    rebuilt = G(fixed, previous, index, coverages)
    D.requires_grad_(False)
    adversarial = canvas_loss(D, fakes, num_transforms, transformation_loss)
    actual = adversarial + 100 * (rebuilt - images).square().mean()
    actual.backward()

    torch.testing.assert_close(actual, expected, **EXACT)
    for mine, theirs in zip(package_leaves(G), leaves, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, **EXACT)
    assert_running_equal(G, g_running)
    assert_running_equal(D, d_running)


@pytest.mark.parametrize("shape", SHAPES)
def test_frozen_networks_equal_the_explicit_way(shape):
    params, network = discriminator_pair(4)
    images = images_of(shape, 2)
    (expected,) = oracle.discriminator(params, [images], train=False)
    (actual,) = network.eval()([images])
    torch.testing.assert_close(actual, expected, **EXACT)
