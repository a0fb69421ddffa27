"""What a changed setting moves: runs that differ in one thing, on the same training and test images.

All figures are AUROC in per cent, higher = better; a difference is the changed run minus the plain one. They say
nothing about which settings to use, since they are computed with test labels.
"""

from statistics import fmean

import pandas as pd

from hta.experiments.results import iterate
from hta.experiments.tables import describe_setup, to_lines, to_number, with_interval, with_setup, with_std

_SHORT, _LONG, _VIEWS = "fast", "paper", "views"
_WAYS = {
    ("ours", "paper"): "paper's recipe and score",
    ("ours", "fast"): "paper's recipe and score, 250 iterations, to 51 px",
    ("views", "paper"): "views, nearest patches",
    ("views", "fast"): "views, nearest patches, to 51 px",
}
_SCORE = "score: "
_PLACE = ["setup", "pos_class", "draw"]


def compare_changes(runs: pd.DataFrame) -> pd.DataFrame:
    """Pairs of a plain run of the method and one that differs from it in one way.

    Changed are settings, preparation or precision of the same preset, or the preset alone: "paper" beside "fast". Other
    ways to combine the scales into a score are compared on the same plain runs: min-max normalised, and each scale
    alone. The runs are from `load_runs`.

    Returns one row per pair: setup (to sort by) and label (in words) of the plain run, pos_class, draw, plain (its
    AUROC), change, difference, and mixed: both precisions in words, if they differ though the same was requested.
    """
    plain, runs = _plain_runs(runs), _runs_of_method(runs)
    has_settings = runs["changes"] != ""
    changed = runs.assign(
        change=runs["changes"].where(has_settings, f"preset {_LONG}"),
        changes="",
        preset=runs["preset"].where(has_settings, _SHORT),
    )
    changed = with_setup(changed[has_settings | (runs["preset"] == _LONG)])
    pairs = changed.merge(plain, on=[*_PLACE, "data_sha256"], suffixes=("", "_plain"))
    pairs = pairs.groupby([*_PLACE, "change"], sort=False, as_index=False).last()
    mixed = (pairs["precision"] == pairs["precision_plain"]) & (pairs["dtype"] != pairs["dtype_plain"])
    pairs = pairs.assign(
        plain=pairs["auroc_plain"],
        difference=pairs["auroc"] - pairs["auroc_plain"],
        mixed=(pairs["dtype"] + " beside " + pairs["dtype_plain"]).where(mixed, ""),
    )
    compared = plain.merge(pairs[_PLACE].drop_duplicates(), on=_PLACE).sort_values(_PLACE)
    return pd.concat([pairs, _other_scores(compared)], ignore_index=True)


def compare_scores(runs: pd.DataFrame) -> pd.DataFrame:
    """Other ways from votes to a score, as in `compare_changes`, for each part of tables 1 to 4 of several classes."""
    scores = _other_scores(_plain_runs(runs[runs["task"] == "class"]))
    return scores[scores.groupby("setup")["pos_class"].transform("nunique") > 1]


def _runs_of_method(runs: pd.DataFrame) -> pd.DataFrame:
    runs = runs[(runs["variant"] == "ours") & runs["auroc"].notna()]
    return with_setup(runs.assign(paper_dataset=None))


def _plain_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of the method without changed settings, one per setup, class and draw, with the setup in words."""
    runs = _runs_of_method(runs[runs["changes"] == ""]).drop_duplicates(_PLACE, keep="last")
    return runs.assign(label=[describe_setup(run._asdict()) for run in iterate(runs)])


def _other_scores(runs: pd.DataFrame) -> pd.DataFrame:
    """By how much other ways from the votes of the scales to a score move the AUROC of plain runs."""
    rows = []
    for run in iterate(runs):
        by_scale = {f"scale {n} alone": 100 * auroc for n, auroc in enumerate(run.by_scale) if auroc is not None}
        for way, auroc in ({"min-max normalised": run.minmax} | by_scale).items():
            if auroc is not None:
                place = (run.setup, run.pos_class, run.draw, run.label, run.auroc)
                rows.append((*place, _SCORE + way, auroc - run.auroc, ""))
    return pd.DataFrame(rows, columns=[*_PLACE, "label", "plain", "change", "difference", "mixed"])


def to_markdown(pairs: pd.DataFrame) -> str:
    """One table per setup: the plain AUROC of every class and draw, and by how much each change moves it.

    Pairs of a change in one precision and in two have lines of their own.
    """
    lines = []
    titles = [f"{pair.change} ({pair.mixed})" if pair.mixed else pair.change for pair in iterate(pairs)]
    for _, moved in pairs.assign(change=titles).groupby("setup"):
        differences = moved.pivot(index="change", columns=["pos_class", "draw"], values="difference")
        plain = moved.groupby(["pos_class", "draw"])["plain"].first()
        rows = [["nothing", *map(to_number, plain), ""]]
        for change in moved["change"].unique():
            values = differences.loc[change]
            rows.append([str(change), *(to_number(value, "+.1f") for value in values), with_interval(values)])
        titles = ["changed", *(f"{name}, draw {draw}" for name, draw in plain.index), "mean difference"]
        lines += [f"**{moved['label'].iloc[0]}**", "", *to_lines(titles, rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def scores_to_markdown(pairs: pd.DataFrame) -> str:
    """One line per setup: by how much each way to a score moves the mean over classes, with its interval over them."""
    ways, rows = pairs.sort_values("setup", kind="stable")["change"].unique(), []
    for _, moved in pairs.groupby("setup"):
        by_class = moved.groupby(["change", "pos_class"])["difference"].agg(fmean)
        intervals = by_class.groupby("change").agg(with_interval).reindex(ways, fill_value="")
        rows.append([moved["label"].iloc[0], str(moved["pos_class"].nunique()), *intervals])
    return "\n".join(to_lines(["run", "classes", *(way.removeprefix(_SCORE) for way in ways)], rows)) + "\n"


def recipes_to_markdown(runs: pd.DataFrame) -> str:
    """The recipe "views" beside the paper's on the same images: one line per class and change where both were run.

    Each cell has the mean over the draws, their standard deviation and number; the last column the median of the false
    alarms of the recipe "views", in per cent. The last line has the means over the lines without a change, of
    those with a figure in every column.
    """
    runs = runs[runs["variant"].isin(["ours", _VIEWS]) & runs["auroc"].notna()]
    runs = runs.assign(way=[_WAYS[run.variant, run.preset] for run in iterate(runs)])
    place = ["title", "pos_class", "shots", "num_transforms", "changes", "test_limit", "draw", "data_sha256"]
    runs = runs.drop_duplicates([*place, "way"], keep="last")
    known = runs.groupby(place, dropna=False)["variant"].transform(lambda variants: {"ours", _VIEWS} <= set(variants))
    runs = runs[known.astype(bool)]
    ways, rows, means = sorted(set(runs["way"])), [], []
    for (title, name, shots, transforms, changes, _), of_class in runs.groupby(place[:6], sort=True, dropna=False):
        by_way = {way: same["auroc"].astype(float) for way, same in of_class.groupby("way")}
        if not changes:
            means.append({way: values.mean() for way, values in by_way.items()})
        cells = [_spread(by_way[way]) if way in by_way else "" for way in ways]
        alarms = 100 * of_class.loc[of_class["variant"] == _VIEWS, "false_alarms"].astype(float).median()
        setup = f"{title} {name}, {shots} image{'s' * (shots > 1)}, M = {transforms}"
        rows.append([", ".join(filter(None, [setup, changes])), *cells, to_number(alarms, ".0f")])
    complete = [of_class for of_class in means if len(of_class) == len(ways)]
    if complete:
        rows.append([f"mean of {len(complete)}", *(to_number(fmean(c[way] for c in complete)) for way in ways), ""])
    return "\n".join(to_lines(["normal class", *ways, "false alarms"], rows)) + "\n"


def _spread(values: pd.Series) -> str:
    return with_std(values.mean(), values.std()) + (f" ({len(values)})" if len(values) > 1 else "")
