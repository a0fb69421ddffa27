"""The kernels in C, a single pass over memory each, compiled on first use if a C compiler is available.

They compute the same as `hta.models.kernels`, only faster; the tests compare the two. The library is built from the
package's source in a private temporary folder and loaded once per process.
"""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hta.files import printable
from hta.models.canvas import CanvasPlan
from hta.models.kernels import (
    LEAKY_SLOPE,
    PLAIN_KERNELS,
    ConvolutionGradients,
    Coverage,
    Kernels,
    Norm,
    NormGradients,
    statistics_dtype,
)
from hta.models.transforms import to_grayscale
from hta.models.winograd import Winograd, call, channels_last

logger = logging.getLogger(__name__)

_KERNELS, _WINOGRAD = (Path(__file__).with_name(name) for name in ("kernels.c", "winograd.c"))
_FLAGS = ("-O3", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
_SECONDS_TO_COMPILE = 60
# The same values as in kernels.c.
_MOST_CHANNELS = 256
_PIECE = 512

_STATISTIC = {torch.bfloat16: ctypes.c_float, torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}
_SYMBOLS = {
    _KERNELS: [
        f"{name}_{str(kind).removeprefix('torch.')}"
        for name, kind in product(
            ("moments", "activate", "activate_backward", "entropy", "render", "render_backward"), _STATISTIC
        )
    ],
    _WINOGRAD: ["winograd_lanes", "winograd_filters", "winograd_convolve", "winograd_filter_gradient"],
}


def choose_kernels(device: torch.device, compiled: bool) -> Kernels:
    """Choose the kernels to train with; `compiled` ones only on a CPU, with a working C compiler."""
    if not compiled or device.type != "cpu":
        return PLAIN_KERNELS
    winograd = _library(_WINOGRAD)
    others = winograd and _library(_KERNELS)
    return NativeKernels(Winograd(winograd[0]), *others) if winograd and others else PLAIN_KERNELS


def choose_convolutions(device: torch.device, dtype: torch.dtype, compiled: bool) -> Kernels:
    """Choose the kernels of frozen networks: `compiled` convolutions on a CPU in float32, with a working C compiler."""
    fits = compiled and device.type == "cpu" and dtype == torch.float32
    library = _library(_WINOGRAD) if fits else None
    return WinogradKernels(Winograd(library[0])) if library else PLAIN_KERNELS


@lru_cache(maxsize=2)
def _library(source: Path) -> tuple[ctypes.CDLL, str] | None:
    """A compiled source, and with what it was compiled; None, with a notice, if it cannot be built."""
    compiler = _compiler()
    if not compiler:
        logger.info("no C compiler found: using torch's own operators, which takes longer")
        return None
    try:
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in (_KERNELS, _WINOGRAD))).hexdigest()[:8]
        built = _build(compiler, source)
        return built, printable(" ".join([_version(compiler), *compiler[1:], *_FLAGS, f"({digest})"]))
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        text = "the C compiler %r cannot make the kernels (%s): using torch's own operators, which takes longer"
        logger.info(text, compiler[0], error)
        return None


def _compiler() -> list[str]:
    """The command of a C compiler: $CC, or the first one found; empty if there is none."""
    named = os.environ.get("CC", "").strip()
    if not named:
        return [found for found in map(shutil.which, ("cc", "gcc", "clang")) if found][:1]
    try:
        return [named] if shutil.which(named) else shlex.split(named)
    except ValueError:  # a quote without its other half
        return [named]


def _version(compiler: Sequence[str]) -> str:
    """The first line of what a compiler says about itself, or its name."""
    command = [*compiler, "--version"]
    said = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS_TO_COMPILE).stdout
    return (said.splitlines() or [compiler[0]])[0][:200]


def _build(compiler: Sequence[str], source: Path) -> ctypes.CDLL:
    """Compile and load a library; raises OSError, SubprocessError or AttributeError if either fails."""
    # Use the OpenMP runtime that torch has loaded: a second pool of threads would compete with its own.
    runtimes = sorted(map(str, Path(torch.__file__).parent.glob("lib/libgomp*.so*")))
    for path in runtimes:
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    with tempfile.TemporaryDirectory(prefix="hta-kernels-") as folder:
        built, library = Path(folder, "kernels.o"), Path(folder, "kernels.so")
        for command in (
            [*compiler, *_FLAGS, "-march=native", "-c", str(source), "-o", str(built)],
            [*compiler, "-shared", str(built), "-o", str(library), "-lm"],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS_TO_COMPILE)
        _try_to_load([*runtimes, str(library)])
        loaded = ctypes.CDLL(str(library))  # resolves all symbols at once
    for name in _SYMBOLS[source]:
        getattr(loaded, name)
    return loaded


def _try_to_load(libraries: list[str]) -> None:
    """Load libraries in another process, since half a library ends the process that loads it; an OSError says so."""
    if getattr(sys, "frozen", False):  # Python is not at hand
        return
    script = "import ctypes, sys; [ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL) for path in sys.argv[1:]]"
    command = [sys.executable, "-I", "-S", "-c", script, *libraries]
    if subprocess.run(command, capture_output=True, timeout=_SECONDS_TO_COMPILE).returncode < 0:
        raise OSError("it leaves a damaged library")


class WinogradKernels(Kernels):
    """Convolutions by Winograd's algorithm where it fits, otherwise torch's operators; see `Kernels`."""

    winograd: Winograd

    def __init__(self, winograd: Winograd):
        self.winograd = winograd

    def __reduce__(self):
        """A copy, maybe in another process, has the convolutions that are compiled there: compiled code is not copied.

        It has no other kernels: what is trained already needs none.
        """
        return choose_convolutions, (torch.device("cpu"), torch.float32, True)

    def convolve(self, batches: Sequence[Tensor], weight: Tensor, bias: Tensor | None = None) -> list[Tensor]:
        """See `Kernels.convolve`."""
        if not self.winograd.suits(weight, batches[0].dtype):
            return super().convolve(batches, weight, bias)
        shift = None if bias is None else bias.detach().float().contiguous()
        return self.winograd.convolve(batches, self.winograd.filters(weight), shift, len(weight))

    def convolve_backward(
        self, grads: Sequence[Tensor], inputs: Sequence[Tensor], weight: Tensor, wanted: tuple[bool, bool]
    ) -> ConvolutionGradients:
        """See `Kernels.convolve_backward`."""
        if not self.winograd.suits(weight, inputs[0].dtype):
            return super().convolve_backward(grads, inputs, weight, wanted)
        needs_weight, needs_bias = wanted
        turned = self.winograd.filters(weight, turned=True)
        through = self.winograd.convolve(grads, turned, None, weight.shape[1], pad=2)
        grad_weight = self.winograd.weight_gradient(grads, inputs) if needs_weight else None
        of_batches = [grad.sum(dim=(0, 2, 3)) for grad in grads] if needs_bias else []
        return ConvolutionGradients(through, grad_weight, torch.stack(of_batches).sum(dim=0) if of_batches else None)


class NativeKernels(WinogradKernels):
    """The implementation in C; see `Kernels`.

    Args:
        winograd: the compiled convolutions.
        library: the other compiled kernels.
        description: the compiler and its flags.
    """

    def __init__(self, winograd: Winograd, library: ctypes.CDLL, description: str):
        super().__init__(winograd)
        self._library, self.description = library, description

    def render(self, plan: CanvasPlan, images: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """See `Kernels.render`."""
        if images.shape[2:] != plan.image_size:
            raise ValueError(f"images of {tuple(images.shape[2:])} px: the plan is for {plan.image_size}")
        colours = torch.cat([images, to_grayscale(images)], dim=-2).permute(0, 2, 3, 1).contiguous()
        colours = colours.to(statistics_dtype(dtype))
        return [
            _Render.apply(self, sources, group.size, colours, dtype)
            for group, sources in zip(plan.groups, plan.sources, strict=True)
        ]

    def moments(self, batches: Sequence[Tensor], coverage: Coverage) -> tuple[Tensor, Tensor]:
        """See `Kernels.moments`."""
        if batches[0].shape[1] > _MOST_CHANNELS:
            return super().moments(batches, coverage)
        x = [channels_last(batch) for batch in batches]
        shape = _shape(x)
        sums = _room_for_sums(*shape, x[0].dtype)
        moments = torch.empty_like(sums[0])
        self.call("moments", x[0].dtype, len(x), x, _weights(coverage, x), *shape, coverage.total, sums, moments)
        mean, var = moments
        return mean, var

    def norm_leaky(self, batches: Sequence[Tensor], norm: Norm) -> list[Tensor]:
        """See `Kernels.norm_leaky`."""
        if batches[0].shape[1] > _MOST_CHANNELS:
            return super().norm_leaky(batches, norm)
        x = [channels_last(batch) for batch in batches]
        y = [torch.empty_like(batch) for batch in x]
        self.call("activate", x[0].dtype, len(x), x, *_shape(x), *_constants(norm, x[0].dtype), LEAKY_SLOPE, y)
        return y

    def norm_leaky_backward(
        self,
        grads: Sequence[Tensor],
        batches: Sequence[Tensor],
        activations: Sequence[Tensor],
        coverage: Coverage,
        norm: Norm,
    ) -> NormGradients:
        """See `Kernels.norm_leaky_backward`."""
        if batches[0].shape[1] > _MOST_CHANNELS:
            return super().norm_leaky_backward(grads, batches, activations, coverage, norm)
        x, inputs = ([channels_last(batch) for batch in several] for several in (batches, grads))
        shape = _shape(x)
        sums = _room_for_sums(*shape, x[0].dtype)
        gradients = torch.empty_like(sums[0])
        constants = coverage.total, *_constants(norm, x[0].dtype), LEAKY_SLOPE
        weights = _weights(coverage, x)
        self.call("activate_backward", x[0].dtype, len(x), inputs, x, weights, *shape, *constants, sums, gradients)
        return NormGradients(inputs, *gradients)

    def cross_entropy(self, logits: Tensor, hits: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """See `Kernels.cross_entropy`."""
        _, images, patches, classes = logits.shape
        if classes > _MOST_CHANNELS:
            return super().cross_entropy(logits, hits, counts)
        logits, hits, rows = logits.contiguous(), hits.contiguous(), logits.numel() // classes
        grad = torch.empty_like(logits)
        sums = counts.new_empty(-(-rows // _PIECE))
        self.call("entropy", logits.dtype, logits, hits, counts, images, patches, rows, classes, grad, sums)
        return sums.sum(dtype=torch.float64).to(counts.dtype), grad

    def call(self, name: str, dtype: torch.dtype, *arguments: Any) -> None:
        """Call the variant of a kernel for activations of a type."""
        function = getattr(self._library, f"{name}_{str(dtype).removeprefix('torch.')}")
        call(function, *arguments, real=_STATISTIC[dtype])


class _Render(torch.autograd.Function):
    """Draws a group of canvases of `(N, 2 h, w, 3)` images, whose lower half is gray: `(G * N, 3, H, W)`."""

    @staticmethod
    def forward(ctx, kernels, sources, size, colours, dtype):
        ctx.kernels, ctx.sources, ctx.shape = kernels, sources, colours.shape
        canvases = torch.empty(len(sources) * len(colours), *size, 3, dtype=dtype)
        kernels.call("render", dtype, colours, sources, *_layout(sources, colours.shape), canvases)
        return canvases.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, grad):
        into = torch.zeros(ctx.shape, dtype=statistics_dtype(grad.dtype))
        grad = channels_last(grad)
        ctx.kernels.call("render_backward", grad.dtype, grad, ctx.sources, *_layout(ctx.sources, ctx.shape), into)
        return None, None, None, into, None


def _layout(sources: Tensor, shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Numbers of canvases and their places, and of images and their pixels."""
    return *sources.shape, shape[0], shape[1] * shape[2]


def _weights(coverage: Coverage, batches: Sequence[Tensor]) -> list[Tensor]:
    """The counts of positions, checked against the batches."""
    if [weights.numel() for weights in coverage.weights] != [batch[:, 0].numel() for batch in batches]:
        raise ValueError("coverage: not of these batches")
    return list(coverage.weights)


def _constants(norm: Norm, dtype: torch.dtype) -> list[Any]:
    """A norm as C reads it beside activations of a type: mean, variance, scale, shift, and eps."""
    *values, eps = norm
    return [*(value.detach().to(statistics_dtype(dtype)).contiguous() for value in values), eps]


def _shape(batches: Sequence[Tensor]) -> tuple[list[int], int]:
    """The number of positions of each batch, and that of channels."""
    channels = batches[0].shape[1]
    return [batch.numel() // channels for batch in batches], channels


def _room_for_sums(rows: Sequence[int], channels: int, dtype: torch.dtype) -> Tensor:
    """Two sums per channel for each piece of batches of so many positions, of a type."""
    pieces = sum(-(-count // _PIECE) for count in rows)
    return torch.empty(pieces, 2, channels, dtype=statistics_dtype(dtype))
