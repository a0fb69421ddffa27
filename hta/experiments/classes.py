"""The score "combined" beside the paper's, from the same one-shot runs; AUROC in per cent, higher = better."""

import pandas as pd

from hta.experiments.results import iterate
from hta.experiments.tables import to_lines, to_number, with_interval, with_std

DEVELOPMENT = frozenset(["t_shirt", "trouser", "pullover", "dress", "coat", "plane", "car", "bird", "cat", "deer"])
"""Normal classes of FashionMNIST and CIFAR10 on which the score was chosen."""

_TITLES = ["data set", "normal class", "draws", "paper's score", "combined", "difference"]
_TITLES += ["false alarms, paper's score", "combined"]

_PART = ["title", "preset", "changes"]


def classes_to_markdown(runs: pd.DataFrame) -> str:
    """One line per normal class, means over the draws, and one per part of a data set, means over its classes.

    The false alarms, in per cent, are medians over the draws, and over the classes; their target is 5 %. The runs are
    from `load_runs`; those without the score "combined" are left out.
    """
    runs = runs[runs["combined"].notna() & (runs["shots"] == 1) & (runs["variant"] == "ours")]
    if runs.empty:
        return ""
    numbers = ["auroc", "combined", "false_alarms", "combined_alarms"]
    runs = runs.astype(dict.fromkeys(numbers, float)).drop_duplicates([*_PART, "pos_class", "draw"], keep="last")
    rows, means = [], []
    for (name, preset, changes), of_set in runs.groupby(_PART):
        title = ", ".join(filter(None, (name, preset, changes)))
        for is_development, part in of_set.groupby(of_set["pos_class"].isin(DEVELOPMENT)):
            classes = pd.DataFrame([_summary(name, of_class) for name, of_class in part.groupby("pos_class")])
            rows += [_row(title, of_class) for of_class in iterate(classes)]
            role = "development" if is_development else "held out"
            means.append(_mean(f"{title}, {role}", classes))
    return "\n".join(to_lines(_TITLES, [*rows, *means])) + "\n"


def _summary(name: object, runs: pd.DataFrame) -> dict[str, object]:
    """The means of a class over its draws, with their standard deviations, and the medians of the false alarms."""
    return {
        "name": name,
        "draws": len(runs),
        "paper": runs["auroc"].mean(),
        "paper_std": runs["auroc"].std(),
        "combined": runs["combined"].mean(),
        "combined_std": runs["combined"].std(),
        "alarms": runs["false_alarms"].median(),
        "combined_alarms": runs["combined_alarms"].median(),
    }


def _row(title: str, of_class) -> list[str]:
    paper, combined = with_std(of_class.paper, of_class.paper_std), with_std(of_class.combined, of_class.combined_std)
    difference = f"{of_class.combined - of_class.paper:+.1f}"
    alarms = (to_number(100 * value, ".0f") for value in (of_class.alarms, of_class.combined_alarms))
    return [title, of_class.name, str(of_class.draws), paper, combined, difference, *alarms]


def _mean(title: str, classes: pd.DataFrame) -> list[str]:
    alarms = (to_number(100 * classes[name].median(), ".0f") for name in ("alarms", "combined_alarms"))
    figures = (to_number(classes[name].mean()) for name in ("paper", "combined"))
    difference = with_interval(classes["combined"] - classes["paper"])
    draws = f"{low} to {high}" if (low := classes["draws"].min()) < (high := classes["draws"].max()) else str(high)
    return [title, f"mean of {len(classes)}", draws, *figures, difference, *alarms]
