"""What to run: one run with the key of all that its result depends on, and the runs of a request or of a table.

Presets and variants were written down before any result. Requests are checked against the data before anything is run.
"""

import hashlib
import json
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from hta.config import AblationConfig, Config, ModelConfig, TrainingConfig, default_config
from hta.data.benchmark import Selection, draw_images
from hta.data.loaders import Benchmark, load_dataset
from hta.data.sample import Sample
from hta.data.specs import MVTEC, ROTATIONS, Preparation, benchmark_spec, default_task
from hta.errors import UserError
from hta.evaluation.nearest import NEAREST_VERSION
from hta.evaluation.scores import default_fraction
from hta.files import printable
from hta.settings import field_type, require_keys

METHOD_VERSION = 2
"""Incremented with every change that moves a score by more than a different order of rounding does. Results of another
version enter no table, and their runs are repeated."""

NUM_TRANSFORMS = (54, 42, 4)
"""Numbers of transformations, the choices of M."""

DEFECT_FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Fractions of the patches in the paper's table 7."""

Pairs = tuple[tuple[str, Any], ...]

_SET_ELSEWHERE = {
    "num_transforms": "give --num_transforms instead",
    "task": "it follows from the data set, give another of --datasets instead",
}
_OVERRIDES: Mapping[str, dict[str, type]] = {
    "--set": {f.name: c for c in (ModelConfig, TrainingConfig) for f in fields(c) if f.name not in _SET_ELSEWHERE},
    "--prepare": {f.name: Preparation for f in fields(Preparation)},
}


# --- the paper's values -------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def paper_values() -> pd.DataFrame:
    """What the paper prints, one row per cell in its order; paper and paper_std are of AUROC over draws, per cent."""
    numbers = {"table": int, "shots": int, "paper": float, "paper_std": float}
    names = {"class": "pos_class", "auc_mean": "paper", "auc_std": "paper_std"}
    return pd.read_csv(Path(__file__).parent / "htdg_auc_tables.csv", dtype=str).rename(columns=names).astype(numbers)


def paper_part(table: int, dataset: str | None = None, shots: int | None = None) -> pd.DataFrame:
    """What the paper prints in a table, or in its part for a data set and a number of training images."""
    values = paper_values()
    values = values[values["table"] == table]
    return values if shots is None else values[(values["dataset"] == dataset) & (values["shots"] == shots)]


# --- one run ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preset:
    """How long and how finely a run trains."""

    niter: int | None  # iterations per scale; None: the paper's, by the number of transformations
    min_size: int  # sides of the coarsest and the finest scale, pixels
    max_size: int
    geom_steps: int  # optimiser steps of GEOM, variant (g), with 128 images each


PRESETS: Mapping[str, Preset] = {
    # The released schedule. GEOM's authors train 3 epochs: 6,000 images x 72 transformations x 3 / 128.
    "paper": Preset(niter=None, min_size=25, max_size=64, geom_steps=10_125),
    # A tenth of the work. The learning rates never drop: their milestones are 500 and 1,000 iterations.
    "fast": Preset(niter=250, min_size=25, max_size=51, geom_steps=1_000),
}


@dataclass(frozen=True)
class Variant:
    """The method, or a row of the ablation in table 6."""

    title: str
    objective: str = "transformations"  # what the discriminators learn (`hta.config.AblationConfig`)
    one_scale: int | None = None  # side of the only scale, pixels; None: the preset's scales
    score: Literal["votes", "real_probability", "distance", "geom", "nearest"] = "votes"  # what an image is scored by
    recipe: str = "paper"  # how the discriminators are trained (`hta.config.TrainingConfig`)
    in_table: bool = True  # whether table 6 has it


VARIANTS: Mapping[str, Variant] = {
    "ours": Variant("the method"),
    "a": Variant("no generator", "transformations_only"),
    "b": Variant("real against fake, no transformations", "real_fake", score="real_probability"),
    "c": Variant("real against fake, augmented", "real_fake_augmented", score="real_probability"),
    "d": Variant("one scale of 100 px", one_scale=100),
    "e": Variant("one scale of 20 px", one_scale=20),
    "f": Variant("distance to the training images", score="distance"),
    "g": Variant("GEOM on generated images", score="geom"),
    "views": Variant(
        "trained on views, scored by the nearest patches", score="nearest", recipe="views", in_table=False
    ),
}


@dataclass(frozen=True)
class RunSpec:
    """One run; `title` says so where only part of a data set is available."""

    dataset: str  # name for `hta.data.loaders.load_dataset`
    title: str  # the data set's name in tables
    pos_class: str  # the normal class, in the paper's spelling
    shots: int  # N, the number of training images
    draw: int  # number of their random draw; with `in_order`, k takes the k-th N images of the class
    variant: str  # of `VARIANTS`
    preset: str  # of `PRESETS`
    num_transforms: int  # M
    data_sha256: str  # digest of the training images and of the test images' names
    fractions: tuple[float, ...] = (1.0,)  # of the patches that vote, ascending; scored in one pass
    test_limit: int | None = None  # number of test images; None for all
    seed: int = 0  # of draws and test images; with the draw, of the training, unless the settings have its own
    precision: str = "auto"  # as requested; "auto" depends on the machine
    settings: Pairs = ()  # overridden settings of model and training
    preparation: Pairs = ()  # overridden preparation of the images (fields of `Preparation`)
    in_order: bool = False  # training images in data-set order, as in the released code, instead of drawn ones
    paper_dataset: str | None = None  # whose rows of the paper are shown beside it; not part of the key

    @property
    def task(self) -> str:
        """The task, "defect" or "class"."""
        return default_task(self.dataset)

    @property
    def main_fraction(self) -> float:
        """The paper's fraction of the patches if it was run, else the largest."""
        default = default_fraction(self.task, self.shots)
        return default if default in self.fractions else self.fractions[-1]

    @property
    def changes(self) -> str:
        """What differs from a plain run of the preset, such as "niter=500, seed 1"; empty for a plain run."""
        changes = [f"{name}={value}" for name, value in (*self.settings, *self.preparation)]
        changes += [f"seed {self.seed}"] * (self.seed != 0) + [self.precision] * (self.precision != "auto")
        return ", ".join(changes)

    @property
    def changes_but_seed(self) -> str:
        """The changes without that of the seed of the training alone."""
        return replace(self, settings=tuple(pair for pair in self.settings if pair[0] != "manualSeed")).changes

    @property
    def training_seed(self) -> int:
        """The seed of weights and noise. Draws differ in it too, so that their spread covers all randomness."""
        return dict(self.settings).get("manualSeed", self.seed + self.draw)

    def config(self) -> Config:
        """The resolved settings of model and training; a UserError refuses an unknown one, or one out of range."""
        preset, variant = PRESETS[self.preset], VARIANTS[self.variant]
        flat: dict[str, Any] = {"min_size": preset.min_size, "max_size": preset.max_size, "niter": preset.niter}
        flat["recipe"] = variant.recipe
        flat |= {"task": self.task, "num_transforms": self.num_transforms, "manualSeed": self.training_seed}
        flat |= dict(self.settings)
        if variant.one_scale:
            flat |= {"min_size": variant.one_scale, "max_size": variant.one_scale}
        config = default_config(**flat).resolved(is_gray=False)  # only matters where num_transforms is open
        if variant.objective == config.model.objective:
            return config
        return replace(config, model=AblationConfig(**asdict(config.model), objective=variant.objective))

    @property
    def key(self) -> str:
        """Digest of everything that the AUROC depends on, on one machine.

        The precision is covered as requested: under "auto", machines with different precisions share a key, and each
        result records what made it. Not covered are device, threads and library versions, which only change the
        rounding, nor what only the decision depends on: how views are drawn, and its target.
        """
        config = self.config()
        matters = asdict(self) | {"model": asdict(config.model), "training": asdict(config.training)}
        matters |= {"method_version": METHOD_VERSION, "geom_steps": PRESETS[self.preset].geom_steps}
        del matters["paper_dataset"]
        if VARIANTS[self.variant].score == "nearest":
            matters["nearest_version"] = NEAREST_VERSION
        if config.training.recipe == "paper":
            del matters["training"]["recipe"]  # results that predate the setting keep their keys
        if not self.in_order:
            del matters["in_order"]  # results that predate the option keep their keys
        return hashlib.sha256(json.dumps(matters, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """Name of the result's file, without suffix."""
        parts = (self.title, self.pos_class, f"{self.shots}shot", self._images(""), self.variant, self.preset)
        return "_".join([*(slug(part)[:80] for part in parts), self.key])  # a name has at most 255 bytes

    def describe(self) -> str:
        """One line for a person."""
        shots = f"{self.shots} image{'s' * (self.shots > 1)}"
        name = printable(f"{self.title} {self.pos_class}")
        return f"{name}, {shots}, {self._images(' ')}, {self.variant}, {self.preset}"

    def _images(self, space: str) -> str:
        return f"{'index' if self.in_order else 'draw'}{space}{self.draw}"

    @classmethod
    def from_dict(cls, data: dict[str, Any], source: str) -> "RunSpec":
        """Read `dataclasses.asdict` back from JSON; a UserError refuses other keys, variants and presets."""
        data = {"in_order": False} | data  # results that predate the option
        require_keys(data, {f.name for f in fields(cls)}, source)
        pairs = {name: tuple((key, value) for key, value in data[name]) for name in ("settings", "preparation")}
        spec = cls(**data | pairs | {"fractions": tuple(data["fractions"])})
        for f in fields(cls):
            value, kind = getattr(spec, f.name), field_type(cls, f.name)
            if not (type(value) is kind or value is f.default is None) or not _LEGAL.get(f.name, lambda _: True)(value):
                raise UserError(f"{source}: {f.name} {reprlib.repr(value)} is not possible; remove the file")
        return spec


def _are_overrides(option: str, pairs: Pairs) -> bool:
    owners = _OVERRIDES[option]
    return all(name in owners and type(value) is field_type(owners[name], name) for name, value in pairs)


_LEGAL: Mapping[str, Callable[[Any], bool]] = {
    "title": lambda text: 0 < len(text) <= 255,
    "pos_class": lambda text: 0 < len(text) <= 255,
    "shots": range(1, 2**31).__contains__,
    "draw": range(2**31).__contains__,
    "variant": VARIANTS.__contains__,
    "preset": PRESETS.__contains__,
    "num_transforms": NUM_TRANSFORMS.__contains__,
    "fractions": lambda values: len(values) > 0 and all(type(f) in (int, float) and 0 < f <= 1 for f in values),
    "test_limit": lambda limit: limit is None or limit in range(1, 2**31),
    "seed": range(2**31).__contains__,
    "precision": ("auto", "float32", "bfloat16").__contains__,
    "settings": partial(_are_overrides, "--set"),
    "preparation": partial(_are_overrides, "--prepare"),
    "paper_dataset": lambda name: name is None or name in set(paper_values()["dataset"]),
}
"""Which values of the fields of a `RunSpec`, besides their type, a result may have."""


def slug(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# --- the runs of a request ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What to run: all combinations of data sets, classes, shots, draws and variants; the rest is as in `RunSpec`."""

    datasets: Sequence[str]
    data_root: str
    classes: Sequence[str] = ()  # none: all
    shots: Sequence[int] = (1,)
    draws: Sequence[int] = (1,)
    variants: Sequence[str] = ("ours",)
    preset: str = "fast"
    dataset_title: str | None = None  # None: the data set's own
    paper_dataset: str | None = None  # None: the data set's own rows
    num_transforms: int | None = None  # M; None: the paper's choice for the data set
    fractions: Sequence[float] = ()  # none: table 7's for defects, else all patches
    test_limit: int | None = None
    seed: int = 0
    precision: str = "auto"
    settings: Pairs = ()
    preparation: Pairs = ()
    in_order: bool = False


_CLASS_SETS = ("cifar", "mnist", "fashionmnist", "paris")
_DEFECTS = dict(datasets=("mvtec",), shots=(1, 5, 10))
_OF_TABLE: Mapping[int, tuple[dict[str, Any], ...]] = {
    1: (dict(datasets=_CLASS_SETS, shots=(1,)),),
    2: (dict(datasets=_CLASS_SETS, shots=(5,)),),
    3: (dict(datasets=_CLASS_SETS, shots=(10,)),),
    4: (dict(datasets=("cifar",), shots=(50, 80)),),
    5: tuple(_DEFECTS | {"num_transforms": number} for number in (MVTEC.num_transforms, ROTATIONS)),
    6: (dict(datasets=("cifar",), shots=(1, 5), variants=tuple(name for name in VARIANTS if VARIANTS[name].in_table)),),
    7: (_DEFECTS | {"num_transforms": ROTATIONS},),
}


def requests_of_tables(tables: Iterable[int], request: Request) -> list[Request]:
    """What the paper's tables need, with draws, preset and everything else that they leave open from a request.

    Its data sets, if it names any, select from those of the tables.

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
    """Refuse one title, or the paper's rows of one data set, for several data sets, and rows that do not exist."""
    known = list(paper_values()["dataset"].unique())
    for name in (request.paper_dataset for request in requests if request.paper_dataset):
        if name not in known:
            raise UserError(f"--paper_dataset {name}: not in the paper's tables; give one of {', '.join(known)}")
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
    names = ("preset", "test_limit", "seed", "precision", "settings", "preparation", "in_order")
    same = {name: getattr(request, name) for name in names}
    same |= dict(dataset=spec.name, title=request.dataset_title or spec.title, variant="ours", data_sha256="")
    own_rows = spec.table_name if spec.table_name in set(paper_values()["dataset"]) else None
    same |= dict(paper_dataset=request.paper_dataset or own_rows)
    same |= dict(num_transforms=request.num_transforms or spec.num_transforms)
    for shots, draw, pos_class in product(request.shots, request.draws, classes):
        plain = RunSpec(pos_class=pos_class, shots=shots, draw=draw, **same)
        chosen = request.fractions or (DEFECT_FRACTIONS if plain.task == "defect" else (1.0,))
        fractions = tuple(sorted({*chosen, default_fraction(plain.task, shots)}))  # the paper's among them
        *_, digest = select_images(plain, benchmark)
        for variant in request.variants:
            votes = VARIANTS[variant].score == "votes"
            yield replace(plain, variant=variant, data_sha256=digest, fractions=fractions if votes else (1.0,))


@lru_cache(maxsize=8)
def prepared_dataset(dataset: str, data_root: str, num_transforms: int | None, preparation: Pairs) -> Benchmark:
    """A data set with its preparation overridden, loaded once per process."""
    benchmark = load_dataset(dataset, data_root, num_transforms=num_transforms)
    return replace(benchmark, spec=replace(benchmark.spec, **dict(preparation)))


def select_images(spec: RunSpec, benchmark: Benchmark) -> tuple[Selection, list[Sample], str]:
    """The training and the test images of a run, and the digest of both: pixels of training images, all names."""
    selection = draw_images(benchmark, spec.pos_class, spec.shots, spec.draw, in_order=spec.in_order, seed=spec.seed)
    test = selection.test_samples(spec.test_limit, spec.seed)
    digest = hashlib.sha256("\n".join(selection.training_ids()).encode("utf-8", "surrogateescape"))
    for sample in selection.training:
        digest.update(sample.read().tobytes())
    digest.update(digest_names(test).encode())
    return selection, test, digest.hexdigest()


def digest_names(test: Sequence[Sample]) -> str:
    """Digest of the names of test images."""
    return hashlib.sha256("\n".join(sample.relative for sample in test).encode("utf-8", "surrogateescape")).hexdigest()


def parse_overrides(option: str, texts: Sequence[str]) -> Pairs:
    """Read overridden settings (`--set niter=500`) or preparation of the images (`--prepare train_clahe=false`).

    Raises:
        UserError: an unknown name, a setting that has an option of its own, or a value of another type.
    """
    owners = _OVERRIDES[option]
    for text in texts if option == "--set" else ():
        if remedy := _SET_ELSEWHERE.get(text.partition("=")[0]):
            raise UserError(f"--set {text}: not a setting to override; {remedy}")
    pairs: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in owners:
            raise UserError(f"{option} {text}: give name=value, with a name among {', '.join(sorted(owners))}")
        kind = field_type(owners[name], name)
        try:
            pairs[name] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            wanted = "give true or false" if kind is bool else f"must be a value of type {kind.__name__}"
            raise UserError(f"{option} {text}: {wanted}") from None
    return tuple(sorted(pairs.items()))
