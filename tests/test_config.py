"""Settings: JSON and back, what is refused, and what is filled in by the task and the image."""

import json
from dataclasses import FrozenInstanceError, asdict, fields

import numpy as np
import pytest
import torch

from hta.config import Config, ModelConfig, RuntimeConfig, TrainingConfig, default_config
from hta.errors import UserError
from hta.settings import from_mapping


def test_json_round_trip():
    config = Config(
        ModelConfig(task="class", num_transforms=42, min_size=14, max_size=22, scale_factor=0.9, nfc=3),
        TrainingConfig(niter=7, lr_d=1e-3, manualSeed=5),
        RuntimeConfig(device="cpu", threads=2, precision="float32", deterministic=True),
    )
    assert from_mapping(Config, json.loads(json.dumps(asdict(config))), "config.json") == config
    assert from_mapping(Config, json.loads(json.dumps(asdict(Config()))), "config.json") == Config()


def with_change(part, change):
    data = asdict(Config())
    change(data[part] if part else data)
    return data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (with_change("model", lambda d: d.update(widht=3)), ("unknown key widht",)),
        (with_change("training", lambda d: d.pop("lr_g")), ("missing key lr_g",)),
        (with_change("runtime", lambda d: d.update(device=7)), ("device 7",)),
        (with_change(None, lambda d: d.update(extra={})), ("unknown key extra",)),
        (with_change(None, lambda d: d.pop("runtime")), ("missing key runtime",)),
        (with_change(None, lambda d: d.update(model=[1])), ("not a JSON object",)),
        (with_change("training", lambda d: d.update(niter=0)), ("niter 0", "1 <=")),
        (with_change("training", lambda d: d.update(niter="7")), ("niter 7",)),
        (with_change("training", lambda d: d.update(niter=True)), ("niter True",)),
        ([], ("not a JSON object",)),
        (None, ("not a JSON object",)),
    ],
)
def test_a_file_with_other_keys_or_values_is_refused(data, words):
    with pytest.raises(UserError) as caught:
        from_mapping(Config, data, "folder/config.json")
    message = str(caught.value)
    assert message.startswith("folder/config.json: ")
    assert all(word in message for word in words)
    assert "\n" not in message


# By hand: one value below, above, or at an excluded bound of every setting that has one.
REFUSED = {
    "task": ["both"],
    "num_transforms": [7, 0, 55],
    "min_size": [10, -1, 25.5],
    "max_size": [10],
    "scale_factor": [0.0, 1.0, 1.2, -0.5, float("nan")],
    "nfc": [0, 129],
    "ker_size": [1, 4, 11],
    "num_layer": [1, 11],
    "niter": [0, -1],
    "lr_g": [0.0, -1e-3, float("inf"), float("nan")],
    "lr_d": [0.0, float("nan")],
    "beta1": [-0.1, 1.0],
    "gamma": [0.0, 1.1],
    "alpha": [-1.0],
    "noise_amp": [-0.1],
    "batch_statistics": ["eval"],
    "recipe": ["view"],
    "manualSeed": [-1, 2**31],
    "threads": [-1],
    "precision": ["float16"],
    "not_cuda": ["yes", 1],
    "compile": ["yes"],
} | dict.fromkeys(["milestone_d", "milestone_g", "Gsteps", "Dsteps", "checkpoint_every", "deterministic"], (0,))


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(UserError, match=f"^{name} .*must be"):
        default_config(**{name: value})


def test_every_setting_with_a_range_is_tried():
    ranged = {f.name for part in (ModelConfig, TrainingConfig, RuntimeConfig) for f in fields(part)} - {"device"}
    assert set(REFUSED) == ranged


def test_bounds_that_are_allowed():
    bounds = dict(min_size=11, max_size=11, scale_factor=0.999, beta1=0.0, gamma=1.0, alpha=0, noise_amp=0)
    default_config(**bounds, manualSeed=2**31 - 1, ker_size=9, num_layer=2, nfc=128)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_size": 65}, "^min_size 65 is above max_size 64: give a smaller min_size or a larger max_size$"),
        ({"nitre": 3}, "nitre: no such"),
    ],
)
def test_settings_that_contradict_each_other_or_do_not_exist_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        default_config(**settings)


def test_the_papers_defaults():
    assert ModelConfig() == ModelConfig("defect", None, 25, 64, 0.75, 32, 3, 5)
    training = TrainingConfig()
    assert (training.lr_g, training.lr_d, training.beta1, training.gamma) == (5e-4, 5e-4, 0.5, 0.1)
    assert (training.milestone_d, training.milestone_g) == (500, 1000)
    assert (training.Gsteps, training.Dsteps, training.alpha, training.noise_amp) == (3, 3, 100, 0.1)
    assert (ModelConfig().margin, ModelConfig().receptive_field) == (5, 11)
    with pytest.raises(FrozenInstanceError):
        ModelConfig().nfc = 3


def resolved(is_gray=False, **settings):
    """The transformations, the recipe and the iterations of a run with these settings."""
    config = default_config(**settings).resolved(is_gray=is_gray)
    return config.model.num_transforms, config.training.recipe, config.training.niter


@pytest.mark.parametrize(
    ("task", "gray", "num_transforms", "recipe", "niter"),
    [
        ("defect", False, 4, "views", 250),
        ("defect", True, 4, "views", 250),
        ("class", False, 54, "paper", 1000),
        ("class", True, 42, "paper", 500),
    ],
)
def test_what_is_not_said_follows_from_the_task_and_the_image(task, gray, num_transforms, recipe, niter):
    assert resolved(gray, task=task) == (num_transforms, recipe, niter)
    assert default_config(task=task).training.recipe is None


def test_what_is_said_stays():
    said = dict(num_transforms=54, recipe="paper", niter=3)
    assert resolved(True, **said) == (54, "paper", 3)
    # The iterations follow the transformations, whoever chose them, where the recipe is the paper's.
    assert resolved(True, num_transforms=54, recipe="paper") == (54, "paper", 1000)
    assert resolved(False, task="class", num_transforms=4) == (4, "paper", 2000)


@pytest.mark.parametrize("task", ["defect", "class"])
@pytest.mark.parametrize(("num_transforms", "niter"), [(4, 2000), (42, 500), (54, 1000)])
def test_a_recipe_that_is_said_stays_and_views_take_250_iterations_whatever_the_transformations(
    task, num_transforms, niter
):
    settings = dict(task=task, num_transforms=num_transforms)
    assert resolved(**settings, recipe="views") == (num_transforms, "views", 250)
    assert resolved(**settings, recipe="paper") == (num_transforms, "paper", niter)
    assert resolved(**settings, recipe="views", niter=7) == (num_transforms, "views", 7)
    once = default_config(**settings).resolved(is_gray=False)
    assert once.resolved(is_gray=True) == once


@pytest.mark.parametrize("wrap", [np.asarray, torch.tensor, lambda value: np.asarray(value)[()]])
def test_scalars_of_numpy_and_torch_are_numbers(wrap):
    values = {"niter": 7, "alpha": 3, "lr_g": 0.25, "compile": False, "scale_factor": 0.5, "manualSeed": 9}
    wrapped = default_config(**{name: wrap(value) for name, value in values.items()})
    assert wrapped == default_config(**values)
    assert json.loads(json.dumps(asdict(wrapped.training)))["alpha"] == 3.0
    narrow = default_config(niter=np.int8(7), lr_g=np.float32(0.25), compile=np.bool_(False), device=np.str_("cpu"))
    assert narrow == default_config(niter=7, lr_g=0.25, compile=False, device="cpu")
    for wrong in ({"niter": wrap(0.5)}, {"niter": wrap(True)}, {"compile": wrap(1)}, {"lr_g": np.zeros(1)}):
        with pytest.raises(UserError, match="must be"):
            default_config(**wrong)


@pytest.mark.parametrize("settings", [{"niter": 10**400}, {"lr_g": 10**400}, {"max_size": -(10**5000)}])
def test_numbers_of_hundreds_of_digits_are_refused(settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))}: has more than 18 digits"):
        default_config(**settings)


def test_a_wrong_value_is_shown_in_part():
    with pytest.raises(UserError) as caught:
        default_config(task="x" * 10_000)
    assert len(str(caught.value)) < 200
