"""Train a model on one normal image, or a few: python main_train.py --input_name brick.png

Or on images of a data set, by the paper's protocol: python main_train.py --dataset mnist --data_root DIR --pos_class 8
"""

import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from hta import runs
from hta.cli import Parser, add_settings, run_command, take_settings
from hta.config import Config, ModelConfig, RuntimeConfig, TrainingConfig
from hta.data.benchmark import select
from hta.data.folders import find_training_images, load_training_images, locate
from hta.data.specs import DatasetOptions, default_model_name, default_task
from hta.errors import UserError
from hta.files import printable
from hta.model import MODELS_DIR, Model, load
from hta.models.pyramid import plan_of
from hta.models.storage import RunFolder
from hta.runtime import resolve
from hta.settings import Checked, option
from hta.training.report import NEAR_CHANCE, write_train_page
from hta.training.samples import SampleRequest, write_samples

logger = logging.getLogger("hta.main_train")

SAMPLES_FOLDER = "samples"
_LONGEST_NAME = 200  # bytes; file systems take 255, and a folder in the making has a longer name


@dataclass(frozen=True)
class InputOptions(Checked):
    """Which images, and where the model goes."""

    input_name: tuple = option((), "a file of --input_dir or a path; several files, or a folder, for several shots")
    input_dir: str = option("Input/Images", "folder in which names without a path are looked for first")
    num_images: int | None = option(
        None,
        "how many images to train on: of a folder the first by name, which must hold so many, by default all; of a "
        "--dataset by default 1",
        low=1,
    )
    size_image: int | None = option(None, "resize all images to this shorter side first", low=11, unit="px")
    name: str | None = option(
        None, "name of the model; by default the first file's without suffix, or the folder's, or told from --dataset"
    )
    models_dir: str = option("TrainedModels", "folder of the models")
    overwrite: bool = option(
        False,
        "replace what is there: the model with its samples and results, or with --mode random_samples the samples; not "
        "a folder that holds anything else",
    )
    resume: bool = option(False, "go on where a stopped run left off")
    dry_run: bool = option(False, "print the settings and the scales, write nothing")

    def __post_init__(self):
        super().__post_init__()
        if self.overwrite and self.resume:
            raise UserError("--overwrite contradicts --resume, which goes on with what is there: give one of the two")


@dataclass(frozen=True)
class SampleOptions(Checked):
    """Random samples, after the training or on their own."""

    mode: str = option("train", "random_samples draws more from a trained model", choices=("train", "random_samples"))
    num_samples: int = option(50, "random samples to draw, 0 for none after the training", low=0, high=100_000)
    gen_start_scale: int = option(0, "scales below this one reconstruct, noise is fresh from there on", low=0)
    scale_h: float = option(1.0, "factor of the width of random samples", low=0.1, high=16)
    scale_v: float = option(1.0, "factor of the height of random samples", low=0.1, high=16)


GROUPS = {
    "input and output": InputOptions,
    "data set instead of --input_name": DatasetOptions,
    "model": ModelConfig,
    "training": TrainingConfig,
    "random samples": SampleOptions,
    "machine": RuntimeConfig,
}


@dataclass(frozen=True)
class Source:
    """Where the training images come from.

    Attributes:
        name: what the model is called by default.
        read: given the settings, returns the images, `(H, W, 3)` float32 in [0, 1], what names them, and the settings
            with what the images decide.
        test_words: arguments of main_eval.py that score images like them.
    """

    name: str
    read: Callable[[Config], tuple[Iterable[np.ndarray], list[str], Config]]
    test_words: list[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit status."""
    return run_command(
        _command,
        argv,
        "a run in training keeps its last checkpoint; the same command with --resume goes on from it",
        out_of_memory="give a smaller --max_size or --nfc, fewer images, or draw smaller samples",
    )


def entry_point() -> None:
    """Run as an installed command."""
    sys.exit(main())


def _command(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="main_train.py", description=__doc__)
    for title, cls in GROUPS.items():
        add_settings(parser, title, cls)
    given = vars(parser.parse_args(argv))
    task = {"task": default_task(given["dataset"])} if "dataset" in given else {}
    parts = {cls: take_settings(cls, task | given) for cls in GROUPS.values()}
    options, samples = parts[InputOptions], parts[SampleOptions]
    config = Config(parts[ModelConfig], parts[TrainingConfig], parts[RuntimeConfig])
    _refuse_without_effect(samples.mode, given)
    if samples.mode == "random_samples":
        _draw_random_samples(options, samples, config)
    else:
        _train(_source(options, parts[DatasetOptions], given), options, samples, config, given)


def _refuse_without_effect(mode: str, given: dict[str, Any]) -> None:
    """Refuse options that a mode would silently ignore."""
    shared = {f.name for f in fields(RuntimeConfig)} | {"mode", "input_name", "models_dir", "name", "overwrite"}
    of_samples = {"num_samples", "manualSeed", "gen_start_scale", "scale_h", "scale_v"}
    idle = (
        set(given) - shared - of_samples
        if mode == "random_samples"
        else set(given) & {"gen_start_scale", "scale_h", "scale_v"}
    )
    if idle:
        raise UserError(f"--{sorted(idle)[0]}: has no effect with --mode {mode}; leave it out")


def _source(options: InputOptions, benchmark: DatasetOptions, given: dict[str, Any]) -> Source:
    """Tell own images from those of a data set; options of the one are refused beside the other."""
    if benchmark.dataset is None:
        stray = next((f.name for f in fields(DatasetOptions) if f.name in given), None)
        if stray is not None:
            raise UserError(f"--{stray}: has no effect without --dataset; give the data set, or leave it out")
        _require_input_name(options)
        return _own_images(options)
    stray = next((name for name in ("input_name", "input_dir", "size_image") if name in given), None)
    if stray is not None:
        raise UserError(
            f"--{stray}: contradicts --dataset, whose protocol says what to train on; leave out one of them"
        )
    return _images_of_dataset(options, benchmark)


def _require_input_name(options: InputOptions) -> None:
    if not options.input_name:
        raise UserError("--input_name is missing: name an image of your normal state, such as --input_name brick.png")


def _own_images(options: InputOptions) -> Source:
    """Image files, or a folder of them."""
    paths = find_training_images(options.input_name, Path(options.input_dir), options.num_images)
    named = locate(options.input_name[0], Path(options.input_dir))

    def read(config: Config) -> tuple[Iterable[np.ndarray], list[str], Config]:
        return load_training_images(paths, options.size_image), [path.name for path in paths], config

    name = named.resolve().name if named.is_dir() else named.stem
    return Source(name, read, ["--test_dir", "YOUR_TEST_FOLDER"])


def _images_of_dataset(options: InputOptions, benchmark: DatasetOptions) -> Source:
    """Images of a data set, chosen and prepared by the paper's protocol."""
    num_images = options.num_images or 1

    def read(config: Config) -> tuple[Iterable[np.ndarray], list[str], Config]:
        # Whether the set is gray is not yet known here, and matters not: only the 4 rotations are prepared otherwise.
        selection = select(benchmark, num_images, config.resolved(is_gray=False).model.num_transforms)
        # The set decides, not the images drawn: one of CIFAR10 may happen to be gray.
        settled = config.resolved(is_gray=selection.benchmark.spec.is_gray)
        return selection.training_images(), selection.training_ids(), settled

    words = ["--dataset", benchmark.dataset, "--data_root", benchmark.data_root, "--pos_class", benchmark.pos_class]
    return Source(default_model_name(benchmark, num_images), read, words)


def _train(
    source: Source, options: InputOptions, samples: SampleOptions, config: Config, given: dict[str, Any]
) -> None:
    """Train, then draw samples and check what was learnt."""
    folder = RunFolder(Path(options.models_dir) / _checked_name(source.name if options.name is None else options.name))
    if options.resume:
        runs.check_resumable(folder)
        # "auto" asks for nothing: the run has settled its precision.
        given = {name: value for name, value in given.items() if (name, value) != ("precision", "auto")}
        config = _settings_of_run(folder, config, given)
    training_set = runs.prepare(*source.read(config))
    if options.resume:
        runs.check_same_run(folder, training_set, tuple(given))
    else:
        runs.check_vacant(folder, overwrite=options.overwrite)
    if options.dry_run:
        _print_plan(folder, training_set)
        return
    overwrite = options.overwrite
    with folder.locked() if options.resume else runs.begun(folder, training_set, overwrite=overwrite):
        model = runs.go_on(folder, config.runtime if options.resume else None)
        request = SampleRequest(samples.num_samples, config.training.manualSeed)
        write_samples(model.pyramid, request, folder.path / SAMPLES_FOLDER, reconstruction=True)
        shares = model.training_vote_shares()
        page = write_train_page(
            folder.path, model.record, model.pyramid, model.training_images, shares, config.training.manualSeed
        )
        model.keep_calibration()
        folder.finish()
    # Last: a reader of the output that has gone must not leave the model unfinished.
    _report(model, options, source.test_words, shares, page)


def _settings_of_run(folder: RunFolder, config: Config, given: dict[str, Any]) -> Config:
    """The settings of a begun run, with those that were given now put over them."""
    kept = folder.read_record().config
    if "device" in given or "not_cuda" in given:
        kept = replace(kept, runtime=replace(kept.runtime, device=None, not_cuda=False))

    def over(before, now):
        said = {name: getattr(now, name) for name in given if hasattr(now, name)}
        return replace(before, **said)

    return Config(
        over(kept.model, config.model), over(kept.training, config.training), over(kept.runtime, config.runtime)
    )


def _checked_name(name: str) -> str:
    """Refuse a name of a model that is not one plain folder name."""
    if not name or name.startswith(".") or set(name) & set("/\\:\0") or len(os.fsencode(name)) > _LONGEST_NAME:
        raise UserError(
            f"--name {name[:_LONGEST_NAME]!r}: must be a plain folder name of at most {_LONGEST_NAME} bytes (letters "
            "that are not ASCII take two or more), without a path or a leading dot"
        )
    return name


def _print_plan(folder: RunFolder, training_set: runs.TrainingSet) -> None:
    """Print what a run would do."""
    record = training_set.record
    plan = plan_of(record.config.model, record.image_size)
    print(json.dumps(record.config.to_dict(), indent=2))
    print(
        f"{len(record.sources)} training image(s) of {record.image_size[1]} x {record.image_size[0]} px: "
        f"{printable(', '.join(record.sources))}"
    )
    print(f"{plan.num_scales} scales of {plan.describe()} px, networks of {' '.join(map(str, plan.widths))} channels")
    print(f"{record.config.model.num_transforms} transformations, {record.config.training.niter} iterations a scale")
    runtime = resolve(record.config.runtime)
    print(f"on {runtime.device}, {str(runtime.dtype).removeprefix('torch.')}; would write {printable(folder.path)}")


def _report(model: Model, options: InputOptions, test_words: Sequence[str], shares: np.ndarray, page: Path) -> None:
    """Say what was learnt on each scale, and what to type next."""
    chance = 1 / model.record.config.model.num_transforms
    print(f"vote share of the right transformation on the training images (chance {chance:.3f}):")
    for n, share in enumerate(shares.mean(axis=0)):
        height, width = model.pyramid.plan.sizes[n]
        remark = "  near chance: little was learnt here, try more --niter" if share < NEAR_CHANCE * chance else ""
        print(f"  scale {n} ({width} x {height} px): {share:.3f}{remark}")
    print(f"model: {printable(model.folder.path)}")
    print(f"page: {printable(page)}")
    print(f"next: {printable(_next_command(model, options, test_words))}")


def _next_command(model: Model, options: InputOptions, test_words: Sequence[str]) -> str:
    words = ["python", "main_eval.py", "--input_name", model.folder.path.name]
    if Path(options.models_dir) != MODELS_DIR:
        words += ["--models_dir", options.models_dir]
    return shlex.join([*words, *test_words])


def _name_of_model(options: InputOptions) -> str:
    """The one model that samples are drawn from."""
    names = options.input_name if options.name is None else (options.name, *options.input_name)
    if not names:
        _require_input_name(options)
    if len(names) > 1:
        raise UserError(f"--input_name {names[-1]}: samples are drawn from one model; name it alone")
    if not names[0]:
        raise UserError("--name or --input_name: is empty; give the name of a trained model")
    return names[0]


def _draw_random_samples(options: InputOptions, samples: SampleOptions, config: Config) -> None:
    """Draw more samples from a trained model, into a folder of their own."""
    if not samples.num_samples:
        raise UserError("--num_samples 0: leaves nothing to draw; give 1 or more")
    model = load(_name_of_model(options), options.models_dir, config.runtime)
    runs.check_told_apart(model.record.num_images, model.runtime)
    last = model.pyramid.plan.num_scales - 1
    if samples.gen_start_scale > last:
        raise UserError(f"--gen_start_scale {samples.gen_start_scale}: the model's finest scale is {last}")
    seed = config.training.manualSeed
    target = f"random_samples_scale{samples.gen_start_scale}_h{samples.scale_h:g}_v{samples.scale_v:g}_seed{seed}"
    folder = model.folder.path / target
    if folder.exists():
        if not folder.is_dir():
            raise UserError(f"{folder}: is a file where the samples should go; move it away")
        if not options.overwrite:
            raise UserError(f"{folder}: exists; give --overwrite to replace it, or another --manualSeed")
        runs.check_overwritable(model.folder, "give another --manualSeed", target)
    request = SampleRequest(samples.num_samples, seed, samples.gen_start_scale, samples.scale_v, samples.scale_h)
    write_samples(model.pyramid, request, folder)
    print(f"{samples.num_samples} samples: {printable(folder)}")


if __name__ == "__main__":
    entry_point()
