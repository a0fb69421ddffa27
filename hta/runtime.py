"""Device, precision, threads and seeds: the machine, separate from the method."""

import ctypes
import hashlib
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hta import __version__
from hta.config import RuntimeConfig
from hta.errors import UserError

logger = logging.getLogger(__name__)

_MALLOC_TRIM_THRESHOLD, _MALLOC_MMAP_THRESHOLD, _KEEP_BYTES = -1, -3, 1 << 30
_PACKAGES = ("torch", "torchvision", "numpy", "pillow")


@dataclass(frozen=True)
class Runtime:
    """A resolved device and data type."""

    device: torch.device
    dtype: torch.dtype  # of the activations; weights, statistics, losses and optimisers use at least float32
    compile: bool = True  # whether to train with compiled kernels where possible


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _resolve_device(config: RuntimeConfig) -> torch.device:
    """The device that the settings ask for, or a UserError."""
    if config.not_cuda:
        if config.device is not None and not config.device.startswith("cpu"):
            raise UserError(f"--device {config.device} contradicts --not_cuda: give one of the two")
        return torch.device("cpu")
    if config.device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
    except (RuntimeError, ValueError):
        raise UserError(f"--device {config.device}: not a device; give cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {config.device}: only cpu and cuda are supported")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {config.device}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the hardware supports bfloat16 natively (CPU: AVX512-BF16 or AMX; CUDA: Ampere or later)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.backends.cpu.get_capabilities() if hasattr(torch.backends.cpu, "get_capabilities") else {}
    # The operating system knows where an old torch does not.
    return any(capabilities.get(name) or name in _cpuinfo() for name in ("avx512_bf16", "amx_bf16"))


def _cpuinfo() -> str:
    """What Linux says about the processor; empty elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def resolve(config: RuntimeConfig) -> Runtime:
    """The device and precision that the settings mean on this machine; a UserError if there is no such device."""
    device = _resolve_device(config)
    wants_bfloat16 = config.precision == "bfloat16" or (config.precision == "auto" and has_native_bfloat16(device))
    return Runtime(device, torch.bfloat16 if wants_bfloat16 else torch.float32, config.compile)


def set_up(config: RuntimeConfig) -> Runtime:
    """`resolve`, and do what the settings ask for explicitly: a number of threads, deterministic kernels.

    All else of the process belongs to the user of the library.
    """
    runtime = resolve(config)
    if runtime.device.type == "cpu" and config.device is None and not config.not_cuda:
        logger.info("no CUDA device found: running on the CPU")
    if config.threads and not _is_limited:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return runtime


def own_process(config: RuntimeConfig) -> None:
    """Use the whole machine: one thread per core unless the settings say otherwise, and memory that is kept.

    For scripts, to whom the process belongs; the library leaves both alone.
    """
    torch.set_num_threads(config.threads or available_cores())
    if platform.libc_ver()[0] == "glibc":
        # Keep freed memory: each step allocates new activations, and fresh pages cost more than the maths.
        libc = ctypes.CDLL(None)
        libc.mallopt(_MALLOC_MMAP_THRESHOLD, _KEEP_BYTES)
        libc.mallopt(_MALLOC_TRIM_THRESHOLD, _KEEP_BYTES)
    torch.backends.cudnn.allow_tf32 = False  # see `full_precision`


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 convolutions in float32 during a block, not in the shorter TF32 that is the default on a GPU."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


_has_threads = _is_limited = False  # at the last fork; in this process, by `_limit_threads`


def _look_at_threads() -> None:
    """Note, before a fork, whether there are threads that the new process will lack."""
    global _has_threads
    tasks = Path("/proc/self/task")
    _has_threads = len(list(tasks.iterdir())) > 1 if tasks.exists() else True


def _limit_threads() -> None:
    """Compute in one thread in a forked process: torch would wait forever for the threads that were not copied."""
    global _is_limited
    if _has_threads:
        _is_limited = True
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_look_at_threads, after_in_child=_limit_threads)


def seeded_generator(*keys: int | str) -> torch.Generator:
    """A new generator whose stream depends on the keys only, such as a seed, a purpose and an index.

    Noise is always drawn on the CPU, so that a seed gives the same noise on every device.
    """
    digest = hashlib.sha256("/".join(map(str, keys)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def describe_machine(runtime: Runtime) -> dict[str, Any]:
    """Processor, cores, threads, device and floating-point type, as a result records them."""
    on_cuda = runtime.device.type == "cuda"
    models = [line.split(":", 1)[1].strip() for line in _cpuinfo().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(runtime.device) if on_cuda else "cpu",
        "dtype": str(runtime.dtype).removeprefix("torch."),
    }


def describe_versions() -> dict[str, str]:
    """Versions of hta, Python and the packages that the numbers depend on."""
    return {"hta": __version__, "python": platform.python_version()} | {p: metadata.version(p) for p in _PACKAGES}
