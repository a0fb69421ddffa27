"""How good are a model's own images? python -m hta.studies samples --input_name brick

Prints the error of the reconstructions, how much random samples differ from each other and from the training image, and
how much closer their power spectrum is to that of the image than the spectrum of white noise of the same variance.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hta.model import Model
from hta.runtime import seeded_generator
from hta.settings import Checked, option
from hta.training.samples import draw_samples


@dataclass(frozen=True)
class SampleOptions(Checked):
    """The model and the number of samples."""

    input_name: str = option("brick", "the model")
    models_dir: str = option("TrainedModels", "folder of the models")
    num_samples: int = option(50, "random samples of each kind", low=2, high=1000)
    seed: int = option(0, "of the samples and the noise", low=0)


def radial_power(images: Tensor) -> Tensor:
    """Mean power of `(N, C, h, w)` images over rings of equal spatial frequency, without the constant: `(K,)`."""
    power = torch.fft.fft2(images - images.mean(dim=(-2, -1), keepdim=True)).abs().square().mean(dim=(0, 1))
    height, width = power.shape
    rows, columns = torch.fft.fftfreq(height) * height, torch.fft.fftfreq(width) * width
    ring = torch.hypot(rows[:, None], columns[None]).round().long().flatten()
    return (torch.bincount(ring, power.flatten()) / torch.bincount(ring))[1 : min(height, width) // 2 + 1]


def spectrum_ratios(samples: Tensor, images: Tensor, noise: Tensor) -> tuple[float, float]:
    """How many times closer the power spectrum of samples is to that of images than the spectrum of noise is.

    Over rings of equal frequency: the ratio of the mean relative errors, and that of the mean squared logarithms.
    """
    sampled, real, white = (radial_power(batch) for batch in (samples, images, noise))

    def errors(spectrum: Tensor) -> tuple[Tensor, Tensor]:
        return ((spectrum - real).abs() / real).mean(), (spectrum / real).log().square().mean()

    (far, far_log), (near, near_log) = errors(white), errors(sampled)
    return (far / near).item(), (far_log / near_log).item()


def run(options: SampleOptions, model: Model) -> Iterator[str]:
    """Draw samples of a model, and report their errors and spectra; all errors in units of [-1, 1]."""
    images, pyramid, count = model.training_images, model.pyramid, options.num_samples
    rebuilt = pyramid.reconstruct().float().cpu()
    yield f"reconstruction: RMSE {_rmse(rebuilt, images):.3f} at the finest scale, in [-1, 1]"
    coarse = _draw(model, count, options.seed)
    pairs = torch.stack([_rmse(coarse[i], coarse[j]) for i in range(count) for j in range(i)])
    yield f"samples from the coarsest scale on: RMSE {pairs.mean():.3f} between two of them"
    fine = _draw(model, count, options.seed, gen_start_scale=pyramid.plan.num_scales - 1)
    own = images[torch.arange(count) % len(images)]
    yield f"samples from the finest scale on: RMSE {_rmse(fine, own):.3f} to the training image"
    noise = torch.randn(coarse.shape, generator=seeded_generator(options.seed, "noise")) * coarse.std()
    relative, logarithmic = spectrum_ratios(coarse, images, noise)
    yield (
        f"power spectrum: {relative:.1f} times closer to the image's than that of white noise of the same "
        f"variance in relative error, {logarithmic:.1f} times in squared logarithms"
    )


def _draw(model: Model, count: int, seed: int, gen_start_scale: int = 0) -> Tensor:
    samples = draw_samples(model.pyramid, count, seed, gen_start_scale=gen_start_scale)
    return torch.cat(list(samples)).float().cpu()


def _rmse(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).square().mean().sqrt()
