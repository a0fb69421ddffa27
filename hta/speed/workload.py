"""The work that is measured: one photograph, the default scales with 54 or 4 transformations, and their arithmetic."""

from itertools import pairwise

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
NUM_TRANSFORMS, FEW_TRANSFORMS = 54, 4
_CROP_SIDE = 256


def benchmark_config(
    threads: int, precision: str, compiled: bool = True, num_transforms: int = NUM_TRANSFORMS
) -> Config:
    """The settings of all measurements; the plain method takes the number of threads only."""
    return Config(
        ModelConfig(task="class", num_transforms=num_transforms),
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
    """A pyramid of the first `num_scales` scales, by default all: untrained, they need the same arithmetic."""
    kernels = choose_kernels(runtime.device, runtime.compile)
    pyramid = Pyramid(config.model, (side, side), shots, runtime.device, runtime.dtype, kernels)
    for n in range(pyramid.plan.num_scales if num_scales is None else num_scales):
        scale = pyramid.new_scale(n, seeded_generator("benchmark", n))
        scale.freeze()
        pyramid.scales.append(scale)
    return pyramid


def scale_trainer(
    config: Config, runtime: Runtime, n: int | None = None, *, side: int = IMAGE_SIDE, shots: int = 1
) -> ScaleTrainer:
    """The training of scale n, by default the finest, on top of untrained coarser ones."""
    pyramid = random_pyramid(config, runtime, n, side=side, shots=shots)
    if n is None:
        pyramid.scales.pop()
    level = image_pyramid(training_images(shots), pyramid.plan.sizes)[len(pyramid.scales)]
    return ScaleTrainer(pyramid, level, config.training)


def explicit_scale(trainer: ScaleTrainer) -> ExplicitScale:
    """The same training written plainly, with copies of the networks and of the fixed noise."""
    scale, copy_of = trainer.scale, PlainNetwork.copy_of
    return ExplicitScale(
        trainer.real,
        transformation_list(trainer.canvases.num_transforms),
        copy_of(scale.generator.body),
        copy_of(scale.discriminator.body),
        scale.fixed_noise.clone(),
        [FrozenScale(copy_of(s.generator.body), s.fixed_noise, s.noise_amp) for s in trainer.pyramid.scales],
    )


def discriminator_gflop(config: ModelConfig, side: int, width: int) -> float:
    """Billions of operations of a forward pass on the canvases of one image; a multiply-add counts as 2."""
    channels = [3] + [width] * (config.num_layer - 1) + [config.num_classes]
    total = 0
    for group in plan_canvases(side, side, config.num_transforms).groups:
        for depth, (before, after) in enumerate(pairwise(channels), start=1):
            pixels = (group.size[0] - 2 * depth) * (group.size[1] - 2 * depth)
            total += 2 * 9 * len(group.canvases) * pixels * before * after
    return total / 1e9
