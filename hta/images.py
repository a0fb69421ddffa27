"""Pixels of images: the networks' tensors, and the project's only resizer.

Arrays (H, W, 3), float32 in [0, 1], as `hta.image_files` reads them, become a tensor (N, 3, H, W), float32 in [-1, 1].
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from hta.errors import UserError


def is_gray(array: np.ndarray) -> bool:
    """Return whether every pixel of an image (H, W, 3), or of a stack (..., 3), has exactly R = G = B."""
    return bool((array[..., :1] == array[..., 1:]).all())


def to_tensor(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    """Stack images of one size for the networks.

    Args:
        arrays: N arrays (H, W, 3), float in [0, 1], or one array (N, H, W, 3).

    Returns:
        Tensor (N, 3, H, W), float32 in [-1, 1], contiguous.

    Raises:
        UserError: There is no image, or the sizes differ.
    """
    if len(arrays) == 0:
        raise UserError("images: none given; give at least one")
    sizes = [f"{array.shape[0]} x {array.shape[1]} px" for array in arrays]
    if other := next((number for number, size in enumerate(sizes) if size != sizes[0]), None):
        raise UserError(f"images: number {other} is {sizes[other]}, the first {sizes[0]}; resize them to one size")
    stack = np.stack(arrays).astype(np.float32, copy=False).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(stack * 2 - 1))


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Turn network images (..., 3, H, W), clamped to [-1, 1] here, into pictures (..., H, W, 3), uint8, rounded."""
    levels = (images.detach().float().clamp(-1, 1) + 1) * 127.5
    return levels.round().to(torch.uint8).movedim(-3, -1).cpu().contiguous().numpy()


def resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize images to an exact size: bicubic (a = -0.5), antialiased when shrinking, clamped before and after.

    Args:
        images: Tensor (N, C, H, W), floating point.
        size: Target (height, width) in px.

    Returns:
        Tensor (N, C, height, width) in [-1, 1]: float64 for float64, else float32.
    """
    images = images.clamp(-1, 1)
    if images.dtype != torch.float64:
        images = images.float()
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    resized = F.interpolate(images, size=tuple(size), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(-1, 1)


def fit(size: tuple[int, ...], side: float) -> tuple[int, int]:
    """Scale (height, width, ...) to a longer side; returns (height, width), at least 1 px each."""
    height, width = (max(1, round(length * side / max(size[:2]))) for length in size[:2])
    return height, width
