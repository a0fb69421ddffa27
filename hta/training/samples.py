"""Pictures that a trained pyramid draws: random samples and reconstructions (paper, figure 2)."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hta.errors import RunError
from hta.imaging import to_uint8, write_png
from hta.models.pyramid import Pyramid, fresh_noise
from hta.runtime import seeded_generator

_BATCH = 16


@dataclass(frozen=True)
class SampleRequest:
    """Which random samples to draw.

    Attributes:
        count: how many.
        seed: with a sample's index, all that its noise depends on.
        gen_start_scale: scales below this one reconstruct; noise is fresh from there on.
        scale_v, scale_h: factors of the height and the width.
    """

    count: int
    seed: int
    gen_start_scale: int = 0
    scale_v: float = 1.0
    scale_h: float = 1.0


def draw_samples(pyramid: Pyramid, request: SampleRequest) -> Iterator[Tensor]:
    """Draw random samples; sample i varies training image i modulo N.

    Args:
        pyramid: trained.
        request: which.

    Yields:
        `(B, 3, h, w)` batches in [-1, 1], in the order of the samples. A sample does not depend on its batch.
    """
    for first in range(0, request.count, _BATCH):
        numbers = range(first, min(first + _BATCH, request.count))
        streams = [seeded_generator(request.seed, "sample", number) for number in numbers]
        index = torch.tensor([number % pyramid.num_images for number in numbers], device=pyramid.device)
        batch = pyramid.sample(
            lambda n, size, streams=streams: torch.cat([fresh_noise(n, 1, size, stream) for stream in streams]),
            index,
            gen_start_scale=request.gen_start_scale,
            scale_v=request.scale_v,
            scale_h=request.scale_h,
        )
        yield batch.clamp(-1, 1)


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
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise RunError(f"{folder}: cannot be made ({error.strerror}); free some space or check its rights") from error
    try:
        fresh.chmod(0o755)
        pictures = (picture for batch in draw_samples(pyramid, request) for picture in to_uint8(batch))
        for number, picture in enumerate(pictures):
            write_png(fresh / f"random_{number:03d}.png", picture)
        if reconstruction:
            for number, picture in enumerate(to_uint8(pyramid.reconstruct())):
                write_png(fresh / f"reconstruction_{number:03d}.png", picture)
        if folder.exists():
            shutil.rmtree(folder)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
