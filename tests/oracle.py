"""What `hta.speed.explicit` leaves out of the paper's method, written just as slowly and plainly: scales, resizing, the
transformations pixel by pixel, scores and anomaly maps.

Nothing else of hta is imported, so that the package can be compared with both files in float64.
"""

import itertools
import math
from functools import lru_cache

import numpy as np
import torch

from hta.speed.explicit import MARGIN, PlainNetwork, vote_maps

PATCH = 2 * MARGIN + 1


# --- scales (paper, section 3.2) --------------------------------------------------------------------------------------


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


# --- transformations (paper, section 3.1) -----------------------------------------------------------------------------


def source_pixel(row, column, height, width, transformation):
    """Where a pixel of the transformed image came from: its (y, x), and whether it is a mirrored copy."""
    _, f, tx, ty, k = transformation
    y, x = {
        0: (row, column),
        1: (column, width - 1 - row),
        2: (height - 1 - row, width - 1 - column),
        3: (height - 1 - column, row),
    }[k]
    y, x = y - ty * int(0.15 * height), x - tx * int(0.15 * width)
    inner_y, inner_x = mirror(y, height), mirror(x, width)
    return inner_y, width - 1 - inner_x if f else inner_x, (inner_y, inner_x) != (y, x)


def mirror(position, length):
    """A position up to one length outside 0 ... length - 1, mirrored back in, the edge pixel included."""
    if position < 0:
        return -1 - position
    return position if position < length else 2 * length - 1 - position


@lru_cache(maxsize=256)
def source_maps(height, width, transformation):
    """`source_pixel` of every pixel of the transformed image: three arrays of its shape."""
    shape = (height, width) if transformation[4] % 2 == 0 else (width, height)
    places = itertools.product(range(shape[0]), range(shape[1]))
    found = np.array([source_pixel(*place, height, width, transformation) for place in places])
    return tuple(part.reshape(shape) for part in (found[:, 0], found[:, 1], found[:, 2].astype(bool)))


def transform_by_pixels(array, transformation):
    """T(array) of one numpy image (3, H, W), output pixel by output pixel."""
    y, x, _ = source_maps(*array.shape[1:], transformation)
    red, green, blue = array[:, y, x]
    gray = 0.299 * red + 0.587 * green + 0.114 * blue
    return np.stack([gray, gray, gray] if transformation[0] else [red, green, blue])


# --- scores and anomaly maps (paper, section 3.3) ---------------------------------------------------------------------


def anomaly_score(shares):
    """1 - the mean over scales of the vote shares (S, N), higher = more anomalous."""
    return 1 - shares.mean(dim=0)


def minmax_anomaly_score(shares):
    """The same after each scale of (S, N) is min-max normalised over the N images of the test set.

    A scale on which all images are equal says nothing: it becomes 0 for all of them.
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
        rows, columns, mirrored = source_maps(height, width, transformation)
        for row, column in itertools.product(range(p.shape[0]), range(p.shape[1])):
            if mirrored[row : row + PATCH, column : column + PATCH].any():
                continue
            y, x = rows[row + MARGIN, column + MARGIN], columns[row + MARGIN, column + MARGIN]
            total[y, x] += surprise(float(p[row, column]))
            count[y, x] += 1
    result = np.empty((height, width))
    for y, x in itertools.product(range(height), range(width)):
        inner_y, inner_x = min(max(y, MARGIN), height - 1 - MARGIN), min(max(x, MARGIN), width - 1 - MARGIN)
        if count[inner_y, inner_x] == 0:
            raise ValueError(f"no patch free of mirrored pixels has its centre at {inner_y}, {inner_x}")
        result[y, x] = total[inner_y, inner_x] / count[inner_y, inner_x]
    return result


def localization(network, x, t_list, size=None):
    """Anomaly map of one image (3, H, W) at one scale: (H, W), or resized to `size`; numpy, higher = more anomalous."""
    maps = [votes[0].numpy() for votes in vote_maps(network, x[None], t_list)]
    result = localization_from_maps(maps, *x.shape[-2:], t_list)
    return result if size is None else resize_bicubic(result, size)


# --- networks ---------------------------------------------------------------------------------------------------------


def random_network(inputs, width, outputs, seed=0):
    """A frozen float64 network whose parameters, running statistics too, are all away from 0."""
    draw = torch.Generator().manual_seed(seed)
    network = PlainNetwork(inputs, width, outputs).double().eval().requires_grad_(False)

    def fill(parameter, mean, deviation):
        noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        parameter.copy_(mean + deviation * noise)

    for conv in [*(block.conv for block in network.blocks), network.tail]:
        fill(conv.weight, 0, (9 * conv.in_channels) ** -0.5)
        fill(conv.bias, 0, 0.1)
    for norm in [block.norm for block in network.blocks]:
        fill(norm.weight, 1, 0.1)
        fill(norm.bias, 0, 0.1)
        fill(norm.running_mean, 0, 0.1)
        fill(norm.running_var, 0, 1)
        norm.running_var.square_().add_(0.5)
    return network
