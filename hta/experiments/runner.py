"""Runs that do not depend on each other, through joblib: on this machine, or on a Dask cluster."""

import contextlib
import io
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import joblib
import torch

from hta.errors import UserError
from hta.experiments.results import FAILED_FOLDER, ResultsFolder
from hta.experiments.unit import Outcome, Task, attempt
from hta.runtime import available_cores
from hta.training.progress import format_duration

logger = logging.getLogger(__name__)

_DIED = "the process died while this run was under way, or waiting (out of memory?)"


@dataclass(frozen=True)
class Execution:
    """How runs are executed.

    Attributes:
        jobs: runs at a time on this machine; on a cluster its workers tell.
        dask_scheduler: address of a Dask scheduler; None runs on this machine.
        keep_scores: write the scores of every image beside a result.
    """

    jobs: int = 1
    dask_scheduler: str | None = None
    keep_scores: bool = False


def threads_of_job(threads: int, jobs: int) -> int:
    """CPU threads of one run: as asked, or this machine's cores shared among the jobs."""
    return threads or max(1, available_cores() // jobs)


def available_devices() -> list[str]:
    """The CUDA devices to deal out; none where there are not several."""
    count = torch.cuda.device_count()
    return [f"cuda:{number}" for number in range(count)] if count > 1 else []


def run_tasks(tasks: Sequence[Task], folder: ResultsFolder, execution: Execution) -> int:
    """Run what is missing; every result is written as soon as it lands.

    Args:
        tasks: all runs; those whose result is there are not run again.
        folder: of the results.
        execution: how.

    Returns:
        The number of failed runs.

    Raises:
        UserError: the cluster cannot be reached, or its packages are missing.
        RunError: a result cannot be written.
    """
    missing = [task for task in tasks if not folder.holds(task.spec)]
    logger.info("%d runs, %d of them done, %d to do", len(tasks), len(tasks) - len(missing), len(missing))
    if not missing:
        return 0
    report = _Report(len(missing))
    with _backend(execution) as arguments:
        while missing:
            landed = set()
            try:
                for outcome in _outcomes(missing, execution, arguments):
                    folder.store(outcome, keep_scores=execution.keep_scores)
                    report.tell(outcome)
                    landed.add(outcome.spec)
            except _death_of_worker() as error:
                # Which run took the worker with it cannot be told: go on while others land, then give up on the rest.
                logger.warning("a worker died (%s)", type(error).__name__)
                if not landed:
                    for task in missing:
                        outcome = Outcome(task.spec, error=_DIED)
                        folder.store(outcome)
                        report.tell(outcome)
                    break
            missing = [task for task in missing if task.spec not in landed]
    if report.failures:
        logger.warning("%d of %d runs failed; see %s", report.failures, report.total, folder.path / FAILED_FOLDER)
    return report.failures


def _outcomes(tasks: Sequence[Task], execution: Execution, arguments: dict) -> Iterator[Outcome]:
    """Outcomes as they come in."""
    if execution.dask_scheduler is None and execution.jobs == 1:
        yield from map(attempt, tasks)
        return
    # Dask watches over its own workers; ours must not outlive a runner that is killed.
    runner = os.getpid() if execution.dask_scheduler is None else None
    parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1, **arguments)
    yield from parallel(joblib.delayed(_attempt_quietly)(task, runner) for task in tasks)


def _attempt_quietly(task: Task, runner: int | None) -> Outcome:
    """A task in a worker: no progress bars of several runs over each other, and no life after the runner's."""
    if runner is not None and not any(thread.name == _leave_with.__name__ for thread in threading.enumerate()):
        threading.Thread(target=_leave_with, args=(runner,), name=_leave_with.__name__, daemon=True).start()
    with contextlib.redirect_stderr(io.StringIO()):
        return attempt(task)


def _leave_with(runner: int) -> None:
    """End this process once the runner is gone."""
    while os.getppid() == runner:
        time.sleep(0.5)
    os._exit(1)


@contextlib.contextmanager
def _backend(execution: Execution) -> Iterator[dict]:
    """Arguments of `joblib.Parallel`: processes of this machine, or a cluster's workers."""
    if execution.dask_scheduler is None:
        yield {"n_jobs": execution.jobs, "backend": "loky"}
        return
    try:
        from dask.distributed import Client
    except ImportError:
        raise UserError("--dask-scheduler: dask is not installed; install hta[cluster]") from None
    try:
        client = Client(execution.dask_scheduler, timeout=10)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--dask-scheduler {execution.dask_scheduler}: cannot be reached ({reason})") from error
    with client, joblib.parallel_config(backend="dask"):
        yield {"n_jobs": -1}


def _death_of_worker() -> tuple[type[Exception], ...]:
    """The errors that tell of a dead worker."""
    try:
        from dask.distributed import KilledWorker
    except ImportError:
        return (BrokenProcessPool,)
    return BrokenProcessPool, KilledWorker


class _Report:
    """Tells of every run that lands, with the time left."""

    def __init__(self, total: int):
        self.total, self.landed, self.failures = total, 0, 0
        self._start = time.perf_counter()

    def tell(self, outcome: Outcome) -> None:
        """Report one outcome."""
        self.landed += 1
        left = (time.perf_counter() - self._start) / self.landed * (self.total - self.landed)
        if outcome.record is None:
            self.failures += 1
            said = f"FAILED: {outcome.error.strip().splitlines()[-1]}"
        else:
            auroc, run = outcome.record["results"]["auroc"]["mean"], outcome.record["run"]
            seconds = run["seconds_training"] + run["seconds_scoring"]
            said = f"AUROC {'undefined' if auroc is None else f'{auroc:.3f}'} in {format_duration(seconds)}"
        logger.info(
            "%d/%d %s: %s; about %s left",
            self.landed,
            self.total,
            outcome.spec.describe(),
            said,
            format_duration(left),
        )
