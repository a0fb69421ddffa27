"""The plain way in a process of its own, with nothing set that a plain program would not set.

hta asks the memory allocator to keep what is freed, for the whole process; timed beside it, the plain way would profit
from that too.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from hta.images import resize
from hta.runtime import Runtime, available_cores, seeded_generator
from hta.speed.explicit import ExplicitScale, explicit_network, explicit_vote_shares
from hta.speed.memory import peak_memory_mib
from hta.speed.workload import benchmark_config, build_trainers, finest_pair, random_pyramid, training_image


@dataclass(frozen=True)
class Work:
    """What the process is asked for.

    Attributes:
        task: "train" one iteration at a scale, "score" one image at all scales, or "memory" of training the finest.
        scale: to train, 0 = coarsest.
    """

    task: str
    scale: int = 0


class PlainProcess:
    """A process that does the work of the plain way when it is asked to, and waits otherwise.

    Args:
        threads: of the CPU, 0 for one a core.
    """

    def __init__(self, threads: int):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(threads, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> "PlainProcess":
        return self

    def __exit__(self, *exception) -> None:
        self._pipe.close()
        self._process.join()

    def measure(self, work: Work) -> float:
        """Do it once and say how long it took, seconds; of "memory" how much it took, MiB.

        Raises:
            EOFError: the process died.
        """
        self._pipe.send(work)
        return self._pipe.recv()


def _serve(threads: int, pipe: Connection) -> None:
    """Answer until the other side hangs up."""
    torch.set_num_threads(threads or available_cores())
    worker = _Worker(threads)
    while True:
        try:
            work = pipe.recv()
        except EOFError:
            return
        pipe.send(worker.do(work))


class _Worker:
    """Keeps what is prepared between two pieces of work."""

    def __init__(self, threads: int):
        self.config = benchmark_config(threads, "float32")
        self.runtime = Runtime(torch.device("cpu"), torch.float32)
        self.prepared: tuple[Work, Callable[[], Any]] | None = None

    def do(self, work: Work) -> float:
        if work.task == "memory":
            return self._memory()
        if self.prepared is None or self.prepared[0] != work:
            self.prepared = (work, self._prepare(work))
        start = time.perf_counter()
        self.prepared[1]()
        return time.perf_counter() - start

    def _prepare(self, work: Work) -> Callable[[], Any]:
        if work.task == "train":
            explicit = self._explicit_scales()[work.scale]
            stream = seeded_generator("benchmark")
            return lambda: explicit.iterate(stream)
        pyramid = random_pyramid(self.config, self.runtime)
        networks = [explicit_network(scale.discriminator.body) for scale in pyramid.scales]
        image = resize(training_image(), pyramid.plan.working_size)
        return lambda: explicit_vote_shares(networks, pyramid, image)

    def _explicit_scales(self) -> Sequence[ExplicitScale]:
        return [explicit for _, explicit in build_trainers(self.config, self.runtime)]

    def _memory(self) -> float:
        _, explicit = finest_pair(self.config, self.runtime)
        for _ in range(2):
            explicit.iterate(seeded_generator("benchmark"))
        return peak_memory_mib()
