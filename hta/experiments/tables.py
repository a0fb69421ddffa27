"""The paper's tables from the runs at hand, beside the printed values.

All figures are AUROC in per cent, higher = better. A difference is ours minus the paper's; the verdict asks whether it
is within the paper's standard deviation over draws. Averages and their differences are over the classes that were run.
Runs with another number of transformations than the paper's are shown, but not beside its figures.
"""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from hta.data.selection import ROTATIONS
from hta.data.specs import SPECS
from hta.errors import UserError
from hta.experiments.paper import (
    AVERAGE,
    PaperValue,
    paper_classes,
    paper_columns,
    paper_parts,
    paper_value,
)
from hta.experiments.results import Result
from hta.experiments.spec import RunSpec

_TITLES = {
    1: "One-shot",
    2: "Five-shot",
    3: "Ten-shot",
    4: "CIFAR10, 50 and 80 shots",
    5: "MVTec AD",
    6: "Ablation",
    7: "Defects, by the part of the patches that vote (per cent)",
}
_DEFECT_TABLES, _ABLATION, _FRACTIONS = (5, 7), 6, 7
_PAPER_TRANSFORMS = {spec.table_name: spec.num_transforms for spec in SPECS.values()}
_NOT_RUN = "not run"


@dataclass(frozen=True)
class Setup:
    """What all runs of one part of a table share."""

    title: str
    paper_dataset: str | None
    shots: int
    preset: str
    test_limit: int | None
    num_transforms: int | None
    changes: str

    def describe(self) -> str:
        """One line for a person."""
        shots = f"{self.shots} training image{'s' * (self.shots > 1)}" if self.shots else ""
        transforms = f"{self.num_transforms} transformations" if self.num_transforms else ""
        limit = f"{self.test_limit} test images" if self.test_limit else "whole test set"
        return ", ".join(filter(None, (self.title, shots, transforms, f"preset {self.preset}", limit, self.changes)))


@dataclass(frozen=True)
class Cell:
    """Our figures for a class and a column: one value a draw, per cent, for both ways to bring scales together."""

    mean: tuple[float, ...]
    minmax: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """A class and column (or their average), ours beside the paper's.

    Attributes:
        name, column: of class and column.
        ours, std, draws, minmax: ours; None where it was not run, std also with a single draw.
        paper: the paper's value, None where it has none.
        baselines: the paper's other columns.
    """

    name: str
    column: str
    ours: float | None
    std: float | None
    draws: int
    minmax: float | None
    paper: PaperValue | None
    baselines: tuple[PaperValue | None, ...]

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.ours is None or self.paper is None else self.ours - self.paper.mean

    @property
    def verdict(self) -> str:
        """Where ours lies: within one std of the paper's, below or above."""
        if self.ours is None:
            return _NOT_RUN
        if self.difference is None:
            return ""
        if abs(self.difference) <= self.paper.std:
            return "within one std"
        return "below" if self.difference < 0 else "above"


@dataclass(frozen=True)
class Part:
    """One part of a table: a data set with a number of shots, run in one way.

    Attributes:
        table: its number.
        setup: what its runs share; None where nothing was run.
        dataset, shots: of the paper, for a part without runs.
        cells: ours by class and column.
        hours: time of all its runs.
    """

    table: int
    setup: Setup | None
    dataset: str | None
    shots: int
    cells: dict[tuple[str, str], Cell]
    hours: float = 0.0

    @property
    def baseline_columns(self) -> list[str]:
        """The paper's columns that are other methods."""
        if self.table in (_ABLATION, _FRACTIONS):
            return []
        return [column for column in paper_columns(self.table) if not column.startswith("Ours")]

    @cached_property
    def columns(self) -> list[str]:
        """The columns that are ours."""
        return [column for column in paper_columns(self.table) if column not in self.baseline_columns]

    @cached_property
    def classes(self) -> list[str]:
        """The paper's classes, then others that were run."""
        return list(dict.fromkeys([*paper_classes(self.table, self.dataset, self.shots), *(c for c, _ in self.cells)]))

    def rows(self) -> list[Row]:
        """A row for every class and column, then the averages of columns that were run."""
        rows = [self._row(name, column) for name in self.classes for column in self.columns]
        return rows + [self._average(column) for column in self.columns if self._run_classes(column)]

    def paper_cell(self, name: str, column: str) -> PaperValue | None:
        """What the paper prints for a class and a column."""
        return paper_value(self.table, self.dataset, self.shots, name, column)

    def _row(self, name: str, column: str) -> Row:
        baselines = tuple(self.paper_cell(name, other) for other in self.baseline_columns)
        cell = self.cells.get((name, column))
        if cell is None:
            return Row(name, column, None, None, 0, None, self.paper_cell(name, column), baselines)
        std = float(np.std(cell.mean, ddof=1)) if len(cell.mean) > 1 else None
        ours, minmax = float(np.mean(cell.mean)), float(np.mean(cell.minmax))
        return Row(name, column, ours, std, len(cell.mean), minmax, self.paper_cell(name, column), baselines)

    def _run_classes(self, column: str) -> list[str]:
        return [name for name in self.classes if (name, column) in self.cells]

    def _average(self, column: str) -> Row:
        """Means over the classes that were run, the paper's over the same classes."""
        names = self._run_classes(column)
        rows = [self._row(name, column) for name in names]
        stds = [row.std for row in rows]
        return Row(
            f"average of {len(names)} class{'es' * (len(names) > 1)}",
            column,
            float(np.mean([row.ours for row in rows])),
            None if None in stds else float(np.mean(stds)),
            min(row.draws for row in rows),
            float(np.mean([row.minmax for row in rows])),
            _mean_value([row.paper for row in rows]),
            tuple(_mean_value([self.paper_cell(name, other) for name in names]) for other in self.baseline_columns),
        )

    def mean_difference(self, column: str) -> tuple[float, float | None] | None:
        """Mean over classes of ours minus the paper's, and the half width of its 95 % interval (Student's t)."""
        rows = [self._row(name, column) for name in self._run_classes(column)]
        values = [row.difference for row in rows if row.difference is not None]
        if not values:
            return None
        if len(values) == 1:
            return values[0], None
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        return float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1) * error)


def _mean_value(values: Sequence[PaperValue | None]) -> PaperValue | None:
    if not values or None in values:
        return None
    return PaperValue(*(float(np.mean(column)) for column in zip(*map(astuple, values), strict=True)))


def build_table(table: int, results: Iterable[Result]) -> list[Part]:
    """The parts of a table: one for each way in which something was run, one for each that was not.

    Args:
        table: 1 to 7.
        results: all that are at hand; those that belong to other tables are left out.

    Raises:
        UserError: two results of one class and draw are of different images.
    """
    groups: dict[Setup, list[Result]] = defaultdict(list)
    for result in results:
        if _belongs(table, result.spec):
            groups[_setup_of(table, result.spec)].append(result)
    if table == _ABLATION:
        groups = {setup: _compared(members) for setup, members in groups.items()}
    for members in groups.values():
        _check_same_images(members)
    parts = [_part(table, setup, members) for setup, members in groups.items() if members]
    order = {place: number for number, place in enumerate(paper_parts(table))}
    run = {(part.dataset, part.shots) for part in parts}
    parts += [Part(table, None, *place, {}) for place in order if place not in run]
    return sorted(
        parts,
        key=lambda part: (order.get((part.dataset, part.shots), len(order)), part.shots, str(part.setup)),
    )


def _compared(members: Sequence[Result]) -> list[Result]:
    """An ablation's runs, those of the method only where another variant was trained on the same draw."""
    ablated = {(result.spec.pos_class, result.spec.draw) for result in members if result.spec.variant != "ours"}
    return [result for result in members if (result.spec.pos_class, result.spec.draw) in ablated]


def _check_same_images(members: Sequence[Result]) -> None:
    """Refuse two results of one class and draw of which neither may take the other's place or be compared with it.

    Raises:
        UserError: they are of different images.
    """
    first: dict[tuple[str, int], RunSpec] = {}
    for spec in (result.spec for result in members):
        other = first.setdefault((spec.pos_class, spec.draw), spec)
        if other.data_sha256 != spec.data_sha256:
            raise UserError(
                f"{other.name}.json and {spec.name}.json: of one class and draw, but of different images; move away "
                "what is out of date, or run one of them with a --dataset_title of its own"
            )


def _belongs(table: int, spec: RunSpec) -> bool:
    if (spec.task == "defect") != (table in _DEFECT_TABLES) or spec.shots not in {n for _, n in paper_parts(table)}:
        return False
    return _column(table, spec) is not None


def _column(table: int, spec: RunSpec) -> str | None:
    """The paper's column that a run stands beside; table 7 has one for every fraction."""
    if table == _ABLATION:
        return "Ours" if spec.variant == "ours" else spec.variant
    if spec.variant != "ours":
        return None
    if table == 5:
        return {54: "Ours1", 4: "Ours2"}.get(spec.num_transforms) if spec.paper_dataset == "mvtec" else None
    return "Ours"


def _paper_dataset(table: int, spec: RunSpec) -> str | None:
    """Whose figures a run stands beside; None where they are of another number of transformations."""
    if table == 5:
        return spec.paper_dataset  # its columns say which
    printed = ROTATIONS if table == _FRACTIONS else _PAPER_TRANSFORMS.get(spec.paper_dataset)
    return spec.paper_dataset if spec.num_transforms == printed else None


def _setup_of(table: int, spec: RunSpec) -> Setup:
    changes = [f"{name}={value}" for name, value in (*spec.settings, *spec.preparation)]
    changes += [f"seed {spec.seed}"] * (spec.seed != 0) + [spec.precision] * (spec.precision != "auto")
    return Setup(
        title=spec.title,
        paper_dataset=_paper_dataset(table, spec),
        shots=spec.shots,
        preset=spec.preset,
        test_limit=spec.test_limit,
        num_transforms=None if table == 5 else spec.num_transforms,
        changes=", ".join(changes),
    )


def _part(table: int, setup: Setup, members: Sequence[Result]) -> Part:
    values: defaultdict[tuple[str, str], dict[int, dict[str, float]]] = defaultdict(dict)
    for result in members:
        spec, found = result.spec, result.record["results"]
        if table == _FRACTIONS:
            columns = {f"{100 * float(name):g}": auroc for name, auroc in found["auroc_by_fraction"].items()}
        else:
            columns = {_column(table, spec): found["auroc"]}
        for column, auroc in columns.items():
            if None not in auroc.values():
                values[spec.pos_class, column][spec.draw] = auroc
    cells = {
        place: Cell(*(tuple(100 * auroc[way] for auroc in draws.values()) for way in ("mean", "minmax")))
        for place, draws in values.items()
    }
    hours = sum(result.seconds for result in members) / 3600
    return Part(table, setup, setup.paper_dataset, setup.shots, cells, hours)


# --- Markdown and CSV ---------------------------------------------------------------------------------------------


def to_markdown(table: int, parts: Sequence[Part]) -> str:
    """A table as Markdown."""
    lines = [f"### Table {table}: {_TITLES[table]}", ""]
    for part in parts:
        lines += _part_lines(part) if part.setup else _absent_lines(part)
    lines.append(f"Total time of these runs: {sum(part.hours for part in parts):.1f} hours.")
    return "\n".join(lines) + "\n"


def _part_lines(part: Part) -> list[str]:
    several = len(part.columns) > 1
    titles = ["class", *(["column"] * several), "ours", "draws", "min-max", "paper", "difference", "verdict"]
    # Without rows of the paper there is nothing to stand in its columns.
    baselines = part.baseline_columns if paper_classes(part.table, part.dataset, part.shots) else []
    titles += baselines
    lines = [f"**{part.setup.describe()}**", "", _line(titles), _line(["---"] * len(titles))]
    run = {name for name, _ in part.cells}
    for row in part.rows():
        if several and row.ours is None and row.name not in run:
            continue  # one line for all columns of such a class, below
        cells = [row.name, *([row.column] * several), _ours(row), str(row.draws or ""), _number(row.minmax)]
        cells += [
            _value(row.paper),
            _number(row.difference, "+.1f"),
            row.verdict,
            *map(_value, row.baselines[: len(baselines)]),
        ]
        lines.append(_line(cells))
    absent = [name for name in part.classes if name not in run]
    if several and absent:
        lines.append(_line([", ".join(absent), "all", _NOT_RUN, *[""] * (len(titles) - 3)]))
    lines.append("")
    for column in part.columns:
        difference = part.mean_difference(column)
        if difference:
            interval = "" if difference[1] is None else f" ± {difference[1]:.1f} (95 % interval over classes)"
            lines.append(f"Mean difference to the paper, {column}: {difference[0]:+.1f}{interval}.")
    return [*lines, f"Time: {part.hours:.2f} hours.", ""]


def _absent_lines(part: Part) -> list[str]:
    columns = ((column, part.paper_cell(AVERAGE, column)) for column in part.columns)
    printed = ", ".join(f"{column} {_value(value)}" for column, value in columns if value)
    return [f"**{_absent_title(part)}**: {_NOT_RUN} (paper's average: {printed}).", ""]


def _absent_title(part: Part) -> str:
    return f"{part.dataset}, {part.shots} training image{'s' * (part.shots > 1)}"


def to_csv(parts: Sequence[Part]) -> str:
    """A table as CSV, one line for each class and column."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["table", "setup", "class", "column", "ours", "std", "draws", "minmax", "paper", "paper_std"]
    baselines = parts[0].baseline_columns if parts else []
    writer.writerow([*header, "difference", "verdict", *baselines])
    for part in parts:
        setup = part.setup.describe() if part.setup else _absent_title(part)
        for row in part.rows():
            figures = [_number(row.ours, ".2f"), _number(row.std, ".2f"), row.draws, _number(row.minmax, ".2f")]
            paper = [row.paper.mean, row.paper.std] if row.paper else ["", ""]
            verdict = [_number(row.difference, "+.2f"), row.verdict]
            others = [value.mean if value else "" for value in row.baselines]
            writer.writerow([part.table, setup, row.name, row.column, *figures, *paper, *verdict, *others])
    return text.getvalue()


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None, form: str = ".1f") -> str:
    return "" if value is None else format(value, form)


def _value(value: PaperValue | None) -> str:
    return "" if value is None else f"{value.mean:.1f} ± {value.std:.1f}"


def _ours(row: Row) -> str:
    if row.ours is None:
        return _NOT_RUN
    return f"{row.ours:.1f}" if row.std is None else f"{row.ours:.1f} ± {row.std:.1f}"
