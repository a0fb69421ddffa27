"""Convolution, batch norm and LeakyReLU on batches of shared canvases.

In training, batch norm must use the statistics of the windows, not of the canvases: mean and variance are weighted by
the number of windows that cover each position. The convolution's bias cancels in the normalisation, so it is left out
of the product and only enters the running mean; its gradient is exactly zero.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hta.models.kernels import LEAKY_SLOPE, PLAIN_KERNELS, Coverage, Kernels, Norm

# A layer's activations are kept for the backward pass up to this size; larger ones are recomputed.
_KEPT_BYTES = 64 << 20


class _NormLeakyConv(torch.autograd.Function):
    """Batch norm with weighted statistics, LeakyReLU and the next convolution, applied to several batches.

    The statistics are passed in, but the backward pass differentiates through them. `unused`, the bias of the
    convolution before the norm, gets a gradient of zero. With many images, the activations between norm and convolution
    are recomputed in the backward pass: this is cheap compared with the convolutions and halves the memory needed for
    training.
    """

    @staticmethod
    def forward(ctx, kernels, coverage, eps, mean, var, gamma, beta, unused, weight, bias, *batches):
        norm = Norm(mean, var, gamma, beta, eps)
        activations = kernels.norm_leaky(batches, norm)
        kept = activations if sum(a.nbytes for a in activations) <= _KEPT_BYTES else []
        ctx.save_for_backward(mean, var, gamma, beta, unused, weight, *batches, *kept)
        ctx.kernels, ctx.coverage, ctx.eps, ctx.num_batches = kernels, coverage, eps, len(batches)
        return tuple(kernels.convolve(activations, weight, bias))

    @staticmethod
    def backward(ctx, *grads):
        mean, var, gamma, beta, unused, weight, *rest = ctx.saved_tensors
        batches, activations = rest[: ctx.num_batches], rest[ctx.num_batches :]
        norm = Norm(mean, var, gamma, beta, ctx.eps)
        activations = activations or ctx.kernels.norm_leaky(batches, norm)
        through = ctx.kernels.convolve_backward(grads, activations, weight, ctx.needs_input_grad[8:10])
        into = ctx.kernels.norm_leaky_backward(through.inputs, batches, activations, ctx.coverage, norm)
        of_norm = into.gamma, into.beta, torch.zeros_like(unused)
        return None, None, None, None, None, *of_norm, through.weight, through.bias, *into.inputs


class _Convolution(nn.Conv2d):
    bias: Tensor


class _BatchNorm(nn.BatchNorm2d):
    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor


class ConvNormLeaky(nn.Module):
    """Convolution without padding, batch norm and LeakyReLU(0.2), applied to a list of batches.

    Args:
        in_channels, out_channels: of the convolution.
        ker_size: side of its kernel, pixels.
        kernels: the implementation used in training mode.
    """

    def __init__(self, in_channels: int, out_channels: int, ker_size: int, kernels: Kernels):
        super().__init__()
        self.kernels = kernels
        self.conv = _Convolution(in_channels, out_channels, ker_size)
        self.norm = _BatchNorm(out_channels)

    def activate_and_convolve(
        self, products: Sequence[Tensor], coverage: Coverage, weight: Tensor, bias: Tensor | None
    ) -> list[Tensor]:
        """Apply norm, LeakyReLU and the following convolution in training mode.

        Args:
            products: of this block's convolution without its bias, `(B, C', h, w)` each.
            coverage: counts of their positions.
            weight, bias: of the following convolution, float32.

        Returns:
            One tensor per batch: the products of the next block, or the output of the body.
        """
        norm, total = self.norm, coverage.total
        with torch.no_grad():
            mean, var = self.kernels.moments(products, coverage)
            norm.running_mean.lerp_(mean + self.conv.bias, norm.momentum)
            norm.running_var.lerp_(var * (total / (total - 1)), norm.momentum)
            norm.num_batches_tracked += 1
        constants = (self.kernels, coverage, norm.eps, mean, var, norm.weight, norm.bias, self.conv.bias)
        return list(_NormLeakyConv.apply(*constants, weight, bias, *products))

    def forward(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """Apply the frozen block to `(B, C, H, W)` channels-last tensors of one dtype."""
        norm = self.norm
        frozen = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        products = PLAIN_KERNELS.convolve(batches, self.conv.weight, self.conv.bias)
        return [F.leaky_relu(F.batch_norm(product, *frozen, eps=norm.eps), LEAKY_SLOPE) for product in products]


class ConvBody(nn.Module):
    """The layers shared by generators and discriminators: convolution blocks, then a bare convolution.

    Args:
        in_channels: of the input.
        width: channels of all hidden layers.
        out_channels: of the last convolution.
        ker_size: side of the kernels, pixels.
        num_layer: number of convolutions.
        kernels: the implementation used in training mode.

    Attributes:
        margin: pixels that the whole body trims from every side.
        block_margins: pixels trimmed from every side up to and including each block.
    """

    def __init__(
        self, in_channels: int, width: int, out_channels: int, ker_size: int, num_layer: int, kernels: Kernels
    ):
        super().__init__()
        channels = [in_channels] + [width] * (num_layer - 1)
        blocks = nn.ModuleList(ConvNormLeaky(before, after, ker_size, kernels) for before, after in pairwise(channels))
        self.blocks = cast(Sequence[ConvNormLeaky], blocks)
        self.tail = _Convolution(width, out_channels, ker_size)
        self.margin = num_layer * (ker_size // 2)
        self.block_margins = [depth * (ker_size // 2) for depth in range(1, num_layer)]

    def set_momentum(self, momentum: float) -> None:
        """Set the weight of a new batch in the running statistics of all layers, a value in (0, 1]."""
        for block in self.blocks:
            block.norm.momentum = momentum

    def forward(self, batches: Sequence[Tensor], coverages: Sequence[Coverage] | None = None) -> list[Tensor]:
        """Apply all layers.

        Args:
            batches: `(B, C, H, W)` channels-last tensors of one dtype.
            coverages: one per block; required in training mode.

        Returns:
            One `(B, C', H - 2m, W - 2m)` tensor per batch, m the margin.

        Raises:
            ValueError: training mode without coverages.
        """
        if self.training:
            if coverages is None:
                raise ValueError("coverages: required in training mode")
            return self._train(batches, coverages)
        for block in self.blocks:
            batches = block(batches)
        return PLAIN_KERNELS.convolve(batches, self.tail.weight, self.tail.bias)

    def _train(self, batches: Sequence[Tensor], coverages: Sequence[Coverage]) -> list[Tensor]:
        products = PLAIN_KERNELS.convolve(batches, self.blocks[0].conv.weight)  # the norm would cancel the bias
        weights = [block.conv.weight for block in self.blocks[1:]] + [self.tail.weight]
        biases = [None] * (len(self.blocks) - 1) + [self.tail.bias]
        for block, coverage, weight, bias in zip(self.blocks, coverages, weights, biases, strict=True):
            products = block.activate_and_convolve(products, coverage, weight, bias)
        return products


def init_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise the weights (paper, section 4): convolutions N(0, 0.02), batch-norm scales N(1, 0.02), shifts 0.

    Args:
        module: a network; its convolution biases are drawn as PyTorch does, uniform in +-1/sqrt(fan in).
        generator: source of all random numbers.
    """
    for part in module.modules():
        if isinstance(part, _Convolution):
            bound = (part.in_channels * part.kernel_size[0] * part.kernel_size[1]) ** -0.5
            nn.init.normal_(part.weight, 0.0, 0.02, generator=generator)
            nn.init.uniform_(part.bias, -bound, bound, generator=generator)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, 0.02, generator=generator)
            nn.init.zeros_(part.bias)
