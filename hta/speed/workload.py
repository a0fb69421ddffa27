"""The work that is measured: one photograph, the default scales with 54 transformations, and their arithmetic."""

from skimage import data
from torch import Tensor

from hta.config import Config, ModelConfig, RuntimeConfig, TrainingConfig
from hta.images import to_tensor
from hta.models.canvas import plan_canvases
from hta.models.native import choose_kernels
from hta.models.pyramid import Pyramid
from hta.models.scales import image_pyramid
from hta.runtime import Runtime, seeded_generator
from hta.speed.explicit import ExplicitScale, FrozenScale, PlainNetwork, transformation_list
from hta.training.scale import ScaleTrainer

IMAGE_SIDE = 128
NUM_TRANSFORMS = 54
_CROP_SIDE = 256


def benchmark_config(threads: int, precision: str, compiled: bool = True) -> Config:
    """The settings of all measurements.

    Args:
        threads: CPU threads, 0 for one per core.
        precision: of hta; the plain method always uses float32.
        compiled: whether hta trains with compiled kernels.
    """
    return Config(
        ModelConfig(task="class", num_transforms=NUM_TRANSFORMS),
        TrainingConfig(niter=1_000_000),
        RuntimeConfig(not_cuda=True, threads=threads, precision=precision, compile=compiled),
    ).resolved(is_gray=False)


def training_images(shots: int = 1) -> Tensor:
    """Crops of a colour photograph, `(shots, 3, 256, 256)` in [-1, 1]."""
    photograph = data.astronaut().astype("float32") / 255
    starts = [7 * shot % (len(photograph) - _CROP_SIDE + 1) for shot in range(shots)]
    return to_tensor([photograph[start : start + _CROP_SIDE, start : start + _CROP_SIDE] for start in starts])


def random_pyramid(
    config: Config, runtime: Runtime, num_scales: int | None = None, *, side: int = IMAGE_SIDE, shots: int = 1
) -> Pyramid:
    """A pyramid of untrained networks, which need the same arithmetic as trained ones.

    Args:
        config: the settings.
        runtime: where it runs.
        num_scales: number of scales, from the coarsest; all by default.
        side: of the training images, pixels.
        shots: number of training images.
    """
    kernels = choose_kernels(runtime.device, runtime.compile)
    pyramid = Pyramid.planned(config.model, (side, side), shots, runtime.device, runtime.dtype, kernels)
    for n in range(pyramid.plan.num_scales if num_scales is None else num_scales):
        scale = pyramid.new_scale(n, seeded_generator("benchmark", n))
        scale.freeze()
        pyramid.scales.append(scale)
    return pyramid


def scale_trainer(
    config: Config, runtime: Runtime, n: int | None = None, *, side: int = IMAGE_SIDE, shots: int = 1
) -> ScaleTrainer:
    """The training of one scale on top of untrained coarser ones.

    Args:
        config, runtime, side, shots: as for `random_pyramid`.
        n: the scale; the finest by default.
    """
    plan = random_pyramid(config, runtime, 0, side=side, shots=shots).plan
    n = plan.num_scales - 1 if n is None else n
    pyramid = random_pyramid(config, runtime, n, side=side, shots=shots)
    return ScaleTrainer(pyramid, image_pyramid(training_images(shots), plan.sizes)[n], config.training)


def explicit_scale(trainer: ScaleTrainer) -> ExplicitScale:
    """The same training written plainly, with copies of the networks and of the fixed noise."""
    pyramid, scale = trainer.pyramid, trainer.scale
    return ExplicitScale(
        trainer.real,
        transformation_list(trainer.canvases.num_transforms),
        PlainNetwork.copy_of(scale.generator.body),
        PlainNetwork.copy_of(scale.discriminator.body),
        scale.fixed_noise.clone(),
        [FrozenScale(PlainNetwork.copy_of(s.generator.body), s.fixed_noise, s.noise_amp) for s in pyramid.scales],
    )


def discriminator_gflop(config: ModelConfig, side: int, width: int) -> float:
    """Billions of operations of a forward pass on the canvases of one image; a multiply-add counts as 2."""
    channels = [3] + [width] * (config.num_layer - 1) + [config.num_classes]
    total = 0
    for group in plan_canvases(side, side, config.num_transforms).groups:
        for depth in range(config.num_layer):
            pixels = (group.size[0] - 2 * (depth + 1)) * (group.size[1] - 2 * (depth + 1))
            total += 2 * 9 * len(group.canvases) * pixels * channels[depth] * channels[depth + 1]
    return total / 1e9


def scoring_gflop(config: Config, runtime: Runtime) -> float:
    """Billions of operations for scoring one image at all scales."""
    plan = random_pyramid(config, runtime, 0).plan
    return sum(
        discriminator_gflop(config.model, size[0], width) for size, width in zip(plan.sizes, plan.widths, strict=True)
    )
