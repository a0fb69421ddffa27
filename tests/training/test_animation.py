"""--animate: GIFs that show the training and the trained model, which is the same without them."""

import base64
import io
import itertools
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from selenium.webdriver.support.ui import WebDriverWait

import main_train
from hta.images import to_uint8
from hta.model import load
from hta.models.native import choose_kernels
from hta.models.pyramid import Pyramid
from hta.models.scales import image_pyramid
from hta.runtime import RuntimeConfig, resolve
from hta.training import animation
from hta.training.animation import FILMS, picture_row, walk_pictures, write_gif
from hta.training.report import write_train_page
from hta.training.scale import ScaleTrainer
from tests.browser import open_page
from tests.helpers import interrupted, picture, save, snapshot
from tests.training.test_report import Page

MACHINE = ["--threads", "1", "--precision", "float32", "--not_cuda"]
NITER, SIZES = 4, ((14, 17), (17, 19), (19, 22))
QUICK = ["--min_size", "14", "--max_size", "22", "--nfc", "4", "--niter", f"{NITER}", "--lr_g", "5e-3", *MACHINE]
TRAIN = ["--input_name", "shots", *QUICK, "--num_samples", "1", "--checkpoint_every", "1"]


def workspace(folder, patch):
    """Work in a folder with two training images."""
    for seed in range(2):
        save(folder / "shots" / f"{seed}.png", picture(seed) // 3 + 80)  # 64 colours show it well
    patch.chdir(folder)
    return folder / "TrainedModels" / "shots"


@pytest.fixture(scope="module")
def animated(tmp_path_factory):
    """The run folder of a training with --animate; only to be read."""
    with pytest.MonkeyPatch.context() as patch:
        folder = workspace(tmp_path_factory.mktemp("animated"), patch)
        assert main_train.main([*TRAIN, "--animate"]) == 0
    return folder


@pytest.fixture(scope="module")
def model(animated):
    return load(animated, runtime=RuntimeConfig(not_cuda=True, threads=1, precision="float32"))


def opened(path):
    """A GIF's pictures, their times in ms, and how often it plays (0: for ever)."""
    with Image.open(path) as film:
        times, pictures = [], []
        for number in range(film.n_frames):
            film.seek(number)
            times.append(film.info["duration"])
            pictures.append(np.asarray(film.convert("RGB")))
        return pictures, times, film.info["loop"]


@pytest.mark.parametrize("extra", [[], ["--batch_statistics", "running", "--recipe", "paper"]])
def test_the_model_has_the_same_bits_without(animated, tmp_path, monkeypatch, extra):
    plain, moving = workspace(tmp_path / "plain", monkeypatch), animated
    assert main_train.main([*TRAIN, *extra]) == 0
    if extra:
        moving = workspace(tmp_path / "moving", monkeypatch)
        assert main_train.main([*TRAIN, *extra, "--animate"]) == 0
    before, after = snapshot(plain), snapshot(moving)
    assert set(after) - set(before) == set(FILMS)
    assert [name for name in sorted(before) if before[name] != after[name]] == ["train.html"]


def test_a_film_of_the_training_ends_with_what_the_model_draws(animated, model):
    pictures, times, loop = opened(animated / "training.gif")
    assert loop == 0
    assert times == [200] * (len(SIZES) * NITER - 1) + [3000]
    assert len({shown.shape for shown in pictures}) == 1
    drawn = picture_row(model.pyramid, model.training_images[:1], 0)
    height, width = drawn.shape[:2]
    assert (height, width) == (83, 4 * (96 + 6))  # a longer side of 96 px, with 6 px behind
    title, last = pictures[-1][:-height], pictures[-1][-height:, :width]
    first_error, last_error = (
        np.abs(shown.astype(int) - drawn).mean() for shown in (pictures[0][-height:, :width], last)
    )
    assert last_error < 5  # in 64 colours
    assert first_error > 2 * last_error
    assert (title < 128).any()
    assert (title == 255).mean() > 0.8


def test_the_pictures_of_a_row_are_those_of_the_page(model):
    page = Page(model.folder.path / "train.html")
    level = image_pyramid(model.training_images, SIZES)[1]
    row = picture_row(model.pyramid, level[:1], 0, num_scales=2)
    for number, name in enumerate(["training image 1", "reconstruction 1", "sample 1", "sample 2"]):
        shown = page.pictures("scale-1")[f"{name}, scale 1"]
        enlarged = row[:, number * 102 : number * 102 + 96]
        small = np.asarray(Image.fromarray(enlarged).resize(shown.shape[1::-1], Image.Resampling.BOX))
        assert np.abs(small.astype(int) - shown).mean() < 8
        assert (row[:, number * 102 + 96 : (number + 1) * 102] == 255).all()


def test_a_preview_is_the_finished_scale_and_changes_nothing(model):
    record, runtime = model.record, resolve(RuntimeConfig(not_cuda=True, precision="float32"))
    kernels = choose_kernels(runtime.device, True)
    pyramid = Pyramid(record.config.model, record.image_size, 2, runtime.device, runtime.dtype, kernels)
    level = image_pyramid(model.training_images, SIZES)[0]
    trainer = ScaleTrainer(pyramid, level, record.config.training, model.training_images)
    for _ in itertools.islice(trainer.run(), 2):
        pass
    before = {name: value.clone() for name, value in trainer.state().items()}
    generator = torch.get_rng_state()
    seen = trainer.preview()
    assert pyramid.scales == []
    assert trainer.scale.generator.training
    after = trainer.state()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), generator)
    drawn = seen.reconstruct()
    pyramid.scales.append(trainer.finish())
    assert torch.equal(drawn, pyramid.reconstruct())


def test_a_walk_is_smooth_closed_and_of_its_seed(animated, model):
    walk = np.stack(list(walk_pictures(model.pyramid, 0))).astype(float)
    shown, times, loop = opened(animated / "walk.gif")
    assert (len(walk), len(shown), set(times), loop) == (48, 48, {100}, 0)
    assert np.abs(np.stack(shown) - walk).mean() < 5
    steps = [np.abs(one - other).mean() for one, other in zip(walk, np.roll(walk, -1, axis=0), strict=True)]
    opposite = np.abs(walk[:24] - walk[24:]).mean()
    assert 0 < max(steps) < opposite / 4  # the last of these leads back to the first picture
    again, other = (next(walk_pictures(model.pyramid, seed)) for seed in (0, 1))
    assert np.array_equal(again, walk[0])
    assert np.abs(other - walk[0]).mean() > 2 * max(steps)


def test_the_noise_of_a_walk_has_variance_one_and_no_colour_at_scale_0(model):
    class Listener:
        plan, all_images, seen = model.pyramid.plan, model.pyramid.all_images, []

        def sample(self, noise, index):
            self.seen.append([noise(n, (80, 80)) for n in (0, 1)])
            return model.pyramid.sample(noise, index)

    list(walk_pictures(Listener(), 3))
    for coarse, fine in Listener.seen:
        assert coarse.var().item() == pytest.approx(1, abs=0.08)
        assert fine.var().item() == pytest.approx(1, abs=0.05)
        assert torch.equal(coarse[:, 0], coarse[:, 2])
        assert not torch.equal(fine[:, 0], fine[:, 2])


def test_too_large_a_film_loses_every_other_frame_but_neither_its_end_nor_its_time(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 60, 60, 3), dtype=np.uint8)
    write_gif(tmp_path / "whole.gif", noise, [100] * 7 + [900], 10**6)
    whole, times, _ = opened(tmp_path / "whole.gif")
    assert times == [100] * 7 + [900]
    write_gif(tmp_path / "half.gif", noise, [100] * 7 + [900], (tmp_path / "whole.gif").stat().st_size - 1)
    half, times, _ = opened(tmp_path / "half.gif")
    assert times == [200] * 3 + [900]
    assert all(np.array_equal(one, other) for one, other in zip(half, whole[1::2], strict=True))
    write_gif(tmp_path / "least.gif", noise, [100] * 7 + [900], 9000)
    assert (tmp_path / "least.gif").stat().st_size <= 9000


def test_an_interrupted_training_keeps_its_frames_and_overwrite_knows_them(tmp_path, monkeypatch, animated, capsys):
    folder = workspace(tmp_path, monkeypatch)
    with interrupted(monkeypatch, *(1, 2)):
        assert main_train.main([*TRAIN, "--animate"]) == 130
    frames = [f"frames/00_{done:09}.png" for done in (1, 2, 3, 4)] + [f"frames/01_{done:09}.png" for done in (1, 2)]
    assert sorted(name for name in snapshot(folder) if "/" in name) == frames
    shutil.copytree(folder, folder.with_name("still"))
    assert main_train.main([*TRAIN, "--name", "still", "--resume"]) == 0
    assert not {*FILMS, "frames"} & {path.name for path in folder.with_name("still").iterdir()}
    assert main_train.main([*TRAIN, "--animate", "--resume"]) == 0
    for name in FILMS:
        assert (folder / name).read_bytes() == (animated / name).read_bytes()
    assert not (folder / "frames").exists()
    (folder / "frames").mkdir()
    (folder / "frames" / "00_000000001.png").write_bytes(b"")
    assert main_train.main([*TRAIN, "--overwrite", "--niter", "1"]) == 0
    assert not {*FILMS, "frames"} & set(snapshot(folder))
    (folder / "frames").mkdir()
    (folder / "frames" / "mine.png").write_bytes(b"")
    assert main_train.main([*TRAIN, "--overwrite"]) == 2
    assert "contains frames/mine.png" in capsys.readouterr().err


def test_the_page_shows_films_or_stills_below_five_megabytes(animated, chromium):
    path = animated / "train.html"
    page = Page(path)
    films = page.sections["films"]["images"]
    assert [film["alt"] for film in films] == [caption for caption, _ in FILMS.values()]
    for film, name in zip(films, FILMS, strict=True):
        assert base64.b64decode(film["src"].removeprefix("data:image/gif;base64,")) == (animated / name).read_bytes()
    assert (films[1]["width"], films[1]["height"]) == ("192", "166")
    stills = [attrs["srcset"] for tag, attrs in page.elements if tag == "source"]
    for address, name in zip(stills, FILMS, strict=True):
        still = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(";base64,")[1]))))
        assert np.abs(still.astype(int) - opened(animated / name)[0][-1]).mean() < 5
    # Without them the page has at most three megabytes, as tests/training/test_report.py says.
    assert 3_000_000 + 4 / 3 * (animation._TRAINING_BYTES + animation._WALK_BYTES) + 100_000 < 5_000_000
    for motion, kind in (("reduce", ("data:image/png", "data:image/jpeg")), ("no-preference", "data:image/gif")):
        feature = {"name": "prefers-reduced-motion", "value": motion}
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        open_page(chromium, path, 390)
        loaded = "return [...document.images].every(image => image.complete && image.naturalWidth > 0)"
        WebDriverWait(chromium, 5).until(lambda driver: driver.execute_script(loaded))  # noqa: B023
        shown = chromium.execute_script("return [...document.querySelectorAll('.film img')].map(i => i.currentSrc)")
        assert len(shown) == 2
        assert all(address.startswith(kind) for address in shown)
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= 390
    assert chromium.execute_script("return document.querySelector('.film img').clientWidth") > 250


def test_a_page_without_films_does_not_speak_of_them(model, tmp_path):
    shares = np.full((2, 3), 0.5)
    path = write_train_page(tmp_path, model.record, model.pyramid, model.training_images, shares, 0)
    assert "films" not in Page(path).sections
    assert to_uint8(model.training_images).shape == (2, 19, 22, 3)
