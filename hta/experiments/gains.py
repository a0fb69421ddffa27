"""What more training images gain, beside what they gain in the paper; AUROC in per cent, higher = better."""

import pandas as pd

from hta.experiments.plan import paper_part
from hta.experiments.tables import describe_setup, to_lines, to_number, with_interval

_SETUP = ["title", "paper_dataset", "preset", "test_limit", "num_transforms"]
_TITLES = ["data set", "training images", "classes", "ours", "paper", "gain over one image", "paper's gain"]
_TITLES += ["training share, coarsest scale", "finest scale"]
_TABLES = 1, 2, 3


def gains_to_markdown(runs: pd.DataFrame) -> str:
    """One line per data set and number of training images: means over the classes that were run, each over its draws.

    The gains are over the classes that were run with one image too; ours has its 95 % interval over classes (Student's
    t). The training share is that of correct votes on the training images. The runs are from `load_runs`; those with
    changed settings, with training images in the order of the data set, or of data sets with one number of images alone
    are left out.
    """
    plain = (runs["variant"] == "ours") & (runs["task"] == "class") & (runs["changes"] == "") & runs["auroc"].notna()
    runs = runs[plain & ~runs["in_order"].astype(bool)]
    printed = pd.concat([paper_part(number) for number in _TABLES])
    printed, place = printed[printed["column"] == "Ours"].astype({"shots": object}), ["shots", "pos_class"]
    runs = runs.assign(
        ours=runs["auroc"].astype(float),
        coarsest=[shares[0] if shares else None for shares in runs["shares"]],
        finest=[shares[-1] if shares else None for shares in runs["shares"]],
    ).astype({"coarsest": float, "finest": float})
    rows = []
    for _, part in runs.groupby(_SETUP, dropna=False):
        title = describe_setup(dict(part[_SETUP].iloc[0]) | dict(shots=0, in_order=False, changes=""))
        classes = part.groupby(place, as_index=False)[["ours", "coarsest", "finest"]].mean()
        of_paper = printed[printed["dataset"] == part["paper_dataset"].iloc[0]]
        classes = classes.merge(of_paper[[*place, "paper"]], on=place, how="left")
        if classes["shots"].nunique() > 1:
            rows += [[title, *row] for row in _rows(classes)]
    return "\n".join(to_lines(_TITLES, rows)) + "\n"


def _rows(classes: pd.DataFrame) -> list[list[str]]:
    """The cells of one data set, for every number of training images."""
    one, rows = classes[classes["shots"] == 1], []
    for shots, some in classes.groupby("shots"):
        both = some.merge(one, on="pos_class", suffixes=("", "_one"))
        means = [to_number(some[name].mean()) for name in ("ours", "paper")]
        gains = [
            with_interval(both["ours"] - both["ours_one"]),
            to_number((both["paper"] - both["paper_one"]).mean(), "+.1f"),
        ]
        shares = [to_number(some[name].mean(), ".3f") for name in ("coarsest", "finest")]
        rows.append([str(shots), str(len(some)), *means, *(gains if shots != 1 else ["", ""]), *shares])
    return rows
