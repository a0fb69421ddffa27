"""All settings of a run with their defaults, in frozen dataclasses that validate themselves.

A setting that depends on the task is None, "not given", until `Config.resolved` fills in the paper's choice.
"""

from dataclasses import dataclass, field, fields, replace

from hta.errors import UserError, parameters_named
from hta.settings import Checked, option

MAX_WIDTH = 128
"""Upper limit of the number of channels of a network (paper, section 3.2)."""

NUM_SAMPLES = 50
"""Random samples that a training run draws by default."""

# The paper's choices (section 4): iterations per scale by number of transformations.
_ITERATIONS = {54: 1000, 42: 500, 4: 2000}
# Of the recipe "views", whatever the transformations.
_VIEWS_ITERATIONS = 250


@dataclass(frozen=True)
class ModelConfig(Checked):
    """Architecture of a model: its task, scales and networks."""

    objective = "transformations"
    """What the discriminators learn; only `AblationConfig` has other objectives."""

    task: str = option(
        "defect",
        "what counts as anomalous: defects, or images of another class",
        choices=("defect", "class"),
        default_note=", but class for every --dataset other than mvtec and defects",
    )
    num_transforms: int = option(
        None,
        "number of transformations M that the discriminators classify; by default 4 for defects, and for the "
        "class task 54 with colour images or 42 with gray ones",
        choices=(54, 42, 4),
    )
    min_size: int = option(25, "shorter side of the coarsest scale", low=11, unit="px")
    max_size: int = option(64, "longer side of the finest scale; smaller images are not enlarged", low=11, unit="px")
    scale_factor: float = option(0.75, "nominal ratio between the sizes of adjacent scales", above=0, below=1)
    nfc: int = option(
        32, "number of channels at the coarsest scale; doubles every four scales, up to 128", low=1, high=MAX_WIDTH
    )
    ker_size: int = option(3, "side of the convolution kernels, an odd number", low=3, high=9, unit="px")
    num_layer: int = option(5, "number of convolutions per network", low=2, high=10)

    @parameters_named()
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
        """Pixels that the unpadded convolutions of a network remove on every side."""
        return self.num_layer * (self.ker_size // 2)

    @property
    def receptive_field(self) -> int:
        """Side of the image patch behind one logit of a discriminator, pixels."""
        return 2 * self.margin + 1

    @property
    def num_classes(self) -> int:
        """Number of classes of a discriminator: the transformations and "fake"."""
        return self.num_transforms + 1


@dataclass(frozen=True)
class AblationConfig(ModelConfig):
    """A model of the paper's ablation study (table 6); never saved, and not available on the command line."""

    objective: str = option(
        "transformations",
        "what the discriminators learn: the transformations and fakes; the transformations alone (no generator); real "
        "against fake; real against fake, on transformed images",
        choices=("transformations", "transformations_only", "real_fake", "real_fake_augmented"),
    )

    @property
    def num_classes(self) -> int:
        """Number of classes of a discriminator: "real" and "fake", or as in the full model."""
        return 2 if self.objective.startswith("real_fake") else super().num_classes


@dataclass(frozen=True)
class TrainingConfig(Checked):
    """How each scale is trained (paper, section 4)."""

    recipe: str = option(
        None,
        "what the discriminators are trained on: the training images (paper); or fresh views of them at each step, "
        "slightly shifted, enlarged, turned, relit and noisy (views); by default views for defects in images of your "
        "own, otherwise paper",
        choices=("paper", "views"),
    )
    niter: int = option(
        None,
        "number of iterations per scale; by default 250 with the recipe views, otherwise 1000 with 54 transformations, "
        "500 with 42 and 2000 with 4",
        low=1,
    )
    lr_g: float = option(5e-4, "learning rate of the generators", above=0)
    lr_d: float = option(5e-4, "learning rate of the discriminators", above=0)
    beta1: float = option(0.5, "first beta of the optimiser Adam", low=0, below=1)
    gamma: float = option(0.1, "factor by which the learning rates are multiplied at their milestones", above=0, high=1)
    milestone_d: int = option(500, "number of iterations after which the discriminators' learning rate drops", low=1)
    milestone_g: int = option(1000, "number of iterations after which the generators' learning rate drops", low=1)
    Gsteps: int = option(3, "number of generator steps per iteration", low=1)
    Dsteps: int = option(3, "number of discriminator steps per iteration", low=1)
    alpha: float = option(100.0, "weight of the reconstruction loss", low=0)
    batch_statistics: str = option(
        "training_images",
        "batch-norm statistics that the networks keep once they are trained: those of the training images for the "
        "discriminators and of their reconstructions for the generators; the same for the discriminators only; or the "
        "running averages over all batches, including generated ones, as in the released code",
        choices=("training_images", "discriminators", "running"),
    )
    noise_amp: float = option(0.1, "factor of the noise amplitude at all scales but the coarsest", low=0)
    manualSeed: int = option(0, "random seed of the weights and of all noise", low=0, high=2**31 - 1)


@dataclass(frozen=True)
class RuntimeConfig(Checked):
    """Where and how to compute; does not change results beyond rounding."""

    device: str | None = option(
        None, "device to compute on, such as cuda:1 or cpu; by default CUDA if it is available, else the CPU"
    )
    not_cuda: bool = option(False, "use the CPU even if there is a GPU")
    threads: int = option(
        0, "number of CPU threads; 0 means one per core, or from Python those that torch has already", low=0, high=1024
    )
    precision: str = option(
        "auto",
        "floating-point format; auto means bfloat16 if the hardware supports it, else float32",
        choices=("auto", "float32", "bfloat16"),
    )
    compile: bool = option(
        True,
        "on a CPU with a C compiler, train with C kernels that are compiled when training starts, and in float32 score "
        "with such convolutions; otherwise torch's operators are used",
    )
    deterministic: bool = option(
        False, "use deterministic kernels only, which give the same bits on every run but are slower on a GPU"
    )
    checkpoint_every: int = option(
        100, "number of iterations between checkpoints; there is also one at the end of every scale", low=1
    )


@dataclass(frozen=True)
class ScoringConfig(Checked):
    """How images are scored (paper, section 3.3); not part of a trained model."""

    fraction_defect: float | None = option(
        None,
        "fraction of the patches that vote, namely those with the lowest vote shares; by default 0.05 for defects with "
        "one training image, 0.1 for defects with several, and 1 for the class task",
        above=0,
        high=1,
    )
    score: str | None = option(
        None,
        "what the anomaly score is made of: the patches' votes for the right transformation (paper); these and the "
        "squared error of the pixels (combined); or, with the maps, how far the patches are from those of the training "
        "images in the features of the discriminators (nearest)",
        choices=("paper", "combined", "nearest"),
        default_note="nearest for defects if the model was trained by the recipe views; otherwise paper for defects "
        "and every --dataset, and combined for other images of the class task",
    )
    aggregate: str = option(
        "mean",
        "how the scores of the scales are combined: as they are (mean); after min-max normalisation of each scale over "
        "all test images (minmax); or after standardisation of each scale by its scores of altered copies (views) of "
        "the training images (calibrated)",
        choices=("mean", "minmax", "calibrated"),
    )
    no_frame_check: bool = option(
        False,
        "leave blank, saturated, blurred and foreign images to the votes, as for --dataset, instead of rejecting them "
        "by contrast, sharpness and colours; patches without content get as many votes by chance as good ones do",
    )
    batch_size: int = option(16, "number of images scored together; affects memory and speed only", low=1, high=65536)
    target_fpr: float = option(
        0.05, "fraction of normal images that the calibrated threshold may reject", above=0, below=1
    )
    threshold: float | None = option(
        None, "reject images whose anomaly score is higher than this, instead of calibrating a threshold"
    )

    @parameters_named()
    def __post_init__(self):
        super().__post_init__()
        if self.score not in (None, "paper") and self.aggregate != "mean":
            raise UserError(f"--aggregate {self.aggregate}: combines votes, for --score paper; leave one of them out")


@dataclass(frozen=True)
class WatchConfig(Checked):
    """What shows a training besides its page; not part of a trained model, and without effect on it."""

    animate: bool = option(False, "make animations of the training and of random samples, for the page")
    log: tuple[str, ...] = option((), "log losses and samples there, too", choices=("tensorboard", "wandb", "mlflow"))


@dataclass(frozen=True)
class Config:
    """All settings of a training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def resolved(self, *, is_gray: bool) -> "Config":
        """Fill in `num_transforms`, `recipe` and `niter`, which depend on the task and the images (paper, section 4).

        Args:
            is_gray: whether all pixels of all training images have R = G = B.
        """
        m = self.model.num_transforms or (4 if self.model.task == "defect" else 42 if is_gray else 54)
        recipe = self.training.recipe or ("views" if self.model.task == "defect" else "paper")
        of_recipe = _VIEWS_ITERATIONS if recipe == "views" else _ITERATIONS[m]
        training = replace(self.training, recipe=recipe, niter=self.training.niter or of_recipe)
        return replace(self, model=replace(self.model, num_transforms=m), training=training)


@parameters_named()
def default_config(**settings) -> Config:
    """A config from flat settings, such as `default_config(task="class", niter=100)`.

    Raises:
        UserError: an unknown setting, or a value out of range.
    """
    parts = {"model": ModelConfig, "training": TrainingConfig, "runtime": RuntimeConfig}
    owners = {f.name: part for part, cls in parts.items() for f in fields(cls)}
    unknown = sorted(set(settings) - set(owners))
    if unknown:
        raise UserError(f"{', '.join(unknown)}: no such setting; choose from {', '.join(sorted(owners))}")
    chosen = {part: {name: value for name, value in settings.items() if owners[name] == part} for part in parts}
    return Config(**{part: cls(**chosen[part]) for part, cls in parts.items()})
