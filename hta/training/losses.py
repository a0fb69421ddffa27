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

from hta.canvas import Canvas, CanvasGroup, CanvasPlan, Window, plan_canvases
from hta.config import ModelConfig
from hta.models.blocks import Coverage, statistics_dtype


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
        plan: the canvases.
        margin: pixels that the logits have lost on every side.
        num_images: N, images drawn on each canvas.
        coverage: counts of the windows at the logits.
    """

    plan: CanvasPlan
    margin: int
    num_images: int
    coverage: Coverage

    @classmethod
    def of_plan(cls, plan: CanvasPlan, margin: int, num_images: int, dtype: torch.dtype, device: torch.device):
        """Targets for N images on a plan's canvases, logits of `dtype` on `device`."""
        counts = [group.coverage(margin) for group in plan.groups]
        return cls(plan, margin, num_images, Coverage.of_counts(counts, num_images, dtype, device))


class _CanvasCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy over all patches; the gradient is made along with the value, group by group."""

    @staticmethod
    def forward(ctx, targets: PatchTargets, fake: bool, *logits):
        grads, total = [], torch.zeros((), dtype=statistics_dtype(logits[0].dtype), device=logits[0].device)
        for z, group, weights in zip(logits, targets.plan.groups, targets.coverage.weights, strict=True):
            rows = z.permute(0, 2, 3, 1)
            log_p = F.log_softmax(rows, dim=-1, dtype=total.dtype)
            weights = weights.view(*rows.shape[:-1], 1)
            classes = _fake_class(log_p) if fake else _window_classes(log_p, group, targets)
            total -= sum((part * weights[..., 0]).sum() if fake else part.sum() for part in classes)
            grad = log_p.exp_().mul_(weights)
            for part in classes:
                part -= weights[..., 0] if fake else 1
            grads.append(grad.div_(targets.coverage.total).to(z.dtype).permute(0, 3, 1, 2))
        ctx.save_for_backward(*grads)
        return total / targets.coverage.total

    @staticmethod
    def backward(ctx, grad):
        return None, None, *(saved * grad.to(saved.dtype) for saved in ctx.saved_tensors)


def _fake_class(rows: Tensor) -> list[Tensor]:
    """The values of the class "fake", the last, at every position: a view of `(B, h, w, M + 1)` rows."""
    return [rows[..., -1]]


def _window_classes(rows: Tensor, group: CanvasGroup, targets: PatchTargets) -> list[Tensor]:
    """The values of its own class in every window: views of `(G * N, h, w, M + 1)` rows."""
    by_canvas = rows.view(len(group.canvases), targets.num_images, *rows.shape[1:])
    return [
        by_canvas[(g, slice(None), *window.valid(targets.margin), window.index)]
        for g, canvas in enumerate(group.canvases)
        for window in canvas.windows
    ]


def transformation_loss(logits: Sequence[Tensor], targets: PatchTargets) -> Tensor:
    """Cross-entropy of every patch against its transformation: the real term of D, and what G is trained for.

    Args:
        logits: one `(G * N, M + 1, h, w)` tensor a canvas group.
        targets: made for the same plan.

    Returns:
        A scalar, float32 (float64 for float64 logits).
    """
    return _CanvasCrossEntropy.apply(targets, False, *logits)


def fake_loss(logits: Sequence[Tensor], targets: PatchTargets) -> Tensor:
    """Cross-entropy of every patch against the class "fake", the last: the fake term of D.

    Args:
        logits: one `(G * N, M + 1, h, w)` tensor a canvas group.
        targets: made for the same plan.

    Returns:
        A scalar, float32 (float64 for float64 logits).
    """
    return _CanvasCrossEntropy.apply(targets, True, *logits)
