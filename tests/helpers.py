"""What several test files share: models with the oracle's random parameters."""

import numpy as np
import torch
from PIL import Image

from hta.config import ModelConfig
from hta.models.pyramid import Pyramid
from tests import oracle


def copy_parameters(params, network):
    """Load the oracle's parameters into a network of the package."""
    for block, source in zip(network.body.blocks, params[:-1], strict=True):
        block.conv.weight.data.copy_(source["weight"])
        block.conv.bias.data.copy_(source["bias"])
        block.norm.weight.data.copy_(source["gamma"])
        block.norm.bias.data.copy_(source["beta"])
        block.norm.running_mean.copy_(source["running_mean"])
        block.norm.running_var.copy_(source["running_var"])
    network.body.tail.weight.data.copy_(params[-1]["weight"])
    network.body.tail.bias.data.copy_(params[-1]["bias"])


def random_pyramid(image_size, num_transforms, *, dtype=torch.float64, min_size=14, max_size=22, nfc=6):
    """A frozen pyramid whose discriminators hold the oracle's random parameters, and these parameters."""
    config = ModelConfig(
        task="class", num_transforms=num_transforms, min_size=min_size, max_size=max_size, nfc=nfc, scale_factor=0.6
    )
    pyramid = Pyramid.planned(config, image_size, 1, torch.device("cpu"), dtype)
    all_params = []
    for n, width in enumerate(pyramid.plan.widths):
        scale = pyramid.new_scale(n, torch.Generator().manual_seed(n))
        params = oracle.random_parameters(3, width, num_transforms + 1, seed=n)
        if dtype == torch.float64:
            scale.discriminator.double()
        copy_parameters(params, scale.discriminator)
        scale.freeze()
        pyramid.scales.append(scale)
        all_params.append(params)
    return pyramid, all_params


def random_images(shape, num_images, seed=1, dtype=torch.float64):
    """`(N, 3, *shape)` uniform in [-1, 1]."""
    draw = torch.Generator().manual_seed(seed)
    return (torch.rand(num_images, 3, *shape, generator=draw, dtype=torch.float64) * 2 - 1).to(dtype)


def picture(seed=0, height=20, width=24):
    """A smooth random colour picture, `(height, width, 3)` uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
