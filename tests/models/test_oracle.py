"""The oracle itself, against values worked out by hand and against independent implementations."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests import oracle

FULL = oracle.transformation_list(54)
ROTATIONS = oracle.transformation_list(4)
IDENTITY = (0, 0, 0, 0, 0)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbered(height, width):
    """Three equal channels 0, 1, 2 ... row by row: all pixels distinct."""
    return torch.arange(height * width, dtype=torch.float64).reshape(1, height, width).repeat(3, 1, 1)


def constant_logits(classes, probabilities):
    """A discriminator whose every patch has these softmax probabilities."""
    params = oracle.random_parameters(3, 4, classes)
    params[-1]["weight"] = torch.zeros_like(params[-1]["weight"])
    params[-1]["bias"] = torch.tensor(probabilities, dtype=torch.float64).log()
    return params


# ------------------------------------------------------------------------------------------------------- scales


@pytest.mark.parametrize(
    ("size", "arguments", "plan"),
    [
        ((128, 128), {}, [(25, 25), (32, 32), (40, 40), (51, 51), (64, 64)]),
        ((450, 450), {}, [(s, s) for s in (25, 31, 37, 44, 54, 64)]),
        ((100, 200), {}, [(25, 50), (29, 57), (32, 64)]),
        ((200, 100), {}, [(50, 25), (57, 29), (64, 32)]),
        ((128, 128), {"min_size": 100, "max_size": 100}, [(100, 100)]),
        ((128, 128), {"min_size": 20, "max_size": 20}, [(20, 20)]),
    ],
)
def test_scale_plans(size, arguments, plan):
    assert oracle.scale_plan(*size, **arguments) == plan


@pytest.mark.parametrize(("size", "min_size"), [((100, 300), 25), ((64, 64), 10)])
def test_scale_plan_refuses(size, min_size):
    with pytest.raises(ValueError, match="below"):
        oracle.scale_plan(*size, min_size=min_size)


def test_guarded_ceil():
    assert [oracle.guarded_ceil(v) for v in (3.0000001, 2.9999999, 3.00001, 3, -0.5)] == [3, 3, 4, 3, 0]


def test_resize_doubles_an_impulse_by_hand():
    impulse = np.zeros((1, 8))
    impulse[0, 4] = 1
    # a doubled row samples the kernel at distances 1.75 1.25 0.75 0.25 on both sides; the four taps sum to 1
    taps = [-0.0234375, -0.0703125, 0.2265625, 0.8671875]
    np.testing.assert_allclose(oracle.resize_bicubic(impulse, (1, 16))[0, 5:13], taps + taps[::-1], atol=1e-15)


@pytest.mark.parametrize("size", [(25, 31), (40, 64), (13, 90), (40, 53)])
def test_resize_against_torch(size):
    x = noise(2, 3, 40, 53)
    reference = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
    np.testing.assert_allclose(oracle.resize_bicubic(x.numpy(), size), reference.numpy(), atol=1e-12)


def test_resize_image_clamps_both_ends():
    step = np.full((12, 12), -1.7)
    step[:, 6:] = 1.7
    resized = oracle.resize_image(step, (24, 24))
    assert resized.min() == -1
    assert resized.max() == 1
    assert abs(oracle.resize_bicubic(np.clip(step, -1, 1), (24, 24))).max() > 1.01  # the overshoot that was cut


# ---------------------------------------------------------------------------------------------- transformations


def test_transformation_sets():
    assert [len(set(oracle.transformation_list(count))) for count in (54, 42, 4)] == [54, 42, 4]
    assert FULL[:42] == oracle.transformation_list(42)
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
        ((0, 0, 0, 0, 1), [[2, 5], [1, 4], [0, 3]]),
        ((0, 0, 0, 0, 2), [[5, 4, 3], [2, 1, 0]]),
        ((0, 0, 0, 0, 3), [[3, 0], [4, 1], [5, 2]]),
        ((0, 1, 0, 0, 1), [[0, 3], [1, 4], [2, 5]]),  # the flip comes first
        ((0, 1, 1, 1, 0), [[2, 1, 0], [5, 4, 3]]),  # int(0.15 * 3) = 0: nothing moves
    ],
)
def test_flips_and_rotations_by_hand(transformation, expected):
    assert oracle.transform(numbered(2, 3), transformation)[0].tolist() == expected


@pytest.mark.parametrize(
    ("transformation", "row"),
    [
        ((0, 0, 1, 0, 0), [1, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),  # int(0.15 * 14) = 2 to the right
        ((0, 0, -1, 0, 0), [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 13, 12]),
        ((0, 1, 1, 0, 0), [12, 13, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2]),  # flipped, then to the right
    ],
)
def test_horizontal_translation_by_hand(transformation, row):
    assert oracle.transform(numbered(7, 14), transformation)[0, 0].tolist() == row
    turned = oracle.transform(numbered(7, 14), (*transformation[:4], 1))  # the translation comes before the rotation
    assert turned[0, :, 0].tolist() == row[::-1]


@pytest.mark.parametrize(("ty", "column"), [(1, [0, 0, 1, 2, 3, 4, 5]), (-1, [1, 2, 3, 4, 5, 6, 6])])
def test_vertical_translation_by_hand(ty, column):
    moved = oracle.transform(numbered(7, 3), (0, 0, 0, ty, 0))  # int(0.15 * 7) = 1
    assert (moved[0, :, 0] / 3).tolist() == column


def test_grayscale_by_hand():
    image = torch.tensor([1.0, 0.5, -1.0], dtype=torch.float64).reshape(3, 1, 1)
    torch.testing.assert_close(oracle.transform(image, (1, 0, 0, 0, 0)), torch.full_like(image, 0.4785))


def test_no_two_transformations_agree():
    results = [oracle.transform(noise(3, 14, 14), t) for t in FULL]
    assert len({r.numpy().tobytes() for r in results}) == 54


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 14, 21), (3, 21, 14)])
def test_both_definitions_agree(shape):
    image = noise(*shape)
    for transformation in [*FULL, (1, 1, -1, -1, 3)]:
        expected = oracle.transform_by_pixels(image.numpy(), transformation)
        np.testing.assert_array_equal(oracle.transform(image, transformation).numpy(), expected)
        np.testing.assert_array_equal(oracle.transform(image[None], transformation)[0].numpy(), expected)


def test_inverses():
    image = noise(3, 14, 21)
    for k in range(4):
        back = oracle.transform(oracle.transform(image, (0, 0, 0, 0, k)), (0, 0, 0, 0, -k % 4))
        assert torch.equal(back, image)
        twice = oracle.transform(oracle.transform(image, (0, 1, 0, 0, 0)), (0, 1, 0, 0, 0))
        assert torch.equal(twice, image)


def test_transform_is_differentiable():
    image = torch.ones(3, 14, 14, dtype=torch.float64, requires_grad=True)
    oracle.transform(image, (0, 0, 1, 0, 0)).sum().backward()
    assert image.grad[0, 0].tolist() == [2, 2] + [1] * 10 + [0, 0]  # mirrored columns count twice, lost ones never


def test_mirrored_pixels():
    _, mirrored = oracle.source_maps(7, 14, (0, 1, 1, -1, 0))
    expected = np.zeros((7, 14), dtype=bool)
    expected[:, :2] = True
    expected[6, :] = True
    np.testing.assert_array_equal(mirrored, expected)


# ----------------------------------------------------------------------------------------------------- networks


def test_pooled_batch_norm_by_hand():
    block = {"gamma": torch.tensor([2.0]).double(), "beta": torch.tensor([1.0]).double()}
    statistics = {"running_mean": torch.tensor([10.0]).double(), "running_var": torch.tensor([1.0]).double()}
    shapes = [torch.tensor([1.0, 2.0]).reshape(1, 1, 1, 2), torch.tensor([3.0, 6.0]).reshape(2, 1, 1, 1)]
    # 1 2 3 6: mean 3, biased variance (4 + 1 + 0 + 9) / 4 = 3.5, unbiased 14 / 3
    first, second = oracle.pooled_batch_norm([x.double() for x in shapes], block, True, statistics)
    deviation = math.sqrt(3.5 + 1e-5)
    assert first.flatten().tolist() == pytest.approx([1 - 4 / deviation, 1 - 2 / deviation], abs=1e-14)
    assert second.flatten().tolist() == pytest.approx([1, 1 + 6 / deviation], abs=1e-14)
    assert statistics["running_mean"].item() == pytest.approx(9.3, abs=1e-14)
    assert statistics["running_var"].item() == pytest.approx(0.9 + 0.1 * 14 / 3, abs=1e-14)


def torch_network(params):
    """The same network out of torch's own layers."""
    layers = []
    for block in params:
        conv = nn.Conv2d(block["weight"].shape[1], block["weight"].shape[0], 3).double()
        conv.load_state_dict({name: block[name] for name in ("weight", "bias")})
        layers.append(conv)
        if "gamma" in block:
            norm = nn.BatchNorm2d(len(block["gamma"])).double()
            state = {name: block[name] for name in ("running_mean", "running_var")}
            norm.load_state_dict(state | {"weight": block["gamma"], "bias": block["beta"]}, strict=False)
            layers += [norm, nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers)


def fresh_statistics(params):
    return [{name: block[name] for name in ("running_mean", "running_var")} for block in params[:-1]]


@pytest.mark.parametrize("train", [True, False])
def test_discriminator_against_torch_layers(train):
    params = oracle.random_parameters(3, 6, 5)
    network = torch_network(params).train(train)
    running = fresh_statistics(params)
    x = noise(2, 3, 14, 17)
    (logits,) = oracle.discriminator(params, [x], train, running)
    assert logits.shape == (2, 5, 4, 7)
    torch.testing.assert_close(logits, network(x), rtol=0, atol=1e-13)
    norms = [m for m in network if isinstance(m, nn.BatchNorm2d)]
    for norm, statistics in zip(norms, running, strict=True):
        torch.testing.assert_close(statistics["running_mean"], norm.running_mean, rtol=0, atol=1e-13)
        torch.testing.assert_close(statistics["running_var"], norm.running_var, rtol=0, atol=1e-13)


def test_splitting_a_batch_in_two_lists_changes_nothing():
    params = oracle.random_parameters(3, 6, 5)
    x = noise(4, 3, 13, 13)
    (whole,) = oracle.discriminator(params, [x], True)
    parts = oracle.discriminator(params, [x[:1], x[1:]], True)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-13)


def test_generator_against_torch_layers():
    params = oracle.random_parameters(4, 6, 3)
    z, prev = noise(2, 3, 12, 15, seed=1), noise(2, 3, 12, 15, seed=2)
    padded = torch.zeros(2, 4, 22, 25, dtype=torch.float64)
    padded[:, :3, 5:17, 5:20] = z + prev
    padded[0, 3], padded[1, 3] = 4, 1
    expected = torch_network(params).train()(padded).tanh() + prev
    output = oracle.generator(params, z, prev, torch.tensor([4, 1]), True)
    assert output.shape == (2, 3, 12, 15)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-13)


# ------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("shape", [(2, 3, 11, 11), (2, 3, 11, 13)])
def test_cross_entropies_by_hand(shape):
    params = constant_logits(5, [0.05, 0.1, 0.15, 0.2, 0.5])
    images = noise(*shape)
    real = -(math.log(0.05) + math.log(0.1) + math.log(0.15) + math.log(0.2)) / 4
    assert oracle.real_loss(params, images, ROTATIONS).item() == pytest.approx(real, abs=1e-13)
    assert oracle.fake_loss(params, images, ROTATIONS).item() == pytest.approx(math.log(2), abs=1e-13)
    loss = oracle.generator_loss(params, images, images + 0.1, images, ROTATIONS)
    assert loss.item() == pytest.approx(real + 100 * 0.01, abs=1e-12)


@pytest.mark.parametrize(
    ("shape", "pixels"),
    [
        ((2, 3, 13, 13), [169 * 2 * 54]),
        ((2, 3, 14, 20), [280 * 2 * 34, 280 * 2 * 20]),  # 32 / 2 + 8 / 2 of the 54 turn by 90 or 270 degrees
    ],
)
def test_one_batch_holds_all_transformed_images(shape, pixels):
    batches = oracle.transformed_batches(noise(*shape), FULL)
    assert [batch[:, 0].numel() for batch, _ in batches] == pixels
    assert sorted(torch.cat([classes for _, classes in batches]).tolist()) == sorted(list(range(54)) * 2)


@pytest.mark.parametrize("shape", [(2, 3, 13, 13), (2, 3, 14, 20)])
def test_every_transformed_image_carries_its_own_class(shape):
    params, images = oracle.random_parameters(3, 6, 55), noise(*shape)
    real, fake = [], []
    for i, transformation in enumerate(FULL):
        for image in images:
            pixels = torch.from_numpy(oracle.transform_by_pixels(image.numpy(), transformation))
            (logits,) = oracle.discriminator(params, [pixels[None]], False)
            log_p = logits.log_softmax(dim=1)[0]
            real.append(-log_p[i].mean().item())
            fake.append(-log_p[54].mean().item())
    assert oracle.real_loss(params, images, FULL, train=False).item() == pytest.approx(np.mean(real), abs=1e-12)
    assert oracle.fake_loss(params, images, FULL, train=False).item() == pytest.approx(np.mean(fake), abs=1e-12)


def test_losses_reach_every_parameter_and_the_image():
    params = oracle.random_parameters(3, 4, 5)
    trained = [v.requires_grad_() for block in params for name, v in block.items() if not name.startswith("running")]
    fakes = noise(1, 3, 12, 14).requires_grad_()
    oracle.generator_loss(params, fakes, fakes, torch.zeros_like(fakes), ROTATIONS, fresh_statistics(params)).backward()
    gradients = [v.grad for v in [*trained, fakes]]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    assert fakes.grad.abs().min() > 0


# -------------------------------------------------------------------------------------------------------- score


@pytest.mark.parametrize("t_list", [ROTATIONS, FULL])
def test_a_flat_gray_image_scores_chance(t_list):
    # all its transformed images are equal, so the M votes of a patch sum to 1
    params = oracle.random_parameters(3, 4, len(t_list) + 1)
    share = oracle.vote_share(params, torch.full((2, 3, 13, 16), 0.3, dtype=torch.float64), t_list, 0.1)
    assert share.tolist() == pytest.approx([1 / len(t_list)] * 2, abs=1e-14)


def test_fake_is_left_out_of_the_vote():
    params = constant_logits(5, [0.05, 0.1, 0.15, 0.2, 0.5])
    maps = oracle.vote_map_explicit(params, noise(2, 3, 12, 14), ROTATIONS)
    assert [p.shape for p in maps] == [(2, 2, 4), (2, 4, 2), (2, 2, 4), (2, 4, 2)]
    for p, expected in zip(maps, [0.1, 0.2, 0.3, 0.4], strict=True):
        torch.testing.assert_close(p, torch.full_like(p, expected), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.01, 1), (0.2, 1), (0.39, 1), (0.4, 1.5), (0.5, 1.5), (0.6, 2), (1.0, 3)]
)
def test_lowest_fraction_of_five(fraction, expected):
    assert oracle.lowest_mean(torch.tensor([[4.0, 1.0, 5.0, 2.0, 3.0]]), fraction).item() == expected


def test_fraction_counts_are_exact_for_the_papers_fractions():
    for percent in (1, 5, 10, 20, 50, 100):
        for patches in range(1, 3000):
            assert math.floor(percent / 100 * patches) == percent * patches // 100


def test_vote_share_takes_the_lowest_of_each_transformation():
    params, x = oracle.random_parameters(3, 4, 5), noise(2, 3, 14, 14)
    maps = [p.numpy() for p in oracle.vote_map_explicit(params, x, ROTATIONS)]
    expected = [np.mean([np.sort(p[n].ravel())[:4].mean() for p in maps]) for n in range(2)]  # floor(0.3 * 16) = 4
    np.testing.assert_allclose(oracle.vote_share(params, x, ROTATIONS, 0.3).numpy(), expected, atol=1e-14)


def test_scores_by_hand():
    shares = torch.tensor([[0.2, 0.4, 0.6], [0.9, 0.5, 0.7], [0.3, 0.3, 0.3]], dtype=torch.float64)
    assert oracle.normality(shares).tolist() == pytest.approx([1.4 / 3, 1.2 / 3, 1.6 / 3])
    assert oracle.anomaly_score(shares).tolist() == pytest.approx([1.6 / 3, 1.8 / 3, 1.4 / 3])
    # scale 0 becomes 0 0.5 1, scale 1 becomes 1 0 0.5, the flat scale 0 0 0
    assert oracle.minmax_anomaly_score(shares).tolist() == pytest.approx([1 - 1 / 3, 1 - 0.5 / 3, 1 - 1.5 / 3])


# -------------------------------------------------------------------------------------------------- localisation


def flat_maps(height, width, t_list):
    shapes = [oracle.source_maps(height, width, t)[0].shape for t in t_list]
    return [np.ones((h - 10, w - 10)) for h, w in shapes]


@pytest.mark.parametrize("transformation", FULL)
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
    params, x = oracle.random_parameters(3, 4, 5), noise(3, 13, 15)
    maps = [p[0] for p in oracle.vote_map_explicit(params, x[None], ROTATIONS)]
    # a rotated map of patches is the rotated picture of the patches' centres
    interior = sum(torch.rot90(-torch.log(p), -k) for k, p in enumerate(maps)).numpy() / 4 / np.log(1e12)
    result = oracle.localization(params, x, ROTATIONS)
    np.testing.assert_allclose(result, np.pad(interior, 5, mode="edge"), atol=1e-14)
    resized = oracle.localization_over_scales([params, params], [x, x], ROTATIONS, (26, 30))
    np.testing.assert_allclose(resized, oracle.resize_bicubic(result, (26, 30)), atol=1e-14)
