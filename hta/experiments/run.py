"""One run, from its images to the record of its result: train a variant, score the test images, measure.

All variants are trained by the same code, and each comes to one form, a function that scores images.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import islice, product
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hta.config import RuntimeConfig
from hta.errors import RunError
from hta.evaluation.calibration import NUM_VIEWS, VIEWS_SEED
from hta.evaluation.combined import error_per_vote, squared_errors
from hta.evaluation.metrics import bootstrap_auroc, image_auroc
from hta.evaluation.nearest import NearestMaps, nearest_rule
from hta.evaluation.scorer import Scorer
from hta.evaluation.scores import AGGREGATES, anomaly_scores
from hta.evaluation.thresholds import CALIBRATED, decide, make_threshold, summarize_decision
from hta.experiments.plan import (
    METHOD_VERSION,
    PRESETS,
    VARIANTS,
    RunSpec,
    digest_names,
    prepared_dataset,
    select_images,
)
from hta.experiments.results import FORMAT_VERSION
from hta.images import resize, to_tensor
from hta.models.pyramid import Pyramid
from hta.models.scales import image_pyramid, plan_of
from hta.models.transforms import mirror_pad
from hta.models.views import view_rule
from hta.runs import TrainingSet, prepare
from hta.runtime import Runtime, describe_machine, describe_versions, own_process, seeded_generator, set_up
from hta.training.samples import draw_samples
from hta.training.trainer import train_pyramid

Shares = Callable[[Tensor], np.ndarray]
"""Scores images `(B, 3, h, w)` in [-1, 1] at the working size: `(F, B, S)`, higher = more normal."""

TARGET_FPR = 0.05
GEOM_SIDE = 32
GEOM_NUM_TRANSFORMS = 72
GEOM_NUM_SAMPLES = 6_000
"""Of GEOM: side of its images, transformations, and samples of the pyramid that it is trained on."""

_SHIFT = GEOM_SIDE // 4
_TRAIN_BATCH, _BATCH = 128, 64
_DIGITS = 6


def execute(spec: RunSpec, data_root: str, config: RuntimeConfig) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Train and score one run.

    Only the rounding of the result depends on `config`: device, threads and precision.

    Returns:
        The record of the result, ready for JSON; and the anomaly scores (higher = more anomalous), labels and names of
        the test images.

    Raises:
        RunError: the training failed, or the images differ from those of the plan.
        UserError: the settings do not fit the images.
    """
    benchmark = prepared_dataset(spec.dataset, data_root, spec.num_transforms, spec.preparation)
    selection, test, digest = select_images(spec, benchmark)
    if digest != spec.data_sha256:
        raise RunError(f"{data_root}: holds other images than the runner saw; give all workers the same data")
    own_process(config)
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
    views = votes_on_views(spec, shares_of, training_set)
    results["decision"] = decide_by_views(anomaly_scores(views.shares), scores, labels)
    if spec.task == "class" and VARIANTS[spec.variant].score == "votes":
        main = shares[spec.fractions.index(spec.main_fraction)]
        errors = errors_of((sample.read() for sample in test), training_set.images)
        combined = error_per_vote(main, errors)
        decision = decide_by_views(error_per_vote(views.shares, views.errors), combined, labels)
        results["combined"] = {"auroc": _auroc(labels, combined), "decision": decision}
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
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": describe_machine(runtime),
            "versions": describe_versions(),
        },
    }
    test_names = np.array([sample.relative for sample in test])
    return record, {"scores": scores, "labels": labels, "names": test_names}


def train_variant(spec: RunSpec, training_set: TrainingSet, runtime: Runtime) -> Shares:
    """Train what a run needs, and return what scores its images; a RunError says that the training failed."""
    score = VARIANTS[spec.variant].score
    if score == "distance":
        return lambda images: similarities(images, training_set.images)
    pyramid = train_pyramid(training_set.images, training_set.record, runtime)
    if score == "real_probability":
        return lambda images: real_probabilities(pyramid, images)
    if score == "geom":
        return Geom(pyramid, PRESETS[spec.preset].geom_steps, spec.training_seed, runtime).shares
    scorer = Scorer(pyramid)
    if score == "nearest":
        return Nearest(scorer, training_set.images)
    return lambda images: scorer.shares(images, spec.fractions)


class Nearest:
    """Scores images by the nearest patches of the training images."""

    def __init__(self, scorer: Scorer, training_images: Tensor):
        self._maps = NearestMaps(scorer.features, scorer.plan, training_images)
        self.recognition = scorer.recognition

    def __call__(self, images: Tensor) -> np.ndarray:
        """One minus the maximum of each map: `(1, B, 1)` in [0, 1], higher = more normal."""
        return 1 - self._maps.maps(images).amax(dim=(1, 2)).double().cpu().numpy()[None, :, None]


@torch.inference_mode()
def real_probabilities(pyramid: Pyramid, images: Tensor) -> np.ndarray:
    """Mean probability of "real" over the patches of the untransformed images (table 6, b and c).

    The discriminators of the pyramid know "real" and "fake"; images are `(B, 3, h, w)` in [-1, 1] at the working size.
    Returns `(1, B, S)` in [0, 1]; higher = more normal.
    """
    means = []
    for scale, level in zip(pyramid.scales, image_pyramid(images.to(pyramid.device), pyramid.plan.sizes), strict=True):
        (logits,) = scale.discriminator([level])
        means.append(F.softmax(logits.float(), dim=1)[:, 0].mean(dim=(1, 2)))
    return torch.stack(means, dim=-1).double().cpu().numpy()[None]


def similarities(images: Tensor, training_images: Tensor) -> np.ndarray:
    """One minus the mean squared error of images `(B, 3, h, w)` to the training images (table 6, f).

    Returns `(1, B, 1)`, averaged over the training images `(N, 3, h, w)`; higher = more normal.
    """
    errors = [(images - image).square().mean(dim=(1, 2, 3)) for image in training_images]
    return 1 - torch.stack(errors).mean(dim=0).double().numpy()[None, :, None]


def score_images(shares_of: Shares, images: Iterable[np.ndarray], working_size: tuple[int, int]) -> np.ndarray:
    """Score images `(H, W, 3)` in [0, 1] as they are read, in batches at the model's working size (height, width).

    Returns `(F, N, S)`, higher = more normal.
    """
    rest = iter(images)
    batches = iter(lambda: list(islice(rest, _BATCH)), [])
    return np.concatenate([shares_of(resize(to_tensor(batch), working_size)) for batch in batches], axis=1)


# --- GEOM ----------------------------------------------------------------------------------------------------------


def transformed_pixels() -> Tensor:
    """Which pixel each pixel of each transformed image shows, `(72, 32 * 32)`.

    The transformations are flip {no, yes} x shift in x and in y {0, -8, +8} (mirrored) x rotation {0, 90, 180, 270}.
    """
    numbers = torch.arange(GEOM_SIDE * GEOM_SIDE).view(1, 1, GEOM_SIDE, GEOM_SIDE)
    sources = []
    for flip, x, y, turns in product((False, True), (0, -_SHIFT, _SHIFT), (0, -_SHIFT, _SHIFT), range(4)):
        image = mirror_pad(numbers.flip(-1) if flip else numbers, *([_SHIFT] * 4))
        image = image[..., _SHIFT - y : _SHIFT - y + GEOM_SIDE, _SHIFT - x : _SHIFT - x + GEOM_SIDE]
        sources.append(torch.rot90(image, turns, dims=(-2, -1)).flatten())
    return torch.stack(sources)


class _Block(nn.Module):
    """Pre-activation residual block of two 3 x 3 convolutions."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        return self.conv2(F.relu(self.norm2(self.conv1(active)))) + self.shortcut(active)


class WideResNet(nn.Module):
    """Wide-ResNet of depth 10 with four times the channels (WRN-10-4): one block in each of its three groups."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(_Block(16, 64, 1), _Block(64, 128, 2), _Block(128, 256, 2))
        self.norm, self.head = nn.BatchNorm2d(256), nn.Linear(256, GEOM_NUM_TRANSFORMS)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, 72)` of `(B, 3, H, W)` images."""
        return self.head(F.relu(self.norm(self.blocks(self.stem(x)))).mean(dim=(-2, -1)))

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw all weights from one generator: He's for convolutions, 0.01 for the head."""
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", generator=generator)
            elif isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, 0.0, 0.01, generator=generator)
                nn.init.zeros_(part.bias)


class Geom:
    """GEOM (Golan & El-Yaniv, "Deep Anomaly Detection Using Geometric Transformations", NeurIPS 2018; table 6, g).

    A Wide-ResNet-10-4 (Zagoruyko & Komodakis, BMVC 2016) names which of 72 transformations a 32 x 32 image went
    through. It is trained on images that a trained pyramid generates, for a fixed number of steps of 128 transformed
    images. An image's score is the mean, over the transformations, of the softmax probability of the right one: the
    simple score of GEOM's section 4, not its Dirichlet form, which needs a held-out set of real normal images.

    Budget: 1.2 million weights; on one busy core with AVX512-BF16 a step took 0.7 s and an image 0.1 s to score
    (float32: 1.4 s and 0.2 s). The seed is of samples, weights and batches.
    """

    def __init__(self, pyramid: Pyramid, steps: int, seed: int, runtime: Runtime, num_samples: int = GEOM_NUM_SAMPLES):
        self.runtime = runtime
        self._pixels = transformed_pixels().to(runtime.device)
        stream = seeded_generator(seed, "geom")
        self.network = WideResNet()
        self.network.draw_weights(stream)
        self.network.to(runtime.device).to(memory_format=torch.channels_last)
        samples = torch.cat([resize(b, (GEOM_SIDE, GEOM_SIDE)) for b in draw_samples(pyramid, num_samples, seed)])
        samples = samples.to(runtime.device)
        optimizer = torch.optim.Adam(self.network.parameters(), 1e-3, fused=True)
        for _ in range(steps):
            images = torch.randint(len(samples), (_TRAIN_BATCH,), generator=stream).to(samples.device)
            classes = torch.randint(GEOM_NUM_TRANSFORMS, (_TRAIN_BATCH,), generator=stream).to(samples.device)
            loss = F.cross_entropy(self._logits(samples[images], classes), classes)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        self.network.eval().requires_grad_(False)

    def _logits(self, images: Tensor, classes: Tensor) -> Tensor:
        """Logits `(B, 72)` of images, each transformed by its own class."""
        source = self._pixels[classes].unsqueeze(1).expand(-1, 3, -1)
        transformed = images.flatten(2).gather(2, source).view_as(images)
        with torch.autocast(self.runtime.device.type, torch.bfloat16, enabled=self.runtime.dtype == torch.bfloat16):
            return self.network(transformed.contiguous(memory_format=torch.channels_last)).float()

    @torch.inference_mode()
    def shares(self, images: Tensor) -> np.ndarray:
        """Mean probability of the right transformation of images `(B, 3, h, w)` in [-1, 1].

        Returns `(1, B, 1)` in [0, 1]; higher = more normal.
        """
        small = resize(images.to(self.runtime.device), (GEOM_SIDE, GEOM_SIDE))
        total = torch.zeros(len(small), device=small.device)
        for transformation in range(GEOM_NUM_TRANSFORMS):
            classes = torch.full((len(small),), transformation, device=small.device)
            total += F.softmax(self._logits(small, classes), dim=1)[:, transformation]
        return (total / GEOM_NUM_TRANSFORMS).double().cpu().numpy()[None, :, None]


# --- the figures ---------------------------------------------------------------------------------------------------


def measure(spec: RunSpec, shares: np.ndarray, labels: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """AUROC of a run, higher = better, from shares `(F, N, S)`, higher = more normal, and labels `(N,)`, 1 = anomalous.

    The shares have one row for each fraction of the run.
    Returns AUROC by aggregate for the main fraction, with a bootstrap interval over the test images, and for every
    fraction and scale; and the `(N,)` anomaly scores that the main figure is of, higher = more anomalous.
    """
    by_fraction = {
        f"{fraction:g}": {aggregate: _auroc(labels, anomaly_scores(part, aggregate)) for aggregate in AGGREGATES}
        for fraction, part in zip(spec.fractions, shares, strict=True)
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


class ViewVotes(NamedTuple):
    """What is known of V views of the training images."""

    shares: np.ndarray  # `(V, S)`, higher = more normal
    errors: np.ndarray  # `(V,)` squared errors, higher = more anomalous


def votes_on_views(spec: RunSpec, shares_of: Shares, training_set: TrainingSet) -> ViewVotes:
    """Score views of the training images, for the main fraction."""
    if isinstance(shares_of, Nearest):
        rule, recognition = nearest_rule(spec.task, spec.num_transforms), shares_of.recognition
    else:
        rule = view_rule(spec.task, spec.num_transforms)

        def recognition(images: Tensor) -> Tensor:
            return torch.from_numpy(shares_of(images)[-1].mean(axis=-1)) * spec.num_transforms

    views = rule.draw(training_set.images, NUM_VIEWS, VIEWS_SEED, recognition)
    main = spec.fractions.index(spec.main_fraction)
    shares = np.concatenate([shares_of(batch)[main] for batch in views.split(_BATCH)])
    return ViewVotes(shares, squared_errors(views, training_set.images))


def errors_of(images: Iterable[np.ndarray], training_images: Tensor) -> np.ndarray:
    """Squared errors `(N,)` of images `(H, W, 3)` in [0, 1], as they are read; higher = more anomalous."""
    height, width = training_images.shape[-2:]
    return np.concatenate(
        [squared_errors(resize(to_tensor([image]), (height, width)), training_images) for image in images]
    )


def decide_by_views(of_views: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """False alarms and recall at the threshold that scores `of_views` of the training images give.

    The product decides defects by the maxima of their maps, which runs do not compute. `scores` are those of the test
    images, `(N,)`, higher = more anomalous; of their labels, 1 = anomalous.
    """
    threshold = make_threshold(of_views, None, TARGET_FPR, CALIBRATED)
    decision = summarize_decision(labels.tolist(), decide(scores, threshold), threshold)
    return decision | {"threshold": round(decision["threshold"], _DIGITS)}


def _auroc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    value = image_auroc(labels, scores)["value"]
    return None if value is None else round(value, _DIGITS)


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), _DIGITS) for value in values]
