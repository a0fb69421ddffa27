"""The library: train a model, or load one, to be used as `hta.trained_model.Model`."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from hta.config import Config, ModelConfig, RuntimeConfig, TrainingConfig
from hta.errors import UserError
from hta.imaging import IMAGE_SUFFIXES, to_array
from hta.models.storage import IMAGES_FILE, RunFolder
from hta.runtime import set_up
from hta.trained_model import ImageLike, Model, as_several
from hta.training_runs import begun, go_on, prepare, train_model

MODELS_DIR = Path("TrainedModels")


def train(
    images: ImageLike | Sequence[ImageLike],
    config: Config | None = None,
    *,
    folder: str | Path | None = None,
    overwrite: bool = False,
) -> Model:
    """Train a model on one normal image, or a few.

    Args:
        images: paths, PIL images or arrays: `(H, W)`, `(H, W, 3)`, uint8 or float in [0, 1]; all of one size.
        config: settings; the defaults are the paper's choices for defects.
        folder: run folder to keep the model in; None keeps it in memory.
        overwrite: replace a model that is there.

    Returns:
        The model.

    Raises:
        UserError: an image or a setting that does not fit, or a folder that holds a model.
        RunError: the training broke.
    """
    several = as_several(images)
    sources = [str(image) if isinstance(image, str | Path) else f"image {i}" for i, image in enumerate(several)]
    training_set = prepare((to_array(image) for image in several), sources, config or Config())
    if folder is None:
        return train_model(training_set)
    run_folder = RunFolder(Path(folder))
    with begun(run_folder, training_set, overwrite=overwrite):
        model = go_on(run_folder)
        model.keep_calibration()
        run_folder.finish()
    return model


def find_model(name_or_path: str | Path, models_dir: str | Path = MODELS_DIR) -> RunFolder:
    """The run folder of a name below `models_dir`, of a path, or of a training image that gave the model its name."""
    path = Path(name_or_path)
    is_image = path.suffix.lower() in IMAGE_SUFFIXES
    # A path that is mistyped must not end in another model that happens to have the same last part.
    if RunFolder(path).exists or (len(path.parts) > 1 and not is_image):
        return RunFolder(path)
    named = Path(models_dir) / path.name
    return RunFolder(Path(models_dir) / path.stem if is_image and not named.exists() else named)


def load(name_or_path: str | Path, models_dir: str | Path = MODELS_DIR, runtime: RuntimeConfig | None = None) -> Model:
    """Load a trained model.

    Args:
        name_or_path: name of a model below `models_dir`, path of its run folder, or its training image, whose name it
            then has.
        models_dir: folder of the models.
        runtime: device, precision and threads; by default CUDA if there is one.

    Returns:
        The model.

    Raises:
        UserError: no such model, an unfinished one, or a damaged file.
    """
    folder = find_model(name_or_path, models_dir)
    resolved = set_up(runtime or RuntimeConfig())
    record, pyramid = folder.load_pyramid(resolved)
    images, shape = folder.read_images(), (record.num_images, 3, *pyramid.plan.working_size)
    if images.shape != shape:
        raise UserError(
            f"{folder.path / IMAGES_FILE}: holds images of shape {tuple(images.shape)}, the model's are {shape}; the "
            "file belongs to another model: restore it or train again with --overwrite"
        )
    return Model(record, pyramid, resolved, images, folder)


def default_config(**settings) -> Config:
    """A config from flat settings, such as `default_config(task="class", niter=100)`.

    Raises:
        UserError: an unknown setting, or a value out of range.
    """
    parts = {"model": ModelConfig, "training": TrainingConfig, "runtime": RuntimeConfig}
    owners = {f.name: part for part, cls in parts.items() for f in fields(cls)}
    unknown = sorted(set(settings) - set(owners))
    if unknown:
        raise UserError(f"{', '.join(unknown)}: no such setting; there are {', '.join(sorted(owners))}")
    chosen = {part: {name: value for name, value in settings.items() if owners[name] == part} for part in parts}
    return Config(**{part: cls(**chosen[part]) for part, cls in parts.items()})
