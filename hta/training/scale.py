"""Training of one scale (paper, section 3.1 and 4)."""

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


@dataclass(frozen=True)
class IterationLosses:
    """Losses of one iteration, each the mean over its steps.

    Attributes:
        d_real: cross-entropy of real patches against their transformation.
        d_fake: cross-entropy of generated patches against "fake".
        g_adversarial: cross-entropy of generated patches against their transformation.
        g_reconstruction: mean squared error of the reconstruction, [-1, 1] units squared.
    """

    d_real: float
    d_fake: float
    g_adversarial: float
    g_reconstruction: float

    def all_finite(self) -> bool:
        """Whether no loss is infinite or not a number."""
        return all(math.isfinite(value) for value in asdict(self).values())


class ScaleTrainer:
    """The state of a scale in training: networks, optimisers, noise stream, iteration.

    Args:
        pyramid: holds the frozen coarser scales.
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
        """Compute once what does not change while the scale is trained, the noise amplitudes among it."""
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
        """Train to the end, yielding after every iteration; `self.iteration` counts those done.

        Raises:
            RunError: a loss that is not finite.
        """
        while self.iteration < self.config.niter:
            self._set_learning_rates()
            losses = self._iterate()
            if not losses.all_finite():
                raise RunError(self._not_finite(f"a loss ({losses}) is"))
            self.iteration += 1
            yield losses

    def _iterate(self) -> IterationLosses:
        """One iteration: D's steps, then G's, which reuse the last noise and image below."""
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
        # Real and fake pass separately, so that batch norm sees each on its own; their gradients add up.
        loss_real = transformation_loss(self._discriminate(self.real_canvases), self.targets)
        loss_real.backward()
        loss_fake = fake_loss(self._discriminate(self.canvases.render(fake)), self.targets)
        loss_fake.backward()
        self.optimizer_d.step()
        return torch.stack([loss_real.detach(), loss_fake.detach()])

    def _step_discriminator_alone(self) -> Tensor:
        """One step of D on real patches, without the class "fake" (table 6, a); returns the loss, detached."""
        self.optimizer_d.zero_grad(set_to_none=True)
        votes = [logits[:, :-1] for logits in self._discriminate(self.real_canvases)]
        loss = transformation_loss(votes, self.targets)
        loss.backward()
        self.optimizer_d.step()
        return loss.detach()

    def _step_generator(self, noise: Tensor, below: Tensor) -> Tensor:
        """One step of G, which fools D and rebuilds the images; returns both losses, `(2,)`, detached."""
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
        """Settle the batch-norm statistics, freeze both networks, and hand the scale over.

        Running averages mix real and generated batches, whose statistics drift apart as D learns to tell them apart: a
        frozen D is then off on real images. With "training_images" each layer keeps what it saw of them in one last
        pass in training mode, so that a frozen network does on the training images what it did in training; with
        "discriminators" only those of D do.

        Returns:
            The scale, frozen.

        Raises:
            RunError: a weight is not finite.
        """
        if self.config.batch_statistics != "running":
            self.scale.discriminator.body.set_momentum(1.0)
            self._discriminate(self.real_canvases)
        if self.config.batch_statistics == "training_images":
            self.scale.generator.body.set_momentum(1.0)
            self._reconstruct()
        self.state()  # raises where a weight is not finite
        self.scale.freeze()
        return self.scale

    def _reconstruct(self) -> Tensor:
        """The images rebuilt from the fixed noise, in training mode."""
        fixed = self._amplify(self.scale.fixed_noise.expand(len(self.real), 3, -1, -1))
        return self.scale.generator(fixed, self.rebuilt_below, self.index, self.g_coverages)

    def _discriminate(self, canvases: list[Tensor]) -> list[Tensor]:
        return self.scale.discriminator(canvases, self.d_coverages)

    def _amplify(self, noise: Tensor) -> Tensor:
        return self.scale.noise_amp.view(-1, 1, 1, 1) * noise

    def _draw_noise(self) -> Tensor:
        """Fresh noise of this scale, one draw an image, times its amplitude."""
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
        """Both optimisers, by the names that their state is kept under."""
        return {"optimizer_g": self.optimizer_g, "optimizer_d": self.optimizer_d}

    def state(self) -> dict[str, Tensor]:
        """All that is needed to go on from here, as tensors under one name each.

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

    def _state_names(self, iteration: int) -> set[str]:
        """The names of `state` after an iteration."""
        names = set(scale_tensors(self.scale)) | {"noise_stream"}
        for prefix, optimizer in self._optimizers().items():
            for number in range(len(optimizer.param_groups[0]["params"]) if iteration else 0):
                names |= {f"{prefix}.{number}.{key}" for key in ("step", "exp_avg", "exp_avg_sq")}
        return names

    def _not_finite(self, what: str) -> str:
        return (
            f"scale {self.n}, iteration {self.iteration}: {what} not finite; the last checkpoint is intact: train "
            "again with lower --lr_g and --lr_d, or with --precision float32"
        )

    def restore(self, tensors: dict[str, Tensor], iteration: int, source: str) -> None:
        """Go back to a `state`.

        Args:
            tensors: from `state`.
            iteration: the number of iterations done by then.
            source: the file's name, for errors.

        Raises:
            UserError: the tensors are of another run, or damaged.
        """
        restore_scale(self.scale, tensors, source)
        names = self._state_names(iteration)
        missing, foreign = names - set(tensors), set(tensors) - names
        if missing or foreign:
            what = "missing" if missing else "of another run"
            raise UserError(f"{source}: {min(missing or foreign)} is {what}; train again with --overwrite")
        try:
            self.noise_stream.set_state(tensors["noise_stream"])
        except (RuntimeError, TypeError) as error:
            raise UserError(
                f"{source}: noise_stream is no state of a generator; train again with --overwrite"
            ) from error
        self.iteration = iteration
        for prefix, optimizer in self._optimizers().items():
            state: dict[int, dict[str, Tensor]] = {}
            parameters = optimizer.param_groups[0]["params"]
            for name, value in tensors.items():
                if name.startswith(prefix + "."):
                    _, number, key = name.split(".")
                    place = parameters[int(number)]
                    if value.shape != (() if key == "step" else place.shape):
                        raise UserError(f"{source}: {name} is of another run; train again with --overwrite")
                    if key != "step":
                        # Fused Adam walks through raw memory: a moment must lie there as its weight does.
                        value = torch.empty_like(place, requires_grad=False).copy_(value)
                    state.setdefault(int(number), {})[key] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
