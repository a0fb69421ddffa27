"""Score images with a trained model: python main_eval.py --input_name brick --test_dir Input/Test/brick

Or those of a data set, by the paper's protocol: python main_eval.py --dataset mnist --data_root DIR --pos_class 8
"""

import logging
import platform
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hta.cli import NOT_FOR_SCORING, Parser, add_settings, run_command, take_settings
from hta.config import RuntimeConfig, ScoringConfig
from hta.data.sample import Sample
from hta.data.specs import DatasetOptions, default_model_name
from hta.errors import UserError
from hta.evaluation.differences import InputComparison
from hta.evaluation.held_out import HeldOut, check_enough
from hta.evaluation.overlays import ColourScale, picture_of
from hta.evaluation.report import write_report
from hta.evaluation.report_text import METRIC_NAMES
from hta.evaluation.results import (
    BOOTSTRAP_SEED,
    REPORT_FILE,
    ResultsWriter,
    check_target,
    has_known_pixels,
    summarize,
    write_metrics,
    write_scores,
)
from hta.evaluation.thresholds import Threshold, decide, pixel_false_alarms, score_text, summarize_decision
from hta.files import new_folder, printable
from hta.inputs import (
    InputOptions,
    Source,
    TestSet,
    check_images,
    good_images,
    images_of_dataset,
    images_of_folder,
    refuse_mixture,
)
from hta.model import Model, check_aggregate, load
from hta.settings import Checked, option
from hta.version import __version__

logger = logging.getLogger("hta.main_eval")

RESULTS_FOLDER = "results"

_MOST_ANOMALOUS = 5


@dataclass(frozen=True)
class OutputOptions(Checked):
    """What is written."""

    out: str | None = option(None, "results folder; by default results/<name of test_dir> in the model's folder")
    overwrite: bool = option(False, "replace results that are there")
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
    """What is to be done, all of it checked."""

    model: Model
    source: Source
    test_set: TestSet
    good: HeldOut | None
    scoring: ScoringConfig
    threshold: Threshold
    options: InputOptions
    output: OutputOptions
    target: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit status."""
    interrupted = "no results were written; what was there before is as it was"
    return run_command(_command, argv, interrupted, out_of_memory="give a smaller --batch_size")


def entry_point() -> None:
    """Run as an installed command."""
    sys.exit(main())


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
    options, benchmark, output = parts[InputOptions], parts[DatasetOptions], parts[OutputOptions]
    refuse_mixture(benchmark, given)
    name = options.input_name
    if benchmark.dataset is None:
        for missing in ("input_name", "test_dir"):
            if not getattr(options, missing):
                raise UserError(f"--{missing} is missing: give --input_name MODEL and --test_dir IMAGES; see --help")
    elif not name:
        name = default_model_name(benchmark, options.num_images or 1)
    model = load(name, options.models_dir, parts[RuntimeConfig])
    if benchmark.dataset is None:
        source = images_of_folder(options)
    else:
        source = images_of_dataset(model, options, benchmark, given)
    target = Path(output.out) if output.out else model.folder.path / RESULTS_FOLDER / source.name
    good_dir = Path(options.good_dir) if options.good_dir else None
    check_target(target, source.folder, overwrite=output.overwrite, good_dir=good_dir)
    test_set = check_images(source.images, skip_unreadable=options.skip_unreadable)
    check_aggregate(parts[ScoringConfig].aggregate, len(test_set.items))
    scoring = model.resolve_scoring(parts[ScoringConfig], options.task)
    good = _hold_out(model, options, test_set, scoring, with_maps=not output.no_maps)
    threshold = model.threshold(scoring, options.task, with_maps=not output.no_maps, good=good)
    return Evaluation(model, source, test_set, good, scoring, threshold, options, output, target)


def _hold_out(
    model: Model, options: InputOptions, test_set: TestSet, scoring: ScoringConfig, *, with_maps: bool
) -> HeldOut | None:
    """Let the model score the good images that a threshold is to be made of, if there are any."""
    if options.good_dir is None:
        return None
    if not with_maps and (scoring.threshold is not None or scoring.aggregate == "minmax"):
        by = "--threshold" if scoring.threshold is not None else "--aggregate minmax"
        raise UserError(f"--good_dir: {by} and --no_maps leave no threshold to make; leave out one of them")
    items = good_images(model, options, test_set.items)
    check_enough(len(items), scoring.target_fpr)
    bar = tqdm(items, "scoring good images", unit="image", disable=None, dynamic_ncols=True)
    return model.hold_out((item.read() for item in bar), scoring, options.task, with_maps=with_maps)


def _evaluate(evaluation: Evaluation) -> tuple[dict[str, Any], np.ndarray]:
    """Score the images and write the results.

    Returns:
        The content of metrics.json, and `(N,)` by how much each image is anomalous: the maxima of the maps where these
        decide, else the scores.
    """
    model, items, output = evaluation.model, evaluation.test_set.items, evaluation.output
    masked = not output.no_maps and any(item.mask is not None for item in items)
    normal = evaluation.good or model.calibration(evaluation.scoring, evaluation.options.task)
    scale = None if output.no_maps else ColourScale.of_normal_peaks(normal.peaks)
    comparison = InputComparison(model.training_images, model.record.image_size)
    with new_folder(evaluation.target, replace=True) as folder:
        start = time.perf_counter()
        with ResultsWriter(folder, scale, masked=masked, full_size_maps=output.full_size_maps) as writer:
            peaks = _score(evaluation, writer, comparison)
        seconds = time.perf_counter() - start
        scores = model.anomaly_scores(writer.shares, evaluation.scoring, evaluation.options.task)
        rejected = decide(scores, evaluation.threshold, peaks)
        labels, threshold = [item.label for item in items], evaluation.threshold
        document = {
            "metrics": summarize(items, scores, writer.pixels, peaks),
            "decision": summarize_decision(labels, rejected, threshold)
            | {"pixel_false_alarms": pixel_false_alarms(labels, peaks, threshold.pixel_threshold)},
            "warnings": _warnings(evaluation.source, comparison) + _mask_warnings(items, masked=masked),
            "colour_scale": None if scale is None else asdict(scale),
            "seconds": {"total": round(seconds, 3), "per_image": round(seconds / len(items), 6)},
        } | _describe(evaluation)
        write_scores(folder, items, scores, writer.shares, rejected, peaks)
        write_metrics(folder, document)
        write_report(folder, document, items, scores, writer.shares, writer.thumbnails, rejected, peaks)
    return document, peaks if threshold.decided_by == "map" else scores


def _score(evaluation: Evaluation, writer: ResultsWriter, comparison: InputComparison) -> np.ndarray | None:
    """Hand the images one after the other to the model, and what it says to the writer.

    Returns:
        `(N,)` maxima of the anomaly maps at the working size, where the pixel threshold was made; None without maps.
    """
    items, with_maps = evaluation.test_set.items, not evaluation.output.no_maps
    pictures: deque[np.ndarray] = deque()  # of images that are read and not yet scored
    peaks = []

    def observe(image: np.ndarray) -> None:
        comparison.add(image)
        pictures.append(picture_of(image))

    images = (item.read() for item in items)
    warn = not evaluation.source.compared  # the comparison says it otherwise
    stream = evaluation.model.stream(images, evaluation.scoring, with_maps=with_maps, observe=observe, warn=warn)
    bar = tqdm(stream, "scoring", len(items), unit="image", disable=None, dynamic_ncols=True)
    for item, votes in zip(items, bar, strict=True):
        writer.add(item, votes, pictures.popleft())
        if with_maps:
            peaks.append(votes.anomaly_map.max())
    return np.array(peaks) if with_maps else None


def _warnings(source: Source, comparison: InputComparison) -> list[str]:
    """Say what makes the model look unfit for the images."""
    return [*source.warnings, *(comparison.warnings() if source.compared else ())]


def _mask_warnings(items: Sequence[Sample], *, masked: bool) -> list[str]:
    """Say which images the pixel metrics leave out."""
    unknown = sum(not has_known_pixels(item) for item in items)
    return [f"{unknown} anomalous images have no mask: the pixel metrics leave them out"] if masked and unknown else []


def _describe(evaluation: Evaluation) -> dict[str, Any]:
    """What the results came from, and with which settings, for metrics.json."""
    model, options, test_set = evaluation.model, evaluation.options, evaluation.test_set
    record = model.record
    return {
        "images": len(test_set.items),
        "images_available": evaluation.source.available,
        **evaluation.source.about,
        "skipped": test_set.skipped,
        "good_images": evaluation.good and {"dir": options.good_dir, "images": evaluation.good.count},
        "scoring": asdict(evaluation.scoring) | {"task": options.task or record.config.model.task},
        "model": {
            "path": str(model.folder.path),
            "training_images": list(record.sources),
            "image_size": list(record.image_size),
            "scales": [list(size) for size in model.pyramid.plan.sizes],
            "hta_version": record.hta_version,
            "config": record.config.to_dict(),
        },
        "seed": {"training": record.config.training.manualSeed, "bootstrap": BOOTSTRAP_SEED},
        "machine": {
            "device": str(model.runtime.device),
            "dtype": str(model.runtime.dtype).removeprefix("torch."),
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
    """Say what came out, and where it is."""
    for warning in document["warnings"]:
        logger.warning("warning: %s", warning)
    items, seconds = evaluation.test_set.items, document["seconds"]
    part = f" of {evaluation.source.available}" if len(items) < evaluation.source.available else ""
    print(f"{len(items)}{part} image(s) scored, {seconds['per_image']:.3f} s an image")
    for key, name in METRIC_NAMES.items():
        print(f"  {name}: {_metric_text(document['metrics'][key])}")
    print(_decision_text(document["decision"]))
    by = "maximum of its map" if document["decision"]["decided_by"] == "map" else "score"
    print(f"most anomalous ({by}, image):")
    for index in np.argsort(-ranking, kind="stable")[:_MOST_ANOMALOUS]:
        print(f"  {score_text(ranking[index])}  {printable(items[index].relative)}")
    # A name that is no UTF-8 must not end the run now.
    print(f"results: {printable(evaluation.target)}")
    print(f"report: {printable(evaluation.target / REPORT_FILE)}")


def _decision_text(decision: dict[str, Any]) -> str:
    """What was decided, in words."""
    if decision["rejected"] is None:
        return f"no decision: {decision['reason']}"
    by, limit = "anomaly score", decision["threshold"]
    if decision["decided_by"] == "map":
        by, limit = "anomaly map anywhere", decision["pixel_threshold"]
    target = decision["target_fpr"]
    origin = "" if target is None else f", for {100 * target:g} % false alarms"
    limit = f"{by} above {score_text(limit)} ({decision['source']}{origin})"
    text = f"{decision['rejected']} rejected: {limit}"
    rates = {"false_positive_rate": "false alarms", "recall": "recall"}
    if decision["decided_by"] != "map":  # else they are the same
        rates["pixel_false_alarms"] = "false alarms of the maps"
    for key, name in rates.items():
        if decision[key]["value"] is not None:
            low, high = decision[key]["interval_95"]
            text += f"\n  {name}: {decision[key]['value']:.1%} (95 % interval {low:.1%} to {high:.1%})"
    return text


def _metric_text(metric: dict[str, Any]) -> str:
    """One metric in words."""
    if metric["value"] is None:
        return f"not defined, {metric['reason']}"
    interval = metric.get("interval_95")
    notes = [f"95 % interval {interval['low']:.3f} to {interval['high']:.3f}"] if interval else []
    notes += [f"at threshold {score_text(metric['threshold'])}"] if "threshold" in metric else []
    notes += [f"false positive rate up to {metric['max_fpr']:g}"] if "max_fpr" in metric else []
    return f"{metric['value']:.3f}" + (f" ({', '.join(notes)})" if notes else "")


if __name__ == "__main__":
    entry_point()
