"""Training of one scale (paper, sections 3.1 and 4)."""

import math
from collections.abc import Iterator
from copy import copy, deepcopy
from dataclasses import astuple, dataclass, replace
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor

from hta.config import TrainingConfig
from hta.errors import RunError, UserError
from hta.images import resize
from hta.models.networks import Generator
from hta.models.pyramid import Pyramid, Scale, fresh_noise
from hta.models.storage import restore_scale, scale_tensors
from hta.models.views import TRAINING_STRENGTH, draw_views
from hta.runtime import seeded_generator
from hta.training.losses import PatchTargets, fake_loss, plan_of_objective, transformation_loss

_STATISTICS_PASSES = 16


@dataclass(frozen=True)
class IterationLosses:
    """Losses of one iteration, each the mean over its steps.

    Attributes:
        d_real: cross-entropy of the discriminator on real patches; the target is their transformation.
        d_fake: cross-entropy of the discriminator on generated patches; the target is "fake".
        g_adversarial: cross-entropy of the generator's patches; the target is their transformation.
        g_reconstruction: mean squared error of the reconstruction, for images in [-1, 1].
    """

    d_real: float
    d_fake: float
    g_adversarial: float
    g_reconstruction: float


class ScaleTrainer:
    """A scale in training: networks, optimisers, noise stream and iteration.

    Args:
        pyramid: with the frozen coarser scales.
        images: `(N, 3, h, w)` training images at this scale, in [-1, 1].
        config: the settings, resolved.
        originals: the images at the working size, of which views are drawn; by default `images`.
    """

    def __init__(self, pyramid: Pyramid, images: Tensor, config: TrainingConfig, originals: Tensor | None = None):
        self.pyramid, self.config, self.n = pyramid, config, len(pyramid.scales)
        self.size = pyramid.plan.sizes[self.n]
        self.real = images.to(pyramid.device)
        self._originals = images if originals is None else originals
        self.index = pyramid.all_images()
        self.noise_stream = seeded_generator(config.manualSeed, "scale", self.n)
        self.scale: Scale = pyramid.new_scale(self.n, self.noise_stream)
        self.iteration = 0
        G, D, N = self.scale.generator, self.scale.discriminator, len(images)
        self.optimizers = {
            "optimizer_g": torch.optim.Adam(G.parameters(), config.lr_g, (config.beta1, 0.999), fused=True),
            "optimizer_d": torch.optim.Adam(D.parameters(), config.lr_d, (config.beta1, 0.999), fused=True),
        }
        # What does not change while the scale is trained, including the noise amplitudes.
        self.rebuilt_below = pyramid.upsample(pyramid.reconstruct() if self.n else None, self.size, N)
        if self.n:
            residual = (self.real - self.rebuilt_below).abs().mean(dim=(1, 2, 3))
            self.scale.noise_amp.copy_(config.noise_amp * residual)
        self.canvases = plan_of_objective(pyramid.config, self.size)
        self.real_canvases = self._render(self.real)
        self._without_fakes = pyramid.config.objective == "transformations_only"
        num_classes = D.num_classes - self._without_fakes
        on = pyramid.dtype, pyramid.device, pyramid.kernels
        self.targets = PatchTargets(self.canvases, num_classes, D.margin, N, *on)
        self.d_coverages = D.coverages(self.canvases, N, pyramid.device)
        self.g_coverages = G.coverages(N, self.size, pyramid.device)

    def run(self) -> Iterator[IterationLosses]:
        """Train to the end, yielding the losses of every iteration; `self.iteration` counts the completed ones.

        Raises:
            RunError: a loss is not finite.
        """
        config = self.config
        while self.iteration < config.niter:
            for net in "dg":
                rate, milestone = getattr(config, f"lr_{net}"), getattr(config, f"milestone_{net}")
                for group in self.optimizers[f"optimizer_{net}"].param_groups:
                    group["lr"] = rate * (config.gamma if self.iteration >= milestone else 1.0)
            noise = self._draw_noise()
            d_losses = []
            for real_canvases in self._shown_to_discriminator(config.Dsteps):
                below = self._draw_image_below()
                d_losses.append(self._step_discriminator(real_canvases, noise, below))
            # The steps of G reuse the noise and the last image below.
            num_steps = 0 if self._without_fakes else config.Gsteps
            g_losses = [self._step_generator(noise, below) for _ in range(num_steps)] or [torch.zeros(2)]
            d_means, g_means = (torch.stack(steps).mean(dim=0).tolist() for steps in (d_losses, g_losses))
            losses = IterationLosses(*d_means, *g_means)
            if not all(map(math.isfinite, astuple(losses))):
                raise RunError(self._not_finite(f"a loss ({losses}) is"))
            self.iteration += 1
            yield losses

    def _shown_to_discriminator(self, count: int) -> Iterator[list[Tensor]]:
        """The canvases of the training images, or of fresh views of them, for `count` passes of D.

        Views depend on the seed, the scale and the iteration alone, so that a resumed run sees the same ones.
        """
        if self.config.recipe != "views":
            yield from repeat(self.real_canvases, count)
            return
        seed, number = (self.config.manualSeed, "training", self.n, self.iteration), len(self.real)
        for views in draw_views(self._originals, count * number, TRAINING_STRENGTH, seed).split(number):
            yield self._render(resize(views.to(self.pyramid.device), self.size))

    def _render(self, images: Tensor) -> list[Tensor]:
        return self.pyramid.kernels.render(self.canvases, images, self.pyramid.dtype)

    def _step_discriminator(self, real_canvases: list[Tensor], noise: Tensor, below: Tensor) -> Tensor:
        """One step of D on real and generated patches; returns both losses, `(2,)`, detached.

        Without fakes (paper, table 6 a), real patches and their classes are all that it learns.
        """
        self.optimizers["optimizer_d"].zero_grad(set_to_none=True)
        # Separate passes, so that batch norm sees real and fake images separately; the gradients add up.
        logits = self._discriminate(real_canvases)
        if self._without_fakes:
            logits = [batch[:, :-1] for batch in logits]
        loss_real = transformation_loss(logits, self.targets)
        loss_real.backward()
        loss_fake = torch.zeros_like(loss_real)
        if not self._without_fakes:
            with torch.no_grad():
                fake = self.scale.generator(noise, below, self.index, self.g_coverages)
            loss_fake = fake_loss(self._discriminate(self._render(fake)), self.targets)
            loss_fake.backward()
        self.optimizers["optimizer_d"].step()
        return torch.stack([loss_real.detach(), loss_fake.detach()])

    def _step_generator(self, noise: Tensor, below: Tensor) -> Tensor:
        """One step of G, to deceive D and reconstruct the images; returns both losses, `(2,)`, detached."""
        G, D = self.scale.generator, self.scale.discriminator
        self.optimizers["optimizer_g"].zero_grad(set_to_none=True)
        fake = G(noise, below, self.index, self.g_coverages)
        D.requires_grad_(False)
        loss_adversarial = transformation_loss(self._discriminate(self._render(fake)), self.targets)
        D.requires_grad_(True)
        loss_rebuilt = F.mse_loss(self._reconstruct(G), self.real)
        (loss_adversarial + self.config.alpha * loss_rebuilt).backward()
        self.optimizers["optimizer_g"].step()
        return torch.stack([loss_adversarial.detach(), loss_rebuilt.detach()])

    @torch.no_grad()
    def finish(self) -> Scale:
        """Fix the batch-norm statistics and freeze both networks.

        Running averages mix real and generated batches, whose statistics diverge as D learns to separate them, so that
        a frozen D would be biased on real images. With "training_images" each layer instead keeps its statistics of
        one last pass over them in training mode: a frozen network then behaves on the training images as it did in
        training. With "discriminators" this applies to D only. With the recipe "views" those of D are the mean over
        `_STATISTICS_PASSES` passes over fresh views.

        Raises:
            RunError: a weight is not finite.
        """
        if self.config.batch_statistics != "running":
            passes = _STATISTICS_PASSES if self.config.recipe == "views" else 1
            for number, real_canvases in enumerate(self._shown_to_discriminator(passes), start=1):
                self.scale.discriminator.body.set_momentum(1.0 / number)  # the mean over the passes
                self._discriminate(real_canvases)
        if self.config.batch_statistics == "training_images":
            self.scale.generator.body.set_momentum(1.0)
            self._reconstruct(self.scale.generator)
        self.state()  # raises if a weight is not finite
        self.scale.freeze()
        return self.scale

    @torch.no_grad()
    def preview(self) -> Pyramid:
        """The pyramid with this scale as it is now, to draw pictures; the training goes on as if nothing had been."""
        shown, kernels = copy(self.pyramid), self.pyramid.kernels
        generator = deepcopy(self.scale.generator, {id(kernels): kernels})  # compiled code cannot be copied
        generator.body.set_momentum(1.0)
        self._reconstruct(generator)
        shown.scales = [*self.pyramid.scales, replace(self.scale, generator=generator.eval())]
        return shown

    def _reconstruct(self, generator: Generator) -> Tensor:
        """The reconstructions from the fixed noise, in training mode."""
        fixed = self._amplify(self.scale.fixed_noise.expand(len(self.real), 3, -1, -1))
        return generator(fixed, self.rebuilt_below, self.index, self.g_coverages)

    def _discriminate(self, canvases: list[Tensor]) -> list[Tensor]:
        return self.scale.discriminator(canvases, self.d_coverages)

    def _amplify(self, noise: Tensor) -> Tensor:
        return self.scale.noise_amp.view(-1, 1, 1, 1) * noise

    def _draw_noise(self) -> Tensor:
        """Fresh noise of this scale, drawn for each image, times its amplitude."""
        return self._amplify(fresh_noise(self.n, len(self.real), self.size, self.noise_stream).to(self.pyramid.device))

    def _draw_image_below(self) -> Tensor:
        """A random sample of the scales below, at this scale's size."""
        if not self.n or self._without_fakes:
            return self.rebuilt_below
        N = len(self.real)
        sample = self.pyramid.sample(lambda n, size: fresh_noise(n, N, size, self.noise_stream), self.index)
        return self.pyramid.upsample(sample, self.size, N)

    def state(self) -> dict[str, Tensor]:
        """Everything needed to continue from here, as tensors by name.

        Raises:
            RunError: one of them is not finite.
        """
        tensors = scale_tensors(self.scale) | {"noise_stream": self.noise_stream.get_state()}
        for prefix, optimizer in self.optimizers.items():
            for number, values in optimizer.state_dict()["state"].items():
                tensors |= {f"{prefix}.{number}.{key}": value for key, value in values.items()}
        broken = next((name for name, value in tensors.items() if not value.isfinite().all()), None)
        if broken is not None:
            raise RunError(self._not_finite(f"{broken} is"))
        return tensors

    def restore(self, tensors: dict[str, Tensor], iteration: int, source: str) -> None:
        """Go back to an earlier state.

        Args:
            tensors: from `state`, after at least one iteration.
            iteration: number of iterations completed then.
            source: file name for error messages.

        Raises:
            UserError: the tensors are damaged, or belong to another run.
        """
        restore_scale(self.scale, tensors, source)
        states = {prefix: _empty_state(optimizer) for prefix, optimizer in self.optimizers.items()}
        places = {
            f"{prefix}.{number}.{key}": place
            for prefix, state in states.items()
            for number, values in state.items()
            for key, place in values.items()
        }
        names = {*scale_tensors(self.scale), "noise_stream", *places}
        missing, foreign = names - set(tensors), set(tensors) - names
        foreign |= {name for name, place in places.items() if name in tensors and tensors[name].shape != place.shape}
        if missing or foreign:
            what = "is missing" if missing else "belongs to another run"
            raise UserError(f"{source}: {min(missing or foreign)} {what}; train again with --overwrite")
        try:
            self.noise_stream.set_state(tensors["noise_stream"])
        except (RuntimeError, TypeError) as error:
            problem = "noise_stream is not the state of a generator"
            raise UserError(f"{source}: {problem}; train again with --overwrite") from error
        for name, place in places.items():
            place.copy_(tensors[name])
        for prefix, optimizer in self.optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": states[prefix], "param_groups": groups})
        self.iteration = iteration

    def _not_finite(self, what: str) -> str:
        return (
            f"scale {self.n}, iteration {self.iteration}: {what} not finite; the last checkpoint is intact: train "
            "again with a lower --lr_g and --lr_d, or with --precision float32"
        )


def _empty_state(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """Room for the state of an Adam; fused Adam needs the memory layout of the parameter in its moments."""
    return {
        number: {
            "step": torch.empty(()),
            "exp_avg": torch.empty_like(parameter.data),
            "exp_avg_sq": torch.empty_like(parameter.data),
        }
        for number, parameter in enumerate(optimizer.param_groups[0]["params"])
    }
