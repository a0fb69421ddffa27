"""What a training leaves for people: curves.png, and train.html, one file that a browser opens without a network."""

import base64
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch
from markupsafe import escape
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from torch import Tensor

from hta.errors import RunError
from hta.files import write_figure
from hta.images import fit, jpeg_of, png_of, resize, to_tensor, to_uint8
from hta.models.pyramid import Pyramid
from hta.models.scales import image_pyramid
from hta.models.storage import RunRecord
from hta.pages import COLOURS, chart_style, inline_svg, write_page
from hta.training.animation import FILMS
from hta.training.progress import LOSSES, METRICS_FILE, format_duration, read_losses
from hta.training.samples import draw_samples

PAGE_FILE = "train.html"
CURVES_FILE = "curves.png"
OWN_FILES = r"train\.html|curves\.png"
"""Pattern of the files in a run folder that this module writes."""

NUM_SAMPLES = 4  # random samples per scale
NEAR_CHANCE = 1.5  # a vote share below this many times chance says that little was learnt

# What keeps the page small whatever was trained: pictures of the training images, reconstructions per scale, points per
# curve and scale, pixels of all pictures of the scales together.
MOST_PICTURES, _MOST_RECONSTRUCTIONS, _MOST_POINTS = 24, 4, 300
_PIXEL_BUDGET = 1_000_000
# Longer sides, px: of the largest picture of a scale, of the largest lossless picture; as displayed.
_LARGEST_SIDE, _LOSSLESS_SIDE, _SHOWN_SIDE = 192, 64, 136
_PICTURE_SIDES = {1: 1024, 4: 512, MOST_PICTURES: 192}  # longer side, px, that so few training images may have at most
_MARGIN = 0.03  # of a scale's column in the curves, on either side
_LEARNT = 0.5  # of the way from chance to all votes: from there on a scale counts as learnt
_CURVES = {
    "d_real": ("discriminator, on the training image", "blue"),
    "d_fake": ("discriminator, on generated images", "orange"),
    "g_adversarial": ("generator, passing as real", "green"),
    "g_reconstruction": ("generator, rebuilding the training image", "green"),
}  # the losses by their names for people


@dataclass(frozen=True)
class PageNotes:
    """What the page says beyond the model: `seconds` of training, since a resumption if it `is_resumed`."""

    pictures: Sequence[np.ndarray] = ()  # the first training images, `(H, W, 3)` uint8; by default at the working size
    seconds: float | None = None
    is_resumed: bool = False
    next_command: str | None = None


def write_train_page(
    folder: Path,
    record: RunRecord,
    pyramid: Pyramid,
    images: Tensor,
    vote_shares: np.ndarray,
    seed: int,
    notes: PageNotes = PageNotes(),
) -> Path:
    """Write train.html and curves.png, always the same bytes for a model, seed and notes, and return the page's path.

    Args:
        folder: of the run; without a metrics.csv in it the curves are empty; the films in it are shown.
        record, pyramid: of the run, trained.
        images: `(N, 3, h, w)` training images at the working size, in [-1, 1].
        vote_shares: `(N, S)` shares of the votes for the correct transformation on the training images, in [0, 1].
        seed: of the random samples; sample i is the i-th one that `draw_samples` draws with it.
        notes: what else there is to say.

    Raises:
        UserError: metrics.csv is damaged.
        RunError: a vote share is not finite, or a file cannot be written.
    """
    if not np.isfinite(vote_shares).all():
        raise RunError(f"{folder}: the model's votes are not finite; train it again with --overwrite")
    model, training = record.config.model, record.config.training
    losses = read_losses(folder / METRICS_FILE)
    with chart_style():
        figure = _curves_figure(pyramid.plan.sizes, training.niter, losses)
        curves = inline_svg(figure, "curves", "curves of all losses over the iterations, one column per scale")
        write_figure(figure, folder / CURVES_FILE)
    write_page(
        folder / PAGE_FILE,
        "training/train_template.html",
        name=folder.resolve().name,
        record=record,
        all_settings=escape(json.dumps({"model": asdict(model), "training": asdict(training)}, indent=2)),
        pyramid=pyramid,
        training_images=[
            _embedded(pixels, source, *pixels.shape[:2])
            for pixels, source in zip(notes.pictures or to_uint8(images[:MOST_PICTURES]), record.sources, strict=False)
        ],
        verdict=verdict(vote_shares.mean(axis=0), 1 / model.num_transforms),
        notes=notes,
        duration=notes.seconds and format_duration(notes.seconds),
        curves=curves,
        iterations_per_point=training.niter / _MOST_POINTS,
        seed=seed,
        chance=1 / model.num_transforms,
        near_chance=NEAR_CHANCE / model.num_transforms,
        scales=list(_scales(pyramid, images, vote_shares, seed)),
        films=[_film(folder / name, *about) for name, about in FILMS.items() if (folder / name).exists()],
    )
    return folder / PAGE_FILE


def verdict(shares: np.ndarray, chance: float) -> tuple[str, str]:
    """What the vote shares of every scale, `(S,)` on the training images, say about a model: a word and a sentence.

    The word is "learnt", "hardly learnt" or "not learnt".
    """
    is_learnt, is_chance = (shares - chance) / (1 - chance) >= _LEARNT, shares < NEAR_CHANCE * chance
    low, high = (f"{100 * share:.0f} %" for share in (shares.min(), shares.max()))
    found = f"its patches are recognised in {low if low == high else f'{low} to {high}'} of cases (by chance in "
    found += f"{100 * chance:.0f} %)"
    if is_learnt.all():
        return "learnt", f"The model knows its training images: at every scale {found}."
    weak = ", ".join(map(str, np.flatnonzero(~is_learnt)))
    remedy = "Try more iterations (a larger --niter), or training images with more structure."
    if is_chance.all():
        return "not learnt", f"The model has learnt nothing that its scores could be made of: {found}. {remedy}"
    return "hardly learnt", f"Too little was learnt at scale {weak}: {found}. {remedy}"


def _curves_figure(sizes: Sequence[tuple[int, int]], niter: int, rows: Sequence[tuple]) -> Figure:
    """The losses of `read_losses` by iteration, a column per scale: cross-entropies above, squared error below."""
    width = 3.2 * len(sizes)
    figure = Figure(figsize=(width, 5), dpi=100)
    upper, lower = figure.subplots(2, sharex=True)
    # Fixed margins: a layout engine would draw everything twice.
    figure.subplots_adjust(left=0.75 / width, right=1 - 0.1 / width, bottom=0.1, top=0.94, hspace=0.06)
    table = np.vstack([_thinned([row for row in rows if row[0] == n]) for n in range(len(sizes))])
    places = table[:, 0] + _MARGIN + (1 - 2 * _MARGIN) * table[:, 1] / niter
    for column, name in enumerate(LOSSES, start=2):
        axes, (words, colour) = lower if name == "g_reconstruction" else upper, _CURVES[name]
        axes.plot(places, table[:, column], label=words, linewidth=0.8, color=COLOURS[colour])
    for n, (image_height, image_width) in enumerate(sizes):
        title = f"scale {n}: {image_width} x {image_height} px"
        upper.text(n + 0.5, 1.03, title, ha="center", color=COLOURS["ink"], transform=upper.get_xaxis_transform())
        for axes in (upper, lower):
            axes.axvline(n, color=COLOURS["soft"], linewidth=0.8)
    steps = [step for step in MaxNLocator(4, integer=True).tick_values(0, niter) if 0 <= step < 0.95 * niter]
    ticks = [(n + _MARGIN + (1 - 2 * _MARGIN) * step / niter, f"{step:g}") for n in range(len(sizes)) for step in steps]
    lower.set_xticks(*zip(*ticks, strict=True))
    lower.set(xlim=(0, len(sizes)), xlabel="iteration", ylabel="mean squared error")
    if (table[:, -1] > 0).any():
        lower.set_yscale("log")
        lower.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        lower.yaxis.set_minor_locator(NullLocator())
        lower.yaxis.set_major_formatter("{x:g}")
    upper.set_ylabel("cross-entropy")
    upper.legend()
    lower.legend()
    return figure


def _thinned(rows: Sequence[tuple]) -> np.ndarray:
    """Losses of a scale, at most `_MOST_POINTS` means over stretches of equal length, and a row of NaN at the end."""
    table = np.array(rows, dtype=float).reshape(len(rows), 2 + len(LOSSES))
    stretches = np.array_split(table, min(len(table), _MOST_POINTS)) if rows else []
    return np.array([*(stretch.mean(axis=0) for stretch in stretches), np.full(table.shape[1], np.nan)])


def picture_for_page(image: np.ndarray, count: int) -> np.ndarray:
    """One of `count` training images, `(H, W, 3)` float32 in [0, 1], as the page shows it, uint8: smaller if large."""
    side = min(next((side for most, side in _PICTURE_SIDES.items() if count <= most), 192), max(image.shape))
    return to_uint8(resize(to_tensor([image]), fit(image.shape, side)))[0]


def _scales(pyramid: Pyramid, images: Tensor, vote_shares: np.ndarray, seed: int) -> Iterator[dict[str, Any]]:
    """What each scale has learnt: its figures, training images beside their reconstructions, and random samples."""
    sizes = pyramid.plan.sizes
    shown = min(_MOST_RECONSTRUCTIONS, len(images))
    pictures_in_all = len(sizes) * (2 * shown + NUM_SAMPLES)
    side = min(_LARGEST_SIDE, max(_LOSSLESS_SIDE, math.isqrt(_PIXEL_BUDGET // pictures_in_all)))
    for n, level in enumerate(image_pyramid(images, sizes)):
        rebuilt = pyramid.reconstruct(n + 1).clamp(-1, 1).cpu()
        samples = torch.cat(list(draw_samples(pyramid, NUM_SAMPLES, seed, num_scales=n + 1))).cpu()
        named: list[tuple[str, Tensor]] = []
        for i in range(shown):
            number = f" {i + 1}" if len(images) > 1 else ""
            named += [(f"training image{number}", level[i]), (f"reconstruction{number}", rebuilt[i])]
        named += [(f"sample {i}", sample) for i, sample in enumerate(samples, start=1)]
        yield {
            "size": sizes[n],
            "vote_share": float(vote_shares[:, n].mean()),
            "noise_amp": pyramid.scales[n].noise_amp.tolist(),
            "reconstruction_error": float((rebuilt.double() - level.double()).square().mean().sqrt()),
            "pictures": [_picture(image, name, side, _SHOWN_SIDE) for name, image in named],
        }


def _film(path: Path, caption: str, factor: int) -> dict[str, Any]:
    """A GIF file as part of the page, with its last frame for those who do not want motion."""
    *_, still = iio.imiter(path, mode="RGB")
    film = _embedded(still, caption, *(factor * side for side in still.shape[:2]))
    address = f"data:image/gif;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return film | {"address": address, "still": film["address"]}


def _picture(image: Tensor, caption: str, side: int, shown_side: int) -> dict[str, Any]:
    """A picture, `(3, h, w)` in [-1, 1], shrunk to a longer side in px; lossless while it is small, else a JPEG."""
    size = image.shape[-2:]
    if max(size) > side:
        image = resize(image[None], fit(size, side))[0]
    return _embedded(to_uint8(image), caption, *fit(size, shown_side))


def _embedded(pixels: np.ndarray, caption: str, height: int, width: int) -> dict[str, Any]:
    """A picture `(h, w, 3)` uint8 as part of the page, with the size at which it is shown."""
    exact = max(pixels.shape) <= _LOSSLESS_SIDE
    content = base64.b64encode(png_of(pixels) if exact else jpeg_of(pixels, quality=85)).decode()
    address = f"data:image/{'png' if exact else 'jpeg'};base64,{content}"
    return {"address": address, "width": width, "height": height, "caption": caption}
