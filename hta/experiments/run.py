"""One run, from its images to the record of its result: train a variant, score the test images, measure.

All variants are trained by the same code, and each comes to one form, a function that scores images.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from datetime import datetime, timezone
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hta.config import RuntimeConfig
from hta.data.benchmark import Selection, draw_images
from hta.errors import RunError
from hta.evaluation.calibration import NUM_VIEWS, VIEWS_SEED
from hta.evaluation.metrics import bootstrap_auroc, image_auroc
from hta.evaluation.scorer import Scorer
from hta.evaluation.scores import AGGREGATES, anomaly_scores
from hta.evaluation.thresholds import CALIBRATED, decide, make_threshold, summarize_decision
from hta.evaluation.views import view_rule
from hta.experiments.geom import Geom
from hta.experiments.plan import digest_images, digest_names, prepared_dataset
from hta.experiments.results import FORMAT_VERSION
from hta.experiments.spec import METHOD_VERSION, PRESETS, VARIANTS, RunSpec
from hta.images import resize, to_tensor
from hta.models.pyramid import Pyramid
from hta.models.scales import image_pyramid, plan_of
from hta.runs import TrainingSet, prepare
from hta.runtime import Runtime, describe_machine, describe_versions, set_up
from hta.training.trainer import train_pyramid

Shares = Callable[[Tensor], np.ndarray]
"""Scores images `(B, 3, h, w)` in [-1, 1] at the working size: `(F, B, S)`, higher = more normal."""

TARGET_FPR = 0.05
_BATCH = 64
_DIGITS = 6


def execute(spec: RunSpec, data_root: str, config: RuntimeConfig) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Train and score one run.

    Args:
        spec: of the run.
        data_root: folder of its data set.
        config: device, threads and precision; only the rounding of the result depends on them.

    Returns:
        The record of the result, ready for JSON; and the anomaly scores (higher = more anomalous), labels and names of
        the test images.

    Raises:
        RunError: the training failed, or the images differ from those of the plan.
        UserError: the settings do not fit the images.
    """
    selection = _planned_images(spec, data_root)
    test = selection.test_samples(spec.test_limit, spec.seed)
    if digest_images(selection, test) != spec.data_sha256:
        raise RunError(f"{data_root}: holds other images than the runner saw; give all workers the same data")
    runtime = set_up(config)

    start = time.perf_counter()
    images, names = selection.training_images(), selection.training_ids()
    training_set = prepare(images, names, replace(spec.config(), runtime=config))
    plan = plan_of(training_set.record.config.model, training_set.record.image_size)
    shares_of = train_variant(spec, training_set, runtime)
    trained = time.perf_counter()
    shares = score_images(shares_of, (sample.read() for sample in test), plan.working_size)
    scored = time.perf_counter()

    labels = np.array([sample.label for sample in test])
    results, scores = measure(spec, shares, labels)
    # With all patches, or as many as any fraction has: the last fraction is the largest.
    results["training_shares"] = _rounded(score_images(shares_of, images, plan.working_size)[-1].mean(axis=0))
    results["decision"] = decision_on_views(spec, shares_of, training_set, scores, labels)
    record = {
        "format_version": FORMAT_VERSION,
        "method_version": METHOD_VERSION,
        "key": spec.key,
        "spec": asdict(spec),
        "scales": plan.describe(),
        "training_images": names,
        "test_images": {
            "normal": int((labels == 0).sum()),
            "anomalous": int(labels.sum()),
            "available": len(selection.test_samples()),
            "names_sha256": digest_names(test),
        },
        "results": results,
        "run": {
            "seconds_training": round(trained - start, 2),
            "seconds_scoring": round(scored - trained, 2),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": describe_machine(runtime),
            "versions": describe_versions(),
        },
    }
    test_names = np.array([sample.relative for sample in test])
    return record, {"scores": scores, "labels": labels, "names": test_names}


def _planned_images(spec: RunSpec, data_root: str) -> Selection:
    benchmark = prepared_dataset(spec.dataset, data_root, spec.num_transforms, spec.preparation)
    return draw_images(benchmark, spec.pos_class, spec.shots, spec.draw, in_order=spec.in_order, seed=spec.seed)


def train_variant(spec: RunSpec, training_set: TrainingSet, runtime: Runtime) -> Shares:
    """Train what a run needs, and return what scores its images.

    Raises:
        RunError: the training failed.
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
    """One minus the mean squared error to the training images, averaged over them (table 6, f).

    Args:
        images: `(B, 3, h, w)` in [-1, 1] at the working size.
        training_images: `(N, 3, h, w)`, the same.

    Returns:
        `(1, B, 1)`; higher = more normal.
    """
    errors = [(images - image).square().mean(dim=(1, 2, 3)) for image in training_images]
    return 1 - torch.stack(errors).mean(dim=0).double().numpy()[None, :, None]


def score_images(shares_of: Shares, images: Iterable[np.ndarray], working_size: tuple[int, int]) -> np.ndarray:
    """Score images as they are read, in batches.

    Args:
        shares_of: from `train_variant`.
        images: `(H, W, 3)` float32 arrays in [0, 1], of one size.
        working_size: (height, width) of the model's finest scale.

    Returns:
        `(F, N, S)`, higher = more normal.
    """
    batches = _batches(iter(images))
    return np.concatenate([shares_of(resize(to_tensor(batch), working_size)) for batch in batches], axis=1)


def _batches(images: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
    while batch := list(islice(images, _BATCH)):
        yield batch


def measure(spec: RunSpec, shares: np.ndarray, labels: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """AUROC of a run, higher = better.

    Args:
        spec: of the run.
        shares: `(F, N, S)`, higher = more normal; one row per fraction.
        labels: `(N,)`, 1 = anomalous.

    Returns:
        AUROC by aggregate for the main fraction, with a bootstrap interval over the test images, and for every fraction
        and scale; and the `(N,)` anomaly scores that the main figure is of, higher = more anomalous.
    """
    by_fraction = {}
    for fraction, part in zip(spec.fractions, shares, strict=True):
        by_fraction[f"{fraction:g}"] = {
            aggregate: _auroc(labels, anomaly_scores(part, aggregate)) for aggregate in AGGREGATES
        }
    main = shares[spec.fractions.index(spec.main_fraction)]
    scores = anomaly_scores(main)
    interval = bootstrap_auroc(labels, scores, np.random.default_rng(spec.seed))
    results = {
        "fraction": spec.main_fraction,
        "auroc": by_fraction[f"{spec.main_fraction:g}"],
        "auroc_interval_95": None if interval["low"] is None else _rounded([interval["low"], interval["high"]]),
        "auroc_by_fraction": by_fraction,
        "auroc_by_scale": [_auroc(labels, -column) for column in main.T],
    }
    return results, scores


def decision_on_views(
    spec: RunSpec, shares_of: Shares, training_set: TrainingSet, scores: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """False alarms and recall at the threshold that views of the training images give, by the score.

    The product decides defects by the maxima of their maps, which runs do not compute.

    Args:
        spec: of the run.
        shares_of: scores images.
        training_set: what was trained on.
        scores: `(N,)` anomaly scores of the test images for the main fraction, higher = more anomalous.
        labels: `(N,)`, 1 = anomalous.

    Returns:
        From `summarize_decision`.
    """
    rule = view_rule(training_set.record.config.model.task, spec.num_transforms)

    def recognition(images: Tensor) -> Tensor:
        return torch.from_numpy(shares_of(images)[-1].mean(axis=-1)) * spec.num_transforms

    views = rule.draw(training_set.images, NUM_VIEWS, VIEWS_SEED, recognition)
    main = spec.fractions.index(spec.main_fraction)
    shares = np.concatenate([shares_of(batch)[main] for batch in views.split(_BATCH)])
    threshold = make_threshold(anomaly_scores(shares), None, TARGET_FPR, CALIBRATED)
    decision = summarize_decision(labels.tolist(), decide(scores, threshold), threshold)
    return decision | {"threshold": round(decision["threshold"], _DIGITS)}


def _auroc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    value = image_auroc(labels, scores)["value"]
    return None if value is None else round(value, _DIGITS)


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), _DIGITS) for value in values]
