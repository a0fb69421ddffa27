"""Saving and loading of models: safetensors and JSON only, so that loading a file can never run code.

A run folder contains

    config.json                  the record of the run: format version, settings, names of the training images
    training_images.safetensors  the training images at the working size
    scale_<n>.safetensors        networks, fixed noise and noise amplitudes of a trained scale
    checkpoint.safetensors       where to continue; present only while the run is unfinished
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hta import __version__
from hta.config import Config
from hta.errors import UserError
from hta.files import Foreign, check_plain, locked, new_folder, sweep, write_atomically
from hta.models.native import choose_convolutions
from hta.models.pyramid import Pyramid, Scale
from hta.models.scales import plan_of
from hta.runtime import Runtime, seeded_generator
from hta.settings import Checked, brief, from_mapping, read_json

FORMAT_VERSION = 2

CONFIG_FILE = "config.json"
IMAGES_FILE = "training_images.safetensors"
CHECKPOINT_FILE = "checkpoint.safetensors"
LOCK_FILE = ".lock"

_SPARE_BYTES = 1 << 20  # names and shapes in a file of tensors
_MOST_CHECKPOINT_BYTES = 1 << 30
_LARGEST = 1e12  # of any value in a trained scale; some products of larger ones are not finite

_REMEDY = "restore the file or train again with --overwrite"

OWN_FILES = r"config\.json|(checkpoint|training_images|scale_\d+)\.safetensors|\.lock|model\.(onnx|pt2)"
"""Pattern of the files in a run folder that this module writes, and of the exported model."""


@dataclass(frozen=True)
class RunRecord(Checked):
    """The record of a run: all that a run folder holds besides tensors.

    Attributes:
        sources: file names of the training images.
        image_size: (height, width) of the training images before resizing, pixels.
        is_gray: whether all their pixels have R = G = B.
        config: all settings, resolved.
        hta_version: version of hta that wrote the record.
        kernels: what computed between the convolutions in training: a compiler and its flags, or torch; empty if it was
            not recorded.
        training_shares: vote shares on the first training image when the model was saved, one per scale, in [0, 1];
            none in a run that is unfinished or older.
    """

    sources: tuple[str, ...]
    image_size: tuple[int, int]
    is_gray: bool
    config: Config
    hta_version: str = __version__
    kernels: str = ""
    training_shares: tuple[float, ...] = ()

    @property
    def num_images(self) -> int:
        """N, the number of training images (shots)."""
        return len(self.sources)


def _with_later_settings(data: dict[str, Any]) -> dict[str, Any]:
    """The content of a config.json, with what older versions of hta did not record."""
    training = data["config"].get("training") if isinstance(data.get("config"), dict) else None
    if isinstance(training, dict):
        training.setdefault("recipe", "paper")
    return {"kernels": "", "training_shares": []} | data


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a safetensors file, atomically; raises a RunError if that fails."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, safetensors.torch.save(plain, metadata))


def load_tensors(path: Path, most_bytes: int = _MOST_CHECKPOINT_BYTES) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors, on the CPU, and the metadata of a safetensors file of at most so many bytes.

    Raises:
        UserError: the file is missing, truncated, too large, or not a safetensors file.
    """
    try:
        check_plain(path, most_bytes)
        with safetensors.safe_open(path, framework="pt") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}, stream.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: missing from the model; {_REMEDY}") from None
    except UserError as error:
        raise UserError(f"{error}; {_REMEDY}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {_REMEDY}") from error
    except (safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"{path}: not a complete safetensors file ({brief(str(error))}); {_REMEDY}") from error


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Whatever reads raises a UserError for a file that is missing, damaged or of another model; whatever writes raises a
    RunError if it cannot, and leaves what was there before intact.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def exists(self) -> bool:
        """Whether there is a run here, finished or unfinished."""
        return os.path.isfile(self.path / CONFIG_FILE)  # noqa: PTH113 (False for any path that is none)

    @property
    def finished(self) -> bool:
        """Whether there is a finished run here."""
        return self.exists and not (self.path / CHECKPOINT_FILE).exists()

    def scale_file(self, n: int) -> Path:
        """The file of scale n."""
        return self.path / f"scale_{n}.safetensors"

    @contextmanager
    def created(self, record: RunRecord, images: Tensor, *, replace: Foreign | None = None) -> Iterator[None]:
        """Start a run: the folder appears with its record, images and a first checkpoint, or not at all.

        It is locked when it appears, and stays locked during the block.

        Args:
            record: of the run.
            images: `(N, 3, h, w)` float32 in [-1, 1], the training images at the working size.
            replace: replace an existing run in which this finds nothing, unless another process trains it (UserError).
        """
        with ExitStack() as new_lock:
            with self.completed(record, images, replace=replace) as fresh:
                new_lock.enter_context(self.locked(fresh.path))
                fresh.save_checkpoint({}, scale=0, iteration=0)
            yield

    @contextmanager
    def completed(self, record: RunRecord, images: Tensor, *, replace: Foreign | None = None) -> Iterator["RunFolder"]:
        """The folder of a run, to be filled in the block: it appears here at its end, or not at all.

        The arguments are those of `created`.
        """
        # Decided only once: a run that another process creates from now on is not replaced.
        replaced = replace if self.exists else None
        with self.locked() if replaced else nullcontext(), new_folder(self.path, replace=replaced) as path:
            fresh = RunFolder(path)
            fresh.write_record(record)
            save_tensors(path / IMAGES_FILE, {"images": images})
            yield fresh

    @contextmanager
    def locked(self, folder: Path | None = None) -> Iterator[None]:
        """Keep other processes from training here; a killed process leaves no lock behind.

        Windows has no such locks, nor have some network file systems: there it is up to the user.

        Args:
            folder: the folder to lock if it will only have been moved here by the end of the block.

        Raises:
            UserError: another process trains here.
            OSError: the file to lock is a link, or cannot be made.
        """
        busy = f"{self.path}: another process is training this model; wait, or give another --name"
        with locked((folder or self.path) / LOCK_FILE, busy, self.path / LOCK_FILE):
            yield

    def write_record(self, record: RunRecord) -> None:
        """Write or replace the run's record."""
        data = {"format_version": FORMAT_VERSION, "hta_version": record.hta_version} | asdict(record)
        write_atomically(self.path / CONFIG_FILE, (json.dumps(data, indent=2) + "\n").encode())

    def read_record(self) -> RunRecord:
        """The run's record."""
        path = self.path / CONFIG_FILE
        try:
            data = _with_later_settings(read_json(path, FORMAT_VERSION))
            record = from_mapping(RunRecord, data, str(path))
            if not record.sources or not all(map(_is_file_name, record.sources)):
                raise UserError(f"{path}: sources must be a list of file names")
            if len(record.image_size) != 2 or not all(type(n) is int and 0 < n < 2**31 for n in record.image_size):
                raise UserError(f"{path}: image_size must be [height, width]")
            if not record.hta_version.isascii() or not record.kernels.isprintable():
                raise UserError(f"{path}: hta_version and kernels must be plain text")
            if not all(isinstance(share, float) and 0 <= share <= 1 for share in record.training_shares):
                raise UserError(f"{path}: training_shares must be numbers from 0 to 1")
            training = record.config.training
            if None in (record.config.model.num_transforms, training.niter, training.recipe):
                raise UserError(f"{path}: num_transforms, niter and recipe must be given")
        except UserError as error:
            raise UserError(f"{error}; {_REMEDY}") from error
        return record

    def read_images(self) -> Tensor:
        """The training images at the working size, `(N, 3, h, w)` float32 in [-1, 1]."""
        path, record = self.path / IMAGES_FILE, self.read_record()
        shape = record.num_images, 3, *plan_of(record.config.model, record.image_size).working_size
        tensors, _ = load_tensors(path, 4 * math.prod(shape) + _SPARE_BYTES)
        images = tensors.get("images")
        if len(tensors) != 1 or images is None or images.dim() != 4 or images.dtype != torch.float32:
            raise UserError(f"{path}: does not hold training images; {_REMEDY}")
        if images.shape != shape:
            raise UserError(
                f"{path}: holds images of shape {tuple(images.shape)}, the model's are {shape}; the file belongs to "
                f"another model: {_REMEDY}"
            )
        _require_sane("images", images, str(path), 1 + 1e-6)
        return images.clone()  # the file may change

    def save_checkpoint(self, tensors: dict[str, Tensor], *, scale: int, iteration: int) -> None:
        """Replace the checkpoint by the state of a scale after some iterations; it has no tensors before the first."""
        save_tensors(self.path / CHECKPOINT_FILE, tensors, {"scale": str(scale), "iteration": str(iteration)})

    def read_checkpoint(self) -> tuple[dict[str, Tensor], int, int]:
        """The checkpoint's tensors, scale and iteration."""
        path = self.path / CHECKPOINT_FILE
        tensors, metadata = load_tensors(path)
        try:
            return tensors, int(metadata["scale"]), int(metadata["iteration"])
        except (KeyError, ValueError):
            raise UserError(f"{path}: not a checkpoint; train again with --overwrite") from None

    def finish(self) -> None:
        """Mark the run as finished."""
        sweep(self.path)
        (self.path / CHECKPOINT_FILE).unlink(missing_ok=True)

    def save_scale(self, n: int, scale: Scale) -> None:
        """Write a trained scale."""
        save_tensors(self.scale_file(n), scale_tensors(scale))

    def load_scales(self, pyramid: Pyramid, count: int) -> None:
        """Fill a pyramid with its first `count` trained scales."""
        for n in range(count):
            path, planned = self.scale_file(n), scale_tensors(pyramid.unfilled_scale(n))
            most_bytes = sum(tensor.nbytes for tensor in planned.values()) + _SPARE_BYTES
            tensors, _ = load_tensors(path, most_bytes)
            _require_shapes(planned, tensors, str(path))  # before memory is taken for them
            for name in planned:
                _require_sane(name, tensors[name], str(path), _LARGEST)
            scale = pyramid.new_scale(n, seeded_generator("placeholder"))
            restore_scale(scale, tensors, str(path))
            scale.freeze()
            pyramid.scales.append(scale)

    def load_pyramid(self, runtime: Runtime) -> tuple[RunRecord, Pyramid]:
        """Load the whole trained model; a UserError says if there is none here, or an unfinished one."""
        if not self.exists:
            remedy = "train one with main_train.py, or check --input_name and --models_dir"
            raise UserError(f"{self.path}: no model here; {remedy}")
        record = self.read_record()
        if not self.finished:
            remedy = "finish it with main_train.py --resume"
            raise UserError(f"{self.path}: the training of this model is unfinished; {remedy}")
        model = record.config.model
        kernels = choose_convolutions(runtime.device, runtime.dtype, runtime.compile)
        pyramid = Pyramid(model, record.image_size, record.num_images, runtime.device, runtime.dtype, kernels)
        self.load_scales(pyramid, pyramid.plan.num_scales)
        return record, pyramid


def scale_tensors(scale: Scale) -> dict[str, Tensor]:
    """All tensors of a scale by name."""
    tensors = {"fixed_noise": scale.fixed_noise, "noise_amp": scale.noise_amp}
    for prefix in ("generator", "discriminator"):
        state = getattr(scale, prefix).state_dict()
        tensors |= {f"{prefix}.{name}": value for name, value in state.items()}
    return tensors


def restore_scale(scale: Scale, tensors: dict[str, Tensor], source: str) -> None:
    """Copy the output of `scale_tensors` into a scale; other tensors are ignored.

    Raises:
        UserError: a tensor is missing, has another shape or type, or senseless values; names the file, `source`.
    """
    places = scale_tensors(scale)
    _require_shapes(places, tensors, source)
    for name, place in places.items():
        value = tensors[name]
        _require_sane(name, value, source)
        if name.endswith("running_var") and value.min() < 0:
            raise UserError(f"{source}: {name} contains negative variances; {_REMEDY}")
        place.copy_(value)


def _require_shapes(planned: dict[str, Tensor], tensors: dict[str, Tensor], source: str) -> None:
    """Refuse tensors that lack one of those planned, or have it in another shape or type."""
    for name, place in planned.items():
        value = tensors.get(name)
        if value is None or value.shape != place.shape or value.dtype != place.dtype:
            found = "missing" if value is None else f"{tuple(value.shape)} {value.dtype}"
            wanted = f"the model needs {tuple(place.shape)} {place.dtype}"
            raise UserError(f"{source}: {name} is {found}, but {wanted}; the file belongs to another model: {_REMEDY}")


def _require_sane(name: str, value: Tensor, source: str, largest: float = math.inf) -> None:
    if not value.isfinite().all():
        raise UserError(f"{source}: {name} contains values that are not finite; {_REMEDY}")
    if value.abs().max() > largest:
        raise UserError(f"{source}: {name} contains values above {largest:g}; {_REMEDY}")


def _is_file_name(name: object) -> bool:
    """Whether a value from a file can be the name of one: a text that the operating system can encode."""
    try:
        return isinstance(name, str) and bool(os.fsencode(name))
    except UnicodeEncodeError:
        return False
