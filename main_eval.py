"""Score images with a trained model: python main_eval.py --input_name brick --test_dir Input/Test/brick

Or those of a data set, by the paper's protocol: python main_eval.py --dataset mnist --data_root DIR --pos_class 8
"""

import json
import logging
import platform
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hta import __version__
from hta.cli import NOT_FOR_SCORING, Parser, add_settings, run_command, take_settings
from hta.config import RuntimeConfig, ScoringConfig
from hta.data.sample import Sample
from hta.data.specs import DatasetOptions
from hta.errors import UserError
from hta.evaluation.metrics import metric_text
from hta.evaluation.overlays import ColourScale, picture_of
from hta.evaluation.pixel_metrics import PixelMetrics
from hta.evaluation.report import write_report
from hta.evaluation.results import (
    BOOTSTRAP_SEED,
    METRIC_NAMES,
    METRICS_FILE,
    REPORT_FILE,
    Scored,
    check_target,
    has_known_pixels,
    summarize,
    write_pictures,
    write_scores,
)
from hta.evaluation.scores import check_aggregate, score_text
from hta.evaluation.thresholds import (
    NormalVotes,
    Threshold,
    decide,
    decision_text,
    decision_words,
    pixel_false_alarms,
    summarize_decision,
)
from hta.files import new_folder, printable
from hta.inputs import (
    InputComparison,
    InputOptions,
    Source,
    find_images,
    find_unreadable,
    open_model,
    progress_bar,
    score_good,
)
from hta.model import Model
from hta.settings import Checked, option

logger = logging.getLogger("hta.main_eval")

RESULTS_FOLDER = "results"

_MOST_ANOMALOUS = 5


@dataclass(frozen=True)
class OutputOptions(Checked):
    """What is written."""

    out: str | None = option(None, "results folder; by default results/<name of test_dir> in the model's folder")
    overwrite: bool = option(False, "replace existing results")
    no_maps: bool = option(False, "scores only, no maps and overlays")
    full_size_maps: bool = option(False, "write the maps at the size of their images, not at the model's working size")

    def __post_init__(self):
        super().__post_init__()
        if self.no_maps and self.full_size_maps:
            raise UserError("--full_size_maps contradicts --no_maps: give one of the two")


GROUPS = {
    "input": InputOptions,
    "data set instead of --test_dir": DatasetOptions,
    "output": OutputOptions,
    "scoring": ScoringConfig,
    "machine": RuntimeConfig,
}


@dataclass(frozen=True)
class Evaluation:
    """What is to be done, all of it checked: `items` are the readable images of `source`, the others are `skipped`."""

    model: Model
    source: Source
    items: list[Sample]
    skipped: dict[str, str]
    good: NormalVotes | None
    scoring: ScoringConfig
    threshold: Threshold
    options: InputOptions
    output: OutputOptions
    target: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit status."""
    interrupted = "no results were written; existing results are unchanged"
    return run_command(_command, argv, interrupted, out_of_memory="give a smaller --batch_size")


def _command(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="main_eval.py", description=__doc__)
    for title, cls in GROUPS.items():
        add_settings(parser, title, cls, exclude=NOT_FOR_SCORING)
    given = vars(parser.parse_args(argv))
    parts = {cls: take_settings(cls, given) for cls in GROUPS.values()}
    evaluation = _prepare(parts, given)
    _report(evaluation, *_evaluate(evaluation))


def _prepare(parts: dict[type, Any], given: dict[str, Any]) -> Evaluation:
    """Load the model and check everything, before anything is written."""
    options, data, output = parts[InputOptions], parts[DatasetOptions], parts[OutputOptions]
    model = open_model(options, data, parts[RuntimeConfig], given)
    source = find_images(model, options, data, given)
    target = Path(output.out) if output.out else model.saved_folder.path / RESULTS_FOLDER / source.name
    good_dir = Path(options.good_dir) if options.good_dir else None
    check_target(target, source.folder, overwrite=output.overwrite, good_dir=good_dir)
    skipped = find_unreadable(source.images, skip=options.skip_unreadable)
    items = [item for item in source.images if item.relative not in skipped]
    check_aggregate(parts[ScoringConfig].aggregate, len(items))
    scoring = replace(parts[ScoringConfig], fraction_defect=model.fraction(parts[ScoringConfig]))
    with_maps = not output.no_maps
    good = None if options.good_dir is None else score_good(model, options, items, scoring, with_maps=with_maps)
    threshold = model.threshold(scoring, with_maps=with_maps, good=good)
    return Evaluation(model, source, items, skipped, good, scoring, threshold, options, output, target)


def _evaluate(evaluation: Evaluation) -> tuple[dict[str, Any], np.ndarray]:
    """Score the images and write the results.

    Returns:
        The content of metrics.json, and `(N,)` by how much each image is anomalous: the maxima of the maps where these
        decide, else the scores.
    """
    model, items, threshold = evaluation.model, evaluation.items, evaluation.threshold
    comparison = InputComparison(model.training_images, model.record.image_size)
    with new_folder(evaluation.target, replace=True) as folder:
        start = time.perf_counter()
        scale = _colour_scale(evaluation)
        pixels = PixelMetrics() if scale and any(item.mask is not None for item in items) else None
        stream = _scored(evaluation, comparison)
        results = write_pictures(stream, folder, scale, pixels, evaluation.output.full_size_maps)
        seconds = time.perf_counter() - start
        peaks = None if scale is None else np.array([result.peak for result in results])
        scores = model.anomaly_scores(np.stack([result.shares for result in results]), evaluation.scoring)
        rejected = decide(scores, threshold, peaks)
        for result, score, word in zip(results, scores, decision_words(rejected, len(scores)), strict=True):
            result.score, result.decision = float(score), word
        labels = [item.label for item in items]
        decision = summarize_decision(labels, rejected, threshold)
        alarms = pixel_false_alarms(labels, peaks, threshold.pixel_threshold)
        document = {
            "metrics": summarize(items, scores, pixels, peaks),
            "decision": decision | {"pixel_false_alarms": alarms},
            "warnings": _warnings(evaluation, comparison, has_pixel_metrics=pixels is not None),
            "colour_scale": scale and asdict(scale),
            "seconds": {"total": round(seconds, 3), "per_image": round(seconds / len(items), 6)},
        } | _describe(evaluation)
        write_scores(folder, results)
        (folder / METRICS_FILE).write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        write_report(folder, document, results)
    return document, scores if peaks is None or threshold.decided_by == "score" else peaks


def _colour_scale(evaluation: Evaluation) -> ColourScale | None:
    """The colours of the overlays; None without maps."""
    normal = evaluation.good or evaluation.model.calibration(evaluation.scoring)
    return None if evaluation.output.no_maps or normal.peaks is None else ColourScale.of_normal_peaks(normal.peaks)


def _scored(evaluation: Evaluation, comparison: InputComparison) -> Iterator[Scored]:
    """Pass the images one after the other to the model; yields each with its votes and its picture."""
    items, output = evaluation.items, evaluation.output
    pictures: deque[np.ndarray] = deque()  # of images that are read and not yet scored

    def observe(image: np.ndarray) -> None:
        comparison.add(image)
        pictures.append(picture_of(image))

    stream = evaluation.model.stream(
        (item.read() for item in items),
        evaluation.scoring,
        with_maps=not output.no_maps,
        observe=observe,
        warn=not evaluation.source.compared,  # otherwise the comparison warns
    )
    for item, votes in zip(items, progress_bar(stream, "scoring", len(items)), strict=True):
        yield item, votes, pictures.popleft()


def _warnings(evaluation: Evaluation, comparison: InputComparison, *, has_pixel_metrics: bool) -> list[str]:
    """Why the model may not fit the images, and which images the pixel metrics leave out."""
    lines = [*evaluation.source.warnings, *(comparison.warnings() if evaluation.source.compared else ())]
    unknown = sum(not has_known_pixels(item) for item in evaluation.items)
    if has_pixel_metrics and unknown:
        lines.append(f"{unknown} anomalous images have no mask: the pixel metrics leave them out")
    return lines


def _describe(evaluation: Evaluation) -> dict[str, Any]:
    """What the results came from, and with which settings, for metrics.json."""
    model, good = evaluation.model, evaluation.good
    return {
        "images": len(evaluation.items),
        "images_available": evaluation.source.available,
        **evaluation.source.about,
        "skipped": evaluation.skipped,
        "good_images": good and {"dir": evaluation.options.good_dir, "images": len(good.shares)},
        "scoring": asdict(evaluation.scoring) | {"task": model.task},
        "model": model.describe(),
        "seed": {"training": model.record.config.training.manualSeed, "bootstrap": BOOTSTRAP_SEED},
        "machine": {
            "device": str(model.runtime.device),
            "dtype": model.scorer.precision,
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "hta": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def _report(evaluation: Evaluation, document: dict[str, Any], ranking: np.ndarray) -> None:
    """Print the outcome and where it is."""
    for warning in document["warnings"]:
        logger.warning("warning: %s", warning)
    items, seconds = evaluation.items, document["seconds"]
    part = f" of {evaluation.source.available}" if len(items) < evaluation.source.available else ""
    print(f"{len(items)}{part} image(s) scored, {seconds['per_image']:.3f} s per image")
    for key, name in METRIC_NAMES.items():
        print(f"  {name}: {metric_text(document['metrics'][key])}")
    print(decision_text(document["decision"]))
    by = "maximum of its map" if document["decision"]["decided_by"] == "map" else "score"
    print(f"most anomalous ({by}, image):")
    for index in np.argsort(-ranking, kind="stable")[:_MOST_ANOMALOUS]:
        print(f"  {score_text(ranking[index])}  {printable(items[index].relative)}")
    # A name that is not UTF-8 must not end the run now.
    print(f"results: {printable(evaluation.target)}")
    print(f"report: {printable(evaluation.target / REPORT_FILE)}")


if __name__ == "__main__":
    sys.exit(main())
