"""The method written plainly, and tests/oracle.py, against results by hand and independent implementations."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hta.speed import explicit
from hta.speed.explicit import lowest_mean, patch_cross_entropy, transform, transformation_list, vote_maps, vote_share
from tests import oracle
from tests.helpers import random_images
from tests.oracle import random_network

FULL, ROTATIONS = transformation_list(54), transformation_list(4)
IDENTITY = (0, 0, 0, 0, 0)


def numbered(height, width):
    """Three equal channels 0, 1, 2 ... row by row: all pixels distinct."""
    return torch.arange(height * width, dtype=torch.float64).reshape(1, height, width).repeat(3, 1, 1)


def constant_logits(probabilities):
    """A discriminator whose every patch has these softmax probabilities."""
    network = random_network(3, 4, len(probabilities))
    network.tail.weight.zero_()
    network.tail.bias.copy_(torch.tensor(probabilities, dtype=torch.float64).log())
    return network


def test_it_shares_no_code_with_the_package():
    tree = ast.parse(Path(explicit.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {name.split(".")[0] for name in imported} == {"collections", "typing", "itertools", "torch"}


def test_resize_doubles_an_impulse_by_hand():
    impulse = np.zeros((1, 8))
    impulse[0, 4] = 1
    # A doubled row samples the kernel at distances 1.75 1.25 0.75 0.25 on both sides; the four taps sum to 1.
    taps = [-0.0234375, -0.0703125, 0.2265625, 0.8671875]
    np.testing.assert_allclose(oracle.resize_bicubic(impulse, (1, 16))[0, 5:13], taps + taps[::-1], atol=1e-15)


@pytest.mark.parametrize("size", [(25, 31), (40, 64), (13, 90)])
def test_both_ways_of_resizing_agree(size):
    x = 2 * random_images((40, 53), 2)  # beyond [-1, 1], to be clamped
    np.testing.assert_allclose(oracle.resize_image(x.numpy(), size), explicit.resize(x, size), atol=1e-12)
    assert abs(oracle.resize_bicubic(x.clamp(-1, 1).numpy(), (80, 106))).max() > 1  # overshoot that is cut
    assert oracle.resize_image(x.numpy(), (80, 106)).max() == 1


def test_transformation_sets():
    assert [len(set(transformation_list(count))) for count in (54, 42, 4)] == [54, 42, 4]
    assert FULL[:42] == transformation_list(42)
    assert ROTATIONS == [(0, 0, 0, 0, 0), (0, 0, 0, 0, 1), (0, 0, 0, 0, 2), (0, 0, 0, 0, 3)]
    assert FULL[:6] == [(0, 0, 0, 0, k) for k in range(4)] + [(0, 0, 0, 1, 0), (0, 0, 0, 1, 1)]
    assert FULL[31:34] == [(0, 1, 1, 1, 3), (0, 0, -1, -1, 0), (0, 0, 1, -1, 0)]
    assert FULL[36:42] == [(0, 1, 1, -1, 0), (0, 1, 0, -1, 0)] + [(0, f, -1, t, 0) for f in (0, 1) for t in (1, 0)]
    assert FULL[42:44] == [(1, 0, 0, 0, 0), (1, 0, 0, 0, 1)]
    assert FULL[49:] == [(1, 1, 0, 0, 3), (1, 0, 1, 0, 0), (1, 0, -1, 0, 0), (1, 0, 0, 1, 0), (1, 0, 0, -1, 0)]


@pytest.mark.parametrize(
    ("transformation", "expected"),
    [
        ((0, 1, 0, 0, 0), [[2, 1, 0], [5, 4, 3]]),
        ((0, 0, 0, 0, 1), [[2, 5], [1, 4], [0, 3]]),  # counter-clockwise
        ((0, 0, 0, 0, 2), [[5, 4, 3], [2, 1, 0]]),
        ((0, 0, 0, 0, 3), [[3, 0], [4, 1], [5, 2]]),
        ((0, 1, 0, 0, 1), [[0, 3], [1, 4], [2, 5]]),  # the flip comes first
        ((0, 1, 1, 1, 0), [[2, 1, 0], [5, 4, 3]]),  # int(0.15 * 3) = 0: nothing moves
    ],
)
def test_flips_and_rotations_by_hand(transformation, expected):
    assert transform(numbered(2, 3), transformation)[0].tolist() == expected


@pytest.mark.parametrize(
    ("transformation", "row"),
    [
        ((0, 0, 1, 0, 0), [1, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),  # int(0.15 * 14) = 2 to the right
        ((0, 0, -1, 0, 0), [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 13, 12]),
        ((0, 1, 1, 0, 0), [12, 13, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2]),  # flipped, then to the right
    ],
)
def test_horizontal_translation_by_hand(transformation, row):
    assert transform(numbered(7, 14), transformation)[0, 0].tolist() == row
    turned = transform(numbered(7, 14), (*transformation[:4], 1))  # the translation comes before the rotation
    assert turned[0, :, 0].tolist() == row[::-1]


@pytest.mark.parametrize(("ty", "column"), [(1, [0, 0, 1, 2, 3, 4, 5]), (-1, [1, 2, 3, 4, 5, 6, 6])])
def test_vertical_translation_by_hand(ty, column):
    moved = transform(numbered(7, 3), (0, 0, 0, ty, 0))  # int(0.15 * 7) = 1
    assert (moved[0, :, 0] / 3).tolist() == column


def test_grayscale_by_hand():
    image = torch.tensor([1.0, 0.5, -1.0], dtype=torch.float64).reshape(3, 1, 1)
    torch.testing.assert_close(transform(image, (1, 0, 0, 0, 0)), torch.full_like(image, 0.4785))


@pytest.mark.parametrize("shape", [(16, 16), (14, 21), (21, 14)])
def test_both_definitions_agree_and_no_two_transformations(shape):
    image = random_images(shape, 1)[0]
    results = set()
    for transformation in [*FULL, (1, 1, -1, -1, 3)]:
        expected = oracle.transform_by_pixels(image.numpy(), transformation)
        np.testing.assert_array_equal(transform(image, transformation), expected)
        np.testing.assert_array_equal(transform(image[None], transformation)[0], expected)
        results.add(expected.tobytes())
    assert len(results) == 55


def test_mirrored_pixels():
    _, _, mirrored = oracle.source_maps(7, 14, (0, 1, 1, -1, 0))
    expected = np.zeros((7, 14), dtype=bool)
    expected[:, :2] = expected[6, :] = True
    np.testing.assert_array_equal(mirrored, expected)


def framework_network(network):
    """The same network as one `nn.Sequential`."""
    layers = [layer for block in network.blocks for layer in (block.conv, block.norm, nn.LeakyReLU(0.2))]
    return nn.Sequential(*layers, network.tail).train(network.training)


@pytest.mark.parametrize("train", [True, False])
def test_a_network_is_the_framework_s_layers_however_a_batch_is_split(train):
    x = random_images((14, 17), 4)
    first, second, split = (random_network(3, 6, 5).train(train) for _ in range(3))
    (logits,) = first([x])
    assert logits.shape == (4, 5, 4, 7)
    torch.testing.assert_close(logits, framework_network(second)(x), rtol=0, atol=1e-13)
    torch.testing.assert_close(torch.cat(split([x[:1], x[1:]])), logits, rtol=0, atol=1e-13)
    for network in (second, split):
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, first.state_dict()[name], rtol=0, atol=1e-13)


def test_batch_norm_pools_batches_of_different_shapes_by_hand():
    block = explicit._Block(1, 1).double().requires_grad_(False)
    block.norm.weight.fill_(2)
    block.norm.bias.fill_(1)
    block.norm.running_mean.fill_(10)
    # 1 2 3 6: mean 3, biased variance (4 + 1 + 0 + 9) / 4 = 3.5, unbiased 14 / 3
    shapes = [torch.tensor([1.0, 2.0]).reshape(1, 1, 1, 2), torch.tensor([3.0, 6.0]).reshape(2, 1, 1, 1)]
    first, second = block._normalize([x.double() for x in shapes])
    deviation = math.sqrt(3.5 + 1e-5)
    assert first.flatten().tolist() == pytest.approx([1 - 4 / deviation, 1 - 2 / deviation], abs=1e-14)
    assert second.flatten().tolist() == pytest.approx([1, 1 + 6 / deviation], abs=1e-14)
    assert block.norm.running_mean.item() == pytest.approx(9.3, abs=1e-14)
    assert block.norm.running_var.item() == pytest.approx(0.9 + 0.1 * 14 / 3, abs=1e-14)


def test_generator_against_the_framework_s_layers():
    network = random_network(4, 6, 3).train()
    noise, previous = random_images((12, 15), 2, seed=1), random_images((12, 15), 2, seed=2)
    padded = torch.zeros(2, 4, 22, 25, dtype=torch.float64)
    padded[:, :3, 5:17, 5:20] = noise + previous
    padded[0, 3], padded[1, 3] = 4, 1
    output = explicit.generate(network, noise, previous, torch.tensor([4, 1]))
    torch.testing.assert_close(output, framework_network(network)(padded).tanh() + previous, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(11, 11), (11, 13)])
def test_cross_entropies_by_hand(shape):
    network, images = constant_logits([0.05, 0.1, 0.15, 0.2, 0.5]).train(), random_images(shape, 2)
    real = -(math.log(0.05) + math.log(0.1) + math.log(0.15) + math.log(0.2)) / 4
    assert patch_cross_entropy(network, images, ROTATIONS).item() == pytest.approx(real, abs=1e-13)
    assert patch_cross_entropy(network, images, ROTATIONS, 4).item() == pytest.approx(math.log(2), abs=1e-13)


@pytest.mark.parametrize(
    ("shape", "pixels"),
    [
        ((13, 13), [169 * 2 * 54]),
        ((14, 20), [280 * 2 * 34, 280 * 2 * 20]),  # 32 / 2 + 8 / 2 of the 54 turn by 90 or 270 degrees
    ],
)
def test_every_transformed_image_is_passed_with_its_own_class(shape, pixels):
    network, images = random_network(3, 6, 55), random_images(shape, 2)
    batches = explicit.transformed_batches(images, FULL)
    assert [batch[:, 0].numel() for batch, _ in batches] == pixels
    real, fake = [], []
    for i, transformation in enumerate(FULL):
        for image in images:
            pixels = torch.from_numpy(oracle.transform_by_pixels(image.numpy(), transformation))
            log_p = network([pixels[None]])[0].log_softmax(dim=1)[0]
            real.append(-log_p[i].mean().item())
            fake.append(-log_p[54].mean().item())
    assert patch_cross_entropy(network, images, FULL).item() == pytest.approx(np.mean(real), abs=1e-12)
    assert patch_cross_entropy(network, images, FULL, 54).item() == pytest.approx(np.mean(fake), abs=1e-12)


def test_losses_reach_every_parameter_and_the_image():
    network = random_network(3, 4, 5).train().requires_grad_()
    fakes = random_images((12, 14), 1).requires_grad_()
    patch_cross_entropy(network, fakes, ROTATIONS).backward()
    gradients = [v.grad for v in [*network.parameters(), fakes]]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    assert fakes.grad.abs().min() > 0


def test_fake_is_left_out_of_the_vote():
    maps = vote_maps(constant_logits([0.05, 0.1, 0.15, 0.2, 0.5]), random_images((12, 14), 2), ROTATIONS)
    assert [p.shape for p in maps] == [(2, 2, 4), (2, 4, 2), (2, 2, 4), (2, 4, 2)]
    for p, expected in zip(maps, [0.1, 0.2, 0.3, 0.4], strict=True):
        torch.testing.assert_close(p, torch.full_like(p, expected), rtol=0, atol=1e-14)


def test_every_map_is_that_of_its_transformed_image():
    network, images = random_network(3, 6, 55), random_images((14, 17), 2)
    for i, (votes, transformation) in enumerate(zip(vote_maps(network, images, FULL), FULL, strict=True)):
        (logits,) = network([transform(images, transformation)])
        torch.testing.assert_close(votes, logits[:, :54].softmax(dim=1)[:, i], rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.01, 1), (0.2, 1), (0.39, 1), (0.4, 1.5), (0.5, 1.5), (0.6, 2), (1.0, 3)]
)
def test_lowest_fraction_of_five(fraction, expected):
    assert lowest_mean(torch.tensor([[[4.0, 1.0, 5.0, 2.0, 3.0]]]), fraction).item() == expected


def test_vote_share_takes_the_lowest_of_each_transformation():
    network, x = random_network(3, 4, 5), random_images((14, 14), 2)
    maps = [p.numpy() for p in vote_maps(network, x, ROTATIONS)]
    expected = [np.mean([np.sort(p[n].ravel())[:4].mean() for p in maps]) for n in range(2)]  # floor(0.3 * 16) = 4
    np.testing.assert_allclose(vote_share(network, x, ROTATIONS, 0.3), expected, atol=1e-14)


def test_scores_by_hand():
    shares = torch.tensor([[0.2, 0.4, 0.6], [0.9, 0.5, 0.7], [0.3, 0.3, 0.3]], dtype=torch.float64)
    assert oracle.anomaly_score(shares).tolist() == pytest.approx([1.6 / 3, 1.8 / 3, 1.4 / 3])
    # scale 0 becomes 0 0.5 1, scale 1 becomes 1 0 0.5, the flat scale 0 0 0
    assert oracle.minmax_anomaly_score(shares).tolist() == pytest.approx([1 - 1 / 3, 1 - 0.5 / 3, 1 - 1.5 / 3])


def flat_maps(height, width, t_list):
    shapes = [oracle.source_maps(height, width, t)[0].shape for t in t_list]
    return [np.ones((h - 10, w - 10)) for h, w in shapes]


@pytest.mark.parametrize("transformation", FULL[::7] + FULL[-5:])
def test_a_planted_patch_lands_on_its_pixel(transformation):
    height, width, y, x = 26, 30, 12, 17  # 11 x 11 around (12, 17) stays inside for every shift of 3 and 4 px
    marker = np.zeros((3, height, width))
    marker[:, y, x] = 1
    (row,), (column,) = np.nonzero(oracle.transform_by_pixels(marker, transformation)[0] > 0.5)
    maps = flat_maps(height, width, [IDENTITY, transformation])
    maps[1][row - 5, column - 5] = 1e-3
    result = oracle.localization_from_maps(maps, height, width, [IDENTITY, transformation])
    expected = np.zeros((height, width))
    expected[y, x] = 0.125  # the mean of 0 and 3 / 12: three of the twelve decades down to 1e-12
    np.testing.assert_allclose(result, expected, atol=1e-15)


@pytest.mark.parametrize(("width", "last"), [(20, 11), (80, 62)])
def test_patches_with_mirrored_pixels_are_left_out(width, last):
    # T_1 moves by 3 or 12 px to the right; its first clean centre came from column 5, its last from `last`
    # (14 - 3, 74 - 12), columns beyond have T_0 alone. At 80 px a patch can be centred on a copy of column 5.
    t_list = [IDENTITY, (0, 0, 1, 0, 0)]
    maps = flat_maps(16, width, t_list)
    maps[1][:] = 0
    result = oracle.localization_from_maps(maps, 16, width, t_list)
    expected = np.where(np.arange(width) <= last, 0.5, 0.0)
    np.testing.assert_array_equal(result, np.tile(expected, (16, 1)))


@pytest.mark.parametrize(
    ("probability", "expected"), [(1, 0), (0.1, 1 / 12), (1e-6, 0.5), (1e-12, 1), (1e-30, 1), (0, 1)]
)
def test_surprise_by_hand(probability, expected):
    assert oracle.surprise(probability) == pytest.approx(expected, abs=1e-15)


def test_the_frame_takes_the_nearest_value():
    values = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    result = oracle.localization_from_maps([10 ** (-12 * values)], 12, 13, [IDENTITY])
    assert result.shape == (12, 13)
    np.testing.assert_allclose(result[5:7, 5:8], values, atol=1e-15)
    np.testing.assert_allclose(result[[0, 0, 11, 11, 3], [0, 12, 0, 12, 6]], [0.1, 0.3, 0.4, 0.6, 0.2], atol=1e-15)


def test_a_place_without_a_clean_patch_is_refused():
    with pytest.raises(ValueError, match="free of mirrored"):
        oracle.localization_from_maps(flat_maps(16, 20, [(0, 0, 1, 0, 0)]), 16, 20, [(0, 0, 1, 0, 0)])


def test_localization_by_hand_on_rotations():
    network, x = random_network(3, 4, 5), random_images((13, 15), 1)
    # A rotated map of patches is the rotated picture of the patches' centres.
    maps = [torch.rot90(-torch.log(p[0]), -k) for k, p in enumerate(vote_maps(network, x, ROTATIONS))]
    result = oracle.localization(network, x[0], ROTATIONS)
    np.testing.assert_allclose(result, np.pad(sum(maps).numpy() / 4 / np.log(1e12), 5, mode="edge"), atol=1e-14)
    resized = oracle.localization(network, x[0], ROTATIONS, (26, 30))
    np.testing.assert_allclose(resized, oracle.resize_bicubic(result, (26, 30)), atol=1e-14)
