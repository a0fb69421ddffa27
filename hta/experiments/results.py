"""Results on the disk: one JSON a run, in one flat folder; folders of several machines merge by copying.

<name>.json          a result; its name ends with the key of all that it depends on
<name>.npz           anomaly scores, where they were asked for
failed/<name>.json   the error of a run that failed; it is tried again at the next start
tables/, plots/      made from the results
"""

import io
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from hta.errors import RunError, UserError
from hta.experiments.presets import METHOD_VERSION
from hta.experiments.spec import RunSpec
from hta.experiments.unit import FORMAT_VERSION, Outcome
from hta.files import write_atomically

logger = logging.getLogger(__name__)

FAILED_FOLDER = "failed"
_CHECKOUT = Path(__file__).parents[2] / "docs" / "results"


def default_folder() -> Path:
    """`docs/results` of a source checkout where it can be written, else `results` in the working directory."""
    return _CHECKOUT if os.access(_CHECKOUT, os.W_OK) else Path("results")


@dataclass(frozen=True)
class Result:
    """A result that was read.

    Attributes:
        spec: of the run.
        record: the JSON.
    """

    spec: RunSpec
    record: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Time of training and scoring."""
        return self.record["run"]["seconds_training"] + self.record["run"]["seconds_scoring"]

    @property
    def precision(self) -> str:
        """In which the run was made, "float32" or "bfloat16": under "auto" the machine's choice."""
        return self.record["run"]["machine"]["dtype"]


@dataclass(frozen=True)
class ResultsFolder:
    """A folder of results.

    Attributes:
        path: the folder; made when something is written.
    """

    path: Path

    def holds(self, spec: RunSpec) -> bool:
        """Whether the run's result is there, whole, and of this version of the method."""
        result = _read(self.path / f"{spec.name}.json")
        return result is not None and result.record["key"] == spec.key

    def results(self) -> Iterator[Result]:
        """All results of this version of the method, by name."""
        for path in sorted(self.path.glob("*.json")):
            result = _read(path)
            if result is not None:
                yield result

    def store(self, outcome: Outcome, *, keep_scores: bool = False) -> None:
        """Write a result, or the error of a failed run.

        Raises:
            RunError: the folder cannot be written.
        """
        name, failure = f"{outcome.spec.name}.json", self.path / FAILED_FOLDER
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if outcome.record is None:
                failure.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"--results {self.path}: cannot be made ({error.strerror}); choose another") from error
        if outcome.record is None:
            date = datetime.now(timezone.utc).isoformat(timespec="seconds")
            _write(failure / name, {"spec": asdict(outcome.spec), "date": date, "error": outcome.error})
            return
        if keep_scores:
            arrays = io.BytesIO()
            np.savez_compressed(arrays, **outcome.scores)
            write_atomically(self.path / f"{outcome.spec.name}.npz", arrays.getvalue())
        _write(self.path / name, outcome.record)
        (failure / name).unlink(missing_ok=True)


def _write(path: Path, data: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(data, indent=1) + "\n").encode())


def _read(path: Path) -> Result | None:
    """A result; None where there is none, or one of another version."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        versions = record["format_version"], record["method_version"]
        if versions != (FORMAT_VERSION, METHOD_VERSION):
            logger.info("%s: of another version of the method, left out", path)
            return None
        result = Result(RunSpec.from_dict(record["spec"], str(path)), record)
        result.record["results"]["auroc"], result.seconds, result.precision  # these must be there
        if record["key"] != result.spec.key:  # some default was another
            logger.info("%s: of other settings than its run would have now, left out", path)
            return None
        return result
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        logger.warning("%s: not a result of this version (%s), left out", path, " ".join(str(error).split()))
        return None
