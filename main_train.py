"""Train a model on one normal image, or a few: python main_train.py --input_name brick.png"""

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from hta import api
from hta.cli import Parser, add_settings, run_command, take_settings
from hta.config import Checked, Config, ModelConfig, RuntimeConfig, TrainingConfig, option
from hta.data.folders import find_training_images, load_training_images
from hta.errors import UserError
from hta.models.storage import RunFolder
from hta.runtime import resolve
from hta.training.samples import SampleRequest, write_samples

logger = logging.getLogger("hta.main_train")

SAMPLES_FOLDER = "samples"
_LONGEST_NAME = 100


@dataclass(frozen=True)
class InputOptions(Checked):
    """Which images, and where the model goes."""

    input_name: tuple = option((), "a file of --input_dir or a path; several files, or a folder, for several shots")
    input_dir: str = option("Input/Images", "folder in which names are looked for")
    num_images: int | None = option(None, "at most this many images of a folder", low=1)
    size_image: int | None = option(None, "resize all images to this shorter side first", low=11, unit="px")
    name: str | None = option(None, "name of the model; by default the first file's without suffix, or the folder's")
    models_dir: str = option("TrainedModels", "folder of the models")
    overwrite: bool = option(False, "replace what is there")
    resume: bool = option(False, "go on where a stopped run left off")
    dry_run: bool = option(False, "print the settings and the scales, write nothing")


@dataclass(frozen=True)
class SampleOptions(Checked):
    """Random samples, after the training or on their own."""

    mode: str = option("train", "random_samples draws more from a trained model", choices=("train", "random_samples"))
    num_samples: int = option(50, "random samples to draw", low=0, high=100_000)
    gen_start_scale: int = option(0, "scales below this one reconstruct, noise is fresh from there on", low=0)
    scale_h: float = option(1.0, "factor of the width of random samples", above=0, high=16)
    scale_v: float = option(1.0, "factor of the height of random samples", above=0, high=16)


GROUPS = {
    "input and output": InputOptions,
    "model": ModelConfig,
    "training": TrainingConfig,
    "random samples": SampleOptions,
    "machine": RuntimeConfig,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script and return its exit status."""
    return run_command(
        _command, argv, "a run in training keeps its last checkpoint; the same command with --resume goes on from it"
    )


def entry_point() -> None:
    """Run as an installed command."""
    sys.exit(main())


def _command(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="main_train.py", description=__doc__)
    for title, cls in GROUPS.items():
        add_settings(parser, title, cls)
    given = vars(parser.parse_args(argv))
    parts = {cls: take_settings(cls, given) for cls in GROUPS.values()}
    options, samples = parts[InputOptions], parts[SampleOptions]
    config = Config(parts[ModelConfig], parts[TrainingConfig], parts[RuntimeConfig])
    if not options.input_name:
        raise UserError("--input_name is missing: name an image of your normal state, such as --input_name brick.png")
    _refuse_without_effect(samples.mode, given)
    if samples.mode == "random_samples":
        _draw_random_samples(options, samples, config)
    else:
        _train(options, samples, config, given)


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


def _train(options: InputOptions, samples: SampleOptions, config: Config, given: dict[str, Any]) -> None:
    """Train, then draw samples and check what was learnt."""
    paths = find_training_images(options.input_name, Path(options.input_dir), options.num_images)
    folder = RunFolder(Path(options.models_dir) / _model_name(options, paths))
    if options.resume:
        api.check_resumable(folder)
        given = {name: value for name, value in given.items() if value != "auto"}  # the run has settled it
        config = _settings_of_run(folder, config, given)
    training_set = api.prepare(load_training_images(paths, options.size_image), [p.name for p in paths], config)
    if options.resume:
        api.check_same_run(folder, training_set, tuple(given))
    else:
        api.check_vacant(folder, overwrite=options.overwrite)
    if options.dry_run:
        _print_plan(folder, training_set)
        return
    if not options.resume:
        api.begin(folder, training_set, overwrite=options.overwrite)
    model = api.go_on(folder, config.runtime if options.resume else None)
    request = SampleRequest(samples.num_samples, config.training.manualSeed)
    write_samples(model.pyramid, request, folder.path / SAMPLES_FOLDER, reconstruction=True)
    _report(model, options)
    folder.finish()


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


def _model_name(options: InputOptions, paths: Sequence[Path]) -> str:
    """The name of the model, checked to be one plain folder name."""
    name = options.name
    if name is None:
        is_folder = len(options.input_name) == 1 and paths[0].name != Path(options.input_name[0]).name
        name = paths[0].resolve().parent.name if is_folder else paths[0].stem
    if not name or name.startswith(".") or set(name) & set("/\\:\0") or len(name) > _LONGEST_NAME:
        raise UserError(
            f"--name {name[:_LONGEST_NAME]!r}: must be a plain folder name of at most {_LONGEST_NAME} characters, "
            "without a path or a leading dot"
        )
    return name


def _print_plan(folder: RunFolder, training_set: api.TrainingSet) -> None:
    """Print what a run would do."""
    record = training_set.record
    plan = api.plan_of(record.config.model, record.image_size)
    print(json.dumps(record.config.to_dict(), indent=2))
    print(
        f"{len(record.sources)} training image(s) of {record.image_size[1]} x {record.image_size[0]} px: "
        f"{', '.join(record.sources)}"
    )
    print(f"{plan.num_scales} scales of {plan.describe()} px, networks of {' '.join(map(str, plan.widths))} channels")
    print(f"{record.config.model.num_transforms} transformations, {record.config.training.niter} iterations a scale")
    runtime = resolve(record.config.runtime)
    print(f"on {runtime.device}, {str(runtime.dtype).removeprefix('torch.')}; would write {folder.path}")


def _report(model: api.Model, options: InputOptions) -> None:
    """Say what was learnt on each scale, and what to type next."""
    chance = 1 / model.record.config.model.num_transforms
    print(f"vote share of the right transformation on the training images (chance {chance:.3f}):")
    for n, share in enumerate(model.training_vote_shares().mean(axis=0)):
        height, width = model.pyramid.plan.sizes[n]
        remark = "  near chance: little was learnt here, try more --niter" if share < 1.5 * chance else ""
        print(f"  scale {n} ({width} x {height} px): {share:.3f}{remark}")
    print(f"model: {model.folder.path}")
    print("next: " + _next_command(model, options))


def _next_command(model: api.Model, options: InputOptions) -> str:
    words = ["python", "main_eval.py", "--input_name", model.folder.path.name]
    if Path(options.models_dir) != api.MODELS_DIR:
        words += ["--models_dir", options.models_dir]
    return shlex.join([*words, "--test_dir", "YOUR_TEST_FOLDER"])


def _draw_random_samples(options: InputOptions, samples: SampleOptions, config: Config) -> None:
    """Draw more samples from a trained model, into a folder of their own."""
    model = api.load(options.name or options.input_name[0], options.models_dir, config.runtime)
    last = model.pyramid.plan.num_scales - 1
    if samples.gen_start_scale > last:
        raise UserError(f"--gen_start_scale {samples.gen_start_scale}: the model's finest scale is {last}")
    seed = config.training.manualSeed
    target = f"random_samples_scale{samples.gen_start_scale}_h{samples.scale_h:g}_v{samples.scale_v:g}_seed{seed}"
    folder = model.folder.path / target
    if folder.exists() and not options.overwrite:
        raise UserError(f"{folder}: exists; give --overwrite to replace it, or another --manualSeed")
    request = SampleRequest(samples.num_samples, seed, samples.gen_start_scale, samples.scale_v, samples.scale_h)
    write_samples(model.pyramid, request, folder)
    print(f"{samples.num_samples} samples: {folder}")


if __name__ == "__main__":
    entry_point()
