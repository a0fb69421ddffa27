"""What would other calibrations have given? python -m hta.calibration_study --input_name brick --results DIR

Reads the results of main_eval.py on a labelled test set, and compares ways of making a threshold from the training
images alone: each kind of view by itself, all together at several strengths, of the images as they are and mirrored,
reconstructions and random samples; with --leave_one_out, for a model of several images, each of them under a model of
the others. For each it prints the share of normal images rejected (false alarms) and of anomalous ones (recall), with
exact 95 % intervals.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from hta import api
from hta.cli import NOT_FOR_SCORING, Parser, add_settings, run_command, take_settings
from hta.config import Checked, RuntimeConfig, option
from hta.errors import UserError
from hta.evaluation.decision import confusion, proportion
from hta.evaluation.evaluator import Evaluator
from hta.evaluation.results import METRICS_FILE, SCORES_FILE
from hta.evaluation.scoring import anomaly_scores
from hta.evaluation.views import ALL_CHANGES, Changes, ViewRule, draw_views, view_rule
from hta.models.pyramid import fresh_noise
from hta.runtime import seeded_generator
from hta.training.trainer import train_pyramid

STRENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0, 3.5, 4.0, 5.0)
_BATCH = 16


@dataclass(frozen=True)
class StudyOptions(Checked):
    """Which model, and which results."""

    input_name: str = option("", "the model that made the results")
    models_dir: str = option("TrainedModels", "folder of the models")
    results: str = option("", "results folder of main_eval.py on a labelled test set")
    target_fpr: float = option(0.05, "share of the candidates' images that may be rejected", above=0, below=1)
    num_views: int = option(200, "images of each candidate", low=2, high=10_000)
    seed: int = option(0, "of the candidates", low=0)
    leave_one_out: bool = option(False, "train a model without each training image too: takes as long as N trainings")


@dataclass(frozen=True)
class Row:
    """What one candidate would have given.

    Attributes:
        name: of the candidate.
        threshold: of the anomaly score.
        false_positive_rate, recall: from `hta.evaluation.decision.proportion`.
    """

    name: str
    threshold: float
    false_positive_rate: dict
    recall: dict


def candidates(model: api.Model, count: int, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Images that may stand in for other normal images, from the training images alone.

    Yields:
        Name of a candidate, and its `(B, 3, h, w)` images in [-1, 1].
    """
    images, config = model.training_images, model.record.config.model
    recognition = model.evaluator(with_maps=False).recognition
    own = view_rule(config.task, config.num_transforms)
    yield "training images", images
    yield "reconstructions", model.pyramid.reconstruct().clamp(-1, 1)
    for start in range(min(2, model.pyramid.plan.num_scales)):
        yield f"random samples from scale {start} on", _samples(model, count, seed, start)
    for name, value in asdict(ALL_CHANGES).items():
        yield f"{name} alone, strength 3.5", draw_views(images, count, 3.5, seed, Changes(**{name: value}))
    for mirrored in (False, True):
        for strength in STRENGTHS:
            rule = ViewRule(strength, mirrored)
            mark = " (the product's)" if rule == own else ""
            name = f"{'mirrored' if mirrored else 'views'}, strength {strength:g}{mark}"
            yield name, rule.draw(images, count, seed, recognition)


def _samples(model: api.Model, count: int, seed: int, start: int) -> torch.Tensor:
    generator = seeded_generator("study", seed)

    def noise(n: int, size: tuple[int, int]) -> torch.Tensor:
        return fresh_noise(n, count, size, generator)

    index = torch.arange(count) % model.record.num_images
    return model.pyramid.sample(noise, index, gen_start_scale=start).clamp(-1, 1).cpu()


def study(
    model: api.Model, labels: np.ndarray, scores: np.ndarray, fraction: float, options: StudyOptions
) -> Iterator[Row]:
    """Try every candidate.

    Args:
        model: that made the scores.
        labels: `(N,)`, 1 = anomalous.
        scores: `(N,)` anomaly scores, aggregate "mean".
        fraction: part of the patches that voted.
        options: target and number of images.
    """
    evaluator = model.evaluator((fraction,), with_maps=False)
    for name, images in candidates(model, options.num_views, options.seed):
        shares = np.concatenate([evaluator.score(batch).shares[0] for batch in images.split(_BATCH)])
        yield _row(name, shares, labels, scores, options.target_fpr)
    if options.leave_one_out:
        yield _row("leave one out", leave_one_out(model, fraction), labels, scores, options.target_fpr)


def _row(name: str, shares: np.ndarray, labels: np.ndarray, scores: np.ndarray, target_fpr: float) -> Row:
    """What a threshold from these `(V, S)` vote shares would have given."""
    threshold = np.quantile(anomaly_scores(torch.from_numpy(shares)).numpy(), 1 - target_fpr)
    counts = confusion(labels, scores > threshold)
    return Row(
        name,
        float(threshold),
        proportion(counts["false_positives"], int((labels == 0).sum())),
        proportion(counts["true_positives"], int(labels.sum())),
    )


def leave_one_out(model: api.Model, fraction: float) -> np.ndarray:
    """What models of all training images but one say about that one, trained as the model was.

    Args:
        model: of N >= 2 images.
        fraction: part of the patches that vote.

    Returns:
        `(N, S)` vote shares, higher = more normal.
    """
    images, record, shares = model.training_images, model.record, []
    for n in range(len(images)):
        others = [i for i in range(len(images)) if i != n]
        part = replace(record, sources=tuple(record.sources[i] for i in others))
        pyramid = train_pyramid(images[others], part, model.runtime)
        shares.append(Evaluator(pyramid, (fraction,), with_maps=False).score(images[n : n + 1]).shares[0])
    return np.concatenate(shares)


def read_results(folder: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Labels, anomaly scores and fraction of a results folder.

    Raises:
        UserError: no results there, no labels, or another aggregate than "mean".
    """
    try:
        scoring = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))["scoring"]
        with (folder / SCORES_FILE).open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            rows = list(csv.DictReader(stream))
        labels = [row["label"] for row in rows]
        scores = np.array([float(row["anomaly_score"]) for row in rows])
        fraction, aggregate = float(scoring["fraction_defect"]), scoring["aggregate"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--results {folder}: not a results folder of main_eval.py ({error})") from error
    if set(labels) != {"0", "1"}:
        raise UserError(f"--results {folder}: needs normal and anomalous images with labels")
    if aggregate != "mean":
        raise UserError(f"--results {folder}: scored with --aggregate {aggregate}; score again with --aggregate mean")
    return np.array(labels).astype(int), scores, fraction


def _percent(value: dict) -> str:
    low, high = value["interval_95"]
    return f"{value['value']:6.1%} ({low:.1%} to {high:.1%})"


def _print_rows(rows: Iterator[Row], write: Callable[[str], None]) -> None:
    write(f"{'threshold made of':40} {'threshold':>9}  {'false alarms':24}{'recall'}")
    for row in rows:
        write(f"{row.name:40} {row.threshold:9.6f}  {_percent(row.false_positive_rate):24}{_percent(row.recall)}")


def _command(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m hta.calibration_study", description=__doc__)
    add_settings(parser, "options", StudyOptions)
    add_settings(parser, "machine", RuntimeConfig, exclude=NOT_FOR_SCORING)
    given = vars(parser.parse_args(argv))
    options = take_settings(StudyOptions, given)
    for name in ("input_name", "results"):
        if not getattr(options, name):
            raise UserError(f"--{name} is missing; see --help")
    labels, scores, fraction = read_results(Path(options.results))
    model = api.load(options.input_name, options.models_dir, take_settings(RuntimeConfig, given))
    if options.leave_one_out and model.record.num_images < 2:
        raise UserError("--leave_one_out: the model has one training image only; it needs two or more")
    print(
        f"{int((labels == 0).sum())} normal and {int(labels.sum())} anomalous images, target {options.target_fpr:.0%}"
    )
    _print_rows(study(model, labels, scores, fraction, options), print)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and return its exit status."""
    return run_command(_command, argv, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
