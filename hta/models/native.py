"""The kernels in C, a single pass over memory each, compiled on first use if a C compiler is available.

They compute the same as `hta.models.kernels`, only faster; the tests compare the two. The library is built from the
package's source in a private temporary folder and loaded once per process.
"""

import ctypes
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

import torch
from torch import Tensor

from hta.files import printable
from hta.models.kernels import (
    LEAKY_SLOPE,
    PLAIN_KERNELS,
    ConvolutionGradients,
    Coverage,
    Kernels,
    Norm,
    NormGradients,
    mean_and_variance,
    pivot_of,
    statistics_dtype,
)
from hta.models.winograd import Winograd

logger = logging.getLogger(__name__)

_SOURCES = [Path(__file__).with_name(name) for name in ("kernels.c", "winograd.c")]
_FLAGS = ("-O3", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
_SECONDS_TO_COMPILE = 60
_NAMES = ("moments", "activate", "reduce", "subtract", "entropy")
# The same values as in kernels.c.
_MOST_CHANNELS = 256
_PIECE = 512

_STATISTIC = {torch.bfloat16: ctypes.c_float, torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}
_TENSOR, _INT = ctypes.c_void_p, ctypes.c_int64


def choose_kernels(device: torch.device, compiled: bool) -> Kernels:
    """Choose the kernels to train with; `compiled` ones only on a CPU, with a working C compiler."""
    built = _library() if compiled and device.type == "cpu" else None
    return PLAIN_KERNELS if built is None else NativeKernels(*built)


@lru_cache(maxsize=1)
def _library() -> tuple[ctypes.CDLL, str] | None:
    """The compiled kernels, and with what they were compiled; None, with a notice, if they cannot be built."""
    compiler = _compiler()
    if not compiler:
        logger.info("no C compiler found: training with torch's own operators, which takes longer")
        return None
    try:
        return _build(compiler), printable(" ".join([_version(compiler), *compiler[1:], *_FLAGS]))
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        text = "the C compiler %r cannot make the kernels (%s): training with torch's own operators"
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


def _build(compiler: Sequence[str]) -> ctypes.CDLL:
    """Compile and load the library; raises OSError, SubprocessError or AttributeError if either fails."""
    # Use the OpenMP runtime that torch has loaded: a second pool of threads would compete with its own.
    runtimes = sorted(map(str, Path(torch.__file__).parent.glob("lib/libgomp*.so*")))
    for path in runtimes:
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    with tempfile.TemporaryDirectory(prefix="hta-kernels-") as folder:
        library, built = Path(folder, "kernels.so"), {source: Path(folder, f"{source.stem}.o") for source in _SOURCES}
        for command in (
            *([*compiler, *_FLAGS, "-march=native", "-c", str(source), "-o", str(to)] for source, to in built.items()),
            [*compiler, "-shared", *map(str, built.values()), "-o", str(library), "-lm"],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS_TO_COMPILE)
        _try_to_load([*runtimes, str(library)])
        loaded = ctypes.CDLL(str(library))  # resolves all symbols at once
    for name, kind in product(_NAMES, _STATISTIC):
        getattr(loaded, _symbol(name, kind))
    loaded.winograd_lanes.restype = ctypes.c_int
    return loaded


def _try_to_load(libraries: list[str]) -> None:
    """Load libraries in another process, since half a library ends the process that loads it; an OSError says so."""
    if getattr(sys, "frozen", False):  # Python is not at hand
        return
    script = "import ctypes, sys; [ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL) for path in sys.argv[1:]]"
    command = [sys.executable, "-I", "-S", "-c", script, *libraries]
    if subprocess.run(command, capture_output=True, timeout=_SECONDS_TO_COMPILE).returncode < 0:
        raise OSError("it leaves a damaged library")


def _symbol(name: str, kind: torch.dtype) -> str:
    return f"{name}_{str(kind).removeprefix('torch.')}"


class NativeKernels(Kernels):
    """The implementation in C; see `Kernels`.

    Args:
        library: the compiled kernels.
        description: the compiler and its flags.
    """

    def __init__(self, library: ctypes.CDLL, description: str):
        self._library, self.description = library, description
        self._winograd = Winograd(library)

    def __reduce__(self):
        """A copy, maybe in another process, uses torch's operators: what is trained already needs no kernels."""
        return Kernels, ()

    def convolve(self, batches: Sequence[Tensor], weight: Tensor, bias: Tensor | None = None) -> list[Tensor]:
        """See `Kernels.convolve`."""
        if not self._winograd.suits(batches[0], weight):
            return super().convolve(batches, weight, bias)
        filters = self._winograd.filters(weight)
        return [self._winograd.convolve(batch, filters, bias, len(weight)) for batch in batches]

    def convolve_backward(
        self, grads: Sequence[Tensor], inputs: Sequence[Tensor], weight: Tensor, wanted: tuple[bool, bool]
    ) -> ConvolutionGradients:
        """See `Kernels.convolve_backward`."""
        if not self._winograd.suits(inputs[0], weight):
            return super().convolve_backward(grads, inputs, weight, wanted)
        needs_weight, needs_bias = wanted
        turned, channels = self._winograd.filters(weight, turned=True), weight.shape[1]
        through = [self._winograd.convolve(grad, turned, None, channels, pad=2) for grad in grads]
        grad_weight = self._winograd.weight_gradient(grads, inputs) if needs_weight else None
        grad_bias = sum(grad.sum(dim=(0, 2, 3)) for grad in grads) if needs_bias else None
        return ConvolutionGradients(through, grad_weight, grad_bias)

    def moments(self, batches: Sequence[Tensor], coverage: Coverage) -> tuple[Tensor, Tensor]:
        """See `Kernels.moments`."""
        if batches[0].shape[1] > _MOST_CHANNELS:
            return super().moments(batches, coverage)
        pivot = pivot_of(batches).to(statistics_dtype(batches[0].dtype))
        groups = [[_rows(batch), weights] for batch, weights in zip(batches, coverage.weights, strict=True)]
        first, second = self._sums("moments", groups, [pivot], [])
        return mean_and_variance(pivot, first, second, coverage.total)

    def norm_leaky(self, batches: Sequence[Tensor], norm: Norm) -> list[Tensor]:
        """See `Kernels.norm_leaky`."""
        affine = norm.affine()
        results = []
        for batch in batches:
            x = _rows(batch)
            result = torch.empty_like(x)
            self._call("activate", x, [x, *affine], [LEAKY_SLOPE, *x.shape], [result])
            results.append(_like(result, batch))
        return results

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
        factor, offset = norm.affine()
        pairs = [[_rows(grad), _rows(batch)] for grad, batch in zip(grads, batches, strict=True)]
        grad_beta, centred = self._sums("reduce", pairs, [factor, offset, norm.mean], [LEAKY_SLOPE])
        rsqrt = torch.rsqrt(norm.var + norm.eps)
        grad_gamma = centred * rsqrt
        # dL/dx = factor * g - counts * (at_zero + slope * x)
        slope = factor * grad_gamma * rsqrt / coverage.total
        at_zero = factor * grad_beta / coverage.total - slope * norm.mean
        for (grad, x), weights in zip(pairs, coverage.weights, strict=True):
            constants = [weights, factor, offset, at_zero, slope]
            self._call("subtract", x, [grad, x, *constants], [LEAKY_SLOPE, *x.shape], [])
        inputs = [_like(grad, batch) for (grad, _), batch in zip(pairs, batches, strict=True)]
        return NormGradients(inputs, grad_gamma, grad_beta)

    def cross_entropy(self, logits: Tensor, hits: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """See `Kernels.cross_entropy`."""
        _, images, patches, classes = logits.shape
        if classes > _MOST_CHANNELS:
            return super().cross_entropy(logits, hits, counts)
        logits, hits, rows = logits.contiguous(), hits.contiguous(), logits.numel() // classes
        grad = torch.empty_like(logits)
        sums = counts.new_empty(-(-rows // _PIECE))
        self._call("entropy", logits, [logits, hits, counts], [images, patches, rows, classes], [grad, sums])
        return sums.sum(dtype=torch.float64).to(counts.dtype), grad

    def _sums(self, name: str, groups: Sequence[list[Tensor]], constants: list[Tensor], numbers: list[float]) -> Tensor:
        """Two sums per channel, `(2, C)`, by a kernel that adds up pieces of the `(rows, C)` first in each group."""
        pieces = [-(-len(inputs[0]) // _PIECE) for inputs in groups]
        channels, dtype = groups[0][0].shape[1], statistics_dtype(groups[0][0].dtype)
        partial = torch.empty(sum(pieces), 2, channels, dtype=dtype)
        for inputs, room in zip(groups, partial.split(pieces), strict=True):
            self._call(name, inputs[0], [*inputs, *constants], [*numbers, *inputs[0].shape], [room])
        return partial.sum(dim=0, dtype=torch.float64).to(dtype)

    def _call(self, name: str, like: Tensor, inputs: list[Tensor], numbers: list[float], outputs: list[Tensor]) -> None:
        """Call the variant of a kernel for the activation type of `like`."""
        function = getattr(self._library, _symbol(name, like.dtype))
        statistic = _STATISTIC[like.dtype]
        function.restype = None
        function(
            *(_TENSOR(tensor.data_ptr()) for tensor in inputs),
            *(statistic(number) if isinstance(number, float) else _INT(number) for number in numbers),
            *(_TENSOR(tensor.data_ptr()) for tensor in outputs),
        )


def _rows(batch: Tensor) -> Tensor:
    """A `(B, C, h, w)` channels-last tensor as `(B * h * w, C)`."""
    return batch.permute(0, 2, 3, 1).reshape(-1, batch.shape[1]).contiguous()


def _like(rows: Tensor, batch: Tensor) -> Tensor:
    """The inverse of `_rows`."""
    count, channels, height, width = batch.shape
    return rows.view(count, height, width, channels).permute(0, 3, 1, 2)
