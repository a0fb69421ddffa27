"""Score images with a trained model: python main_eval.py --input_name brick --test_dir Input/Test/brick"""

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

from hta import api
from hta.cli import NOT_FOR_SCORING, Parser, add_settings, run_command, take_settings
from hta.config import Checked, RuntimeConfig, ScoringConfig, option
from hta.data.folders import TestItem, check_mask, check_readable, find_test_images
from hta.errors import UserError
from hta.evaluation.differences import InputComparison
from hta.evaluation.overlays import ColourScale, picture_of
from hta.evaluation.results import (
    BOOTSTRAP_SEED,
    ResultsWriter,
    check_target,
    has_known_pixels,
    results_folder,
    summarize,
    write_metrics,
    write_scores,
)
from hta.imaging import image_size
from hta.version import __version__

logger = logging.getLogger("hta.main_eval")

RESULTS_FOLDER = "results"

_LISTED = 10  # unreadable files that a message names before it only counts them
_MOST_ANOMALOUS = 5
_METRIC_NAMES = {
    "image_auroc": "image AUROC",
    "average_precision": "average precision",
    "f1_max": "largest F1",
    "pixel_auroc": "pixel AUROC",
    "pixel_f1_max": "largest pixel F1",
    "aupro": "AUPRO",
}


@dataclass(frozen=True)
class InputOptions(Checked):
    """Which model, and which images."""

    input_name: str = option("", "the model: its name, the name of its training image, or the path of its folder")
    models_dir: str = option("TrainedModels", "folder of the models")
    test_dir: str = option(
        "", "an image, or a folder of them; folders good and others in it give labels, ground_truth gives masks"
    )
    labels_csv: str | None = option(None, "labels from a CSV file with the header path,label: 0 is normal")
    skip_unreadable: bool = option(False, "leave out images that cannot be read")
    task: str | None = option(
        None, "take the default fraction of another task than the model's", choices=("defect", "class")
    )


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
    "output": OutputOptions,
    "scoring": ScoringConfig,
    "machine": RuntimeConfig,
}


@dataclass(frozen=True)
class TestSet:
    """Images that were checked, and those that were left out, with the reason."""

    items: list[TestItem]
    skipped: dict[str, str]


@dataclass(frozen=True)
class Evaluation:
    """What is to be done, all of it checked."""

    model: api.Model
    test_set: TestSet
    scoring: ScoringConfig
    options: InputOptions
    output: OutputOptions
    target: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit status."""
    return run_command(_command, argv, "no results were written; what was there before is as it was")


def entry_point() -> None:
    """Run as an installed command."""
    sys.exit(main())


def _command(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="main_eval.py", description=__doc__)
    for title, cls in GROUPS.items():
        add_settings(parser, title, cls, exclude=NOT_FOR_SCORING)
    given = vars(parser.parse_args(argv))
    parts = {cls: take_settings(cls, given) for cls in GROUPS.values()}
    evaluation = _prepare(parts[InputOptions], parts[OutputOptions], parts[ScoringConfig], parts[RuntimeConfig])
    _report(evaluation, *_evaluate(evaluation))


def _prepare(
    options: InputOptions, output: OutputOptions, scoring: ScoringConfig, runtime: RuntimeConfig
) -> Evaluation:
    """Load the model and check everything, before anything is written."""
    for name in ("input_name", "test_dir"):
        if not getattr(options, name):
            raise UserError(f"--{name} is missing: give --input_name MODEL and --test_dir IMAGES; see --help")
    model = api.load(options.input_name, options.models_dir, runtime)
    test_dir = Path(options.test_dir)
    items = find_test_images(test_dir, None if options.labels_csv is None else Path(options.labels_csv))
    located = test_dir.resolve()
    name = located.name if located.is_dir() else located.stem
    target = Path(output.out) if output.out else model.folder.path / RESULTS_FOLDER / name
    check_target(target, test_dir, overwrite=output.overwrite)
    test_set = _check_images(items, skip_unreadable=options.skip_unreadable)
    api.check_aggregate(scoring.aggregate, len(test_set.items))
    return Evaluation(model, test_set, model.resolve_scoring(scoring, options.task), options, output, target)


def _check_images(items: Sequence[TestItem], *, skip_unreadable: bool) -> TestSet:
    """Decode every image and mask once, and compare their sizes."""
    unreadable = check_readable(tqdm(items, "checking", unit="image", disable=None, dynamic_ncols=True))
    readable = [item for item in items if item.path not in unreadable and item.mask not in unreadable]
    if unreadable and not (skip_unreadable and readable):
        reasons = list(unreadable.values())
        more = f"; and {len(reasons) - _LISTED} more" if len(reasons) > _LISTED else ""
        remedy = "give --skip_unreadable to go on without them" if readable else "none is left to score"
        raise UserError(f"{'; '.join(reasons[:_LISTED])}{more}; {remedy}")
    for item in readable:
        if item.mask is not None:
            check_mask(item, image_size(item.path))
    skipped = {
        item.relative: unreadable.get(item.path) or unreadable[item.mask]
        for item in items
        if item.path in unreadable or item.mask in unreadable
    }
    for reason in skipped.values():
        logger.warning("left out: %s", reason)
    return TestSet(readable, skipped)


def _evaluate(evaluation: Evaluation) -> tuple[dict[str, Any], np.ndarray]:
    """Score the images and write the results; returns the content of metrics.json and the `(N,)` anomaly scores."""
    model, items, output = evaluation.model, evaluation.test_set.items, evaluation.output
    masked = not output.no_maps and any(item.mask is not None for item in items)
    scale = None if output.no_maps else _colour_scale(model)
    comparison = InputComparison(model.training_images, model.record.image_size, gray=model.record.is_gray)
    with results_folder(evaluation.target) as folder:
        start = time.perf_counter()
        with ResultsWriter(folder, scale, masked=masked, full_size_maps=output.full_size_maps) as writer:
            _score(evaluation, writer, comparison)
        seconds = time.perf_counter() - start
        scores = api.anomaly_scores_of(writer.shares, evaluation.scoring.aggregate)
        document = {
            "metrics": summarize(items, scores, writer.pixels),
            "warnings": comparison.warnings() + _mask_warnings(items, masked=masked),
            "colour_scale": None if scale is None else asdict(scale),
            "seconds": {"total": round(seconds, 3), "per_image": round(seconds / len(items), 6)},
        } | _describe(evaluation)
        write_scores(folder, items, scores, writer.shares)
        write_metrics(folder, document)
    return document, scores


def _score(evaluation: Evaluation, writer: ResultsWriter, comparison: InputComparison) -> None:
    """Hand the images one after the other to the model, and what it says to the writer."""
    items, with_maps = evaluation.test_set.items, not evaluation.output.no_maps
    pictures: deque[np.ndarray] = deque()  # of images that are read and not yet scored

    def observe(image: np.ndarray) -> None:
        comparison.add(image)
        if with_maps:
            pictures.append(picture_of(image))

    paths = (item.path for item in items)
    stream = evaluation.model.stream(paths, evaluation.scoring, with_maps=with_maps, observe=observe)
    bar = tqdm(stream, "scoring", len(items), unit="image", disable=None, dynamic_ncols=True)
    for item, votes in zip(items, bar, strict=True):
        writer.add(item, votes, pictures.popleft() if with_maps else None)


def _colour_scale(model: api.Model) -> ColourScale:
    """The colours of the overlays, from what the model says about its training images."""
    return ColourScale.of_normal_maps(model.evaluator().score(model.training_images).maps)


def _mask_warnings(items: Sequence[TestItem], *, masked: bool) -> list[str]:
    """Say which images the pixel metrics leave out."""
    unknown = sum(not has_known_pixels(item) for item in items)
    return [f"{unknown} anomalous images have no mask: the pixel metrics leave them out"] if masked and unknown else []


def _describe(evaluation: Evaluation) -> dict[str, Any]:
    """What the results came from, and with which settings, for metrics.json."""
    model, options, test_set = evaluation.model, evaluation.options, evaluation.test_set
    record = model.record
    return {
        "images": len(test_set.items),
        "test_dir": options.test_dir,
        "labels_csv": options.labels_csv,
        "skipped": test_set.skipped,
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


def _report(evaluation: Evaluation, document: dict[str, Any], scores: np.ndarray) -> None:
    """Say what came out, and where it is."""
    for warning in document["warnings"]:
        logger.warning("warning: %s", warning)
    items, seconds = evaluation.test_set.items, document["seconds"]
    print(f"{len(items)} image(s) scored, {seconds['per_image']:.3f} s an image")
    for key, name in _METRIC_NAMES.items():
        print(f"  {name}: {_metric_text(document['metrics'][key])}")
    print("most anomalous (score, image):")
    for index in np.argsort(-scores, kind="stable")[:_MOST_ANOMALOUS]:
        # A name that is no UTF-8 must not end the run now.
        print(f"  {scores[index]:.4f}  {items[index].relative.encode(errors='backslashreplace').decode()}")
    print(f"results: {evaluation.target}")


def _metric_text(metric: dict[str, Any]) -> str:
    """One metric in words."""
    if metric["value"] is None:
        return f"not defined, {metric['reason']}"
    interval = metric.get("interval_95")
    notes = [f"95 % interval {interval['low']:.3f} to {interval['high']:.3f}"] if interval else []
    notes += [f"at threshold {metric['threshold']:.4f}"] if "threshold" in metric else []
    notes += [f"false positive rate up to {metric['max_fpr']:g}"] if "max_fpr" in metric else []
    return f"{metric['value']:.3f}" + (f" ({', '.join(notes)})" if notes else "")


if __name__ == "__main__":
    entry_point()
