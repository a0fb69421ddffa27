"""Pictures that a trained pyramid draws: random samples and reconstructions (paper, figure 2)."""

import re
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from hta.errors import UserError
from hta.files import foreign, new_folder
from hta.images import to_uint8, write_png
from hta.models.pyramid import Pyramid, fresh_noise
from hta.runtime import seeded_generator

SAMPLES_FOLDER = "samples"
"""The folder in a run folder for samples that are drawn after training."""

_PICTURES = r"(random|reconstruction)_\d+\.png"
OWN_FILES = rf"(samples|random_samples_[^/]+)/({_PICTURES})?"
"""Pattern of the paths in a run folder that this module writes."""

_BATCH_PIXELS = 16 * 64 * 64  # of the samples that are drawn together, so that large ones do not fill the memory


def draw_samples(
    pyramid: Pyramid,
    count: int,
    seed: int,
    gen_start_scale: int = 0,
    scale_v: float = 1.0,
    scale_h: float = 1.0,
    num_scales: int | None = None,
) -> Iterator[Tensor]:
    """Draw random samples; sample i varies training image i modulo N.

    Args:
        pyramid: trained.
        count: how many.
        seed: with a sample's index, all that its noise depends on.
        gen_start_scale: scales below this one reconstruct; noise is fresh from there on.
        scale_v, scale_h: factors of the height and the width.
        num_scales: use the scales below this one only; all by default.

    Yields:
        `(B, 3, h, w)` batches in [-1, 1], in the order of the samples. A sample does not depend on its batch.
    """
    height, width = pyramid.plan.working_size
    together = max(1, int(_BATCH_PIXELS / (height * scale_v * width * scale_h)))
    for first in range(0, count, together):
        numbers = range(first, min(first + together, count))
        index = torch.tensor([number % pyramid.num_images for number in numbers], device=pyramid.device)
        noise = partial(_noise_of, numbers, seed)
        batch = pyramid.sample(
            noise, index, num_scales=num_scales, gen_start_scale=gen_start_scale, scale_v=scale_v, scale_h=scale_h
        )
        yield batch.clamp(-1, 1)


def _noise_of(numbers: range, seed: int, scale: int, size: tuple[int, int]) -> Tensor:
    """Noise of some samples at a scale, which depends on nothing but the seed and each sample's number."""
    generators = (seeded_generator(seed, "sample", number, scale) for number in numbers)
    return torch.cat([fresh_noise(scale, 1, size, generator) for generator in generators])


def write_samples(folder: Path, samples: Iterable[Tensor], rebuilt: Iterable[Tensor] = ()) -> None:
    """Write pictures as PNG into a new folder, which appears complete or not at all.

    Args:
        folder: replaced if it exists, unless it is a link or holds anything else.
        samples: batches from `draw_samples`.
        rebuilt: reconstructions of the training images, `(3, h, w)` in [-1, 1].

    Raises:
        UserError: another process fills the folder, or it is a link.
        RunError: the folder cannot be written.
    """
    if folder.is_symlink():
        raise UserError(f"{folder}: is a link, which is not followed; remove it")
    with new_folder(folder, replace=partial(foreign, is_own=re.compile(_PICTURES).fullmatch)) as fresh:
        for kind, images in (("random", chain.from_iterable(samples)), ("reconstruction", rebuilt)):
            for number, image in enumerate(images):
                write_png(fresh / f"{kind}_{number:03d}.png", to_uint8(image))
