"""Results on disk and in data frames: one JSON per run in one flat folder, and the values that the paper prints.

<name>.json          a result; its name ends with the key of everything that it depends on
<name>.npz           anomaly scores, if they were asked for
failed/<name>.json   the error of a failed run, which is tried again at the next start
tables/, plots/      made from the results

Folders of several machines are merged by copying.
"""

import io
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hta.errors import RunError, UserError
from hta.experiments.plan import METHOD_VERSION, RunSpec
from hta.files import write_atomically

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
FAILED_FOLDER = "failed"
AVERAGE = "average"
TABLES = range(1, 8)
SHOT_TABLES = range(1, 6)
"""Tables with one row per class and one column per method, each part of them for one number of training images."""

_CHECKOUT = Path(__file__).parents[2] / "docs" / "results"
_COLUMNS = ["name", "key", "title", "pos_class", "shots", "draw", "variant", "preset", "num_transforms", "test_limit"]
_COLUMNS += ["precision", "in_order", "paper_dataset", "data_sha256", "task", "changes"]
_MEASURED = ["auroc", "minmax", "by_fraction", "by_scale", "false_alarms", "seconds", "dtype"]


def default_folder() -> Path:
    """`docs/results` of a source checkout if it can be written, else `results` in the working directory."""
    return _CHECKOUT if os.access(_CHECKOUT, os.W_OK) else Path("results")


def is_done(folder: Path, spec: RunSpec) -> bool:
    """Whether a folder holds a run's result, whole and from this version of the method."""
    row = _read(folder / f"{spec.name}.json")
    return row is not None and row["key"] == spec.key


def load_runs(folder: Path) -> pd.DataFrame:
    """Read all results of this version of the method.

    One row per run, by file name, with fields and properties of its `RunSpec`, and auroc and minmax: AUROC in per cent,
    higher = better, with the main fraction of the patches, of scores that are means over scales as they are, or min-max
    normalised first; by_fraction ({fraction: {"mean", "minmax"}}) and by_scale (of each scale alone) in [0, 1]; all of
    them None where undefined; false_alarms: share of the normal test images, in [0, 1], that is rejected at the
    threshold from views of the training images, whose target is 5 %, or None; seconds of training and scoring; dtype.
    """
    rows = [row for path in sorted(folder.glob("*.json")) if (row := _read(path))]
    return pd.DataFrame(rows, columns=[*_COLUMNS, *_MEASURED], dtype=object)


def _read(path: Path) -> dict[str, Any] | None:
    """A row of `load_runs`; None if there is no result, or one of another version."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        versions = record["format_version"], record["method_version"]
        if versions != (FORMAT_VERSION, METHOD_VERSION):
            logger.info("%s: of another version of the method, left out", path)
            return None
        spec = RunSpec.from_dict(record["spec"], str(path))
        if record["key"] != spec.key:  # some default was another
            logger.info("%s: its run would have other settings today, left out", path)
            return None
        results, run = record["results"], record["run"]
        auroc = {way: None if value is None else 100 * value for way, value in results["auroc"].items()}
        return {name: getattr(spec, name) for name in _COLUMNS} | {
            "auroc": auroc["mean"],
            "minmax": auroc["minmax"],
            "by_fraction": results["auroc_by_fraction"],
            "by_scale": results["auroc_by_scale"],
            "false_alarms": results.get("decision", {}).get("false_positive_rate", {}).get("value"),
            "seconds": run["seconds_training"] + run["seconds_scoring"],
            "dtype": run["machine"]["dtype"],
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        logger.warning("%s: not a result of this version (%s), left out", path, " ".join(str(error).split()))
        return None


def store(folder: Path, spec: RunSpec, record: dict[str, Any], scores: Mapping[str, Any], *, keep_scores: bool) -> None:
    """Write a result, or the error of a failed run, whose record has the key "error".

    `keep_scores`: also write the arrays by name that `hta.experiments.run.execute` returns beside the record.
    """
    has_failed = "error" in record
    place = make_folder(folder / FAILED_FOLDER if has_failed else folder)
    if keep_scores and not has_failed:
        arrays = io.BytesIO()
        np.savez_compressed(arrays, **scores)
        write_atomically(place / f"{spec.name}.npz", arrays.getvalue())
    write_atomically(place / f"{spec.name}.json", (json.dumps(record, indent=1) + "\n").encode())
    if not has_failed:
        (folder / FAILED_FOLDER / f"{spec.name}.json").unlink(missing_ok=True)


def make_folder(folder: Path) -> Path:
    """Make a folder for results if it is missing; a RunError says that it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--results {folder}: cannot be made ({error.strerror}); choose another") from error
    return folder


def iterate(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows of a frame, with one attribute per column."""
    return iter(frame.itertuples())
