"""The method of the paper (sections 3 and 4), written the explicit, slow, obviously right way.

Every transformed image is built and passed on its own terms; nothing is shared, weighted or folded. Nothing of hta is
imported, so the package can be compared with this file in float64. Parameters of a network are a list of five dicts:
four times `weight bias gamma beta running_mean running_var`, then `weight bias`. A transformation is (c, f, tx, ty, k).
"""

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F

MARGIN = 5  # a patch is 11 x 11: its centre, and 5 pixels on each side
PATCH = 2 * MARGIN + 1


# --------------------------------------------------------------------------------------------------------------- scales


def guarded_ceil(value):
    """Ceiling, where a value within 1e-6 of an integer is that integer."""
    nearest = round(value)
    return nearest if abs(value - nearest) <= 1e-6 else math.ceil(value)


def scale_plan(height, width, min_size=25, max_size=64, factor=0.75):
    """Sides [(h, w), ...] of all scales, the coarsest first; ValueError where the image does not fit."""
    shorter, longer = min(height, width), max(height, width)
    num = guarded_ceil(math.log(min_size / shorter) / math.log(factor)) + 1
    skip = guarded_ceil(math.log(min(max_size, longer) / longer) / math.log(factor))
    last = 0 if min_size == max_size else num - skip
    shrink = min(max_size / longer, 1)
    h, w = guarded_ceil(height * shrink), guarded_ceil(width * shrink)
    if min(h, w) < min_size:
        raise ValueError(f"{h} x {w} has a side below min_size {min_size}")
    ratio = (min_size / min(h, w)) ** (1 / last) if last > 0 else 1.0
    plan = [(guarded_ceil(h * ratio ** (last - n)), guarded_ceil(w * ratio ** (last - n))) for n in range(last + 1)]
    if min(map(min, plan)) < PATCH:
        raise ValueError(f"a scale is below {PATCH} px: {plan}")
    return plan


def cubic_kernel(x, a=-0.5):
    """Keys' cubic convolution kernel at distance x."""
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if x < 2:
        return a * (x**3 - 5 * x**2 + 8 * x - 4)
    return 0.0


def resize_matrix(source, target):
    """(target, source) weights: half-pixel centres, kernel widened when shrinking, cut and renormalised at borders."""
    step = source / target
    spread = max(step, 1.0)
    weights = np.array(
        [[cubic_kernel((j + 0.5 - (i + 0.5) * step) / spread) for j in range(source)] for i in range(target)]
    )
    return weights / weights.sum(axis=1, keepdims=True)


def resize_bicubic(array, size):
    """Antialiased bicubic (a = -0.5) of (..., H, W) to (..., *size), float64, values not clamped."""
    array = np.asarray(array, dtype=np.float64)
    rows, columns = resize_matrix(array.shape[-2], size[0]), resize_matrix(array.shape[-1], size[1])
    return rows @ array @ columns.T


def resize_image(array, size):
    """An image or a generated image: clamped to [-1, 1], resized, and overshoot clamped to [-1, 1] again."""
    return np.clip(resize_bicubic(np.clip(array, -1, 1), size), -1, 1)


# ------------------------------------------------------------------------------------------------------ transformations


def transformation_list(count):
    """The 54, 42 or 4 transformations as tuples (c, f, tx, ty, k); the place in the list is the class."""

    def block(c, f, tx, ty, k):
        return list(itertools.product(c, f, tx, ty, k))  # the rightmost index runs fastest

    rotations = block((0,), (0,), (0,), (0,), (0, 1, 2, 3))
    geometric = (
        block((0,), (0, 1), (0, 1), (0, 1), (0, 1, 2, 3))
        + block((0,), (0, 1), (-1, 1, 0), (-1,), (0,))
        + block((0,), (0, 1), (-1,), (1, 0), (0,))
    )
    full = (
        geometric
        + block((1,), (0, 1), (0,), (0,), (0, 1, 2, 3))
        + block((1,), (0,), (1, -1), (0,), (0,))
        + block((1,), (0,), (0,), (1, -1), (0,))
    )
    return {4: rotations, 42: geometric, 54: full}[count]


def source_maps(height, width, transformation):
    """Where each pixel of the transformed image came from, found by transforming an index image.

    Returns two arrays of the transformed shape: flat index of the source pixel, and whether it is a mirrored copy.
    """
    _, f, tx, ty, k = transformation
    source = np.arange(height * width).reshape(height, width)
    mirrored = np.zeros((height, width), dtype=bool)
    if f:
        source = source[:, ::-1]
    right, down = tx * int(0.15 * width), ty * int(0.15 * height)
    # content that moves right leaves a gap at the left: pad there and cut the surplus at the right
    pads = ((max(down, 0), max(-down, 0)), (max(right, 0), max(-right, 0)))
    top, left = max(-down, 0), max(-right, 0)
    source = np.pad(source, pads, mode="symmetric")[top : top + height, left : left + width]
    mirrored = np.pad(mirrored, pads, constant_values=True)[top : top + height, left : left + width]
    return np.rot90(source, k).copy(), np.rot90(mirrored, k).copy()


def transform(image, transformation):
    """T(image) of a tensor (3, H, W) or (N, 3, H, W), differentiable: flip, translate, rotate, then gray."""
    source, _ = source_maps(*image.shape[-2:], transformation)
    index = torch.from_numpy(source.reshape(-1)).to(image.device)
    moved = image.flatten(-2)[..., index].reshape(*image.shape[:-2], *source.shape)
    if transformation[0] == 0:
        return moved
    red, green, blue = moved.unbind(-3)
    gray = 0.299 * red + 0.587 * green + 0.114 * blue
    return torch.stack([gray, gray, gray], dim=-3)


def transform_by_pixels(array, transformation):
    """T(array) of one numpy image (3, H, W): a second definition, output pixel by output pixel."""
    c, f, tx, ty, k = transformation
    _, height, width = array.shape
    result = np.empty((3, height, width) if k % 2 == 0 else (3, width, height), dtype=array.dtype)
    for row, column in itertools.product(range(result.shape[1]), range(result.shape[2])):
        y, x = {
            0: (row, column),
            1: (column, width - 1 - row),
            2: (height - 1 - row, width - 1 - column),
            3: (height - 1 - column, row),
        }[k]
        y = mirror(y - ty * int(0.15 * height), height)
        x = mirror(x - tx * int(0.15 * width), width)
        if f:
            x = width - 1 - x
        red, green, blue = array[:, y, x]
        gray = 0.299 * red + 0.587 * green + 0.114 * blue
        result[:, row, column] = (gray, gray, gray) if c else (red, green, blue)
    return result


def mirror(position, length):
    """A position up to one length outside 0 ... length - 1, mirrored back in, the edge pixel included."""
    if position < 0:
        return -1 - position
    if position >= length:
        return 2 * length - 1 - position
    return position


# ------------------------------------------------------------------------------------------------------------- networks


def pooled_batch_norm(x_list, block, train, statistics=None):
    """Batch norm of a list of (N, C, H, W) of different shapes that pools the pixels of all of them.

    In train mode, `statistics` (dict with running_mean and running_var), if given, gets the updated running values. In
    eval mode they are read from it, or from `block` when it is None.
    """
    if train:
        values = torch.cat([x.transpose(0, 1).flatten(1) for x in x_list], dim=1)  # (C, all pixels)
        count = values.shape[1]
        mean = values.mean(dim=1)
        variance = ((values - mean[:, None]) ** 2).sum(dim=1) / count
        if statistics is not None:
            unbiased = variance * count / (count - 1)
            statistics["running_mean"] = 0.9 * statistics["running_mean"] + 0.1 * mean.detach()
            statistics["running_var"] = 0.9 * statistics["running_var"] + 0.1 * unbiased.detach()
    else:
        statistics = block if statistics is None else statistics
        mean, variance = statistics["running_mean"], statistics["running_var"]

    def along_channels(vector):
        return vector[None, :, None, None]

    scale, shift = along_channels(block["gamma"]), along_channels(block["beta"])
    deviation = torch.sqrt(along_channels(variance) + 1e-5)
    return [(x - along_channels(mean)) / deviation * scale + shift for x in x_list]


def discriminator(params, x_list, train, running=None):
    """Five valid 3x3 convolutions: list of (N, 3, h, w) to list of logits (N, M + 1, h - 10, w - 10).

    `running` is None or a list of four dicts (running_mean, running_var) whose entries are replaced in train mode.
    """
    for depth, block in enumerate(params[:-1]):
        x_list = [F.conv2d(x, block["weight"], block["bias"]) for x in x_list]
        x_list = pooled_batch_norm(x_list, block, train, None if running is None else running[depth])
        x_list = [torch.where(x > 0, x, 0.2 * x) for x in x_list]
    return [F.conv2d(x, params[-1]["weight"], params[-1]["bias"]) for x in x_list]


def generator(params, noise_input, prev, index, train, running=None):
    """tanh(body) + prev, (N, 3, H, W), not clamped.

    noise_input is sigma * z, (N, 3, H, W), prev likewise, index the N numbers of the training images.
    """
    n, _, height, width = prev.shape
    image = F.pad(noise_input, [MARGIN] * 4) + F.pad(prev, [MARGIN] * 4)
    channel = torch.empty(n, 1, height + 2 * MARGIN, width + 2 * MARGIN, dtype=prev.dtype, device=prev.device)
    for place, number in enumerate(index):
        channel[place] = float(number)
    (body,) = discriminator(params, [torch.cat([image, channel], dim=1)], train, running)
    return torch.tanh(body) + prev


# --------------------------------------------------------------------------------------------------------------- losses


def transformed_batches(images, t_list):
    """All M * N transformed images, one batch for each shape: list of (batch, classes of its images)."""
    groups = {}
    for i, transformation in enumerate(t_list):
        for image in images:
            transformed = transform(image, transformation)
            groups.setdefault(transformed.shape, []).append((transformed, i))
    return [
        (torch.stack([image for image, _ in group]), torch.tensor([i for _, i in group], device=images.device))
        for group in groups.values()
    ]


def patch_cross_entropy(params, images, t_list, train, running, fake):
    """Mean cross entropy of all patches of all transformed images, passed as one batch (class M where `fake`)."""
    batches = transformed_batches(images, t_list)
    logits_list = discriminator(params, [batch for batch, _ in batches], train, running)
    rows, targets = [], []
    for logits, (_, classes) in zip(logits_list, batches, strict=True):
        rows.append(logits.permute(0, 2, 3, 1).flatten(0, 2))  # (all patches, M + 1)
        classes = torch.full_like(classes, len(t_list)) if fake else classes
        targets.append(classes[:, None, None].expand(logits[:, 0].shape).flatten())
    return F.cross_entropy(torch.cat(rows), torch.cat(targets))


def real_loss(params, images, t_list, running=None, train=True):
    """CE(D(T_i(x_n)), i), mean over i, images (N, 3, H, W) and patches."""
    return patch_cross_entropy(params, images, t_list, train, running, fake=False)


def fake_loss(params, fakes, t_list, running=None, train=True):
    """CE(D(T_i(fake)), M), mean over i, fakes (N, 3, H, W) and patches."""
    return patch_cross_entropy(params, fakes, t_list, train, running, fake=True)


def generator_loss(params, fakes, reconstruction, images, t_list, running=None, train=True):
    """CE(D(T_i(fake)), i) + 100 * MSE(reconstruction, images)."""
    adversarial = patch_cross_entropy(params, fakes, t_list, train, running, fake=False)
    return adversarial + 100 * ((reconstruction - images) ** 2).mean()


# ---------------------------------------------------------------------------------------------------------------- score


def vote_map_explicit(params, x, t_list):
    """p_i(T_i(x)) for every i: list of M maps (N, h_i - 10, w_i - 10) of x (N, 3, H, W); higher = more normal."""
    maps = []
    for i, transformation in enumerate(t_list):
        (logits,) = discriminator(params, [transform(x, transformation)], train=False)
        maps.append(logits[:, : len(t_list)].softmax(dim=1)[:, i])
    return maps


def lowest_mean(values, fraction):
    """Mean of the lowest max(1, floor(fraction * n)) of n values."""
    count = max(1, math.floor(fraction * values.numel()))
    return values.flatten().sort().values[:count].mean()


def vote_share(params, x, t_list, fraction=1.0):
    """v of each image, (N,), in [0, 1]: per transformation the mean of the lowest patches, then the mean over i."""
    maps = vote_map_explicit(params, x, t_list)
    return torch.stack([torch.stack([lowest_mean(p[n], fraction) for p in maps]).mean() for n in range(len(x))])


def normality(shares):
    """Mean over scales of the vote shares (S, N); higher = more normal."""
    return shares.mean(dim=0)


def anomaly_score(shares):
    """1 - normality, (N,), of the vote shares (S, N); higher = more anomalous."""
    return 1 - normality(shares)


def minmax_anomaly_score(shares):
    """The same after each scale of (S, N) is min-max normalised over the N images of the test set.

    A scale on which all images are equal tells nothing: it becomes 0 for all of them.
    """
    low, high = shares.min(dim=1, keepdim=True).values, shares.max(dim=1, keepdim=True).values
    width = torch.where(high > low, high - low, torch.ones_like(low))
    return anomaly_score((shares - low) / width)


def surprise(probability):
    """How anomalous a patch is that finds the right transformation so likely: 0 if certain, 1 at 1e-12 and below."""
    return min(-math.log10(max(probability, 1e-12)) / 12, 1.0)


def localization_from_maps(maps, height, width, t_list):
    """Anomaly map (height, width), numpy float64, of M arrays of p_i (h_i - 10, w_i - 10); higher = more anomalous.

    A patch that touches a mirrored pixel is left out. The sets of the method hold untranslated transformations, which
    cover every pixel that has 5 pixels around it, so another patch always covers the place. Each pixel of the 5 px
    frame takes the value at its coordinates clamped to that interior rectangle.
    """
    total, count = np.zeros((height, width)), np.zeros((height, width))
    for p, transformation in zip(maps, t_list, strict=True):
        source, mirrored = source_maps(height, width, transformation)
        for row, column in itertools.product(range(p.shape[0]), range(p.shape[1])):
            if mirrored[row : row + PATCH, column : column + PATCH].any():
                continue
            y, x = divmod(int(source[row + MARGIN, column + MARGIN]), width)
            total[y, x] += surprise(float(p[row, column]))
            count[y, x] += 1
    result = np.empty((height, width))
    for y, x in itertools.product(range(height), range(width)):
        inner_y, inner_x = min(max(y, MARGIN), height - 1 - MARGIN), min(max(x, MARGIN), width - 1 - MARGIN)
        if count[inner_y, inner_x] == 0:
            raise ValueError(f"no patch free of mirrored pixels has its centre at {inner_y}, {inner_x}")
        result[y, x] = total[inner_y, inner_x] / count[inner_y, inner_x]
    return result


def localization(params, x, t_list, size=None):
    """Anomaly map of one image (3, H, W) at one scale: (H, W), or resized to `size`; numpy, higher = more anomalous."""
    maps = [p[0].detach().cpu().numpy() for p in vote_map_explicit(params, x[None], t_list)]
    result = localization_from_maps(maps, *x.shape[-2:], t_list)
    return result if size is None else resize_bicubic(result, size)


def localization_over_scales(params_list, pyramid, t_list, size):
    """Mean over scales of the maps resized to the image's `size`; pyramid holds one (3, h, w) for each scale."""
    return np.mean([localization(p, x, t_list, size) for p, x in zip(params_list, pyramid, strict=True)], axis=0)


# --------------------------------------------------------------------------------------------------- for the tests


def random_parameters(inputs, width, outputs, seed=0, dtype=torch.float64):
    """Parameters of a network `inputs` -> width x 4 -> `outputs`, all of them (running statistics too) away from 0."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    channels = [inputs, width, width, width, width, outputs]
    params = []
    for source, target in itertools.pairwise(channels):
        params.append({"weight": normal(target, source, 3, 3) / (9 * source) ** 0.5, "bias": 0.1 * normal(target)})
    for block in params[:-1]:
        block.update(gamma=1 + 0.1 * normal(width), beta=0.1 * normal(width))
        block.update(running_mean=0.1 * normal(width), running_var=0.5 + normal(width) ** 2)
    return params
