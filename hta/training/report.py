"""train.html: what a training was given and what came of it, for a browser, in one file that needs no network."""

import base64
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hta.files import write_atomically
from hta.images import resize, to_uint8
from hta.models.pyramid import Pyramid
from hta.models.scales import image_pyramid
from hta.models.storage import RunRecord
from hta.training.progress import METRICS_FILE, curves_figure, read_losses
from hta.training.samples import SampleRequest, draw_samples

PAGE_FILE = "train.html"
NUM_SAMPLES = 4  # random samples of every scale
# A vote share below this many times chance says that little was learnt.
NEAR_CHANCE = 1.5

# What keeps the page small whatever was trained: thumbnails, rebuilt images a scale, points of a curve, pixels of all
# pictures of the scales together.
_MOST_THUMBNAILS, _MOST_REBUILT, _MOST_POINTS = 24, 4, 300
_PIXEL_BUDGET = 1_000_000
# Longer sides, pixels: of a thumbnail, of the largest picture, of the largest one kept without loss; as shown.
_THUMBNAIL_SIDE, _LARGEST_SIDE, _LOSSLESS_SIDE, _SHOWN_SIDE = 64, 192, 64, 136
# Up to so many training images are shown larger: the longer side, pixels.
_FEW_SIDES = {1: 256, 4: 160}


def write_train_page(
    folder: Path, record: RunRecord, pyramid: Pyramid, images: Tensor, vote_shares: np.ndarray, seed: int
) -> Path:
    """Write train.html into a run folder; the same model and seed give the same bytes.

    Args:
        folder: of the run; its metrics.csv holds the losses, those from before a resumption too. Without it the curves
            are empty.
        record: of the run; its config is resolved.
        pyramid: trained.
        images: `(N, 3, h, w)` training images at the working size, in [-1, 1].
        vote_shares: `(N, S)` shares of the votes for the right transformation on the training images, in [0, 1].
        seed: of the random samples; sample i is the i-th one that `draw_samples` draws with it.

    Returns:
        The page's path.

    Raises:
        UserError: metrics.csv is damaged.
        RunError: the page cannot be written.
    """
    plan = pyramid.plan
    parts = {
        "name": escape(folder.resolve().name),
        "summary": _summary(record, pyramid),
        "thumbnails": _thumbnails(record.sources, images),
        "settings": _settings(record, pyramid),
        "all_settings": escape(
            json.dumps({part: asdict(getattr(record.config, part)) for part in ("model", "training")}, indent=2)
        ),
        "num_scales": plan.num_scales,
        "curves": _curves(pyramid, read_losses(folder / METRICS_FILE)),
        "curves_note": _curves_note(record),
        "scales_note": (
            f"The random samples draw fresh noise at every scale from 0 on, seed {seed}; sample 1 of one scale is "
            "carried on in sample 1 of the next. A bar is the vote share, its mark is chance."
        ),
        "scales": "\n".join(_scale_sections(record, pyramid, images, vote_shares, seed)),
    }
    template = Template(resources.files("hta.training").joinpath("train_template.html").read_text(encoding="utf-8"))
    path = folder / PAGE_FILE
    # A file name that is no UTF-8 must not cost the page.
    write_atomically(path, template.substitute(parts).encode("utf-8", "replace"))
    return path


# --- what was given ---------------------------------------------------------------------------------------------------


def _summary(record: RunRecord, pyramid: Pyramid) -> str:
    plan = pyramid.plan
    return (
        f"{_count(record.num_images, 'training image')}, {_count(plan.num_scales, 'scale')} from "
        f"{_size(plan.sizes[0])} to {_size(plan.working_size)}"
    )


def _thumbnails(sources: Sequence[str], images: Tensor) -> str:
    side = next((side for most, side in _FEW_SIDES.items() if len(images) <= most), _THUMBNAIL_SIDE)
    named = zip(images[:_MOST_THUMBNAILS], sources[:_MOST_THUMBNAILS], strict=True)
    figures = [_figure(image, f"training image {i + 1}", source, side, side) for i, (image, source) in enumerate(named)]
    rest = len(images) - len(figures)
    more = f'\n<p class="soft">and {rest} more</p>' if rest else ""
    return _row(figures) + more


def _settings(record: RunRecord, pyramid: Pyramid) -> str:
    model, training = record.config.model, record.config.training
    facts = {
        "task": model.task,
        "transformations": model.num_transforms,
        "iterations a scale": f"{training.niter:,}",
        "size of the images": f"{_size(record.image_size)}, {'gray' if record.is_gray else 'colour'}",
        "channels of the networks": " ".join(map(str, pyramid.plan.widths)),
        "learning rates, G and D": f"{training.lr_g:g}, {training.lr_d:g}",
        "weight of the reconstruction": f"{training.alpha:g}",
        "seed": training.manualSeed,
        "precision": str(pyramid.dtype).removeprefix("torch."),
        "version of hta": escape(record.hta_version),
    }
    return _facts(facts)


# --- curves -----------------------------------------------------------------------------------------------------------


def _curves(pyramid: Pyramid, rows: Sequence[tuple]) -> str:
    """The losses as inline SVG."""
    picture = io.StringIO()
    # The salt makes the names of the SVG's parts the same every time; the metadata would hold the date.
    with matplotlib.rc_context({"svg.hashsalt": "hta"}):
        curves_figure(pyramid.plan, _thinned(rows)).savefig(
            picture, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = picture.getvalue()
    label = "curves of every loss over the iterations, one column a scale"
    return svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _thinned(rows: Sequence[tuple]) -> list[tuple]:
    """Rows of losses, at most `_MOST_POINTS` a scale: means over stretches of equal length."""
    thinned = []
    for n in sorted({row[0] for row in rows}):
        table = np.array([row for row in rows if row[0] == n])
        stretches = np.array_split(table, min(len(table), _MOST_POINTS))
        thinned += [tuple(stretch.mean(axis=0)) for stretch in stretches]
    return thinned


def _curves_note(record: RunRecord) -> str:
    stretch = record.config.training.niter / _MOST_POINTS
    means = f" A point is the mean of {stretch:.2g} iterations on average." if stretch > 1 else ""
    return (
        "d_real and d_fake: the discriminator's cross-entropy on real and generated patches; g_adversarial and "
        f"g_reconstruction: the generator's cross-entropy and its squared error in [-1, 1].{means} All of them are in "
        f"{METRICS_FILE}."
    )


# --- scales -----------------------------------------------------------------------------------------------------------


def _scale_sections(
    record: RunRecord, pyramid: Pyramid, images: Tensor, vote_shares: np.ndarray, seed: int
) -> Iterator[str]:
    """What every scale has learnt: its figures, the training images beside what was rebuilt, and random samples."""
    sizes = pyramid.plan.sizes
    rebuilt_shown = min(_MOST_REBUILT, len(images))
    side = _picture_side(len(sizes) * (2 * rebuilt_shown + NUM_SAMPLES))
    for n, level in enumerate(image_pyramid(images, sizes)):
        rebuilt = pyramid.reconstruct(n + 1).clamp(-1, 1).cpu()
        request = SampleRequest(NUM_SAMPLES, seed, num_scales=n + 1)
        samples = torch.cat(list(draw_samples(pyramid, request))).cpu()
        pictures = []
        for i in range(rebuilt_shown):
            number = f" {i + 1}" if len(images) > 1 else ""
            pictures += [(f"training image{number}", level[i]), (f"reconstruction{number}", rebuilt[i])]
        pictures += [(f"sample {i + 1}", sample) for i, sample in enumerate(samples)]
        figures = [_figure(image, f"{what}, scale {n}", what, side, _SHOWN_SIDE) for what, image in pictures]
        facts = {
            "vote share of the right transformation": _vote_share(
                float(vote_shares[:, n].mean()), 1 / record.config.model.num_transforms
            ),
            "noise amplitude": _span(pyramid.scales[n].noise_amp.tolist()),
            "error of the reconstruction": f"{_rmse(rebuilt, level):.3f} RMSE in [-1, 1]",
        }
        yield (
            f'<section class="card scale" aria-labelledby="scale-{n}">\n'
            f'<h3 id="scale-{n}">Scale {n}: {_size(sizes[n])}</h3>\n'
            f"<dl>\n{_facts(facts)}\n</dl>\n{_row(figures)}\n</section>"
        )


def _vote_share(share: float, chance: float) -> str:
    """A share in figures, and as a bar with a mark at chance."""
    warning = ' <span class="warn">near chance: little was learnt here</span>' if share < NEAR_CHANCE * chance else ""
    return (
        f"{share:.3f} (chance {chance:.3f}){warning}"
        f'<div class="bar" aria-hidden="true"><span style="width: {100 * share:.1f}%"></span>'
        f'<i style="left: {100 * chance:.1f}%"></i></div>'
    )


def _span(values: Sequence[float]) -> str:
    """The range of some values; one value where they print alike."""
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _rmse(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).square().mean().sqrt())


# --- pictures and words -----------------------------------------------------------------------------------------------


def _picture_side(count: int) -> int:
    """The longest side at which `count` pictures stay within the budget, pixels."""
    return min(_LARGEST_SIDE, max(_LOSSLESS_SIDE, math.isqrt(_PIXEL_BUDGET // count)))


def _figure(image: Tensor, about: str, caption: str, side: int, shown_side: int) -> str:
    """A picture with its caption.

    Args:
        image: `(3, h, w)` in [-1, 1].
        about: what it shows, for those who cannot see it.
        caption: below it.
        side: the longer side is shrunk to this, pixels.
        shown_side: the longer side on the page, pixels.
    """
    size = tuple(image.shape[-2:])
    if max(size) > side:
        image = resize(image[None], _fitted(size, side))[0]
    height, width = _fitted(size, shown_side)
    return (
        f'<figure><img src="{_data_url(to_uint8(image))}" width="{width}" height="{height}" alt="{escape(about)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) of the same shape whose longer side is `side`."""
    height, width = (max(1, round(length * side / max(size))) for length in size)
    return height, width


def _data_url(picture: np.ndarray) -> str:
    """A picture `(h, w, 3)` uint8 as an address that holds it: exact while it is small, else a JPEG."""
    kind, options = ("PNG", {}) if max(picture.shape) <= _LOSSLESS_SIDE else ("JPEG", {"quality": 85})
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def _row(figures: Sequence[str]) -> str:
    return '<div class="pictures">\n' + "\n".join(figures) + "\n</div>"


def _facts(facts: dict[str, object]) -> str:
    """Terms and their values, which are HTML already, as the rows of a list."""
    return "\n".join(f"<div><dt>{term}</dt><dd>{value}</dd></div>" for term, value in facts.items())


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]} &times; {size[0]} px"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"
