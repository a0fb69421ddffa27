"""The training operations: convolution, weighted batch norm, LeakyReLU and cross-entropy, with gradients.

Those between the convolutions are limited by memory bandwidth and by the number of calls: they use few passes over the
data. `Kernels` consists of torch operators and runs on any device; `hta.models.native` implements the same in C for
CPUs, with a single pass each. The tests compare both with the formulas.

In training, batch norm must use the statistics of the windows: on a canvas, mean and variance are weighted by the
number of windows that cover each position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hta.models.canvas import CanvasPlan
from hta.models.winograd import Winograd, channels_last

LEAKY_SLOPE = 0.2


@dataclass(frozen=True)
class Coverage:
    """How often each position of a layer's feature maps counts; constant for a scale.

    Attributes:
        weights: one `(B, h, w)` tensor of counts per batch, in the type of the statistics.
        maps: the same as `(B, 1, h, w)`, in the type of the activations.
        total: the sum of all counts.
    """

    weights: tuple[Tensor, ...]
    maps: tuple[Tensor, ...]
    total: int

    @classmethod
    def of_counts(
        cls, counts: Sequence[Tensor], num_images: int, dtype: torch.dtype, device: torch.device
    ) -> "Coverage":
        """Repeat the maps of counts, `(G, h, w)` per batch, for `num_images` consecutive images each."""
        repeated = [c.repeat_interleave(num_images, dim=0).to(device, statistics_dtype(dtype)) for c in counts]
        return cls(
            weights=tuple(repeated),
            maps=tuple(c.unsqueeze(1).to(dtype) for c in repeated),
            total=round(sum(float(c.sum(dtype=torch.float64)) for c in repeated)),
        )


class Norm(NamedTuple):
    """A batch norm with its statistics: `(C,)` tensors, float32 at least.

    Attributes:
        mean, var: of every channel, over all windows; the variance biased.
        gamma, beta: scale and shift.
        eps: added to the variance.
    """

    mean: Tensor
    var: Tensor
    gamma: Tensor
    beta: Tensor
    eps: float


class NormGradients(NamedTuple):
    """The gradients of LeakyReLU(norm(x)), through the statistics too: per input batch, and `(C,)` for both others."""

    inputs: list[Tensor]
    gamma: Tensor
    beta: Tensor


class ConvolutionGradients(NamedTuple):
    """The gradients of a convolution, per input batch, and those of weight and bias; None where not wanted."""

    inputs: list[Tensor]
    weight: Tensor | None
    bias: Tensor | None


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which statistics and losses are computed: float32, or float64 for float64 activations."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Kernels:
    """The implementation in torch operators."""

    description = "torch's own operators"
    winograd: Winograd | None = None

    def render(self, plan: CanvasPlan, images: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Draw the canvases of `(N, 3, h, w)` images as `CanvasPlan.render` does, in a type."""
        return [batch.to(dtype) for batch in plan.render(images)]

    def convolve(self, batches: Sequence[Tensor], weight: Tensor, bias: Tensor | None = None) -> list[Tensor]:
        """Convolve channels-last batches of one type without padding, in that type."""
        weight, bias = weight.to(batches[0].dtype), None if bias is None else bias.to(batches[0].dtype)
        return [F.conv2d(batch, weight, bias) for batch in batches]

    def convolve_backward(
        self, grads: Sequence[Tensor], inputs: Sequence[Tensor], weight: Tensor, wanted: tuple[bool, bool]
    ) -> ConvolutionGradients:
        """Backward pass of `convolve` over all batches.

        Args:
            grads: of the outputs, one `(B, C', h, w)` tensor per batch.
            inputs: of `convolve`, channels-last.
            weight: as in `convolve`.
            wanted: whether the gradients of weight and bias are needed.
        """
        needs_weight, needs_bias = wanted
        kernel = weight.to(inputs[0].dtype)
        parts = [
            torch.ops.aten.convolution_backward(
                channels_last(grad), x, kernel, [len(weight)],
                [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, needs_weight, needs_bias],
            )
            for grad, x in zip(grads, inputs, strict=True)
        ]  # fmt: skip
        grad_inputs, grad_weights, grad_biases = zip(*parts, strict=True)
        return ConvolutionGradients(
            list(grad_inputs),
            sum(part.to(weight.dtype) for part in grad_weights) if needs_weight else None,
            sum(part.to(weight.dtype) for part in grad_biases) if needs_bias else None,
        )

    def moments(self, batches: Sequence[Tensor], coverage: Coverage) -> tuple[Tensor, Tensor]:
        """Compute mean and biased variance of each channel over all windows.

        Args:
            batches: `(B, C, h, w)` channels-last tensors.
            coverage: counts of their positions.

        Returns:
            Two `(C,)` tensors in the type of the statistics.
        """
        dtype = statistics_dtype(batches[0].dtype)
        pivot = _pivot_of(batches)
        first, second = pivot.new_zeros(pivot.shape, dtype=dtype), pivot.new_zeros(pivot.shape, dtype=dtype)
        for batch, counts in zip(batches, coverage.maps, strict=True):
            offsets = batch.permute(0, 2, 3, 1) - pivot
            first += _weighted_sum(offsets, counts, dtype)
            second += _weighted_sum(offsets.square_(), counts, dtype)
        return _mean_and_variance(pivot, first, second, coverage.total)

    def norm_leaky(self, batches: Sequence[Tensor], norm: Norm) -> list[Tensor]:
        """Apply batch norm with given statistics, then LeakyReLU, to `(B, C, h, w)` channels-last tensors."""
        mean, var, gamma, beta, eps = norm
        normed = (torch.native_batch_norm(batch, gamma, beta, mean, var, False, 0.0, eps)[0] for batch in batches)
        return [F.leaky_relu_(batch, LEAKY_SLOPE) for batch in normed]

    def norm_leaky_backward(
        self,
        grads: Sequence[Tensor],
        batches: Sequence[Tensor],
        activations: Sequence[Tensor],
        coverage: Coverage,
        norm: Norm,
    ) -> NormGradients:
        """Backward pass of `norm_leaky` over all batches, including the gradient through the statistics.

        With counts w of sum W: dL/dx = gamma / std * (g - w / W * (sum g + xhat * sum(g xhat))).

        Args:
            grads: of the activations, one `(B, C, h, w)` channels-last tensor per batch; overwritten.
            batches, activations: input and output of `norm_leaky`.
            coverage: counts of their positions.
            norm: as in `norm_leaky`.
        """
        mean, var, gamma, _, eps = norm
        inputs, grad_gamma, grad_beta = [], torch.zeros_like(mean), torch.zeros_like(mean)
        for grad, batch, activation in zip(grads, batches, activations, strict=True):
            # The slope is positive, so the output of LeakyReLU has the sign of its input.
            through = torch.ops.aten.leaky_relu_backward(grad, activation, LEAKY_SLOPE, True)
            grad_input, partial_gamma, partial_beta = torch.ops.aten.native_batch_norm_backward(
                through, batch, gamma, mean, var, None, None, False, eps, [True, True, True]
            )
            inputs.append(grad_input)
            grad_gamma += partial_gamma
            grad_beta += partial_beta
        factor = gamma * torch.rsqrt(var + eps) / coverage.total
        statistics = (factor * grad_gamma, factor * grad_beta, mean, var, False, 0.0, eps)
        for grad_input, batch, counts in zip(inputs, batches, coverage.maps, strict=True):
            grad_input.addcmul_(torch.native_batch_norm(batch, *statistics)[0], counts, value=-1)
        return NormGradients(inputs, grad_gamma, grad_beta)

    def cross_entropy(self, logits: Tensor, hits: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the sum over positions and classes of hits * -log softmax(logits), and its gradient.

        Args:
            logits: `(..., K)`.
            hits: how often each class is the correct one, uint8, of a broadcastable shape.
            counts: the sum of `hits` over the classes, `(..., 1)`, in the type of the statistics.

        Returns:
            The sum, a scalar in the type of the statistics, and the gradient, of the shape and type of the logits.
        """
        log_p = F.log_softmax(logits, dim=-1, dtype=counts.dtype)
        value = -(log_p * hits).sum()
        return value, log_p.exp_().mul_(counts).sub_(hits).to(logits.dtype)


def _pivot_of(batches: Sequence[Tensor]) -> Tensor:
    """A rough mean of every channel, `(C,)`, as the origin of moments: avoids cancellation on nearly flat features."""
    return batches[0][0].mean(dim=(1, 2))


def _weighted_sum(rows: Tensor, counts: Tensor, dtype: torch.dtype) -> Tensor:
    """`(C,)` sums of `(B, h, w, C)` values times `(B, 1, h, w)` counts; each row sum is rounded once, in their type."""
    width = rows.shape[2]
    sums = torch.bmm(counts.view(-1, 1, width), rows.reshape(-1, width, rows.shape[-1]))
    return sums.sum(dim=(0, 1), dtype=dtype)


def _mean_and_variance(pivot: Tensor, first: Tensor, second: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Mean and variance from the weighted sums of (x - pivot) and (x - pivot)^2."""
    offset = first / total
    return pivot + offset, (second / total - offset.square()).clamp_(min=0)


PLAIN_KERNELS = Kernels()
