"""From what is asked for to a list of runs, checked against the data before anything is run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from types import MappingProxyType
from typing import Any

from hta.config import ModelConfig, RuntimeConfig, TrainingConfig
from hta.data.specs import MVTEC, ROTATIONS, BenchmarkSpec, benchmark_spec, is_defect_set
from hta.errors import UserError
from hta.evaluation.scores import default_fraction
from hta.experiments.paper import paper_datasets
from hta.experiments.presets import VARIANTS
from hta.experiments.spec import Pairs, RunSpec
from hta.experiments.unit import Task, digest_images, prepared_dataset, select_images
from hta.settings import field_type

DEFECT_FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Table 7's fractions of the patches."""

_TOLD_OTHERWISE = {
    "num_transforms": "give --num_transforms instead",
    "manualSeed": "give --seed instead, to which each run adds its draw",
    "task": "it follows from the data set, give another of --datasets instead",
}
_PREPARATION = ("geometry", "size", "train_filter", "test_filter", "train_clahe")


@dataclass(frozen=True)
class Request:
    """What to run: all combinations.

    Attributes:
        datasets, classes, shots, draws, variants: what is combined; no classes are all classes.
        preset: key of `PRESETS`.
        data_root: where the data lie.
        dataset_title: name for tables, instead of the data set's own.
        paper_dataset: whose rows of the paper stand beside the results, instead of the data set's own.
        num_transforms: M; None: the paper's choice for the data set.
        fractions: parts of the patches that vote; none: table 7's for defects, all patches else.
        test_limit, seed, settings, preparation, in_order: as in `RunSpec`.
    """

    datasets: Sequence[str]
    data_root: str
    classes: Sequence[str] = ()
    shots: Sequence[int] = (1,)
    draws: Sequence[int] = (1,)
    variants: Sequence[str] = ("ours",)
    preset: str = "fast"
    dataset_title: str | None = None
    paper_dataset: str | None = None
    num_transforms: int | None = None
    fractions: Sequence[float] = ()
    test_limit: int | None = None
    seed: int = 0
    settings: Pairs = ()
    preparation: Pairs = ()
    in_order: bool = False


_CLASS_SETS = ("cifar", "mnist", "fashionmnist", "paris")
_OF_TABLE: Mapping[int, tuple[dict[str, Any], ...]] = MappingProxyType(
    {
        1: (dict(datasets=_CLASS_SETS, shots=(1,)),),
        2: (dict(datasets=_CLASS_SETS, shots=(5,)),),
        3: (dict(datasets=_CLASS_SETS, shots=(10,)),),
        4: (dict(datasets=("cifar",), shots=(50, 80)),),
        5: tuple(
            dict(datasets=("mvtec",), shots=(1, 5, 10), num_transforms=number)
            for number in (MVTEC.num_transforms, ROTATIONS)
        ),
        6: (dict(datasets=("cifar",), shots=(1, 5), variants=tuple(VARIANTS)),),
        7: (dict(datasets=("mvtec",), shots=(1, 5, 10), num_transforms=ROTATIONS),),
    }
)


def requests_of_tables(tables: Iterable[int], request: Request) -> list[Request]:
    """What the paper's tables need.

    Args:
        tables: their numbers.
        request: draws, preset and all else that a table leaves open; its data sets, if it names any, are those of the
            tables that are wanted.

    Raises:
        UserError: a data set that is in none of the tables.
    """
    parts = [part for table in tables for part in _OF_TABLE[table]]
    known = list(dict.fromkeys(name for part in parts for name in part["datasets"]))
    wanted = [benchmark_spec(name).name for name in request.datasets] or known
    foreign = next((name for name in wanted if name not in known), None)
    if foreign:
        raise UserError(f"--datasets {foreign}: in none of these --tables, which have {', '.join(known)}")
    chosen = [part | {"datasets": tuple(name for name in part["datasets"] if name in wanted)} for part in parts]
    return [replace(request, **part) for part in chosen if part["datasets"]]


def check_titles(requests: Sequence[Request]) -> None:
    """Refuse one title, or the paper's rows of one data set, for several data sets, and rows that there are not.

    Raises:
        UserError: there are several, or none of that name.
    """
    for name in (request.paper_dataset for request in requests if request.paper_dataset):
        if name not in paper_datasets():
            raise UserError(
                f"--paper_dataset {name}: not in the paper's tables; give one of {', '.join(paper_datasets())}"
            )
    named = any(request.dataset_title or request.paper_dataset for request in requests)
    if named and len({name for request in requests for name in request.datasets}) > 1:
        raise UserError("--dataset_title and --paper_dataset name one data set; give --datasets one")


def plan_runs(request: Request, precision: str) -> list[RunSpec]:
    """All runs of a request, in the order in which they are done.

    Raises:
        UserError: a data set, class, number of images or setting that there is not.
    """
    runs = [run for name in request.datasets for run in _runs_of_dataset(request, name, precision)]
    for run in runs:
        run.config()  # overridden settings are refused now, not in the worker
    return list(dict.fromkeys(runs))


def _runs_of_dataset(request: Request, dataset: str, precision: str) -> Iterator[RunSpec]:
    benchmark = prepared_dataset(dataset, request.data_root, request.num_transforms, request.preparation)
    spec = benchmark.spec
    classes = [benchmark.class_name(name) for name in request.classes or spec.classes]
    own_rows = spec.table_name if spec.table_name in paper_datasets() else None
    for shots, draw, pos_class in product(request.shots, request.draws, classes):
        selection = select_images(benchmark, pos_class, shots, draw, request.seed, in_order=request.in_order)
        digest = digest_images(selection, selection.test_samples(request.test_limit, request.seed))
        for variant in request.variants:
            yield RunSpec(
                dataset=spec.name,
                title=request.dataset_title or spec.title,
                pos_class=pos_class,
                shots=shots,
                draw=draw,
                variant=variant,
                preset=request.preset,
                num_transforms=request.num_transforms or spec.num_transforms,
                data_sha256=digest,
                fractions=_fractions(request, dataset, shots, variant),
                test_limit=request.test_limit,
                seed=request.seed,
                precision=precision,
                settings=request.settings,
                preparation=request.preparation,
                in_order=request.in_order,
                paper_dataset=request.paper_dataset or own_rows,
            )


def _fractions(request: Request, dataset: str, shots: int, variant: str) -> tuple[float, ...]:
    """The fractions of a run, the paper's own among them, ascending."""
    if VARIANTS[variant].score != "votes":
        return (1.0,)
    is_defect = is_defect_set(dataset)
    chosen = request.fractions or (DEFECT_FRACTIONS if is_defect else (1.0,))
    return tuple(sorted({*chosen, default_fraction("defect" if is_defect else "class", shots)}))


def deal_tasks(
    runs: Sequence[RunSpec], data_root: str, devices: Sequence[str], *, not_cuda: bool, threads: int
) -> list[Task]:
    """Give every run its device, in turn, and its threads."""
    tasks = []
    for number, run in enumerate(runs):
        device = devices[number % len(devices)] if devices else None
        runtime = RuntimeConfig(device=device, not_cuda=not_cuda, threads=threads, precision=run.precision)
        tasks.append(Task(run, data_root, runtime))
    return tasks


def parse_settings(texts: Sequence[str]) -> Pairs:
    """Read overridden settings, such as `niter=500`.

    Raises:
        UserError: an unknown setting, one that is told otherwise, or a value of another type.
    """
    for text in texts:
        remedy = _TOLD_OTHERWISE.get(text.partition("=")[0])
        if remedy is not None:
            raise UserError(f"--set {text}: not a setting to override; {remedy}")
    settings = {f.name: cls for cls in (ModelConfig, TrainingConfig) for f in fields(cls)}
    owners = {name: cls for name, cls in settings.items() if name not in _TOLD_OTHERWISE}
    return _parse_pairs("--set", texts, owners)


def parse_preparation(texts: Sequence[str]) -> Pairs:
    """Read overridden preparation, such as `train_clahe=false`.

    Raises:
        UserError: an unknown field, or a value of another type.
    """
    return _parse_pairs("--prepare", texts, dict.fromkeys(_PREPARATION, BenchmarkSpec))


def _parse_pairs(option: str, texts: Sequence[str], owners: dict[str, type]) -> Pairs:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in owners:
            raise UserError(f"{option} {text}: give name=value, with a name among {', '.join(sorted(owners))}")
        pairs[name] = _parse_value(f"{option} {text}", value, field_type(owners[name], name))
    return tuple(sorted(pairs.items()))


def _parse_value(label: str, value: str, kind: type) -> Any:
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise UserError(f"{label}: give true or false")
        return value.lower() == "true"
    try:
        return kind(value)
    except ValueError:
        raise UserError(f"{label}: must be a value of type {kind.__name__}") from None
