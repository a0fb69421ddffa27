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
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hta.errors import RunError, UserError
from hta.experiments.spec import METHOD_VERSION, RunSpec
from hta.files import write_atomically

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
FAILED_FOLDER = "failed"
AVERAGE = "average"
TABLES = range(1, 8)
SHOT_TABLES = range(1, 6)
"""Tables with one row per class and one column per method, each part of them for one number of training images."""

_CHECKOUT = Path(__file__).parents[2] / "docs" / "results"
_PAPER = Path(__file__).parent / "htdg_auc_tables.csv"
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

    Args:
        folder: of the results.

    Returns:
        One row per run, by file name: the fields and properties of its `RunSpec` that tables use, and

        - auroc, minmax: AUROC in per cent, higher = better, with the main fraction of the patches, of scores that are
          means over scales as they are, or min-max normalised first; None where undefined.
        - by_fraction: {fraction: {"mean", "minmax"}} and by_scale: [of each scale alone], AUROC in [0, 1] or None.
        - false_alarms: share of the normal test images, in [0, 1], that is rejected at the threshold from views of the
          training images, whose target is 5 %; None if there is none.
        - seconds, dtype: time of training and scoring, and the precision that was used.
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
        return _row(spec, record)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        logger.warning("%s: not a result of this version (%s), left out", path, " ".join(str(error).split()))
        return None


def _row(spec: RunSpec, record: dict[str, Any]) -> dict[str, Any]:
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


def store(
    folder: Path, spec: RunSpec, record: dict[str, Any], scores: Mapping[str, Any], *, keep_scores: bool = False
) -> None:
    """Write a result, or the error of a failed run.

    Args:
        folder: of the results; made if it is missing.
        spec: of the run.
        record: its result, or what has the key "error".
        scores: arrays by name, from `hta.experiments.run.execute`.
        keep_scores: whether to write them too.

    Raises:
        RunError: the folder cannot be written.
    """
    failed = folder / FAILED_FOLDER
    has_failed = "error" in record
    try:
        (failed if has_failed else folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--results {folder}: cannot be made ({error.strerror}); choose another") from error
    if keep_scores and not has_failed:
        arrays = io.BytesIO()
        np.savez_compressed(arrays, **scores)
        write_atomically(folder / f"{spec.name}.npz", arrays.getvalue())
    path = (failed if has_failed else folder) / f"{spec.name}.json"
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
    if not has_failed:
        (failed / path.name).unlink(missing_ok=True)


def iterate(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows of a frame, with one attribute per column."""
    return iter(frame.itertuples())


@lru_cache(maxsize=1)
def paper_values() -> pd.DataFrame:
    """What the paper prints, one row per cell in its order.

    Columns: table, dataset, shots, pos_class, column; paper, paper_std: mean and standard deviation of AUROC over the
    draws, per cent.
    """
    numbers = {"table": int, "shots": int, "paper": float, "paper_std": float}
    names = {"class": "pos_class", "auc_mean": "paper", "auc_std": "paper_std"}
    return pd.read_csv(_PAPER, dtype=str).rename(columns=names).astype(numbers)


def paper_part(table: int, dataset: str | None = None, shots: int | None = None) -> pd.DataFrame:
    """What the paper prints in a table, or in its part for a data set and a number of training images."""
    values = paper_values()
    values = values[values["table"] == table]
    return values if shots is None else values[(values["dataset"] == dataset) & (values["shots"] == shots)]


def paper_datasets() -> list[str]:
    """The data sets of all tables."""
    return list(paper_values()["dataset"].unique())
