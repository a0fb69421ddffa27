"""Independent runs through joblib: on this machine, or on a Dask cluster."""

import contextlib
import io
import logging
import os
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch

from hta.config import RuntimeConfig
from hta.errors import UserError
from hta.experiments.plan import RunSpec
from hta.experiments.results import FAILED_FOLDER, is_done, store
from hta.experiments.run import execute
from hta.training.progress import format_duration

logger = logging.getLogger(__name__)

Landed = tuple[RunSpec, dict[str, Any], Mapping[str, np.ndarray]]
"""What comes back from a worker: the run, its record, or one with the key "error", and the scores of its images."""

_DIED = "the process died while this run was under way, or waiting (out of memory?)"


def available_devices() -> list[str]:
    """The CUDA devices to distribute; none unless there are several."""
    count = torch.cuda.device_count()
    return [f"cuda:{number}" for number in range(count)] if count > 1 else []


def run_missing(
    runs: Mapping[RunSpec, RuntimeConfig],
    data_root: str,
    folder: Path,
    *,
    jobs: int = 1,
    dask_scheduler: str | None = None,
    keep_scores: bool = False,
) -> int:
    """Do the runs whose result is missing, write every result as soon as it arrives, and return how many runs failed.

    Each run comes with its device, threads and precision. The workers of a Dask scheduler do them if its address is
    given, else this machine, `jobs` at a time. `keep_scores`: also write the scores of every image beside a result.

    Raises:
        UserError: the cluster cannot be reached, or its packages are missing.
        RunError: a result cannot be written.
    """
    missing = {spec: config for spec, config in runs.items() if not is_done(folder, spec)}
    logger.info("%d runs, %d of them done, %d to do", len(runs), len(runs) - len(missing), len(missing))
    if not missing:
        return 0
    total, failures, start = len(missing), 0, time.perf_counter()

    def keep(spec: RunSpec, record: dict[str, Any], scores: Mapping[str, np.ndarray]) -> None:
        nonlocal failures
        failures += "error" in record
        store(folder, spec, record, scores, keep_scores=keep_scores)
        del missing[spec]
        ended = total - len(missing)
        left = format_duration((time.perf_counter() - start) / ended * len(missing))
        logger.info("%d/%d %s: %s; about %s left", ended, total, spec.describe(), _describe(record), left)

    with _workers(jobs, dask_scheduler) as workers:
        while missing:
            before = len(missing)
            try:
                for result in _results(missing.copy(), data_root, workers):
                    keep(*result)
            except _errors_of_dead_workers() as error:
                # Which run killed the worker is unknown: continue while others arrive, then give up on the rest.
                logger.warning("a worker died (%s)", type(error).__name__)
                if len(missing) == before:
                    for spec in list(missing):
                        keep(spec, _failure(spec, _DIED), {})
    if failures:
        logger.warning("%d of %d runs failed; see %s", failures, total, folder / FAILED_FOLDER)
    return failures


def _describe(record: dict[str, Any]) -> str:
    """A result in a few words."""
    if "error" in record:
        return f"FAILED: {record['error'].strip().splitlines()[-1]}"
    auroc, run = record["results"]["auroc"]["mean"], record["run"]
    duration = format_duration(run["seconds_training"] + run["seconds_scoring"])
    return f"AUROC {'undefined' if auroc is None else f'{auroc:.3f}'} in {duration}"


def _results(runs: dict[RunSpec, RuntimeConfig], data_root: str, workers: dict[str, Any] | None) -> Iterator[Landed]:
    """Results as they arrive."""
    if workers is None:
        yield from (_attempt(spec, data_root, config) for spec, config in runs.items())
        return
    # Dask watches over its own workers; ours must not outlive a runner that is killed.
    runner = os.getpid() if workers.get("backend") == "loky" else None
    tasks = [joblib.delayed(_attempt_in_worker)(spec, data_root, config, runner) for spec, config in runs.items()]
    yield from joblib.Parallel(return_as="generator_unordered", batch_size=1, **workers)(tasks)


def _attempt(spec: RunSpec, data_root: str, config: RuntimeConfig) -> Landed:
    """Do a run; an error becomes its record."""
    try:
        return (spec, *execute(spec, data_root, config))
    except Exception:  # noqa: BLE001 (whatever breaks one run, the others continue)
        return spec, _failure(spec, traceback.format_exc()), {}


def _failure(spec: RunSpec, error: str) -> dict[str, Any]:
    return {"spec": asdict(spec), "date": datetime.now(UTC).isoformat(timespec="seconds"), "error": error}


def _attempt_in_worker(spec: RunSpec, data_root: str, config: RuntimeConfig, runner: int | None) -> Landed:
    """A run in a worker: no progress bars of several runs over each other, and no life after the runner's."""
    if runner is not None and not any(thread.name == _exit_after.__name__ for thread in threading.enumerate()):
        threading.Thread(target=_exit_after, args=(runner,), name=_exit_after.__name__, daemon=True).start()
    with contextlib.redirect_stderr(io.StringIO()):
        return _attempt(spec, data_root, config)


def _exit_after(runner: int) -> None:
    """End this process once the runner is gone."""
    while os.getppid() == runner:
        time.sleep(0.5)
    os._exit(1)


@contextlib.contextmanager
def _workers(jobs: int, dask_scheduler: str | None) -> Iterator[dict[str, Any] | None]:
    """Arguments of `joblib.Parallel` for processes of this machine or a cluster's workers; None to stay in this one."""
    if dask_scheduler is None:
        yield {"n_jobs": jobs, "backend": "loky"} if jobs > 1 else None
        return
    try:
        from dask.distributed import Client
    except ImportError:
        raise UserError("--dask-scheduler: dask is not installed; install hta[cluster]") from None
    try:
        client = Client(dask_scheduler, timeout=10)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--dask-scheduler {dask_scheduler}: cannot be reached ({reason})") from error
    with client, joblib.parallel_config(backend="dask"):
        yield {"n_jobs": -1}


def _errors_of_dead_workers() -> tuple[type[Exception], ...]:
    try:
        from dask.distributed import KilledWorker
    except ImportError:
        return (BrokenProcessPool,)
    return BrokenProcessPool, KilledWorker
