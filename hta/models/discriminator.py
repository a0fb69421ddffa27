"""The discriminator of one scale (paper, section 3.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hta.models.blocks import ConvBody
from hta.models.canvas import CanvasPlan
from hta.models.kernels import PLAIN_KERNELS, Coverage, Kernels


class Discriminator(nn.Module):
    """Names, for every patch, which of M transformations it went through, or "fake" (the last class).

    Args:
        width: channels of the hidden layers.
        num_classes: M + 1.
        ker_size: side of the kernels, pixels.
        num_layer: number of convolutions.
        compute_dtype: of the activations and logits.
        kernels: what training mode computes with.
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
        self.body = ConvBody(3, width, num_classes, ker_size, num_layer, kernels)
        self.num_classes = num_classes
        self.margin = num_layer * (ker_size // 2)
        self.compute_dtype = compute_dtype

    def coverages(self, plan: CanvasPlan, num_images: int, device: torch.device) -> list[Coverage]:
        """Counts for batch norm on a plan's canvases in training mode, one a block.

        Args:
            plan: the canvases.
            num_images: images drawn on each.
            device: of the counts.
        """
        step = self.margin // (len(self.body.blocks) + 1)
        return [
            Coverage.of_counts(
                [group.coverage(step * depth) for group in plan.groups], num_images, self.compute_dtype, device
            )
            for depth in range(1, len(self.body.blocks) + 1)
        ]

    def forward(self, batches: Sequence[Tensor], coverages: Sequence[Coverage] | None = None) -> list[Tensor]:
        """Classify patches.

        Args:
            batches: `(B, 3, H, W)` images or canvases in [-1, 1], of any sizes.
            coverages: from `coverages`, in training mode.

        Returns:
            One `(B, M + 1, H - 2m, W - 2m)` tensor of logits a batch, m the margin (5).
        """
        batches = [batch.to(self.compute_dtype, memory_format=torch.channels_last) for batch in batches]
        return self.body(batches, coverages)
