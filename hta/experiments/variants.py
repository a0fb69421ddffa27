"""How each variant scores: trained by the same code, brought to one form."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hta.evaluation.scorer import Scorer
from hta.experiments.geom import Geom
from hta.experiments.presets import PRESETS, VARIANTS
from hta.experiments.spec import RunSpec
from hta.images import resize, to_tensor
from hta.models.pyramid import Pyramid
from hta.models.scales import image_pyramid
from hta.runs import TrainingSet
from hta.runtime import Runtime
from hta.training.trainer import train_pyramid

Shares = Callable[[Tensor], np.ndarray]
"""Scores images `(B, 3, h, w)` in [-1, 1] at the working size: `(F, B, S)`, higher = more normal."""

_BATCH = 64


def train_variant(spec: RunSpec, training_set: TrainingSet, runtime: Runtime) -> Shares:
    """Train what a run needs, and return what scores its images.

    Raises:
        RunError: the training broke.
    """
    score = VARIANTS[spec.variant].score
    if score == "distance":
        return lambda images: similarities(images, training_set.images)
    pyramid = train_pyramid(training_set.images, training_set.record, runtime)
    if score == "real_probability":
        return lambda images: real_probabilities(pyramid, images)
    if score == "geom":
        return Geom(pyramid, PRESETS[spec.preset].geom_steps, spec.seed + spec.draw, runtime).shares
    scorer = Scorer(pyramid)
    return lambda images: scorer.shares(images, spec.fractions)


@torch.inference_mode()
def real_probabilities(pyramid: Pyramid, images: Tensor) -> np.ndarray:
    """Mean probability of "real" over the patches of the untransformed images (table 6, b and c).

    Args:
        pyramid: its discriminators know the classes "real" and "fake".
        images: `(B, 3, h, w)` in [-1, 1] at the working size.

    Returns:
        `(1, B, S)` in [0, 1]; higher = more normal.
    """
    means = []
    for scale, level in zip(pyramid.scales, image_pyramid(images.to(pyramid.device), pyramid.plan.sizes), strict=True):
        (logits,) = scale.discriminator([level])
        means.append(F.softmax(logits.float(), dim=1)[:, 0].mean(dim=(1, 2)))
    return torch.stack(means, dim=-1).double().cpu().numpy()[None]


def similarities(images: Tensor, training_images: Tensor) -> np.ndarray:
    """One minus the mean squared error to the training images, mean over these (table 6, f).

    Args:
        images: `(B, 3, h, w)` in [-1, 1] at the working size.
        training_images: `(N, 3, h, w)`, the same.

    Returns:
        `(1, B, 1)`; higher = more normal.
    """
    errors = [(images - image).square().mean(dim=(1, 2, 3)) for image in training_images]
    return 1 - torch.stack(errors).mean(dim=0).double().numpy()[None, :, None]


def score_images(shares: Shares, images: Iterable[np.ndarray], working_size: tuple[int, int]) -> np.ndarray:
    """Score images as they come, in batches.

    Args:
        shares: from `train_variant`.
        images: `(H, W, 3)` float32 arrays in [0, 1], of one size.
        working_size: (height, width) of the model's finest scale.

    Returns:
        `(F, N, S)`, higher = more normal.
    """
    batches = _batches(iter(images))
    return np.concatenate([shares(resize(to_tensor(batch), working_size)) for batch in batches], axis=1)


def _batches(images: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
    while batch := list(islice(images, _BATCH)):
        yield batch
