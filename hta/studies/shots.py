"""What do more iterations bring with several training images? python -m hta.studies shots --data_root DIR

Trains one scale alone, by default the coarsest, on drawn images of a class of FashionMNIST, with constant learning
rates. Every so many iterations it writes the training share, and the image AUROC on a stratified part of the test
images, to a JSON file: with the statistics of the training images, and with running averages. A result with fewer
iterations is made anew. Without --data_root, the results are printed as tables.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hta.config import AblationConfig, Config, RuntimeConfig, TrainingConfig, default_config
from hta.data.benchmark import draw_images
from hta.data.loaders import load_dataset
from hta.errors import UserError
from hta.evaluation.metrics import image_auroc
from hta.evaluation.scorer import Scorer
from hta.evaluation.scores import anomaly_scores
from hta.experiments.run import score_images
from hta.files import write_atomically
from hta.models.native import choose_kernels
from hta.models.pyramid import Pyramid
from hta.models.scales import image_pyramid
from hta.models.storage import restore_scale, scale_tensors
from hta.runs import TrainingSet, prepare
from hta.runtime import Runtime, describe_machine, own_process, set_up
from hta.settings import Checked, option
from hta.training.scale import ScaleTrainer

CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "alpha=50": {"alpha": 50.0},
    "two devices": {"alpha": 50.0},
    "no generator": {},
}
MARKS = 100, 250, 500, 1000, 2000
"""Numbers of iterations after which a training is measured."""

STATISTICS = "training_images", "running"
_SETS = "fashionmnist"
_NEVER = 10**6  # when the learning rates drop: so a short training is the beginning of a longer one
_DIGITS = 4


@dataclass(frozen=True)
class ShotsOptions(Checked):
    """What is trained, on which images, for how long."""

    data_root: str = option("", "the folder that holds FashionMNIST")
    pos_class: str = option("t_shirt", "normal class")
    shots: int = option(10, "number of training images", low=1)
    draw: int = option(1, "number of their random draw, and random seed of the training", low=1)
    size: int = option(25, "side of the images in pixels", low=11)
    change: str = option("nothing", "what is changed", choices=tuple(CHANGES))
    niter: int = option(MARKS[-1], "number of iterations", low=1)
    test_limit: int = option(1000, "number of test images", low=2)
    threads: int = option(0, "number of CPU threads; 0 means one per core", low=0, high=1024)
    results: str = option("docs/shots", "folder of the JSON files")


def run(options: ShotsOptions) -> Iterator[str]:
    """Make or complete the result of one training, or print those that there are."""
    results = Path(options.results)
    if not options.data_root:
        yield from tables(results)
        return
    if options.change == "two devices" and options.shots % 2:
        raise UserError(f"--shots {options.shots}: two devices need an even number")
    change = options.change.replace(" ", "-")
    path = results / f"{options.pos_class}_{options.shots}shot_draw{options.draw}_{options.size}px_{change}.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"marks": {}}
    if record.get("test_limit", options.test_limit) != options.test_limit:
        raise UserError(f"--test_limit {options.test_limit}: {path} has {record['test_limit']}; give another --results")
    marks = [mark for mark in MARKS if mark <= options.niter]
    if not marks:
        raise UserError(f"--niter {options.niter}: the first measurement is after {MARKS[0]} iterations; give as many")
    if not set(map(str, marks)) - set(record["marks"]):
        yield f"{path} is complete"
        return
    config = _config(options)
    own_process(config.runtime)
    runtime = set_up(config.runtime)
    benchmark = load_dataset(_SETS, options.data_root)
    selection = draw_images(benchmark, options.pos_class, options.shots, options.draw)
    training_set = prepare(selection.training_images(), selection.training_ids(), config)
    test = selection.test_samples(options.test_limit)
    labels = np.array([sample.label for sample in test])
    fields = ("pos_class", "shots", "draw", "size", "change", "test_limit")
    record |= {name: getattr(options, name) for name in fields} | {"training_images": list(selection.training_ids())}
    record |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": describe_machine(runtime)}
    results.mkdir(parents=True, exist_ok=True)
    cls = TwoDevices if options.change == "two devices" else ScaleTrainer
    for iteration, scorers in trained(cls, training_set, runtime, marks):
        measured = {}
        for name, scorer in scorers.items():
            shares = score_images(scorer.shares, (s.read() for s in test), scorer.plan.working_size)[0]
            own = scorer.shares(training_set.images)[0].mean()
            measured[name] = {
                "training_share": round(float(own), _DIGITS),
                "auroc": round(float(image_auroc(labels, anomaly_scores(shares))["value"]), _DIGITS),
            }
        record["marks"][str(iteration)] = measured
        write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
        yield f"{path}: {iteration} iterations: {measured}"


def _config(options: ShotsOptions) -> Config:
    rates = {"milestone_d": _NEVER, "milestone_g": _NEVER}
    changed = CHANGES[options.change] | {"niter": options.niter, "manualSeed": options.draw}
    sizes = {"min_size": options.size, "max_size": options.size}
    config = default_config(task="class", num_transforms=42, **sizes, **rates, **changed)
    if options.change == "no generator":
        config = replace(config, model=AblationConfig(**asdict(config.model), objective="transformations_only"))
    return replace(config, runtime=RuntimeConfig(threads=options.threads))


class TwoDevices(ScaleTrainer):
    """As if each half of an even number of images were on a device of its own, which sees nothing of the other half.

    The discriminator's batch norm works on halves, and keeps the statistics of the first one; the generator is told
    the number of an image within its half. (The generator's own batch norm is left whole.)
    """

    def __init__(self, pyramid: Pyramid, images: Tensor, config: TrainingConfig):
        super().__init__(pyramid, images, config)
        self.index = self.index % (len(images) // 2)
        self.d_coverages = self.scale.discriminator.coverages(self.canvases, len(images) // 2, pyramid.device)

    def _discriminate(self, canvases: list[Tensor]) -> list[Tensor]:
        halves = zip(*(batch.unflatten(0, (-1, 2, len(self.real) // 2)).unbind(1) for batch in canvases), strict=True)
        body, logits = self.scale.discriminator.body, []
        momentum = body.blocks[0].norm.momentum
        for half in halves:
            logits.append(super()._discriminate([batch.flatten(0, 1) for batch in half]))
            body.set_momentum(0.0)  # of the second half
        body.set_momentum(momentum)
        parts = ([one.unflatten(0, (-1, len(self.real) // 2)) for one in pair] for pair in zip(*logits, strict=True))
        return [torch.cat(pair, dim=1).flatten(0, 1) for pair in parts]


def trained(
    cls: type[ScaleTrainer], training_set: TrainingSet, runtime: Runtime, marks: list[int]
) -> Iterator[tuple[int, dict[str, Scorer]]]:
    """Train the only scale, and yield models of it after so many iterations, by what statistics they keep."""
    model, training = training_set.record.config.model, training_set.record.config.training
    kernels = choose_kernels(runtime.device, runtime.compile)

    def trainer(statistics: str) -> ScaleTrainer:
        shape = training_set.record.image_size, training_set.record.num_images
        pyramid = Pyramid(model, *shape, runtime.device, runtime.dtype, kernels)
        (level,) = image_pyramid(training_set.images, pyramid.plan.sizes)
        return cls(pyramid, level, replace(training, batch_statistics=statistics))

    def frozen(statistics: str) -> Scorer:
        finished = trainer(statistics)
        restore_scale(finished.scale, scale_tensors(in_training.scale), "the training")
        finished.pyramid.scales.append(finished.finish())
        return Scorer(finished.pyramid)

    in_training = trainer(STATISTICS[0])
    for _ in in_training.run():
        if in_training.iteration in marks:
            yield in_training.iteration, {name: frozen(name) for name in STATISTICS}


# --- the tables ---------------------------------------------------------------------------------------------------


def tables(results: Path) -> Iterator[str]:
    """One table in Markdown for each statistics: training share and AUROC in per cent after so many iterations."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    records.sort(key=lambda r: (r["shots"], r["size"], list(CHANGES).index(r["change"]), r["pos_class"], r["draw"]))
    for statistics in STATISTICS:
        yield ""
        yield f"| batch_statistics={statistics} | {' | '.join(map(str, MARKS))} |"
        yield "| --- " + "| ---: " * len(MARKS) + "|"
        for record in records:
            cells = [_cell(record["marks"].get(str(mark), {}).get(statistics)) for mark in MARKS]
            images = f"{record['shots']} image{'s' * (record['shots'] > 1)}"
            change = "" if record["change"] == "nothing" else f", {record['change']}"
            place = f"{record['pos_class']}, {images}, draw {record['draw']}, {record['size']} px"
            yield f"| {place}{change} | {' | '.join(cells)} |"


def _cell(measured: dict[str, float] | None) -> str:
    return "" if measured is None else f"{100 * measured['auroc']:.1f} ({measured['training_share']:.3f})"
