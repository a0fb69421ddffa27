"""The plain method in a separate process, with the settings of an ordinary program.

hta makes the memory allocator of its process keep freed memory; in the same process, the plain method would benefit
from this too.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch

from hta.models.scales import image_pyramid
from hta.runtime import Runtime, available_cores, seeded_generator
from hta.speed.explicit import PlainNetwork, transformation_list, vote_share
from hta.speed.workload import (
    NUM_TRANSFORMS,
    benchmark_config,
    explicit_scale,
    random_pyramid,
    scale_trainer,
    training_images,
)

T = TypeVar("T")

_SETTINGS = benchmark_config(0, "float32"), Runtime(torch.device("cpu"), torch.float32, compile=False)


def new_process(threads: int | None = None) -> ProcessPoolExecutor:
    """A fresh process for functions of this package.

    Args:
        threads: CPU threads of the plain method, 0 for one per core; by default, the functions set up theirs.
    """
    context = multiprocessing.get_context("spawn")
    if threads is None:
        return ProcessPoolExecutor(1, context)
    return ProcessPoolExecutor(1, context, torch.set_num_threads, (threads or available_cores(),))


def run_in(process: ProcessPoolExecutor, work: Callable[..., T], *arguments) -> T:
    """Call a function in a process, and return its result.

    Raises:
        BrokenProcessPool: the process died.
    """
    return process.submit(work, *arguments).result()


def time_training(scale: int) -> float:
    """Seconds of one iteration at a scale, 0 the coarsest, in the plain method."""
    return timed(_prepare_training(scale))()


def time_scoring() -> float:
    """Seconds for scoring one image at all scales in the plain method."""
    return timed(_prepare_scoring())()


def training_memory() -> float:
    """Peak memory of this process, MiB, after two iterations at the finest scale in the plain method."""
    work = _prepare_training(None)
    for _ in range(2):
        work()
    return peak_memory_mib()


@lru_cache(maxsize=1)
def _prepare_training(scale: int | None) -> Callable[[], object]:
    explicit, stream = explicit_scale(scale_trainer(*_SETTINGS, scale)), seeded_generator("benchmark")
    return lambda: explicit.iterate(stream)


@lru_cache(maxsize=1)
def _prepare_scoring() -> Callable[[], object]:
    pyramid, transformations = random_pyramid(*_SETTINGS), transformation_list(NUM_TRANSFORMS)
    networks = [PlainNetwork.copy_of(scale.discriminator.body) for scale in pyramid.scales]
    (image,) = image_pyramid(training_images(), [pyramid.plan.working_size])
    return lambda: [
        vote_share(network, level, transformations)
        for network, level in zip(networks, image_pyramid(image, pyramid.plan.sizes), strict=True)
    ]


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """The same work, returning the seconds that it took."""

    def way() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return way


def peak_memory_mib() -> float:
    """Peak resident memory of this process, from the kernel where possible: without the share of the parent process."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
