"""Scores images with a trained model, in batches and in bounded memory (paper, section 3.3).

Every patch of every transformed image votes: how likely does the discriminator find its transformation? The windows of
all transformations share canvases (`hta.models.canvas`). Batch norm is folded into the convolutions once per model,
the class "fake" is never computed, and drawing the canvases and reading the windows takes one gather each.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hta.evaluation.maps import anomaly_maps, upsample_map
from hta.evaluation.scores import vote_shares
from hta.images import resize, to_tensor
from hta.models.blocks import ConvNormLeaky
from hta.models.canvas import Canvas, CanvasGroup, CanvasPlan, plan_canvases
from hta.models.kernels import LEAKY_SLOPE, statistics_dtype
from hta.models.networks import Discriminator
from hta.models.pyramid import Pyramid
from hta.models.scales import image_pyramid
from hta.models.transforms import to_grayscale

# Matrix units process this many channels at once: fewer logits would take more time, not less.
_CHANNEL_BLOCK = 16
# Activations of one pass: on a CPU they should stay in its caches, on a GPU they should fill it.
_PASS_BYTES = {"cpu": 32 << 20, "cuda": 1 << 30}


# --- folded networks --------------------------------------------------------------------------------------------------


class FoldedDiscriminator:
    """A frozen discriminator as bare convolutions, without the class "fake".

    Args:
        discriminator: trained; its parameters are copied, its running statistics are folded in.
        fused: whether convolution and LeakyReLU run as one kernel; by default wherever such a kernel exists.
    """

    def __init__(self, discriminator: Discriminator, fused: bool | None = None):
        self.dtype = discriminator.compute_dtype
        self.device = discriminator.body.tail.weight.device
        self.margin = discriminator.margin
        self.width = discriminator.body.tail.in_channels
        self.num_transforms = discriminator.num_classes - 1
        self._fused = has_fused_kernel(self.device, self.dtype) if fused is None else fused
        self._hidden = [
            self._placed(*_fold(block)) for block in discriminator.modules() if isinstance(block, ConvNormLeaky)
        ]
        self._tail = self._placed(*self._votes_only(discriminator.body.tail))

    def _placed(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters in the dtype of the computation; only this step rounds."""
        return weight.to(self.dtype).contiguous(memory_format=torch.channels_last), bias.to(self.dtype)

    def _votes_only(self, tail: torch.nn.Conv2d) -> tuple[Tensor, Tensor]:
        """The rows of the first M classes, padded with zeros to a multiple of the channel block."""
        surplus = -self.num_transforms % _CHANNEL_BLOCK
        weight, bias = (tail.state_dict()[name][: self.num_transforms] for name in ("weight", "bias"))
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
    """Whether this build of torch can fuse LeakyReLU into the convolution on this CPU, which saves 5 % of the time."""
    operators = torch.ops.mkldnn
    known = hasattr(operators, "_convolution_pointwise") and torch.backends.mkldnn.is_available()
    if not known or device.type != "cpu":
        return False
    # Fused bfloat16 needs AVX512; the plain convolution supports bfloat16 on every CPU.
    fuses_bfloat16 = getattr(operators, "_is_mkldnn_bf16_supported", lambda: False)
    return dtype == torch.float32 or (dtype == torch.bfloat16 and fuses_bfloat16())


def _fold(block: ConvNormLeaky) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, of one convolution that equals the block's convolution and batch norm."""
    values = {name: value.double() for name, value in block.state_dict().items()}
    factor = values["norm.weight"] * torch.rsqrt(values["norm.running_var"] + block.norm.eps)
    bias = (values["conv.bias"] - values["norm.running_mean"]) * factor + values["norm.bias"]
    return values["conv.weight"] * factor.view(-1, 1, 1, 1), bias


# --- votes at one scale -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _GroupReader:
    """Gathers that draw the canvases of one group and read its windows: constants of a scale.

    Attributes:
        shape: (G, H, W) of the canvases.
        pixels: `(G * H * W,)` index of the image pixel behind every canvas pixel, colour pixels first, then gray.
        votes: `(K * hp * wp,)` index of every patch of every window in `(G, H - 2m, W - 2m, M)` probabilities.
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
    """Index of the image pixel that each canvas pixel shows: `(H, W)`, gray pixels numbered after all colour ones."""
    height, width = image_size
    numbers = torch.arange(height * width).view(1, 1, height, width)
    drawn = replace(canvas, grayscale=False).render(numbers)[0, 0]
    return drawn + height * width if canvas.grayscale else drawn


def _turned_back(window: Tensor, canvas: Canvas) -> Tensor:
    """A window's map with the rotation and the flip of its canvas undone."""
    upright = torch.rot90(window, -canvas.rotation)
    return upright.flip(-1) if canvas.flip else upright


class ScaleVoter:
    """Votes of one discriminator on images of one size.

    Args:
        discriminator: folded.
        image_size: (h, w) of the images, pixels.
        pass_images: images that pass through the network together; by default as many as fit in the caches.
    """

    def __init__(self, discriminator: FoldedDiscriminator, image_size: tuple[int, int], pass_images: int | None = None):
        plan = plan_canvases(*image_size, discriminator.num_transforms)
        self.image_size, self.num_transforms, self._discriminator = image_size, plan.num_transforms, discriminator
        self._readers = [
            _GroupReader.of_group(group, plan, discriminator.margin, discriminator.device) for group in plan.groups
        ]
        self.pass_images = pass_images or self._fitting_images()

    def _fitting_images(self) -> int:
        """How many images have activations, before and after one layer, that fit in the bytes of one pass."""
        network = self._discriminator
        pixels = max(group.pixels.numel() for group in self._readers)
        bytes_per_image = pixels * 2 * network.width * network.dtype.itemsize
        return max(1, _PASS_BYTES.get(network.device.type, _PASS_BYTES["cpu"]) // bytes_per_image)

    @torch.no_grad()
    def votes(self, images: Tensor) -> Tensor:
        """Let every patch of every transformed image vote.

        Args:
            images: `(B, 3, h, w)` in [-1, 1].

        Returns:
            `(B, M, h - 2m, w - 2m)` in [0, 1], m the margin: the probability p_i of every patch of every transformed
            image, rotated and flipped back, so that the M maps differ by their translations alone; higher = more
            normal. An image's do not depend on the others in the batch.
        """
        height, width = (side - 2 * self._discriminator.margin for side in self.image_size)
        dtype = statistics_dtype(self._discriminator.dtype)
        images = images.to(self._discriminator.device, dtype)
        votes = images.new_empty(len(images), self._discriminator.num_transforms, height, width)
        for part, target in zip(images.split(self.pass_images), votes.split(self.pass_images), strict=True):
            rows = torch.cat([part, to_grayscale(part)], dim=-2).permute(0, 2, 3, 1).flatten(1, 2)
            rows = rows.to(self._discriminator.dtype)
            for reader in self._readers:
                target[:, reader.classes] = self._read(rows, reader).view(len(part), -1, height, width)
        return votes

    def _read(self, rows: Tensor, reader: _GroupReader) -> Tensor:
        """`(B, K * hp * wp)` votes of a group's windows for images of `(B, 2 * h * w, 3)` colour and gray pixels."""
        canvases = rows.index_select(1, reader.pixels).view(-1, *reader.shape[1:], rows.shape[-1]).permute(0, 3, 1, 2)
        return self._discriminator.probabilities(canvases).view(len(rows), -1).index_select(1, reader.votes)


# --- a whole model ----------------------------------------------------------------------------------------------------


class ImageVotes(NamedTuple):
    """A model's votes on one image.

    Attributes:
        shares: `(S,)` float64 vote shares in [0, 1], higher = more normal.
        anomaly_map: `(h, w)` float32 in [0, 1] at the working size, higher = more anomalous; None if not requested.
        image_size: (H, W) of the image itself.
    """

    shares: np.ndarray
    anomaly_map: np.ndarray | None
    image_size: tuple[int, int]

    @property
    def peak(self) -> float | None:
        """The maximum of the anomaly map at the working size."""
        return None if self.anomaly_map is None else self.anomaly_map.max()

    def full_size_map(self) -> np.ndarray:
        """The map at the image's own size, `(H, W)` float32."""
        return upsample_map(torch.from_numpy(self.anomaly_map), self.image_size).numpy()


class Scorer:
    """A trained model, ready to score: its networks are folded once.

    Attributes:
        plan: sizes of the scales.
        margin: pixels that the networks lose on every side.
        precision: in which they compute, such as "float32".

    Args:
        pyramid: the model, every scale trained.
        pass_images: images that pass through a network together; by default as many as fit in the caches.
    """

    def __init__(self, pyramid: Pyramid, pass_images: int | None = None):
        self.plan, self.margin = pyramid.plan, pyramid.config.margin
        self.precision = str(pyramid.dtype).removeprefix("torch.")
        self._voters = [
            ScaleVoter(FoldedDiscriminator(scale.discriminator), size, pass_images)
            for scale, size in zip(pyramid.scales, self.plan.sizes, strict=True)
        ]

    def votes(self, images: Tensor) -> list[Tensor]:
        """Let the patches of a batch vote at every scale.

        Args:
            images: `(B, 3, h, w)` in [-1, 1], at the working size.

        Returns:
            The votes of each scale, from `ScaleVoter.votes`.
        """
        levels = image_pyramid(images, self.plan.sizes)
        return [voter.votes(level) for voter, level in zip(self._voters, levels, strict=True)]

    @torch.inference_mode()
    def shares(self, images: Tensor, fractions: Sequence[float] = (1.0,)) -> np.ndarray:
        """Vote shares of a batch.

        Args:
            images: `(B, 3, h, w)` in [-1, 1], at the working size.
            fractions: F parts of the patches that vote, each 0 < fraction <= 1.

        Returns:
            `(F, B, S)` float64 in [0, 1], higher = more normal. An image's do not depend on the others.
        """
        return _shares(self.votes(images), fractions)

    @torch.inference_mode()
    def score(self, images: Tensor, fraction: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Vote shares and anomaly maps of a batch.

        Args:
            images: `(B, 3, h, w)` in [-1, 1], at the working size.
            fraction: part of the patches that vote, 0 < fraction <= 1.

        Returns:
            Shares `(B, S)` float64 in [0, 1], higher = more normal, and maps `(B, h, w)` float32 in [0, 1], higher =
            more anomalous. An image's do not depend on the others.
        """
        votes = self.votes(images)
        maps = anomaly_maps(votes, self.margin, self.plan.working_size)
        return _shares(votes, [fraction])[0], maps.float().cpu().numpy()

    def recognition(self, images: Tensor) -> Tensor:
        """How often all patches find the right transformation.

        Args:
            images: `(B, 3, h, w)` in [-1, 1], at the working size.

        Returns:
            `(B,)` on the CPU, mean over the scales; 1 = as often as by chance.
        """
        return torch.from_numpy(self.shares(images)[0].mean(axis=-1)) * self._voters[0].num_transforms

    def to_working_size(self, image: np.ndarray) -> Tensor:
        """One image `(H, W, 3)`, float32 in [0, 1], as a `(3, h, w)` tensor in [-1, 1] at the working size."""
        return resize(to_tensor([image]), self.plan.working_size)[0]

    def stream(
        self, images: Iterable[np.ndarray], fraction: float, batch_size: int, *, with_maps: bool = True
    ) -> Iterator[ImageVotes]:
        """Score images one after the other; the next batch is read and resized in the meantime.

        Args:
            images: `(H, W, 3)` float32 arrays in [0, 1], of any sizes.
            fraction: part of the patches that vote, 0 < fraction <= 1.
            batch_size: images per batch; memory grows with it, not with the number of images.
            with_maps: whether to make anomaly maps.

        Yields:
            The votes of each image, in order.
        """
        prepared = ((self.to_working_size(image), image.shape[:2]) for image in images)
        with ThreadPoolExecutor(max_workers=1) as reader:
            upcoming = reader.submit(_take, prepared, batch_size)
            while batch := upcoming.result():
                upcoming = reader.submit(_take, prepared, batch_size)
                working = torch.stack([image for image, _ in batch])
                maps: Iterable[np.ndarray | None] = [None] * len(batch)
                if with_maps:
                    shares, maps = self.score(working, fraction)
                else:
                    shares = self.shares(working, [fraction])[0]
                for (_, size), row, anomaly_map in zip(batch, shares, maps, strict=True):
                    yield ImageVotes(row, anomaly_map, size)


def _shares(votes: Sequence[Tensor], fractions: Sequence[float]) -> np.ndarray:
    """Vote shares `(F, B, S)` float64 from the votes of each scale."""
    return torch.stack([vote_shares(of_scale, fractions) for of_scale in votes], dim=-1).double().cpu().numpy()


def _take(items: Iterator[tuple[Tensor, tuple[int, int]]], count: int) -> list[tuple[Tensor, tuple[int, int]]]:
    """The next items of an iterator, at most `count`."""
    return list(itertools.islice(items, count))
