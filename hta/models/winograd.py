"""Convolutions with 3 x 3 kernels in float32, with three times fewer products: see winograd.c, in Python.

They equal torch's to a few units of the sixth digit, and take 1.7 to 3 times less time on a CPU.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# The same values as in winograd.c.
_MOST_CHANNELS = 256
_PLACES = 24
_LEAST_CHANNELS = 16  # below, the work on tiles costs more than the products that it saves
_PARTS = 8  # at most, of the sums over tiles: for several threads
_PIXELS = 1024  # of a part, at least


def call(function: Any, *arguments: Any, real: type = ctypes.c_float) -> None:
    """Call a function in C with tensors, as pointers to their values; integers; `real` numbers; lists of the former.

    Tensors must be kept until it returns, and be laid out as the function expects.
    """
    if function.argtypes is None:  # an argument is of one kind in all calls
        function.restype, kinds = None, {int: ctypes.c_int64, float: real}
        function.argtypes = [kinds.get(type(argument), ctypes.c_void_p) for argument in arguments]
    function(*map(_in_c, arguments))


def _in_c(argument: Any) -> Any:
    if isinstance(argument, list):
        return (ctypes.c_int64 * len(argument))(*map(_in_c, argument))
    return argument.data_ptr() if isinstance(argument, Tensor) else argument


def channels_last(batch: Tensor) -> Tensor:
    """The same values with the channels of a pixel side by side."""
    return batch.contiguous(memory_format=torch.channels_last)


class Winograd:
    """Convolutions without padding of float32 channels-last batches; see `Kernels.convolve`.

    Args:
        library: winograd.c, compiled.
    """

    def __init__(self, library: ctypes.CDLL):
        self._library, self._lanes = library, library.winograd_lanes()

    @staticmethod
    def suits(weight: Tensor, dtype: torch.dtype) -> bool:
        """Whether a convolution in a type, with this weight, is of this kind, and large enough to gain from it."""
        outputs, inputs, *sides = weight.shape
        fewest, most = min(inputs, outputs), max(inputs, outputs)
        return dtype == torch.float32 and sides == [3, 3] and fewest >= _LEAST_CHANNELS and most <= _MOST_CHANNELS

    def convolve(
        self,
        batches: Sequence[Tensor],
        filters: Tensor,
        bias: Tensor | None,
        outputs: int,
        pad: int = 0,
        negative_slope: float = 1.0,
    ) -> list[Tensor]:
        """Convolve batches, surrounded by `pad` zeros, with `filters` of so many output channels; then LeakyReLU."""
        x, growth = _checked(batches), 2 * pad - 2
        shapes = [(len(one), outputs, one.shape[2] + growth, one.shape[3] + growth) for one in x]
        y = [torch.empty(shape, dtype=torch.float32, memory_format=torch.channels_last) for shape in shapes]
        inputs = x[0].shape[1]
        if filters.shape != (_PLACES, self._filled(inputs), self._filled(outputs)):
            raise ValueError(f"filters of shape {tuple(filters.shape)}: not for {inputs} channels, or of another CPU")
        numbers = inputs, outputs, pad, negative_slope
        call(self._library.winograd_convolve, len(x), x, _sizes(x), filters, bias, *numbers, y)
        return y

    def filters(self, weight: Tensor, *, turned: bool = False) -> Tensor:
        """The filters `(24, C, C')` of a weight `(C', C, 3, 3)`; `turned`, of the convolution back from C' to C."""
        weight = channels_last(weight.detach().float())
        outputs, inputs = weight.shape[:2]
        filled = self._filled(inputs), self._filled(outputs)
        to = torch.empty(_PLACES, *(reversed(filled) if turned else filled), dtype=torch.float32)
        call(self._library.winograd_filters, weight, inputs, outputs, int(turned), to)
        return to

    def weight_gradient(self, grads: Sequence[Tensor], batches: Sequence[Tensor]) -> Tensor:
        """The gradient `(C', C, 3, 3)` of a weight, given those of the outputs for some inputs."""
        x, g = _checked(batches), _checked(grads)
        outputs, inputs = g[0].shape[1], x[0].shape[1]
        pixels = sum(one.numel() // inputs for one in x)
        parts = min(_PARTS, 1 + pixels // _PIXELS)
        to = torch.empty(3, 3, inputs, self._filled(outputs), dtype=torch.float32)
        call(self._library.winograd_filter_gradient, len(x), x, _sizes(x), g, inputs, outputs, parts, to)
        return to[..., :outputs].permute(3, 2, 0, 1)

    def _filled(self, channels: int) -> int:
        return -(-channels // self._lanes) * self._lanes


def _checked(batches: Sequence[Tensor]) -> list[Tensor]:
    """The batches as C reads them: a ValueError refuses other types than float32, and different numbers of channels."""
    if any(batch.dtype != torch.float32 or batch.shape[1] != batches[0].shape[1] for batch in batches):
        raise ValueError(f"batches of {[(batch.dtype, batch.shape[1]) for batch in batches]}: of one kind are needed")
    return [channels_last(batch) for batch in batches]


def _sizes(batches: Sequence[Tensor]) -> list[int]:
    return [size for batch in batches for size in (len(batch), *batch.shape[2:])]
