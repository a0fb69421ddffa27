"""The values that the paper prints."""

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_FILE = Path(__file__).parent / "htdg_auc_tables.csv"
AVERAGE = "average"
TABLES = range(1, 8)
SHOT_TABLES = range(1, 6)
"""Those with a class a row and methods beside each other, one number of training images a part."""


@dataclass(frozen=True)
class PaperValue:
    """One cell: mean and standard deviation of AUROC over the draws, per cent."""

    mean: float
    std: float


@lru_cache(maxsize=1)
def _cells() -> dict[tuple[int, str, int, str, str], PaperValue]:
    """All cells by (table, data set, shots, class, column)."""
    with _FILE.open(newline="", encoding="utf-8") as stream:
        return {
            (int(row["table"]), row["dataset"], int(row["shots"]), row["class"], row["column"]): PaperValue(
                float(row["auc_mean"]), float(row["auc_std"])
            )
            for row in csv.DictReader(stream)
        }


def paper_value(table: int, dataset: str | None, shots: int, class_name: str, column: str) -> PaperValue | None:
    """A cell; None where the paper has none."""
    return _cells().get((table, dataset, shots, class_name, column))


def paper_datasets() -> list[str]:
    """The data sets of all tables."""
    return list(dict.fromkeys(key[1] for key in _cells()))


def paper_parts(table: int) -> list[tuple[str, int]]:
    """The (data set, shots) that a table has, in its order."""
    return list(dict.fromkeys((key[1], key[2]) for key in _cells() if key[0] == table))


def paper_classes(table: int, dataset: str | None, shots: int) -> list[str]:
    """The classes of a part of a table, without the average."""
    found = (key[3] for key in _cells() if key[:3] == (table, dataset, shots))
    return [name for name in dict.fromkeys(found) if name != AVERAGE]


def paper_columns(table: int) -> list[str]:
    """The columns of a table, in its order."""
    return list(dict.fromkeys(key[4] for key in _cells() if key[0] == table))
