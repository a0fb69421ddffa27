"""Votes of any network against the explicit definition; scores in batches and streams are those of each image alone."""

import threading

import numpy as np
import pytest
import torch

from hta.errors import UserError
from hta.evaluation import scorer as scorer_module
from hta.evaluation.maps import anomaly_maps, upsample_map
from hta.evaluation.scorer import ScaleVoter, Scorer, has_fused_kernel
from hta.evaluation.scores import vote_shares
from hta.images import resize, to_tensor
from hta.models.canvas import plan_canvases
from hta.models.networks import Discriminator
from hta.speed.explicit import transform, transformation_list, vote_share
from tests.helpers import random_images, random_pyramid

FRACTIONS = (0.05, 1.0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pyramid():
    return random_pyramid((19, 22), 4, dtype=torch.float32)[0]


def voter_of(pyramid):
    """Of the finest scale."""
    return ScaleVoter(pyramid.scales[-1].discriminator, pyramid.plan.working_size)


def test_other_kernels_and_depths_vote_with_a_copy_of_the_network():
    torch.manual_seed(0)
    network = Discriminator(4, 5, 5, 3, torch.float64).double().eval()
    network.body.blocks[0].norm.running_mean.normal_()
    x = random_images((17, 21), 2)
    voter, expected = ScaleVoter(network, (17, 21)), []
    for i, transformation in enumerate(transformation_list(4)):
        (logits,) = network([transform(x, transformation)])
        expected.append(torch.rot90(logits[:, :4].softmax(dim=1)[:, i], -transformation[4], dims=(-2, -1)))
    for parameter in network.parameters():  # the voter has its own copy
        parameter.data.zero_()
    assert expected[0].shape == (2, 17 - 12, 21 - 12)
    torch.testing.assert_close(voter.votes(x), torch.stack(expected, dim=1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_transforms", [54, 4])
def test_batch_size_order_and_threads_change_nothing(num_transforms):
    pyramid, _ = random_pyramid((16, 22), num_transforms, dtype=torch.float32, nfc=16)
    images = random_images((16, 22), 5, dtype=torch.float32)
    order = [4, 2, 0, 1, 3]

    def shares(batch, pass_images=None):
        return Scorer(pyramid, pass_images).shares(batch, FRACTIONS)

    reference = shares(images)
    alone = np.concatenate([shares(image[None]) for image in images], axis=1)
    assert np.abs(alone - reference).max() <= 1e-6
    np.testing.assert_array_equal(shares(images[order], 2), shares(images, 2)[:, order])
    torch.set_num_threads(2)
    assert np.abs(shares(images, 3) - reference).max() <= 1e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_the_fused_kernel_equals_the_plain_way(monkeypatch, dtype, tolerance):
    if not has_fused_kernel(CPU, dtype):
        pytest.skip("this build of torch has no fused kernel")
    pyramid, all_params = random_pyramid((16, 16), 42, dtype=dtype, max_size=16, nfc=32)
    x = random_images((16, 16), 3, dtype=torch.float32)
    fused = voter_of(pyramid).votes(x)
    monkeypatch.setattr(scorer_module, "has_fused_kernel", lambda *_: False)
    plain = voter_of(pyramid).votes(x)
    explicit = vote_share(all_params[-1], x.double(), transformation_list(42))
    torch.testing.assert_close(fused, plain, rtol=tolerance, atol=tolerance / 10)
    for votes in (fused, plain):
        torch.testing.assert_close(votes.mean(dim=(1, 2, 3)).double(), explicit, rtol=tolerance, atol=0)


def test_the_fused_kernel_is_not_used_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    for device, dtype in ((CPU, torch.bfloat16), (CPU, torch.float64), (torch.device("cuda"), torch.bfloat16)):
        assert not has_fused_kernel(device, dtype)
    # bfloat16 is scored all the same.
    pyramid, _ = random_pyramid((16, 16), 4, dtype=torch.bfloat16, max_size=16)
    assert voter_of(pyramid).votes(random_images((16, 16), 2, dtype=torch.float32)).isfinite().all()


def test_a_pass_holds_fewer_images_the_larger_they_are():
    network = Discriminator(32, 55, 3, 5)
    small, large = ScaleVoter(network, (25, 25)), ScaleVoter(network, (128, 128))
    assert small.pass_images > large.pass_images >= 1
    canvas_pixels = max(g.size[0] * g.size[1] * len(g.canvases) for g in plan_canvases(25, 25, 54).groups)
    assert small.pass_images == (32 << 20) // (canvas_pixels * 2 * 32 * 4)


def test_a_batch_gives_shares_and_maps_of_every_scale(pyramid):
    images, scorer = random_images((19, 22), 3, dtype=torch.float32), Scorer(pyramid)
    shares, votes = scorer.shares(images, FRACTIONS), scorer.votes(images)
    assert shares.shape == (2, 3, pyramid.plan.num_scales)
    assert shares.dtype == np.float64
    for n, of_scale in enumerate(votes):
        np.testing.assert_array_equal(shares[:, :, n], vote_shares(of_scale, FRACTIONS).double().numpy())
    with_maps, maps = scorer.score(images, FRACTIONS[0])
    np.testing.assert_array_equal(with_maps, shares[0])
    np.testing.assert_array_equal(maps, anomaly_maps(votes, scorer.margin, (19, 22)).numpy())
    assert maps.dtype == np.float32
    np.testing.assert_allclose(scorer.recognition(images).numpy(), 4 * shares[1].mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize(("batch_size", "with_maps"), [(1, False), (2, True), (2, False), (5, True), (64, True)])
def test_a_stream_gives_what_the_images_give_alone(pyramid, batch_size, with_maps):
    scorer, images = Scorer(pyramid), list(np.random.default_rng(0).random((4, 19, 22, 3), dtype=np.float32))
    images.append(np.random.default_rng(1).random((40, 30, 3), dtype=np.float32))
    results = list(scorer.stream(iter(images), 0.05, batch_size, with_maps=with_maps))
    assert [votes.image_size for votes in results] == [(19, 22)] * 4 + [(40, 30)]
    for image, votes in zip(images, results, strict=True):
        shares, maps = scorer.score(resize(to_tensor([image]), (19, 22)), 0.05)
        np.testing.assert_allclose(votes.shares, shares[0], rtol=0, atol=1e-6)
        if with_maps:
            np.testing.assert_allclose(votes.anomaly_map, maps[0], rtol=0, atol=1e-6)
            assert votes.peak == votes.anomaly_map.max()
            expected = upsample_map(torch.from_numpy(votes.anomaly_map), votes.image_size).numpy()
            np.testing.assert_array_equal(votes.full_size_map(), expected)
        else:
            assert votes.anomaly_map is votes.peak is None


def test_images_are_read_ahead_by_two_batches_at_most(pyramid):
    taken = []

    def endless():
        while True:
            taken.append(threading.get_ident())
            yield np.zeros((19, 22, 3), dtype=np.float32)

    stream = Scorer(pyramid).stream(endless(), 1.0, 3, with_maps=False)
    for number in range(1, 10):
        next(stream)
        assert len(taken) <= 3 * ((number - 1) // 3 + 2)
    stream.close()
    assert len(taken) <= 12
    assert threading.get_ident() not in taken


def test_a_stream_ends_with_its_images_or_with_the_error_of_their_reader(pyramid):
    def broken():
        yield np.zeros((19, 22, 3), dtype=np.float32)
        raise UserError("b.png: damaged")

    assert list(Scorer(pyramid).stream([], 1.0, 4)) == []
    with pytest.raises(UserError, match=r"b\.png"):
        list(Scorer(pyramid).stream(broken(), 1.0, 1))
