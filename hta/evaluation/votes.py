"""Votes of frozen discriminators: how likely every patch of an image finds each transformation (paper, section 3.3).

The windows of all transformations share canvases (`hta.models.canvas`). Batch norm is folded into the
convolutions once per model, the class "fake" is never computed, and drawing the canvases and reading the
windows is one gather each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hta.models.blocks import ConvNormLeaky
from hta.models.canvas import Canvas, CanvasGroup, CanvasPlan, plan_canvases
from hta.models.kernels import LEAKY_SLOPE, statistics_dtype
from hta.models.networks import Discriminator
from hta.models.pyramid import Pyramid
from hta.models.transforms import to_grayscale

# Matrix units work on so many channels at once: fewer logits cost more time, not less.
_CHANNEL_BLOCK = 16
# Activations of one pass: on a CPU they should stay in its caches, on a GPU they should fill it.
_PASS_BYTES = {"cpu": 32 << 20, "cuda": 1 << 30}


@dataclass(frozen=True)
class ScaleVotes:
    """What the discriminator of one scale says about images.

    Attributes:
        probabilities: `(B, M, h - 2m, w - 2m)` in [0, 1], m the margin: p_i of every patch of every transformed image,
            turned and flipped back, so that the M maps differ by their translations alone. Higher = more normal.
        image_size: (h, w) of the images.
        margin: m, pixels between a map's border and the image's.
    """

    probabilities: Tensor
    image_size: tuple[int, int]
    margin: int

    @property
    def num_transforms(self) -> int:
        """M, the number of transformations."""
        return self.probabilities.shape[1]


class FoldedDiscriminator:
    """A frozen discriminator as bare convolutions, without the class "fake".

    Args:
        discriminator: trained; what it holds is copied, its running statistics are folded in.
        fused: whether convolution and LeakyReLU run as one kernel; by default wherever there is one.
    """

    def __init__(self, discriminator: Discriminator, fused: bool | None = None):
        self.dtype = discriminator.compute_dtype
        self.device = discriminator.body.tail.weight.device
        self.margin = discriminator.margin
        self.width = discriminator.body.tail.in_channels
        self.num_transforms = discriminator.num_classes - 1
        self._fused = has_fused_kernel(self.device, self.dtype) if fused is None else fused
        self._hidden = [self._placed(*_fold(block)) for block in discriminator.body.blocks]
        self._tail = self._placed(*self._votes_only(discriminator.body.tail))

    def _placed(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters in the type of the computation; only here is anything rounded."""
        return weight.to(self.dtype).contiguous(memory_format=torch.channels_last), bias.to(self.dtype)

    def _votes_only(self, tail: torch.nn.Conv2d) -> tuple[Tensor, Tensor]:
        """The rows of the first M classes, filled up with zeros to a whole block of channels."""
        surplus = -self.num_transforms % _CHANNEL_BLOCK
        weight, bias = tail.weight.detach()[: self.num_transforms], tail.bias.detach()[: self.num_transforms]
        return F.pad(weight, (0, 0, 0, 0, 0, 0, 0, surplus)), F.pad(bias, (0, surplus))

    def probabilities(self, canvases: Tensor) -> Tensor:
        """Softmax over the M transformations at every patch.

        Args:
            canvases: `(B, 3, H, W)` in [-1, 1].

        Returns:
            `(B, H - 2m, W - 2m, M)`, m the margin, contiguous; float32 (float64 for float64).
        """
        x = canvases.to(self.dtype, memory_format=torch.channels_last)
        for weight, bias in self._hidden:
            x = self._conv_leaky(x, weight, bias)
        logits = F.conv2d(x, *self._tail).permute(0, 2, 3, 1)[..., : self.num_transforms]
        return F.softmax(logits, dim=-1, dtype=statistics_dtype(self.dtype))

    def _conv_leaky(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self._fused:
            return torch.ops.mkldnn._convolution_pointwise(
                x, weight, bias, [0, 0], [1, 1], [1, 1], 1, "leaky_relu", [LEAKY_SLOPE], ""
            )
        return F.leaky_relu_(F.conv2d(x, weight, bias), LEAKY_SLOPE)


def has_fused_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build of torch, on this CPU, applies LeakyReLU while it convolves: a saving of 5 %."""
    known = hasattr(torch.ops.mkldnn, "_convolution_pointwise") and torch.backends.mkldnn.is_available()
    if not known or device.type != "cpu":
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and _fuses_bfloat16())


def _fuses_bfloat16() -> bool:
    """Whether the fused kernel takes bfloat16 on this CPU (from AVX512 on); the plain one takes it everywhere."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and supported()


def _fold(block: ConvNormLeaky) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, of the convolution that does what the block's convolution and batch norm do."""
    norm = block.norm
    factor = norm.weight.detach().double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    weight = block.conv.weight.detach().double() * factor.view(-1, 1, 1, 1)
    bias = (block.conv.bias.detach().double() - norm.running_mean.double()) * factor + norm.bias.detach().double()
    return weight, bias


@dataclass(frozen=True)
class _GroupReader:
    """Gathers that draw the canvases of one group and read its windows: constants of a scale.

    Attributes:
        shape: (G, H, W) of the canvases.
        pixels: `(G * H * W,)` source of every pixel of the canvases among the image's, colour ones first, then gray.
        votes: `(K * hp * wp,)` place of every window's patches in `(G, H - 2m, W - 2m, M)` probabilities.
        classes: `(K,)` transformations of the windows.
    """

    shape: tuple[int, int, int]
    pixels: Tensor
    votes: Tensor
    classes: Tensor

    @classmethod
    def of_group(cls, group: CanvasGroup, plan: CanvasPlan, margin: int, device: torch.device) -> "_GroupReader":
        pixels = torch.stack([_source_pixels(canvas, plan.image_size) for canvas in group.canvases])
        height, width = (side - 2 * margin for side in group.size)
        places = torch.arange(len(group.canvases) * height * width).view(-1, height, width) * plan.num_transforms
        windows = [
            (place, canvas, w) for place, canvas in zip(places, group.canvases, strict=True) for w in canvas.windows
        ]
        votes = [_turned_back(place[w.valid(margin)] + w.index, canvas) for place, canvas, w in windows]
        classes = torch.tensor([window.index for _, _, window in windows])
        shape = (len(group.canvases), *group.size)
        return cls(shape, pixels.flatten().to(device), torch.stack(votes).flatten().to(device), classes.to(device))


def _source_pixels(canvas: Canvas, image_size: tuple[int, int]) -> Tensor:
    """Number of the pixel that each pixel of a canvas shows: `(H, W)`, gray pixels counted after all colour ones."""
    height, width = image_size
    numbers = torch.arange(height * width).view(1, 1, height, width)
    drawn = replace(canvas, grayscale=False).render(numbers)[0, 0]
    return drawn + height * width if canvas.grayscale else drawn


def _turned_back(window: Tensor, canvas: Canvas) -> Tensor:
    """A map of a window without the rotation and the flip of its canvas."""
    upright = torch.rot90(window, -canvas.rotation)
    return upright.flip(-1) if canvas.flip else upright


class ScaleVoter:
    """Votes of one discriminator on images of one size.

    Args:
        discriminator: folded.
        image_size: (h, w) of the images, pixels.
        pass_images: images that go through the network together; by default as many as the caches hold.
    """

    def __init__(self, discriminator: FoldedDiscriminator, image_size: tuple[int, int], pass_images: int | None = None):
        plan = plan_canvases(*image_size, discriminator.num_transforms)
        self.image_size, self._discriminator = plan.image_size, discriminator
        self._readers = [
            _GroupReader.of_group(group, plan, discriminator.margin, discriminator.device) for group in plan.groups
        ]
        self.pass_images = pass_images or self._fitting_images()

    def _fitting_images(self) -> int:
        """Images of which the activations before and after a layer fit in the bytes of one pass."""
        network = self._discriminator
        pixels = max(group.pixels.numel() for group in self._readers)
        bytes_per_image = pixels * 2 * network.width * network.dtype.itemsize
        return max(1, _PASS_BYTES.get(network.device.type, _PASS_BYTES["cpu"]) // bytes_per_image)

    @torch.no_grad()
    def votes(self, images: Tensor) -> ScaleVotes:
        """Let every patch of every transformed image vote.

        Args:
            images: `(B, 3, h, w)` in [-1, 1].

        Returns:
            The votes; an image's do not depend on the others in the batch.
        """
        margin = self._discriminator.margin
        height, width = (side - 2 * margin for side in self.image_size)
        dtype = statistics_dtype(self._discriminator.dtype)
        images = images.to(self._discriminator.device, dtype)
        votes = images.new_empty(len(images), self._discriminator.num_transforms, height, width)
        for part, target in zip(images.split(self.pass_images), votes.split(self.pass_images), strict=True):
            rows = torch.cat([part, to_grayscale(part)], dim=-2).permute(0, 2, 3, 1).flatten(1, 2)
            rows = rows.to(self._discriminator.dtype)
            for reader in self._readers:
                target[:, reader.classes] = self._read(rows, reader).view(len(part), -1, height, width)
        return ScaleVotes(votes, self.image_size, margin)

    def _read(self, rows: Tensor, reader: _GroupReader) -> Tensor:
        """`(B, K * hp * wp)` votes of a group's windows for images of `(B, 2 * h * w, 3)` colour and gray pixels."""
        canvases = rows.index_select(1, reader.pixels).view(-1, *reader.shape[1:], rows.shape[-1]).permute(0, 3, 1, 2)
        return self._discriminator.probabilities(canvases).view(len(rows), -1).index_select(1, reader.votes)


class VoteScorer:
    """Votes of all discriminators of a trained model, folded once.

    Args:
        pyramid: the model, every scale trained.
        pass_images: images that go through a network together; by default as many as the caches hold.
    """

    def __init__(self, pyramid: Pyramid, pass_images: int | None = None):
        self.sizes = pyramid.plan.sizes
        self._voters = [
            ScaleVoter(FoldedDiscriminator(scale.discriminator), size, pass_images)
            for scale, size in zip(pyramid.scales, self.sizes, strict=True)
        ]

    def scale_votes(self, images: Tensor, n: int) -> ScaleVotes:
        """Votes at one scale.

        Args:
            images: `(B, 3, h, w)` in [-1, 1], of the size of scale n.
            n: the scale, 0 the coarsest.
        """
        return self._voters[n].votes(images)

    def votes(self, pyramid_images: Sequence[Tensor]) -> list[ScaleVotes]:
        """Votes at every scale.

        Args:
            pyramid_images: one `(B, 3, h, w)` tensor a scale, from `hta.models.scales.image_pyramid`.
        """
        return [voter.votes(images) for voter, images in zip(self._voters, pyramid_images, strict=True)]
