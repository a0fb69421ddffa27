"""How time and memory grow: with the image, the training images, the transformations and the test images.

Every row is measured in a fresh process, so that its peak memory is its own.
"""

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from skimage import data
from torch import Tensor

from hta.config import Config, ScoringConfig
from hta.evaluation.scorer import Scorer
from hta.images import resize, to_tensor
from hta.runtime import set_up
from hta.speed.memory import peak_memory_mib
from hta.speed.workload import IMAGE_SIDE, NUM_TRANSFORMS, benchmark_config, random_pyramid
from hta.training.scale import ScaleTrainer

SIDES = (25, 32, 64, 128, 256)
SHOTS = (1, 5, 10, 20, 80)
TRANSFORMS = (4, 42, 54)
TEST_IMAGES = (16, 160, 1600)
_WIDE_SIDE = 256


@dataclass(frozen=True)
class Growth:
    """What one row came to.

    Attributes:
        what: what grows.
        value: how far it has grown.
        unit: of the seconds: what was done once.
        seconds: it took.
        peak_memory_mib: resident memory of the process.
    """

    what: str
    value: int
    unit: str
    seconds: float
    peak_memory_mib: float


def measure_growth(threads: int, precision: str) -> Iterator[Growth]:
    """Measure row by row.

    Args:
        threads: of the CPU, 0 for one a core.
        precision: of hta.
    """
    config = benchmark_config(threads, precision)
    training = "iteration at the finest scale"
    for side in SIDES:
        yield _row("image side (px)", side, training, partial(_train, _sized(config, side), side, 1))
    for shots in SHOTS:
        yield _row("training images", shots, training, partial(_train, config, config.model.max_size, shots))
    for num in TRANSFORMS:
        changed = replace(config, model=replace(config.model, num_transforms=num))
        yield _row("transformations", num, training, partial(_train, changed, config.model.max_size, 1))
    for count in TEST_IMAGES:
        yield _row("test images", count, "image scored", partial(_score, config, count))


def _sized(config: Config, side: int) -> Config:
    return replace(config, model=replace(config.model, max_size=side))


def _row(what: str, value: int, unit: str, work: Callable[[], tuple[float, float]]) -> Growth:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return Growth(what, value, unit, *pool.apply(work))


def _train(config: Config, side: int, shots: int) -> tuple[float, float]:
    """Seconds of an iteration at the finest scale, after one that is not counted, and peak memory."""
    pyramid = random_pyramid(config, set_up(config.runtime), side, shots, without_finest=True)
    finest = resize(_images(shots), pyramid.plan.working_size)
    iterations = ScaleTrainer(pyramid, finest, config.training).run()
    next(iterations)
    start = time.perf_counter()
    next(iterations)
    return time.perf_counter() - start, peak_memory_mib()


def _score(config: Config, count: int) -> tuple[float, float]:
    """Seconds to score an image with its map, mean over `count`, and peak memory."""
    scorer = Scorer(random_pyramid(config, set_up(config.runtime)))
    image = data.astronaut()[:IMAGE_SIDE, :IMAGE_SIDE].astype("float32") / 255
    start = time.perf_counter()
    for _ in scorer.stream(itertools.repeat(image, count), 1.0, ScoringConfig().batch_size):
        pass
    return (time.perf_counter() - start) / count, peak_memory_mib()


def _images(shots: int) -> Tensor:
    """`(shots, 3, 256, 256)` crops of a real photograph in colour, in [-1, 1]."""
    photograph = data.astronaut().astype("float32") / 255
    starts = [(7 * shot) % (photograph.shape[0] - _WIDE_SIDE + 1) for shot in range(shots)]
    crops = [photograph[start : start + _WIDE_SIDE, start : start + _WIDE_SIDE] for start in starts]
    return to_tensor(crops)


def format_growth(rows: list[Growth]) -> str:
    """A Markdown table for a person."""
    lines = [
        f"{NUM_TRANSFORMS} transformations, 64 px, one training image, unless said otherwise",
        "",
        "| what grows | | seconds | of an | peak memory (MiB) |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.what} | {row.value} | {row.seconds:.3f} | {row.unit} | {row.peak_memory_mib:,.0f} |" for row in rows
    ]
    return "\n".join(lines)
