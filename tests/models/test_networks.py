"""Networks and losses on shared canvases against the method written plainly, in float64: equal to 1e-9."""

import pytest
import torch

from hta.models.canvas import plan_canvases
from hta.models.networks import Discriminator, Generator
from hta.speed.explicit import generate, patch_cross_entropy, transformation_list
from hta.training.losses import PatchTargets, fake_loss, transformation_loss
from tests.helpers import random_images
from tests.oracle import random_network

WIDTH = 6
SHAPES = [(22, 22), (20, 27)]
CPU = torch.device("cpu")
EXACT = dict(rtol=0, atol=1e-9)
CASES = [(54, 1), (54, 3), (42, 1), (4, 3)]


def discriminator_pair(num_transforms):
    plain = random_network(3, WIDTH, num_transforms + 1).train().requires_grad_()
    network = Discriminator(WIDTH, num_transforms + 1, 3, 5, torch.float64).double()
    network.body.load_state_dict(plain.state_dict())
    return plain, network


def assert_equal(network, plain, *, gradients=True):
    """The gradients of all parameters and the running statistics are those of the plain network."""
    wanted = plain.state_dict()
    for name, buffer in network.body.named_buffers():
        torch.testing.assert_close(buffer, wanted[name], **EXACT)
    for name, parameter in plain.named_parameters():
        if gradients:
            torch.testing.assert_close(network.body.get_parameter(name).grad, parameter.grad, **EXACT)


def canvas_loss(network, images, num_transforms, loss):
    plan = plan_canvases(*images.shape[-2:], num_transforms)
    targets = PatchTargets(plan, network.num_classes, network.margin, len(images), torch.float64, CPU)
    coverages = network.coverages(plan, len(images), CPU)
    return loss(network(plan.render(images), coverages), targets)


@pytest.mark.parametrize(("num_transforms", "num_images"), CASES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", [transformation_loss, fake_loss])
def test_discriminator_losses_equal_the_explicit_way(loss, shape, num_images, num_transforms):
    plain, network = discriminator_pair(num_transforms)
    images = random_images(shape, num_images)
    explicit_images, canvas_images = images.clone().requires_grad_(), images.clone().requires_grad_()

    target = num_transforms if loss is fake_loss else None
    expected = patch_cross_entropy(plain, explicit_images, transformation_list(num_transforms), target)
    expected.backward()
    actual = canvas_loss(network, canvas_images, num_transforms, loss)
    actual.backward()

    torch.testing.assert_close(actual, expected, **EXACT)
    torch.testing.assert_close(canvas_images.grad, explicit_images.grad, **EXACT)
    assert explicit_images.grad.abs().max() > 1e-6
    assert_equal(network, plain)


@pytest.mark.parametrize(("num_transforms", "num_images"), CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_generator_loss_equals_the_explicit_way(shape, num_images, num_transforms):
    d_plain, D = discriminator_pair(num_transforms)
    g_plain = random_network(4, WIDTH, 3, seed=5).train().requires_grad_()
    G = Generator(WIDTH, 3, 5, torch.float64).double()
    G.body.load_state_dict(g_plain.state_dict())
    images, noise, fixed, previous = (random_images(shape, num_images, seed) for seed in range(4))
    index = torch.arange(num_images)

    fakes, rebuilt = (generate(g_plain, values, previous, index) for values in (noise, fixed))
    adversarial = patch_cross_entropy(d_plain, fakes, transformation_list(num_transforms))
    expected = adversarial + 100 * (rebuilt - images).square().mean()
    expected.backward()

    coverages = G.coverages(num_images, shape, CPU)
    fakes, rebuilt = (G(values, previous, index, coverages) for values in (noise, fixed))
    D.requires_grad_(False)
    adversarial = canvas_loss(D, fakes, num_transforms, transformation_loss)
    actual = adversarial + 100 * (rebuilt - images).square().mean()
    actual.backward()

    torch.testing.assert_close(actual, expected, **EXACT)
    assert_equal(G, g_plain)
    assert_equal(D, d_plain, gradients=False)


@pytest.mark.parametrize("shape", SHAPES)
def test_frozen_networks_equal_the_explicit_way(shape):
    plain, network = discriminator_pair(4)
    images = random_images(shape, 2)
    (expected,) = plain.eval()([images])
    (actual,) = network.eval()([images])
    torch.testing.assert_close(actual, expected, **EXACT)


def test_training_mode_needs_coverages():
    network = Discriminator(WIDTH, 5, 3, 5)
    with pytest.raises(ValueError, match="coverages"):
        network([torch.zeros(1, 3, 11, 11)])
