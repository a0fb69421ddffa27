"""Hierarchical transformation-discriminating anomaly detection from one image, or a few (HTDG, ICCV 2021).

model = hta.train(images)
model = hta.load("brick")
"""

from hta.version import __version__

__all__ = ["Model", "__version__", "default_config", "load", "train"]


def __getattr__(name: str):
    """Import the library on first use, so that `hta.__version__` and the small modules stay light."""
    if name in __all__:
        from hta import api

        return getattr(api, name)
    raise AttributeError(f"module 'hta' has no attribute {name!r}")
