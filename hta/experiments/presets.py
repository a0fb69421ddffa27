"""What is run for the tables: presets and variants, written down before any result."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

METHOD_VERSION = 2
"""Raised with every change that moves a score by more than another order of rounding does: results of another version
are run again and enter no table."""


@dataclass(frozen=True)
class Preset:
    """How long and how fine a run trains.

    Attributes:
        niter: iterations a scale; None: the paper's, by the number of transformations.
        min_size, max_size: sides of the coarsest and the finest scale, pixels.
        geom_steps: optimiser steps of GEOM, the variant (g), of 128 images each.
    """

    niter: int | None
    min_size: int
    max_size: int
    geom_steps: int


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        # The released schedule. GEOM's authors train 3 epochs: 6,000 images x 72 transformations x 3 / 128.
        "paper": Preset(niter=None, min_size=25, max_size=64, geom_steps=10_125),
        # A tenth of the work. The learning rates never drop: their milestones lie at 500 and 1,000 iterations.
        "fast": Preset(niter=250, min_size=25, max_size=51, geom_steps=1_000),
    }
)


@dataclass(frozen=True)
class Variant:
    """The method, or a part of the ablation in table 6.

    Attributes:
        title: what it is, for a person.
        objective: what the discriminators learn (`hta.config.AblationConfig`).
        one_scale: side of the only scale, pixels; None: the preset's scales.
        score: what scores an image: votes on transformations, the probability "real", the distance to the training
            images, or GEOM on generated images.
    """

    title: str
    objective: str = "transformations"
    one_scale: int | None = None
    score: Literal["votes", "real_probability", "distance", "geom"] = "votes"


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "ours": Variant("the method"),
        "a": Variant("no generator", "transformations_only"),
        "b": Variant("real against fake, no transformations", "real_fake", score="real_probability"),
        "c": Variant("real against fake, augmented", "real_fake_augmented", score="real_probability"),
        "d": Variant("one scale of 100 px", one_scale=100),
        "e": Variant("one scale of 20 px", one_scale=20),
        "f": Variant("distance to the training images", score="distance"),
        "g": Variant("GEOM on generated images", score="geom"),
    }
)
