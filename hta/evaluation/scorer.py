"""Scores images with a trained model, in batches and in bounded memory (paper, section 3.3).

Every patch of every transformed image votes: how likely does the discriminator find its transformation? The windows of
all transformations share canvases (`hta.models.canvas`). Batch norm is folded into the convolutions once per model,
the class "fake" is never computed, and drawing the canvases and reading the windows takes one gather each.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hta.errors import UserError
from hta.evaluation.combined import HIGHEST_ERROR
from hta.evaluation.frames import FrameCheck
from hta.evaluation.maps import anomaly_maps, upsample_map
from hta.evaluation.scores import vote_shares
from hta.images import full_size, resize, to_tensor
from hta.models.blocks import ConvNormLeaky
from hta.models.canvas import CanvasGroup, plan_canvases
from hta.models.kernels import LEAKY_SLOPE, PLAIN_KERNELS, Kernels, statistics_dtype
from hta.models.networks import Discriminator
from hta.models.pyramid import Pyramid
from hta.models.scales import image_pyramid
from hta.models.transforms import to_grayscale
from hta.runtime import full_precision

_CHANNEL_BLOCK = 16  # channels that matrix units process at once: fewer logits would take more time, not less
# Activations of one pass: on a CPU they should stay in its caches, on a GPU they should fill it.
_PASS_BYTES = {"cpu": 32 << 20, "cuda": 1 << 30}

MakeMaps = Callable[[Tensor], Tensor]
"""Makes anomaly maps `(B, h, w)` in [0, 1] of `(B, 3, h, w)` images in [-1, 1]; higher = more anomalous."""

MeasureErrors = Callable[[Tensor], np.ndarray]
"""Measures the squared errors `(B,)` of such images to the training images."""


class _GroupReader(NamedTuple):
    """Gathers that draw the canvases of one group and read its windows: constants of a scale."""

    shape: tuple[int, int, int]  # (G, H, W) of the canvases
    pixels: Tensor  # `(G * H * W,)` index of the pixel behind every canvas pixel, colour pixels first, then gray
    votes: Tensor  # `(K * hp * wp,)` index of every patch of every window in `(G, H - 2m, W - 2m, M)` probabilities
    classes: Tensor  # `(K,)` transformations of the windows


def _reader_of(
    group: CanvasGroup, sources: Tensor, num_transforms: int, margin: int, device: torch.device
) -> _GroupReader:
    shape = (len(group.canvases), *group.size)
    height, width = (side - 2 * margin for side in group.size)
    places = torch.arange(len(group.canvases) * height * width).view(-1, height, width) * num_transforms
    votes, classes = [], []
    for canvas, place in zip(group.canvases, places, strict=True):
        for window in canvas.windows:
            upright = torch.rot90(place[window.valid(margin)] + window.index, -canvas.rotation)
            votes.append((upright.flip(-1) if canvas.flip else upright).flatten())
            classes.append(window.index)
    return _GroupReader(shape, *(x.to(device) for x in (sources.flatten(), torch.cat(votes), torch.tensor(classes))))


class ScaleVoter:
    """A frozen discriminator, as bare convolutions without the class "fake", that votes on images of one size.

    Args:
        discriminator: trained; its parameters are copied, its running statistics are folded in.
        image_size: (h, w) of the images, pixels.
        pass_images: images that pass through the network together; by default as many as fit in the caches.
        kernels: whose convolutions are used.
    """

    def __init__(
        self,
        discriminator: Discriminator,
        image_size: tuple[int, int],
        pass_images: int | None = None,
        kernels: Kernels = PLAIN_KERNELS,
    ):
        tail, margin = discriminator.body.tail, discriminator.margin
        self._dtype, self._device = discriminator.compute_dtype, tail.weight.device
        self._fused = has_fused_kernel(self._device, self._dtype)
        self.num_transforms = discriminator.num_classes - 1
        layers = [_fold(block) for block in discriminator.modules() if isinstance(block, ConvNormLeaky)]
        # The rows of the first M classes, padded with zeros to a multiple of torch's channel block.
        self._kernels, winograd = kernels, kernels.winograd
        weight, bias = (tail.state_dict()[name][: self.num_transforms] for name in ("weight", "bias"))
        surplus = 0 if winograd and winograd.suits(weight, self._dtype) else -self.num_transforms % _CHANNEL_BLOCK
        layers.append((F.pad(weight, (0, 0, 0, 0, 0, 0, 0, surplus)), F.pad(bias, (0, surplus))))
        *self._hidden, self._tail = (
            (weight.to(self._dtype).contiguous(memory_format=torch.channels_last), bias.to(self._dtype))
            for weight, bias in layers
        )
        self._filters = [
            winograd.filters(weight) if winograd and winograd.suits(weight, self._dtype) else None
            for weight, _ in (*self._hidden, self._tail)
        ]

        plan = plan_canvases(*image_size, self.num_transforms)
        self._map_size = [side - 2 * margin for side in image_size]
        self.readers = [
            _reader_of(group, sources, self.num_transforms, margin, self._device)
            for group, sources in zip(plan.groups, plan.sources, strict=True)
        ]
        # The activations of a pass, before and after one layer, fit in its bytes.
        pixels = max(reader.pixels.numel() for reader in self.readers)
        fitting = _PASS_BYTES[self._device.type] // (pixels * 2 * tail.in_channels * self._dtype.itemsize)
        self.pass_images = pass_images or max(1, fitting)

    @torch.no_grad()
    def votes(self, images: Tensor) -> Tensor:
        """Let every patch of every transformed image vote.

        Args:
            images: `(B, 3, h, w)` in [-1, 1].

        Returns:
            `(B, M, h - 2m, w - 2m)` in [0, 1], m the margin: the probability p_i of every patch of every transformed
            image, rotated and flipped back, so that the M maps differ by their translations alone; higher = more
            normal.
        """
        images = images.to(self._device, statistics_dtype(self._dtype))
        votes = images.new_empty(len(images), self.num_transforms, *self._map_size)
        for part, target in zip(images.split(self.pass_images), votes.split(self.pass_images), strict=True):
            for classes, found in self.parts(part):
                target[:, classes] = found
        return votes

    def parts(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The votes of images that pass together: for each group of canvases `(K,)` classes and their votes."""
        # `(B, 2 * h * w, 3)`: the colour pixels, then the gray ones.
        rows = torch.cat([images, to_grayscale(images)], dim=-2).permute(0, 2, 3, 1).flatten(1, 2).to(self._dtype)
        for reader in self.readers:
            canvases = rows.index_select(1, reader.pixels).view(-1, *reader.shape[1:], 3).permute(0, 3, 1, 2)
            probabilities = self._probabilities(canvases).unflatten(0, (-1, reader.shape[0])).flatten(1)
            yield reader.classes, probabilities.index_select(1, reader.votes).unflatten(1, (-1, *self._map_size))

    def _probabilities(self, canvases: Tensor) -> Tensor:
        """Softmax over the M transformations at every patch: `(B, H - 2m, W - 2m, M)`, contiguous, at least float32."""
        logits = self._convolve(self.activations(canvases), *self._tail, self._filters[-1], negative_slope=1.0)
        logits = logits.permute(0, 2, 3, 1)[..., : self.num_transforms]
        return F.softmax(logits, dim=-1, dtype=statistics_dtype(self._dtype))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The activations of the last hidden layer on `(B, 3, h, w)` images in [-1, 1]: `(B, C, h', w')`."""
        parts = [self.activations(part) for part in images.to(self._device, self._dtype).split(self.pass_images)]
        return torch.cat(parts).to(statistics_dtype(self._dtype))

    def activations(self, images: Tensor) -> Tensor:
        """`features` of images that pass together, in the type of the networks."""
        x = images.to(memory_format=torch.channels_last)
        for layer, filters in zip(self._hidden, self._filters[:-1], strict=True):
            x = self._convolve(x, *layer, filters, LEAKY_SLOPE)
        return x

    def _convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor | None, negative_slope: float
    ) -> Tensor:
        """Convolution and LeakyReLU, by the fastest way that there is."""
        exports = torch.compiler.is_exporting()
        if self._kernels.winograd and filters is not None and not exports:
            return self._kernels.winograd.convolve([x], filters, bias, len(bias), negative_slope=negative_slope)[0]
        if negative_slope == 1.0:
            return F.conv2d(x, weight, bias)
        if exports or not self._fused:
            return F.leaky_relu_(F.conv2d(x, weight, bias), negative_slope)
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, [0, 0], [1, 1], [1, 1], 1, "leaky_relu", [negative_slope], ""
        )


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


class ImageVotes(NamedTuple):
    """A model's votes on one image."""

    shares: np.ndarray  # `(S,)` float64 vote shares in [0, 1], higher = more normal; empty if no patch voted
    anomaly_map: np.ndarray | None  # `(h, w)` float32 in [0, 1] at the working size, higher = more anomalous
    image_size: tuple[int, int]  # (H, W) of the image itself
    fault: str | None = (
        None  # why it cannot be normal, from `FrameCheck`: no patch votes then, whatever the networks say
    )
    error: float | None = None  # its squared error, see `hta.evaluation.combined`; None if it was not asked for

    @property
    def peak(self) -> float | None:
        """The maximum of the anomaly map at the working size."""
        return None if self.anomaly_map is None else self.anomaly_map.max()

    def full_size_map(self) -> np.ndarray:
        """The map at the image's own size, `(H, W)` float32."""
        return upsample_map(torch.from_numpy(self.anomaly_map), self.image_size).numpy()


class Scorer:
    """A trained model, ready to score: its networks are folded once.

    All methods but `stream` take `(B, 3, h, w)` images in [-1, 1] at the working size; the results of an image do not
    depend on the others in the batch. A fraction, in (0, 1], is the part of the patches that vote.

    Args:
        pyramid: the model, every scale trained; its `plan` and `margin` are kept, and the name of its `precision`.
        pass_images: images that pass through a network together; by default as many as fit in the caches.
    """

    def __init__(self, pyramid: Pyramid, pass_images: int | None = None):
        self.plan, self.margin = pyramid.plan, pyramid.config.margin
        self.precision = str(pyramid.dtype).removeprefix("torch.")
        self.voters = [
            ScaleVoter(scale.discriminator, size, pass_images, pyramid.kernels)
            for scale, size in zip(pyramid.scales, self.plan.sizes, strict=True)
        ]

    @full_precision()
    def votes(self, images: Tensor) -> list[Tensor]:
        """The votes of the patches at each scale, see `ScaleVoter.votes`; a UserError if one is not finite."""
        levels = image_pyramid(images, self.plan.sizes)
        votes = [voter.votes(level) for voter, level in zip(self.voters, levels, strict=True)]
        if not all(of_scale.sum().isfinite() for of_scale in votes):
            raise UserError("the model's votes are not finite: its weights are damaged; restore it, or train it again")
        return votes

    @torch.inference_mode()
    def shares(self, images: Tensor, fractions: Sequence[float] = (1.0,)) -> np.ndarray:
        """Vote shares for F fractions: `(F, B, S)` float64 in [0, 1], higher = more normal."""
        return _shares(self.votes(images), fractions)

    @torch.inference_mode()
    def score(
        self, images: Tensor, fraction: float | None = 1.0, make_maps: MakeMaps | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Vote shares, like those of `shares`, `(B, S)`; and anomaly maps `(B, h, w)` float32 in [0, 1], higher = more
        anomalous: those of the votes, or of `make_maps`, for which no patch needs to vote: S is 0 without a fraction.
        """
        if fraction is None and make_maps:
            return np.empty((len(images), 0)), make_maps(images).float().cpu().numpy()
        votes = self.votes(images)
        maps = make_maps(images) if make_maps else anomaly_maps(votes, self.margin, self.plan.working_size)
        return _shares(votes, [fraction or 1.0])[0], maps.float().cpu().numpy()

    @full_precision()
    def features(self, images: Tensor) -> list[Tensor]:
        """What the discriminators make of the untransformed images at each scale, see `ScaleVoter.features`."""
        levels = image_pyramid(images, self.plan.sizes)
        return [voter.features(level) for voter, level in zip(self.voters, levels, strict=True)]

    def recognition(self, images: Tensor) -> Tensor:
        """How often all patches find the right transformation: `(B,)` on the CPU, mean over the scales; 1 = chance."""
        return torch.from_numpy(self.shares(images)[0].mean(axis=-1)) * self.voters[0].num_transforms

    def stream(
        self,
        images: Iterable[np.ndarray],
        fraction: float | None,
        batch_size: int,
        *,
        with_maps: bool = True,
        check: FrameCheck | None = None,
        make_maps: MakeMaps | None = None,
        measure_errors: MeasureErrors | None = None,
    ) -> Iterator[ImageVotes]:
        """Score images one after the other; the next batch is read and resized in the meantime.

        Args:
            images: `(H, W, 3)` float32 arrays in [0, 1], of any sizes.
            fraction: part of the patches that vote, 0 < fraction <= 1; None, for `make_maps`, if none is to.
            batch_size: images per batch; memory grows with it, not with the number of images.
            with_maps: whether to make anomaly maps.
            check: finds images that cannot be normal; None looks for none.
            make_maps: makes the maps instead of the votes.
            measure_errors: measures the squared errors.

        Yields:
            The votes of each image, in order.
        """
        prepared = ((resize(to_tensor([image]), self.plan.working_size), full_size(image)) for image in images)

        def take() -> list[tuple[Tensor, tuple[int, int]]]:
            return list(itertools.islice(prepared, batch_size))

        with ThreadPoolExecutor(max_workers=1) as reader:
            upcoming = reader.submit(take)
            while batch := upcoming.result():
                upcoming = reader.submit(take)
                working = torch.cat([image for image, _ in batch])
                maps: Iterable[np.ndarray | None] = [None] * len(batch)
                if with_maps:
                    shares, maps = self.score(working, fraction, make_maps)
                else:
                    shares = self.shares(working, [fraction or 1.0])[0]
                faults = check.faults(working) if check else [None] * len(batch)
                errors = measure_errors(working).tolist() if measure_errors else [None] * len(batch)
                rows = zip(batch, shares, maps, faults, errors, strict=True)
                for (_, size), row, anomaly_map, fault, error in rows:
                    if fault is not None:
                        row, error = np.zeros_like(row), None if error is None else HIGHEST_ERROR
                        anomaly_map = None if anomaly_map is None else np.ones_like(anomaly_map)
                    yield ImageVotes(row, anomaly_map, size, fault, error)


def _shares(votes: Sequence[Tensor], fractions: Sequence[float]) -> np.ndarray:
    """Vote shares `(F, B, S)` float64 from the votes of each scale."""
    return torch.stack([vote_shares(of_scale, fractions) for of_scale in votes], dim=-1).double().cpu().numpy()
