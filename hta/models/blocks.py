"""Convolution, batch norm and LeakyReLU, as they work on batches of windows drawn as shared canvases.

In training, batch norm must see what the windows see: on a canvas, mean and variance are weighted by how many windows
hold a position. The convolution's bias cancels in the normalisation, so it is left out of the product and enters the
running mean alone; its gradient is zero, as it is by definition.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAKY_SLOPE = 0.2
# Statistics of 16-bit activations are summed in float32, in pieces of this many values that stay in the caches.
_PIECE = 1 << 19


@dataclass(frozen=True)
class Coverage:
    """How often each position of a layer's feature maps counts: a constant of a scale.

    Attributes:
        weights: one `(B, h * w)` float tensor of counts a batch, in the type of the statistics.
        maps: the same as `(B, 1, h, w)` in the type of the activations.
        total: the sum of all counts.
    """

    weights: tuple[Tensor, ...]
    maps: tuple[Tensor, ...]
    total: int

    @classmethod
    def of_counts(
        cls, counts: Sequence[Tensor], num_images: int, dtype: torch.dtype, device: torch.device
    ) -> "Coverage":
        """Repeat maps of counts for several images.

        Args:
            counts: one `(G, h, w)` tensor a batch.
            num_images: images that follow each other for every map.
            dtype: of the activations.
            device: of the result.
        """
        repeated = [c.repeat_interleave(num_images, dim=0).to(device, statistics_dtype(dtype)) for c in counts]
        return cls(
            weights=tuple(c.flatten(1) for c in repeated),
            maps=tuple(c.unsqueeze(1).to(dtype) for c in repeated),
            total=round(sum(float(c.sum(dtype=torch.float64)) for c in repeated)),
        )


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that statistics and losses are computed in: float32, or float64 for float64 activations."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def weighted_moments(batches: Sequence[Tensor], coverage: Coverage) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over all windows.

    Args:
        batches: `(B, C, h, w)` channels-last tensors.
        coverage: counts of their positions.

    Returns:
        Two `(C,)` tensors in the type of the statistics.
    """
    channels = batches[0].shape[1]
    dtype = statistics_dtype(batches[0].dtype)
    # Moments are taken about some value of the channel: on nearly flat features they would cancel otherwise.
    pivot = batches[0][0, :, 0, 0].to(dtype)
    first, second = torch.zeros_like(pivot), torch.zeros_like(pivot)
    for batch, weights in zip(batches, coverage.weights, strict=True):
        rows = batch.permute(0, 2, 3, 1).reshape(-1, channels)
        for piece, weight in zip(
            rows.split(max(1, _PIECE // channels)),
            weights.view(-1).split(max(1, _PIECE // channels)),
            strict=True,
        ):
            values = piece - pivot  # in the type of the statistics, by promotion
            first += weight @ values
            second += weight @ values.square()
    offset = first / coverage.total
    return pivot + offset, (second / coverage.total - offset.square()).clamp_(min=0)


class _NormLeakyConv(torch.autograd.Function):
    """Batch norm with given, differentiated weighted statistics, LeakyReLU and the next convolution, over batches.

    What lies between norm and convolution is made again in the backward pass: that costs little beside the
    convolutions, and it halves the memory that training takes.
    """

    @staticmethod
    def forward(ctx, coverage, eps, mean, var, gamma, beta, weight, bias, *batches):
        ctx.save_for_backward(mean, var, gamma, beta, weight, *batches)
        ctx.coverage, ctx.eps = coverage, eps
        return tuple(
            F.conv2d(_norm_leaky(batch, mean, var, gamma, beta, eps), *_cast((weight, bias), batch.dtype))
            for batch in batches
        )

    @staticmethod
    def backward(ctx, *grads):
        mean, var, gamma, beta, weight, *batches = ctx.saved_tensors
        needs_weight, needs_bias = ctx.needs_input_grad[6:8]
        grad_inputs, grad_gamma, grad_beta = [], torch.zeros_like(mean), torch.zeros_like(mean)
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = weight.new_zeros(len(weight)) if needs_bias else None
        (kernel,) = _cast((weight,), batches[0].dtype)
        for grad, batch in zip(grads, batches, strict=True):
            activation = _norm_leaky(batch, mean, var, gamma, beta, ctx.eps)
            through, to_weight, to_bias = torch.ops.aten.convolution_backward(
                grad.contiguous(memory_format=torch.channels_last), activation, kernel, [len(weight)],
                [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, needs_weight, needs_bias],
            )  # fmt: skip
            if needs_weight:
                grad_weight += to_weight
            if needs_bias:
                grad_bias += to_bias
            # The slope is positive, so the output has the sign of the input of LeakyReLU.
            through = torch.ops.aten.leaky_relu_backward(through, activation, LEAKY_SLOPE, True)
            grad_input, partial_gamma, partial_beta = torch.ops.aten.native_batch_norm_backward(
                through, batch, gamma, mean, var, None, None, False, ctx.eps, [True, True, True]
            )
            grad_inputs.append(grad_input)
            grad_gamma += partial_gamma
            grad_beta += partial_beta
        _subtract_statistics_gradient(
            grad_inputs, batches, ctx.coverage, ctx.eps, mean, var, gamma, grad_gamma, grad_beta
        )
        return None, None, None, None, grad_gamma, grad_beta, grad_weight, grad_bias, *grad_inputs


def _norm_leaky(batch: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    normed = torch.native_batch_norm(batch, gamma, beta, mean, var, False, 0.0, eps)[0]
    return F.leaky_relu_(normed, LEAKY_SLOPE)


def _cast(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def _subtract_statistics_gradient(grad_inputs, batches, coverage, eps, mean, var, gamma, grad_gamma, grad_beta) -> None:
    """Add, in place, what flows through the mean and the variance.

    With weights w of sum W: dL/dx = gamma / std * (g - w / W * (sum g + xhat * sum(g xhat))).
    """
    factor = gamma * torch.rsqrt(var + eps) / coverage.total
    for grad_input, batch, weight in zip(grad_inputs, batches, coverage.maps, strict=True):
        through = torch.native_batch_norm(batch, factor * grad_gamma, factor * grad_beta, mean, var, False, 0.0, eps)[0]
        grad_input.addcmul_(through, weight, value=-1)


class ConvNormLeaky(nn.Module):
    """Convolution without padding, batch norm, LeakyReLU(0.2), over a list of batches.

    Args:
        in_channels, out_channels: of the convolution.
        ker_size: side of its kernel, pixels.
    """

    def __init__(self, in_channels: int, out_channels: int, ker_size: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, ker_size)
        self.norm = nn.BatchNorm2d(out_channels)

    def convolve(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """The convolution alone, without the bias, which the norm would cancel."""
        weight = self.conv.weight.to(batches[0].dtype)
        return [F.conv2d(batch, weight) for batch in batches]

    def activate_and_convolve(
        self, products: Sequence[Tensor], coverage: Coverage, weight: Tensor, bias: Tensor | None
    ) -> list[Tensor]:
        """In training mode: norm, LeakyReLU, and the convolution that follows.

        Args:
            products: from `convolve` or the block before, `(B, C', h, w)` each.
            coverage: counts of their positions.
            weight, bias: of the convolution that follows, float32.

        Returns:
            One tensor a batch: the products of the next block, or the output of the body.
        """
        with torch.no_grad():
            mean, var = weighted_moments(products, coverage)
            self._update_running(mean, var, coverage.total)
        # The bias is given a gradient of exactly zero.
        beta = self.norm.bias + 0 * self.conv.bias
        return list(
            _NormLeakyConv.apply(coverage, self.norm.eps, mean, var, self.norm.weight, beta, weight, bias, *products)
        )

    def forward(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """Apply the frozen block to `(B, C, H, W)` channels-last tensors of one dtype."""
        weight, bias = _cast((self.conv.weight, self.conv.bias), batches[0].dtype)
        return [self._normalise_frozen(F.conv2d(batch, weight, bias)) for batch in batches]

    def _normalise_frozen(self, product: Tensor) -> Tensor:
        norm = self.norm
        normed = F.batch_norm(product, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return F.leaky_relu(normed, LEAKY_SLOPE)

    def _update_running(self, mean: Tensor, var: Tensor, total: int) -> None:
        norm = self.norm
        norm.running_mean.lerp_(mean + self.conv.bias, norm.momentum)
        norm.running_var.lerp_(var * (total / (total - 1)), norm.momentum)
        norm.num_batches_tracked += 1


class ConvBody(nn.Module):
    """The body that generators and discriminators share: blocks of convolutions, then a bare convolution.

    Args:
        in_channels: of the input.
        width: channels of all hidden layers.
        out_channels: of the last convolution.
        ker_size: side of the kernels, pixels.
        num_layer: number of convolutions.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int, ker_size: int, num_layer: int):
        super().__init__()
        channels = [in_channels] + [width] * (num_layer - 1)
        self.blocks = nn.ModuleList(ConvNormLeaky(before, after, ker_size) for before, after in pairwise(channels))
        self.tail = nn.Conv2d(width, out_channels, ker_size)

    def set_momentum(self, momentum: float) -> None:
        """Set the weight of a new batch in the running statistics of all layers, in (0, 1]."""
        for block in self.blocks:
            block.norm.momentum = momentum

    def forward(self, batches: Sequence[Tensor], coverages: Sequence[Coverage] | None = None) -> list[Tensor]:
        """Apply all layers.

        Args:
            batches: `(B, C, H, W)` channels-last tensors of one dtype.
            coverages: one a block, in training mode.

        Returns:
            One `(B, C', H - 2m, W - 2m)` tensor a batch, m the margin.
        """
        if self.training:
            return self._train(batches, coverages)
        for block in self.blocks:
            batches = block(batches)
        weight, bias = _cast((self.tail.weight, self.tail.bias), batches[0].dtype)
        return [F.conv2d(batch, weight, bias) for batch in batches]

    def _train(self, batches: Sequence[Tensor], coverages: Sequence[Coverage]) -> list[Tensor]:
        products = self.blocks[0].convolve(batches)
        following = [(block.conv.weight, None) for block in self.blocks[1:]] + [(self.tail.weight, self.tail.bias)]
        for block, coverage, (weight, bias) in zip(self.blocks, coverages, following, strict=True):
            products = block.activate_and_convolve(products, coverage, weight, bias)
        return products


def init_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights anew (paper, section 4): convolutions N(0, 0.02), batch-norm scales N(1, 0.02), shifts 0.

    Args:
        module: a network; its convolution biases are drawn as the framework does, uniform in +-1/sqrt(fan in).
        generator: the source of all draws.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            bound = (part.in_channels * part.kernel_size[0] * part.kernel_size[1]) ** -0.5
            nn.init.normal_(part.weight, 0.0, 0.02, generator=generator)
            nn.init.uniform_(part.bias, -bound, bound, generator=generator)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, 0.02, generator=generator)
            nn.init.zeros_(part.bias)
