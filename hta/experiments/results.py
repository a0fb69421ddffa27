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
import reprlib
import textwrap
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from hta.errors import RunError, UserError
from hta.evaluation.metrics import image_auroc
from hta.experiments.plan import METHOD_VERSION, RunSpec
from hta.files import printable, write_atomically

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
FAILED_FOLDER = "failed"
AVERAGE = "average"
TABLES = range(1, 8)
SHOT_TABLES = range(1, 6)
"""Tables with one row per class and one column per method, each part of them for one number of training images."""

_CHECKOUT = Path(__file__).parents[2] / "docs" / "results"
_COLUMNS = ["name", "key", "title", "pos_class", "shots", "draw", "variant", "preset", "num_transforms", "test_limit"]
_COLUMNS += ["precision", "in_order", "paper_dataset", "data_sha256", "task", "changes", "changes_but_seed"]
_COLUMNS += ["training_seed"]
_WAYS = ("mean", "minmax")
_MAX_BYTES = 2**24
_MEASURED = ["auroc", "minmax", "by_fraction", "by_scale", "false_alarms", "combined", "combined_alarms", "seconds"]
_MEASURED += ["dtype", "shares"]
_SCORES = ("scores", "labels", "names")
_ROUNDING = 1e-4  # of an AUROC in per cent, of which six digits are kept

# What files cause that hold no results: JSON, archives, and the headers of arrays, which NumPy parses as Python.
_OF_ARRAYS = (zipfile.BadZipFile, zlib.error, EOFError, MemoryError, RuntimeError, SyntaxError, TokenError)
_NONSENSE = (OSError, ValueError, ArithmeticError, RecursionError, UserError, *_OF_ARRAYS)

_Value = TypeVar("_Value")


def default_folder() -> Path:
    """`docs/results` of a source checkout if it can be written, else `results` in the working directory."""
    return _CHECKOUT if os.access(_CHECKOUT, os.W_OK) else Path("results")


def is_done(folder: Path, spec: RunSpec) -> bool:
    """Whether a folder holds a run's result, whole and from this version of the method."""
    row = _read(folder / f"{spec.name}.json", _row, "a result of this version")
    return row is not None and row["key"] == spec.key


def load_runs(folder: Path) -> pd.DataFrame:
    """Read all results of this version of the method.

    One row per run, by file name, with fields and properties of its `RunSpec`, and auroc and minmax: AUROC in per cent,
    higher = better, with the main fraction of the patches, of scores that are means over scales as they are, or min-max
    normalised first; by_fraction ({fraction: {"mean", "minmax"}}) and by_scale (of each scale alone) in [0, 1]; all of
    them None where undefined; false_alarms: share of the normal test images, in [0, 1], that is rejected at the
    threshold from views of the training images, whose target is 5 %, or None; combined and combined_alarms: AUROC and
    false alarms of the score "combined", or None; seconds of training and scoring; dtype; shares: of
    correct votes on the training images, scale by scale, in [0, 1], empty where there are no votes.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix == ".json") if folder.exists() else ()
    rows = [row for path in paths if (row := _read(path, _row, "a result of this version"))]
    return pd.DataFrame(rows, columns=[*_COLUMNS, *_MEASURED], dtype=object)


def load_scores(folder: Path, run: Any) -> dict[str, np.ndarray] | None:
    """The anomaly scores (higher = more anomalous), labels and names of the test images of a run, each `(N,)`.

    The run is a row of `load_runs`. None if its scores were not kept, or, with a line that names them, if they cannot
    be used or are not those of its result.
    """
    return _read(folder / f"{run.name}.npz", lambda path: _arrays(path, run.auroc), "the scores of its result")


def _read(path: Path, parse: Callable[[Path], _Value], what: str) -> _Value | None:
    """What a file holds; None if there is none, or, with a line that says what it is not, if it cannot be used."""
    if not os.path.lexists(path):
        return None
    try:
        return parse(path)
    except KeyError as error:
        reason = f"the key {error} is missing"
    except (TypeError, AttributeError):
        reason = "a value is of another type"
    except _NONSENSE as error:
        reason = str(error)
    short = textwrap.shorten(printable(reason), 300)
    logger.warning("%s: left out, not %s (%s)", printable(str(path)), what, short)
    return None


def _row(path: Path) -> dict[str, Any]:
    """A row from a file; a UserError, or whatever nonsense causes, if it cannot be used."""
    _check_file(path)
    record = json.loads(path.read_text(encoding="utf-8"))
    if (record["format_version"], record["method_version"]) != (FORMAT_VERSION, METHOD_VERSION):
        raise UserError("another version of the method")
    spec = RunSpec.from_dict(record["spec"], "spec")
    if record["key"] != spec.key:  # some default was another
        raise UserError("its run would have other settings today")
    columns = ((name, getattr(spec, name)) for name in _COLUMNS)
    named = {name: printable(value) if isinstance(value, str) else value for name, value in columns}
    return named | _measured(record, spec)


def _arrays(path: Path, auroc: float) -> dict[str, np.ndarray]:
    """The arrays `_SCORES` from a file; a UserError, or whatever nonsense causes, if they do not give the AUROC."""
    _check_file(path)
    with zipfile.ZipFile(path) as archive:
        if sum(part.file_size for part in archive.infolist()) > _MAX_BYTES:  # a few bytes can be unpacked to many
            raise UserError("no arrays of a sane size")
    with np.load(path, allow_pickle=False) as file:
        found = {name: file[name] for name in _SCORES if name in file}
    if [array.dtype.kind for array in found.values()] != ["f", "i", "U"] or len({a.shape for a in found.values()}) > 1:
        raise UserError(f"it does not have {', '.join(_SCORES)} of the same images")
    value = image_auroc(found["labels"], found["scores"])["value"]
    if value is None or abs(100 * value - auroc) > _ROUNDING:
        raise UserError("another AUROC")
    return found


def _check_file(path: Path) -> None:
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:  # a pipe would be waited for
        raise UserError("no plain file of a sane size")


def _measured(record: dict[str, Any], spec: RunSpec) -> dict[str, Any]:
    """The columns `_MEASURED` of a row."""
    results, run = record["results"], record["run"]
    fractions, whole = results["auroc_by_fraction"], results["auroc"]
    if fractions.keys() != {f"{fraction:g}" for fraction in spec.fractions}:
        raise ValueError(f"other fractions than {spec.fractions}")
    of_ways = [part[way] for part in (whole, *fractions.values()) for way in _WAYS]
    for auroc in of_ways + results["auroc_by_scale"]:
        _check_number("AUROC", auroc)
    rate = results["decision"]["false_positive_rate"]["value"] if "decision" in results else None
    both = results.get("combined")
    combined = both["auroc"] if both else None
    combined_rate = both["decision"]["false_positive_rate"]["value"] if both else None
    for rate_of in (rate, combined_rate):
        _check_number("false_positive_rate", rate_of)
    _check_number("AUROC", combined)
    shares = results.get("training_shares", [])
    for share in shares:
        _check_number("training share", share)
    for part in ("training", "scoring"):
        _check_number("seconds", run[f"seconds_{part}"], 1e9)
    if run["machine"]["dtype"] not in ("float32", "bfloat16"):
        raise ValueError(f"dtype {reprlib.repr(run['machine']['dtype'])}")
    percent = {way: None if whole[way] is None else 100 * whole[way] for way in _WAYS}
    return {
        "auroc": percent["mean"],
        "minmax": percent["minmax"],
        "by_fraction": fractions,
        "by_scale": results["auroc_by_scale"],
        "false_alarms": rate,
        "combined": None if combined is None else 100 * combined,
        "combined_alarms": combined_rate,
        "seconds": run["seconds_training"] + run["seconds_scoring"],
        "dtype": run["machine"]["dtype"],
        "shares": shares,
    }


def _check_number(name: str, value: Any, highest: float = 1) -> None:
    """Refuse, with a ValueError, what is neither None nor a number from 0 to the highest."""
    if value is not None and not (type(value) in (int, float) and 0 <= value <= highest):
        raise ValueError(f"{name} {reprlib.repr(value)} is no number from 0 to {highest:g}")


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
