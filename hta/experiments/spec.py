"""The unit of the tables: one run, and the key of all that its result depends on."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from hta.config import AblationConfig, Config, default_config
from hta.data.specs import is_defect_set
from hta.errors import UserError
from hta.evaluation.scores import default_fraction
from hta.experiments.presets import METHOD_VERSION, PRESETS, VARIANTS
from hta.settings import require_keys

Pairs = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class RunSpec:
    """One run.

    Attributes:
        dataset: name for `hta.data.benchmark.load_dataset`.
        title: the data set's name in tables; where only a part is at hand it says so.
        pos_class: the normal class, in the paper's spelling.
        shots: N, the number of training images.
        draw: number of their random draw; with `in_order`, k takes the k-th N images of the class.
        variant, preset: keys of `VARIANTS` and `PRESETS`.
        num_transforms: M.
        data_sha256: digest of the training images and of the test images' names.
        fractions: parts of the patches that vote, ascending; scored in one pass.
        test_limit: number of test images; None for all.
        seed: of draws and test images; with the draw, of the training.
        precision: as asked for; "auto" depends on the machine.
        settings: overridden settings of model and training.
        preparation: overridden preparation of the images (fields of `BenchmarkSpec`).
        in_order: training images in data-set order, as the released code takes them, instead of drawn.
        paper_dataset: whose rows of the paper stand beside it; changes no result, and is no part of the key.
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
        return "defect" if is_defect_set(self.dataset) else "class"

    @property
    def main_fraction(self) -> float:
        """The fraction that the paper scores with, where it is among those that are run."""
        default = default_fraction(self.task, self.shots)
        return default if default in self.fractions else self.fractions[-1]

    def config(self) -> Config:
        """The resolved settings of model and training.

        Raises:
            UserError: an overridden setting is unknown or out of range.
        """
        preset, variant = PRESETS[self.preset], VARIANTS[self.variant]
        flat = {"min_size": preset.min_size, "max_size": preset.max_size, "niter": preset.niter}
        # Draws differ in the weights and the noise too: their spread holds all that is random.
        flat |= {"task": self.task, "num_transforms": self.num_transforms, "manualSeed": self.seed + self.draw}
        flat |= dict(self.settings)
        if variant.one_scale:
            flat |= {"min_size": variant.one_scale, "max_size": variant.one_scale}
        config = default_config(**flat).resolved(is_gray=False)  # matters to an open num_transforms alone
        if variant.objective == config.model.objective:
            return config
        return replace(config, model=AblationConfig(**asdict(config.model), objective=variant.objective))

    @property
    def key(self) -> str:
        """Digest of everything that the AUROC depends on, on one machine.

        It covers the training images with their pixels and the test images by their names (`data_sha256`), how they are
        drawn and prepared, the data set's title, the variant, all settings of model and training, the steps of GEOM,
        the fractions, the seed and the version of the method. The precision is covered as asked for: under "auto",
        machines that take different ones share a key, and each result says what made it. Device, threads and versions
        of libraries, which round otherwise, are not covered; nor is what the decision alone depends on: how views are
        drawn, and its target.
        """
        config, preset = self.config(), PRESETS[self.preset]
        matters = asdict(self) | {"model": asdict(config.model), "training": asdict(config.training)}
        matters |= {"method_version": METHOD_VERSION, "geom_steps": preset.geom_steps}
        del matters["paper_dataset"]
        if not self.in_order:
            del matters["in_order"]  # results of before there was a choice keep their keys
        return hashlib.sha256(json.dumps(matters, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """Name of the result's file, without suffix."""
        parts = (
            self.title,
            self.pos_class,
            f"{self.shots}shot",
            self._images.replace(" ", ""),
            self.variant,
            self.preset,
        )
        return "_".join([*(slug(part) for part in parts), self.key])

    def describe(self) -> str:
        """One line for a person."""
        shots = f"{self.shots} image{'s' * (self.shots > 1)}"
        return f"{self.title} {self.pos_class}, {shots}, {self._images}, {self.variant}, {self.preset}"

    @property
    def _images(self) -> str:
        return f"{'index' if self.in_order else 'draw'} {self.draw}"

    @classmethod
    def from_dict(cls, data: dict[str, Any], source: str) -> "RunSpec":
        """Read `dataclasses.asdict`'s form back from JSON.

        Raises:
            UserError: keys that are missing or unknown.
        """
        data = {"in_order": False} | data  # results of before there was a choice
        require_keys(data, {f.name for f in fields(cls)}, source)
        pairs = {name: tuple((key, value) for key, value in data[name]) for name in ("settings", "preparation")}
        spec = cls(**data | pairs | {"fractions": tuple(data["fractions"])})
        if spec.variant not in VARIANTS or spec.preset not in PRESETS:
            raise UserError(f"{source}: variant {spec.variant} or preset {spec.preset} is unknown; remove the file")
        return spec


def slug(text: str) -> str:
    """A text as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
