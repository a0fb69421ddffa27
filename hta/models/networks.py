"""The generator and the discriminator of one scale (paper, sections 3.1 and 3.2)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hta.models.blocks import ConvBody
from hta.models.canvas import CanvasPlan
from hta.models.kernels import PLAIN_KERNELS, Coverage, Kernels, statistics_dtype

_IMAGE_CHANNELS = 3


class Generator(nn.Module):
    """Adds the detail of one scale to the upsampled image of the next coarser scale.

    Args:
        width: channels of the hidden layers.
        ker_size: side of the kernels, pixels.
        num_layer: number of convolutions.
        compute_dtype: of the activations; the output is float32 (float64 for float64).
        kernels: the implementation used in training mode.
    """

    def __init__(
        self,
        width: int,
        ker_size: int,
        num_layer: int,
        compute_dtype: torch.dtype = torch.float32,
        kernels: Kernels = PLAIN_KERNELS,
    ):
        super().__init__()
        self.body = ConvBody(_IMAGE_CHANNELS + 1, width, _IMAGE_CHANNELS, ker_size, num_layer, kernels)
        self.margin = self.body.margin
        self.compute_dtype = compute_dtype

    def coverages(self, num_images: int, size: tuple[int, int], device: torch.device) -> list[Coverage]:
        """Batch-norm counts for training mode, one per block: every position of all images counts once."""
        height, width = (side + 2 * self.margin for side in size)
        shapes = [(num_images, height - 2 * trim, width - 2 * trim) for trim in self.body.block_margins]
        return [Coverage.of_counts([torch.ones(shape)], 1, self.compute_dtype, device) for shape in shapes]

    def forward(
        self, noise: Tensor, previous: Tensor, index: Tensor, coverages: Sequence[Coverage] | None = None
    ) -> Tensor:
        """Generate images.

        Args:
            noise: `(B, 3, h, w)`, already multiplied by the noise amplitude.
            previous: `(B, 3, h, w)` in [-1, 1], the upsampled image of the next coarser scale; zero at the coarsest.
            index: `(B,)` numbers of the training images, 0 to N - 1.
            coverages: from `coverages`; required in training mode.

        Returns:
            `(B, 3, h, w)`, not clamped: values in [-2, 2].
        """
        padded = F.pad(noise + previous, [self.margin] * 4)
        channel = index.to(padded).view(-1, 1, 1, 1).expand(-1, 1, *padded.shape[-2:])
        batch = torch.cat([padded, channel], dim=1).to(self.compute_dtype, memory_format=torch.channels_last)
        (detail,) = self.body([batch], coverages)
        return torch.tanh(detail.to(statistics_dtype(detail.dtype))) + previous


class Discriminator(nn.Module):
    """Classifies every patch as one of M transformations or as "fake" (the last class).

    Args:
        width: channels of the hidden layers.
        num_classes: M + 1.
        ker_size: side of the kernels, pixels.
        num_layer: number of convolutions.
        compute_dtype: of the activations and logits.
        kernels: the implementation used in training mode.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        ker_size: int,
        num_layer: int,
        compute_dtype: torch.dtype = torch.float32,
        kernels: Kernels = PLAIN_KERNELS,
    ):
        super().__init__()
        self.body = ConvBody(_IMAGE_CHANNELS, width, num_classes, ker_size, num_layer, kernels)
        self.num_classes = num_classes
        self.margin = self.body.margin
        self.compute_dtype = compute_dtype

    def coverages(self, plan: CanvasPlan, num_images: int, device: torch.device) -> list[Coverage]:
        """Batch-norm counts on a plan's canvases of N images in training mode, one per block."""
        counts = [[group.coverage(trim) for group in plan.groups] for trim in self.body.block_margins]
        return [Coverage.of_counts(maps, num_images, self.compute_dtype, device) for maps in counts]

    def forward(self, batches: Sequence[Tensor], coverages: Sequence[Coverage] | None = None) -> list[Tensor]:
        """Classify patches.

        Args:
            batches: `(B, 3, H, W)` images or canvases in [-1, 1], of any sizes.
            coverages: from `coverages`; required in training mode.

        Returns:
            One `(B, M + 1, H - 2m, W - 2m)` tensor of logits per batch, m the margin (5).
        """
        batches = [batch.to(self.compute_dtype, memory_format=torch.channels_last) for batch in batches]
        return self.body(batches, coverages)
