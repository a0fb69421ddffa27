"""One run: the presets and variants, written down before any result, and the key of all that its result depends on."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal

from hta.config import AblationConfig, Config, default_config
from hta.data.specs import default_task
from hta.errors import UserError
from hta.evaluation.scores import default_fraction
from hta.settings import require_keys

METHOD_VERSION = 2
"""Incremented with every change that moves a score by more than a different order of rounding does. Results of another
version enter no table, and their runs are repeated."""

Pairs = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Preset:
    """How long and how finely a run trains.

    Attributes:
        niter: iterations per scale; None: the paper's, by the number of transformations.
        min_size, max_size: sides of the coarsest and the finest scale, pixels.
        geom_steps: optimiser steps of GEOM, variant (g), with 128 images each.
    """

    niter: int | None
    min_size: int
    max_size: int
    geom_steps: int


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        # The released schedule. GEOM's authors train 3 epochs: 6,000 images x 72 transformations x 3 / 128.
        "paper": Preset(niter=None, min_size=25, max_size=64, geom_steps=10_125),
        # A tenth of the work. The learning rates never drop: their milestones are 500 and 1,000 iterations.
        "fast": Preset(niter=250, min_size=25, max_size=51, geom_steps=1_000),
    }
)


@dataclass(frozen=True)
class Variant:
    """The method, or a row of the ablation in table 6.

    Attributes:
        title: for a person.
        objective: what the discriminators learn (`hta.config.AblationConfig`).
        one_scale: side of the only scale, pixels; None: the preset's scales.
        score: what scores an image: votes on transformations, the probability of "real", the distance to the training
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


@dataclass(frozen=True)
class RunSpec:
    """One run.

    Attributes:
        dataset: name for `hta.data.loaders.load_dataset`.
        title: the data set's name in tables; says so where only part of a data set is available.
        pos_class: the normal class, in the paper's spelling.
        shots: N, the number of training images.
        draw: number of their random draw; with `in_order`, k takes the k-th N images of the class.
        variant, preset: keys of `VARIANTS` and `PRESETS`.
        num_transforms: M.
        data_sha256: digest of the training images and of the test images' names.
        fractions: fractions of the patches that vote, ascending; scored in one pass.
        test_limit: number of test images; None for all.
        seed: of draws and test images; with the draw, of the training.
        precision: as requested; "auto" depends on the machine.
        settings: overridden settings of model and training.
        preparation: overridden preparation of the images (fields of `BenchmarkSpec`).
        in_order: take training images in data-set order, as the released code does, instead of drawing them.
        paper_dataset: whose rows of the paper are shown beside it; changes no result and is not part of the key.
    """

    dataset: str
    title: str
    pos_class: str
    shots: int
    draw: int
    variant: str
    preset: str
    num_transforms: int
    data_sha256: str
    fractions: tuple[float, ...] = (1.0,)
    test_limit: int | None = None
    seed: int = 0
    precision: str = "auto"
    settings: Pairs = ()
    preparation: Pairs = ()
    in_order: bool = False
    paper_dataset: str | None = None

    @property
    def task(self) -> str:
        """The task, "defect" or "class"."""
        return default_task(self.dataset)

    @property
    def main_fraction(self) -> float:
        """The paper's fraction of the patches if it was run, else the largest."""
        default = default_fraction(self.task, self.shots)
        return default if default in self.fractions else self.fractions[-1]

    @property
    def changes(self) -> str:
        """What differs from a plain run of the preset, such as "niter=500, seed 1"; empty for a plain run."""
        changes = [f"{name}={value}" for name, value in (*self.settings, *self.preparation)]
        changes += [f"seed {self.seed}"] * (self.seed != 0) + [self.precision] * (self.precision != "auto")
        return ", ".join(changes)

    def config(self) -> Config:
        """The resolved settings of model and training.

        Raises:
            UserError: an overridden setting is unknown or out of range.
        """
        preset, variant = PRESETS[self.preset], VARIANTS[self.variant]
        flat: dict[str, Any] = {"min_size": preset.min_size, "max_size": preset.max_size, "niter": preset.niter}
        # Draws differ in weights and noise too, so that their spread covers all randomness.
        flat |= {"task": self.task, "num_transforms": self.num_transforms, "manualSeed": self.seed + self.draw}
        flat |= dict(self.settings)
        if variant.one_scale:
            flat |= {"min_size": variant.one_scale, "max_size": variant.one_scale}
        config = default_config(**flat).resolved(is_gray=False)  # only matters where num_transforms is open
        if variant.objective == config.model.objective:
            return config
        return replace(config, model=AblationConfig(**asdict(config.model), objective=variant.objective))

    @property
    def key(self) -> str:
        """Digest of everything that the AUROC depends on, on one machine.

        It covers the training images with their pixels and the test images by their names (`data_sha256`), how they are
        drawn and prepared, the data set's title, the variant, all settings of model and training, the steps of GEOM,
        the fractions, the seed and the version of the method. The precision is covered as requested: under "auto",
        machines with different precisions share a key, and each result records what made it. Not covered are device,
        threads and library versions, which only change the rounding, nor what only the decision depends on: how views
        are drawn, and its target.
        """
        config, preset = self.config(), PRESETS[self.preset]
        matters = asdict(self) | {"model": asdict(config.model), "training": asdict(config.training)}
        matters |= {"method_version": METHOD_VERSION, "geom_steps": preset.geom_steps}
        del matters["paper_dataset"]
        if not self.in_order:
            del matters["in_order"]  # results that predate the option keep their keys
        return hashlib.sha256(json.dumps(matters, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """Name of the result's file, without suffix."""
        images = self._images.replace(" ", "")
        parts = (self.title, self.pos_class, f"{self.shots}shot", images, self.variant, self.preset)
        return "_".join([*map(slug, parts), self.key])

    def describe(self) -> str:
        """One line for a person."""
        shots = f"{self.shots} image{'s' * (self.shots > 1)}"
        return f"{self.title} {self.pos_class}, {shots}, {self._images}, {self.variant}, {self.preset}"

    @property
    def _images(self) -> str:
        return f"{'index' if self.in_order else 'draw'} {self.draw}"

    @classmethod
    def from_dict(cls, data: dict[str, Any], source: str) -> "RunSpec":
        """Read the form of `dataclasses.asdict` back from JSON.

        Raises:
            UserError: missing or unknown keys, or an unknown variant or preset.
        """
        data = {"in_order": False} | data  # results that predate the option
        require_keys(data, {f.name for f in fields(cls)}, source)
        pairs = {name: tuple((key, value) for key, value in data[name]) for name in ("settings", "preparation")}
        spec = cls(**data | pairs | {"fractions": tuple(data["fractions"])})
        if spec.variant not in VARIANTS or spec.preset not in PRESETS:
            raise UserError(f"{source}: variant {spec.variant} or preset {spec.preset} is unknown; remove the file")
        return spec


def slug(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
