"""main_train.py from the command line: what it writes, what it refuses, how it breaks."""

import contextlib
import csv
import io
import json
import logging
import math
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import hta
import main_eval
import main_train
from hta import runs
from hta.config import default_config
from hta.data.folders import load_training_images
from hta.errors import UserError
from hta.evaluation.calibration import calibrate, kept_calibration
from hta.evaluation.nearest import RULE
from hta.images import resize
from hta.model import find_model, load
from hta.models.native import choose_kernels
from hta.models.pyramid import Pyramid
from hta.models.storage import RunFolder
from hta.runtime import RuntimeConfig
from hta.training import samples
from hta.training.samples import draw_samples
from hta.training.scale import ScaleTrainer
from tests.data.trees import mvtec_class, write_mnist
from tests.helpers import enter_copy, picture, save, snapshot

ROOT = Path(__file__).parents[1]
SCALES = ["--min_size", "14", "--max_size", "22", "--nfc", "4"]  # three for an image of 20 x 24 px (height x width)
MACHINE = ["--threads", "1", "--precision", "float32"]
QUICK = [*SCALES, *MACHINE, "--niter", "2", "--num_samples", "3"]
QUICKEST = ["--min_size", "19", "--max_size", "22", "--nfc", "2", *MACHINE, "--niter", "1", "--num_samples", "0"]


def write_image(path, height=20, width=24, seed=0):
    save(path, picture(seed, height, width))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with images, the model `shots` of two of them, and what its training has printed; only to be read."""
    folder = tmp_path_factory.mktemp("trained")
    write_image(folder / "shots" / "a.png", seed=0)
    write_image(folder / "shots" / "b.png", seed=1)
    # Fast learning, so that the scales draw more than their noise.
    arguments = ["--input_name", "shots", *QUICK, "--niter", "12", "--lr_g", "5e-3"]
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main_train.main(arguments) == 0
    (folder / "printed.txt").write_text(printed.getvalue())
    return folder


@pytest.fixture
def model(trained):
    return load("shots", trained / "TrainedModels", RuntimeConfig(not_cuda=True, threads=1, precision="float32"))


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A working directory with one image."""
    write_image(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def copied(trained, tmp_path, monkeypatch):
    """A working directory with the trained model."""
    return enter_copy(trained, tmp_path, monkeypatch)


def test_a_run_leaves_model_curves_samples_and_metrics(trained):
    folder = trained / "TrainedModels" / "shots"
    pictures = {f"samples/random_00{i}.png" for i in range(3)} | {f"samples/reconstruction_00{i}.png" for i in (0, 1)}
    files = {"config.json", "metrics.csv", "curves.png", "samples", "train.html", "calibration.json"} | pictures
    tensors = {f"{name}.safetensors" for name in ("training_images", "scale_0", "scale_1", "scale_2")}
    assert set(snapshot(folder)) == files | tensors
    assert set(snapshot(trained / "TrainedModels")) == {"shots"} | {f"shots/{name}" for name in snapshot(folder)}
    for name in pictures:
        with Image.open(folder / name) as image:
            assert (image.size, image.mode) == ((22, 19), "RGB")
    with Image.open(folder / "curves.png") as curves:
        assert np.asarray(curves).std() > 0


def test_the_kept_statistics_are_those_of_the_finished_model(trained, model):
    kept = kept_calibration(RunFolder(trained / "TrainedModels" / "shots"), 3)
    # two shots: a tenth of the patches
    made = calibrate(model.scorer, model.training_images, 0.1, RULE, nearest=model.nearest)
    assert kept.fits(0.1, RULE, "float32", "nearest")
    np.testing.assert_array_equal(kept.shares, made.shares)
    np.testing.assert_array_equal(kept.peaks, made.peaks)


def test_the_record_and_the_losses_of_every_iteration(trained):
    folder = trained / "TrainedModels" / "shots"
    record = json.loads((folder / "config.json").read_text())
    assert (record["sources"], record["image_size"]) == (["a.png", "b.png"], [20, 24])
    assert record["hta_version"] == hta.__version__
    training = record["config"]["training"]
    assert (record["config"]["model"]["num_transforms"], training["recipe"], training["niter"]) == (4, "views", 12)
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [(int(row["scale"]), int(row["iteration"])) for row in rows] == [(n, i) for n in range(3) for i in range(12)]
    losses = [float(row[name]) for row in rows for name in ("d_real", "d_fake", "g_adversarial", "g_reconstruction")]
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)


def test_the_tensors_fit_the_plan(model):
    assert model.pyramid.plan.sizes == ((14, 17), (17, 19), (19, 22))
    assert model.training_images.shape == (2, 3, 19, 22)
    assert not torch.equal(*model.training_images)
    for scale, size in zip(model.pyramid.scales, model.pyramid.plan.sizes, strict=True):
        assert (scale.fixed_noise.shape, scale.noise_amp.shape) == ((1, 1, *size), (2,))
    assert model.pyramid.scales[0].noise_amp.tolist() == [1, 1]
    assert model.pyramid.scales[1].noise_amp[0] != model.pyramid.scales[1].noise_amp[1]


def test_a_run_ends_with_vote_shares_and_the_next_command(trained):
    out = (trained / "printed.txt").read_text()
    shares = [float(line.split(":")[1].split()[0]) for line in out.splitlines() if line.startswith("  scale ")]
    assert [0 < share < 1 for share in shares] == [True] * 3
    assert "chance 0.250" in out
    assert out.endswith("next: python main_eval.py --input_name shots --test_dir YOUR_TEST_FOLDER\n")


def test_the_next_command_works_for_a_model_whose_name_looks_like_an_option(workspace, capsys):
    Path("photo.png").rename("-rf.png")
    assert main_train.main(["--input_name", "./-rf.png", *QUICKEST, "--models_dir=-models"]) == 0
    python, script, *arguments = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("next: "))
    assert (python, script, arguments[-2:]) == ("python", "main_eval.py", ["--test_dir", "YOUR_TEST_FOLDER"])
    assert main_eval.main([*arguments[:-1], "-rf.png", "--no_maps"]) == 2  # a value like an option needs the sign
    assert main_eval.main([*arguments[:-2], "--test_dir=-rf.png", "--no_maps"]) == 0
    assert Path("-models", "-rf", "results", "-rf", "scores.csv").is_file()


def test_the_library_leaves_the_same_folder(workspace, monkeypatch, capsys):
    """Of an image in --input_dir, under a name of the user's own, below another folder of models."""
    write_image(workspace / "pictures" / "wall.png")
    names = ["--input_name", "wall.png", "--input_dir", "pictures", "--name", "my wall", "--models_dir", "elsewhere"]
    assert main_train.main([*names, *QUICK]) == 0
    assert "main_eval.py --input_name 'my wall' --models_dir elsewhere --test_dir" in capsys.readouterr().out
    assert not (workspace / "TrainedModels").exists()
    config = default_config(min_size=14, max_size=22, nfc=4, threads=1, precision="float32", niter=2)
    monkeypatch.chdir("pictures")
    hta.train("wall.png", config, folder=workspace / "library" / "my wall", num_samples=3)
    ours, theirs = snapshot(workspace / "library"), snapshot(workspace / "elsewhere")
    pages = [files.pop("my wall/train.html").decode() for files in (ours, theirs)]
    assert ours == theirs
    assert "hta.load(" in pages[0]
    assert "main_eval.py --input_name &#39;my wall&#39; --models_dir elsewhere --test_dir" in pages[1]


def test_the_reconstruction_on_disk_is_that_of_the_model(model):
    rebuilt = model.pyramid.reconstruct().clamp(-1, 1)
    written = read_pictures(model.folder.path / "samples")[3:]  # behind the three random ones
    values = torch.from_numpy(np.stack(written)).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(values, rebuilt, rtol=0, atol=1 / 127.5)


def test_a_model_is_called_like_the_folder_that_was_named(workspace, capsys):
    write_image(workspace / "store" / "raw_000.png")
    for folder in ("my_good", "000.png"):
        Path(folder).mkdir()
        Path(folder, "000.png").symlink_to(workspace / "store" / "raw_000.png")
        assert main_train.main(["--input_name", folder, *QUICK, "--dry_run"]) == 0
        assert f"would write TrainedModels/{folder}\n" in capsys.readouterr().out


def test_gray_images_of_the_class_task_have_42_transformations(workspace, capsys):
    with Image.open("photo.png") as image:
        image.convert("L").save("photo.png")
    assert main_train.main([*PHOTO, "--task", "class", "--size_image", "15", *SCALES, "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "1 training image(s) of 18 x 15 px: photo.png" in out
    assert "42 transformations, 500 iterations per scale, recipe paper\n" in out


def test_a_folder_of_images_of_different_sizes_is_said(workspace, caplog, capsys):
    write_image(workspace / "shots" / "a.png")
    write_image(workspace / "shots" / "b.jpg", 30, 36, seed=1)
    write_image(workspace / "shots" / "c.png", seed=2)
    (workspace / "shots" / "notes.txt").write_text("no image")
    with caplog.at_level(logging.INFO, "hta"):
        assert main_train.main(["--input_name", "shots", "--num_images", "2", *QUICK, "--dry_run"]) == 0
    assert "2 training image(s) of 24 x 20 px: a.png, b.jpg" in capsys.readouterr().out
    assert "the first 2 of its 3 images" in caplog.text
    assert "1 of 2 training images differ in size" in caplog.text


def in_shots(*arguments):
    return ["--input_name", "shots", *QUICK, *arguments]


def in_samples(*arguments):
    return ["--input_name", "shots", "--mode", "random_samples", "--threads", "1", *arguments]


def draw(*arguments):
    assert main_train.main(in_samples(*arguments)) == 0


def read_pictures(folder):
    return [np.asarray(Image.open(path)).astype(int) for path in sorted(folder.iterdir())]


def test_a_sample_depends_on_seed_and_index_alone(copied):
    folder = copied / "TrainedModels" / "shots"
    drawn = []
    for seed, count in ((7, 5), (7, 20), (0, 3)):
        draw("--num_samples", f"{count}", "--manualSeed", f"{seed}", "--precision", "float32", "--overwrite")
        drawn.append(read_pictures(folder / f"random_samples_scale0_h1_v1_seed{seed}"))
    few, many, others = drawn
    assert (len(few), len(many)) == (5, 20)
    assert all(np.abs(one - other).max() <= 1 for one, other in zip(few, many, strict=False))  # a level of rounding
    assert all(np.abs(one - other).max() > 5 for one, other in zip(few, others, strict=False))
    # Seed 0 drew the samples after training, too.
    np.testing.assert_array_equal(others, read_pictures(folder / "samples")[:3])


def test_batches_do_not_change_samples(model, monkeypatch):
    def drawn(count):
        return torch.cat(list(draw_samples(model.pyramid, count, seed=3)))

    whole = drawn(20)
    torch.testing.assert_close(drawn(5), whole[:5], rtol=0, atol=5e-6)
    monkeypatch.setattr(samples, "_BATCH_PIXELS", 1)
    torch.testing.assert_close(drawn(20), whole, rtol=0, atol=5e-6)
    assert min((one - other).abs().max() for i, one in enumerate(whole) for other in whole[:i]) > 0.01


def test_sample_i_varies_training_image_i_and_scales_below_the_start_reconstruct_it(model):
    rebuilt = model.pyramid.reconstruct()
    drawn = [torch.cat(list(draw_samples(model.pyramid, 8, 0, gen_start_scale=start))) for start in range(3)]
    distances = [some.sub(rebuilt[torch.arange(8) % 2]).square().mean() for some in drawn]
    assert distances[0] > distances[1] > distances[2] > 0
    nearest = [(rebuilt - sample).square().mean(dim=(1, 2, 3)).argmin() for sample in drawn[2]]
    assert nearest == [0, 1] * 4


@pytest.mark.parametrize(("scale_h", "scale_v", "shape"), [(2.5, 0.5, (10, 55, 3)), (0.1, 0.1, (2, 3, 3))])
def test_samples_of_any_size(copied, scale_h, scale_v, shape):
    draw("--num_samples", "2", "--scale_h", f"{scale_h}", "--scale_v", f"{scale_v}")
    folder = copied / "TrainedModels" / "shots" / f"random_samples_scale0_h{scale_h}_v{scale_v}_seed0"
    pictures = read_pictures(folder)
    assert [picture.shape for picture in pictures] == [shape] * 2  # of 19 x 22 px, rounded up
    assert pictures[0].std() > 0


def test_a_dry_run_prints_the_plan_and_writes_nothing(workspace, capsys):
    before = snapshot(workspace)
    assert main_train.main(["--input_name", "photo.png", *QUICK, "--dry_run"]) == 0
    out = capsys.readouterr().out
    settings, _ = json.JSONDecoder().raw_decode(out)
    assert (settings["model"]["num_transforms"], settings["training"]["niter"]) == (4, 2)
    assert "3 scales of 17x14 19x17 22x19 px, networks of 4 4 4 channels" in out
    assert re.search(r"\nwould take roughly \d+ s, estimated from a few iterations\n$", out)
    assert snapshot(workspace) == before


@pytest.mark.parametrize(
    ("options", "recipe", "plan"),
    [
        ([], "views", "4 transformations, 250 iterations"),
        (["--recipe", "paper"], "paper", "4 transformations, 2000 iterations"),
        (["--task", "class"], "paper", "54 transformations, 1000 iterations"),
        (["--task", "class", "--recipe", "views"], "views", "54 transformations, 250 iterations"),
    ],
)
def test_own_images_of_defects_are_trained_by_views_unless_another_recipe_is_given(
    workspace, capsys, options, recipe, plan
):
    assert main_train.main(["--input_name", "photo.png", *SCALES, *MACHINE, *options, "--dry_run"]) == 0
    out = capsys.readouterr().out
    settings, _ = json.JSONDecoder().raw_decode(out)
    assert settings["training"]["recipe"] == recipe
    assert f"\n{plan} per scale, recipe {recipe}\n" in out


@pytest.mark.parametrize(
    ("dataset", "options", "recipe", "plan"),
    [
        ("mvtec", [], "paper", "4 transformations, 2000 iterations"),
        ("defects", [], "paper", "4 transformations, 2000 iterations"),
        ("fashionmnist", [], "paper", "42 transformations, 500 iterations"),
        ("mvtec", ["--recipe", "views"], "views", "4 transformations, 250 iterations"),
    ],
)
def test_data_sets_are_trained_by_the_paper_s_recipe_unless_another_is_given(
    workspace, capsys, dataset, options, recipe, plan
):
    if dataset == "fashionmnist":
        write_mnist(workspace / "FashionMNIST" / "raw", [0, 1], [0, 1])
        named = ["--data_root", ".", "--pos_class", "0"]
    else:
        folder = mvtec_class(workspace, "bottle")
        named = ["--data_root", "." if dataset == "mvtec" else f"{folder}", "--pos_class", "bottle"]
    arguments = ["--dataset", dataset, *named, *SCALES, *MACHINE, *options]
    assert main_train.main([*arguments, "--dry_run"]) == 0
    out = capsys.readouterr().out
    settings, _ = json.JSONDecoder().raw_decode(out)
    assert settings["training"]["recipe"] == recipe
    assert f"\n{plan} per scale, recipe {recipe}\n" in out


def test_help_shows_groups_defaults_ranges_and_units(capsys):
    with pytest.raises(SystemExit) as caught:
        main_train.main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for group in ("input and output:", "model:", "training:", "random samples:", "machine:"):
        assert group in text
    assert "--task {defect,class} what counts" in text
    assert "(default defect, but class for every --dataset other than mvtec and defects)" in text
    for words in ("default 25 px", "0 < value < 1", "default 0.0005", "--num_transforms {54,42,4}", "--no-compile"):
        assert words in text
    assert set(re.findall(r"--no-\w+", text)) == {"--no-compile"}  # all other flags are off by default
    assert "from a folder, which must contain that many, the first by name (by default all)" in text


def make_bad_images(folder):
    write_image(folder / "tiny.png", 5, 5)
    write_image(folder / "long.png", 60, 400)
    (folder / "text.png").write_text("this is no image")
    write_image(folder / "cut.png", 40, 40)
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:-200])
    (folder / "none.png").write_bytes(b"")
    (folder / "empty").mkdir()
    (folder / "letters").mkdir()
    (folder / "letters" / "letter.txt").write_text("dear reader")
    write_image(folder / "mixed" / "a.png")
    (folder / "mixed" / "b.png").write_text("this is no image")


PHOTO = ["--input_name", "photo.png"]
BAD_INPUTS = {
    "missing image": (["--input_name", "nothing.png"], "--input_name", "nothing.png", "check the name"),
    "misspelt image": (["--input_name", "phoot.png", "--input_dir", "."], "phoot.png", "did you mean photo.png"),
    "no image named": ([], "--input_name is missing", "brick.png"),
    "folder without files": (["--input_name", "empty"], "empty", "give the folder"),
    "folder without images": (["--input_name", "letters"], "letters", "give the folder"),
    "text file named .png": (["--input_name", "text.png"], "text.png", "give a PNG"),
    "text file in a folder": (["--input_name", "mixed"], "mixed/b.png", "give a PNG"),
    "truncated PNG": (["--input_name", "cut.png"], "cut.png", "save it anew"),
    "empty file": (["--input_name", "none.png"], "none.png", "give another one"),
    "image of 5 x 5 px": (["--input_name", "tiny.png"], "5 x 5", "--min_size", "larger image"),
    "image of 400 x 60 px": (["--input_name", "long.png"], "400 x 60", "--min_size", "--max_size"),
    "image given twice": (["--input_name", "photo.png", "./photo.png"], "photo.png", "each image once"),
    "folder among files": (["--input_name", "photo.png", "mixed"], "mixed", "give one folder"),
    "more images than there are": (["--input_name", "mixed", "--num_images", "9"], "--num_images", "ask for fewer"),
    "min_size above max_size": ([*PHOTO, "--min_size", "30", "--max_size", "20"], "--min_size", "smaller --min_size"),
    "larger patch than a scale": ([*PHOTO, *SCALES, "--ker_size", "5"], "--min_size 14", "--min_size 21"),
    "scale_factor 1.2": ([*PHOTO, "--scale_factor", "1.2"], "--scale_factor", "0 < value < 1"),
    "niter in words": ([*PHOTO, "--niter", "many"], "--niter", "many", "--help"),
    "name with ../": ([*PHOTO, *QUICK, "--name", "../photo"], "--name", "plain folder name"),
    "name that is a path": ([*PHOTO, *QUICK, "--name", "a/b"], "--name", "plain folder name"),
    "name with a space at its end": ([*PHOTO, *QUICK, "--name", "photo "], "--name 'photo '", "dots and spaces around"),
    "name with a dot at its end": ([*PHOTO, *QUICK, "--name", "photo."], "--name 'photo.'", "dots and spaces around"),
    "empty name": ([*PHOTO, *QUICK, "--name", ""], "--name", "plain folder name"),
    "long name of CJK characters": ([*PHOTO, *QUICK, "--name", "\u5899" * 90], "--name", "at most 200 bytes"),
    "long folder of models": ([*PHOTO, *QUICK, "--models_dir", "x" * 300], "x" * 300, "name too long; check the path"),
    "long name of an image": (["--input_name", "x" * 300], "x" * 300, "check the name"),
    "long name of a model": (["--input_name", "x" * 300, "--mode", "random_samples"], "x" * 300, "no model here"),
    "size_image below min_size": ([*PHOTO, *SCALES, "--size_image", "12"], "--min_size"),
    "unknown num_transforms": ([*PHOTO, "--num_transforms", "7"], "--num_transforms 7", "one of 54, 42, 4"),
    "unknown option": ([*PHOTO, "--nitre", "7"], "--nitre", "--help"),
    "abbreviated option": ([*PHOTO, "--num_transf", "4"], "--num_transf", "--help"),
    "unknown mode": ([*PHOTO, "--mode", "guess"], "--mode", "one of train, random_samples"),
    "resume without a run": ([*PHOTO, *QUICK, "--resume"], "TrainedModels/photo", "without --resume"),
    "samples without a model": ([*PHOTO, "--mode", "random_samples"], "TrainedModels/photo", "--input_name"),
    "device that is none": ([*PHOTO, *QUICK, "--device", "toaster"], "--device toaster", "cpu, cuda or cuda:N"),
    "device that is not there": ([*PHOTO, *QUICK, "--device", "cuda:99"], "--device cuda:99", "CUDA devices"),
    "overwrite and resume": ([*PHOTO, *QUICK, "--overwrite", "--resume"], "--overwrite", "--resume", "one of the two"),
    "two devices": ([*PHOTO, *QUICK, "--device", "cuda", "--not_cuda"], "--device", "--not_cuda"),
    "existing model": (in_shots(), "TrainedModels/shots", "--overwrite"),
    "existing model in a dry run": (in_shots("--dry_run"), "TrainedModels/shots", "--overwrite"),
    "resume of a finished model": (in_shots("--resume"), "TrainedModels/shots", "--overwrite"),
    "start scale too fine": (in_samples("--gen_start_scale", "3"), "--gen_start_scale 3", "finest scale is 2"),
    "negative start scale": (in_samples("--gen_start_scale", "-1"), "--gen_start_scale", "0 <= value"),
    "samples of no height": (in_samples("--scale_v", "0"), "--scale_v", "0.1 <= value"),
    "samples of hardly any width": (in_samples("--scale_h", "1e-9"), "--scale_h", "0.1 <= value"),
    "no samples": (in_samples("--num_samples", "0"), "--num_samples 0", "give 1 or more"),
    "samples of two models": (in_samples("--input_name", "shots", "more"), "--input_name more", "give one name"),
    "samples of a model named twice": (in_samples("--name", "shots"), "--input_name shots", "give one name"),
    "samples of no name": (["--mode", "random_samples"], "--input_name is missing", "such as"),
    "samples of an empty name": (["--mode", "random_samples", "--name", ""], "--name", "is empty"),
    "negative number of samples": (in_samples("--num_samples", "-1"), "--num_samples", "0 <= value"),
}


def error_lines(capsys):
    """What stands on stderr, without the notice of a machine that has no GPU."""
    return [line for line in capsys.readouterr().err.splitlines() if line != "no CUDA device found: running on the CPU"]


def assert_refused(folder, arguments, words, capsys):
    """One line on stderr, exit status 2, and nothing changed."""
    before = snapshot(folder)
    capsys.readouterr()
    status = main_train.main(arguments)
    lines = error_lines(capsys)
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert [word for word in words if word not in lines[0]] == [], lines[0]
    assert (status, snapshot(folder)) == (2, before)


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_line_and_writes_nothing(workspace, copied, capsys, case):
    make_bad_images(workspace)
    arguments, *words = BAD_INPUTS[case]
    assert_refused(copied, arguments, words, capsys)


def test_samples_with_a_file_of_the_user_s_are_not_overwritten(copied, capsys):
    draw("--num_samples", "1")
    (notes,) = [path / "notes.txt" for path in (copied / "TrainedModels" / "shots").glob("random_samples_*")]
    assert_refused(copied, in_samples("--num_samples", "2"), [notes.parent.name, "--overwrite"], capsys)
    notes.write_text("mine")
    again = in_samples("--num_samples", "1", "--overwrite")
    assert_refused(copied, again, ["notes.txt", "hta did not write", "another --manualSeed"], capsys)
    notes.unlink()
    draw("--num_samples", "1", "--overwrite")
    shutil.rmtree(notes.parent)
    notes.parent.write_text("mine")
    assert_refused(copied, again, [notes.parent.name, "is a file", "move it away"], capsys)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("TrainedModels/photo", ["is a file", "--models_dir"]),
        ("TrainedModels", ["is a file", "--models_dir"]),
        ("TrainedModels/photo/thesis.txt", ["TrainedModels/photo", "not a model", "--name"]),
    ],
)
def test_an_output_path_that_is_taken(workspace, capsys, place, words):
    (workspace / place).parent.mkdir(parents=True, exist_ok=True)
    (workspace / place).write_text("the only copy")
    for options in ([], ["--overwrite"]):
        assert_refused(workspace, [*PHOTO, *QUICK, *options], words, capsys)


def test_samples_of_more_images_than_their_precision_tells_apart_are_refused(copied, capsys, monkeypatch):
    monkeypatch.setattr(runs, "_MAX_IMAGES", {torch.bfloat16: 1})
    words = ["2 training images", "--precision float32"]
    assert_refused(copied, in_samples("--precision", "bfloat16"), words, capsys)
    draw("--num_samples", "1", "--precision", "float32")


@pytest.mark.parametrize(
    "place", ["notes.txt", "keep/", "samples/best.png", "results/test/notes.txt", "results/test/keep/", "scale_0.bak"]
)
def test_what_hta_did_not_write_is_never_overwritten(copied, capsys, place):
    own = copied / "TrainedModels" / "shots" / place
    own.mkdir(parents=True) if place.endswith("/") else own.parent.mkdir(parents=True, exist_ok=True)
    if not own.is_dir():
        own.write_text("the only copy")
    words = ["TrainedModels/shots", f"contains {place.rstrip('/')},", "would delete", "move it away", "--name"]
    assert_refused(copied, in_shots("--overwrite"), words, capsys)


def test_all_that_hta_writes_goes_with_the_model(copied):
    draw("--num_samples", "1")
    assert main_eval.main(["--input_name", "shots", "--test_dir", "shots", "--threads", "1", "--not_cuda"]) == 0
    folder = copied / "TrainedModels" / "shots"
    assert (folder / "results" / "shots" / "maps" / "a.png.png").is_file()
    (folder / ".0123456789abcdef.part").write_text("half a file")
    (folder / ".DS_Store").write_text("of the desktop")
    (folder / "config.json").write_text("{")  # a model that cannot be read is trained again as its error says
    assert main_train.main(in_shots("--overwrite")) == 0
    assert {path.name for path in folder.iterdir()} & {"results", ".0123456789abcdef.part", ".DS_Store"} == set()
    assert not list(folder.glob("random_samples_*"))
    assert json.loads((folder / "config.json").read_text())["config"]["training"]["niter"] == 2
    assert [path.name for path in folder.parent.iterdir()] == ["shots"]


def test_a_model_in_training_is_not_overwritten(copied, unfinished, capsys):
    for name, arguments in (("shots", in_shots("--overwrite")), ("photo", [*PHOTO, *QUICK, "--overwrite"])):
        with RunFolder(copied / "TrainedModels" / name).locked():
            assert_refused(copied, arguments, [f"TrainedModels/{name}", "another process is training this"], capsys)
            assert (copied / "TrainedModels" / name / ".lock").is_file()
        assert not (copied / "TrainedModels" / name / ".lock").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_is_locked_from_its_beginning(unfinished, overwrite):
    folder, training_set = RunFolder(unfinished / "TrainedModels" / ("photo" if overwrite else "new")), prepared()
    with runs.new_run(folder, training_set, overwrite=overwrite):
        assert folder.exists
        for other in (folder.locked(), runs.new_run(folder, training_set, overwrite=True)):
            with pytest.raises(UserError, match="another process is training this"), other:
                pass
    assert not (folder.path / ".lock").exists()
    with folder.locked():
        pass


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-20], lambda text: text.replace('"format_version": 2', '"format_version": 1')]
)
def test_a_model_that_cannot_be_read_says_so(copied, capsys, damage):
    config = copied / "TrainedModels" / "shots" / "config.json"
    config.write_text(damage(config.read_text()))
    assert_refused(copied, in_samples(), ["config.json", "train again with --overwrite"], capsys)
    assert_refused(copied, in_shots(), ["TrainedModels/shots", "cannot read", "--overwrite", "--name"], capsys)


def test_a_model_whose_folder_one_works_in_is_not_overwritten(copied, capsys, monkeypatch):
    monkeypatch.chdir(copied / "TrainedModels" / "shots" / "samples")
    arguments = ["--input_name", "../../../shots", "--models_dir", "../..", *QUICK, "--overwrite"]
    assert_refused(copied, arguments, ["shots", "working directory", "--name"], capsys)


@pytest.mark.skipif(sys.platform != "linux", reason="file systems that take any bytes for a name")
def test_a_name_that_is_not_utf8_is_refused_and_the_file_can_be_given_another(workspace, monkeypatch, capsys):
    Path("photo.png").rename("caf\udce9.png")
    assert_refused(workspace, ["--input_name", "caf\udce9.png", *QUICK], ["caf", "UTF-8", "--name"], capsys)
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="utf-8", errors="strict"))
    named = ["--input_name", "caf\udce9.png", *QUICKEST, "--name", "cafe"]
    assert main_train.main([*named, "--dry_run"]) == 0
    assert b"caf\\xe9.png" in printed.getvalue()
    assert main_train.main(named) == 0
    assert RunFolder(workspace / "TrainedModels" / "cafe").read_record().sources == ("caf\udce9.png",)


def test_a_model_is_found_by_its_name_its_folder_and_its_image_and_not_by_a_mistyped_name(copied, capsys):
    for name in ("shots", "shots/", "shots.png", "gone/shots.JPG", "TrainedModels/shots/", "./shots"):
        assert find_model(name).path == Path("TrainedModels/shots"), name
    for name in ("nowhere/shots", "TrainedModels/nowhere/shots", "shots.v7", "shots.png.v7", "shots/samples"):
        arguments = ["--input_name", name, "--mode", "random_samples", "--threads", "1"]
        assert_refused(copied, arguments, [name, "no model here", "--input_name"], capsys)
    for name in ("wall.png", "wall.v7"):  # a name may end like an image, or contain a dot
        shutil.copytree("TrainedModels/shots", f"TrainedModels/{name}")
        assert find_model(name).path == Path("TrainedModels") / name
    assert find_model("Input/wall.v7.png").path == Path("TrainedModels/wall.v7")


def test_a_run_is_locked_until_it_is_finished_which_it_is_even_if_its_reader_has_gone(workspace, monkeypatch):
    folder, tried, finish = RunFolder(workspace / "TrainedModels" / "photo"), [], RunFolder.finish

    def tried_before(self):
        with pytest.raises(UserError, match="another process is training this"), folder.locked():
            pass
        tried.append(True)
        finish(self)

    def gone(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr(RunFolder, "finish", tried_before)
    monkeypatch.setattr("builtins.print", gone)
    monkeypatch.setattr("os.dup2", lambda *_: None)
    assert main_train.main([*PHOTO, *QUICKEST]) == 141
    assert tried == [True]
    assert folder.finished
    assert not (folder.path / ".lock").exists()


def prepared():
    """The training set of QUICK."""
    config = default_config(min_size=14, max_size=22, nfc=4, niter=2, threads=1, precision="float32")
    return runs.prepare(load_training_images([Path("photo.png")]), ["photo.png"], config)


def state_in_scale_0():
    """The state of its training after one iteration."""
    (record, images, _), cpu = prepared(), torch.device("cpu")
    pyramid = Pyramid(record.config.model, record.image_size, 1, cpu, torch.float32)
    trainer = ScaleTrainer(pyramid, resize(images, pyramid.plan.sizes[0]), record.config.training)
    next(trainer.run())
    return trainer.state()


@pytest.fixture
def unfinished(workspace):
    """A working directory with an unfinished run."""
    with runs.new_run(RunFolder(workspace / "TrainedModels" / "photo"), prepared()):
        pass
    return workspace


RESUME = [*PHOTO, *QUICK, "--resume"]


@pytest.mark.parametrize(
    "change",
    ["niter 3 2", "nfc 8 4", "min_size 15 14", "manualSeed 1 0", "task class defect", "precision bfloat16 float32"],
)
def test_resume_with_another_configuration(unfinished, capsys, change):
    option, value, kept = change.split()
    words = [f"--{option} {value}", f"started with {kept}", "leave the option out"]
    assert_refused(unfinished, [*RESUME, f"--{option}", value], words, capsys)


@pytest.mark.parametrize("options", [[], ["--size_image", "15"]])
def test_resume_with_another_image(unfinished, capsys, options):
    write_image(unfinished / "photo.png", seed=9 if not options else 0)
    words = ["photo.png", "not the training images", "--name"]
    assert_refused(unfinished, [*RESUME, *options], words, capsys)


@pytest.mark.parametrize("file", ["config.json", "checkpoint.safetensors", "training_images.safetensors"])
def test_resume_of_a_damaged_run(unfinished, capsys, file):
    path = unfinished / "TrainedModels" / "photo" / file
    path.write_bytes(path.read_bytes()[:-20])
    assert_refused(unfinished, RESUME, [f"TrainedModels/photo/{file}", "train"], capsys)


@pytest.mark.parametrize(("scale", "iteration"), [(4, 0), (3, 1), (-1, 0), (0, 3), (0, -1), (0, 1), (10**30, 0)])
def test_resume_from_a_place_outside_the_run(unfinished, capsys, scale, iteration):
    """Of three scales, two iterations each."""
    RunFolder(unfinished / "TrainedModels" / "photo").save_checkpoint({}, scale=scale, iteration=iteration)
    words = ["TrainedModels/photo/checkpoint.safetensors", f"scale {scale} of 3", "--overwrite"]
    assert_refused(unfinished, RESUME, words, capsys)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.update(noise_stream=torch.zeros(3, dtype=torch.uint8)), "noise_stream is not the state"),
        (lambda state: state.update(noise_stream=torch.zeros(3)), "noise_stream is not the state"),
        (lambda state: state.update({"optimizer_g.999.step": torch.zeros(())}), "optimizer_g.999.step belongs to"),
        (lambda state: state.update({"optimizer_d.0.exp_avg": torch.zeros(2)}), "optimizer_d.0.exp_avg belongs to"),
        (lambda state: state.pop("optimizer_d.0.exp_avg"), "optimizer_d.0.exp_avg is missing"),
        (lambda state: state["noise_amp"].fill_(math.nan), "noise_amp contains values that are not finite"),
    ],
)
def test_resume_from_a_state_that_is_none(unfinished, capsys, change, words):
    state = state_in_scale_0()
    change(state)
    RunFolder(unfinished / "TrainedModels" / "photo").save_checkpoint(state, scale=0, iteration=1)
    before = snapshot(unfinished)
    assert main_train.main(RESUME) == 2
    *_, line = error_lines(capsys)
    assert line.startswith(f"error: TrainedModels/photo/checkpoint.safetensors: {words}")
    assert snapshot(unfinished) == before


def test_an_unfinished_run_is_not_overwritten_and_not_used(unfinished, capsys):
    assert_refused(unfinished, [*PHOTO, *QUICK], ["TrainedModels/photo", "--resume", "--overwrite"], capsys)
    samples_of_it = ["--input_name", "photo", "--mode", "random_samples"]
    assert_refused(unfinished, samples_of_it, ["TrainedModels/photo", "unfinished", "--resume"], capsys)


def test_a_run_that_lacks_only_its_end_continues_without_its_losses(workspace, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_samples", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main_train.main([*PHOTO, *QUICKEST])
    metrics = workspace / "TrainedModels" / "photo" / "metrics.csv"
    metrics.write_text("scale\n1,2\n")
    capsys.readouterr()
    resume = [*PHOTO, "--num_samples", "0", "--threads", "1", "--resume"]
    assert main_train.main(resume) == 2
    *_, line = error_lines(capsys)
    assert all(words in line for words in ("metrics.csv: cannot be read", "remove it to"))
    metrics.unlink()
    assert main_train.main(resume) == 0
    assert (metrics.parent / "train.html").is_file()


def test_resume_needs_no_options_but_the_name_and_may_change_what_changes_no_result(unfinished, monkeypatch):
    positions = []
    save = RunFolder.save_checkpoint

    def noted(folder, tensors, *, scale, iteration):
        positions.append((scale, iteration))
        save(folder, tensors, scale=scale, iteration=iteration)

    monkeypatch.setattr(RunFolder, "save_checkpoint", noted)
    changed = ["--threads", "1", "--num_samples", "1", "--checkpoint_every", "1"]
    assert main_train.main([*PHOTO, "--resume", *changed]) == 0
    assert positions == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0)]
    assert RunFolder(unfinished / "TrainedModels" / "photo").finished


def test_other_kernels_than_those_of_the_start_are_said(unfinished, caplog):
    folder, training_set = RunFolder(unfinished / "TrainedModels" / "photo"), prepared()
    ours = folder.read_record().kernels
    assert ours == choose_kernels(torch.device("cpu"), compiled=True).description
    for kernels in ("cc 1.0 -O1", ours, ""):  # the last is of an older run
        caplog.clear()
        folder.write_record(replace(folder.read_record(), kernels=kernels))
        with runs.resumed_run(folder, training_set, ()):
            pass
        said = f"started with cc 1.0 -O1 and goes on with {ours}: the weights will differ by rounding"
        assert (said in caplog.text) == (kernels == "cc 1.0 -O1")


@pytest.mark.parametrize(
    ("name", "argument", "status"),
    [(name, *one) for name in ("train", "eval") for one in (("--help", 0), ("--nitre", 2))],
)
def test_help_and_mistakes_come_at_once(tmp_path, name, argument, status):
    script = [sys.executable, "-X", "importtime", str(ROOT / f"main_{name}.py"), argument]
    result = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = result.stderr.splitlines()
    imported = {line.split("|")[-1].strip() for line in lines if line.startswith("import time:")}
    assert result.returncode == status
    assert {"hta.config", "argparse"} <= imported
    assert {"torch", "matplotlib", "scipy", "sklearn", "torchvision", "PIL", "numpy"} & imported == set()
    said = [line for line in lines if not line.startswith("import time:")]
    assert [line.split(":")[0] for line in said] == ["error"] * (status != 0)
    assert bool(result.stdout) == (status == 0)
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def full_disk(size):
    """Let every file end at a size, in bytes."""
    resource = pytest.importorskip("resource", reason="limits of file sizes are of POSIX systems")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_in_one_line_with_the_last_checkpoint_intact(workspace, capsys):
    # The fixed noise grows with the scales: a limit a little above scale 0's checkpoint stops scale 1's. It would stop
    # the compiler too, and other kernels round otherwise.
    plain = {name: value.contiguous() for name, value in state_in_scale_0().items()}
    size = len(safetensors.torch.save(plain)) + 200
    arguments = [*PHOTO, *QUICK, "--num_samples", "0", "--checkpoint_every", "1", "--no-compile"]
    with full_disk(size):
        assert main_train.main(arguments) == 1
    (line,) = [line for line in error_lines(capsys) if line.startswith("error: ")]
    assert all(words in line for words in ("checkpoint.safetensors", "free some space"))

    folder = RunFolder(workspace / "TrainedModels" / "photo")
    assert folder.read_checkpoint() == ({}, 1, 0)
    assert not [name for name in snapshot(workspace) if ".part" in name]
    assert main_train.main([*arguments, "--resume"]) == 0
    assert main_train.main([*arguments, "--name", "whole"]) == 0
    one, two = snapshot(folder.path), snapshot(workspace / "TrainedModels" / "whole")
    names = {name for name in one | two if name.startswith(("scale_", "metrics"))}
    assert [name for name in sorted(names) if one[name] != two[name]] == []


def test_a_disk_that_is_full_from_the_start_leaves_nothing(workspace, capsys):
    with full_disk(100):
        assert main_train.main([*PHOTO, *QUICK]) == 1
    assert [line.split(":")[0] for line in error_lines(capsys)] == ["error"]
    assert [name for name in snapshot(workspace) if name != "TrainedModels"] == ["photo.png"]


@pytest.mark.parametrize("rate", ["1e30", "1e8"])  # at once; after a few iterations
def test_a_loss_that_is_not_finite_ends_in_one_line_with_the_last_checkpoint_intact(workspace, capsys, rate):
    arguments = [*PHOTO, *QUICKEST, "--niter", "30", "--checkpoint_every", "1", "--lr_d", rate]
    assert main_train.main(arguments) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: scale ")
    assert all(words in line for words in ("not finite", "--lr_g and --lr_d"))
    folder = RunFolder(workspace / "TrainedModels" / "photo")
    tensors, _, _ = folder.read_checkpoint()
    assert [name for name, value in tensors.items() if not value.isfinite().all()] == []
    # Going on from it is possible, and comes to the same end.
    assert main_train.main([*arguments, "--resume"]) == 1
    assert [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")] == [line]
