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
from hta.experiments.results import AVERAGE, iterate, paper_part

SETUP = ["title", "paper_dataset", "shots", "preset", "test_limit", "num_transforms", "changes", "in_order"]
"""What all runs in one part of a table share."""

NOT_RUN = "not run"
_VERDICTS = _BELOW, _WITHIN, _ABOVE = ("below", "within one std", "above")
_DEFECT_TABLES, _ABLATION, _FRACTIONS = (5, 7), 6, 7
_PAPER_TRANSFORMS = {spec.table_name: spec.num_transforms for spec in SPECS.values()}
_TITLES = {
    1: "One-shot",
    2: "Five-shot",
    3: "Ten-shot",
    4: "CIFAR10, 50 and 80 shots",
    5: "MVTec AD",
    6: "Ablation",
    7: "Defects, by the part of the patches that vote (per cent)",
}
_OVER_CLASSES = "(95 % interval over classes)"


# --- the data -----------------------------------------------------------------------------------------------------


def build_table(number: int, runs: pd.DataFrame) -> pd.DataFrame:
    """A table with one part for each way in which something was run, and one for each data set that was not.

    Args:
        number: 1 to 7.
        runs: from `load_runs`; those that belong to other tables are left out.

    Returns:
        One row per part, class and column of the method, and one average per part and column that was run:

        - `SETUP`, part, label (of the setup in words, empty for a part that was not run), place (data set and
          shots in words) and hours (time of all its runs): the same in all rows of a part.
        - pos_class, column, is_average.
        - ours, std (NaN with a single draw), minmax, fewest and most (numbers of draws): NaN where not run.
        - paper, paper_std, difference: NaN where the paper has no value; verdict.
        - minus_ours: in the ablation, the mean difference to the method on the same draws.
        - false_alarms: of an average, their median and range over the runs, in words.
        - a column for each other method in the paper, and one with its standard deviation.

    Raises:
        UserError: two results of one class and draw are of different images.
    """
    printed = paper_part(number)
    runs = _runs_of_table(number, runs[runs["shots"].isin(printed["shots"])])
    places = list(dict.fromkeys(zip(printed["dataset"], printed["shots"], strict=True)))
    parts: list[tuple[dict[str, Any], pd.DataFrame]] = [
        (dict(zip(SETUP, members[SETUP].iloc[0], strict=True)), members) for _, members in runs.groupby("setup")
    ]
    was_run = {(setup["paper_dataset"], setup["shots"]) for setup, _ in parts}
    absent = [place for place in places if place not in was_run]
    parts += [(dict.fromkeys(SETUP) | dict(paper_dataset=name, shots=n), runs[:0]) for name, n in absent]

    def rank(part: tuple[dict[str, Any], pd.DataFrame]) -> tuple[int, int]:
        place = part[0]["paper_dataset"], part[0]["shots"]
        return places.index(place) if place in places else len(places), place[1]

    frames = [_part_rows(number, *part) for part in sorted(parts, key=rank)]
    table = pd.concat([rows.assign(table=number, part=part) for part, rows in enumerate(frames)], ignore_index=True)
    return table.astype({"is_average": bool})


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
        paper = ROTATIONS if number == _FRACTIONS else runs["paper_dataset"].map(_PAPER_TRANSFORMS)
        runs = runs.assign(paper_dataset=runs["paper_dataset"].where(runs["num_transforms"] == paper, None))
    runs = runs.assign(column=column)
    task = "defect" if number in _DEFECT_TABLES else "class"
    runs = with_setup(runs[(runs["task"] == task) & runs["column"].notna()])
    if number == _ABLATION:  # the method only where another variant was run on the same draw
        ablated = runs["variant"] != "ours"
        runs = runs[ablated.groupby([runs["setup"], runs["pos_class"], runs["draw"]]).transform("any")]
    _check_same_images(runs)
    return runs


def with_setup(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with their `SETUP` in one column of strings, to group and sort by."""
    return runs.assign(setup=[str(values) for values in runs[SETUP].itertuples(index=False, name=None)])


def _check_same_images(runs: pd.DataFrame) -> None:
    """Refuse two results of one setup, class and draw that can neither be averaged nor compared.

    Raises:
        UserError: they are of different images.
    """
    first = runs.groupby(["setup", "pos_class", "draw"])[["name", "data_sha256"]].transform("first")
    other = runs["data_sha256"] != first["data_sha256"]
    if other.any():
        names = first["name"][other].iloc[0], runs["name"][other].iloc[0]
        raise UserError(
            f"{names[0]}.json and {names[1]}.json: of one class and draw, but of different images; move away what is "
            "out of date, or run one of them with a --dataset_title of its own"
        )


def _part_rows(number: int, setup: dict[str, Any], runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of one part: classes, then averages."""
    names = paper_part(number)["column"].unique()
    columns = [name for name in names if number in (_ABLATION, _FRACTIONS) or name.startswith("Ours")]
    others = [name for name in names if name not in columns]
    here = paper_part(number, setup["paper_dataset"], setup["shots"])
    draws = _draws(number, runs)
    cells = draws.groupby(["pos_class", "column"], sort=False).agg(
        ours=("ours", "mean"), std=("ours", "std"), minmax=("minmax", "mean"), fewest=("ours", "size")
    )
    cells = cells.assign(most=cells["fewest"], minus_ours=_minus_ours(draws) if number == _ABLATION else math.nan)

    classes = dict.fromkeys([*here["pos_class"][here["pos_class"] != AVERAGE], *draws["pos_class"]])
    classes = classes or dict.fromkeys(runs["pos_class"])  # of which no figure is defined
    index = pd.MultiIndex.from_product([classes, columns], names=["pos_class", "column"])
    values = here.set_index(["pos_class", "column"])[["paper", "paper_std"]]
    rows = pd.DataFrame(index=index).join(cells).join(values).reset_index().assign(is_average=False, false_alarms="")
    by_class = here.pivot(index="pos_class", columns="column", values=["paper", "paper_std"])
    for name in others:
        rows[name] = rows["pos_class"].map(by_class.get(("paper", name), {}))
        rows[f"{name} std"] = rows["pos_class"].map(by_class.get(("paper_std", name), {}))

    averages = [
        _average(
            rows[rows["column"] == column].dropna(subset="ours"), runs.loc[runs["column"] == column, "false_alarms"]
        )
        for column in columns
        if column in set(draws["column"])
    ]
    rows = pd.concat([rows, pd.DataFrame(averages, columns=rows.columns)], ignore_index=True)
    rows["difference"] = rows["ours"] - rows["paper"]
    rows["verdict"] = [_verdict(row) for row in iterate(rows)]
    label = "" if runs.empty else describe_setup(setup)
    place = f"{setup['paper_dataset'] or setup['title']}, {count_images(setup['shots'])}"
    rows = rows.join(pd.DataFrame([setup] * len(rows), columns=SETUP, dtype=object))
    return rows.assign(label=label, place=place, hours=sum(runs["seconds"]) / 3600)


def _draws(number: int, runs: pd.DataFrame) -> pd.DataFrame:
    """Our figures by class, column and draw, where they are defined; table 7 has a column for every fraction."""
    if number == _FRACTIONS:
        found = [
            (run.pos_class, f"{100 * float(fraction):g}", run.draw, auroc["mean"], auroc["minmax"])
            for run in iterate(runs)
            for fraction, auroc in run.by_fraction.items()
        ]
    else:
        found = [(run.pos_class, run.column, run.draw, run.auroc, run.minmax) for run in iterate(runs)]
    draws = pd.DataFrame(found, columns=["pos_class", "column", "draw", "ours", "minmax"]).dropna()
    draws = draws.astype({"ours": float, "minmax": float})
    if number == _FRACTIONS:
        draws[["ours", "minmax"]] *= 100
    return draws.groupby(["pos_class", "column", "draw"], sort=False, as_index=False).last()


def _minus_ours(draws: pd.DataFrame) -> pd.Series:
    """Mean difference of every class and column to the method on the same draws."""
    wide = draws.pivot(index=["pos_class", "draw"], columns="column", values="ours")
    ours = wide.get("Ours", math.nan)
    return wide.sub(ours, axis=0).groupby("pos_class").mean().stack()


def _average(rows: pd.DataFrame, false_alarms: pd.Series) -> dict[str, Any]:
    """The means over the classes that were run, the paper's over the same classes; NaN if a class has none."""
    apart = {
        "pos_class": f"average of {len(rows)} class{'es' * (len(rows) > 1)}",
        "column": rows["column"].iloc[0],
        "is_average": True,
        "fewest": rows["fewest"].min(),
        "most": rows["most"].max(),
        "false_alarms": _median_and_range(false_alarms.dropna()),
    }
    return {name: np.mean([*rows[name]]) for name in rows.columns if name not in apart} | apart


def _median_and_range(rates: pd.Series) -> str:
    """Of shares, per cent."""
    if rates.empty:
        return ""
    low, middle, high = (f"{100 * value:.0f}" for value in np.percentile([*rates], [0, 50, 100]))
    return f"{middle} ({low} to {high})"


def _verdict(row: Any) -> str:
    """Where ours is, seen from the paper's value and its std; nothing for an average."""
    if pd.isna(row.ours):
        return NOT_RUN
    if pd.isna(row.difference) or row.is_average:
        return ""
    if abs(row.difference) <= row.paper_std:
        return _WITHIN
    return _BELOW if row.difference < 0 else _ABOVE


def describe_setup(setup: Mapping[str, Any]) -> str:
    """One line for a person; shots of 0 and anything that is None are left out."""
    shots, limit = setup["shots"], setup["test_limit"]
    parts = (
        setup["title"],
        count_images(shots) if shots else "",
        f"{setup['num_transforms']} transformations" if setup["num_transforms"] else "",
        f"preset {setup['preset']}",
        f"{limit} test images" if limit else "whole test set",
        "training images in data-set order" if setup["in_order"] else "",
        setup["changes"],
    )
    return ", ".join(filter(None, parts))


# --- the text -----------------------------------------------------------------------------------------------------


def to_markdown(table: pd.DataFrame) -> str:
    """A table in full, with the min-max normalised score, the paper's other methods, and what was not run."""
    number = table["table"].iloc[0]
    lines, hours = [f"### Table {number}: {_TITLES[number]}", ""], 0.0
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
            body = _brief_columns(part) if _has_columns(part) else _brief_rows(part)
            lines += [f"**{head['label']}** ({head['hours']:.2f} hours)", "", *body, ""]
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
    for part in (part for table in tables for _, part in table.groupby("part")):
        hours = f"{part['hours'].iloc[0]:.2f}"
        for row in iterate(part[part["is_average"]]):
            if not row.label or row.changes:
                continue
            classes = _run_classes(part, row.column)
            run = row.label + (f": {row.column}" if _has_columns(part) else "")
            ours, paper = to_number(row.ours), to_number(row.paper)
            figures = [str(len(classes)), count_draws(row), ours, paper, with_interval(classes["difference"])]
            lines.append([str(row.table), run, *figures, _count_verdicts(classes), row.false_alarms, hours])
            hours = ""  # of all columns together
    return "\n".join(to_lines(titles, lines)) + "\n"


def to_csv(table: pd.DataFrame) -> str:
    """A table as CSV, one line for each class and column."""
    two_digits = {name: table[name].map("{:.2f}".format, na_action="ignore") for name in ("ours", "std", "minmax")}
    figures = table.assign(
        **two_digits,
        setup=[row.label or row.place for row in iterate(table)],
        difference=table["difference"].map("{:+.2f}".format, na_action="ignore"),
        draws=[count_draws(row) for row in iterate(table)],
    )
    columns = [
        "table",
        "setup",
        "pos_class",
        "column",
        "ours",
        "std",
        "draws",
        "minmax",
        "paper",
        "paper_std",
        "difference",
    ]
    return (
        figures[[*columns, "verdict", *_other_methods(table)]]
        .rename(columns={"pos_class": "class"})
        .to_csv(index=False, lineterminator="\n")
    )


def _part_lines(head: pd.Series, part: pd.DataFrame) -> list[str]:
    several, plain = _has_columns(part), not head["changes"]
    run = part.loc[part["ours"].notna(), "pos_class"]
    # One line, below, for all columns of a class that was not run; with changed settings none.
    shown = part if plain and not several else part[part["pos_class"].isin(run)]
    methods = _other_methods(part) if part["paper"].notna().any() else []  # the paper has no other methods alone
    titles = ["class", *(["column"] * several), "ours", "draws", "min-max", "paper", "difference", "verdict", *methods]
    texts = _texts(shown).assign(**{name: _spreads(shown, name, f"{name} std") for name in methods})
    lines = texts[titles].to_numpy().tolist()
    absent = part.loc[~part["pos_class"].isin(run), "pos_class"].unique()
    if several and plain and len(absent):
        lines.append([", ".join(absent), "all", NOT_RUN, *[""] * (len(titles) - 3)])
    table = to_lines(titles, lines)
    return [f"**{head['label']}**", "", *table, "", *_differences(part), f"Time: {head['hours']:.2f} hours.", ""]


def _brief_rows(part: pd.DataFrame) -> list[str]:
    """One line per class; what was not run is named in one line."""
    titles = ["normal class", "ours", "draws", "paper", "difference", "verdict"]
    rows = _without_lone_average(part)
    texts = _texts(rows[rows["ours"].notna()]).rename(columns={"class": "normal class"})
    absent = part.loc[part["ours"].isna(), "pos_class"]
    not_run = ["", f"Not run: {', '.join(absent)}."] if len(absent) else []
    return [*to_lines(titles, texts[titles].to_numpy()), *not_run]


def _brief_columns(part: pd.DataFrame) -> list[str]:
    """One line per class for ours and one for the paper's, over all columns."""
    columns = list(part["column"].unique())
    lines = []
    for name, rows in _without_lone_average(part).groupby("pos_class", sort=False):
        if rows["ours"].notna().any():
            texts = _texts(rows).set_index("column")
            lines.append([name, "ours", *texts["ours"].reindex(columns, fill_value=NOT_RUN)])
            if rows["paper"].notna().any():
                lines.append([name, "paper", *texts["paper"].reindex(columns, fill_value="")])
    return to_lines(["normal class", "", *columns], lines)


def _without_lone_average(part: pd.DataFrame) -> pd.DataFrame:
    """All rows; the averages only if more than one class was run."""
    classes = part.loc[part["ours"].notna() & ~part["is_average"], "pos_class"]
    return part if classes.nunique() > 1 else part[~part["is_average"]]


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


def _texts(rows: pd.DataFrame) -> pd.DataFrame:
    """The figures of rows as they are printed."""
    return pd.DataFrame(
        {
            "class": rows["pos_class"],
            "column": rows["column"],
            "ours": [text or NOT_RUN for text in _spreads(rows, "ours", "std")],
            "draws": [count_draws(row) for row in iterate(rows)],
            "min-max": [to_number(value) for value in rows["minmax"]],
            "paper": _spreads(rows, "paper", "paper_std"),
            "difference": [to_number(value, "+.1f") for value in rows["difference"]],
            "verdict": rows["verdict"],
        }
    )


def _spreads(rows: pd.DataFrame, mean: str, std: str) -> list[str]:
    """Means with their standard deviations, where there are any."""
    pairs = zip(rows[mean], rows[std], strict=True)
    return [to_number(mean) + ("" if pd.isna(std) else f" ± {std:.1f}") for mean, std in pairs]


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
    """The lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows)]


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


def count_draws(row: Any) -> str:
    """How many draws a row has, such as "2", or "1 to 3"; nothing if it was not run."""
    if pd.isna(row.fewest):
        return ""
    return " to ".join(f"{count:.0f}" for count in dict.fromkeys((row.fewest, row.most)))


def count_images(shots: int) -> str:
    """The number of training images in words."""
    return f"{shots} training image{'s' * (shots > 1)}"
