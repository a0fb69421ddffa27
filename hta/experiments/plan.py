"""From a request to a list of runs, checked against the data before anything is run."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import cycle, product
from types import MappingProxyType
from typing import Any

from hta.config import ModelConfig, RuntimeConfig, TrainingConfig
from hta.data.benchmark import Selection, draw_images
from hta.data.loaders import Benchmark, load_dataset
from hta.data.sample import Sample
from hta.data.specs import MVTEC, ROTATIONS, BenchmarkSpec, benchmark_spec, default_task
from hta.errors import UserError
from hta.evaluation.scores import default_fraction
from hta.experiments.results import paper_datasets
from hta.experiments.spec import VARIANTS, Pairs, RunSpec
from hta.settings import field_type

DEFECT_FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Fractions of the patches in the paper's table 7."""

_SET_ELSEWHERE = {
    "num_transforms": "give --num_transforms instead",
    "manualSeed": "give --seed instead, to which each run adds its draw",
    "task": "it follows from the data set, give another of --datasets instead",
}
_PREPARATION = ("geometry", "size", "train_filter", "test_filter", "train_clahe")


@dataclass(frozen=True)
class Request:
    """What to run: all combinations.

    Attributes:
        datasets, classes, shots, draws, variants: what is combined; no classes means all classes.
        preset: key of `PRESETS`.
        data_root: folder of the data.
        dataset_title: name for tables, instead of the data set's own.
        paper_dataset: whose rows of the paper are shown beside the results, instead of the data set's own.
        num_transforms: M; None: the paper's choice for the data set.
        fractions: fractions of the patches that vote; none: table 7's for defects, else all patches.
        test_limit, seed, precision, settings, preparation, in_order: as in `RunSpec`.
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
    precision: str = "auto"
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
        request: draws, preset and everything else that a table leaves open; its data sets, if it names any, select
            from those of the tables.

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
    """Refuse one title, or the paper's rows of one data set, for several data sets, and rows that do not exist.

    Raises:
        UserError: there are several data sets, or the paper has none of that name.
    """
    for name in (request.paper_dataset for request in requests if request.paper_dataset):
        if name not in paper_datasets():
            raise UserError(
                f"--paper_dataset {name}: not in the paper's tables; give one of {', '.join(paper_datasets())}"
            )
    named = any(request.dataset_title or request.paper_dataset for request in requests)
    if named and len({name for request in requests for name in request.datasets}) > 1:
        raise UserError("--dataset_title and --paper_dataset name one data set; give --datasets one")


def plan_runs(requests: Iterable[Request]) -> list[RunSpec]:
    """All runs of some requests, each once, in the order in which they are done.

    Raises:
        UserError: an unknown data set, class or setting, or more images than there are.
    """
    runs = [run for request in requests for name in request.datasets for run in _runs_of_dataset(request, name)]
    for run in runs:
        run.config()  # overridden settings are refused now, not in the worker
    return list(dict.fromkeys(runs))


def _runs_of_dataset(request: Request, dataset: str) -> Iterator[RunSpec]:
    benchmark = prepared_dataset(dataset, request.data_root, request.num_transforms, request.preparation)
    spec = benchmark.spec
    classes = [spec.class_name(name) for name in request.classes or spec.classes]
    own_rows = spec.table_name if spec.table_name in paper_datasets() else None
    for shots, draw, pos_class in product(request.shots, request.draws, classes):
        selection = draw_images(benchmark, pos_class, shots, draw, in_order=request.in_order, seed=request.seed)
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
                precision=request.precision,
                settings=request.settings,
                preparation=request.preparation,
                in_order=request.in_order,
                paper_dataset=request.paper_dataset or own_rows,
            )


def _fractions(request: Request, dataset: str, shots: int, variant: str) -> tuple[float, ...]:
    """The fractions of a run, the paper's among them, ascending."""
    if VARIANTS[variant].score != "votes":
        return (1.0,)
    task = default_task(dataset)
    chosen = request.fractions or (DEFECT_FRACTIONS if task == "defect" else (1.0,))
    return tuple(sorted({*chosen, default_fraction(task, shots)}))


@lru_cache(maxsize=8)
def prepared_dataset(dataset: str, data_root: str, num_transforms: int | None, preparation: Pairs) -> Benchmark:
    """A data set with its preparation overridden, loaded once per process."""
    benchmark = load_dataset(dataset, data_root, num_transforms=num_transforms)
    return replace(benchmark, spec=replace(benchmark.spec, **dict(preparation)))


def digest_images(selection: Selection, test: Sequence[Sample]) -> str:
    """Digest of the training images, pixels included, and of the names of the test images."""
    digest = hashlib.sha256("\n".join(selection.training_ids()).encode())
    for sample in selection.training:
        digest.update(sample.read().tobytes())
    digest.update(digest_names(test).encode())
    return digest.hexdigest()


def digest_names(test: Sequence[Sample]) -> str:
    """Digest of the names of test images."""
    return hashlib.sha256("\n".join(sample.relative for sample in test).encode()).hexdigest()


def assign_devices(
    runs: Sequence[RunSpec], devices: Sequence[str], *, not_cuda: bool, threads: int
) -> list[tuple[RunSpec, RuntimeConfig]]:
    """Give every run a device, in turn, and its threads."""
    return [
        (run, RuntimeConfig(device=device, not_cuda=not_cuda, threads=threads, precision=run.precision))
        for run, device in zip(runs, cycle(devices or [None]), strict=False)
    ]


def parse_settings(texts: Sequence[str]) -> Pairs:
    """Read overridden settings, such as `niter=500`.

    Raises:
        UserError: an unknown setting, one with an option of its own, or a value of another type.
    """
    for text in texts:
        remedy = _SET_ELSEWHERE.get(text.partition("=")[0])
        if remedy is not None:
            raise UserError(f"--set {text}: not a setting to override; {remedy}")
    owners = {f.name: cls for cls in (ModelConfig, TrainingConfig) for f in fields(cls)}
    return _parse_pairs("--set", texts, {name: cls for name, cls in owners.items() if name not in _SET_ELSEWHERE})


def parse_preparation(texts: Sequence[str]) -> Pairs:
    """Read overridden preparation, such as `train_clahe=false`.

    Raises:
        UserError: an unknown field, or a value of another type.
    """
    return _parse_pairs("--prepare", texts, dict.fromkeys(_PREPARATION, BenchmarkSpec))


def _parse_pairs(option: str, texts: Sequence[str], owners: Mapping[str, type]) -> Pairs:
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
