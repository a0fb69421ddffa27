"""Every setting of a run and its default, in frozen dataclasses that check themselves and go to JSON and back.

Help, range, unit and choices stand in each field's metadata: the command lines are made from them. `None` means "by the
task": `Config.resolved` fills it in from the paper's choices.
"""

import dataclasses
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

from hta.errors import UserError
from hta.settings import Checked, from_mapping, option, require_keys

Task = Literal["defect", "class"]

MAX_WIDTH = 128
"""Channels that no network has more of (paper, section 3.2)."""

# The paper's choices (section 4): iterations a scale by the number of transformations.
_ITERATIONS = {54: 1000, 42: 500, 4: 2000}


@dataclass(frozen=True)
class ModelConfig(Checked):
    """What a trained pyramid is: its task, scales and networks."""

    objective: ClassVar[str] = "transformations"
    """What the discriminators learn; only `AblationConfig` has others."""

    task: str = option(
        "defect",
        "what is anomalous: defects, or images of another class",
        choices=("defect", "class"),
        default_note=", but class with every --dataset other than mvtec and defects",
    )
    num_transforms: int | None = option(
        None,
        "number of transformations M that the discriminators tell apart; by default 4 for defects, 54 for colour and "
        "42 for gray images of the class task",
        choices=(54, 42, 4),
    )
    min_size: int = option(25, "shorter side of the coarsest scale", low=11, unit="px")
    max_size: int = option(64, "longer side of the finest scale; a smaller image is not enlarged", low=11, unit="px")
    scale_factor: float = option(0.75, "nominal ratio between two scales", above=0, below=1)
    nfc: int = option(32, "channels at the coarsest scale, doubled every four scales up to 128", low=1, high=MAX_WIDTH)
    ker_size: int = option(3, "side of the convolution kernels, odd", low=3, high=9, unit="px")
    num_layer: int = option(5, "convolutions of each network", low=2, high=10)

    def __post_init__(self):
        super().__post_init__()
        if self.ker_size % 2 == 0:
            raise UserError(f"--ker_size {self.ker_size}: must be odd, such as 3 or 5")
        if self.min_size > self.max_size:
            raise UserError(
                f"--min_size {self.min_size} is above --max_size {self.max_size}: give a smaller --min_size or a "
                "larger --max_size"
            )

    @property
    def margin(self) -> int:
        """Pixels that the unpadded convolutions of a network lose on every side."""
        return self.num_layer * (self.ker_size // 2)

    @property
    def receptive_field(self) -> int:
        """Side of the patch that one logit of a discriminator sees, pixels."""
        return 2 * self.margin + 1

    @property
    def num_classes(self) -> int:
        """Classes of a discriminator: the transformations and "fake"."""
        return self.num_transforms + 1


@dataclass(frozen=True)
class AblationConfig(ModelConfig):
    """A model of the paper's ablation (table 6): never saved, and no option of a command line."""

    objective: str = option(
        "transformations",
        "what the discriminators learn: the transformations and fakes; the transformations alone (no generator); real "
        "against fake; real against fake, on transformed images",
        choices=("transformations", "transformations_only", "real_fake", "real_fake_augmented"),
    )

    @property
    def num_classes(self) -> int:
        """Classes of a discriminator: "real" and "fake", or those of the model that is not ablated."""
        return 2 if self.objective.startswith("real_fake") else super().num_classes


@dataclass(frozen=True)
class TrainingConfig(Checked):
    """How a scale is trained (paper, section 4)."""

    niter: int | None = option(
        None, "iterations a scale; by default 1000 with 54 transformations, 500 with 42, 2000 with 4", low=1
    )
    lr_g: float = option(5e-4, "learning rate of the generators", above=0)
    lr_d: float = option(5e-4, "learning rate of the discriminators", above=0)
    beta1: float = option(0.5, "first beta of Adam", low=0, below=1)
    gamma: float = option(0.1, "factor of both learning rates after their milestones", above=0, high=1)
    milestone_d: int = option(500, "iterations after which the discriminator's learning rate drops", low=1)
    milestone_g: int = option(1000, "iterations after which the generator's learning rate drops", low=1)
    Gsteps: int = option(3, "generator steps in one iteration", low=1)
    Dsteps: int = option(3, "discriminator steps in one iteration", low=1)
    alpha: float = option(100.0, "weight of the reconstruction loss", low=0)
    batch_statistics: str = option(
        "training_images",
        "batch-norm statistics of the frozen networks: those of the training images (discriminators) and their "
        "reconstructions (generators); or so of the discriminators alone; or the running averages over all batches, "
        "generated ones too, as in the released code",
        choices=("training_images", "discriminators", "running"),
    )
    noise_amp: float = option(0.1, "factor of the noise amplitude of the finer scales", low=0)
    manualSeed: int = option(0, "seed of the weights and of all noise", low=0, high=2**31 - 1)


@dataclass(frozen=True)
class RuntimeConfig(Checked):
    """Where and how it is computed: nothing here changes what is computed, save for rounding."""

    device: str | None = option(None, "such as cuda:1 or cpu; by default CUDA if there is one, else the CPU")
    not_cuda: bool = option(False, "run on the CPU even where there is a GPU")
    threads: int = option(0, "CPU threads, 0 for one a core", low=0, high=1024)
    precision: str = option(
        "auto", "auto is bfloat16 where the hardware has it, else float32", choices=("auto", "float32", "bfloat16")
    )
    compile: bool = option(
        True,
        "train with kernels in C, compiled when training starts, where there is a CPU and a C compiler; else with "
        "torch's own operators",
    )
    deterministic: bool = option(False, "only deterministic kernels: the same bits on every run, slower on a GPU")
    checkpoint_every: int = option(
        100, "iterations between two checkpoints; one is written at each scale's end too", low=1
    )


@dataclass(frozen=True)
class ScoringConfig(Checked):
    """How images are scored (paper, section 3.3); none of it is part of a trained model."""

    fraction_defect: float | None = option(
        None,
        "part of the patches that vote, the lowest ones; by default 0.05 for defects with one training image, 0.1 with "
        "several, 1 for the class task",
        above=0,
        high=1,
    )
    aggregate: str = option(
        "mean",
        "how the scales are brought together: as they are, each min-max normalised over all test images, or each "
        "standardised by what views of the training images reach",
        choices=("mean", "minmax", "calibrated"),
    )
    batch_size: int = option(16, "images scored together: changes memory and speed only", low=1, high=65536)
    target_fpr: float = option(
        0.05, "share of normal images that the calibrated threshold may reject", above=0, below=1
    )
    threshold: float | None = option(None, "reject images whose anomaly score is above this, instead of calibrating")


@dataclass(frozen=True)
class Config:
    """All settings of a training run, checked as a whole."""

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def resolved(self, *, is_gray: bool) -> "Config":
        """Fill in what depends on the task and the images (paper, section 4).

        Args:
            is_gray: whether all pixels of all training images have R = G = B.

        Returns:
            A config without None in its model and training part.
        """
        m = self.model.num_transforms
        if m is None:
            m = 4 if self.model.task == "defect" else 42 if is_gray else 54
        niter = self.training.niter if self.training.niter is not None else _ITERATIONS[m]
        return replace(self, model=replace(self.model, num_transforms=m), training=replace(self.training, niter=niter))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain dictionaries, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any], source: str) -> "Config":
        """Build from `to_dict`'s form.

        Args:
            data: the dictionaries.
            source: the file's name, for errors.

        Raises:
            UserError: an unknown or missing key, or a value out of range.
        """
        parts = {"model": ModelConfig, "training": TrainingConfig, "runtime": RuntimeConfig}
        require_keys(data, set(parts), source)
        return cls(**{name: from_mapping(part, data[name], source) for name, part in parts.items()})


def default_config(**settings) -> Config:
    """A config from flat settings, such as `default_config(task="class", niter=100)`.

    Raises:
        UserError: an unknown setting, or a value out of range.
    """
    parts = {"model": ModelConfig, "training": TrainingConfig, "runtime": RuntimeConfig}
    owners = {f.name: part for part, cls in parts.items() for f in fields(cls)}
    unknown = sorted(set(settings) - set(owners))
    if unknown:
        raise UserError(f"{', '.join(unknown)}: no such setting; there are {', '.join(sorted(owners))}")
    chosen = {part: {name: value for name, value in settings.items() if owners[name] == part} for part in parts}
    return Config(**{part: cls(**chosen[part]) for part, cls in parts.items()})
