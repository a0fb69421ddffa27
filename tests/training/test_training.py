"""The training of one scale: what it does in an iteration, what it keeps constant, where it starts from."""

from dataclasses import astuple

import pytest
import torch

from hta.config import Config, ModelConfig, TrainingConfig
from hta.errors import RunError
from hta.images import resize
from hta.models.pyramid import Pyramid
from hta.models.storage import RunRecord, scale_tensors
from hta.models.views import draw_views
from hta.runtime import Runtime
from hta.speed.workload import explicit_scale
from hta.training.scale import ScaleTrainer
from hta.training.trainer import train_pyramid
from tests.helpers import random_images
from tests.oracle import random_network, resize_image

CPU = torch.device("cpu")
SIZE = (16, 19)  # of the working image; --min_size 13 makes it two or three scales
EXACT = dict(rtol=0, atol=1e-9)


class DoublePyramid(Pyramid):
    """A pyramid whose networks are float64, so that rounding hides nothing."""

    def new_scale(self, n, generator):
        scale = super().new_scale(n, generator)
        scale.generator.double()
        scale.discriminator.double()
        scale.fixed_noise, scale.noise_amp = scale.fixed_noise.double(), scale.noise_amp.double()
        return scale


def make_pyramid(num_images=2, num_transforms=4, double=False, nfc=4, scale_factor=0.9, min_size=13):
    cls, dtype = (DoublePyramid, torch.float64) if double else (Pyramid, torch.float32)
    config = ModelConfig(
        num_transforms=num_transforms, min_size=min_size, max_size=max(SIZE), scale_factor=scale_factor, nfc=nfc
    )
    return cls(config, SIZE, num_images, CPU, dtype)


def images_for(pyramid, n, seed=1):
    return random_images(pyramid.plan.sizes[n], pyramid.num_images, seed, pyramid.dtype)


def add_scales(pyramid, count):
    """Freeze scales with weights and statistics that say something, untrained as they are."""
    for n in range(count):
        scale = pyramid.new_scale(n, torch.Generator().manual_seed(n))
        for seed, (network, inputs) in enumerate(((scale.generator, 4), (scale.discriminator, 3))):
            outputs = network.body.tail.out_channels
            random = random_network(inputs, pyramid.plan.widths[n], outputs, seed=10 * n + seed)
            network.body.load_state_dict(random.state_dict())
        scale.freeze()
        scale.noise_amp.copy_(torch.linspace(0.3, 0.7, pyramid.num_images))
        pyramid.scales.append(scale)
    return pyramid


def state_of(scale):
    return {name: value.clone() for name, value in scale_tensors(scale).items()}


def assert_same_state(before, after):
    assert set(before) == set(after)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


@pytest.mark.parametrize(("num_transforms", "num_images"), [(4, 2), (42, 1), (54, 2)])
@pytest.mark.parametrize("n", [0, 1])
def test_iterations_equal_the_explicit_way(n, num_transforms, num_images):
    pyramid = add_scales(make_pyramid(num_images, num_transforms, double=True), n)
    trainer = ScaleTrainer(pyramid, images_for(pyramid, n), TrainingConfig(niter=2))
    explicit, stream = explicit_scale(trainer), torch.Generator()
    stream.set_state(trainer.noise_stream.get_state())
    torch.testing.assert_close(trainer.scale.noise_amp, explicit.amplitude, **EXACT)
    start = state_of(trainer.scale)

    for losses in trainer.run():
        expected = [torch.tensor(steps).mean(dim=0) for steps in explicit.iterate(stream)]
        torch.testing.assert_close(torch.tensor(astuple(losses)), torch.cat(expected), rtol=0, atol=1e-6)

    networks = (explicit.generator, explicit.discriminator)
    for mine, plain in zip((trainer.scale.generator, trainer.scale.discriminator), networks, strict=True):
        wanted = plain.state_dict()
        for name, value in mine.body.state_dict().items():
            torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-7)
    # Twelve steps of 5e-4: the weights have moved by far more than the tolerance.
    moved = (trainer.scale.generator.body.tail.weight - start["generator.body.tail.weight"]).abs()
    assert moved.median() > 1e-4


class Spy(ScaleTrainer):
    """Writes down what its parts are given."""

    def __init__(self, *args):
        self.calls = []
        super().__init__(*args)
        self.scale.generator.register_forward_pre_hook(lambda _, args: self.calls.append(("G", args)))
        self.scale.discriminator.register_forward_pre_hook(lambda _, args: self.calls.append(("D", args)))

    def _draw_noise(self):
        self.calls.append(("noise", super()._draw_noise()))
        return self.calls[-1][1]

    def _draw_image_below(self):
        self.calls.append(("below", super()._draw_image_below()))
        return self.calls[-1][1]

    def _step_generator(self, noise, below):
        self.calls.append(("G step", (noise, below)))
        return super()._step_generator(noise, below)

    def named(self, name):
        return [value for called, value in self.calls if called == name]


def spied_iteration(n, **settings):
    pyramid = add_scales(make_pyramid(**settings), n)
    spy = Spy(pyramid, images_for(pyramid, n), TrainingConfig(niter=1))
    list(spy.run())
    return spy


def test_the_image_below_is_drawn_for_every_d_step_and_noise_once():
    spy = spied_iteration(2)
    (noise,), below = spy.named("noise"), spy.named("below")
    assert len({tuple(image.flatten().tolist()) for image in below}) == len(below) == 3
    assert [step[0] is noise and step[1] is below[-1] for step in spy.named("G step")] == [True] * 3
    fakes = spy.named("G")[:3]
    assert all(args[0] is noise and args[1] is image for args, image in zip(fakes, below, strict=True))


@pytest.mark.parametrize("n", [0, 1])
def test_fixed_noise_is_shared_by_images_and_channels_fresh_noise_is_not(n):
    spy = spied_iteration(n)
    assert spy.scale.fixed_noise.shape == (1, 1, *spy.size)
    generated = spy.named("G")
    assert len(generated) == 3 + 2 * 3
    amplitude = spy.scale.noise_amp
    for noise, previous, index, _ in generated[4::2]:  # every second call of the G steps rebuilds
        unit = noise / amplitude[:, None, None, None]
        torch.testing.assert_close(unit, spy.scale.fixed_noise.expand_as(unit))
        assert previous is spy.rebuilt_below
        assert index.tolist() == [0, 1]
    fresh = spy.named("noise")[0] / amplitude[:, None, None, None]
    assert not torch.allclose(fresh[0], fresh[1])
    assert torch.allclose(fresh[:, 0], fresh[:, 1]) == (n == 0)
    assert 0.8 < fresh.std() < 1.2


def test_the_noise_amplitude_is_a_tenth_of_the_mean_residual_of_each_image():
    pyramid = add_scales(make_pyramid(3), 1)
    images = images_for(pyramid, 1)
    images[1] *= 0.1
    trainer = ScaleTrainer(pyramid, images, TrainingConfig(niter=1))
    rebuilt = torch.from_numpy(resize_image(pyramid.reconstruct().numpy(), pyramid.plan.sizes[1]))
    by_hand = [
        0.1 * float((image - below).abs().sum()) / image.numel() for image, below in zip(images, rebuilt, strict=True)
    ]
    torch.testing.assert_close(trainer.scale.noise_amp, torch.tensor(by_hand), rtol=1e-4, atol=0)
    assert len(set(by_hand)) == 3
    doubled = ScaleTrainer(pyramid, images, TrainingConfig(niter=1, noise_amp=0.2))
    torch.testing.assert_close(doubled.scale.noise_amp, 2 * trainer.scale.noise_amp)


def test_learning_rates_drop_after_their_milestones():
    pyramid = make_pyramid()
    config = TrainingConfig(niter=5, milestone_d=2, milestone_g=3, lr_d=1e-3, lr_g=2e-3, gamma=0.1)
    trainer = ScaleTrainer(pyramid, images_for(pyramid, 0), config)
    rates = [[optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers.values()] for _ in trainer.run()]
    assert [rate[1] for rate in rates] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-4])
    assert [rate[0] for rate in rates] == pytest.approx([2e-3, 2e-3, 2e-3, 2e-4, 2e-4])
    betas = {optimizer.param_groups[0]["betas"] for optimizer in trainer.optimizers.values()}
    assert betas == {(0.5, 0.999)}


def test_frozen_scales_do_not_change():
    pyramid = add_scales(make_pyramid(), 2)
    before = [state_of(scale) for scale in pyramid.scales]
    list(ScaleTrainer(pyramid, images_for(pyramid, 2), TrainingConfig(niter=2)).run())
    for scale, kept in zip(pyramid.scales, before, strict=True):
        assert_same_state(kept, state_of(scale))
        for network in (scale.generator, scale.discriminator):
            assert {network.training, *(p.requires_grad for p in network.parameters())} == {False}


def test_a_scale_starts_from_the_one_before_where_the_widths_match():
    pyramid = add_scales(make_pyramid(scale_factor=0.95), 4)
    assert pyramid.plan.widths[:5] == (4, 4, 4, 4, 8)
    pyramid.scales.pop()
    warm = ScaleTrainer(pyramid, images_for(pyramid, 3), TrainingConfig(niter=1))
    before, after = state_of(pyramid.scales[2]), state_of(warm.scale)
    for name in before.keys() - {"fixed_noise", "noise_amp"}:
        assert torch.equal(before[name], after[name]), name
    assert after["fixed_noise"].shape != before["fixed_noise"].shape
    # A copy: training it leaves the frozen scale alone, and optimisers start afresh.
    assert not warm.optimizers["optimizer_g"].state
    assert all(p.requires_grad for p in warm.scale.generator.parameters())
    assert warm.scale.generator.training


def test_a_scale_of_another_width_starts_from_drawn_weights():
    pyramid = add_scales(make_pyramid(scale_factor=0.95, nfc=32), 4)
    cold = ScaleTrainer(pyramid, images_for(pyramid, 4), TrainingConfig(niter=1))
    assert pyramid.plan.widths[3:5] == (32, 64)
    for network in (cold.scale.generator, cold.scale.discriminator):
        for block in network.body.blocks:
            assert block.conv.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert abs(block.conv.weight.mean().item()) < 2e-3
            assert block.norm.weight.mean().item() == pytest.approx(1, abs=0.02)
            assert block.norm.weight.std().item() == pytest.approx(0.02, rel=0.5)
            assert {*block.norm.bias.tolist(), *block.norm.running_mean.tolist()} == {0}
            assert (block.norm.running_var == 1).all()
            fan_in = block.conv.weight[0].numel()
            assert 0.8 * fan_in**-0.5 < block.conv.bias.abs().max() <= fan_in**-0.5


@pytest.mark.parametrize("num_transforms", [54, 42, 4])
def test_every_parameter_gets_a_finite_gradient(num_transforms):
    pyramid = make_pyramid(num_transforms=num_transforms)
    trainer = ScaleTrainer(pyramid, images_for(pyramid, 0), TrainingConfig(niter=1))
    list(trainer.run())
    for network in (trainer.scale.generator, trainer.scale.discriminator):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            # A bias before batch norm cancels in it; everything else learns.
            assert parameter.grad.any() != name.endswith("conv.bias"), name
            assert parameter.isfinite().all(), name


def test_losses_of_the_first_iteration_stand_near_chance():
    pyramid = make_pyramid(num_transforms=54)
    (losses,) = ScaleTrainer(pyramid, images_for(pyramid, 0), TrainingConfig(niter=1, lr_d=1e-9, lr_g=1e-9)).run()
    log_of_classes = torch.tensor(55.0).log().item()
    for value in (losses.d_real, losses.d_fake, losses.g_adversarial):
        assert value == pytest.approx(log_of_classes, rel=0.1)
    # G starts near zero, so the reconstruction's error is the power of the image: 1/3 for uniform values in [-1, 1].
    assert losses.g_reconstruction == pytest.approx(1 / 3, rel=0.2)


def test_training_learns():
    pyramid = make_pyramid()
    config = TrainingConfig(niter=20, lr_d=5e-3, lr_g=5e-3)
    losses = list(ScaleTrainer(pyramid, images_for(pyramid, 0), config).run())
    assert losses[-1].g_reconstruction < 0.7 * losses[0].g_reconstruction
    assert losses[-1].d_real < 0.9 * losses[0].d_real


def test_a_loss_that_is_not_finite_ends_the_scale_by_name():
    pyramid = make_pyramid()
    trainer = ScaleTrainer(pyramid, images_for(pyramid, 0), TrainingConfig(niter=5, lr_d=1e30))
    with pytest.raises(RunError, match=r"^scale 0, iteration \d: .*--lr_g and --lr_d"):
        list(trainer.run())


def train_in_memory(seed):
    model = ModelConfig(min_size=13, max_size=max(SIZE), scale_factor=0.8, nfc=4)
    config = Config(model, TrainingConfig(niter=1, manualSeed=seed)).resolved(is_gray=False)
    images = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(3)) * 2 - 1
    return train_pyramid(images, RunRecord(("a.png", "b.png"), SIZE, False, config), Runtime(CPU, torch.float32))


def test_a_whole_pyramid_in_memory_for_which_the_seed_alone_decides():
    one, same, other = train_in_memory(0), train_in_memory(0), train_in_memory(1)
    assert len(one.scales) == one.plan.num_scales > 2
    assert one.reconstruct().shape == (2, 3, *SIZE)
    assert one.reconstruct().isfinite().all()
    assert not any(p.requires_grad for scale in one.scales for p in scale.generator.parameters())
    for scale, twin, stranger in zip(one.scales, same.scales, other.scales, strict=True):
        assert_same_state(state_of(scale), state_of(twin))
        assert not torch.equal(scale.fixed_noise, stranger.fixed_noise)
        weights = [s.generator.body.tail.weight for s in (scale, stranger)]
        assert not torch.equal(*weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_state_goes_on_as_if_nothing_had_happened(dtype):
    def trainer():
        pyramid = add_scales(make_pyramid(nfc=8), 1)
        pyramid.dtype = dtype
        config = TrainingConfig(niter=4, milestone_d=2, milestone_g=3)
        return ScaleTrainer(pyramid, images_for(pyramid, 1), config)

    whole = trainer()
    whole_losses = list(whole.run())
    first = trainer()
    steps = first.run()
    losses = [next(steps) for _ in range(2)]
    # Files hold plain, contiguous tensors.
    kept = {name: value.detach().clone().contiguous() for name, value in first.state().items()}
    second = trainer()
    second.restore(kept, 2, "checkpoint")
    losses += list(second.run())
    assert losses == whole_losses
    assert_same_state(state_of(whole.scale), state_of(second.scale))


@pytest.mark.parametrize("num_images", [1, 2])
def test_frozen_networks_do_on_the_training_images_what_they_did_in_training(num_images):
    pyramid = add_scales(make_pyramid(num_images, double=True), 1)
    trainer = ScaleTrainer(pyramid, images_for(pyramid, 1), TrainingConfig(niter=3))
    list(trainer.run())
    in_training = [logits.detach() for logits in trainer._discriminate(trainer.real_canvases)]
    rebuilt = trainer._reconstruct(trainer.scale.generator).detach()
    scale = trainer.finish()
    assert not scale.discriminator.training
    # What is left of the difference is the unbiased factor of the kept variance.
    for frozen, trained in zip(scale.discriminator(trainer.real_canvases), in_training, strict=True):
        torch.testing.assert_close(frozen, trained, rtol=0, atol=0.05 * float(trained.std()))
    pyramid.scales.append(scale)
    torch.testing.assert_close(pyramid.reconstruct(), rebuilt, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("choice", "settled"),
    [("training_images", {"generator", "discriminator"}), ("discriminators", {"discriminator"}), ("running", set())],
)
def test_which_networks_keep_the_running_averages(choice, settled):
    pyramid = make_pyramid(1)
    trainer = ScaleTrainer(pyramid, images_for(pyramid, 0), TrainingConfig(niter=2, batch_statistics=choice))
    list(trainer.run())
    before = state_of(trainer.scale)
    after = state_of(trainer.finish())
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert {name.split(".")[0] for name in changed} == settled
    assert all("running" in name or "num_batches" in name for name in changed)


def test_the_recipe_views_shows_fresh_views_to_the_discriminator_alone():
    """Other views at every step, the same ones after a resume; the generator still rebuilds the images themselves."""
    pyramid = make_pyramid(2)
    originals, level = random_images(SIZE, 2, 3, torch.float32), images_for(pyramid, 0)
    trainer = ScaleTrainer(pyramid, level, TrainingConfig(niter=2, recipe="views", manualSeed=5), originals)
    for iteration in (0, 1):
        trainer.iteration = iteration
        views = draw_views(originals, 6, 1.0, (5, "training", 0, iteration)).split(2)
        for shown, expected in zip(trainer._shown_to_discriminator(3), views, strict=True):
            rendered = trainer.canvases.render(resize(expected, pyramid.plan.sizes[0]))
            for batch, wanted in zip(shown, rendered, strict=True):
                torch.testing.assert_close(batch, wanted, rtol=0, atol=1e-5)
    assert torch.equal(trainer.real, level)
    plain = ScaleTrainer(pyramid, level, TrainingConfig(niter=2), originals)
    assert [shown is plain.real_canvases for shown in plain._shown_to_discriminator(3)] == [True] * 3


def test_the_recipe_views_keeps_the_mean_statistics_of_sixteen_views():
    pyramid = make_pyramid(1, double=True)
    images = random_images(SIZE, 1, 3, torch.float32)
    trainer = ScaleTrainer(pyramid, images_for(pyramid, 0), TrainingConfig(niter=1, recipe="views"), images)
    list(trainer.run())
    (block, *_), canvases = trainer.scale.discriminator.body.blocks, list(trainer._shown_to_discriminator(16))
    # Every canvas position counts once for each of the windows that cover it: once, with rotations alone.
    rows = [[block.conv(batch).transpose(0, 1).flatten(1) for batch in shown] for shown in canvases]
    means = [torch.cat(batches, dim=1).mean(dim=1) for batches in rows]
    scale = trainer.finish()
    kept = scale.discriminator.body.blocks[0].norm.running_mean
    torch.testing.assert_close(kept.double(), torch.stack(means).mean(dim=0).detach(), rtol=0, atol=1e-6)
