"""How would other calibrations have done? python -m hta.studies thresholds --input_name brick --results DIR

Reads the results of main_eval.py on a labelled test set, and compares ways of choosing a threshold from the training
images alone: each kind of view separately, all kinds together at several strengths, for the original and the mirrored
images, reconstructions and random samples; with --leave_one_out, for a model of several images, each image scored by a
model of the others. For each it prints the share of normal images rejected (false alarms) and of anomalous images
rejected (recall), with exact 95 % intervals: decided by the scores and, if the results include maps, by the maps.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from hta.errors import UserError
from hta.evaluation.metrics import confusion
from hta.evaluation.pixel_metrics import LEVELS
from hta.evaluation.results import APOSTROPHE, MAPS_FOLDER, METRICS_FILE, SCORES_FILE
from hta.evaluation.scorer import Scorer
from hta.evaluation.scores import anomaly_scores, score_text
from hta.evaluation.thresholds import NormalVotes, proportion
from hta.model import Model
from hta.models.pyramid import fresh_noise
from hta.models.views import ALL_CHANGES, Changes, ViewRule, draw_views, view_rule
from hta.runtime import seeded_generator
from hta.settings import Checked, option
from hta.training.trainer import train_pyramid

STRENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0, 3.5, 4.0, 5.0)
_BATCH = 16


@dataclass(frozen=True)
class ThresholdOptions(Checked):
    """The model and the results."""

    input_name: str = option("", "the model that made the results")
    models_dir: str = option("TrainedModels", "folder of the models")
    results: str = option("", "results folder of main_eval.py on a labelled test set")
    target_fpr: float = option(0.05, "share of a candidate's images that may be rejected", above=0, below=1)
    num_views: int = option(200, "images per candidate", low=2, high=10_000)
    seed: int = option(0, "of the candidates", low=0)
    leave_one_out: bool = option(False, "also train a model without each training image: takes as long as N trainings")

    def __post_init__(self):
        super().__post_init__()
        for name in ("input_name", "results"):
            if not getattr(self, name):
                raise UserError(f"--{name} is missing; see --help")


def candidates(model: Model, count: int, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Make images that could substitute for other normal images, from the training images alone.

    Yields the name of a candidate, and its `(B, 3, h, w)` images in [-1, 1].
    """
    images, config = model.training_images, model.record.config.model
    own = view_rule(config.task, config.num_transforms)
    yield "training images", images
    yield "reconstructions", model.pyramid.reconstruct().clamp(-1, 1)
    index = torch.arange(count) % len(images)
    for start in range(min(2, model.pyramid.plan.num_scales)):
        generator = seeded_generator("study", seed)

        def noise(n: int, size: tuple[int, int], generator=generator) -> torch.Tensor:
            return fresh_noise(n, count, size, generator)

        samples = model.pyramid.sample(noise, index, gen_start_scale=start)
        yield f"random samples from scale {start} on", samples.clamp(-1, 1).cpu()
    for name, value in asdict(ALL_CHANGES).items():
        yield f"{name} alone, strength 3.5", draw_views(images, count, 3.5, seed, Changes(**{name: value}))
    for mirrored in (False, True):
        for strength in STRENGTHS:
            rule = ViewRule(strength, mirrored)
            name = f"{'mirrored' if mirrored else 'views'}, strength {strength:g}"
            yield name + " (the product's)" * (rule == own), rule.draw(images, count, seed, model.scorer.recognition)


class Results(NamedTuple):
    """The results of main_eval.py with the aggregate "mean" on N images.

    `labels` `(N,)`, 1 = anomalous; anomaly `scores` `(N,)`; `peaks` `(N,)`, the maxima of the maps at the working size,
    None without maps; `fraction` of the patches that voted.
    """

    labels: np.ndarray
    scores: np.ndarray
    peaks: np.ndarray | None
    fraction: float


def _votes(scorer: Scorer, images: torch.Tensor, fraction: float) -> NormalVotes:
    shares, maps = zip(*(scorer.score(batch, fraction) for batch in images.split(_BATCH)), strict=True)
    return NormalVotes(np.concatenate(shares), np.concatenate([batch.max(axis=(1, 2)) for batch in maps]))


def _lines(name: str, votes: NormalVotes, results: Results, target_fpr: float) -> Iterator[str]:
    """Report what thresholds derived from a candidate's scores and maps would have decided."""
    found = {"score": (anomaly_scores(votes.shares), results.scores)}
    if votes.peaks is not None and results.peaks is not None:
        found["map"] = (votes.peaks, results.peaks)
    for by, (of_candidate, of_images) in found.items():
        threshold = float(np.quantile(of_candidate, 1 - target_fpr))
        counts = confusion(results.labels, of_images > threshold)
        rates = []
        for rejected, label in (("false_positives", 0), ("true_positives", 1)):
            rate = proportion(counts[rejected], int((results.labels == label).sum()))
            rates.append("{:6.1%} ({:.1%} to {:.1%})".format(rate["value"], *rate["interval_95"]))
        yield f"{name:40} {by:5} {score_text(threshold):>12}  {rates[0]:24}{rates[1]}"


def leave_one_out(model: Model, fraction: float) -> NormalVotes:
    """Score each of N >= 2 training images with a model of the others, trained with the same settings."""
    images, sources, votes = model.training_images, model.record.sources, []
    for n in range(len(images)):
        others = [i for i in range(len(images)) if i != n]
        part = replace(model.record, sources=tuple(sources[i] for i in others))
        pyramid = train_pyramid(images[others], part, model.runtime)
        votes.append(_votes(Scorer(pyramid), images[n : n + 1], fraction))
    return NormalVotes(np.concatenate([one.shares for one in votes]), np.concatenate([one.peaks for one in votes]))


def read_results(folder: Path, working_size: tuple[int, int]) -> Results:
    """Read a results folder of main_eval.py; maps of a size other than the model's are ignored.

    Raises:
        UserError: no results, no labels, or an aggregate other than "mean".
    """
    try:
        scoring = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))["scoring"]
        with (folder / SCORES_FILE).open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            rows = list(csv.DictReader(stream))
        labels = [row["label"] for row in rows]
        scores = np.array([float(row["anomaly_score"]) for row in rows])
        fraction, aggregate = float(scoring["fraction_defect"]), scoring["aggregate"]
        is_votes = scoring.get("score", "paper") == "paper"  # older results lack it
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--results {folder}: not a results folder of main_eval.py ({error})") from error
    if set(labels) != {"0", "1"}:
        raise UserError(f"--results {folder}: needs normal and anomalous images with labels")
    if not is_votes:
        raise UserError(f"--results {folder}: not scored by votes; score again with --score paper")
    if aggregate != "mean":
        raise UserError(f"--results {folder}: scored with --aggregate {aggregate}; score again with --aggregate mean")
    peaks = [_peak(folder / MAPS_FOLDER / f"{row['path'].removeprefix(APOSTROPHE)}.png", working_size) for row in rows]
    return Results(np.array(labels).astype(int), scores, None if None in peaks else np.array(peaks), fraction)


def _peak(file: Path, working_size: tuple[int, int]) -> float | None:
    """The maximum of a map, in [0, 1]; None if it is missing or of another size."""
    if not file.exists():
        return None
    with Image.open(file) as levels:
        return None if levels.size != working_size[::-1] else np.asarray(levels).max() / (LEVELS - 1)


def run(options: ThresholdOptions, model: Model) -> Iterator[str]:
    """Report for every candidate how its thresholds would have decided."""
    if options.leave_one_out and model.record.num_images < 2:
        raise UserError("--leave_one_out: the model has one training image only; it needs two or more")
    results = read_results(Path(options.results), model.pyramid.plan.working_size)
    normal, anomalous = int((results.labels == 0).sum()), int(results.labels.sum())
    yield f"{normal} normal and {anomalous} anomalous images, target {options.target_fpr:.0%}"
    yield f"{'threshold made of':40} {'by':5} {'threshold':>12}  {'false alarms':24}{'recall'}"
    for name, images in candidates(model, options.num_views, options.seed):
        yield from _lines(name, _votes(model.scorer, images, results.fraction), results, options.target_fpr)
    if options.leave_one_out:
        yield from _lines("leave one out", leave_one_out(model, results.fraction), results, options.target_fpr)
