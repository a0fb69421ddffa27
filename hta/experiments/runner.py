"""Independent runs: one after the other, in processes of this machine, or on a Dask cluster."""

import asyncio
import contextlib
import io
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
import traceback
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm

from hta.config import RuntimeConfig
from hta.errors import RunError, UserError
from hta.experiments.plan import RunSpec
from hta.experiments.results import FAILED_FOLDER, is_done, make_folder, store
from hta.experiments.run import execute
from hta.training.progress import format_duration

logger = logging.getLogger(__name__)

Landed = tuple[RunSpec, dict[str, Any], Mapping[str, np.ndarray]]
"""What comes back from a worker: the run, its record, or one with the key "error", and the scores of its images."""
Results = Generator[Landed, None, None]

_DIED = "the process of this run died with status {} (-9: killed; out of memory?)"
_CONNECT_S = 10  # for a connection to the scheduler, and to find it again after it was lost
_ANSWER_S = 60  # a scheduler that is silent for longer, after as long without a result, is gone
_FAREWELL_S = 10  # for a process to end after it sent its result


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
    if keep_scores and (bare := sum(not (folder / f"{s.name}.npz").exists() for s in runs.keys() - missing.keys())):
        text = "the scores of %d runs that are done were not kept; to make them again, move their results away"
        logger.warning(text, bare)
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

    for place in (folder, folder / FAILED_FOLDER) if (folder / FAILED_FOLDER).exists() else (folder,):
        make_folder(place)  # said now if it is impossible, not after the first run
    for spec in [spec for spec in missing if (folder / f"{spec.name}.json").is_dir()]:
        keep(spec, _failure(spec, f"{folder / spec.name}.json: a folder is where the result goes; move it away"), {})
    if dask_scheduler is not None:
        results = _on_cluster(missing.copy(), data_root, dask_scheduler)
    elif jobs > 1:
        results = _in_processes(missing.copy(), data_root, jobs)
    else:
        results = (_attempt(spec, data_root, config) for spec, config in missing.copy().items())
    try:
        for result in results:
            keep(*result)
    finally:
        results.close()  # ends the workers, whatever happened here
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


def _attempt(spec: RunSpec, data_root: str, config: RuntimeConfig) -> Landed:
    """Do a run; an error becomes its record."""
    try:
        return (spec, *execute(spec, data_root, config))
    except Exception:  # noqa: BLE001 (whatever breaks one run, the others continue)
        return spec, _failure(spec, traceback.format_exc()), {}


def _failure(spec: RunSpec, error: str) -> dict[str, Any]:
    return {"spec": asdict(spec), "date": datetime.now(UTC).isoformat(timespec="seconds"), "error": error}


def _attempt_quietly(spec: RunSpec, data_root: str, config: RuntimeConfig) -> Landed:
    """A run in a worker: no progress bars of several runs over each other."""
    with contextlib.redirect_stderr(io.StringIO()):
        return _attempt(spec, data_root, config)


# --- processes of this machine ------------------------------------------------------------------------------------


def _in_processes(runs: dict[RunSpec, RuntimeConfig], data_root: str, jobs: int) -> Results:
    """Results as they arrive, of one process for each run: when one dies, it is known which, and no other is lost."""
    context, waiting = multiprocessing.get_context("spawn"), list(runs.items())
    under_way: dict[Any, tuple[RunSpec, Any]] = {}  # by the pipe through which the result comes
    try:
        while waiting or under_way:
            while waiting and len(under_way) < jobs:
                spec, config = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                task = sender, os.getpid(), spec, data_root, config
                process = context.Process(target=_work, args=task, daemon=True)
                under_way[receiver] = spec, process
                with _interrupts_held(), sender:
                    process.start()
            for receiver in cast(list[Any], multiprocessing.connection.wait(list(under_way))):
                yield _receive(receiver, *under_way.pop(receiver))
    finally:
        for _, process in under_way.values():
            if process.pid is not None:
                process.kill()


def _receive(receiver: Any, spec: RunSpec, process: Any) -> Landed:
    """What a process has sent; that it died if it ended without a word."""
    try:
        return receiver.recv()
    except (EOFError, OSError):  # ended before the result, or in its middle
        process.join(_FAREWELL_S)
        return spec, _failure(spec, _DIED.format(process.exitcode)), {}
    finally:
        receiver.close()
        process.join(_FAREWELL_S)


def _work(sender: Any, runner: int, spec: RunSpec, data_root: str, config: RuntimeConfig) -> None:
    """Do a run in a process of its own, and send its result to the runner."""
    threading.Thread(target=_exit_after, args=(runner,), daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own lock, of several processes, would be missed if this one is killed
    sender.send(_attempt_quietly(spec, data_root, config))


def _exit_after(runner: int) -> None:
    """End this process once the runner is gone."""
    while os.getppid() == runner:
        time.sleep(0.5)
    os._exit(1)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """A process that starts here never sees Ctrl-C, which a terminal sends to all; the runner ends it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- a cluster ----------------------------------------------------------------------------------------------------


def _on_cluster(runs: dict[RunSpec, RuntimeConfig], data_root: str, address: str) -> Results:
    """Results as they arrive from the workers of a Dask scheduler, which watches over them."""
    try:
        import dask.distributed as distributed
    except ImportError:
        raise UserError("--dask-scheduler: dask is not installed; install hta[cluster]") from None
    log = logging.getLogger("distributed")
    log.propagate = False  # it tells of a lost connection in tracebacks
    log.addHandler(logging.NullHandler())
    try:
        if not asyncio.run(_ask(address, _CONNECT_S))["workers"]:
            logger.info("--dask-scheduler %s: has no workers yet; the runs wait for some", address)
        client = distributed.Client(address, timeout=_CONNECT_S)
    except Exception as error:  # whatever answers there
        reason = " ".join(str(error).split()) or f"no answer in {_CONNECT_S} s"
        raise UserError(f"--dask-scheduler {address}: no Dask scheduler can be reached there ({reason})") from error
    with client:
        submit = partial(client.submit, _attempt_quietly, pure=False)
        specs = {submit(spec, data_root, config): spec for spec, config in runs.items()}
        while specs:
            try:
                for future in _next_done(list(specs), address):
                    yield _gather(future, specs.pop(future))
            except (OSError, distributed.CancelledError) as error:
                raise RunError(
                    f"--dask-scheduler {address}: the scheduler is gone; finished runs are kept, and the same command "
                    "continues with the rest"
                ) from error


def _next_done(futures: list[Any], address: str) -> Iterable[Any]:
    """Wait until some futures are done; an OSError if the scheduler no longer answers."""
    from dask import distributed

    while True:
        try:
            return distributed.wait(futures, timeout=_ANSWER_S, return_when="FIRST_COMPLETED").done
        except distributed.TimeoutError:
            asyncio.run(_ask(address, _ANSWER_S))


def _gather(future: Any, spec: RunSpec) -> Landed:
    """The result of a future that is done; one that failed because its worker died several times, or has no hta."""
    error = None if future.cancelled() else future.exception()
    if error is None:
        return future.result()
    return spec, _failure(spec, " ".join(f"{type(error).__name__}: {error}".split())), {}


async def _ask(address: str, seconds: float) -> dict[str, Any]:
    """What a scheduler says of itself, in so many seconds; an OSError, or what a stranger causes, if it does not."""
    from dask import distributed

    async with distributed.rpc(address) as scheduler:
        return await asyncio.wait_for(scheduler.identity(), seconds)
