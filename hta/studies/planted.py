"""Does the map peak on the defect? python -m hta.studies.planted --input_name brick

Plants seeded defects of 6 to 12 px at the working size into good crops of the demo's brick wall, and counts how often
the maximum of the anomaly map lies within 5 px of the mask, beside the rate that a random pixel would reach.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.ndimage import distance_transform_edt

from hta.cli import parse_for_model, run_command
from hta.config import ScoringConfig
from hta.model import Model, load
from hta.settings import Checked, option
from hta.studies.demo import brick_wall, cut, draw_displaced, draw_stain, plan_crops, plant_defect

REACH_PX = 5
# Of a crop of 128 px, which a model works on at 64 px.
SIDES = (13, 24)
DRAWERS = tuple(partial(draw, sides=SIDES) for draw in (draw_displaced, draw_stain))


@dataclass(frozen=True)
class PlantedOptions(Checked):
    """Which model, and which plants."""

    input_name: str = option("brick", "the model: trained on the demo's image")
    models_dir: str = option("TrainedModels", "folder of the models")
    plants: int = option(20, "defects to plant", low=1, high=1000)
    seed: int = option(0, "of the plants", low=0)


@dataclass(frozen=True)
class PlantedResult:
    """How often the map's maximum met the plant.

    Attributes:
        hits: plants that the maximum lay within `REACH_PX` of.
        plants: how many there were.
        chance: share of the image that lies within `REACH_PX` of the mask, mean over the plants.
    """

    hits: int
    plants: int
    chance: float


def plant(texture: np.ndarray, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Good crops of the texture with one defect each, and their masks.

    Args:
        texture: the whole wall, uint8 `(H, W)`.
        count: how many.
        seed: of everything random.

    Returns:
        `count` pairs of `(128, 128)` uint8 image and bool mask.
    """
    rng = np.random.default_rng(seed)
    crops = [crop for crop in plan_crops(texture.shape, seed) if crop.kind == "good"]
    pairs = []
    for number in range(count):
        crop = crops[number % len(crops)]
        image, mask = plant_defect(cut(texture, crop.top, crop.left), DRAWERS[number % len(DRAWERS)], rng)
        pairs.append((image, mask > 0))
    return pairs


def peak_hits(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray], reach: float) -> PlantedResult:
    """Count the maps whose maximum lies within `reach` px of the mask.

    Args:
        maps: anomaly maps `(H, W)`, higher = more anomalous.
        masks: bool, of the same sizes.
        reach: pixels of the maps.
    """
    distances = [distance_transform_edt(~mask) for mask in masks]
    peaks = [np.unravel_index(np.argmax(anomaly_map), anomaly_map.shape) for anomaly_map in maps]
    hits = sum(bool(distance[peak] <= reach) for distance, peak in zip(distances, peaks, strict=True))
    return PlantedResult(hits, len(masks), float(np.mean([(distance <= reach).mean() for distance in distances])))


def measure(model: Model, count: int, seed: int) -> PlantedResult:
    """Plant defects and look for them at the model's working size."""
    pairs = plant(brick_wall(), count, seed)
    votes = list(model.stream([image for image, _ in pairs], ScoringConfig()))
    maps = [image.anomaly_map for image in votes]
    masks = [_at_size(mask, maps[0].shape) for _, mask in pairs]
    return peak_hits(maps, masks, REACH_PX)


def _at_size(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at a smaller size: a pixel is in it that covers any of the mask's."""
    small = np.zeros(size, dtype=bool)
    rows, columns = np.nonzero(mask)
    small[rows * size[0] // mask.shape[0], columns * size[1] // mask.shape[1]] = True
    return small


def _command(argv: Sequence[str] | None) -> None:
    options, runtime = parse_for_model("python -m hta.studies.planted", __doc__, PlantedOptions, argv)
    model = load(options.input_name, options.models_dir, runtime)
    result = measure(model, options.plants, options.seed)
    print(
        f"the map's maximum lies within {REACH_PX} px of the defect in {result.hits} of {result.plants} images "
        f"(a random pixel: {result.chance:.0%})"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Plant defects, print how many maps met them, and return the exit status."""
    return run_command(_command, argv, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
