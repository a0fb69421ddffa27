"""Does the map peak on the defect? python -m hta.studies planted --input_name brick

Plants random defects of 6 to 12 px at the working size in good crops of the demo's brick wall, and counts how often the
maximum of the anomaly map is within 5 px of the mask, compared with the rate of a random pixel.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice

import numpy as np
from scipy.ndimage import distance_transform_edt

from hta.model import Model
from hta.settings import Checked, option
from hta.studies.demo import DemoOptions, cut, draw_displaced, draw_stain, plan_crops, plant_defect

REACH_PX = 5
# In a crop of 128 px, which a model scores at 64 px.
SIDES = (13, 24)
DRAWERS = tuple(partial(draw, sides=SIDES) for draw in (draw_displaced, draw_stain))


@dataclass(frozen=True)
class PlantedOptions(Checked):
    """The model and the plants."""

    input_name: str = option("brick", "the model, trained on the demo image")
    models_dir: str = option("TrainedModels", "folder of the models")
    plants: int = option(20, "number of defects to plant", low=1, high=1000)
    seed: int = option(0, "of the plants", low=0)


def plant(count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Make good crops of the wall, `(128, 128)` uint8, with one defect each, and their bool masks."""
    rng = np.random.default_rng(seed)
    crops = [(top, left) for kind, _, top, left in plan_crops(DemoOptions(seed=seed)) if kind == "good"]
    pairs = []
    for corner, draw in islice(zip(cycle(crops), cycle(DRAWERS), strict=False), count):
        image, mask = plant_defect(cut(*corner), draw, rng)
        pairs.append((image, mask > 0))
    return pairs


def peak_hits(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray], reach: float) -> tuple[int, float]:
    """Count the anomaly maps `(H, W)` whose maximum is within `reach` px of the mask, bool, of the same size.

    Returns the number, and the rate by chance: the mean share of an image within `reach` px of its mask.
    """
    distances = [distance_transform_edt(~mask) for mask in masks]
    peaks = [np.unravel_index(np.argmax(anomaly_map), anomaly_map.shape) for anomaly_map in maps]
    hits = sum(bool(distance[peak] <= reach) for distance, peak in zip(distances, peaks, strict=True))
    return hits, float(np.mean([(distance <= reach).mean() for distance in distances]))


def _shrink(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at a smaller size: a pixel is set if it covers any pixel of the mask."""
    small = np.zeros(size, dtype=bool)
    rows, columns = np.nonzero(mask)
    small[rows * size[0] // mask.shape[0], columns * size[1] // mask.shape[1]] = True
    return small


def run(options: PlantedOptions, model: Model) -> Iterator[str]:
    """Plant defects, and report how many maps met them at the model's working size."""
    images, masks = zip(*plant(options.plants, options.seed), strict=True)
    maps = [votes.anomaly_map for votes in model.stream(images) if votes.anomaly_map is not None]
    hits, chance = peak_hits(maps, [_shrink(mask, model.pyramid.plan.working_size) for mask in masks], REACH_PX)
    yield (
        f"the map's maximum lies within {REACH_PX} px of the defect in {hits} of {options.plants} images "
        f"(a random pixel: {chance:.0%})"
    )
