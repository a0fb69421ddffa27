"""Pictures that a trained pyramid draws: random samples and reconstructions (paper, figure 2)."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hta.files import new_folder
from hta.image_files import write_png
from hta.images import to_uint8
from hta.models.pyramid import Pyramid, fresh_noise
from hta.runtime import seeded_generator

SAMPLES_FOLDER = "samples"
"""The folder in a run folder for samples that are drawn after training."""

OWN_FILES = r"(samples|random_samples_[^/]+)(/(random|reconstruction)_\d+\.png)?"
"""Pattern of the paths in a run folder that this module writes."""

# Pixels of the samples that are drawn together, so that large ones do not fill the memory.
_BATCH_PIXELS = 16 * 64 * 64


@dataclass(frozen=True)
class SampleRequest:
    """Which random samples to draw.

    Attributes:
        count: how many.
        seed: with a sample's index, all that its noise depends on.
        gen_start_scale: scales below this one reconstruct; noise is fresh from there on.
        scale_v, scale_h: factors of the height and the width.
        num_scales: use the scales below this one only; all by default.
    """

    count: int
    seed: int
    gen_start_scale: int = 0
    scale_v: float = 1.0
    scale_h: float = 1.0
    num_scales: int | None = None


def draw_samples(pyramid: Pyramid, request: SampleRequest) -> Iterator[Tensor]:
    """Draw random samples; sample i varies training image i modulo N.

    Args:
        pyramid: trained.
        request: which.

    Yields:
        `(B, 3, h, w)` batches in [-1, 1], in the order of the samples. A sample does not depend on its batch.
    """
    height, width = pyramid.plan.working_size
    together = max(1, int(_BATCH_PIXELS / (height * request.scale_v * width * request.scale_h)))
    for first in range(0, request.count, together):
        numbers = range(first, min(first + together, request.count))
        index = torch.tensor([number % pyramid.num_images for number in numbers], device=pyramid.device)
        batch = pyramid.sample(
            functools.partial(_noise_of, numbers, request.seed),
            index,
            num_scales=request.num_scales,
            gen_start_scale=request.gen_start_scale,
            scale_v=request.scale_v,
            scale_h=request.scale_h,
        )
        yield batch.clamp(-1, 1)


def _noise_of(numbers: range, seed: int, scale: int, size: tuple[int, int]) -> Tensor:
    """Noise of some samples at a scale, which depends on nothing but the seed and each sample's number."""
    generators = (seeded_generator(seed, "sample", number, scale) for number in numbers)
    return torch.cat([fresh_noise(scale, 1, size, generator) for generator in generators])


def write_samples(pyramid: Pyramid, request: SampleRequest, folder: Path, *, reconstruction: bool = False) -> None:
    """Write samples as PNG into a new folder, which appears complete or not at all.

    Args:
        pyramid: trained.
        request: which samples.
        folder: replaced if it exists.
        reconstruction: write the reconstruction of every training image too.

    Raises:
        RunError: the folder cannot be written.
    """
    with new_folder(folder, replace=True) as fresh:
        pictures = (picture for batch in draw_samples(pyramid, request) for picture in to_uint8(batch))
        for number, picture in enumerate(pictures):
            write_png(fresh / f"random_{number:03d}.png", picture)
        if reconstruction:
            for number, picture in enumerate(to_uint8(pyramid.reconstruct())):
                write_png(fresh / f"reconstruction_{number:03d}.png", picture)
