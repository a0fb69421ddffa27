"""Losses, vote shares and samples where people look at experiments: adapters, which alone import the libraries."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from hta.config import Config
from hta.errors import RunError, UserError
from hta.settings import brief

logger = logging.getLogger(__name__)

OWN_FILES = r"log/(events\.out\.tfevents\.[^/]+)?"
"""Pattern of the paths in a run folder that this module writes: wandb and MLflow keep all runs together elsewhere."""


class Logger(NamedTuple):
    """Where a training reports to; a step is the number of an iteration, counted over all scales from 0."""

    scalars: Callable[[int, dict[str, float]], object]  # takes a step and values by name; `/` separates groups
    image: Callable[[int, str, Any], object]  # takes a step, a name and a picture, `(h, w, 3)` uint8
    close: Callable[[bool], object]  # takes whether the training failed


def _tensorboard(folder: Path, config: Config) -> Logger:
    from torch.utils.tensorboard import SummaryWriter

    # From step 0 on, what an interrupted run wrote gives way: a resumed one says all of it again.
    writer = SummaryWriter(str(folder / "log"), purge_step=0)

    def scalars(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return Logger(
        scalars,
        image=lambda step, name, picture: writer.add_image(name, picture, step, dataformats="HWC"),
        close=lambda failed: writer.close(),
    )


def _wandb(folder: Path, config: Config) -> Logger:
    import wandb

    run = wandb.init(name=folder.name, config=asdict(config), settings={"console": "off"})
    run.define_metric("*", step_metric="step")
    return Logger(
        scalars=lambda step, values: run.log({"step": step, **values}),
        image=lambda step, name, picture: run.log({"step": step, name: wandb.Image(picture)}),
        close=lambda failed: run.finish(exit_code=int(failed)),
    )


def _mlflow(folder: Path, config: Config) -> Logger:
    import mlflow

    mlflow.start_run(run_name=folder.name)
    parts = asdict(config).items()
    mlflow.log_params({f"{part}.{name}": value for part, settings in parts for name, value in settings.items()})
    return Logger(  # in the background: a database takes longer than an iteration
        scalars=lambda step, values: mlflow.log_metrics(values, step, synchronous=False),
        image=lambda step, name, picture: mlflow.log_image(picture, f"{name}.png"),
        close=lambda failed: (mlflow.flush_async_logging(), mlflow.end_run("FAILED" if failed else "FINISHED")),
    )


_ADAPTERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}


def check_installed(names: Sequence[str]) -> None:
    """Refuse, with a UserError, a name whose library is not installed."""
    for name in names:
        if getattr(find_spec(name), "origin", None) is None:  # or a mere folder of that name, such as wandb makes
            raise UserError(f"--log {name}: {name} is not installed; pip install {name}, or leave it out")


@contextmanager
def opened(names: Sequence[str], run_folder: Path, config: Config) -> Iterator[Logger]:
    """The loggers of these names, as one, during a block; a RunError if one cannot start.

    One that fails later is said once and gets no more: no training ends because of it.
    """
    loggers: dict[str, Logger] = {}

    def tell(part: str, *arguments) -> None:
        for name, one in list(loggers.items()):
            try:
                getattr(one, part)(*arguments)
            except Exception as error:  # noqa: BLE001 (each library has errors of its own)
                logger.warning("--log %s: failed and gets no more of this training (%s)", name, error)
                del loggers[name]

    with ExitStack() as end:
        end.push(lambda kind, *_: tell("close", kind is not None))
        for name in dict.fromkeys(names):
            try:
                loggers[name] = _ADAPTERS[name](run_folder, config)
            except Exception as error:
                problem = f"--log {name}: cannot be started ({brief(str(error))})"
                raise RunError(f"{problem}; set it up or leave it out, and continue with --resume") from error
        yield Logger(*(partial(tell, part) for part in Logger._fields))
