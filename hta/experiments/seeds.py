"""Image or noise? How far the AUROC moves with the seed of the training and with its image; per cent, higher = better.

Compared are runs of the method with `--set manualSeed=N`, the seed of the training alone. Where their scores were kept,
the models of all seeds of one image are also joined: an image's score is the mean of their scores.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hta.evaluation.metrics import RESAMPLES
from hta.experiments.results import iterate, load_runs, load_scores
from hta.experiments.tables import count_draws, describe_setup, to_lines, to_number, with_interval, with_setup, with_std

_TITLES = ["data set", "normal class", "seeds", "AUROC over seeds of one image", "images"]
_TITLES += ["AUROC over images with one seed", "mean score of all seeds", "gain (95 % interval)"]


def seeds_to_markdown(folder: Path) -> str:
    """One line per class of the results in a folder, and one per setup, means over its classes.

    Each has the number of seeds of the image with most of them, with mean and standard deviation of the AUROC; the same
    of the images with the seed that has most of them; the AUROC of the mean score of all seeds; and its gain over the
    mean of their AUROCs. The gain's interval is over the test images; in the last lines it is over the classes. Without
    the scores of all seeds the last two cells are empty.
    """
    runs = load_runs(folder)
    runs = runs[(runs["variant"] == "ours") & (runs["changes"] != runs["changes_but_seed"]) & runs["auroc"].notna()]
    if runs.empty:
        return ""
    runs = with_setup(runs.assign(changes=runs["changes_but_seed"], paper_dataset=None)).astype({"auroc": float})
    runs = runs.drop_duplicates(["setup", "pos_class", "draw", "training_seed", "data_sha256"], keep="last")
    rows, means = [], []
    for _, part in runs.groupby("setup"):
        title = describe_setup(part.iloc[0])
        classes = pd.DataFrame([_summary(folder, *named) for named in part.groupby("pos_class")])
        gains = [f"{c.gain:+.1f} ({c.low:+.1f} to {c.high:+.1f})" if c.gain == c.gain else "" for c in iterate(classes)]
        rows += [_row(title, *pair) for pair in zip(iterate(classes), gains, strict=True)]
        means.append(_row(title, _mean(classes), with_interval(classes["gain"])))
    return "\n".join(to_lines(_TITLES, [*rows, *means])) + "\n"


def _summary(folder: Path, pos_class: str, runs: pd.DataFrame) -> dict[str, Any]:
    """The figures of a class; those of the joined models are NaN without the scores of all of them."""
    of_image = _largest(runs, ["draw", "data_sha256"])
    of_seed = _largest(runs.drop_duplicates(["draw", "training_seed"], keep="last"), ["training_seed"])
    found = {"pos_class": pos_class} | dict.fromkeys(("joined", "gain", "low", "high"), np.nan)
    for kind, same in (("seeds", of_image["auroc"]), ("images", of_seed["auroc"])):
        found |= {f"{kind}_fewest": len(same), f"{kind}_most": len(same), kind: same.mean(), f"{kind}_std": same.std()}
    kept = [scores for run in iterate(of_image) if (scores := load_scores(folder, run))]
    if len(kept) < max(2, len(of_image)):
        return found
    first = kept[0]
    if not all(np.array_equal(one[part], first[part]) for one in kept for part in ("labels", "names")):
        return found
    joined, gain = join(np.stack([one["scores"] for one in kept]), first["labels"])
    low, high = mean_interval(gain)
    return found | {"joined": 100 * joined, "gain": 100 * gain.mean(), "low": 100 * low, "high": 100 * high}


def _largest(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The group with most runs, of equal ones the first."""
    return max((same for _, same in runs.groupby(by)), key=len)


def _mean(classes: pd.DataFrame) -> pd.Series:
    """The figures of `_summary`, means over classes; the joined models only where all classes have them."""
    mean = classes.drop(columns="pos_class").mean()
    mean["joined"] = classes["joined"].mean(skipna=False)
    for kind in ("seeds", "images"):
        mean[f"{kind}_fewest"], mean[f"{kind}_most"] = classes[f"{kind}_fewest"].min(), classes[f"{kind}_most"].max()
    return pd.concat([mean, pd.Series({"pos_class": f"mean of {len(classes)}"})])


def _row(title: str, of: Any, gain: str) -> list[str]:
    seeds = [count_draws(of.seeds_fewest, of.seeds_most), with_std(of.seeds, of.seeds_std)]
    images = [count_draws(of.images_fewest, of.images_most), with_std(of.images, of.images_std)]
    return [title, of.pos_class, *seeds, *images, to_number(of.joined), gain]


def join(scores: NDArray, labels: NDArray) -> tuple[float, NDArray]:
    """AUROC of the mean of the scores of K models `(K, N)`, higher = more anomalous; of the labels, 1 = anomalous.

    Also returns its gain over the mean of their AUROCs for each pair of an anomalous and a normal image, `(A, N - A)`,
    whose mean is the gain.
    """
    joined = _in_order(scores.mean(axis=0), labels)
    return float(joined.mean()), joined - sum(_in_order(one, labels) for one in scores) / len(scores)


def _in_order(scores: NDArray, labels: NDArray) -> NDArray:
    """Whether an anomalous image outscores a normal one, for all pairs; ties count one half, the mean is the AUROC."""
    return (np.sign(scores[labels == 1][:, None] - scores[labels == 0]) + 1) / 2


def mean_interval(pairs: NDArray) -> NDArray:
    """95 % interval of the mean over pairs of images, by bootstrap over the images of each kind; always the same."""
    draw = np.random.default_rng(0)
    rows, columns = (draw.multinomial(size, np.full(size, 1 / size), RESAMPLES) for size in pairs.shape)
    return np.quantile((rows @ pairs * columns).sum(axis=1) / pairs.size, [0.025, 0.975])
