"""Convolutions by Winograd's algorithm in C: against torch's in float64, for every way a block can be partly filled."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from hta.evaluation.scorer import ScaleVoter
from hta.models.kernels import PLAIN_KERNELS
from hta.models.native import choose_kernels
from hta.models.networks import Discriminator
from hta.models.winograd import Winograd

NATIVE_KERNELS = choose_kernels(torch.device("cpu"), True)
NEAR = dict(rtol=0, atol=1e-5)

pytestmark = pytest.mark.skipif(NATIVE_KERNELS.winograd is None, reason="no C compiler")

# Channels that fill vectors and registers in every way; images of less than a tile, of odd sizes, of many blocks.
CHANNELS = [(16, 16), (20, 37), (32, 32), (32, 43), (32, 55), (64, 64), (128, 24)]
SHAPES = [[(1, 3, 3)], [(1, 4, 3)], [(2, 9, 12), (1, 31, 7)], [(3, 30, 30)]]


def problem(inputs, outputs, shapes, seed=0):
    """Images, the gradients of their outputs, weight and bias; all outputs have about unit variance."""
    draw = torch.Generator().manual_seed(seed)

    def batch(channels, less):
        sizes = [(n, channels, h - less, w - less) for n, h, w in shapes]
        return [torch.randn(s, generator=draw).contiguous(memory_format=torch.channels_last) for s in sizes]

    weight = torch.randn(outputs, inputs, 3, 3, generator=draw) / (3 * max(inputs, outputs) ** 0.5)
    return batch(inputs, 0), batch(outputs, 2), weight, torch.randn(outputs, generator=draw)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("shapes", SHAPES)
def test_convolutions_and_their_gradients_equal_torchs_in_float64(channels, shapes):
    batches, grads, weight, bias = problem(*channels, shapes)
    assert Winograd.suits(weight, torch.float32)
    leaves = [batch.double().requires_grad_() for batch in batches]
    kernel, shift = weight.double().requires_grad_(), bias.double().requires_grad_()
    expected = [F.conv2d(leaf, kernel, shift) for leaf in leaves]
    torch.autograd.backward(expected, [grad.double() for grad in grads])

    for actual, wanted in zip(NATIVE_KERNELS.convolve(batches, weight, bias), expected, strict=True):
        assert actual.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(actual.double(), wanted, **NEAR)
    found = NATIVE_KERNELS.convolve_backward(grads, batches, weight, (True, True))
    for actual, leaf in zip(found.inputs, leaves, strict=True):
        torch.testing.assert_close(actual.double(), leaf.grad, **NEAR)
    scale = sum(n * h * w for n, h, w in shapes) ** 0.5  # sums over so many positions
    for actual, leaf in ((found.weight, kernel), (found.bias, shift)):
        torch.testing.assert_close(actual.double() / scale, leaf.grad / scale, **NEAR)


def test_gradients_that_are_not_wanted_are_not_computed():
    batches, grads, weight, _ = problem(32, 32, SHAPES[2])
    for kernels in (NATIVE_KERNELS, PLAIN_KERNELS):
        found = kernels.convolve_backward(grads, batches, weight, (False, False))
        assert found.weight is None
        assert found.bias is None
        assert len(found.inputs) == 2


def test_the_bits_do_not_depend_on_the_threads():
    batches, grads, weight, bias = problem(32, 43, SHAPES[3])
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found = NATIVE_KERNELS.convolve_backward(grads, batches, weight, (True, False))
        results.append([*NATIVE_KERNELS.convolve(batches, weight, bias), *found.inputs, found.weight])
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("weight", [(8, 32, 3, 3), (32, 3, 3, 3), (32, 32, 5, 5), (300, 32, 3, 3)])
def test_other_convolutions_are_left_to_torch(weight):
    batch = torch.zeros(1, weight[1], 12, 12)
    assert not Winograd.suits(torch.zeros(weight), torch.float32)
    assert NATIVE_KERNELS.convolve([batch], torch.zeros(weight))[0].shape[1] == weight[0]


def test_other_types_are_left_to_torch():
    batch, weight = torch.zeros(1, 32, 12, 12), torch.zeros(32, 32, 3, 3)
    assert not any(Winograd.suits(weight, dtype) for dtype in (torch.float64, torch.bfloat16))
    assert NATIVE_KERNELS.convolve([batch.bfloat16()], weight)[0].dtype == torch.bfloat16


def test_images_and_weights_of_any_layout_are_accepted():
    batches, _, weight, bias = problem(32, 32, [(2, 9, 12)])
    same = NATIVE_KERNELS.convolve(
        [batches[0].contiguous()], weight.contiguous(memory_format=torch.channels_last), bias
    )
    assert torch.equal(same[0], NATIVE_KERNELS.convolve(batches, weight, bias)[0])


@pytest.mark.parametrize("slope", [0.2, 1.0])
def test_leaky_relu_follows_if_asked_for(slope):
    batches, _, weight, bias = problem(32, 43, SHAPES[2])
    winograd = NATIVE_KERNELS.winograd
    found = winograd.convolve(batches, winograd.filters(weight), bias, 43, negative_slope=slope)
    for actual, batch in zip(found, batches, strict=True):
        expected = F.leaky_relu(F.conv2d(batch.double(), weight.double(), bias.double()), slope)
        torch.testing.assert_close(actual.double(), expected, **NEAR)


def test_what_c_could_not_read_is_refused():
    batches, _, weight, _ = problem(32, 32, SHAPES[2])
    winograd = NATIVE_KERNELS.winograd
    filters = winograd.filters(weight)
    for wrong in ([batches[0], batches[1].double()], [batches[0], batches[1][:, :16]], [batches[0][:, :16]]):
        with pytest.raises(ValueError, match=r"batches of|filters of"):
            winograd.convolve(wrong, filters, None, 32)
    with pytest.raises(ValueError, match="filters of"):
        winograd.convolve(batches, filters, None, 64)
    same = NATIVE_KERNELS.convolve(batches, weight.double())
    assert all(map(torch.equal, same, NATIVE_KERNELS.convolve(batches, weight)))


def test_what_is_not_a_number_reaches_every_output_that_sees_it():
    batches, _, weight, bias = problem(32, 32, [(1, 12, 12)])
    batches[0][0, 3, 6, 7] = torch.nan
    (found,) = NATIVE_KERNELS.convolve(batches, weight, bias)
    assert found[F.conv2d(batches[0], weight, bias).isnan()].isnan().all()


@pytest.mark.parametrize("num_transforms", [4, 54])
def test_a_frozen_discriminator_votes_alike_with_these_convolutions_also_as_a_copy(num_transforms):
    network = Discriminator(32, num_transforms + 1, 3, 5)
    images = torch.rand(3, 3, 25, 31, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    network.eval().requires_grad_(False)
    voter = ScaleVoter(network, (25, 31), kernels=NATIVE_KERNELS)
    votes = voter.votes(images)
    torch.testing.assert_close(votes, ScaleVoter(network, (25, 31)).votes(images), rtol=0, atol=1e-4)
    for copied in (copy.deepcopy(voter), pickle.loads(pickle.dumps(voter))):  # noqa: S301
        assert torch.equal(copied.votes(images), votes)
