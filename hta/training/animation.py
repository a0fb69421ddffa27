"""Pictures that move: how images took shape in a training, and a walk through random samples, as GIF files."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hta.files import write_atomically
from hta.images import fit, read_image, resize, to_tensor, to_uint8, write_png
from hta.models.pyramid import Pyramid, fresh_noise
from hta.runtime import seeded_generator
from hta.training.samples import draw_samples
from hta.training.scale import ScaleTrainer

FILMS = {
    "training.gif": ("the training; from the left: training image, reconstruction and two random samples", 1),
    "walk.gif": ("a walk through random samples", 2),
}
"""The files with what they show and the factor by which the page enlarges them, in the order of the page."""

OWN_FILES = r"(training|walk)\.gif|frames/(\d+_\d+\.png)?"
"""Pattern of the paths in a run folder that this module writes."""

_FRAMES_FOLDER = "frames"  # until the training is finished, also by --resume
_TRAINING_FRAMES, _WALK_FRAMES = 30, 48  # the first at least: the same number for every scale
_TRAINING_MS, _WALK_MS, _LAST_MS = 200, 100, 3000  # how long a frame is shown, and the last one of the training
_TRAINING_BYTES, _WALK_BYTES = 900_000, 450_000  # of the files at most: together they add 1.9 MB to the page
_SIDE, _COLOURS = 96, 64  # longer side of a picture, px; of a frame
_GAP, _TEXT, _LEAST_WIDTH = 6, 14, 260  # px: between pictures; height of the letters; width that they may need


def picture_row(pyramid: Pyramid, image: Tensor, seed: int, num_scales: int | None = None) -> np.ndarray:
    """A training image, its reconstruction and two samples side by side, enlarged alike: `(h, w, 3)` uint8.

    The scales of the pyramid below `num_scales` are used, by default all; `image` is `(1, 3, h, w)` in [-1, 1], the
    first training image at the finest of them, and `seed` that of the samples.
    """
    rebuilt = pyramid.reconstruct(num_scales, pyramid.all_images()[:1])
    pictures = torch.cat([image.to(rebuilt), rebuilt, *draw_samples(pyramid, 2, seed, num_scales=num_scales)])
    enlarged = resize(pictures, fit(pyramid.plan.working_size, _SIDE))
    return np.hstack(list(to_uint8(F.pad(enlarged, (0, _GAP), value=1))))


def take_frame(folder: Path, trainer: ScaleTrainer) -> None:
    """Keep the pictures of a scale in training, named, in the run folder, if a frame is due after this iteration."""
    done, niter, plan = trainer.iteration, trainer.config.niter, trainer.pyramid.plan
    count, (height, width) = math.ceil(_TRAINING_FRAMES / plan.num_scales), trainer.size
    if done * count // niter == (done - 1) * count // niter:
        return
    row = Image.fromarray(picture_row(trainer.preview(), trainer.real[:1], trainer.config.manualSeed))
    frame = Image.new("RGB", (max(row.width, _LEAST_WIDTH), row.height + _TEXT + _GAP), "white")
    frame.paste(row, (0, _TEXT + _GAP))
    text = f"scale {trainer.n}: {width} x {height} px, iteration {done}"
    ImageDraw.Draw(frame).text((0, 0), text, "black", ImageFont.load_default(_TEXT))
    (folder / _FRAMES_FOLDER).mkdir(exist_ok=True)
    write_png(folder / _FRAMES_FOLDER / f"{trainer.n:02}_{done:09}.png", np.asarray(frame))


def write_films(folder: Path, pyramid: Pyramid, seed: int) -> None:
    """Write the files of `FILMS` into a run folder: of the frames in it, and the trained model."""
    if frames := [to_uint8(to_tensor([read_image(path)]))[0] for path in _frames_in(folder)]:
        write_gif(folder / "training.gif", frames, [_TRAINING_MS] * (len(frames) - 1) + [_LAST_MS], _TRAINING_BYTES)
    write_gif(folder / "walk.gif", list(walk_pictures(pyramid, seed)), [_WALK_MS] * _WALK_FRAMES, _WALK_BYTES)


def remove_frames(folder: Path) -> None:
    """Remove the frames in a run folder, those of an interrupted run included."""
    for path in _frames_in(folder):
        path.unlink()
    with suppress(OSError):  # it is not there, or not empty
        (folder / _FRAMES_FOLDER).rmdir()


def _frames_in(folder: Path) -> list[Path]:
    return sorted((folder / _FRAMES_FOLDER).glob("[0-9]*_[0-9]*.png"))


def walk_pictures(pyramid: Pyramid, seed: int) -> Iterator[np.ndarray]:
    """Random samples, `(h, w, 3)` uint8 each, of the first training image; the last leads back to the first."""

    def noise(angle: float, n: int, size: tuple[int, int]) -> Tensor:  # on a circle: of variance 1 everywhere
        a, b = (fresh_noise(n, 1, size, seeded_generator(seed, "walk", name, n)) for name in "ab")
        return math.cos(angle) * a + math.sin(angle) * b

    for step in range(_WALK_FRAMES):
        sample = pyramid.sample(partial(noise, 2 * math.pi * step / _WALK_FRAMES), pyramid.all_images()[:1])
        yield to_uint8(resize(sample, fit(pyramid.plan.working_size, _SIDE)))[0]


def write_gif(path: Path, frames: Sequence[np.ndarray], times_ms: Sequence[int], most_bytes: int) -> None:
    """Write pictures `(h, w, 3)` uint8 as a GIF file that repeats, without every other one while it is too large."""
    plain = (Image.fromarray(frame).quantize(_COLOURS, kmeans=1, dither=Image.Dither.NONE) for frame in frames)
    shown, times = [np.asarray(picture.convert("RGB")) for picture in plain], list(times_ms)
    while len(data := iio.imwrite("<bytes>", np.stack(shown), extension=".gif", duration=times, loop=0)) > most_bytes:
        first = (len(shown) - 1) % 2  # so that the last one stays
        shown, times = shown[first::2], [2 * time for time in times[first:-1:2]] + times[-1:]
    write_atomically(path, data)
