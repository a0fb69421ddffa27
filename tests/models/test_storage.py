"""Models on disk: the same bits back, nothing half written, and nothing but safetensors and JSON read."""

import json
import os
import pickle
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hta.config import Config, ModelConfig, RuntimeConfig
from hta.errors import RunError, UserError
from hta.models import storage
from hta.models.pyramid import Pyramid
from hta.models.storage import RunFolder, RunRecord, load_tensors, restore_scale, save_tensors, scale_tensors
from hta.runtime import set_up

MODEL = ModelConfig(num_transforms=4, min_size=14, max_size=22, nfc=4)
RECORD = RunRecord(("a.png", "b.png"), (20, 24), False, Config(MODEL).resolved(is_gray=False))


@pytest.fixture
def folder(tmp_path):
    """A finished run whose scales hold random numbers, running statistics and amplitudes included."""
    folder = RunFolder(tmp_path / "runs" / "wall")
    with folder.created(RECORD, torch.rand(2, 3, 19, 22) * 2 - 1):
        pass
    for n, scale in enumerate(random_scales()):
        folder.save_scale(n, scale)
    folder.finish()
    return folder


def random_scales(seed=0):
    generator = torch.Generator().manual_seed(seed)
    pyramid = Pyramid(MODEL, (20, 24), 2, torch.device("cpu"), torch.float32)
    for n in range(pyramid.plan.num_scales):
        scale = pyramid.new_scale(n, generator)
        for tensor in scale_tensors(scale).values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator))
        scale.freeze()
        pyramid.scales.append(scale)
    return pyramid.scales


def runtime():
    return set_up(RuntimeConfig(not_cuda=True, threads=1, precision="float32"))


def test_a_model_comes_back_to_the_bit_and_frozen(folder):
    names = sorted(path.name for path in folder.path.iterdir())
    assert names == ["config.json", *(f"scale_{n}.safetensors" for n in range(3)), "training_images.safetensors"]
    record, pyramid = folder.load_pyramid(runtime())
    assert record == RECORD
    assert (record.num_images, len(pyramid.scales)) == (2, 3)
    for scale, expected in zip(pyramid.scales, random_scales(), strict=True):
        tensors = scale_tensors(scale)
        for name, value in scale_tensors(expected).items():
            assert torch.equal(tensors[name], value), name
        for network in (scale.generator, scale.discriminator):
            assert {network.training, *(parameter.requires_grad for parameter in network.parameters())} == {False}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(format_version=1), ("format 1", "reads format 2")),
        (lambda d: d.pop("format_version"), ("format None",)),
        (lambda d: d.update(sources=[]), ("sources",)),
        (lambda d: d.update(sources=["a.png", 7]), ("sources",)),
        (lambda d: d.update(sources="a.png"), ("sources",)),
        (lambda d: d.update(image_size=[20]), ("image_size",)),
        (lambda d: d.update(image_size=[20, True]), ("image_size",)),
        (lambda d: d.update(more=1), ("unknown key more",)),
        (lambda d: d.pop("is_gray"), ("missing key is_gray",)),
        (lambda d: d.update(is_gray="false"), ("is_gray false: must be a value of type bool",)),
        (lambda d: d.update(hta_version=1), ("hta_version 1: must be a value of type str",)),
        (lambda d: d.update(image_size=[20, 10**400]), ("image_size",)),
        (lambda d: d.update(sources=["\ud800.png", "b.png"]), ("sources",)),
        (lambda d: d.update(hta_version="\udfff"), ("hta_version",)),
        (lambda d: d["config"]["training"].update(niter=10**400), ("niter: has more than 18 digits",)),
        (lambda d: d["config"]["training"].update(lr_g=10**400), ("lr_g: has more than 18 digits",)),
        (lambda d: d["config"]["runtime"].update(device=[[["x"] * 999]]), ("device of type list",)),
        (lambda d: d["config"]["model"].update(nfc="many"), ("nfc many",)),
        (
            lambda d: d["config"]["model"].update(num_transforms=None),
            ("niter and recipe must be given",),
        ),
        (lambda d: d["config"]["training"].update(recipe=None), ("niter and recipe must be given",)),
        (lambda d: d["config"]["training"].update(niter=None), ("niter and recipe must be given",)),
    ],
)
def test_another_record_is_refused(folder, change, words):
    path = folder.path / "config.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"train again with --overwrite$") as caught:
        folder.read_record()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert all(word in message for word in words)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "[" * 200_000])
def test_what_is_no_record_is_refused(folder, text):
    (folder.path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json: .*; restore the file"):
        folder.read_record()


class _Planted:
    """Unpickled, it makes a file in the working directory."""

    def __reduce__(self):
        return Path.touch, (Path("it_ran"),)


@pytest.mark.parametrize("name", ["scale_0", "training_images", "checkpoint"])
@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_in_a_model_is_refused_and_not_run(folder, tmp_path, monkeypatch, name, save):
    monkeypatch.chdir(tmp_path)
    save(_Planted(), folder.path / f"{name}.safetensors")
    readers = {"scale_0": lambda: folder.load_pyramid(runtime()), "training_images": folder.read_images}
    with pytest.raises(UserError, match=name):
        readers.get(name, folder.read_checkpoint)()
    assert not Path("it_ran").exists()


def test_a_tensor_of_another_shape_or_type_is_named():
    scale, other = random_scales()[0], random_scales(1)[0]
    tensors = scale_tensors(other)
    changed = {"noise_amp": tensors["noise_amp"][:1], "fixed_noise": tensors["fixed_noise"].double()}
    for name, value in changed.items():
        with pytest.raises(UserError, match=f"scale_0: {name} is .* another model"):
            restore_scale(scale, tensors | {name: value}, "scale_0")
    with pytest.raises(UserError, match="fixed_noise is missing"):
        restore_scale(scale, {name: value for name, value in tensors.items() if name != "fixed_noise"}, "scale_0")
    restore_scale(scale, tensors | {"of_no_use": torch.zeros(1)}, "scale_0")
    assert torch.equal(scale.fixed_noise, other.fixed_noise)


def test_an_unfinished_run_says_resume(folder):
    folder.save_checkpoint({"weight": torch.ones(3)}, scale=2, iteration=7)
    assert not folder.finished
    tensors, scale, iteration = folder.read_checkpoint()
    assert (scale, iteration, tensors["weight"].tolist()) == (2, 7, [1, 1, 1])
    with pytest.raises(UserError, match="--resume"):
        folder.load_pyramid(runtime())
    folder.finish()
    assert folder.finished
    with pytest.raises(UserError, match=r"nowhere: no model here; .*--models_dir"):
        RunFolder(folder.path / "nowhere").load_pyramid(runtime())


def test_images_that_are_none_are_refused(folder):
    for tensors in ({"pictures": torch.zeros(1, 3, 4, 4)}, {"images": torch.zeros(3, 4, 4)}, {}):
        save_tensors(folder.path / storage.IMAGES_FILE, tensors)
        with pytest.raises(UserError, match=r"training_images\.safetensors"):
            folder.read_images()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(folder, value):
    images = folder.read_images()
    images[1, 2, 3, 4] = value
    save_tensors(folder.path / storage.IMAGES_FILE, {"images": images})
    with pytest.raises(UserError, match=r"training_images\.safetensors: images contains values that are not finite"):
        folder.read_images()
    tensors, _ = load_tensors(folder.scale_file(1))
    tensors["generator.body.tail.weight"].view(-1)[7] = value
    save_tensors(folder.scale_file(1), tensors)
    with pytest.raises(UserError, match=r"scale_1\.safetensors: generator\.body\.tail\.weight contains .* not finite"):
        folder.load_pyramid(runtime())


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("discriminator.body.blocks.1.norm.running_var", -1e-3, "contains negative variances"),
        ("generator.body.blocks.0.conv.weight", 1e30, r"contains values above 1e\+12"),
        ("noise_amp", -2e12, r"contains values above 1e\+12"),
    ],
)
def test_values_that_no_training_gives_are_named(folder, name, value, words):
    tensors, _ = load_tensors(folder.scale_file(1))
    tensors[name].view(-1)[1] = value
    save_tensors(folder.scale_file(1), tensors)
    with pytest.raises(UserError, match=rf"scale_1\.safetensors: {name} {words}; restore"):
        folder.load_pyramid(runtime())


def _make_pipe(path):
    path.unlink()
    os.mkfifo(path)


def _make_device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def _make_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="files of POSIX systems")
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_make_pipe, "is not a plain file"),
        (_make_device, "is not a plain file"),
        (_make_folder, "is not a plain file"),
        (lambda path: os.truncate(path, 8 << 30), "has 8589934592 bytes"),
    ],
)
def test_only_plain_files_of_a_sane_size_are_opened(folder, damage, words):
    for path in (folder.path / "training_images.safetensors", folder.scale_file(2)):
        damage(path)
        with pytest.raises(UserError, match=rf"{path.name}: {words}.*restore the file"):
            folder.read_images() if path.name.startswith("training") else folder.load_pyramid(runtime())
    folder.save_checkpoint({}, scale=0, iteration=0)
    damage(folder.path / "checkpoint.safetensors")
    with pytest.raises(UserError, match=words):
        folder.read_checkpoint()
    if damage not in (_make_pipe, _make_device, _make_folder):  # those are no model at all
        damage(folder.path / "config.json")
        with pytest.raises(UserError, match=words):
            folder.read_record()


def test_sizes_are_compared_before_memory_is_taken_for_them(folder):
    path = folder.path / "config.json"
    data = json.loads(path.read_text())
    data["image_size"] = [3000, 3000]
    data["config"]["model"] |= {"max_size": 3000, "min_size": 2900, "nfc": 128, "ker_size": 9, "num_layer": 10}
    path.write_text(json.dumps(data))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"scale_0\.safetensors: fixed_noise is .* \(1, 1, 2900, 2900\)"):
        folder.load_pyramid(runtime())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 20_000  # KiB; fixed_noise alone has 33,000


def test_a_run_that_cannot_begin_leaves_nothing(tmp_path):
    images = torch.zeros(2, 3, 19, 22)
    (tmp_path / "file").write_text("")
    below_a_file = RunFolder(tmp_path / "file" / "wall")
    with pytest.raises(RunError), below_a_file.created(RECORD, images):
        pass
    bad = replace(RECORD, sources=(object(),))
    with pytest.raises(TypeError), RunFolder(tmp_path / "wall").created(bad, images):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_that_came_in_the_meantime_is_not_replaced(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    monkeypatch.setattr(RunFolder, "exists", False)  # as it was a moment before
    with pytest.raises(RunError), folder.created(RECORD, torch.zeros(2, 3, 19, 22), replace=lambda _: []):
        pass
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before
    assert [path.name for path in folder.path.parent.iterdir()] == [folder.path.name]


def test_a_damaged_header_of_any_length_is_told_in_one_short_line(tmp_path):
    header = b'{"a": "' + b"x" * 100_000 + b'"}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="not a complete safetensors file") as error:
        load_tensors(tmp_path / "a.safetensors")
    assert len(str(error.value)) < 500
