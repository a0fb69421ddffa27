"""The method as plainly as it is usually written: the baseline of the benchmark, never used to train or score.

Every transformed image is made and stacked at every step, in NCHW float32, with the framework's own batch norm and
cross-entropy; images are scored one at a time. What it computes equals what hta computes; only the time differs.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hta.config import TrainingConfig
from hta.images import resize
from hta.models.blocks import ConvBody
from hta.models.kernels import LEAKY_SLOPE
from hta.models.pyramid import Pyramid, fresh_noise
from hta.models.scales import image_pyramid
from hta.models.transforms import TRANSFORMATION_SETS, Transformation, apply_transformation


def explicit_network(body: ConvBody) -> nn.Sequential:
    """The same layers out of the framework's own modules, with copies of the weights, in the body's mode."""
    layers: list[nn.Module] = []
    for block in body.blocks:
        conv, norm = block.conv, block.norm
        layers.append(_copy(nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size), conv))
        layers.append(_copy(nn.BatchNorm2d(norm.num_features), norm))
        layers.append(nn.LeakyReLU(LEAKY_SLOPE))
    tail = body.tail
    layers.append(_copy(nn.Conv2d(tail.in_channels, tail.out_channels, tail.kernel_size), tail))
    return nn.Sequential(*layers).train(body.training)


def _copy(fresh: nn.Module, source: nn.Module) -> nn.Module:
    fresh.load_state_dict(source.state_dict())
    return fresh.to(memory_format=torch.contiguous_format)


def transform_all(images: Tensor, transformations: Sequence[Transformation]) -> Tensor:
    """Stack all transformed images: `(N, 3, h, h)` squares to `(M * N, 3, h, h)`, transformation by transformation."""
    return torch.cat([apply_transformation(images, t) for t in transformations])


def patch_cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean over images and patches of the cross-entropy of `(B, M + 1, h, w)` logits against one class an image."""
    return F.cross_entropy(logits, classes.view(-1, 1, 1).expand(-1, *logits.shape[2:]))


class ExplicitScale:
    """One scale in training, the plain way.

    Args:
        pyramid: holds the coarser scales; square images.
        images: `(N, 3, h, h)` training images at this scale.
        config: the settings.
        generator, discriminator: networks to start from, copied.
        fixed: `(N, 3, h, h)` fixed noise, times its amplitude.
        noise_amp: `(N,)` amplitudes.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        images: Tensor,
        config: TrainingConfig,
        generator: ConvBody,
        discriminator: ConvBody,
        fixed: Tensor,
        noise_amp: Tensor,
    ):
        self.pyramid, self.images, self.config = pyramid, images, config
        self.n = len(pyramid.scales)
        self.size = pyramid.plan.sizes[self.n]
        self.margin = pyramid.config.margin
        self.transformations = TRANSFORMATION_SETS[pyramid.config.num_transforms]
        self.generator, self.discriminator = explicit_network(generator), explicit_network(discriminator)
        self.below = [explicit_network(scale.generator.body) for scale in pyramid.scales]
        self.fixed, self.noise_amp = fixed, noise_amp.view(-1, 1, 1, 1)
        self.rebuilt_below = pyramid.upsample(pyramid.reconstruct() if self.n else None, self.size, len(images))
        M, N = len(self.transformations), len(images)
        self.true_classes = torch.arange(M).repeat_interleave(N)
        self.fake_classes = torch.full((M * N,), M)
        betas = (config.beta1, 0.999)
        self.optimizer_g = torch.optim.Adam(self.generator.parameters(), config.lr_g, betas)
        self.optimizer_d = torch.optim.Adam(self.discriminator.parameters(), config.lr_d, betas)

    def iterate(self, stream: torch.Generator) -> list[tuple[float, float]]:
        """One iteration: the discriminator's steps, then the generator's; returns the two losses of every step."""
        noise = self.noise_amp * fresh_noise(self.n, len(self.images), self.size, stream)
        losses = []
        for _ in range(self.config.Dsteps):
            below = self._draw_image_below(stream)
            losses.append(self._step_discriminator(noise, below))
        losses += [self._step_generator(noise, below) for _ in range(self.config.Gsteps)]
        return losses

    def _step_discriminator(self, noise: Tensor, below: Tensor) -> tuple[float, float]:
        fake = self._generate(self.generator, noise, below).detach()
        self.optimizer_d.zero_grad()
        real_logits = self.discriminator(transform_all(self.images, self.transformations))
        loss_real = patch_cross_entropy(real_logits, self.true_classes)
        loss_real.backward()
        fake_logits = self.discriminator(transform_all(fake, self.transformations))
        loss_fake = patch_cross_entropy(fake_logits, self.fake_classes)
        loss_fake.backward()
        self.optimizer_d.step()
        return loss_real.item(), loss_fake.item()

    def _step_generator(self, noise: Tensor, below: Tensor) -> tuple[float, float]:
        self.optimizer_g.zero_grad()
        fake = self._generate(self.generator, noise, below)
        logits = self.discriminator(transform_all(fake, self.transformations))
        loss_adversarial = patch_cross_entropy(logits, self.true_classes)
        rebuilt = self._generate(self.generator, self.fixed, self.rebuilt_below)
        loss_rebuilt = F.mse_loss(rebuilt, self.images)
        (loss_adversarial + self.config.alpha * loss_rebuilt).backward()
        self.optimizer_g.step()
        return loss_adversarial.item(), loss_rebuilt.item()

    def _generate(self, network: nn.Sequential, noise: Tensor, below: Tensor) -> Tensor:
        padded = F.pad(noise, [self.margin] * 4) + F.pad(below, [self.margin] * 4)
        index = torch.arange(len(below), dtype=below.dtype).view(-1, 1, 1, 1).expand(-1, 1, *padded.shape[2:])
        return torch.tanh(network(torch.cat([padded, index], dim=1))) + below

    @torch.no_grad()
    def _draw_image_below(self, stream: torch.Generator) -> Tensor:
        """A random sample of the scales below, drawn from the coarsest on, at this scale's size."""
        N, sizes = len(self.images), self.pyramid.plan.sizes
        image = torch.zeros(N, 3, *sizes[0])
        for n, network in enumerate(self.below):
            amplitude = self.pyramid.scales[n].noise_amp.view(-1, 1, 1, 1)
            image = self._generate(network, amplitude * fresh_noise(n, N, sizes[n], stream), image)
            image = resize(image, sizes[n + 1])
        return image


@torch.no_grad()
def explicit_vote_shares(networks: Sequence[nn.Sequential], pyramid: Pyramid, image: Tensor) -> list[float]:
    """Vote share of one image at every scale, the plain way.

    Args:
        networks: frozen discriminators from `explicit_network`, one a scale.
        pyramid: the model.
        image: `(1, 3, h, h)` at the working size.

    Returns:
        S values in [0, 1]; higher = more normal.
    """
    transformations = TRANSFORMATION_SETS[pyramid.config.num_transforms]
    M = len(transformations)
    shares = []
    for network, level in zip(networks, image_pyramid(image, pyramid.plan.sizes), strict=True):
        probabilities = network(transform_all(level, transformations))[:, :M].softmax(dim=1)
        shares.append(float(probabilities[torch.arange(M), torch.arange(M)].mean()))
    return shares
