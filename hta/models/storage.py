"""The only save and load of models: safetensors and JSON, so that nothing that is loaded can run code.

A run folder holds

    config.json                  the record of the run: format version, settings, training images
    training_images.safetensors  the training images at the working size
    scale_<n>.safetensors        networks, fixed noise and noise amplitudes of a trained scale
    checkpoint.safetensors       where to go on; present only while the run is unfinished
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hta.config import Config
from hta.errors import UserError
from hta.files import HAS_LOCKS, new_folder, sweep, try_lock, write_atomically
from hta.models.pyramid import Pyramid, Scale
from hta.runtime import Runtime, seeded_generator
from hta.settings import require_keys
from hta.version import __version__

FORMAT_VERSION = 2

CONFIG_FILE = "config.json"
IMAGES_FILE = "training_images.safetensors"
CHECKPOINT_FILE = "checkpoint.safetensors"
LOCK_FILE = ".lock"

_REMEDY = "restore the file or train again with --overwrite"

_OWN_FILES = re.compile(
    r"config\.json|checkpoint\.safetensors|training_images\.safetensors|scale_\d+\.safetensors|\.lock"
    r"|calibration\.json|metrics\.csv|curves\.png|train\.html"
    r"|(samples|random_samples_[^/]+)(/(random|reconstruction)_\d+\.png)?"
    r"|results(/[^/]+(/(scores\.csv|metrics\.json|report\.html|(maps|overlays)(/.+)?))?)?"
    r"|(results/)?\.[^/]+\.part(/.+)?"  # what a killed writer left
    r"|(.+/)?(\.DS_Store|Thumbs\.db)"  # what desktops put everywhere
)
"""Paths below a run folder that the scripts write; nothing of them is worth more than the model."""


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says of itself, beside the tensors.

    Attributes:
        config: all settings, resolved.
        sources: names of the training images' files.
        image_size: (height, width) of the training images before the first resize, pixels.
        is_gray: whether all their pixels have R = G = B.
        hta_version: version of hta that wrote it.
    """

    config: Config
    sources: tuple[str, ...]
    image_size: tuple[int, int]
    is_gray: bool
    hta_version: str = __version__

    @property
    def num_images(self) -> int:
        """N, the number of training images (shots)."""
        return len(self.sources)

    def to_json(self) -> str:
        """The content of config.json."""
        data = {
            "format_version": FORMAT_VERSION,
            "hta_version": self.hta_version,
            "sources": list(self.sources),
            "image_size": list(self.image_size),
            "is_gray": self.is_gray,
            "config": self.config.to_dict(),
        }
        return json.dumps(data, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> "RunRecord":
        """Read `to_json`'s form.

        Args:
            text: the JSON.
            source: the file's name, for errors.

        Raises:
            UserError: not JSON, another format version, or keys and values that do not belong.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{source}: not valid JSON ({error}); {_REMEDY}") from error
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(
                f"{source}: model format {version}, this version of hta reads format {FORMAT_VERSION}; train again "
                "with --overwrite, or use the version of hta that wrote it"
            )
        require_keys(data, {"format_version", "hta_version", "sources", "image_size", "is_gray", "config"}, source)
        sources, size = data["sources"], data["image_size"]
        if not (isinstance(sources, list) and sources and all(isinstance(name, str) for name in sources)):
            raise UserError(f"{source}: sources must be a list of file names; {_REMEDY}")
        if not (isinstance(size, list) and len(size) == 2 and all(map(_is_side, size))):
            raise UserError(f"{source}: image_size must be [height, width]; {_REMEDY}")
        for name, kind in (("is_gray", bool), ("hta_version", str)):
            if not isinstance(data[name], kind):
                raise UserError(f"{source}: {name} must be of type {kind.__name__}; {_REMEDY}")
        config = Config.from_dict(data["config"], source)
        if None in (config.model.num_transforms, config.training.niter):
            raise UserError(f"{source}: num_transforms and niter must be numbers; {_REMEDY}")
        return cls(config, tuple(sources), tuple(size), data["is_gray"], data["hta_version"])


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a safetensors file, atomically.

    Raises:
        RunError: the file cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, safetensors.torch.save(plain, metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Returns:
        The tensors, on the CPU, and the file's metadata.

    Raises:
        UserError: the file is missing, truncated, or something else.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}, stream.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: missing from the model; {_REMEDY}") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a complete safetensors file ({error}); {_REMEDY}") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_REMEDY}") from error


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def exists(self) -> bool:
        """Whether there is a run here, finished or not."""
        return (self.path / CONFIG_FILE).is_file()

    @property
    def finished(self) -> bool:
        """Whether the run here is complete."""
        return self.exists and not (self.path / CHECKPOINT_FILE).exists()

    def foreign_files(self, part: str = "") -> list[str]:
        """Paths that hta does not write there, sorted: somebody's own.

        Args:
            part: a folder in this one, to look at alone.

        Returns:
            Paths relative to the run folder.
        """
        below = (path.relative_to(self.path).as_posix() for path in (self.path / part).rglob("*"))
        return sorted(path for path in below if not _OWN_FILES.fullmatch(path))

    def scale_file(self, n: int) -> Path:
        """The file of scale n."""
        return self.path / f"scale_{n}.safetensors"

    @contextmanager
    def created(self, record: RunRecord, images: Tensor, *, replace: bool) -> Iterator[None]:
        """Begin a run: the folder appears with its record, its images and a first checkpoint, or not at all.

        It appears locked, and stays so in the block.

        Args:
            record: of the run.
            images: `(N, 3, h, w)` float32 training images at the working size.
            replace: an existing run gives way, unless a process trains it.

        Raises:
            UserError: another process trains here.
            RunError: the folder cannot be made, or is taken.
        """
        # Looked at once: what another process puts there from now on is not replaced.
        taken = replace and self.exists
        with ExitStack() as own_lock:
            with self.locked() if taken else nullcontext(), new_folder(self.path, replace=taken) as fresh:
                own_lock.enter_context(self.locked(fresh))
                write_atomically(fresh / CONFIG_FILE, record.to_json().encode())
                save_tensors(fresh / IMAGES_FILE, {"images": images})
                save_tensors(fresh / CHECKPOINT_FILE, {}, {"scale": "0", "iteration": "0"})
            yield

    @contextmanager
    def locked(self, made_in: Path | None = None) -> Iterator[None]:
        """Keep other processes from training here at the same time; a killed process leaves no lock behind.

        Windows has no such locks: two runs in one folder are then the user's to avoid.

        Args:
            made_in: where the folder lies while it is made, before it comes to its place; by default it is there.

        Raises:
            UserError: another process trains here.
        """
        if not HAS_LOCKS:
            yield
            return
        place, now = self.path / LOCK_FILE, (made_in or self.path) / LOCK_FILE
        with now.open("w") as stream:
            if not try_lock(stream) or not _is_at(stream, now):
                raise UserError(f"{self.path}: another process trains this model now; wait, or give another --name")
            try:
                yield
            finally:
                if _is_at(stream, place):  # else the folder was replaced, and the lock there is another's
                    place.unlink(missing_ok=True)

    def read_record(self) -> RunRecord:
        """The run's record.

        Raises:
            UserError: config.json is damaged or of another format.
        """
        path = self.path / CONFIG_FILE
        return RunRecord.from_json(_read_text(path), str(path))

    def read_images(self) -> Tensor:
        """The training images at the working size, `(N, 3, h, w)` float32 in [-1, 1].

        Raises:
            UserError: the file is missing or damaged, or a pixel is not finite.
        """
        path = self.path / IMAGES_FILE
        tensors, _ = load_tensors(path)
        images = tensors.get("images")
        if set(tensors) != {"images"} or images.dim() != 4 or images.dtype != torch.float32:
            raise UserError(f"{path}: does not hold training images; {_REMEDY}")
        _require_finite("images", images, str(path))
        return images

    def save_checkpoint(self, tensors: dict[str, Tensor], *, scale: int, iteration: int) -> None:
        """Replace the checkpoint: the state of a scale before an iteration."""
        position = {"scale": str(scale), "iteration": str(iteration)}
        save_tensors(self.path / CHECKPOINT_FILE, tensors, position)

    def read_checkpoint(self) -> tuple[dict[str, Tensor], int, int]:
        """The checkpoint's tensors, scale and iteration.

        Raises:
            UserError: there is none, or it is damaged.
        """
        path = self.path / CHECKPOINT_FILE
        tensors, metadata = load_tensors(path)
        try:
            return tensors, int(metadata["scale"]), int(metadata["iteration"])
        except (KeyError, ValueError):
            raise UserError(f"{path}: not a checkpoint; train again with --overwrite") from None

    def finish(self) -> None:
        """Mark the run as complete."""
        sweep(self.path)
        (self.path / CHECKPOINT_FILE).unlink(missing_ok=True)

    def save_scale(self, n: int, scale: Scale) -> None:
        """Write a trained scale."""
        save_tensors(self.scale_file(n), scale_tensors(scale))

    def load_scales(self, pyramid: Pyramid, count: int) -> None:
        """Fill a pyramid with its first `count` trained scales.

        Raises:
            UserError: a file is missing, truncated, or of another model.
        """
        for n in range(count):
            scale = pyramid.new_scale(n, seeded_generator("placeholder"))
            path = self.scale_file(n)
            restore_scale(scale, load_tensors(path)[0], str(path))
            scale.freeze()
            pyramid.scales.append(scale)

    def load_pyramid(self, runtime: Runtime) -> tuple[RunRecord, Pyramid]:
        """The whole trained model.

        Raises:
            UserError: no model here, an unfinished run, or a damaged file.
        """
        if not self.exists:
            raise UserError(
                f"{self.path}: no model here; train one with main_train.py, or check --input_name and --models_dir"
            )
        record = self.read_record()
        if not self.finished:
            raise UserError(
                f"{self.path}: the training of this model is unfinished; finish it with main_train.py --resume"
            )
        model = record.config.model
        pyramid = Pyramid.planned(model, record.image_size, record.num_images, runtime.device, runtime.dtype)
        self.load_scales(pyramid, pyramid.plan.num_scales)
        return record, pyramid


def _is_at(stream: IO, place: Path) -> bool:
    """Whether an open file still is the one at a path."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), place.stat())
    except FileNotFoundError:
        return False


def scale_tensors(scale: Scale) -> dict[str, Tensor]:
    """All tensors of a scale under one name each."""
    tensors: dict[str, Any] = {"fixed_noise": scale.fixed_noise, "noise_amp": scale.noise_amp}
    for prefix in ("generator", "discriminator"):
        for name, value in getattr(scale, prefix).state_dict().items():
            tensors[f"{prefix}.{name}"] = value
    return tensors


def restore_scale(scale: Scale, tensors: dict[str, Tensor], source: str) -> None:
    """Copy `scale_tensors` back into a scale of the same shape; other tensors are ignored.

    Args:
        scale: filled in place.
        tensors: from `scale_tensors`.
        source: the file's name, for errors.

    Raises:
        UserError: a tensor is missing, of another shape or type, or not finite.
    """
    for name, place in scale_tensors(scale).items():
        value = tensors.get(name)
        if value is None or value.shape != place.shape or value.dtype != place.dtype:
            found = "missing" if value is None else f"{tuple(value.shape)} {value.dtype}"
            raise UserError(
                f"{source}: {name} is {found}, the model needs {tuple(place.shape)} {place.dtype}; the file belongs to "
                f"another model: {_REMEDY}"
            )
        _require_finite(name, value, source)
        place.copy_(value)


def _require_finite(name: str, value: Tensor, source: str) -> None:
    if not value.isfinite().all():
        raise UserError(f"{source}: {name} holds values that are not finite; {_REMEDY}")
