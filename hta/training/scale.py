"""Training of one scale (paper, sections 3.1 and 4)."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hta.config import TrainingConfig
from hta.errors import RunError, UserError
from hta.models.pyramid import Pyramid, Scale, fresh_noise
from hta.models.storage import restore_scale, scale_tensors
from hta.runtime import seeded_generator
from hta.training.losses import PatchTargets, fake_loss, plan_of_objective, transformation_loss

_MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam, per parameter


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

    def all_finite(self) -> bool:
        """Whether all losses are finite."""
        return all(math.isfinite(value) for value in asdict(self).values())


class ScaleTrainer:
    """A scale in training: networks, optimisers, noise stream and iteration.

    Args:
        pyramid: with the frozen coarser scales.
        images: `(N, 3, h, w)` training images at this scale, in [-1, 1].
        config: the settings, resolved.
    """

    def __init__(self, pyramid: Pyramid, images: Tensor, config: TrainingConfig):
        self.pyramid, self.config = pyramid, config
        self.n = len(pyramid.scales)
        self.size = pyramid.plan.sizes[self.n]
        self.real = images.to(pyramid.device)
        self.index = pyramid.all_images()
        self.noise_stream = seeded_generator(config.manualSeed, "scale", self.n)
        self.scale: Scale = pyramid.new_scale(self.n, self.noise_stream)
        self.iteration = 0
        self._prepare_constants()
        betas = (config.beta1, 0.999)
        self.optimizer_g = torch.optim.Adam(self.scale.generator.parameters(), config.lr_g, betas, fused=True)
        self.optimizer_d = torch.optim.Adam(self.scale.discriminator.parameters(), config.lr_d, betas, fused=True)

    @torch.no_grad()
    def _prepare_constants(self) -> None:
        """Compute what does not change while the scale is trained, including the noise amplitudes."""
        pyramid, N = self.pyramid, len(self.real)
        image = pyramid.reconstruct() if self.n else None
        self.rebuilt_below = pyramid.upsample(image, self.size, N)
        if self.n:
            residual = (self.real - self.rebuilt_below).abs().mean(dim=(1, 2, 3))
            self.scale.noise_amp.copy_(self.config.noise_amp * residual)
        self.canvases = plan_of_objective(pyramid.config, self.size)
        D, G = self.scale.discriminator, self.scale.generator
        self.real_canvases = [batch.to(pyramid.dtype) for batch in self.canvases.render(self.real)]
        num_classes = D.num_classes - (pyramid.config.objective == "transformations_only")
        self.targets = PatchTargets.of_plan(
            self.canvases, num_classes, D.margin, N, pyramid.dtype, pyramid.device, pyramid.kernels
        )
        self.d_coverages = D.coverages(self.canvases, N, pyramid.device)
        self.g_coverages = G.coverages(N, self.size, pyramid.device)

    def run(self) -> Iterator[IterationLosses]:
        """Train to the end, yielding after every iteration; `self.iteration` counts the completed ones.

        Yields:
            The losses of the iteration.

        Raises:
            RunError: a loss is not finite.
        """
        while self.iteration < self.config.niter:
            self._set_learning_rates()
            losses = self._iterate()
            if not losses.all_finite():
                raise RunError(self._not_finite(f"a loss ({losses}) is"))
            self.iteration += 1
            yield losses

    def _iterate(self) -> IterationLosses:
        """One iteration: the steps of D, then those of G, which reuse the noise and the last image below."""
        config = self.config
        if self.pyramid.config.objective == "transformations_only":
            alone = torch.stack([self._step_discriminator_alone() for _ in range(config.Dsteps)])
            return IterationLosses(alone.mean().item(), 0.0, 0.0, 0.0)
        noise = self._draw_noise()
        d_losses = []
        for _ in range(config.Dsteps):
            below = self._draw_image_below()
            d_losses.append(self._step_discriminator(noise, below))
        g_losses = [self._step_generator(noise, below) for _ in range(config.Gsteps)]
        d_real, d_fake = torch.stack(d_losses).mean(dim=0).tolist()
        g_adversarial, g_reconstruction = torch.stack(g_losses).mean(dim=0).tolist()
        return IterationLosses(d_real, d_fake, g_adversarial, g_reconstruction)

    def _step_discriminator(self, noise: Tensor, below: Tensor) -> Tensor:
        """One step of D on real and generated patches; returns both losses, `(2,)`, detached."""
        with torch.no_grad():
            fake = self.scale.generator(noise, below, self.index, self.g_coverages)
        self.optimizer_d.zero_grad(set_to_none=True)
        # Separate passes, so that batch norm sees real and fake images separately; the gradients add up.
        loss_real = transformation_loss(self._discriminate(self.real_canvases), self.targets)
        loss_real.backward()
        loss_fake = fake_loss(self._discriminate(self.canvases.render(fake)), self.targets)
        loss_fake.backward()
        self.optimizer_d.step()
        return torch.stack([loss_real.detach(), loss_fake.detach()])

    def _step_discriminator_alone(self) -> Tensor:
        """One step of D on real patches, without the class "fake" (paper, table 6 a); returns the loss, detached."""
        self.optimizer_d.zero_grad(set_to_none=True)
        votes = [logits[:, :-1] for logits in self._discriminate(self.real_canvases)]
        loss = transformation_loss(votes, self.targets)
        loss.backward()
        self.optimizer_d.step()
        return loss.detach()

    def _step_generator(self, noise: Tensor, below: Tensor) -> Tensor:
        """One step of G, to deceive D and reconstruct the images; returns both losses, `(2,)`, detached."""
        G, D = self.scale.generator, self.scale.discriminator
        self.optimizer_g.zero_grad(set_to_none=True)
        fake = G(noise, below, self.index, self.g_coverages)
        D.requires_grad_(False)
        loss_adversarial = transformation_loss(self._discriminate(self.canvases.render(fake)), self.targets)
        D.requires_grad_(True)
        loss_rebuilt = F.mse_loss(self._reconstruct(), self.real)
        (loss_adversarial + self.config.alpha * loss_rebuilt).backward()
        self.optimizer_g.step()
        return torch.stack([loss_adversarial.detach(), loss_rebuilt.detach()])

    @torch.no_grad()
    def finish(self) -> Scale:
        """Fix the batch-norm statistics and freeze both networks.

        Running averages mix real and generated batches, whose statistics diverge as D learns to separate them, so that
        a frozen D would be biased on real images. With "training_images" each layer instead keeps its statistics of
        one last pass over them in training mode: a frozen network then behaves on the training images as it did in
        training. With "discriminators" this applies to D only.

        Returns:
            The frozen scale.

        Raises:
            RunError: a weight is not finite.
        """
        if self.config.batch_statistics != "running":
            self.scale.discriminator.body.set_momentum(1.0)
            self._discriminate(self.real_canvases)
        if self.config.batch_statistics == "training_images":
            self.scale.generator.body.set_momentum(1.0)
            self._reconstruct()
        self.state()  # raises if a weight is not finite
        self.scale.freeze()
        return self.scale

    def _reconstruct(self) -> Tensor:
        """The reconstructions from the fixed noise, in training mode."""
        fixed = self._amplify(self.scale.fixed_noise.expand(len(self.real), 3, -1, -1))
        return self.scale.generator(fixed, self.rebuilt_below, self.index, self.g_coverages)

    def _discriminate(self, canvases: list[Tensor]) -> list[Tensor]:
        return self.scale.discriminator(canvases, self.d_coverages)

    def _amplify(self, noise: Tensor) -> Tensor:
        return self.scale.noise_amp.view(-1, 1, 1, 1) * noise

    def _draw_noise(self) -> Tensor:
        """Fresh noise of this scale, drawn for each image, times its amplitude."""
        return self._amplify(fresh_noise(self.n, len(self.real), self.size, self.noise_stream).to(self.pyramid.device))

    def _draw_image_below(self) -> Tensor:
        """A random sample of the scales below, at this scale's size."""
        if not self.n:
            return self.rebuilt_below
        sample = self.pyramid.sample(
            lambda n, size: fresh_noise(n, len(self.index), size, self.noise_stream), self.index
        )
        return self.pyramid.upsample(sample, self.size, len(self.index))

    def _set_learning_rates(self) -> None:
        config = self.config
        for optimizer, rate, milestone in (
            (self.optimizer_d, config.lr_d, config.milestone_d),
            (self.optimizer_g, config.lr_g, config.milestone_g),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * (config.gamma if self.iteration >= milestone else 1.0)

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Both optimisers, by the prefix of their tensors in a state."""
        return {"optimizer_g": self.optimizer_g, "optimizer_d": self.optimizer_d}

    def state(self) -> dict[str, Tensor]:
        """Everything needed to continue from here, as tensors by name.

        Raises:
            RunError: one of them is not finite.
        """
        tensors = scale_tensors(self.scale) | {"noise_stream": self.noise_stream.get_state()}
        for prefix, optimizer in self._optimizers().items():
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
        shapes = self._optimizer_shapes()
        names = {*scale_tensors(self.scale), "noise_stream", *shapes}
        missing, foreign = names - set(tensors), set(tensors) - names
        foreign |= {name for name, shape in shapes.items() if name in tensors and tensors[name].shape != shape}
        if missing or foreign:
            what = "is missing" if missing else "belongs to another run"
            raise UserError(f"{source}: {min(missing or foreign)} {what}; train again with --overwrite")
        try:
            self.noise_stream.set_state(tensors["noise_stream"])
        except (RuntimeError, TypeError) as error:
            raise UserError(
                f"{source}: noise_stream is not the state of a generator; train again with --overwrite"
            ) from error
        for prefix, optimizer in self._optimizers().items():
            _restore_optimizer(optimizer, prefix, tensors)
        self.iteration = iteration

    def _optimizer_shapes(self) -> dict[str, torch.Size]:
        """Names and shapes of the optimisers' tensors in a state."""
        shapes: dict[str, torch.Size] = {}
        for prefix, optimizer in self._optimizers().items():
            for number, parameter in enumerate(_parameters(optimizer)):
                name = f"{prefix}.{number}"
                shapes |= {f"{name}.step": torch.Size(), **{f"{name}.{key}": parameter.shape for key in _MOMENTS}}
        return shapes

    def _not_finite(self, what: str) -> str:
        return (
            f"scale {self.n}, iteration {self.iteration}: {what} not finite; the last checkpoint is intact: train "
            "again with a lower --lr_g and --lr_d, or with --precision float32"
        )


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters of an optimiser, in the order of its state."""
    return optimizer.param_groups[0]["params"]


def _restore_optimizer(optimizer: torch.optim.Optimizer, prefix: str, tensors: dict[str, Tensor]) -> None:
    """Load the steps and moments that a state holds under a prefix; all of them are there, in the right shapes."""
    state = {}
    for number, parameter in enumerate(_parameters(optimizer)):
        name = f"{prefix}.{number}"
        state[number] = {"step": tensors[f"{name}.step"]}
        for key in _MOMENTS:
            # Fused Adam walks through raw memory: a moment needs the memory layout of its parameter.
            state[number][key] = torch.empty_like(parameter, requires_grad=False).copy_(tensors[f"{name}.{key}"])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
