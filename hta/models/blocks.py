"""Convolution, batch norm and LeakyReLU, as they work on batches of windows drawn as shared canvases.

In training, batch norm must see what the windows see: on a canvas, mean and variance are weighted by how many windows
hold a position. The convolution's bias cancels in the normalisation, so it is left out of the product and enters the
running mean alone; its gradient is zero, as it is by definition.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hta.models.kernels import LEAKY_SLOPE, Coverage, Kernels, Norm

# Activations up to this size, of one layer, are kept for the backward pass; larger ones are made again.
_KEPT_BYTES = 64 << 20


class _NormLeakyConv(torch.autograd.Function):
    """Batch norm with given, differentiated weighted statistics, LeakyReLU and the next convolution, over batches.

    Where there are many images, what lies between norm and convolution is made again in the backward pass: that costs
    little beside the convolutions, and it halves the memory that training takes.
    """

    @staticmethod
    def forward(ctx, kernels, coverage, eps, mean, var, gamma, beta, weight, bias, *batches):
        norm = Norm(mean, var, gamma, beta, eps)
        activations = kernels.norm_leaky(batches, norm)
        kept = activations if sum(a.nbytes for a in activations) <= _KEPT_BYTES else []
        ctx.save_for_backward(mean, var, gamma, beta, weight, *batches, *kept)
        ctx.kernels, ctx.coverage, ctx.eps, ctx.num_batches = kernels, coverage, eps, len(batches)
        kernel = _cast((weight, bias), batches[0].dtype)
        return tuple(F.conv2d(activation, *kernel) for activation in activations)

    @staticmethod
    def backward(ctx, *grads):
        mean, var, gamma, beta, weight, *rest = ctx.saved_tensors
        batches, activations = rest[: ctx.num_batches], rest[ctx.num_batches :]
        norm = Norm(mean, var, gamma, beta, ctx.eps)
        activations = activations or ctx.kernels.norm_leaky(batches, norm)
        through, grad_weight, grad_bias = _convolution_backward(grads, activations, weight, ctx.needs_input_grad[7:9])
        into = ctx.kernels.norm_leaky_backward(through, batches, activations, ctx.coverage, norm)
        return None, None, None, None, None, into.gamma, into.beta, grad_weight, grad_bias, *into.inputs


def _convolution_backward(
    grads: Sequence[Tensor], inputs: Sequence[Tensor], weight: Tensor, wanted: tuple[bool, bool]
) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
    """Backwards through a convolution of several batches.

    Args:
        grads: of its outputs.
        inputs: channels-last.
        weight: float32 at least, as its gradient will be.
        wanted: whether the gradients of weight and bias are.

    Returns:
        Gradients of the inputs, of the weight and of the bias, None if not wanted.
    """
    needs_weight, needs_bias = wanted
    (kernel,) = _cast((weight,), inputs[0].dtype)
    parts = [
        torch.ops.aten.convolution_backward(
            grad.contiguous(memory_format=torch.channels_last), x, kernel, [len(weight)],
            [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, needs_weight, needs_bias],
        )
        for grad, x in zip(grads, inputs, strict=True)
    ]  # fmt: skip
    grad_inputs, grad_weights, grad_biases = zip(*parts, strict=True)
    return (
        list(grad_inputs),
        sum(part.to(weight.dtype) for part in grad_weights) if needs_weight else None,
        sum(part.to(weight.dtype) for part in grad_biases) if needs_bias else None,
    )


def _cast(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


class ConvNormLeaky(nn.Module):
    """Convolution without padding, batch norm, LeakyReLU(0.2), over a list of batches.

    Args:
        in_channels, out_channels: of the convolution.
        ker_size: side of its kernel, pixels.
        kernels: what training mode computes with.
    """

    def __init__(self, in_channels: int, out_channels: int, ker_size: int, kernels: Kernels):
        super().__init__()
        self.kernels = kernels
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
            mean, var = self.kernels.moments(products, coverage)
            self._update_running(mean, var, coverage.total)
        # The bias is given a gradient of exactly zero.
        beta = self.norm.bias + 0 * self.conv.bias
        norm = (self.norm.eps, mean, var, self.norm.weight, beta)
        return list(_NormLeakyConv.apply(self.kernels, coverage, *norm, weight, bias, *products))

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
        kernels: what training mode computes with.
    """

    def __init__(
        self, in_channels: int, width: int, out_channels: int, ker_size: int, num_layer: int, kernels: Kernels
    ):
        super().__init__()
        channels = [in_channels] + [width] * (num_layer - 1)
        self.blocks = nn.ModuleList(
            ConvNormLeaky(before, after, ker_size, kernels) for before, after in pairwise(channels)
        )
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
