"""What the benchmark measures: one image, the default plan with 54 transformations, and their arithmetic."""

from collections.abc import Iterator
from itertools import islice

from skimage import data
from torch import Tensor

from hta.config import Config, ModelConfig, RuntimeConfig, TrainingConfig
from hta.images import to_tensor
from hta.models.canvas import plan_canvases
from hta.models.native import choose_kernels
from hta.models.pyramid import Pyramid
from hta.models.scales import image_pyramid
from hta.runtime import Runtime, seeded_generator
from hta.speed.explicit import ExplicitScale
from hta.training.scale import ScaleTrainer

IMAGE_SIDE = 128
NUM_TRANSFORMS = 54


def benchmark_config(threads: int, precision: str, compiled: bool = True) -> Config:
    """The settings that everything is measured with.

    Args:
        threads: of the CPU, 0 for one a core.
        precision: of hta; the plain way is always float32.
        compiled: whether hta trains with compiled kernels.
    """
    return Config(
        ModelConfig(task="class", num_transforms=NUM_TRANSFORMS),
        TrainingConfig(niter=1_000_000),
        RuntimeConfig(not_cuda=True, threads=threads, precision=precision, compile=compiled),
    ).resolved(is_gray=False)


def training_image() -> Tensor:
    """The image that everything is measured on: real texture in colour, `(1, 3, 128, 128)` in [-1, 1]."""
    crop = data.astronaut()[:IMAGE_SIDE, 128 : 128 + IMAGE_SIDE]
    return to_tensor([crop.astype("float32") / 255])


def build_trainers(config: Config, runtime: Runtime) -> Iterator[tuple[ScaleTrainer, ExplicitScale]]:
    """Both ways of training at every scale, from the same weights, above the same coarser scales.

    Yields:
        One pair a scale. The scale's networks then take their place in the pyramid as they are.
    """
    pyramid = _planned(config, runtime, IMAGE_SIDE, 1)
    for level in image_pyramid(training_image(), pyramid.plan.sizes):
        trainer = ScaleTrainer(pyramid, level, config.training)
        scale = trainer.scale
        fixed = scale.noise_amp.view(-1, 1, 1, 1) * scale.fixed_noise.expand(-1, 3, -1, -1)
        yield (
            trainer,
            ExplicitScale(
                pyramid, level, config.training, scale.generator.body, scale.discriminator.body, fixed, scale.noise_amp
            ),
        )
        scale.freeze()
        pyramid.scales.append(scale)


def finest_pair(config: Config, runtime: Runtime) -> tuple[ScaleTrainer, ExplicitScale]:
    """Both ways of training at the finest scale."""
    last = random_pyramid(config, runtime).plan.num_scales - 1
    return next(islice(build_trainers(config, runtime), last, None))


def random_pyramid(
    config: Config, runtime: Runtime, side: int = IMAGE_SIDE, shots: int = 1, *, without_finest: bool = False
) -> Pyramid:
    """A pyramid with untrained networks: their arithmetic is that of trained ones.

    Args:
        config: the settings.
        runtime: where it runs.
        side: of the training images, pixels.
        shots: how many there are.
        without_finest: leave out the finest scale, which is yet to be trained.
    """
    pyramid = _planned(config, runtime, side, shots)
    for n in range(pyramid.plan.num_scales - without_finest):
        scale = pyramid.new_scale(n, seeded_generator("benchmark", n))
        scale.freeze()
        pyramid.scales.append(scale)
    return pyramid


def _planned(config: Config, runtime: Runtime, side: int, shots: int) -> Pyramid:
    kernels = choose_kernels(runtime.device, runtime.compile)
    return Pyramid.planned(config.model, (side, side), shots, runtime.device, runtime.dtype, kernels)


def discriminator_gflop(config: ModelConfig, side: int, width: int) -> float:
    """Billions of operations of one forward pass on the canvases of one image, 2 per multiply-add."""
    channels = [3] + [width] * (config.num_layer - 1) + [config.num_transforms + 1]
    total = 0
    for group in plan_canvases(side, side, config.num_transforms).groups:
        for depth in range(config.num_layer):
            pixels = (group.size[0] - 2 * (depth + 1)) * (group.size[1] - 2 * (depth + 1))
            total += 2 * 9 * len(group.canvases) * pixels * channels[depth] * channels[depth + 1]
    return total / 1e9


def scoring_gflop(config: Config, runtime: Runtime) -> float:
    """Billions of operations to score one image at all scales."""
    plan = random_pyramid(config, runtime).plan
    return sum(
        discriminator_gflop(config.model, size[0], width) for size, width in zip(plan.sizes, plan.widths, strict=True)
    )
