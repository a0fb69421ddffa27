"""What should an anomaly map be made of? python -m hta.studies scores --data_root DIR --recipe views

Trains a model on one drawn good image of a folder laid out like a class of MVTec AD, and scores the test images by many
readings of it: what a patch is judged by, how its image is standardised, how the map becomes a score. AUROC, pixel
AUROC, AUPRO, and false alarms and recall at the threshold from mirrored views are written to a JSON file, unless it
exists. Without --data_root, the results are printed as tables.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hta.config import AblationConfig, Config, RuntimeConfig, default_config
from hta.data.benchmark import draw_images
from hta.data.loaders import load_dataset
from hta.data.sample import Sample
from hta.evaluation.metrics import image_auroc
from hta.evaluation.nearest import RULE, NearestMaps, merged, typical, unit_of
from hta.evaluation.pixel_metrics import PixelMetrics
from hta.evaluation.scorer import Scorer
from hta.evaluation.scores import anomaly_scores
from hta.files import write_atomically
from hta.images import resize, to_tensor
from hta.models.scales import image_pyramid
from hta.models.views import draw_views
from hta.runs import TrainingSet, prepare
from hta.runtime import describe_machine, own_process, set_up
from hta.settings import Checked, option
from hta.training.trainer import train_pyramid


@dataclass(frozen=True)
class Recipe:
    """A way to train: settings that differ from the defaults for defects; how many models; without fakes or with."""

    settings: dict[str, Any]
    seeds: int = 1
    generator: bool = True


RECIPES = {
    "paper, 250 iterations": Recipe({"recipe": "paper", "niter": 250}),
    "views": Recipe({"recipe": "views"}),
    "views, three seeds": Recipe({"recipe": "views"}, seeds=3),
    "views, four scales": Recipe({"recipe": "views", "scale_factor": 0.62}),
    "views, 100 iterations": Recipe({"recipe": "views", "niter": 100}),
    "views, 96 px, 100 iterations": Recipe({"recipe": "views", "niter": 100, "max_size": 96}),
    "views, no generator": Recipe({"recipe": "views"}, generator=False),
    "views, 1 iteration": Recipe({"recipe": "views", "niter": 1}),
}

CHOSEN = "nearest features", "own typical", "maximum"
"""The reading that became the score "nearest"."""

SUMS = ("nearest features", "log votes"), ("nearest features", "squared error"), ("log votes", "squared error")
"""Readings that are also added up, each in units of its mean over views."""

_BATCH, _VIEWS, _TARGET_FPR = 8, 60, 0.05
_FLOOR = 1e-4  # of the probabilities whose logarithm is taken
_RAW = 5  # side of a patch of pixels
_DIGITS = 4
_SHOWN = ("auroc", "pixel_auroc", "aupro", "false_alarms", "recall")

Maps = Callable[[Tensor], Tensor]
"""Makes maps `(B, h, w)` from 0 of images `(B, 3, h, w)` in [-1, 1], at the working size; higher = more anomalous."""

Maps3 = tuple[Tensor, Tensor, Tensor]
"""Maps of the test images, of views of the training image and of mirrored views."""

Measures = dict[str, float]


@dataclass(frozen=True)
class ScoreOptions(Checked):
    """What is trained, on which images."""

    data_root: str = option("", "a folder laid out like a class of MVTec AD")
    recipe: str = option("views", "how the model is trained", choices=tuple(RECIPES))
    draw: int = option(1, "number of the random draw of the training image", low=1)
    threads: int = option(0, "number of CPU threads; 0 means one per core", low=0, high=1024)
    results: str = option("docs/scores", "folder of the JSON files")


def readings(scorer: Scorer, images: Tensor) -> dict[str, Maps]:
    """What a patch can be judged by, by name, given the training image `(1, 3, h, w)`."""
    plan = scorer.plan

    def of_votes(surprise: Callable[[Tensor], Tensor]) -> Maps:
        # The four rotations vote at the same places.
        return lambda batch: merged([surprise(votes).mean(dim=1) for votes in scorer.votes(batch)], plan)

    def pixels(batch: Tensor) -> list[Tensor]:
        levels = image_pyramid(batch, plan.sizes)
        return [F.unfold(x, _RAW).unflatten(2, [side - _RAW + 1 for side in x.shape[2:]]) for x in levels]

    def errors(batch: Tensor) -> Tensor:
        levels = zip(image_pyramid(batch, plan.sizes), image_pyramid(images, plan.sizes), strict=True)
        return merged([(level.cpu() - own.cpu()).square().mean(dim=1) for level, own in levels], plan)

    return {
        "votes": of_votes(lambda votes: 1 - votes),
        "log votes": of_votes(lambda votes: -votes.clamp(min=_FLOOR).log()),
        "nearest features": NearestMaps(scorer.features, plan, images).distances,
        "nearest features, any place": NearestMaps(scorer.features, plan, images, reach=float("inf")).distances,
        "nearest pixels": NearestMaps(pixels, plan, images).distances,
        "squared error": errors,
    }


def standardised(maps: Tensor, views: Tensor) -> dict[str, Tensor]:
    """Maps `(B, h, w)` as they are; by their own typical value, as `NearestMaps` does; by each place of the views."""
    unit = unit_of(maps, float(typical(views).mean()))
    # A place that hardly varies must not count more than the others.
    spread = (views.var(dim=0) + views.std().square() / 4).sqrt()
    return {"as it is": maps, "own typical": maps / unit, "by place": (maps - views.mean(dim=0)) / spread}


def pooled(maps: Tensor) -> dict[str, np.ndarray]:
    """Ways to make scores `(B,)` of maps `(B, h, w)`."""
    values = maps.flatten(1).sort(dim=1, descending=True).values.double().numpy()
    counts = {"maximum": 1, "top 1 %": values.shape[1] // 100, "top 5 %": values.shape[1] // 20, "mean": None}
    return {name: values[:, :count].mean(axis=1) for name, count in counts.items()}


def measure(scores: np.ndarray, normal: np.ndarray, labels: np.ndarray) -> Measures:
    """AUROC of scores `(N,)`; false alarms and recall where 5 % of the scores `normal` of mirrored views are higher."""
    rejected = scores > np.quantile(normal, 1 - _TARGET_FPR)
    auroc = image_auroc(labels, scores)["value"]
    return {"auroc": auroc, "false_alarms": rejected[labels == 0].mean(), "recall": rejected[labels == 1].mean()}


def measure_pixels(maps: Tensor, highest: float, samples: Sequence[Sample]) -> Measures:
    """Pixel AUROC and AUPRO, at the size of the images, of maps `(N, h, w)` up to `highest`; none without masks."""
    pixels, lowest = PixelMetrics(), maps.min()
    if not any(sample.masks for sample in samples):
        return {}
    for one, sample in zip(maps, samples, strict=True):
        mask = sample.read_mask()
        if sample.label and mask is None:
            continue
        shape = sample.read().shape[:2] if mask is None else mask.shape
        levels = ((one - lowest) / (highest - lowest)).clamp(0, 1)
        pixels.update(F.interpolate(levels[None, None], size=shape, mode="bilinear")[0, 0].numpy(), mask)
    found = pixels.compute()
    return {"pixel_auroc": found["pixel_auroc"]["value"], "aupro": found["aupro"]["value"]}


def config_of(recipe: Recipe, seed: int, runtime: RuntimeConfig) -> Config:
    """The settings of a recipe."""
    config = replace(default_config(**recipe.settings, manualSeed=seed), runtime=runtime)
    if recipe.generator:
        return config
    return replace(config, model=AblationConfig(**asdict(config.model), objective="transformations_only"))


def added(first: Maps3, second: Maps3) -> Maps3:
    """The sum of two readings of the same images, each in units of its mean over the views."""
    (_, one, _), (_, other, _) = first, second
    pairs = zip(first, second, strict=True)
    of_test, of_views, of_mirrored = (a / one.mean() + b / other.mean() for a, b in pairs)
    return of_test, of_views, of_mirrored


@torch.inference_mode()
def compare(scorers: Sequence[Scorer], training: TrainingSet, samples: Sequence[Sample]) -> dict[str, Measures]:
    """Measure all readings on test images; the keys are the reading, its standardisation and its pooling.

    Several models are one: what they read is averaged.
    """
    first, images = scorers[0], training.images
    test = torch.cat([resize(to_tensor([sample.read()]), first.plan.working_size) for sample in samples])
    labels = np.array([sample.label for sample in samples])
    views = draw_views(images, _VIEWS, RULE.strength, 1)
    mirrored = RULE.draw(images, 2 * _VIEWS, 2, first.recognition)

    def maps(models: Sequence[Maps], of: Tensor) -> Tensor:
        return torch.cat([torch.stack([model(x).cpu() for model in models]).mean(dim=0) for x in of.split(_BATCH)])

    by_model = [readings(scorer, images) for scorer in scorers]
    read: dict[str, Maps3] = {}
    for name in by_model[0]:
        models = [of_model[name] for of_model in by_model]
        read[name] = maps(models, test), maps(models, views), maps(models, mirrored)
    read |= {" and ".join(names): added(*(read[name] for name in names)) for names in SUMS}
    found = {}
    for name, (of_test, of_views, of_mirrored) in read.items():
        normal = standardised(of_mirrored, of_views)
        for way, values in standardised(of_test, of_views).items():
            pixels = measure_pixels(values, float(values.quantile(0.9999)), samples)
            limits = pooled(normal[way])
            for pooling, scores in pooled(values).items():
                found[" | ".join((name, way, pooling))] = measure(scores, limits[pooling], labels) | pixels
    for fraction in (0.05, 1.0):
        shares = (np.mean([s.shares(x, [fraction])[0] for s in scorers], axis=0) for x in (test, mirrored))
        of_images, of_normal = (anomaly_scores(share) for share in shares)
        found[f"paper's score, {fraction:.0%} of the patches"] = measure(of_images, of_normal, labels)
    return {key: {name: round(float(value), _DIGITS) for name, value in of.items()} for key, of in found.items()}


def run(options: ScoreOptions) -> Iterator[str]:
    """Make the result of one training, or print those that there are."""
    results = Path(options.results)
    if not options.data_root:
        yield from tables(results)
        return
    root = Path(options.data_root)
    benchmark = load_dataset("defects", root)
    selection = draw_images(benchmark, benchmark.spec.title, 1, options.draw)
    path = (
        results
        / f"{benchmark.spec.title}_draw{options.draw}_{options.recipe.replace(', ', '-').replace(' ', '-')}.json"
    )
    if path.exists():
        yield f"{path} exists"
        return
    recipe = RECIPES[options.recipe]
    # Draws differ in weights and noise too.
    seeds = [options.draw + 1000 * number for number in range(recipe.seeds)]
    configs = [config_of(recipe, seed, RuntimeConfig(threads=options.threads)) for seed in seeds]
    own_process(configs[0].runtime)
    runtime = set_up(configs[0].runtime)
    # The images as they are: own photographs have no protocol.
    (sample,) = (replace(sample, spec=None) for sample in selection.training)
    trainings = [prepare([sample.read()], [sample.relative], config) for config in configs]
    start = time.perf_counter()
    scorers = [Scorer(train_pyramid(one.images, one.record, runtime)) for one in trainings]
    seconds = time.perf_counter() - start
    samples = [replace(sample, spec=None) for sample in selection.test_samples()]
    measures = compare(scorers, trainings[0], samples)
    record = {
        "set": benchmark.spec.title,
        "draw": options.draw,
        "recipe": options.recipe,
        "training_image": sample.relative,
        "images": {"good": sum(not s.label for s in samples), "bad": sum(bool(s.label) for s in samples)},
        "measures": measures,
        "seconds_training": round(seconds, 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(runtime),
    }
    results.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
    yield f"{path}: AUROC {measures[' | '.join(CHOSEN)]['auroc']:.3f}"


# --- the tables ---------------------------------------------------------------------------------------------------


def tables(results: Path) -> Iterator[str]:
    """Tables in Markdown of all results: readings, poolings and recipes; per cent, means over draws."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    of_views = [record for record in records if record["recipe"] == "views"]
    keys = list(of_views[0]["measures"]) if of_views else []
    reading, way, pooling = CHOSEN
    by_maximum = [key for key in keys if key.endswith(f"| {pooling}") or key.startswith("paper")]
    yield from _table(
        "judged by, standardised",
        {key.removesuffix(f" | {pooling}").replace(" | ", ", "): (of_views, key) for key in by_maximum},
    )
    poolings = {key.split(" | ")[2]: (of_views, key) for key in keys if key.startswith(f"{reading} | {way} |")}
    yield from _table("score of an image", poolings)
    chosen = " | ".join(CHOSEN)
    made = {recipe: [r for r in records if r["recipe"] == recipe] for recipe in RECIPES}
    known = [{_group(r) for r in part} for part in made.values() if part]
    common = set.intersection(*known) if known else set()
    recipes = {recipe: ([r for r in part if _group(r) in common], chosen) for recipe, part in made.items()}
    yield from _table("trained by", recipes)


def _table(title: str, rows: dict[str, tuple[list[dict[str, Any]], str]]) -> Iterator[str]:
    """One row for each name, the results it is over and their key: means over sets, then AUROC by set."""
    sets = sorted({_group(record) for records, _ in rows.values() for record in records})
    if not sets:
        return
    yield ""
    yield f"| {title} | AUROC | pixel AUROC | AUPRO | false alarms | recall | {' | '.join(sets)} |"
    yield "| --- " + "| ---: " * (len(sets) + 5) + "|"
    for name, (records, key) in rows.items():
        if records:
            means = [_mean_over_sets(records, key, measure) for measure in _SHOWN]
            by_set = [_mean([r for r in records if _group(r) == one], key, "auroc") for one in sets]
            bold = "**" * (name in (", ".join(CHOSEN[:2]), CHOSEN[2], "views"))
            yield f"| {bold}{name}{bold} | " + " | ".join(map(_cell, means + by_set)) + " |"


def _group(record: dict[str, Any]) -> str:
    """The set that a result counts for: the kinds of paper are one."""
    return "paper" if record["set"].startswith("PA_") else record["set"].replace("_", " ")


def _mean(records: Sequence[dict[str, Any]], key: str, measure: str) -> float | None:
    values = [record["measures"][key][measure] for record in records if measure in record["measures"][key]]
    return float(np.mean(values)) if values else None


def _mean_over_sets(records: Sequence[dict[str, Any]], key: str, measure: str) -> float | None:
    means = (
        _mean([record for record in records if _group(record) == one], key, measure)
        for one in sorted({_group(record) for record in records})
    )
    known = [mean for mean in means if mean is not None]
    return float(np.mean(known)) if known else None


def _cell(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
