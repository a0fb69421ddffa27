"""What a result says of the machine and the software that made it."""

import os
import platform
from importlib import metadata
from typing import Any

import torch

from hta.runtime import Runtime, available_cores
from hta.version import __version__

_PACKAGES = ("torch", "torchvision", "numpy", "pillow")


def describe_machine(runtime: Runtime) -> dict[str, Any]:
    """Processor, cores, threads, device and type of the computation."""
    on_cuda = runtime.device.type == "cuda"
    return {
        "cpu": _cpu_model(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(runtime.device) if on_cuda else "cpu",
        "dtype": str(runtime.dtype).removeprefix("torch."),
    }


def describe_versions() -> dict[str, str]:
    """Versions of hta, Python and what the numbers depend on."""
    return {"hta": __version__, "python": platform.python_version()} | {p: metadata.version(p) for p in _PACKAGES}


def _cpu_model() -> str:
    if os.path.exists("/proc/cpuinfo"):  # noqa: PTH110 (not a user's file)
        with open("/proc/cpuinfo") as stream:  # noqa: PTH123
            for line in stream:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
