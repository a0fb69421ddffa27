"""What a changed setting moves: runs that differ in one thing, on the same training and test images.

All figures are AUROC in per cent, higher = better; a difference is the changed run minus the plain one. Nothing here
says which settings to use: the differences are of test labels.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from hta.experiments.results import Result
from hta.experiments.spec import RunSpec
from hta.experiments.table_text import line, number, with_interval
from hta.experiments.tables import Setup, mean_and_interval, setup_of

_SHORT, _LONG = "fast", "paper"
_SCORE = "score: "

Place = tuple[str, int]
"""Normal class and draw."""


@dataclass
class Comparison:
    """All changes to one setup.

    Attributes:
        setup: of the plain runs.
        plain: the plain runs by class and draw.
        changed: for every change, AUROC by class and draw.
        precisions: for every change, in which the pairs were run, where the two differ: "float32 beside bfloat16".
    """

    setup: Setup
    plain: dict[Place, Result] = field(default_factory=dict)
    changed: dict[str, dict[Place, float]] = field(default_factory=lambda: defaultdict(dict))
    precisions: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    @property
    def places(self) -> list[Place]:
        """Classes and draws that were run both plain and changed."""
        return sorted({place for runs in self.changed.values() for place in runs} & self.plain.keys())

    def add_scores(self, place: Place) -> None:
        """Take the other ways to a score of a plain run for changes."""
        for name, auroc in _other_scores(self.plain[place]).items():
            self.changed[name][place] = auroc

    def differences(self, change: str) -> dict[Place, float]:
        """Changed minus plain, where both were run."""
        runs = self.changed[change]
        return {place: runs[place] - _auroc(self.plain[place]) for place in self.places if place in runs}


def compare_changes(results: Iterable[Result]) -> list[Comparison]:
    """Every plain run of the method with those that differ from it in one way, by setup.

    Changed are settings, preparation or precision of the same preset, or the preset alone: "paper" beside "fast".
    How the scales are brought together is compared on the plain runs themselves: min-max normalised, and each scale
    alone.
    """
    ours = [result for result in results if result.spec.variant == "ours" and _auroc(result) is not None]
    changed = [(result, change) for result in ours if (change := _change_of(result.spec))]
    comparisons = {setup: Comparison(setup) for setup in (_plain_setup(result.spec) for result, _ in changed)}
    for result in ours:
        comparison = comparisons.get(setup_of(result.spec, None))
        if comparison is not None:
            comparison.plain[_place(result)] = result
    for result, change in changed:
        comparison, place = comparisons[_plain_setup(result.spec)], _place(result)
        plain = comparison.plain.get(place)
        if plain is not None and plain.spec.data_sha256 == result.spec.data_sha256:
            comparison.changed[change][place] = _auroc(result)
            if result.spec.precision == plain.spec.precision and result.precision != plain.precision:
                comparison.precisions[change].add(f"{result.precision} beside {plain.precision}")
    compared = [comparisons[setup] for setup in sorted(comparisons, key=str) if comparisons[setup].places]
    for comparison in compared:
        for place in comparison.places:
            comparison.add_scores(place)
    return compared


def compare_scores(results: Iterable[Result]) -> list[Comparison]:
    """The plain runs of every part of table 1 with several classes, by other ways from the votes to a score.

    Unlike the rows of `compare_changes`, which stand beside the changed runs, these are over all classes.
    """
    comparisons: dict[Setup, Comparison] = {}
    for result in results:
        spec = result.spec
        setup = setup_of(spec, None)
        if (spec.variant, spec.shots, spec.task) != ("ours", 1, "class") or setup.changes or _auroc(result) is None:
            continue
        comparison = comparisons.setdefault(setup, Comparison(setup))
        comparison.plain[_place(result)] = result
        comparison.add_scores(_place(result))
    several = [setup for setup in comparisons if len({name for name, _ in comparisons[setup].plain}) > 1]
    return [comparisons[setup] for setup in sorted(several, key=str)]


def _change_of(spec: RunSpec) -> str | None:
    """What a run changes; None for a plain one."""
    changes = setup_of(spec, None).changes
    if changes:
        return changes
    return f"preset {_LONG}" if spec.preset == _LONG else None


def _plain_setup(spec: RunSpec) -> Setup:
    """The setup that a changed run is compared with."""
    setup = setup_of(spec, None)
    return replace(setup, changes="") if setup.changes else replace(setup, preset=_SHORT)


def _place(result: Result) -> Place:
    return result.spec.pos_class, result.spec.draw


def _auroc(result: Result) -> float | None:
    auroc = result.record["results"]["auroc"]["mean"]
    return None if auroc is None else 100 * auroc


def _other_scores(result: Result) -> dict[str, float]:
    """AUROC of other ways from the votes of the scales to a score."""
    found = result.record["results"]
    scores = {f"{_SCORE}min-max normalised": found["auroc"]["minmax"]}
    for scale, auroc in enumerate(found["auroc_by_scale"]):
        scores[f"{_SCORE}scale {scale} alone"] = auroc
    return {name: 100 * auroc for name, auroc in scores.items() if auroc is not None}


def to_markdown(comparisons: Sequence[Comparison]) -> str:
    """One table a setup: the plain AUROC of every class and draw, and by how much each change moves it."""
    lines = []
    for comparison in comparisons:
        places = comparison.places
        titles = ["changed", *(f"{name}, draw {draw}" for name, draw in places), "mean difference"]
        lines += [f"**{comparison.setup.describe()}**", "", line(titles), line(["---"] * len(titles))]
        lines.append(line(["nothing", *(number(_auroc(comparison.plain[place])) for place in places), ""]))
        for change in comparison.changed:
            differences = comparison.differences(change)
            if differences:
                cells = [number(differences.get(place), "+.1f") for place in places]
                mixed = "; ".join(sorted(comparison.precisions[change]))
                title = f"{change} ({mixed})" if mixed else change
                lines.append(line([title, *cells, with_interval(*mean_and_interval(list(differences.values())))]))
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def scores_to_markdown(comparisons: Sequence[Comparison]) -> str:
    """One line a setup: by how much each way to a score moves the mean over classes, with its interval over them."""
    ways = list(dict.fromkeys(way for comparison in comparisons for way in comparison.changed))
    titles = ["run", "classes", *(way.removeprefix(_SCORE) for way in ways)]
    lines = [line(titles), line(["---"] * len(titles))]
    for comparison in comparisons:
        means = [_over_classes(comparison.differences(way)) for way in ways]
        cells = [with_interval(*mean_and_interval(values)) if values else "" for values in means]
        classes = {name for name, _ in comparison.places}
        lines.append(line([comparison.setup.describe(), str(len(classes)), *cells]))
    return "\n".join(lines) + "\n"


def _over_classes(differences: dict[Place, float]) -> list[float]:
    """One value a class, the mean over its draws."""
    by_class = defaultdict(list)
    for (name, _), value in differences.items():
        by_class[name].append(value)
    return [fmean(values) for values in by_class.values()]
