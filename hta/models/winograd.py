"""Convolutions with 3 x 3 kernels in float32, with 2.25 times fewer products: see winograd.c, in Python.

They equal torch's to a few units of the sixth digit, and take 1.3 to 3 times less time on a CPU.
"""

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NAMES = ("winograd_filters", "winograd_convolve", "winograd_filter_gradient")
# The same value as in winograd.c.
_MOST_CHANNELS = 256
_LEAST_CHANNELS = 16  # below, the work on tiles costs more than the products that it saves
_PARTS = 8  # at most, of the sums over tiles: for several threads
_PIXELS = 1024  # of a part, at least

_TENSOR, _INT = ctypes.c_void_p, ctypes.c_int64


class Winograd:
    """Convolutions without padding of float32 channels-last batches; see `Kernels.convolve`.

    Args:
        library: with the functions `NAMES`.
    """

    def __init__(self, library: ctypes.CDLL):
        self._library, self._lanes = library, library.winograd_lanes()
        for name in NAMES:
            getattr(library, name).restype = None

    @staticmethod
    def suits(batch: Tensor, weight: Tensor) -> bool:
        """Whether a batch and a weight are of this kind, and large enough to gain from it."""
        outputs, inputs, *sides = weight.shape
        return (
            batch.dtype == torch.float32
            and batch.device.type == "cpu"
            and sides == [3, 3]
            and min(inputs, outputs) >= _LEAST_CHANNELS
            and max(inputs, outputs) <= _MOST_CHANNELS
        )

    def convolve(self, batch: Tensor, filters: Tensor, bias: Tensor | None, outputs: int, pad: int = 0) -> Tensor:
        """Convolve a batch, surrounded by `pad` zeros, with `filters` of so many output channels."""
        x = _channels_last(batch)
        count, inputs, height, width = x.shape
        shape = count, outputs, height - 2 + 2 * pad, width - 2 + 2 * pad
        y = torch.empty(shape, memory_format=torch.channels_last)
        numbers = count, height, width, inputs, outputs, pad
        self._call("winograd_convolve", [x, filters, bias], numbers, y)
        return y

    def filters(self, weight: Tensor, *, turned: bool = False) -> Tensor:
        """The filters `(16, C, C')` of a weight `(C', C, 3, 3)`; `turned`, of the convolution back from C' to C."""
        weight = _channels_last(weight.detach())
        outputs, inputs = weight.shape[:2]
        filled = self._filled(inputs), self._filled(outputs)
        to = torch.empty(16, *(reversed(filled) if turned else filled))
        self._call("winograd_filters", [weight], (inputs, outputs, int(turned)), to)
        return to

    def weight_gradient(self, grads: Sequence[Tensor], batches: Sequence[Tensor]) -> Tensor:
        """The gradient `(C', C, 3, 3)` of a weight, given those of the outputs for some inputs."""
        outputs, inputs = grads[0].shape[1], batches[0].shape[1]
        total = torch.zeros(3, 3, inputs, self._filled(outputs))
        for grad, batch in zip(grads, batches, strict=True):
            count, _, height, width = batch.shape
            tensors: list[Tensor | None] = [_channels_last(batch), _channels_last(grad)]
            parts = min(_PARTS, 1 + count * height * width // _PIXELS)
            numbers = count, height, width, inputs, outputs, parts
            self._call("winograd_filter_gradient", tensors, numbers, total)
        return total[..., :outputs].permute(3, 2, 0, 1)

    def _filled(self, channels: int) -> int:
        return -(-channels // self._lanes) * self._lanes

    def _call(self, name: str, inputs: list[Tensor | None], numbers: tuple[int, ...], output: Tensor) -> None:
        function: Callable[..., None] = getattr(self._library, name)
        tensors = [_TENSOR(None if tensor is None else tensor.data_ptr()) for tensor in inputs]
        function(*tensors, *map(_INT, numbers), _TENSOR(output.data_ptr()))


def _channels_last(batch: Tensor) -> Tensor:
    return batch.contiguous(memory_format=torch.channels_last)
