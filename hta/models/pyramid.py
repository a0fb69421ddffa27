"""All scales of a model together: random samples, reconstructions, images drawn from coarse to fine (section 3.2)."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hta.config import ModelConfig
from hta.images import resize
from hta.models.blocks import init_weights
from hta.models.discriminator import Discriminator
from hta.models.generator import Generator
from hta.models.kernels import PLAIN_KERNELS, Kernels
from hta.models.scales import ScalePlan, guarded_ceil, plan_scales

NoiseSource = Callable[[int, tuple[int, int]], Tensor]
"""Draws the noise of a scale: (scale, (height, width)) -> `(B, 3, height, width)` of unit variance."""


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
        """Put both networks into evaluation mode and stop their gradients."""
        for network in (self.generator, self.discriminator):
            network.eval().requires_grad_(False)


@dataclass
class Pyramid:
    """The scales of a model, coarsest first; unfinished while it holds fewer than its plan.

    Attributes:
        config: what the model is, resolved.
        plan: sizes and widths.
        num_images: N, the number of training images.
        device, dtype: where and in which type its networks compute.
        kernels: what its networks are trained with.
        scales: the trained ones, frozen.
    """

    config: ModelConfig
    plan: ScalePlan
    num_images: int
    device: torch.device
    dtype: torch.dtype
    kernels: Kernels = PLAIN_KERNELS
    scales: list[Scale] = field(default_factory=list)

    @classmethod
    def planned(
        cls,
        config: ModelConfig,
        image_size: tuple[int, int],
        num_images: int,
        device: torch.device,
        dtype: torch.dtype,
        kernels: Kernels = PLAIN_KERNELS,
    ) -> "Pyramid":
        """A pyramid without scales for images of `image_size` = (height, width)."""
        return cls(config, plan_of(config, image_size), num_images, device, dtype, kernels)

    def new_scale(self, n: int, generator: torch.Generator) -> Scale:
        """Networks and fixed noise of scale n, drawn from `generator`, on the pyramid's device.

        When the width equals that of scale n - 1, both networks start from that scale's trained state instead.
        """
        config, width = self.config, self.plan.widths[n]
        G = Generator(width, config.ker_size, config.num_layer, self.dtype, self.kernels)
        D = Discriminator(width, config.num_classes, config.ker_size, config.num_layer, self.dtype, self.kernels)
        for network in (G, D):
            init_weights(network, generator)
        if n and width == self.plan.widths[n - 1]:
            G.load_state_dict(self.scales[n - 1].generator.state_dict())
            D.load_state_dict(self.scales[n - 1].discriminator.state_dict())
        fixed_noise = torch.randn(1, 1, *self.plan.sizes[n], generator=generator)
        place = dict(device=self.device, memory_format=torch.channels_last)
        return Scale(
            G.to(**place), D.to(**place), fixed_noise.to(self.device), torch.ones(self.num_images).to(self.device)
        )

    @torch.no_grad()
    def reconstruct(self, num_scales: int | None = None, index: Tensor | None = None) -> Tensor:
        """Rebuild training images from the fixed noise.

        Args:
            num_scales: use the scales below this one only; all by default.
            index: `(B,)` training images; each once by default.

        Returns:
            `(B, 3, h, w)` at the finest scale used, not clamped.
        """
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
            noise: source of the unit noise.
            index: `(B,)` training images whose variations are drawn.
            num_scales: use the scales below this one only; all by default.
            gen_start_scale: scales below this one reconstruct; noise is fresh from there on.
            scale_v, scale_h: factors of the height and the width.

        Returns:
            `(B, 3, h, w)` at the finest scale used, not clamped.
        """
        sizes = [(guarded_ceil(h * scale_v), guarded_ceil(w * scale_h)) for h, w in self.plan.sizes]
        if not gen_start_scale:
            return self._generate(index, noise, num_scales, sizes=sizes)
        kept = self.reconstruct(gen_start_scale, index)
        return self._generate(index, noise, num_scales, sizes=sizes, start=gen_start_scale, image=kept)

    def _generate(self, index, noise, num_scales=None, sizes=None, start=0, image=None) -> Tensor:
        """Run the frozen generators from scale `start` on, on top of `image` of the scale below."""
        sizes = sizes or self.plan.sizes
        num_scales = len(self.scales) if num_scales is None else num_scales
        for n in range(start, num_scales):
            previous = self.upsample(image, sizes[n], len(index))
            amplitude = self.scales[n].noise_amp[index].view(-1, 1, 1, 1)
            image = self.scales[n].generator(amplitude * noise(n, sizes[n]).to(self.device), previous, index)
        return image

    def upsample(self, image: Tensor | None, size: tuple[int, int], batch: int) -> Tensor:
        """The input of a generator: the image of the scale below at `size`, clamped; zero where there is none."""
        if image is None:
            return torch.zeros(batch, 3, *size, device=self.device)
        return resize(image, size)

    def all_images(self) -> Tensor:
        """The numbers of the training images, `(N,)`."""
        return torch.arange(self.num_images, device=self.device)


def plan_of(config: ModelConfig, image_size: tuple[int, int]) -> ScalePlan:
    """The scales of a model for images of `image_size` = (height, width)."""
    return plan_scales(
        *image_size,
        min_size=config.min_size,
        max_size=config.max_size,
        scale_factor=config.scale_factor,
        nfc=config.nfc,
        receptive_field=config.receptive_field,
    )


def fresh_noise(n: int, batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Gaussian noise of scale n, drawn on the CPU (paper, section 3.2).

    Returns:
        `(batch, 3, h, w)`: at scale 0 one map shared by the channels, at finer scales three independent maps.
    """
    noise = torch.randn(batch, 1 if n == 0 else 3, *size, generator=generator)
    return noise.expand(-1, 3, -1, -1)
