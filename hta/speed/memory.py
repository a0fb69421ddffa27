"""Peak resident memory of this process."""

import resource
from pathlib import Path


def peak_memory_mib() -> float:
    """Peak resident memory; the kernel's own figure where there is one, without the share of the parent process."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
