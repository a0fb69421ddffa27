"""Votes on shared canvases against the explicit definition, and what must not change them."""

import pytest
import torch

from hta.evaluation import votes
from hta.evaluation.scores import vote_shares
from hta.evaluation.votes import FoldedDiscriminator, ScaleVoter, VoteScorer, has_fused_kernel
from hta.models.canvas import plan_canvases
from hta.models.networks import Discriminator
from hta.models.scales import image_pyramid
from hta.models.transforms import TRANSFORMATION_SETS, apply_transformation
from tests import oracle
from tests.helpers import random_images, random_pyramid

SIZES = [(22, 22), (16, 22), (22, 16)]
CPU = torch.device("cpu")
EXACT = dict(rtol=0, atol=1e-9)


def turned_back(vote_map, transformation):
    vote_map = torch.rot90(vote_map, -transformation[4], dims=(-2, -1))
    return vote_map.flip(-1) if transformation[1] else vote_map


@pytest.mark.parametrize("num_transforms", [54, 42, 4])
@pytest.mark.parametrize("size", SIZES)
def test_votes_equal_the_explicit_definition(size, num_transforms):
    pyramid, all_params = random_pyramid(size, num_transforms)
    images = image_pyramid(random_images(size, 2), pyramid.plan.sizes)
    assert pyramid.plan.num_scales >= 2
    t_list = oracle.transformation_list(num_transforms)
    scorer = VoteScorer(pyramid)
    for n, (params, x) in enumerate(zip(all_params, images, strict=True)):
        votes = scorer.scale_votes(x, n)
        explicit = oracle.vote_map_explicit(params, x, t_list)
        expected = torch.stack([turned_back(p, t) for p, t in zip(explicit, t_list, strict=True)], dim=1)
        assert votes.image_size == tuple(x.shape[-2:])
        assert expected.std() > 1e-4
        torch.testing.assert_close(votes.probabilities, expected, **EXACT)


def test_other_kernels_and_depths():
    torch.manual_seed(0)
    network = Discriminator(4, 5, 5, 3, torch.float64).double().eval()
    network.body.blocks[0].norm.running_mean.normal_()
    x = random_images((17, 21), 2)
    votes = ScaleVoter(FoldedDiscriminator(network), (17, 21)).votes(x)
    assert votes.margin == 6
    for i, transformation in enumerate(TRANSFORMATION_SETS[4]):
        (logits,) = network([apply_transformation(x, transformation)])
        expected = torch.rot90(logits[:, :4].softmax(dim=1)[:, i], -transformation.rotation, dims=(-2, -1))
        torch.testing.assert_close(votes.probabilities[:, i], expected, **EXACT)


@pytest.mark.parametrize("num_transforms", [54, 42, 4])
def test_all_votes_of_a_patch_share_its_probability(num_transforms):
    # On an image that no transformation changes, the M votes of a patch are the M classes of one softmax.
    pyramid, _ = random_pyramid((16, 22), num_transforms, dtype=torch.float32)
    flat = torch.full((1, 3, 16, 22), 0.3)
    votes = VoteScorer(pyramid).votes(image_pyramid(flat, pyramid.plan.sizes))
    for scale_votes in votes:
        torch.testing.assert_close(
            scale_votes.probabilities.sum(dim=1),
            torch.ones(1, *scale_votes.probabilities.shape[-2:]),
            rtol=0,
            atol=1e-5,
        )


@pytest.mark.parametrize("num_transforms", [54, 4])
def test_batch_size_order_and_threads_change_nothing(num_transforms):
    pyramid, _ = random_pyramid((16, 22), num_transforms, dtype=torch.float32, nfc=16)
    images = random_images((16, 22), 5, dtype=torch.float32)
    order = torch.tensor([4, 2, 0, 1, 3])

    def shares(batch, pass_images):
        scorer = VoteScorer(pyramid, pass_images)
        pyramid_images = image_pyramid(batch, pyramid.plan.sizes)
        return torch.stack([vote_shares(v.probabilities, [0.05, 1.0]) for v in scorer.votes(pyramid_images)])

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        reference = shares(images, None)
        alone = torch.cat([shares(image[None], None) for image in images], dim=-1)
        assert (alone - reference).abs().max() <= 1e-6
        torch.testing.assert_close(shares(images[order], 2), shares(images, 2)[..., order], rtol=0, atol=0)
        torch.set_num_threads(2)
        assert (shares(images, 3) - reference).abs().max() <= 1e-6
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_the_fused_kernel_equals_the_plain_way(dtype, tolerance):
    if not has_fused_kernel(CPU, dtype):
        pytest.skip("this build of torch has no fused kernel")
    pyramid, all_params = random_pyramid((16, 16), 42, dtype=dtype, max_size=16, nfc=32)
    x = random_images((16, 16), 3, dtype=torch.float32)
    fused, plain = (
        ScaleVoter(FoldedDiscriminator(pyramid.scales[0].discriminator, fused), (16, 16)).votes(x).probabilities
        for fused in (True, False)
    )
    explicit = oracle.vote_share(all_params[0], x.double(), oracle.transformation_list(42))
    torch.testing.assert_close(fused, plain, rtol=tolerance, atol=tolerance / 10)
    torch.testing.assert_close(fused.mean(dim=(1, 2, 3)).double(), explicit, rtol=tolerance, atol=0)
    torch.testing.assert_close(plain.mean(dim=(1, 2, 3)).double(), explicit, rtol=tolerance, atol=0)


def test_the_fused_kernel_is_not_used_where_it_is_none(monkeypatch):
    monkeypatch.setattr(votes, "_fuses_bfloat16", lambda: False)
    assert not has_fused_kernel(CPU, torch.bfloat16)
    assert not has_fused_kernel(CPU, torch.float64)
    assert not has_fused_kernel(torch.device("cuda"), torch.bfloat16)


def test_images_are_scored_in_bfloat16_on_every_cpu():
    pyramid, _ = random_pyramid((16, 16), 4, dtype=torch.bfloat16, max_size=16)
    shares = VoteScorer(pyramid).scale_votes(random_images((16, 16), 2, dtype=torch.float32), 0).probabilities
    assert shares.isfinite().all()


def test_folding_copies_the_network():
    pyramid, _ = random_pyramid((16, 16), 4, max_size=16)
    x = random_images((16, 16), 1)
    scorer = VoteScorer(pyramid)
    before = scorer.scale_votes(x, 0).probabilities
    for parameter in pyramid.scales[0].discriminator.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(scorer.scale_votes(x, 0).probabilities, before, rtol=0, atol=0)


def test_a_pass_holds_fewer_images_the_larger_they_are():
    network = FoldedDiscriminator(Discriminator(32, 55, 3, 5))
    small, large = ScaleVoter(network, (25, 25)), ScaleVoter(network, (128, 128))
    assert small.pass_images > large.pass_images >= 1
    canvas_pixels = max(g.size[0] * g.size[1] * len(g.canvases) for g in plan_canvases(25, 25, 54).groups)
    assert small.pass_images == (32 << 20) // (canvas_pixels * 2 * 32 * 4)
