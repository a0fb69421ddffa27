"""How good a model's own images are: python -m hta.studies.samples --input_name brick

Prints the error of the reconstructions, how much random samples differ from each other and from the training image, and
how close their power spectrum is to the image's, held against white noise of the samples' variance.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hta.cli import parse_for_model, run_command
from hta.model import Model, load
from hta.runtime import seeded_generator
from hta.settings import Checked, option
from hta.training.samples import SampleRequest, draw_samples


@dataclass(frozen=True)
class StatisticsOptions(Checked):
    """Which model, and how many samples."""

    input_name: str = option("brick", "the model")
    models_dir: str = option("TrainedModels", "folder of the models")
    num_samples: int = option(50, "random samples of each kind", low=2, high=1000)
    seed: int = option(0, "of the samples and the noise", low=0)


@dataclass(frozen=True)
class SampleStatistics:
    """Figures of a model's own images; all errors in units of [-1, 1].

    Attributes:
        reconstruction_rmse: of the training images at the finest scale.
        pairwise_rmse: mean over pairs of samples drawn from the coarsest scale on.
        finest_rmse: of samples whose noise is fresh at the finest scale only, to their training image.
        spectrum_ratio: how many times closer the samples' power spectrum is to the images' than that of noise, in mean
            relative error over rings of equal frequency.
        spectrum_ratio_log: the same in mean squared logarithms.
    """

    reconstruction_rmse: float
    pairwise_rmse: float
    finest_rmse: float
    spectrum_ratio: float
    spectrum_ratio_log: float


def radial_power(images: Tensor) -> Tensor:
    """Mean power of `(N, C, h, w)` images over rings of equal spatial frequency, without the constant: `(K,)`."""
    power = torch.fft.fft2(images - images.mean(dim=(-2, -1), keepdim=True)).abs().square().mean(dim=(0, 1))
    height, width = power.shape
    rows, columns = torch.fft.fftfreq(height) * height, torch.fft.fftfreq(width) * width
    ring = torch.hypot(rows[:, None], columns[None]).round().long().flatten()
    total = torch.zeros(int(ring.max()) + 1)
    counts = total.scatter_add(0, ring, torch.ones(ring.shape))
    last = min(height, width) // 2
    return (total.scatter_add(0, ring, power.flatten()) / counts)[1 : last + 1]


def spectrum_ratios(samples: Tensor, images: Tensor, noise: Tensor) -> tuple[float, float]:
    """How many times closer to the images' spectrum the samples' is than the noise's: relative error, squared logs."""
    sampled, real, white = (radial_power(batch) for batch in (samples, images, noise))

    def errors(spectrum: Tensor) -> tuple[Tensor, Tensor]:
        return ((spectrum - real).abs() / real).mean(), (spectrum / real).log().square().mean()

    (far, far_log), (near, near_log) = errors(white), errors(sampled)
    return (far / near).item(), (far_log / near_log).item()


def measure(model: Model, count: int, seed: int) -> SampleStatistics:
    """Draw samples of a model, and measure them."""
    images, pyramid = model.training_images, model.pyramid
    coarse = torch.cat(list(draw_samples(pyramid, SampleRequest(count, seed)))).float().cpu()
    last = pyramid.plan.num_scales - 1
    fine = torch.cat(list(draw_samples(pyramid, SampleRequest(count, seed, gen_start_scale=last)))).float().cpu()
    own = images[torch.arange(count) % len(images)]
    noise = torch.randn(coarse.shape, generator=seeded_generator(seed, "noise")) * coarse.std()
    pairs = torch.stack([_rmse(coarse[i], coarse[j]) for i in range(count) for j in range(i)])
    return SampleStatistics(
        _rmse(pyramid.reconstruct().float().cpu(), images).item(),
        pairs.mean().item(),
        _rmse(fine, own).item(),
        *spectrum_ratios(coarse, images, noise),
    )


def _rmse(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).square().mean().sqrt()


def _command(argv: Sequence[str] | None) -> None:
    options, runtime = parse_for_model("python -m hta.studies.samples", __doc__, StatisticsOptions, argv)
    model = load(options.input_name, options.models_dir, runtime)
    found = measure(model, options.num_samples, options.seed)
    print(f"reconstruction: RMSE {found.reconstruction_rmse:.3f} at the finest scale, in [-1, 1]")
    print(f"samples from the coarsest scale on: RMSE {found.pairwise_rmse:.3f} between two of them")
    print(f"samples from the finest scale on: RMSE {found.finest_rmse:.3f} to the training image")
    print(
        f"power spectrum: {found.spectrum_ratio:.1f} times closer to the image's than that of white noise of the same "
        f"variance in relative error, {found.spectrum_ratio_log:.1f} times in squared logarithms"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement and return its exit status."""
    return run_command(_command, argv, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
