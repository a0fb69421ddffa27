"""The losses of a scale (paper, section 3.1), on shared canvases.

With z(p) the logits at a canvas position p, W(p) the windows that hold p, cnt(p) their number, and P the number of
patches in all windows, the mean cross-entropy over transformations, images and patches is

    real, generator:  1/P sum_p [cnt(p) logsumexp z(p) - sum_{i in W(p)} z_i(p)]
    fake:             1/P sum_p cnt(p) [logsumexp z(p) - z_M(p)]
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hta.config import ModelConfig
from hta.models.canvas import Canvas, CanvasGroup, CanvasPlan, Window, plan_canvases
from hta.models.kernels import PLAIN_KERNELS, Kernels, statistics_dtype


def plan_of_objective(config: ModelConfig, size: tuple[int, int]) -> CanvasPlan:
    """The windows that the discriminators see, each with the class that it is of.

    Args:
        config: with the objective "real_fake" D sees the untransformed image alone, with "real_fake_augmented" all
            windows, of class 0, "real"; else every window is a class of its own.
        size: (height, width) of the scale, pixels.
    """
    if config.objective == "real_fake":
        canvas = Canvas(False, False, 0, 0, 0, 0, 0, size, (Window(0, 0, 0, *size),))
        return CanvasPlan(size, 1, (CanvasGroup(size, (canvas,)),))
    plan = plan_canvases(*size, config.num_transforms)
    if config.objective != "real_fake_augmented":
        return plan
    return replace(plan, groups=tuple(_of_class_zero(group) for group in plan.groups))


def _of_class_zero(group: CanvasGroup) -> CanvasGroup:
    """A group whose windows are all of class 0."""
    canvases = (
        replace(canvas, windows=tuple(replace(window, index=0) for window in canvas.windows))
        for canvas in group.canvases
    )
    return replace(group, canvases=tuple(canvases))


@dataclass(frozen=True)
class PatchTargets:
    """Which classes the logits of each canvas position are held against: a constant of a scale.

    Attributes:
        num_images: N, images drawn on each canvas.
        hits: one `(G, 1, P, K)` uint8 tensor a canvas group: how many windows of each class hold a position.
        fake_hits: the same if all windows were of the class "fake", the last.
        counts: one `(G, 1, P, 1)` tensor a group, in the type of the statistics: how many windows hold it.
        total: number of patches in all windows of all images.
        kernels: what the losses are computed with.
    """

    num_images: int
    hits: tuple[Tensor, ...]
    fake_hits: tuple[Tensor, ...]
    counts: tuple[Tensor, ...]
    total: int
    kernels: Kernels = PLAIN_KERNELS

    @classmethod
    def of_plan(
        cls,
        plan: CanvasPlan,
        num_classes: int,
        margin: int,
        num_images: int,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels = PLAIN_KERNELS,
    ) -> "PatchTargets":
        """Targets for patches of N images on a plan's canvases.

        Args:
            plan: the canvases.
            num_classes: K, of the logits.
            margin: pixels that the logits have lost on every side.
            num_images: N.
            dtype: of the logits.
            device: of the logits.
            kernels: what the losses are computed with.
        """
        hits = [_window_hits(group, num_classes, margin).flatten(1, 2).unsqueeze(1).to(device) for group in plan.groups]
        held = [h.sum(dim=-1, keepdim=True) for h in hits]
        fake_hits = [F.pad(count.to(torch.uint8), (num_classes - 1, 0)) for count in held]
        counts = [count.to(statistics_dtype(dtype)) for count in held]
        total = num_images * sum(int(count.sum()) for count in held)
        return cls(num_images, tuple(hits), tuple(fake_hits), tuple(counts), total, kernels)


def _window_hits(group: CanvasGroup, num_classes: int, margin: int) -> Tensor:
    """How many windows of each class hold each position of the logits: `(G, h, w, num_classes)` uint8."""
    height, width = (side - 2 * margin for side in group.size)
    hits = torch.zeros(len(group.canvases), height, width, num_classes, dtype=torch.uint8)
    for g, canvas in enumerate(group.canvases):
        for window in canvas.windows:
            hits[(g, *window.valid(margin), window.index)] += 1
    return hits


class _CanvasCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy over all patches; the gradient is made along with the value, group by group."""

    @staticmethod
    def forward(ctx, targets: PatchTargets, all_hits: Sequence[Tensor], *logits):
        values, grads = [], []
        for z, hits, counts in zip(logits, all_hits, targets.counts, strict=True):
            rows = z.permute(0, 2, 3, 1)
            by_canvas = rows.reshape(len(hits), targets.num_images, -1, rows.shape[-1])
            value, grad = targets.kernels.cross_entropy(by_canvas, hits, counts)
            values.append(value)
            grads.append(grad.view(rows.shape).permute(0, 3, 1, 2))
        ctx.save_for_backward(*grads)
        ctx.total = targets.total
        return sum(values) / targets.total

    @staticmethod
    def backward(ctx, grad):
        factor = grad / ctx.total
        return None, None, *(saved * factor.to(saved.dtype) for saved in ctx.saved_tensors)


def transformation_loss(logits: Sequence[Tensor], targets: PatchTargets) -> Tensor:
    """Cross-entropy of every patch against its transformation: the real term of D, and what G is trained for.

    Args:
        logits: one `(G * N, K, h, w)` tensor a canvas group.
        targets: made for the same plan.

    Returns:
        A scalar, float32 (float64 for float64 logits).
    """
    return _CanvasCrossEntropy.apply(targets, targets.hits, *logits)


def fake_loss(logits: Sequence[Tensor], targets: PatchTargets) -> Tensor:
    """Cross-entropy of every patch against the class "fake", the last: the fake term of D.

    Args:
        logits: one `(G * N, K, h, w)` tensor a canvas group.
        targets: made for the same plan.

    Returns:
        A scalar, float32 (float64 for float64 logits).
    """
    return _CanvasCrossEntropy.apply(targets, targets.fake_hits, *logits)
