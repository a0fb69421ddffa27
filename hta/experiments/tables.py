"""The paper's tables from the runs at hand, beside the printed values.

All figures are AUROC in per cent, higher = better. A difference is ours minus the paper's; the verdict asks whether it
is within the paper's standard deviation over draws; an average has none, since a mean of these deviations is no
deviation of a mean. Averages and their differences are over the classes that were run.
Runs with another number of transformations than the paper's are shown, but not beside its figures.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from functools import cached_property

import numpy as np
from scipy import stats

from hta.data.specs import ROTATIONS, SPECS
from hta.errors import UserError
from hta.experiments.paper import (
    PaperValue,
    paper_classes,
    paper_columns,
    paper_parts,
    paper_value,
)
from hta.experiments.results import Result
from hta.experiments.spec import RunSpec

_DEFECT_TABLES, ABLATION, _FRACTIONS = (5, 7), 6, 7
_PAPER_TRANSFORMS = {spec.table_name: spec.num_transforms for spec in SPECS.values()}
NOT_RUN = "not run"
VERDICTS = _BELOW, _WITHIN, _ABOVE = ("below", "within one std", "above")


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
    in_order: bool = False

    def describe(self) -> str:
        """One line for a person."""
        shots = f"{self.shots} training image{'s' * (self.shots > 1)}" if self.shots else ""
        transforms = f"{self.num_transforms} transformations" if self.num_transforms else ""
        limit = f"{self.test_limit} test images" if self.test_limit else "whole test set"
        order = "training images in data-set order" if self.in_order else ""
        parts = (self.title, shots, transforms, f"preset {self.preset}", limit, order, self.changes)
        return ", ".join(filter(None, parts))


@dataclass(frozen=True)
class Cell:
    """Our figures for a class and a column: by draw, per cent, for both ways to bring scales together."""

    mean: dict[int, float]
    minmax: dict[int, float]


@dataclass(frozen=True)
class Row:
    """A class and column (or their average), ours beside the paper's.

    Attributes:
        name, column: of class and column.
        ours, std, minmax: ours; None where it was not run, std also with a single draw.
        draws: how many there are, ascending: none where it was not run, several only for an average over classes.
        paper: the paper's value, None where it has none.
        baselines: the paper's other columns.
        is_average: over classes.
    """

    name: str
    column: str
    ours: float | None
    std: float | None
    draws: tuple[int, ...]
    minmax: float | None
    paper: PaperValue | None
    baselines: tuple[PaperValue | None, ...]
    is_average: bool = False

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.ours is None or self.paper is None else self.ours - self.paper.mean

    @property
    def verdict(self) -> str:
        """Where ours lies: within one std of the paper's, below or above; nothing for an average."""
        if self.ours is None:
            return NOT_RUN
        if self.difference is None or self.is_average:
            return ""
        if abs(self.difference) <= self.paper.std:
            return _WITHIN
        return _BELOW if self.difference < 0 else _ABOVE


@dataclass(frozen=True)
class Part:
    """One part of a table: a data set with a number of shots, run in one way.

    Attributes:
        table: its number.
        setup: what its runs share; None where nothing was run.
        dataset, shots: of the paper, for a part without runs.
        cells: ours by class and column.
        hours: time of all its runs.
        false_alarms: by column, the share of the normal test images that each run rejects by the threshold that views
            of its training images give, whose target is 5 %.
    """

    table: int
    setup: Setup | None
    dataset: str | None
    shots: int
    cells: dict[tuple[str, str], Cell]
    hours: float = 0.0
    false_alarms: dict[str, list[float]] = field(default_factory=dict)

    @property
    def baseline_columns(self) -> list[str]:
        """The paper's columns that are other methods."""
        if self.table in (ABLATION, _FRACTIONS):
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
            return Row(name, column, None, None, (), None, self.paper_cell(name, column), baselines)
        values = list(cell.mean.values())
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        ours, minmax = float(np.mean(values)), float(np.mean(list(cell.minmax.values())))
        return Row(name, column, ours, std, (len(values),), minmax, self.paper_cell(name, column), baselines)

    def _run_classes(self, column: str) -> list[str]:
        return [name for name in self.classes if (name, column) in self.cells]

    def class_rows(self, column: str) -> list[Row]:
        """The rows of a column's classes that were run."""
        return [self._row(name, column) for name in self._run_classes(column)]

    def _average(self, column: str) -> Row:
        """Means over the classes that were run, the paper's over the same classes."""
        rows = self.class_rows(column)
        names = [row.name for row in rows]
        stds = [row.std for row in rows]
        return Row(
            f"average of {len(names)} class{'es' * (len(names) > 1)}",
            column,
            float(np.mean([row.ours for row in rows])),
            None if None in stds else float(np.mean(stds)),
            tuple(sorted({count for row in rows for count in row.draws})),
            float(np.mean([row.minmax for row in rows])),
            _mean_value([row.paper for row in rows]),
            tuple(_mean_value([self.paper_cell(name, other) for name in names]) for other in self.baseline_columns),
            is_average=True,
        )

    def mean_difference(self, column: str) -> tuple[float, float | None] | None:
        """Mean over classes of ours minus the paper's, and the half width of its 95 % interval (Student's t)."""
        values = [row.difference for row in self.class_rows(column) if row.difference is not None]
        return mean_and_interval(values) if values else None

    def difference_to_ours(self, column: str) -> tuple[float, float | None] | None:
        """Mean over classes of a column minus Ours on the same draws, and the half width of its 95 % interval."""
        values = []
        for name in self._run_classes(column):
            cell, ours = self.cells[name, column], self.cells.get((name, "Ours"))
            common = cell.mean.keys() & ours.mean.keys() if ours else ()
            if common:
                values.append(float(np.mean([cell.mean[draw] - ours.mean[draw] for draw in sorted(common)])))
        return mean_and_interval(values) if values else None


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the half width of its 95 % interval (Student's t); None for a single value."""
    if len(values) == 1:
        return float(values[0]), None
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
            setup = setup_of(result.spec, _paper_dataset(table, result.spec), with_transforms=table != 5)
            groups[setup].append(result)
    if table == ABLATION:
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
    if table == ABLATION:
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


def setup_of(spec: RunSpec, paper_dataset: str | None, *, with_transforms: bool = True) -> Setup:
    """What a run shares with others of its part of a table."""
    changes = [f"{name}={value}" for name, value in (*spec.settings, *spec.preparation)]
    changes += [f"seed {spec.seed}"] * (spec.seed != 0) + [spec.precision] * (spec.precision != "auto")
    return Setup(
        title=spec.title,
        paper_dataset=paper_dataset,
        shots=spec.shots,
        preset=spec.preset,
        test_limit=spec.test_limit,
        num_transforms=spec.num_transforms if with_transforms else None,
        changes=", ".join(changes),
        in_order=spec.in_order,
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
        place: Cell(*({draw: 100 * auroc[way] for draw, auroc in draws.items()} for way in ("mean", "minmax")))
        for place, draws in values.items()
    }
    hours = sum(result.seconds for result in members) / 3600
    return Part(table, setup, setup.paper_dataset, setup.shots, cells, hours, _false_alarms(table, members))


def _false_alarms(table: int, members: Sequence[Result]) -> dict[str, list[float]]:
    rates: defaultdict[str, list[float]] = defaultdict(list)
    for result in members:
        rate = result.record["results"].get("decision", {}).get("false_positive_rate", {}).get("value")
        if rate is not None:
            rates[_column(table, result.spec)].append(rate)
    return dict(rates)
