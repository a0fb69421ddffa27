"""What a training reports while it runs: losses in metrics.csv, progress bars and the time left."""

import csv
import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.auto import notebook_tqdm  # tqdm itself, but in a notebook with widgets

from hta.config import ModelConfig
from hta.errors import UserError
from hta.files import write_atomically
from hta.models.canvas import plan_canvases
from hta.models.scales import ScalePlan
from hta.training.logs import Logger
from hta.training.scale import IterationLosses

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.csv"
OWN_FILES = r"metrics\.csv"
"""Pattern of the files in a run folder that this module writes."""

LOSSES = tuple(f.name for f in fields(IterationLosses))
"""The columns of metrics.csv after scale and iteration."""

_HEADER = ("scale", "iteration", *LOSSES)
WARM_UP, TIMED = 2, 5
"""Iterations that warm up caches and allocators, and the next ones, which are timed for an estimate."""

_LINE_EVERY_S = 30
_BAR = "{desc} |{bar}| {percentage:.0f} %{postfix}"  # leaves some characters for the bar even in 40 columns
# Costs in channels times pixels, fitted to seconds at 25 to 128 px: of the generator per pixel of the image, and of an
# iteration of any size; after training, of all views per pixel of a canvas, of a sample per pixel, and of the rest.
_GENERATOR, _FIXED, _VIEWS, _SAMPLE, _END = 10, 5e5, 13, 0.16, 2e7


class Progress:
    """Shows how far some work is: a bar on a terminal or in a notebook, elsewhere now and then a line at INFO."""

    _spoke = time.monotonic()  # for all work: many short parts give no more lines than a long one

    def __init__(self, title: str, total: int, done: int = 0):
        self._title, self._total, self._done = title, total, done
        quiet = None if notebook_tqdm is tqdm else False  # None: where stderr is no terminal, which no notebook is
        self._bar = notebook_tqdm(
            total=total, initial=done, desc=title, bar_format=_BAR, disable=quiet, dynamic_ncols=True
        )

    def advance(self, seconds_left: float | None) -> None:
        """Count one more; None where the time left is not known yet."""
        self._done += 1
        left = "" if seconds_left is None else f"{format_duration(seconds_left)} left"
        if not self._bar.disable:
            self._bar.set_postfix_str(left, refresh=False)
            self._bar.update()
        elif time.monotonic() - Progress._spoke >= _LINE_EVERY_S:
            Progress._spoke = time.monotonic()
            logger.info("%s: %d %%, %s", self._title, 100 * self._done // self._total, left or "just begun")

    def close(self) -> None:
        """End the bar."""
        self._bar.close()


def progress_bar(items: Iterable[Any], title: str, total: int) -> Iterator[Any]:
    """The items, with their progress while they are consumed."""
    progress, start = Progress(title, total), time.monotonic()
    try:
        for done, item in enumerate(items, 1):
            yield item
            progress.advance((time.monotonic() - start) / done * (total - done))
    finally:
        progress.close()


class Journal:
    """Keeps the losses of a run, `niter` iterations per scale, in its folder and log, if any, and shows progress."""

    def __init__(self, costs: "Costs", niter: int, folder: Path | None = None, log: Logger | None = None):
        self.rows: list[tuple] = []
        self._costs, self._niter, self._path = costs, niter, folder / METRICS_FILE if folder else None
        self._is_estimated, self._log = False, log

    def resume(self, scale: int, iteration: int) -> None:
        """Keep the rows that `read_losses` finds from before a checkpoint, and drop the later ones."""
        earlier = read_losses(self._path) if self._path else []
        for row in (row for row in earlier if row[:2] < (scale, iteration)):
            self._keep(row)

    def begin_scale(self, n: int, iteration: int) -> None:
        """Show the progress of a scale that starts at an iteration."""
        self._progress, self._count = Progress(f"scale {n}", self._niter, iteration), 0

    def record(self, n: int, iteration: int, losses: IterationLosses) -> None:
        """Record the losses of one iteration; early in a run, say how long all of it will take."""
        self._keep((n, iteration, *asdict(losses).values()))
        self._count += 1
        if self._count <= WARM_UP:
            self._start = time.perf_counter()
            self._progress.advance(None)
            return
        pace = (time.perf_counter() - self._start) / (self._count - WARM_UP)
        left = self._costs.seconds_left(n, self._niter, iteration + 1, pace)
        self._progress.advance(left)
        if self._count == WARM_UP + TIMED and not self._is_estimated:
            self._is_estimated = True
            logger.info("scale %d: %.2f s per iteration; roughly %s left in all", n, pace, format_duration(left))

    def _keep(self, row: tuple) -> None:
        self.rows.append(row)
        if self._log:
            self._log.scalars(row[0] * self._niter + row[1], dict(zip(LOSSES, row[2:], strict=True)))

    def end_scale(self) -> None:
        """Close the progress bar of a scale."""
        self._progress.close()

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


class Costs:
    """What the parts of a run with some training images cost, roughly and relative to each other.

    Random samples, page and calibration follow the training, unless `num_samples` is None.
    """

    def __init__(self, plan: ScalePlan, config: ModelConfig, num_images: int = 1, num_samples: int | None = None):
        self.iterations: list[float] = []
        self.end = 0.0 if num_samples is None else _END
        for size, width in zip(plan.sizes, plan.widths, strict=True):
            groups = plan_canvases(*size, config.num_transforms).groups
            canvases, pixels = sum(len(g.canvases) * math.prod(g.size) for g in groups), math.prod(size)
            self.iterations.append(_FIXED + num_images * width * (canvases + _GENERATOR * pixels))
            if num_samples is not None:
                self.end += width * (_VIEWS * canvases + _SAMPLE * num_samples * pixels)

    def seconds_left(self, n: int, niter: int, iteration: int, pace: float) -> float:
        """Seconds until the end, after some of `niter` iterations of scale n, which took `pace` seconds each."""
        later = niter * sum(self.iterations[n + 1 :]) + self.end
        return pace * (niter - iteration + later / self.iterations[n])


def format_duration(seconds: float) -> str:
    """Format a duration for people, such as "2 h 05 min", "3 min 20 s" or "12 s"."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"
