"""One run, from its images to the record of its result."""

import hashlib
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from hta.config import RuntimeConfig
from hta.data.benchmark import Benchmark, Selection, draw_images, load_dataset
from hta.data.sample import Sample
from hta.errors import RunError
from hta.evaluation.calibration import NUM_VIEWS, VIEWS_SEED
from hta.evaluation.metrics import bootstrap_auroc, image_auroc
from hta.evaluation.scores import AGGREGATES, anomaly_scores
from hta.evaluation.thresholds import Threshold, decide, summarize_decision
from hta.evaluation.views import view_rule
from hta.experiments.presets import METHOD_VERSION
from hta.experiments.spec import Pairs, RunSpec
from hta.experiments.variants import Shares, score_images, train_variant
from hta.models.pyramid import plan_of
from hta.runs import TrainingSet, prepare
from hta.runtime import describe_machine, describe_versions, set_up

FORMAT_VERSION = 1
TARGET_FPR = 0.05
_BATCH = 64
_DIGITS = 6


@dataclass(frozen=True)
class Task:
    """A run and where it is done; nothing here but the spec touches the result.

    Attributes:
        spec: of the run.
        data_root: where the files of its data set lie.
        runtime: device, threads and precision.
    """

    spec: RunSpec
    data_root: str
    runtime: RuntimeConfig


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        spec: of the run.
        record: its result, ready for JSON; None if it failed.
        scores: arrays by name: anomaly scores (higher = more anomalous), labels and names of the test images.
        error: the traceback of a failed run.
    """

    spec: RunSpec
    record: dict[str, Any] | None = None
    scores: dict[str, np.ndarray] | None = None
    error: str | None = None


@lru_cache(maxsize=8)
def prepared_dataset(dataset: str, data_root: str, num_transforms: int | None, preparation: Pairs) -> Benchmark:
    """A data set with its preparation overridden, loaded once a process."""
    benchmark = load_dataset(dataset, data_root, num_transforms=num_transforms)
    return replace(benchmark, spec=replace(benchmark.spec, **dict(preparation)))


def select_images(
    benchmark: Benchmark, pos_class: str, shots: int, draw: int, seed: int, *, in_order: bool
) -> Selection:
    """The images of a draw, or the `draw`-th ones of the class in data-set order."""
    which = {"index_download": draw} if in_order else {"draw": draw}
    return draw_images(benchmark, pos_class, shots, **which, seed=seed)


def digest_images(selection: Selection, test: Sequence[Sample]) -> str:
    """Digest of the training images, pixels included, and of the names of the test images."""
    digest = hashlib.sha256("\n".join(selection.training_ids()).encode())
    for sample in selection.training:
        digest.update(sample.read().tobytes())
    digest.update(_digest_names(test).encode())
    return digest.hexdigest()


def _digest_names(test: Sequence[Sample]) -> str:
    return hashlib.sha256("\n".join(sample.relative for sample in test).encode()).hexdigest()


def attempt(task: Task) -> Outcome:
    """Run a task; an error becomes part of the outcome."""
    try:
        return execute(task)
    except Exception:  # noqa: BLE001 (whatever breaks one run, the others go on)
        return Outcome(task.spec, error=traceback.format_exc())


def execute(task: Task) -> Outcome:
    """Train and score one run.

    Raises:
        RunError: the training broke, or the images are others than those of the plan.
        UserError: the settings do not fit the images.
    """
    spec = task.spec
    benchmark = prepared_dataset(spec.dataset, task.data_root, spec.num_transforms, spec.preparation)
    selection = select_images(benchmark, spec.pos_class, spec.shots, spec.draw, spec.seed, in_order=spec.in_order)
    test = selection.test_samples(spec.test_limit, spec.seed)
    if digest_images(selection, test) != spec.data_sha256:
        raise RunError(f"{task.data_root}: holds other images than the runner saw; give all workers the same data")
    runtime = set_up(task.runtime)

    start = time.perf_counter()
    images = selection.training_images()
    config = replace(spec.config(), runtime=task.runtime)
    training_set = prepare(images, selection.training_ids(), config)
    plan = plan_of(training_set.record.config.model, training_set.record.image_size)
    shares_of = train_variant(spec, training_set, runtime)
    trained = time.perf_counter()
    shares = score_images(shares_of, (sample.read() for sample in test), plan.working_size)
    scored = time.perf_counter()

    labels = np.array([sample.label for sample in test])
    results, scores = measure(spec, shares, labels)
    # All patches, or as many as any fraction has: the last fraction is the largest.
    results["training_shares"] = _rounded(score_images(shares_of, images, plan.working_size)[-1].mean(axis=0))
    results["decision"] = decision_on_views(spec, shares_of, training_set, scores, labels)
    record = {
        "format_version": FORMAT_VERSION,
        "method_version": METHOD_VERSION,
        "key": spec.key,
        "spec": asdict(spec),
        "scales": plan.describe(),
        "training_images": selection.training_ids(),
        "test_images": {
            "normal": int((labels == 0).sum()),
            "anomalous": int(labels.sum()),
            "available": len(selection.test_samples()),
            "names_sha256": _digest_names(test),
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
    names = np.array([sample.relative for sample in test])
    return Outcome(spec, record, {"scores": scores, "labels": labels, "names": names})


def measure(spec: RunSpec, shares: np.ndarray, labels: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """AUROC of a run, higher = better.

    Args:
        spec: of the run.
        shares: `(F, N, S)`, higher = more normal; one fraction a row.
        labels: `(N,)`, 1 = anomalous.

    Returns:
        AUROC by aggregate for the paper's fraction, with a bootstrap interval over the test images, and for every
        fraction and scale; and the `(N,)` anomaly scores that the main figure is of, higher = more anomalous.
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

    The product decides defects by the maxima of their maps, which runs do not make.

    Args:
        spec: of the run.
        shares_of: scores images.
        training_set: what was trained on.
        scores: `(N,)` anomaly scores of the test images for the main fraction, higher = more anomalous.
        labels: `(N,)`, 1 = anomalous.

    Returns:
        From `summarize_decision`.
    """
    model = training_set.record.config.model
    rule = view_rule(model.task, model.num_transforms)

    def recognition(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(shares_of(images)[-1].mean(axis=-1)) * model.num_transforms

    views = rule.draw(training_set.images, NUM_VIEWS, VIEWS_SEED, recognition)
    shares = np.concatenate([shares_of(batch) for batch in views.split(_BATCH)], axis=1)
    of_views = anomaly_scores(shares[spec.fractions.index(spec.main_fraction)])
    limit = float(np.quantile(of_views, 1 - TARGET_FPR))
    threshold = Threshold(limit, source="calibrated", target_fpr=TARGET_FPR)
    rejected = decide(scores, threshold)
    return summarize_decision(labels.tolist(), rejected, replace(threshold, threshold=round(limit, _DIGITS)))


def _auroc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    value = image_auroc(labels, scores)["value"]
    return None if value is None else round(value, _DIGITS)


def _rounded(values) -> list[float]:
    return [round(float(value), _DIGITS) for value in values]
