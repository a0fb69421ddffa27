"""Shared by several test files: models with the oracle's random parameters, random images, and folders of files."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hta.config import ModelConfig
from hta.models.pyramid import Pyramid
from hta.training.progress import Journal
from tests.oracle import random_network


def random_pyramid(image_size, num_transforms, *, dtype=torch.float64, min_size=14, max_size=22, nfc=6):
    """A frozen pyramid whose discriminators hold random parameters, and the same discriminators written plainly."""
    config = ModelConfig(
        task="class", num_transforms=num_transforms, min_size=min_size, max_size=max_size, nfc=nfc, scale_factor=0.6
    )
    pyramid = Pyramid(config, image_size, 1, torch.device("cpu"), dtype)
    networks = []
    for n, width in enumerate(pyramid.plan.widths):
        scale = pyramid.new_scale(n, torch.Generator().manual_seed(n))
        networks.append(random_network(3, width, num_transforms + 1, seed=n))
        if dtype == torch.float64:
            scale.discriminator.double()
        scale.discriminator.body.load_state_dict(networks[-1].state_dict())
        scale.freeze()
        pyramid.scales.append(scale)
    return pyramid, networks


def random_images(shape, num_images, seed=1, dtype=torch.float64):
    """`(N, 3, *shape)` uniform in [-1, 1]."""
    draw = torch.Generator().manual_seed(seed)
    return (torch.rand(num_images, 3, *shape, generator=draw, dtype=torch.float64) * 2 - 1).to(dtype)


def picture(seed=0, height=20, width=24):
    """A smooth random colour picture, `(height, width, 3)` uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def save(path, pixels):
    """Write a picture, and make the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def enter_copy(source, folder, monkeypatch):
    """Work in a folder that gets a copy of another one, which is only read; returns the folder."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    return folder


def snapshot(folder="."):
    """Everything below a folder: folders as None, files with their bytes."""
    return {p.relative_to(folder).as_posix(): None if p.is_dir() else p.read_bytes() for p in Path(folder).rglob("*")}


@contextmanager
def interrupted(monkeypatch, scale, iteration):
    """Let a training be interrupted, as by Ctrl-C, once the losses of this iteration of this scale are recorded."""
    record = Journal.record

    def stop(journal, n, done, losses):
        record(journal, n, done, losses)
        if (n, done) == (scale, iteration):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "record", stop)
        yield
