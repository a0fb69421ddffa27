"""Train a model on one or a few normal images:
    python main_train.py --input_name brick.png

Train on images of a data set, as in the paper:
    python main_train.py --dataset mnist --data_root DIR --pos_class 8
"""

# torch, and everything that needs it, is imported where it is used: --help and wrong options respond without delay.

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hta.cli import add_settings, announce_torch, command_line, run_command, script_parser, take_settings
from hta.config import NUM_SAMPLES, Config, ModelConfig, RuntimeConfig, TrainingConfig, WatchConfig
from hta.data.specs import DatasetOptions, default_model_name, default_task
from hta.errors import UserError
from hta.files import printable
from hta.settings import Checked, option, refuse_given
from hta.training.logs import check_installed

if TYPE_CHECKING:
    import numpy as np

    from hta.model import Model
    from hta.models.storage import RunFolder
    from hta.runs import TrainingSet

_USAGE = """main_train.py --input_name IMAGE [--name MODEL] [--task {defect,class}]
         [--niter INT] [--max_size PX] [--overwrite | --resume] [--dry_run]
       main_train.py --dataset NAME --data_root DIR --pos_class CLASS ...
       main_train.py --mode random_samples --input_name MODEL ...
       main_train.py --help | --version"""
_NO_NAME = "--input_name is missing: name an image of the normal state, such as --input_name brick.png"
_LONGEST_NAME = 200  # bytes; file systems allow 255, and temporary folders have longer names


@dataclass(frozen=True)
class InputOptions(Checked):
    """Which images to train on, and where to write the model."""

    input_name: tuple[str, ...] = option(
        (),
        "the training image: a file in --input_dir or a path; for several training images, several files or a folder",
    )
    input_dir: str = option("Input/Images", "folder that is searched first for file names without a path")
    num_images: int | None = option(
        None,
        "number of training images to take: from a folder, which must contain that many, the first by name (by default "
        "all); from a --dataset, as --index_download says (by default 1)",
        low=1,
    )
    size_image: int | None = option(
        None, "first resize all images so that their shorter side has this length", low=11, unit="px"
    )
    name: str | None = option(
        None,
        "name of the model; by default the name of the first file without its suffix, the name of the folder, or a "
        "name made from --dataset and its options",
    )
    models_dir: str = option("TrainedModels", "folder that holds the models")
    overwrite: bool = option(
        False,
        "replace an existing model together with its samples and results or, with --mode random_samples, existing "
        "samples; folders that hold any other files are never replaced",
    )
    resume: bool = option(False, "continue an interrupted run")
    dry_run: bool = option(False, "print the settings and the scales without training or writing anything")

    def __post_init__(self):
        super().__post_init__()
        if self.overwrite and self.resume:
            raise UserError("--overwrite contradicts --resume, which continues an existing run: give one of the two")


@dataclass(frozen=True)
class SampleOptions(Checked):
    """Random samples, after training or from an existing model."""

    mode: str = option(
        "train", "train a model, or draw random samples from a trained one", choices=("train", "random_samples")
    )
    num_samples: int = option(
        NUM_SAMPLES, "number of random samples to draw; 0 draws none after training", low=0, high=100_000
    )
    gen_start_scale: int = option(
        0, "first scale with fresh noise; coarser scales reconstruct the training image", low=0
    )
    scale_h: float = option(1.0, "factor by which to multiply the width of random samples", low=0.1, high=16)
    scale_v: float = option(1.0, "factor by which to multiply the height of random samples", low=0.1, high=16)


GROUPS = {
    "input and output": InputOptions,
    "data set instead of --input_name": DatasetOptions,
    "model": ModelConfig,
    "training": TrainingConfig,
    "random samples": SampleOptions,
    "watching the training": WatchConfig,
    "machine": RuntimeConfig,
}
_ONLY_RANDOM_SAMPLES = {"gen_start_scale", "scale_h", "scale_v"}
_ALSO_RANDOM_SAMPLES = {"mode", "input_name", "models_dir", "name", "overwrite", "num_samples", "manualSeed"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit status."""
    return run_command(
        _command,
        argv,
        "an unfinished training keeps its last checkpoint; continue with the same command and --resume",
        out_of_memory="give a smaller --max_size or --nfc, fewer images, or draw smaller samples",
    )


def _command(argv: Sequence[str] | None) -> None:
    parser = script_parser("train", __doc__, _USAGE)
    for title, cls in GROUPS.items():
        add_settings(parser, title, cls)
    given = vars(parser.parse_args(argv))
    # Data sets are those of the paper's tables.
    of_dataset = {"task": default_task(given["dataset"]), "recipe": "paper"} if "dataset" in given else {}
    parts = {cls: take_settings(cls, of_dataset | given) for cls in GROUPS.values()}
    options, samples = parts[InputOptions], parts[SampleOptions]
    config = Config(parts[ModelConfig], parts[TrainingConfig], parts[RuntimeConfig])
    allowed = _ONLY_RANDOM_SAMPLES | _ALSO_RANDOM_SAMPLES | {f.name for f in fields(RuntimeConfig)}
    draws = samples.mode == "random_samples"
    idle = set(given) - allowed if draws else set(given) & _ONLY_RANDOM_SAMPLES
    refuse_given(sorted(idle), given, f"has no effect with --mode {samples.mode}; leave it out")
    if draws:
        _draw_random_samples(options, samples, config)
    else:
        _train(parts, config, given)


def _default_name(options: InputOptions, data: DatasetOptions, given: dict[str, Any]) -> str:
    """The name of a model without --name; options of image files are refused with a data set, and the reverse."""
    if data.dataset is not None:
        reason = "contradicts --dataset, whose protocol defines the training images; leave out one of them"
        refuse_given(["input_name", "input_dir", "size_image"], given, reason)
        return default_model_name(data, options.num_images or 1)
    refuse_given([f.name for f in fields(DatasetOptions)], given, "has no effect without --dataset; leave it out")
    if not options.input_name:
        raise UserError(_NO_NAME)
    from hta.data.folders import locate

    named = locate(options.input_name[0], Path(options.input_dir))
    return named.resolve().name if named.is_dir() else named.stem


def _read_images(
    options: InputOptions, data: DatasetOptions, config: Config
) -> tuple[Iterable["np.ndarray"], list[str], Config]:
    """The training images, `(H, W, 3)` float32 in [0, 1], their names, and the settings with what they determine."""
    if data.dataset is None:
        from hta.data.folders import find_training_images, load_training_images

        paths = find_training_images(options.input_name, Path(options.input_dir), options.num_images)
        return load_training_images(paths, options.size_image), [path.name for path in paths], config
    from hta.data.benchmark import select

    # Only the 4 rotations are prepared differently, which does not depend on whether the set is gray.
    selection = select(data, options.num_images or 1, config.resolved(is_gray=False).model.num_transforms)
    # The set decides, not the images drawn: one from CIFAR10 may happen to be gray.
    resolved = config.resolved(is_gray=selection.benchmark.spec.is_gray)
    return selection.training_images(), selection.training_ids(), resolved


def _train(parts: dict[type, Any], config: Config, given: dict[str, Any]) -> None:
    """Train, and say what was learnt."""
    options, data, samples, watch = (parts[c] for c in (InputOptions, DatasetOptions, SampleOptions, WatchConfig))
    check_installed(watch.log)
    announce_torch()
    from hta import runs
    from hta.models.storage import RunFolder
    from hta.runtime import own_process

    default_name = _default_name(options, data, given)
    folder = RunFolder(Path(options.models_dir) / _checked_name(default_name if options.name is None else options.name))
    if options.resume:
        runs.check_resumable(folder)
        # "auto" asks for nothing: the run has a precision already.
        given = {name: value for name, value in given.items() if (name, value) != ("precision", "auto")}
        config = _settings_of_run(folder, config, given)
    training_set = runs.prepare(*_read_images(options, data, config))
    if options.dry_run:
        if options.resume:
            runs.check_same_run(folder, training_set, given)
        else:
            runs.check_vacant(folder, overwrite=options.overwrite)
        _print_plan(folder, training_set, samples.num_samples)
        return
    own_process(training_set.record.config.runtime)
    if options.resume:
        run = runs.resumed_run(folder, training_set, given)
    else:
        run = runs.new_run(folder, training_set, overwrite=options.overwrite)
    next_command = _next_command(folder, options, data)
    with run as training_set:
        model, shares = runs.train_run(folder, training_set, samples.num_samples, next_command, watch)
    # Last: if the reader of the output is gone, the model is finished nevertheless.
    _report(model, folder, shares)
    print(f"next: {next_command}")


def _next_command(folder: "RunFolder", options: InputOptions, data: DatasetOptions) -> str:
    """The command that scores images with the model."""
    arguments = {"input_name": folder.path.name}
    if options.models_dir != InputOptions.models_dir:
        arguments["models_dir"] = options.models_dir
    if data.dataset is None:
        arguments["test_dir"] = "YOUR_TEST_FOLDER"
    else:
        arguments |= {"dataset": data.dataset, "data_root": data.data_root, "pos_class": str(data.pos_class)}
    return command_line("eval", **arguments)


def _settings_of_run(folder: "RunFolder", config: Config, given: dict[str, Any]) -> Config:
    """The settings of an existing run, overridden by those that were given explicitly."""
    kept = folder.read_record().config
    if "device" in given or "not_cuda" in given:
        kept = replace(kept, runtime=replace(kept.runtime, device=None, not_cuda=False))
    parts = {f.name: getattr(config, f.name) for f in fields(Config)}
    chosen = {part: {name: getattr(now, name) for name in given if hasattr(now, name)} for part, now in parts.items()}
    return Config(**{part: replace(getattr(kept, part), **chosen[part]) for part in parts})


def _checked_name(name: str) -> str:
    """Refuse a model name that is not a plain folder name; Windows takes `a`, `a.` and `a ` for one folder."""
    if not name or name != name.strip(" .") or set(name) & set("/\\:\0") or len(os.fsencode(name)) > _LONGEST_NAME:
        raise UserError(
            f"--name {name[:_LONGEST_NAME]!r}: must be a plain folder name of at most {_LONGEST_NAME} bytes (non-ASCII "
            "letters take two or more), without a path, or dots and spaces around it"
        )
    return name


def _print_plan(folder: "RunFolder", training_set: "TrainingSet", num_samples: int) -> None:
    """Print what a run would do."""
    from hta.models.scales import plan_of
    from hta.runtime import own_process, resolve
    from hta.training.progress import format_duration
    from hta.training.trainer import estimate_seconds

    record = training_set.record
    plan = plan_of(record.config.model, record.image_size)
    print(json.dumps(asdict(record.config), indent=2))
    (height, width), names = record.image_size, printable(", ".join(record.sources))
    print(f"{record.num_images} training image(s) of {width} x {height} px: {names}")
    print(f"{plan.num_scales} scales of {plan.describe()} px, networks of {' '.join(map(str, plan.widths))} channels")
    training = record.config.training
    print(f"{record.config.model.num_transforms} transformations, {training.niter} iterations per scale, ", end="")
    print(f"recipe {training.recipe}")
    runtime = resolve(record.config.runtime)
    print(f"on {runtime.device}, {str(runtime.dtype).removeprefix('torch.')}; would write {printable(folder.path)}")
    own_process(record.config.runtime)
    seconds = estimate_seconds(training_set.images, record, runtime, num_samples)
    print(f"would take roughly {format_duration(seconds)}, estimated from a few iterations")


def _report(model: "Model", folder: "RunFolder", shares: "np.ndarray") -> None:
    """Say what was learnt at each scale, and where to find it."""
    from hta.training.report import NEAR_CHANCE, PAGE_FILE

    chance = 1 / model.record.config.model.num_transforms
    print(f"vote share of the correct transformation on the training images (chance {chance:.3f}):")
    for n, share in enumerate(shares.mean(axis=0)):
        height, width = model.pyramid.plan.sizes[n]
        remark = "  near chance: little was learnt here, try a larger --niter" if share < NEAR_CHANCE * chance else ""
        print(f"  scale {n} ({width} x {height} px): {share:.3f}{remark}")
    print(f"model: {printable(folder.path)}")
    print(f"page: {printable(folder.path / PAGE_FILE)}")


def _draw_random_samples(options: InputOptions, samples: SampleOptions, config: Config) -> None:
    """Draw samples from a trained model, into a folder of their own."""
    if not samples.num_samples:
        raise UserError("--num_samples 0: leaves nothing to draw; give 1 or more")
    names = options.input_name if options.name is None else (options.name, *options.input_name)
    if len(names) > 1:
        raise UserError(f"--input_name {names[-1]}: samples are drawn from one model; give one name")
    if not names:
        raise UserError(_NO_NAME)
    if not names[0]:
        raise UserError("--name or --input_name: is empty; give the name of a trained model")
    announce_torch()
    from hta import runs
    from hta.model import load
    from hta.runtime import own_process
    from hta.training.samples import draw_samples, write_samples

    own_process(config.runtime)
    model = load(names[0], options.models_dir, config.runtime)
    folder = model.saved_folder
    runs.check_image_count(model.record.num_images, model.runtime)
    finest = model.pyramid.plan.num_scales - 1
    if samples.gen_start_scale > finest:
        raise UserError(f"--gen_start_scale {samples.gen_start_scale}: the model's finest scale is {finest}")
    seed = config.training.manualSeed
    target = f"random_samples_scale{samples.gen_start_scale}_h{samples.scale_h:g}_v{samples.scale_v:g}_seed{seed}"
    place = folder.path / target
    if place.exists():
        if not place.is_dir():
            raise UserError(f"{place}: is a file where the samples should go; move it away")
        if not options.overwrite:
            raise UserError(f"{place}: exists; give --overwrite to replace it, or another --manualSeed")
        runs.check_overwritable(folder, "give another --manualSeed", target)
    start, scale_v, scale_h = samples.gen_start_scale, samples.scale_v, samples.scale_h
    write_samples(place, draw_samples(model.pyramid, samples.num_samples, seed, start, scale_v, scale_h))
    print(f"{samples.num_samples} samples: {printable(place)}")


if __name__ == "__main__":
    sys.exit(main())
