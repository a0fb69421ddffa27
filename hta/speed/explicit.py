"""The method written plainly: the baseline of the speed comparison and the reference of the tests.

Every transformed image is built and passed on its own at every step, with PyTorch's own layers, batch norm and
cross-entropy; nothing is shared, weighted or folded. This module imports nothing else from hta, so that the tests can
compare the package with it, in float64, without comparing code with itself. In float32 it is what the method costs when
it is implemented as usual.

A transformation is a tuple (c, f, tx, ty, k): grayscale, flip, translation right and down, quarter turns.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MARGIN = 5  # five convolutions of 3 x 3 px: a patch is 11 x 11 px
Transformation = tuple[int, int, int, int, int]
Network = Callable[[list[Tensor]], list[Tensor]]


# --- transformations (paper, section 3.1) -----------------------------------------------------------------------------


def transformation_list(count: int) -> list[Transformation]:
    """The 54, 42 or 4 transformations; the position in the list is the class."""

    still, sides, turns = (0,), (1, -1), (0, 1, 2, 3)
    # Each block is a product of c, f, tx, ty and k, of which the last varies fastest.
    rotations: list[tuple[tuple[int, ...], ...]] = [((0,), still, still, still, turns)]
    geometric: list[tuple[tuple[int, ...], ...]] = [
        ((0,), (0, 1), (0, 1), (0, 1), turns),
        ((0,), (0, 1), (-1, 1, 0), (-1,), still),
        ((0,), (0, 1), (-1,), (1, 0), still),
    ]
    gray = [((1,), (0, 1), still, still, turns), ((1,), still, sides, still, still), ((1,), still, still, sides, still)]
    blocks = {4: rotations, 42: geometric, 54: geometric + gray}[count]
    return [(c, f, tx, ty, k) for block in blocks for c, f, tx, ty, k in product(*block)]


def transform(images: Tensor, transformation: Transformation) -> Tensor:
    """Flip, translate, rotate, then convert to grayscale `(..., 3, H, W)` images; differentiable."""
    c, f, tx, ty, k = transformation
    height, width = images.shape[-2:]
    if f:
        images = images.flip(-1)
    images = _translate(images, tx * int(0.15 * width), -1)
    images = _translate(images, ty * int(0.15 * height), -2)
    images = torch.rot90(images, k, (-2, -1))
    if not c:
        return images
    red, green, blue = images.unbind(-3)
    return torch.stack([0.299 * red + 0.587 * green + 0.114 * blue] * 3, dim=-3)


def _translate(images: Tensor, pixels: int, dim: int) -> Tensor:
    """Move the content forwards along a dimension, backwards if negative; mirrored content fills the gap."""
    kept = images.shape[dim] - abs(pixels)
    if pixels > 0:
        return torch.cat([images.narrow(dim, 0, pixels).flip(dim), images.narrow(dim, 0, kept)], dim)
    if pixels < 0:
        return torch.cat([images.narrow(dim, -pixels, kept), images.narrow(dim, kept, -pixels).flip(dim)], dim)
    return images


def transformed_batches(images: Tensor, transformations: Sequence[Transformation]) -> list[tuple[Tensor, Tensor]]:
    """Build all M * N transformed images of `(N, 3, H, W)`: one batch per shape, with the classes of its images."""
    groups: dict[torch.Size, list[tuple[Tensor, int]]] = {}
    for i, transformation in enumerate(transformations):
        transformed = transform(images, transformation)
        groups.setdefault(transformed.shape, []).append((transformed, i))
    return [
        (torch.cat([part for part, _ in group]), torch.tensor([i for _, i in group]).repeat_interleave(len(images)))
        for group in groups.values()
    ]


# --- networks (paper, sections 3.1, 3.2 and 4) ------------------------------------------------------------------------


class _Block(nn.Module):
    """Convolution, batch norm over all batches, LeakyReLU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, batches: list[Tensor]) -> list[Tensor]:
        products = [self.conv(batch) for batch in batches]
        return [F.leaky_relu(normed, 0.2) for normed in self._normalize(products)]

    def _normalize(self, products: list[Tensor]) -> list[Tensor]:
        """Batch norm with the statistics of the pixels of all batches, which may differ in shape."""
        if len(products) == 1:
            return [self.norm(products[0])]
        columns = [product.transpose(0, 1).flatten(1) for product in products]
        normed = self.norm(torch.cat(columns, dim=1)[None, :, :, None])[0, :, :, 0]
        parts = normed.split([column.shape[1] for column in columns], dim=1)
        return [
            part.unflatten(1, (len(product), *product.shape[2:])).transpose(0, 1)
            for part, product in zip(parts, products, strict=True)
        ]


class PlainNetwork(nn.Module):
    """Five convolutions without padding, of `width` hidden channels; the parameters are named as in `ConvBody`."""

    def __init__(self, inputs: int, width: int, outputs: int):
        super().__init__()
        self.blocks = nn.Sequential(*(_Block(a, b) for a, b in pairwise([inputs] + [width] * 4)))
        self.tail = nn.Conv2d(width, outputs, 3)

    @classmethod
    def copy_of(cls, body: nn.Module) -> "PlainNetwork":
        """A copy of a `ConvBody` with five convolutions of 3 x 3 px, in its type and mode."""
        weights = body.state_dict()
        width, inputs = weights["blocks.0.conv.weight"].shape[:2]
        network = cls(inputs, width, len(weights["tail.bias"])).to(weights["tail.bias"].dtype)
        network.load_state_dict(weights)
        return network.train(body.training)

    def forward(self, batches: list[Tensor]) -> list[Tensor]:
        """Map `(B, C, h, w)` batches of any shapes to `(B, C', h - 10, w - 10)`."""
        return [self.tail(batch) for batch in self.blocks(batches)]


def generate(network: Network, noise: Tensor, previous: Tensor, index: Tensor) -> Tensor:
    """Generate images: tanh of the network's output, added to the image of the coarser scale; not clamped.

    Noise, times its amplitude, and `previous` are `(N, 3, H, W)`; `index`, `(N,)`, becomes the fourth channel.
    """
    padded = F.pad(noise, [MARGIN] * 4) + F.pad(previous, [MARGIN] * 4)
    channel = index.to(padded).view(-1, 1, 1, 1).expand(-1, 1, *padded.shape[2:])
    (output,) = network([torch.cat([padded, channel], dim=1)])
    return torch.tanh(output) + previous


# --- training (paper, sections 3.1, 3.2 and 4) ------------------------------------------------------------------------


def patch_cross_entropy(
    network: Network, images: Tensor, transformations: Sequence[Transformation], target: int | None = None
) -> Tensor:
    """Mean cross-entropy over all patches of all transformed images `(N, 3, H, W)`, passed together.

    The correct class is `target`, for example M for "fake"; by default that of each transformation.
    """
    batches = transformed_batches(images, transformations)
    total, patches = torch.zeros((), dtype=images.dtype), 0
    for logits, (_, classes) in zip(network([batch for batch, _ in batches]), batches, strict=True):
        own = classes if target is None else torch.full_like(classes, target)
        targets = own.view(-1, 1, 1).expand(-1, *logits.shape[2:])
        total, patches = total + F.cross_entropy(logits, targets, reduction="sum"), patches + targets.numel()
    return total / patches


class FrozenScale(NamedTuple):
    """A trained generator, its noise `(1, 1, h, w)` that reconstructs the training images, and amplitudes `(N,)`."""

    generator: PlainNetwork
    fixed_noise: Tensor
    amplitude: Tensor


class ExplicitScale:
    """One scale in training, with the settings of the paper, on images `(N, 3, h, w)` and coarser scales below it."""

    def __init__(
        self,
        images: Tensor,
        transformations: Sequence[Transformation],
        generator: PlainNetwork,
        discriminator: PlainNetwork,
        fixed_noise: Tensor,
        coarser: Sequence[FrozenScale],
    ):
        self.images, self.transformations, self.coarser = images, transformations, coarser
        self.generator, self.discriminator = generator, discriminator
        self.index = torch.arange(len(images))
        self.rebuilt_below = self._draw([scale.fixed_noise.expand(len(images), 3, -1, -1) for scale in coarser])
        residuals = (images - self.rebuilt_below).abs().mean(dim=(1, 2, 3))
        self.amplitude = 0.1 * residuals if coarser else torch.ones_like(residuals)
        self.fixed = self.amplitude.view(-1, 1, 1, 1) * fixed_noise
        self.optimizer_g, self.optimizer_d = (
            torch.optim.Adam(network.parameters(), lr=5e-4, betas=(0.5, 0.999))
            for network in (generator, discriminator)
        )

    def iterate(self, stream: torch.Generator) -> tuple[list[list[float]], list[list[float]]]:
        """Train for one iteration: returns [real, fake] of three steps of D, [adversarial, rebuilt] of three of G."""
        shapes = [tuple(scale.fixed_noise.shape[2:]) for scale in self.coarser]
        noise = self.amplitude.view(-1, 1, 1, 1) * self._fresh(len(shapes), tuple(self.images.shape[2:]), stream)
        d_losses = []
        for _ in range(3):
            below = self._draw([self._fresh(n, shape, stream) for n, shape in enumerate(shapes)])
            d_losses.append(self._step_discriminator(noise, below))
        return d_losses, [self._step_generator(noise, below) for _ in range(3)]

    def _step_discriminator(self, noise: Tensor, below: Tensor) -> list[float]:
        fake = generate(self.generator, noise, below, self.index).detach()
        self.optimizer_d.zero_grad()
        loss_real = patch_cross_entropy(self.discriminator, self.images, self.transformations)
        loss_real.backward()
        fake_class = len(self.transformations)
        loss_fake = patch_cross_entropy(self.discriminator, fake, self.transformations, fake_class)
        loss_fake.backward()
        self.optimizer_d.step()
        return [loss_real.item(), loss_fake.item()]

    def _step_generator(self, noise: Tensor, below: Tensor) -> list[float]:
        self.optimizer_g.zero_grad()
        fake = generate(self.generator, noise, below, self.index)
        loss_adversarial = patch_cross_entropy(self.discriminator, fake, self.transformations)
        rebuilt = generate(self.generator, self.fixed, self.rebuilt_below, self.index)
        loss_rebuilt = F.mse_loss(rebuilt, self.images)
        (loss_adversarial + 100 * loss_rebuilt).backward()
        self.optimizer_g.step()
        return [loss_adversarial.item(), loss_rebuilt.item()]

    def _fresh(self, n: int, size: tuple[int, ...], stream: torch.Generator) -> Tensor:
        """Noise of scale n: the same in all channels at the coarsest scale."""
        noise = torch.randn(len(self.images), 1 if n == 0 else 3, *size, generator=stream)
        return noise.to(self.images.dtype).expand(-1, 3, -1, -1)

    @torch.no_grad()
    def _draw(self, noise: Sequence[Tensor]) -> Tensor:
        """An image of the coarser scales from the noise of each, upsampled to this scale; zero without any."""
        image = torch.zeros_like(self.images)
        for n, (scale, own) in enumerate(zip(self.coarser, noise, strict=True)):
            previous = resize(image, own.shape[2:]) if n else torch.zeros_like(own)
            image = generate(scale.generator, scale.amplitude.view(-1, 1, 1, 1) * own, previous, self.index)
        return resize(image, self.images.shape[2:]) if self.coarser else image


def resize(images: Tensor, size: Sequence[int]) -> Tensor:
    """Resize images bicubically, antialiased, clamped to [-1, 1] before and after."""
    resized = F.interpolate(images.clamp(-1, 1), list(size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(-1, 1)


# --- scoring (paper, section 3.3) -------------------------------------------------------------------------------------


@torch.no_grad()
def vote_maps(network: Network, images: Tensor, transformations: Sequence[Transformation]) -> list[Tensor]:
    """The probability of the correct transformation for every patch, without the class "fake"; higher = more normal.

    Of images `(N, 3, H, W)` M maps `(N, h - 10, w - 10)` in [0, 1], oriented as the transformed images are.
    """
    M, N, batches = len(transformations), len(images), transformed_batches(images, transformations)
    maps: dict[int, Tensor] = {}
    for logits, (_, classes) in zip(network([batch for batch, _ in batches]), batches, strict=True):
        correct = logits[:, :M].softmax(dim=1)[torch.arange(len(classes)), classes]
        maps |= dict(zip(classes[::N].tolist(), correct.unflatten(0, (-1, N)), strict=True))
    return [maps[i] for i in range(M)]


def vote_share(
    network: Network, images: Tensor, transformations: Sequence[Transformation], fraction: float = 1.0
) -> Tensor:
    """Vote share of every image, `(N,)` in [0, 1]: the mean over transformations of their lowest votes."""
    maps = torch.stack([lowest_mean(votes, fraction) for votes in vote_maps(network, images, transformations)])
    return maps.mean(dim=0)


def lowest_mean(votes: Tensor, fraction: float) -> Tensor:
    """Mean of the lowest max(1, floor(fraction * n)) of the n patches of every image: `(N, h, w)` to `(N,)`."""
    patches = votes.flatten(1)
    count = max(1, int(fraction * patches.shape[1]))
    return (patches if count == patches.shape[1] else patches.sort(dim=1).values[:, :count]).mean(dim=1)
