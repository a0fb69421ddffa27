"""What more training images gain, beside what they gain in the paper; AUROC in per cent, higher = better."""

import pandas as pd

from hta.experiments.plan import paper_values
from hta.experiments.results import SHOT_TABLES
from hta.experiments.tables import PAPER_TRANSFORMS, describe_setup, to_lines, to_number, with_interval

_SETUP = ["title", "paper_dataset", "preset", "test_limit", "num_transforms"]
_TITLES = ["data set", "training images", "classes", "ours", "paper", "gain over one image", "paper's gain"]
_TITLES += ["training share, coarsest scale", "finest scale"]
_FIGURES = ["ours", "coarsest", "finest"]
_NOTHING = pd.Series(dtype=float)


def gains_to_markdown(runs: pd.DataFrame) -> str:
    """One line per data set and number of training images: means over the classes that were run, each over its draws.

    The gains are over the classes and draws that were run with one image too; ours has its 95 % interval over classes
    (Student's t). The training share is that of correct votes on the training images. The paper's figures stand beside
    its own number of transformations alone. The runs are from `load_runs`; those with changed settings, with training
    images in the order of the data set, or of data sets with one number of images alone are left out.
    """
    plain = (runs["variant"] == "ours") & (runs["task"] == "class") & (runs["changes"] == "") & runs["auroc"].notna()
    runs = runs[plain & ~runs["in_order"].astype(bool)]
    runs = runs.drop_duplicates([*_SETUP, "shots", "pos_class", "draw"], keep="last").assign(
        ours=runs["auroc"],
        coarsest=[shares[0] if shares else None for shares in runs["shares"]],
        finest=[shares[-1] if shares else None for shares in runs["shares"]],
    )
    rows = []
    for _, part in runs.groupby(_SETUP, dropna=False):
        if part["shots"].nunique() > 1:
            title = describe_setup(dict(part[_SETUP].iloc[0]) | dict(shots=0, in_order=False, changes=""))
            rows += [[title, *row] for row in _rows(part.astype(dict.fromkeys(_FIGURES, float)))]
    return "\n".join(to_lines(_TITLES, rows)) + "\n"


def _rows(runs: pd.DataFrame) -> list[list[str]]:
    """The cells of one data set, for every number of training images."""
    printed = _printed(*runs[["paper_dataset", "num_transforms"]].iloc[0])
    one, rows = runs.loc[runs["shots"] == 1, ["pos_class", "draw", "ours"]], []
    for shots, some in runs.groupby("shots"):
        classes = some.groupby("pos_class")[_FIGURES].mean()
        means = [classes["ours"].mean(), printed.get(shots, _NOTHING).reindex(classes.index).mean()]
        shares = [to_number(classes[name].mean(), ".3f") for name in ("coarsest", "finest")]
        both = some.merge(one, on=["pos_class", "draw"], suffixes=("", "_one"))
        gain = (both["ours"] - both["ours_one"]).groupby(both["pos_class"]).mean()
        papers = (printed.get(shots, _NOTHING) - printed.get(1, _NOTHING)).reindex(gain.index).mean()
        gains = ["", ""] if shots == 1 else [with_interval(gain), to_number(papers, "+.1f")]
        rows.append([str(shots), str(len(classes)), *map(to_number, means), *gains, *shares])
    return rows


def _printed(dataset: str, num_transforms: int) -> dict[int, pd.Series]:
    """The paper's figures of its method by number of training images and class; none for other transformations."""
    values = paper_values()
    values = values[values["table"].isin(SHOT_TABLES) & (values["column"] == "Ours") & (values["dataset"] == dataset)]
    known = PAPER_TRANSFORMS.get(dataset) == num_transforms
    return {shots: of.set_index("pos_class")["paper"] for shots, of in values.groupby("shots")} if known else {}
