"""Hierarchical transformation-discriminating anomaly detection from one image, or a few (HTDG, ICCV 2021).

model = hta.train(images)
model = hta.load("brick")
"""

import importlib

from hta.version import __version__

_HOMES = {"Model": "hta.model", "default_config": "hta.config", "load": "hta.model", "train": "hta.runs"}

__all__ = ["Model", "__version__", "default_config", "load", "train"]


def __getattr__(name: str):
    """Import the library on first use, so that `hta.__version__` and the small modules stay light."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hta' has no attribute {name!r}")
