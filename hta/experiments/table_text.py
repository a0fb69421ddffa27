"""Tables as Markdown and CSV. All figures are AUROC in per cent, higher = better."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from hta.experiments.paper import AVERAGE, PaperValue, paper_classes
from hta.experiments.tables import ABLATION, NOT_RUN, VERDICTS, Part, Row

_TITLES = {
    1: "One-shot",
    2: "Five-shot",
    3: "Ten-shot",
    4: "CIFAR10, 50 and 80 shots",
    5: "MVTec AD",
    6: "Ablation",
    7: "Defects, by the part of the patches that vote (per cent)",
}


def to_markdown(table: int, parts: Sequence[Part]) -> str:
    """A table in full, with the min-max normalised score, the paper's other methods, and what was not run."""
    lines = [f"### Table {table}: {_TITLES[table]}", ""]
    for part in parts:
        lines += _part_lines(part) if part.setup else _absent_lines(part)
    lines.append(f"Total time of these runs: {_hours(parts):.1f} hours.")
    return "\n".join(lines) + "\n"


def to_brief_markdown(table: int, parts: Sequence[Part]) -> str:
    """A table to read: ours beside the paper's, of the classes and setups that were run as they stand.

    Parts of changed settings are left out, for `hta.experiments.changes` to compare. Where the paper has several
    columns of its own method they stand side by side.
    """
    lines = []
    for part in parts:
        if part.setup and not part.setup.changes:
            columns = _brief_columns if len(part.columns) > 1 else _brief_rows
            lines += [f"**{part.setup.describe()}** ({part.hours:.2f} hours)", "", *columns(part), ""]
            differences = _differences(part)
            lines += [*differences, ""] if differences else []
    absent = [_absent_title(part) + _printed_averages(part) for part in parts if not part.setup]
    plain = {_absent_title(part) for part in parts if part.setup and not part.setup.changes}
    changed = dict.fromkeys(_absent_title(part) for part in parts if part.setup and part.setup.changes)
    absent += [f"{title} (changed settings alone)" for title in changed if title not in plain]
    if absent:
        lines.append(f"Not run of table {table}: {'; '.join(absent)}.")
    return "\n".join(lines).rstrip() + "\n"


def to_summary(tables: Sequence[tuple[int, Sequence[Part]]]) -> str:
    """One line for every part that was run as it stands, means over its classes beside the paper's."""
    titles = ["table", "run", "classes", "draws", "ours", "paper, same classes", "difference", "verdicts"]
    titles += ["false alarms for 5 %, median (range)", "hours"]
    lines = [line(titles), line(["---"] * len(titles))]
    for table, parts in tables:
        for part in parts:
            if part.setup and not part.setup.changes:
                lines += [line(cells) for cells in _summary_cells(table, part)]
    return "\n".join(lines) + "\n"


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
            figures = [number(row.ours, ".2f"), number(row.std, ".2f"), count_draws([row]), number(row.minmax, ".2f")]
            paper = [row.paper.mean, row.paper.std] if row.paper else ["", ""]
            verdict = [number(row.difference, "+.2f"), row.verdict]
            others = [value.mean if value else "" for value in row.baselines]
            writer.writerow([part.table, setup, row.name, row.column, *figures, *paper, *verdict, *others])
    return text.getvalue()


def _part_lines(part: Part) -> list[str]:
    several = len(part.columns) > 1
    titles = ["class", *(["column"] * several), "ours", "draws", "min-max", "paper", "difference", "verdict"]
    # Without rows of the paper there is nothing to stand in its columns.
    baselines = part.baseline_columns if paper_classes(part.table, part.dataset, part.shots) else []
    titles += baselines
    lines = [f"**{part.setup.describe()}**", "", line(titles), line(["---"] * len(titles))]
    run = {name for name, _ in part.cells}
    for row in part.rows():
        if row.ours is None and row.name not in run and (several or part.setup.changes):
            continue  # one line for all columns of such a class, below; of a changed setup only what was run is told
        cells = [row.name, *([row.column] * several), _ours(row), count_draws([row]), number(row.minmax)]
        cells += [
            _value(row.paper),
            number(row.difference, "+.1f"),
            row.verdict,
            *map(_value, row.baselines[: len(baselines)]),
        ]
        lines.append(line(cells))
    absent = [name for name in part.classes if name not in run]
    if several and absent and not part.setup.changes:
        lines.append(line([", ".join(absent), "all", NOT_RUN, *[""] * (len(titles) - 3)]))
    return [*lines, "", *_differences(part), f"Time: {part.hours:.2f} hours.", ""]


def _brief_rows(part: Part) -> list[str]:
    """One line a class; what was not run is named in one line."""
    titles = ["normal class", "ours", "draws", "paper", "difference", "verdict"]
    lines = [line(titles), line(["---"] * len(titles))]
    for row in _several_classes(part):
        if row.ours is not None:
            figures = [_ours(row), count_draws([row]), _value(row.paper), number(row.difference, "+.1f"), row.verdict]
            lines.append(line([row.name, *figures]))
    absent = [row.name for row in part.rows() if row.ours is None]
    return [*lines, *(["", f"Not run: {', '.join(absent)}."] if absent else [])]


def _brief_columns(part: Part) -> list[str]:
    """One line a class for ours and one for the paper's; without classes in common, the paper's average as a whole."""
    titles = ["normal class", "", *part.columns]
    lines = [line(titles), line(["---"] * len(titles))]
    cells = {(row.name, row.column): row for row in _several_classes(part)}
    for name in dict.fromkeys(row.name for row in cells.values() if row.ours is not None):
        rows = [cells.get((name, column)) for column in part.columns]
        lines.append(line([name, "ours", *(_ours(row) if row else NOT_RUN for row in rows)]))
        if any(row and row.paper for row in rows):
            lines.append(line([name, "paper", *(_value(row.paper) if row else "" for row in rows)]))
    return lines


def _several_classes(part: Part) -> list[Row]:
    """All rows; the averages only where there is more than one class."""
    several = len({name for name, _ in part.cells}) > 1
    return [row for row in part.rows() if several or not row.is_average]


def _differences(part: Part) -> list[str]:
    """The mean difference of every column that was run beside the paper's, with the verdicts."""
    lines = []
    for column in part.columns:
        difference = part.mean_difference(column)
        if difference:
            over = "" if difference[1] is None else " (95 % interval over classes)"
            verdicts = _verdicts(part, column)
            lines.append(f"Mean difference to the paper, {column}: {with_interval(*difference)}{over}; {verdicts}.")
    moved = _differences_to_ours(part)
    return [*lines, *([""] if lines and moved else []), *moved]


def _differences_to_ours(part: Part) -> list[str]:
    """What each part of the ablation moves, on the same classes and draws."""
    if part.table != ABLATION:
        return []
    found = {column: part.difference_to_ours(column) for column in part.columns if column != "Ours"}
    moved = [f"{column} {with_interval(*difference)}" for column, difference in found.items() if difference]
    return [f"Minus Ours on the same images (95 % interval over classes): {', '.join(moved)}."] if moved else []


def _verdicts(part: Part, column: str) -> str:
    """How many classes lie where, such as "3 below, 6 within one std, 1 above"."""
    counts = Counter(row.verdict for row in part.class_rows(column))
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])


def _summary_cells(table: int, part: Part) -> list[list[str]]:
    several = len(part.columns) > 1
    lines = []
    for row in part.rows():
        if row.is_average:
            difference = part.mean_difference(row.column)
            cells = [
                str(table),
                part.setup.describe() + (f": {row.column}" if several else ""),
                str(len(part.class_rows(row.column))),
                count_draws([row]),
                number(row.ours),
                number(row.paper.mean if row.paper else None),
                with_interval(*difference) if difference else "",
                _verdicts(part, row.column),
                _false_alarms(part, row.column),
                "" if lines else f"{part.hours:.2f}",  # of all columns together
            ]
            lines.append(cells)
    return lines


def _false_alarms(part: Part, column: str) -> str:
    """Median and range over the runs, per cent."""
    rates = part.false_alarms.get(column)
    if not rates:
        return ""
    low, middle, high = (f"{100 * value:.0f}" for value in np.percentile(rates, [0, 50, 100]))
    return f"{middle} ({low} to {high})"


def _absent_lines(part: Part) -> list[str]:
    return [f"**{_absent_title(part)}**: {NOT_RUN}{_printed_averages(part)}.", ""]


def _printed_averages(part: Part) -> str:
    columns = ((column, part.paper_cell(AVERAGE, column)) for column in part.columns)
    return f" (paper's average: {', '.join(f'{column} {_value(value)}' for column, value in columns if value)})"


def _absent_title(part: Part) -> str:
    name = part.dataset or part.setup.title
    return f"{name}, {part.shots} training image{'s' * (part.shots > 1)}"


def _hours(parts: Sequence[Part]) -> float:
    return sum(part.hours for part in parts)


def line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def number(value: float | None, form: str = ".1f") -> str:
    """A figure, or nothing where there is none."""
    return "" if value is None else format(value, form)


def with_interval(mean: float, half: float | None) -> str:
    """A difference with the half width of its interval, where it has one."""
    return f"{mean:+.1f}" + ("" if half is None else f" ± {half:.1f}")


def _value(value: PaperValue | None) -> str:
    return "" if value is None else f"{value.mean:.1f} ± {value.std:.1f}"


def count_draws(rows: Iterable[Row]) -> str:
    """How many draws rows have, such as "2", or "1 to 3"; nothing where nothing was run."""
    counts = {count for row in rows for count in row.draws}
    return " to ".join(str(count) for count in sorted({min(counts), max(counts)})) if counts else ""


def _ours(row: Row) -> str:
    if row.ours is None:
        return NOT_RUN
    return f"{row.ours:.1f}" if row.std is None else f"{row.ours:.1f} ± {row.std:.1f}"
