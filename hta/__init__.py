"""Hierarchical transformation-discriminating anomaly detection from one or a few images (HTDG, ICCV 2021).

model = hta.train(images)
model = hta.load("brick")
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "HTADetector": "hta.estimator",
    "Model": "hta.model",
    "default_config": "hta.config",
    "load": "hta.model",
    "train": "hta.runs",
}

__all__ = ["HTADetector", "Model", "__version__", "default_config", "load", "train"]


def __getattr__(name: str):
    """Import the library on first use: command lines and their errors need none of it, and respond at once."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hta' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The library's names, most of which are imported on first use."""
    return sorted(__all__)
