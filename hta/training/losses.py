"""The losses of a scale (paper, section 3.1), computed on shared canvases.

Let z(p) be the logits at canvas position p, W(p) the windows that contain p, cnt(p) their number, and P the number of
patches in all windows. The mean cross-entropy over transformations, images and patches is then

    real, generator:  1/P sum_p [cnt(p) logsumexp z(p) - sum_{i in W(p)} z_i(p)]
    fake:             1/P sum_p cnt(p) [logsumexp z(p) - z_M(p)]
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hta.config import ModelConfig
from hta.models.canvas import Canvas, CanvasGroup, CanvasPlan, Window, plan_canvases
from hta.models.kernels import PLAIN_KERNELS, Kernels, statistics_dtype


def plan_of_objective(config: ModelConfig, size: tuple[int, int]) -> CanvasPlan:
    """The windows that the discriminators see, each with its class.

    Args:
        config: with the objective "real_fake", D sees only the untransformed image, of class 0 ("real"); with
            "real_fake_augmented" all windows, also of class 0; otherwise every window has its own class.
        size: (height, width) of the scale, pixels.

    Returns:
        The canvases that hold these windows.
    """
    if config.objective == "real_fake":
        canvas = Canvas(False, False, 0, 0, 0, 0, 0, size, (Window(0, 0, 0, *size),))
        return CanvasPlan(size, 1, (CanvasGroup(size, (canvas,)),))
    plan = plan_canvases(*size, config.num_transforms)
    if config.objective != "real_fake_augmented":
        return plan

    def of_class_zero(canvas: Canvas) -> Canvas:
        return replace(canvas, windows=tuple(replace(window, index=0) for window in canvas.windows))

    return replace(plan, groups=tuple(replace(g, canvases=tuple(map(of_class_zero, g.canvases))) for g in plan.groups))


class PatchTargets:
    """The target classes of the logits at each canvas position; constant for a scale.

    Args:
        plan: the canvases.
        num_classes: K, number of classes of the logits.
        margin: pixels that the convolutions have removed on every side of the logits.
        num_images: N, number of images on each canvas.
        dtype, device: of the logits.
        kernels: compute the losses.

    Attributes:
        hits: one `(G, 1, P, K)` uint8 tensor per canvas group: the number of windows of each class at each position.
        fake_hits: the same with the class "fake", the last one, for all windows.
        counts: one `(G, 1, P, 1)` tensor per group, with the data type of the statistics: the number of windows.
        total: number of patches in all windows of all images.
    """

    def __init__(
        self,
        plan: CanvasPlan,
        num_classes: int,
        margin: int,
        num_images: int,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels = PLAIN_KERNELS,
    ):
        self.num_images, self.kernels = num_images, kernels
        self.hits = [_window_hits(group, num_classes, margin).to(device) for group in plan.groups]
        sums = [hits.sum(dim=-1, keepdim=True) for hits in self.hits]
        self.fake_hits = [F.pad(count.to(torch.uint8), (num_classes - 1, 0)) for count in sums]
        self.counts = [count.to(statistics_dtype(dtype)) for count in sums]
        self.total = num_images * sum(int(count.sum()) for count in sums)


def _window_hits(group: CanvasGroup, num_classes: int, margin: int) -> Tensor:
    """The number of windows of each class at each position of the logits: `(G, 1, h * w, num_classes)` uint8."""
    height, width = (side - 2 * margin for side in group.size)
    hits = torch.zeros(len(group.canvases), height, width, num_classes, dtype=torch.uint8)
    for g, canvas in enumerate(group.canvases):
        for window in canvas.windows:
            rows, columns = window.valid(margin)
            hits[g, rows, columns, window.index] += 1
    return hits.flatten(1, 2).unsqueeze(1)


class _CanvasCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy over all patches; the gradient is computed along with the value, group by group."""

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
        return (None, None, *(saved * factor.to(saved.dtype) for saved in ctx.saved_tensors))


def transformation_loss(logits: Sequence[Tensor], targets: PatchTargets) -> Tensor:
    """Cross-entropy with the transformation of each patch as target: the real term of D, the adversarial term of G.

    Args:
        logits: one `(G * N, K, h, w)` tensor per canvas group.
        targets: for the same canvases.

    Returns:
        A scalar, float32 (float64 for float64 logits).
    """
    return _CanvasCrossEntropy.apply(targets, targets.hits, *logits)


def fake_loss(logits: Sequence[Tensor], targets: PatchTargets) -> Tensor:
    """Cross-entropy with the class "fake", the last one, as target, see `transformation_loss`: the fake term of D."""
    return _CanvasCrossEntropy.apply(targets, targets.fake_hits, *logits)
