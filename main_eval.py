"""Score images with a trained model:
    python main_eval.py --input_name brick --test_dir Input/Test/brick

Score the test images of a data set, as in the paper:
    python main_eval.py --dataset mnist --data_root DIR --pos_class 8
"""

# torch, and everything that needs it, is imported where it is used: --help and wrong options respond without delay.

import json
import logging
import platform
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hta import __version__
from hta.cli import NOT_FOR_SCORING, add_settings, announce_torch, run_command, script_parser, take_settings
from hta.config import RuntimeConfig, ScoringConfig
from hta.data.specs import DatasetOptions, InputOptions
from hta.errors import UserError
from hta.files import new_folder, printable
from hta.settings import Checked, option

if TYPE_CHECKING:
    import numpy as np

    from hta.evaluation.overlays import ColourScale
    from hta.evaluation.results import Scored
    from hta.evaluation.thresholds import Threshold
    from hta.inputs import Source, Traits
    from hta.model import Model

logger = logging.getLogger("hta.main_eval")

_USAGE = """main_eval.py --input_name MODEL --test_dir IMAGES [--labels_csv FILE]
         [--good_dir DIR] [--target_fpr FRACTION] [--out DIR] [--overwrite]
       main_eval.py --dataset NAME --data_root DIR --pos_class CLASS ...
       main_eval.py --help | --version"""

RESULTS_FOLDER = "results"

_MOST_ANOMALOUS = 5


@dataclass(frozen=True)
class OutputOptions(Checked):
    """What is written."""

    out: str | None = option(
        None, "folder for the results; by default results/<name of test_dir> in the model's folder"
    )
    overwrite: bool = option(False, "replace existing results")
    no_maps: bool = option(False, "write only scores, no anomaly maps and no overlays")
    full_size_maps: bool = option(
        False, "write the maps at the size of their images instead of the model's working size"
    )

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
    """What is to be done, all of it checked; `scale` has the colours of the overlays, None without maps."""

    model: "Model"
    source: "Source"
    scoring: ScoringConfig
    threshold: "Threshold"
    scale: "ColourScale | None"
    output: OutputOptions
    target: Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit status."""
    interrupted = "no results were written; existing results are unchanged"
    return run_command(_command, argv, interrupted, out_of_memory="give a smaller --batch_size")


def _command(argv: Sequence[str] | None) -> None:
    parser = script_parser("eval", __doc__, _USAGE)
    for title, cls in GROUPS.items():
        add_settings(parser, title, cls, exclude=NOT_FOR_SCORING)
    given = vars(parser.parse_args(argv))
    parts = {cls: take_settings(cls, given) for cls in GROUPS.values()}
    announce_torch()
    _report(*_evaluate(parts, given))


def _open(parts: dict[type, Any], given: dict[str, Any]) -> tuple["Model", "Source", Path]:
    """Load the model, find the images, and check the folder for the results."""
    from hta.evaluation import results
    from hta.inputs import open_input
    from hta.runtime import own_process

    options, output = parts[InputOptions], parts[OutputOptions]
    own_process(parts[RuntimeConfig])
    model, source = open_input(options, parts[DatasetOptions], parts[RuntimeConfig], given)
    target = Path(output.out) if output.out else model.saved_folder.path / RESULTS_FOLDER / source.name
    for path in () if output.out else (target.parent, target):
        if path.is_symlink():
            raise UserError(f"{path}: is a link, which may lead out of the model; give --out to write there")
    good_dir = Path(options.good_dir) if options.good_dir else None
    results.check_target(target, source.folder, overwrite=output.overwrite, good_dir=good_dir)
    return model, source, target


def _prepare(parts: dict[type, Any], model: "Model", source: "Source", target: Path) -> Evaluation:
    """Check the images and settings, and find the threshold."""
    from hta.evaluation.nearest import usual_value
    from hta.evaluation.overlays import ColourScale
    from hta.evaluation.scores import check_aggregate
    from hta.inputs import readable, score_good

    options, output, scoring = parts[InputOptions], parts[OutputOptions], parts[ScoringConfig]
    items, skipped, doubts = readable(source.images, skip=options.skip_unreadable)
    check_aggregate(scoring.aggregate, len(items))
    if source.folder is None:  # a data set is scored as in the paper
        of_votes = None if model.score_name(scoring) == "nearest" else "paper"
        scoring = replace(scoring, no_frame_check=True, score=scoring.score or of_votes)
    scoring = replace(scoring, fraction_defect=model.fraction(scoring), score=model.score_name(scoring))
    good = score_good(model, options, items, scoring, with_maps=not output.no_maps)
    threshold = model.threshold(scoring, with_maps=not output.no_maps, good=good)
    limit = threshold.pixel_threshold
    scale = None if limit is None or output.no_maps else ColourScale.around(limit, usual_value(scoring.score))
    about = {"skipped": skipped, "good_images": good and {"dir": options.good_dir, "images": len(good.shares)}}
    source = replace(source, images=items, about=source.about | about, warnings=[*source.warnings, *doubts])
    for note in source.notes:
        logger.info("%s", note)
    return Evaluation(model, source, scoring, threshold, scale, output, target)


def _evaluate(parts: dict[type, Any], given: dict[str, Any]) -> tuple[Evaluation, dict[str, Any], "np.ndarray"]:
    """Score the images and write the results into a folder that is held from the beginning.

    Returns the evaluation, the content of metrics.json, and what the images are ranked by, `(N,)`, higher = more
    anomalous: the maxima of the maps where these decide, else the scores.
    """

    from hta.evaluation import results, thresholds
    from hta.evaluation.frames import fault_words
    from hta.evaluation.pixel_metrics import PixelMetrics
    from hta.evaluation.report import write_report
    from hta.inputs import differences

    model, source, target = _open(parts, given)
    replace_results = results.foreign_files if parts[OutputOptions].overwrite else None
    with new_folder(target, replace=replace_results, keep=True) as folder:
        evaluation = _prepare(parts, model, source, target)
        source, threshold, scale = evaluation.source, evaluation.threshold, evaluation.scale
        items, labels = source.images, [item.label for item in source.images]
        traits: list[Traits] = []
        start = time.perf_counter()
        pixels = PixelMetrics() if scale and any(item.masks for item in items) else None
        stream = _scored(evaluation, traits)
        rows = results.write_pictures(stream, folder, scale, pixels, evaluation.output.full_size_maps)
        seconds = time.perf_counter() - start
        votes = thresholds.NormalVotes.of((row.shares, row.peak, row.error) for row in rows)
        peaks = votes.peaks
        scores = model.anomaly_scores(votes, evaluation.scoring, threshold)
        faults = [row.fault for row in rows]
        rejected = thresholds.decide(scores, threshold, peaks, faults)
        for row, score, word in zip(rows, scores, thresholds.decision_words(rejected, len(scores)), strict=True):
            row.score, row.decision = float(score), word
        alarms = thresholds.pixel_false_alarms(labels, peaks, threshold.pixel_threshold)
        warnings = list(source.warnings)
        if source.folder is not None:
            warnings += differences(traits, model.training_images, model.record.image_size)
        warnings += fault_words(faults, decided=rejected is not None)
        unknown = sum(not results.has_known_pixels(item) for item in items)
        if pixels is not None and unknown:
            warnings.append(f"{unknown} images that may be anomalous have no mask: the pixel metrics leave them out")
        document = {
            "metrics": results.summarize(items, scores, pixels, peaks, threshold.decided_by),
            "decision": thresholds.summarize_decision(labels, rejected, threshold) | {"pixel_false_alarms": alarms},
            "warnings": warnings,
            "colour_scale": scale and asdict(scale),
            "seconds": {"total": round(seconds, 3), "per_image": round(seconds / len(labels), 6)},
        } | _describe(evaluation)
        results.write_scores(folder, rows)
        metrics = json.dumps(document, indent=2, allow_nan=False) + "\n"
        (folder / results.METRICS_FILE).write_text(metrics, encoding="utf-8")
        write_report(folder, document, rows)
    return evaluation, document, scores if peaks is None or threshold.decided_by == "score" else peaks


def _scored(evaluation: Evaluation, traits: "list[Traits]") -> "Iterator[Scored]":
    """Pass the images one after the other to the model; gives each with its votes and picture, and keeps `traits`."""
    from hta.evaluation.overlays import picture_of
    from hta.inputs import traits_of
    from hta.training.progress import progress_bar

    items = evaluation.source.images
    pictures: deque[np.ndarray] = deque()  # of images that are read and not yet scored

    def observe(image: "np.ndarray") -> None:
        traits.append(traits_of(image))
        pictures.append(picture_of(image))

    stream = evaluation.model.stream(
        (item.read() for item in items),
        evaluation.scoring,
        with_maps=evaluation.scale is not None,
        observe=observe,
        warn=evaluation.source.folder is None,  # otherwise `differences` warns
    )
    bar = progress_bar(stream, "scoring", len(items))
    return zip(items, bar, (pictures.popleft() for _ in items), strict=True)


def _describe(evaluation: Evaluation) -> dict[str, Any]:
    """What the results came from, and with which settings, for metrics.json."""
    import numpy as np
    import torch

    from hta.evaluation.results import BOOTSTRAP_SEED

    model, source, record = evaluation.model, evaluation.source, evaluation.model.record
    device, versions = str(model.runtime.device), {"hta": __version__, "python": platform.python_version()}
    return {
        "images": len(source.images),
        "images_available": source.available,
        **source.about,
        "scoring": asdict(evaluation.scoring) | {"task": model.task},
        "model": {
            "path": str(model.saved_folder.path),
            "training_images": list(record.sources),
            "image_size": list(record.image_size),
            "scales": [list(size) for size in model.pyramid.plan.sizes],
            "hta_version": record.hta_version,
            "config": asdict(record.config),
        },
        "seed": {"training": record.config.training.manualSeed, "bootstrap": BOOTSTRAP_SEED},
        "machine": {"device": device, "dtype": model.scorer.precision, "threads": torch.get_num_threads()},
        "versions": versions | {"torch": torch.__version__, "numpy": np.__version__},
    }


def _report(evaluation: Evaluation, document: dict[str, Any], ranking: "np.ndarray") -> None:
    """Print the outcome and where it is."""
    import numpy as np

    from hta.evaluation import results, thresholds
    from hta.evaluation.metrics import metric_text
    from hta.evaluation.report import quantities_of

    for warning in document["warnings"]:
        logger.warning("warning: %s", warning)
    items, available, target = evaluation.source.images, evaluation.source.available, evaluation.target
    part = f" of {available}" if len(items) < available else ""
    print(f"{len(items)}{part} image(s) scored, {document['seconds']['per_image']:.3f} s per image")
    metrics = document["metrics"]
    for name, metric in results.metric_rows(metrics) or [("image AUROC", metrics["deciding"]["image_auroc"])]:
        print(f"  {name}: {metric_text(metric)}")
    print(thresholds.decision_text(document["decision"]))
    quantities, deciding = quantities_of(document)
    quantity = quantities[deciding]
    print(f"most anomalous ({quantity.name}{', 1 = threshold' * quantity.is_relative}, image):")
    for index in np.argsort(-ranking, kind="stable")[:_MOST_ANOMALOUS]:
        print(f"  {quantity.text(ranking[index])}  {printable(items[index].relative)}")
    # A name that is not UTF-8 must not end the run now.
    print(f"results: {printable(target)}")
    print(f"report: {printable(target / results.REPORT_FILE)}")


if __name__ == "__main__":
    sys.exit(main())
