"""All scales of a model together: reconstructions and random samples, coarse to fine (paper, section 3.2)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hta.config import ModelConfig
from hta.images import resize
from hta.models.blocks import init_weights
from hta.models.kernels import PLAIN_KERNELS, Kernels
from hta.models.networks import Discriminator, Generator
from hta.models.scales import guarded_ceil, plan_of
from hta.runtime import full_precision

NoiseSource = Callable[[int, tuple[int, int]], Tensor]
"""Draws the noise for a scale: (scale, (height, width)) -> `(B, 3, height, width)` of unit variance."""


@dataclass
class Scale:
    """One scale of a pyramid.

    Attributes:
        generator, discriminator: its networks.
        fixed_noise: `(1, 1, h, w)`, the noise z* that reconstructs the training images.
        noise_amp: `(N,)` noise amplitude sigma of every training image.
    """

    generator: Generator
    discriminator: Discriminator
    fixed_noise: Tensor
    noise_amp: Tensor

    def freeze(self) -> None:
        """Put both networks into evaluation mode and disable their gradients."""
        for network in (self.generator, self.discriminator):
            network.eval().requires_grad_(False)


class Pyramid:
    """The scales of a model, coarsest first; unfinished while there are fewer scales than planned.

    Args:
        config: resolved settings of the model.
        image_size: (height, width) of the training images, pixels.
        num_images: N, the number of training images.
        device, dtype: where and in which type the networks compute.
        kernels: the implementation with which the networks are trained.

    Attributes:
        plan: sizes and widths of the scales.
        scales: the trained scales, frozen; none at first.
    """

    def __init__(
        self,
        config: ModelConfig,
        image_size: tuple[int, int],
        num_images: int,
        device: torch.device,
        dtype: torch.dtype,
        kernels: Kernels = PLAIN_KERNELS,
    ):
        self.config, self.num_images = config, num_images
        self.device, self.dtype, self.kernels = device, dtype, kernels
        self.plan = plan_of(config, image_size)
        self.scales: list[Scale] = []

    def new_scale(self, n: int, generator: torch.Generator) -> Scale:
        """Create the networks and the fixed noise of scale n, drawn from `generator`, on the pyramid's device.

        If the width equals that of scale n - 1, both networks start from the trained state of that scale instead.
        """
        config, width = self.config, self.plan.widths[n]
        shape = config.ker_size, config.num_layer, self.dtype, self.kernels
        G, D = Generator(width, *shape), Discriminator(width, config.num_classes, *shape)
        for network in (G, D):
            init_weights(network, generator)
        if n and width == self.plan.widths[n - 1]:
            G.load_state_dict(self.scales[n - 1].generator.state_dict())
            D.load_state_dict(self.scales[n - 1].discriminator.state_dict())
        fixed_noise = torch.randn(1, 1, *self.plan.sizes[n], generator=generator)
        for network in (G, D):
            network.to(self.device).to(memory_format=torch.channels_last)
        return Scale(G, D, fixed_noise.to(self.device), torch.ones(self.num_images, device=self.device))

    def unfilled_scale(self, n: int) -> Scale:
        """Scale n on torch's device "meta", where tensors have shapes and types but take no memory."""
        config, width = self.config, self.plan.widths[n]
        shape = config.ker_size, config.num_layer, self.dtype, self.kernels
        with torch.device("meta"):
            G, D = Generator(width, *shape), Discriminator(width, config.num_classes, *shape)
            return Scale(G, D, torch.empty(1, 1, *self.plan.sizes[n]), torch.empty(self.num_images))

    @torch.no_grad()
    def reconstruct(self, num_scales: int | None = None, index: Tensor | None = None) -> Tensor:
        """Reconstruct training images from the fixed noise, by default each once; see `sample`."""
        index = self.all_images() if index is None else index
        return self._generate(index, lambda n, size: self.scales[n].fixed_noise, num_scales)

    @torch.no_grad()
    def sample(
        self,
        noise: NoiseSource,
        index: Tensor,
        *,
        num_scales: int | None = None,
        gen_start_scale: int = 0,
        scale_v: float = 1.0,
        scale_h: float = 1.0,
    ) -> Tensor:
        """Draw random images.

        Args:
            noise: source of the unit-variance noise.
            index: `(B,)` numbers of the training images to vary.
            num_scales: number of scales to use, from the coarsest; all by default.
            gen_start_scale: first scale with fresh noise; coarser scales reconstruct.
            scale_v, scale_h: factors applied to height and width.

        Returns:
            `(B, 3, h, w)` at the finest scale used, not clamped.
        """
        sizes = [(guarded_ceil(h * scale_v), guarded_ceil(w * scale_h)) for h, w in self.plan.sizes]
        if not gen_start_scale:
            return self._generate(index, noise, num_scales, sizes=sizes)
        kept = self.reconstruct(gen_start_scale, index)
        return self._generate(index, noise, num_scales, sizes=sizes, start=gen_start_scale, image=kept)

    @full_precision()
    def _generate(self, index, noise, num_scales=None, sizes=None, start=0, image=None) -> Tensor:
        """Run the frozen generators from scale `start`, given the `image` of the next coarser scale."""
        sizes = sizes or self.plan.sizes
        num_scales = len(self.scales) if num_scales is None else num_scales
        for n in range(start, num_scales):
            previous = self.upsample(image, sizes[n], len(index))
            amplitude = self.scales[n].noise_amp[index].view(-1, 1, 1, 1)
            image = self.scales[n].generator(amplitude * noise(n, sizes[n]).to(self.device), previous, index)
        return image

    def upsample(self, image: Tensor | None, size: tuple[int, int], batch: int) -> Tensor:
        """The input of a generator: the image of the next coarser scale at `size`, clamped; zero if there is none."""
        if image is None:
            return torch.zeros(batch, 3, *size, device=self.device)
        return resize(image, size)

    def all_images(self) -> Tensor:
        """The numbers of the training images, `(N,)`."""
        return torch.arange(self.num_images, device=self.device)


def fresh_noise(n: int, batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw Gaussian noise `(batch, 3, h, w)` on the CPU, the same in all channels at scale 0 (paper, section 3.2)."""
    noise = torch.randn(batch, 1 if n == 0 else 3, *size, generator=generator)
    return noise.expand(-1, 3, -1, -1)
