"""The paper's tables from the available runs, beside the printed values: data frames and their text.

All figures are AUROC in per cent, higher = better. A difference is ours minus the paper's; the verdict says whether it
is within the paper's standard deviation over draws. An average has no verdict, since a mean of these deviations is not
the deviation of a mean. Averages and their differences are over the classes that were run.
Runs with another number of transformations than the paper's are shown, but not beside its figures.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from hta.data.specs import ROTATIONS, SPECS
from hta.errors import UserError
from hta.evaluation.results import as_text
from hta.experiments.plan import paper_part
from hta.experiments.results import AVERAGE, iterate

SETUP = ["title", "paper_dataset", "shots", "preset", "test_limit", "num_transforms", "changes", "in_order"]
"""What all runs in one part of a table share."""

NOT_RUN = "not run"
_VERDICTS = _BELOW, _WITHIN, _ABOVE = ("below", "within one std", "above")
_DEFECT_TABLES, _ABLATION, _FRACTIONS = (5, 7), 6, 7
PAPER_TRANSFORMS = {spec.table_name: spec.num_transforms for spec in SPECS.values()}
_TITLES = ["One-shot", "Five-shot", "Ten-shot", "CIFAR10, 50 and 80 shots", "MVTec AD", "Ablation"]
_TITLES += ["Defects, by the part of the patches that vote (per cent)"]
_OVER_CLASSES = "(95 % interval over classes)"


# --- the data -----------------------------------------------------------------------------------------------------


def build_table(number: int, runs: pd.DataFrame) -> pd.DataFrame:
    """A table, 1 to 7, with a part for each way in which something was run, and one for each data set that was not.

    The runs are from `load_runs`; those that belong to other tables are left out.

    Returns:
        One row per part, class and column of the method, and one average per part and column that was run, with

        - table, `SETUP`, part, label (of the setup in words, empty for a part that was not run), place (data set and
          shots in words) and hours (time of all its runs): the same in all rows of a part.
        - pos_class, column, is_average; draws (in words), verdict, and minus_ours (in the ablation, the mean difference
          to the method on the same draws); false_alarms: of an average, their median and range over the runs, in words.
        - ours, std (NaN with a single draw), minmax, fewest and most (numbers of draws): NaN where not run.
        - paper, paper_std, difference: NaN where the paper has no value.
        - a column for each other method in the paper, and one with its standard deviation.

    Raises:
        UserError: two results of one class and draw are of different images.
    """
    printed = paper_part(number)
    runs = _runs_of_table(number, runs[runs["shots"].isin(printed["shots"])])
    places = dict.fromkeys(zip(printed["dataset"], printed["shots"], strict=True))
    order = {place: rank for rank, place in enumerate(places)}
    parts = [(dict(members[SETUP].iloc[0]), members) for _, members in runs.groupby("setup")]
    was_run = {(setup["paper_dataset"], setup["shots"]) for setup, _ in parts}
    absent = [dict(paper_dataset=name, shots=n) for name, n in order if (name, n) not in was_run]
    parts += [(dict.fromkeys(SETUP) | place, runs[:0]) for place in absent]
    parts.sort(key=lambda p: (order.get((p[0]["paper_dataset"], p[0]["shots"]), len(order)), p[0]["shots"]))
    frames = [_part_rows(number, *part).assign(table=number, part=rank) for rank, part in enumerate(parts)]
    return pd.concat(frames, ignore_index=True).astype({"is_average": bool})


def _runs_of_table(number: int, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that belong to a table: the column they belong to, whose figures they are compared with, their setup."""
    column = runs["variant"].replace("ours", "Ours")
    if number != _ABLATION:
        column = column.where(column == "Ours")
    if number == 5:
        of_number = runs["num_transforms"].map({54: "Ours1", ROTATIONS: "Ours2"})
        column = of_number.where(column.notna() & (runs["paper_dataset"] == "mvtec"))
        runs = runs.assign(num_transforms=None)  # the column names it
    else:
        paper = ROTATIONS if number == _FRACTIONS else runs["paper_dataset"].map(PAPER_TRANSFORMS)
        runs = runs.assign(paper_dataset=runs["paper_dataset"].where(runs["num_transforms"] == paper, None))
    task = "defect" if number in _DEFECT_TABLES else "class"
    runs = with_setup(runs.assign(column=column)[(runs["task"] == task) & column.notna()])
    if number == _ABLATION:  # the method only where another variant was run on the same draw
        ablated = runs["variant"] != "ours"
        runs = runs[ablated.groupby([runs["setup"], runs["pos_class"], runs["draw"]]).transform("any")]
    first = runs.groupby(["setup", "pos_class", "draw"])[["name", "data_sha256"]].transform("first")
    other = runs["data_sha256"] != first["data_sha256"]
    if other.any():  # they can neither be averaged nor compared
        raise UserError(
            f"{first['name'][other].iloc[0]}.json and {runs['name'][other].iloc[0]}.json: of one class and draw, but "
            "of different images; move away what is out of date, or run one of them with a --dataset_title of its own"
        )
    return runs


def with_setup(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with their `SETUP` in one column of strings, to group and sort by."""
    texts = [str(values) for values in runs[SETUP].itertuples(index=False, name=None)]
    return runs.assign(setup=pd.Series(texts, index=runs.index, dtype=str))  # of strings even without runs


def _part_rows(number: int, setup: dict[str, Any], runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of one part: classes, then averages."""
    key = ["pos_class", "column"]
    names = paper_part(number)["column"].unique()
    columns = [name for name in names if number in (_ABLATION, _FRACTIONS) or name.startswith("Ours")]
    here = paper_part(number, setup["paper_dataset"], setup["shots"])
    draws = _draws(number, runs)
    cells = draws.groupby(key, sort=False).agg(
        ours=("ours", "mean"), std=("ours", "std"), minmax=("minmax", "mean"), fewest=("ours", "size")
    )
    cells = cells.assign(most=cells["fewest"], minus_ours=math.nan)
    if number == _ABLATION:  # to the method on the same draws
        wide = draws.pivot(index=["pos_class", "draw"], columns="column", values="ours")
        cells["minus_ours"] = wide.sub(wide.get("Ours", math.nan), axis=0).groupby("pos_class").mean().stack()

    classes = dict.fromkeys([*here["pos_class"][here["pos_class"] != AVERAGE], *draws["pos_class"]])
    classes = classes or dict.fromkeys(runs["pos_class"])  # of which no figure is defined
    rows = pd.DataFrame(index=pd.MultiIndex.from_product([classes, columns], names=key)).join(cells)
    rows = rows.join(here.set_index(key)[["paper", "paper_std"]]).reset_index()
    rows = rows.assign(is_average=False, false_alarms="")
    by_class = here.pivot(index="pos_class", columns="column", values=["paper", "paper_std"])
    for name in (name for name in names if name not in columns):
        rows[name] = rows["pos_class"].map(by_class.get(("paper", name), {}))
        rows[f"{name} std"] = rows["pos_class"].map(by_class.get(("paper_std", name), {}))

    run, alarms = rows[rows["ours"].notna()], runs[["column", "false_alarms"]].dropna()
    averages = [
        _average(column, run[run["column"] == column], alarms.loc[alarms["column"] == column, "false_alarms"])
        for column in columns
        if column in set(run["column"])
    ]
    rows = pd.concat([rows, pd.DataFrame(averages, columns=rows.columns)], ignore_index=True)
    rows["difference"] = rows["ours"] - rows["paper"]
    rows["verdict"] = [_verdict(row) for row in iterate(rows)]
    rows["draws"] = [count_draws(row.fewest, row.most) for row in iterate(rows)]
    rows = rows.join(pd.DataFrame([setup] * len(rows), columns=SETUP, dtype=object))
    place = f"{setup['paper_dataset'] or setup['title']}, {_count_images(setup['shots'])}"
    label = "" if runs.empty else describe_setup(setup)
    return rows.assign(label=label, place=place, hours=sum(runs["seconds"]) / 3600)


def _draws(number: int, runs: pd.DataFrame) -> pd.DataFrame:
    """Our figures by class, column and draw, where they are defined; table 7 has a column for every fraction."""
    found = [(run.pos_class, run.column, run.draw, run.auroc, run.minmax) for run in iterate(runs)]
    if number == _FRACTIONS:
        found = [
            (run.pos_class, f"{100 * float(fraction):g}", run.draw, auroc["mean"], auroc["minmax"])
            for run in iterate(runs)
            for fraction, auroc in run.by_fraction.items()
        ]
    draws = pd.DataFrame(found, columns=["pos_class", "column", "draw", "ours", "minmax"]).dropna()
    draws = draws.astype({"ours": float, "minmax": float})
    draws[["ours", "minmax"]] *= 100 if number == _FRACTIONS else 1
    return draws.groupby(["pos_class", "column", "draw"], sort=False, as_index=False).last()


def _average(column: str, rows: pd.DataFrame, false_alarms: pd.Series) -> dict[str, Any]:
    """The means over the classes that were run, the paper's over the same classes; NaN if a class has none."""
    place = f"average of {len(rows)} class{'es' * (len(rows) > 1)}"
    apart: dict[str, Any] = dict(pos_class=place, column=column, is_average=True, false_alarms="")
    apart |= dict(fewest=rows["fewest"].min(), most=rows["most"].max())
    if len(false_alarms):
        low, middle, high = (f"{100 * value:.0f}" for value in np.percentile([*false_alarms], [0, 50, 100]))
        apart["false_alarms"] = f"{middle} ({low} to {high})"
    return {name: np.mean([*rows[name]]) for name in rows.columns if name not in apart} | apart


def _verdict(row: Any) -> str:
    """Where ours is, seen from the paper's value and its std; nothing for an average."""
    if pd.isna(row.ours):
        return NOT_RUN
    if pd.isna(row.difference) or row.is_average:
        return ""
    if abs(row.difference) <= row.paper_std:
        return _WITHIN
    return _BELOW if row.difference < 0 else _ABOVE


def count_draws(fewest: float, most: float) -> str:
    """How many draws there are, such as "2", or "1 to 3"; nothing if there is none."""
    return "" if pd.isna(fewest) else " to ".join(f"{count:.0f}" for count in dict.fromkeys((fewest, most)))


def describe_setup(setup: Mapping[str, Any]) -> str:
    """One line for a person; shots of 0 and anything that is None are left out."""
    parts = (
        setup["title"],
        _count_images(setup["shots"]) if setup["shots"] else "",
        f"{setup['num_transforms']} transformations" if setup["num_transforms"] else "",
        f"preset {setup['preset']}",
        f"{setup['test_limit']} test images" if setup["test_limit"] else "whole test set",
        "training images in data-set order" if setup["in_order"] else "",
        setup["changes"],
    )
    return ", ".join(filter(None, parts))


def _count_images(shots: int) -> str:
    return f"{shots} training image{'s' * (shots > 1)}"


# --- the text -----------------------------------------------------------------------------------------------------


def to_markdown(table: pd.DataFrame) -> str:
    """A table in full, with the min-max normalised score, the paper's other methods, and what was not run."""
    number = table["table"].iloc[0]
    lines, hours = [f"### Table {number}: {_TITLES[number - 1]}", ""], 0.0
    for _, part in table.groupby("part"):
        head = part.iloc[0]
        hours += head["hours"]
        absent = [f"**{head['place']}**: {NOT_RUN}{_printed_averages(part)}.", ""]
        lines += _part_lines(head, part) if head["label"] else absent
    return "\n".join([*lines, f"Total time of these runs: {hours:.1f} hours."]) + "\n"


def to_brief_markdown(table: pd.DataFrame) -> str:
    """A table to read: ours beside the paper's, only the classes and plain setups that were run.

    Parts with changed settings are left out: `hta.experiments.changes` compares them. Where the paper has several
    columns for its own method they are shown side by side.
    """
    lines, absent, plain, changed = [], [], [], []
    for _, part in table.groupby("part"):
        head = part.iloc[0]
        if not head["label"]:
            absent.append(head["place"] + _printed_averages(part))
        elif head["changes"]:
            changed.append(head["place"])
        else:
            plain.append(head["place"])
            lines += [f"**{head['label']}** ({head['hours']:.2f} hours)", "", *_brief_lines(part), ""]
            differences = _differences(part)
            lines += [*differences, ""] if differences else []
    absent += [f"{place} (changed settings alone)" for place in dict.fromkeys(changed) if place not in plain]
    if absent:
        lines.append(f"Not run of table {table['table'].iloc[0]}: {'; '.join(absent)}.")
    return "\n".join(lines).rstrip() + "\n"


def to_summary(tables: Iterable[pd.DataFrame]) -> str:
    """One line for every part that was run with plain settings: means over its classes beside the paper's."""
    titles = ["table", "run", "classes", "draws", "ours", "paper, same classes", "difference", "verdicts"]
    titles += ["false alarms for 5 %, median (range)", "hours"]
    lines = []
    for part in (part for table in tables for _, part in table.groupby("part") if not part["changes"].iloc[0]):
        hours = f"{part['hours'].iloc[0]:.2f}"
        for row in iterate(part[part["is_average"]]):
            classes = _run_classes(part, row.column)
            run = row.label + (f": {row.column}" if _has_columns(part) else "")
            figures = [str(len(classes)), row.draws, to_number(row.ours), to_number(row.paper)]
            figures += [with_interval(classes["difference"]), _count_verdicts(classes), row.false_alarms, hours]
            lines.append([str(row.table), run, *figures])
            hours = ""  # of all columns together
    return "\n".join(to_lines(titles, lines)) + "\n"


def to_csv(table: pd.DataFrame) -> str:
    """A table as CSV, one line for each class and column."""
    forms = {"ours": "{:.2f}", "std": "{:.2f}", "minmax": "{:.2f}", "difference": "{:+.2f}"}
    figures = table.assign(
        setup=table["label"].where(table["label"] != "", table["place"]).map(as_text),
        **{name: table[name].map(form.format, na_action="ignore") for name, form in forms.items()},
        pos_class=table["pos_class"].map(as_text),
    ).rename(columns={"pos_class": "class"})
    columns = ["table", "setup", "class", "column", "ours", "std", "draws", "minmax", "paper", "paper_std"]
    columns += ["difference", "verdict", *_other_methods(table)]
    return figures[columns].to_csv(index=False, lineterminator="\n")


def _part_lines(head: pd.Series, part: pd.DataFrame) -> list[str]:
    """A part in full."""
    several, plain = _has_columns(part), not head["changes"]
    is_run = part["pos_class"].isin(part.loc[part["ours"].notna(), "pos_class"])
    # One line, below, for all columns of a class that was not run; with changed settings none.
    shown = part if plain and not several else part[is_run]
    methods = _other_methods(part) if part["paper"].notna().any() else []  # the paper has no other methods alone
    titles = ["class", *(["column"] * several), "ours", "draws", "min-max", "paper", "difference", "verdict", *methods]
    lines = _texts(shown, methods)[titles].to_numpy().tolist()
    if several and plain and not is_run.all():
        absent = ", ".join(part.loc[~is_run, "pos_class"].unique())
        lines.append([absent, "all", NOT_RUN, *[""] * (len(titles) - 3)])
    table = to_lines(titles, lines)
    return [f"**{head['label']}**", "", *table, "", *_differences(part), f"Time: {head['hours']:.2f} hours.", ""]


def _brief_lines(part: pd.DataFrame) -> list[str]:
    """One line per class that was run, or, over several columns, one for ours and one for the paper's."""
    if part.loc[part["ours"].notna() & ~part["is_average"], "pos_class"].nunique() < 2:
        part = part[~part["is_average"]]  # an average of one class says nothing new
    if not _has_columns(part):
        titles = ["class", "ours", "draws", "paper", "difference", "verdict"]
        figures = _texts(part[part["ours"].notna()])[titles].to_numpy()
        absent = ", ".join(part.loc[part["ours"].isna(), "pos_class"])
        return to_lines(["normal class", *titles[1:]], figures) + (["", f"Not run: {absent}."] if absent else [])
    columns, lines = list(part["column"].unique()), []
    for name, rows in part.groupby("pos_class", sort=False):
        texts = _texts(rows).set_index("column")
        if rows["ours"].notna().any():
            lines.append([name, "ours", *texts["ours"].reindex(columns, fill_value=NOT_RUN)])
            if rows["paper"].notna().any():
                lines.append([name, "paper", *texts["paper"].reindex(columns, fill_value="")])
    return to_lines(["normal class", "", *columns], lines)


def _differences(part: pd.DataFrame) -> list[str]:
    """The mean difference to the paper's of every column that was run, with the verdicts; in the ablation, to ours."""
    lines, moved = [], []
    for column in part["column"].unique():
        classes = _run_classes(part, column)
        if difference := with_interval(classes["difference"]):
            over = f" {_OVER_CLASSES}" if "±" in difference else ""
            lines.append(f"Mean difference to the paper, {column}: {difference}{over}; {_count_verdicts(classes)}.")
        if column != "Ours" and (difference := with_interval(classes["minus_ours"])):
            moved.append(f"{column} {difference}")
    if moved:
        lines += [*([""] if lines else []), f"Minus Ours on the same images {_OVER_CLASSES}: {', '.join(moved)}."]
    return lines


def _texts(rows: pd.DataFrame, methods: Sequence[str] = ()) -> pd.DataFrame:
    """The figures of rows as they are printed."""
    texts = {
        "class": rows["pos_class"],
        "column": rows["column"],
        "ours": [text or NOT_RUN for text in _spreads(rows, "ours", "std")],
        "draws": rows["draws"],
        "min-max": rows["minmax"].map(to_number),
        "paper": _spreads(rows, "paper", "paper_std"),
        "difference": [to_number(value, "+.1f") for value in rows["difference"]],
        "verdict": rows["verdict"],
    }
    return pd.DataFrame(texts | {name: _spreads(rows, name, f"{name} std") for name in methods})


def _spreads(rows: pd.DataFrame, mean: str, std: str) -> list[str]:
    """Means with their standard deviations, where there are any."""
    return [with_std(*pair) for pair in zip(rows[mean], rows[std], strict=True)]


def with_std(mean: float, std: float) -> str:
    """A mean with its standard deviation, if there is one."""
    return to_number(mean) + ("" if pd.isna(std) else f" ± {std:.1f}")


def _run_classes(part: pd.DataFrame, column: str) -> pd.DataFrame:
    return part[(part["column"] == column) & part["ours"].notna() & ~part["is_average"]]


def _has_columns(part: pd.DataFrame) -> bool:
    return part["column"].nunique() > 1


def _other_methods(table: pd.DataFrame) -> list[str]:
    return [name.removesuffix(" std") for name in table.columns if name.endswith(" std")]


def _count_verdicts(classes: pd.DataFrame) -> str:
    """How many classes have which verdict, such as "3 below, 6 within one std, 1 above"."""
    counts = classes["verdict"].value_counts()
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in _VERDICTS if verdict in counts)


def _printed_averages(part: pd.DataFrame) -> str:
    head, columns = part.iloc[0], part["column"].unique()
    values = paper_part(head["table"], head["paper_dataset"], head["shots"])
    values = values[(values["pos_class"] == AVERAGE) & values["column"].isin(columns)]
    figures = zip(values["column"], _spreads(values, "paper", "paper_std"), strict=True)
    return f" (paper's average: {', '.join(map(' '.join, figures))})"


def to_lines(titles: Sequence[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """The lines of a Markdown table; a bar in a cell is escaped."""
    lines = titles, ["---"] * len(titles), *rows
    return ["| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |" for cells in lines]


def to_number(value: float, form: str = ".1f") -> str:
    """A figure; nothing for NaN."""
    return "" if pd.isna(value) else format(value, form)


def with_interval(values: Iterable[float]) -> str:
    """The mean of differences with the half width of its 95 % interval (Student's t); NaN are left out."""
    kept = [value for value in values if not pd.isna(value)]
    if len(kept) < 2:
        return "".join(f"{value:+.1f}" for value in kept)
    error = np.std(kept, ddof=1) / math.sqrt(len(kept))
    return f"{np.mean(kept):+.1f} ± {stats.t.ppf(0.975, len(kept) - 1) * error:.1f}"
