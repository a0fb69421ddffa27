"""The generator of one scale (paper, section 3.2)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hta.models.blocks import ConvBody
from hta.models.kernels import PLAIN_KERNELS, Coverage, Kernels, statistics_dtype

_IMAGE_CHANNELS = 3


class Generator(nn.Module):
    """Adds the detail of one scale to the upsampled image of the scale below.

    Args:
        width: channels of the hidden layers.
        ker_size: side of the kernels, pixels.
        num_layer: number of convolutions.
        compute_dtype: of the activations; the output is float32 (float64 for float64).
        kernels: what training mode computes with.
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
        self.margin = num_layer * (ker_size // 2)
        self.compute_dtype = compute_dtype

    def coverages(self, num_images: int, size: tuple[int, int], device: torch.device) -> list[Coverage]:
        """Counts for batch norm in training mode: every position of every image counts once.

        Args:
            num_images: images in a batch.
            size: (height, width) of the images, pixels.
            device: of the counts.
        """
        shrink = 2 * self.margin // (len(self.body.blocks) + 1)
        height, width = (side + 2 * self.margin for side in size)
        shapes = [(num_images, height - shrink * d, width - shrink * d) for d in range(1, len(self.body.blocks) + 1)]
        return [Coverage.of_counts([torch.ones(shape)], 1, self.compute_dtype, device) for shape in shapes]

    def forward(
        self, noise: Tensor, previous: Tensor, index: Tensor, coverages: Sequence[Coverage] | None = None
    ) -> Tensor:
        """Generate images.

        Args:
            noise: `(B, 3, h, w)`, already scaled by the noise amplitude.
            previous: `(B, 3, h, w)` in [-1, 1], the upsampled image of the scale below; zero at the coarsest.
            index: `(B,)` numbers of the training images, 0 to N - 1.
            coverages: from `coverages`, in training mode.

        Returns:
            `(B, 3, h, w)`, not clamped: up to [-2, 2].
        """
        padded = F.pad(noise + previous, [self.margin] * 4)
        channel = index.to(padded).view(-1, 1, 1, 1).expand(-1, 1, *padded.shape[-2:])
        batch = torch.cat([padded, channel], dim=1).to(self.compute_dtype, memory_format=torch.channels_last)
        (detail,) = self.body([batch], coverages)
        return torch.tanh(detail.to(statistics_dtype(detail.dtype))) + previous
