"""What a training reports while it runs: losses in metrics.csv, progress bars and the time left."""

import csv
import logging
import time
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hta.config import ModelConfig
from hta.errors import UserError
from hta.files import write_atomically
from hta.models.canvas import plan_canvases
from hta.models.scales import ScalePlan
from hta.training.scale import IterationLosses

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.csv"
OWN_FILES = r"metrics\.csv"
"""Pattern of the files in a run folder that this module writes."""

LOSSES = tuple(f.name for f in fields(IterationLosses))
"""The columns of metrics.csv after scale and iteration."""

_HEADER = ("scale", "iteration", *LOSSES)
_WARM_UP, _TIMED = 2, 5  # iterations that warm up caches and allocators, and the next ones, which are timed
_FIXED_COST = 9e7  # of an iteration of any size, in multiplications of one layer: fitted to seconds at 25 ... 64 px


class Journal:
    """Keeps the losses of a run, `niter` iterations per scale, in its folder if it has one, and shows its progress."""

    def __init__(self, plan: ScalePlan, config: ModelConfig, niter: int, folder: Path | None = None):
        self.rows: list[tuple] = []
        self._plan, self._niter, self._path = plan, niter, folder / METRICS_FILE if folder else None
        self._costs = [_relative_cost(plan, config, n) for n in range(plan.num_scales)]
        self._bar = tqdm(disable=True)
        self._times: list[float] = []

    def resume(self, scale: int, iteration: int) -> None:
        """Keep the rows that `read_losses` finds from before a checkpoint, and drop the later ones."""
        earlier = read_losses(self._path) if self._path else []
        self.rows = [row for row in earlier if row[:2] < (scale, iteration)]

    def begin_scale(self, n: int, iteration: int) -> None:
        """Show the progress bar of a scale that starts at an iteration."""
        height, width = self._plan.sizes[n]
        title = f"scale {n} of 0-{self._plan.num_scales - 1} ({width} x {height} px)"
        # disable=None: quiet where stderr is not a terminal.
        self._bar = tqdm(total=self._niter, initial=iteration, desc=title, unit="it", disable=None, dynamic_ncols=True)
        self._times = [time.perf_counter()]

    def record(self, n: int, iteration: int, losses: IterationLosses) -> None:
        """Record the losses of one iteration; early in a scale, say how long the rest of the run will take."""
        values = asdict(losses)
        self.rows.append((n, iteration, *values.values()))
        self._bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()}, refresh=False)
        self._bar.update()
        self._times.append(time.perf_counter())
        if len(self._times) == 1 + _WARM_UP + _TIMED:
            seconds = float(np.median(np.diff(self._times[1 + _WARM_UP :])))
            later = sum(self._niter * seconds * cost / self._costs[n] for cost in self._costs[n + 1 :])
            left = format_duration((self._niter - iteration - 1) * seconds + later)
            logger.info("scale %d: %.2f s per iteration; roughly %s left in all", n, seconds, left)

    def end_scale(self) -> None:
        """Close the progress bar of a scale."""
        self._bar.close()

    def save(self) -> None:
        """Write metrics.csv, if the run has a folder."""
        if self._path is None:
            return
        lines = [(*row[:2], *(f"{value:.6g}" for value in row[2:])) for row in self.rows]
        text = "".join(",".join(map(str, line)) + "\n" for line in (_HEADER, *lines))
        write_atomically(self._path, text.encode())


def read_losses(path: Path) -> list[tuple]:
    """Read the rows of a metrics.csv: scale, iteration and the losses in the order of `LOSSES`; none without a file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            table = list(csv.reader(stream))[1:]
        if any(len(row) != len(_HEADER) for row in table):
            raise ValueError(f"not {len(_HEADER)} columns in every row")
        return [(int(scale), int(iteration), *map(float, losses)) for scale, iteration, *losses in table]
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it to resume without the earlier losses") from error


def _relative_cost(plan: ScalePlan, config: ModelConfig, n: int) -> float:
    """Multiplications of the discriminator on its canvases, plus a constant for what does not depend on the size."""
    width = plan.widths[n]
    canvases = plan_canvases(*plan.sizes[n], config.num_transforms)
    pixels = sum(len(group.canvases) * group.size[0] * group.size[1] for group in canvases.groups)
    hidden = (config.num_layer - 2) * width * width
    return pixels * (3 * width + hidden + width * (config.num_transforms + 1)) + _FIXED_COST


def format_duration(seconds: float) -> str:
    """Format a duration for people, such as "2 h 05 min", "3 min 20 s" or "12 s"."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"
