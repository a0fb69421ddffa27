"""The benchmark's baseline computes what the product computes."""

import pytest
import torch

from hta.config import Config, ModelConfig, RuntimeConfig, TrainingConfig
from hta.evaluation.scorer import Scorer
from hta.images import resize
from hta.models.pyramid import fresh_noise
from hta.runtime import set_up
from hta.speed.explicit import explicit_network, explicit_vote_shares
from hta.speed.workload import build_trainers, random_pyramid, training_image

CONFIG = Config(
    ModelConfig(task="class", num_transforms=54, max_size=32, nfc=4),
    TrainingConfig(niter=1),
    RuntimeConfig(not_cuda=True, threads=1, precision="float32"),
)


def test_losses_of_both_ways_agree_step_by_step():
    stream = torch.Generator().manual_seed(0)
    for trainer, explicit in build_trainers(CONFIG, set_up(CONFIG.runtime)):
        noise = trainer._amplify(fresh_noise(trainer.n, 1, trainer.size, stream))
        below = trainer._draw_image_below()
        for step in ("_step_discriminator", "_step_discriminator", "_step_generator", "_step_generator"):
            mine, plain = getattr(trainer, step)(noise, below), getattr(explicit, step)(noise, below)
            assert mine.tolist() == pytest.approx(plain, rel=2e-3)


def test_vote_shares_of_both_ways_agree():
    pyramid = random_pyramid(CONFIG, set_up(CONFIG.runtime))
    networks = [explicit_network(scale.discriminator.body) for scale in pyramid.scales]
    image = resize(training_image(), pyramid.plan.working_size)
    plain = explicit_vote_shares(networks, pyramid, image)
    assert Scorer(pyramid).shares(image)[0, 0].tolist() == pytest.approx(plain, abs=1e-6)
