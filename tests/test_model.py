"""The library: images in every form, one or several, and a model that was never on a disk."""

import weakref

import numpy as np
import pytest
import torch
from PIL import Image

import hta
from hta import runs, runtime
from hta.config import RuntimeConfig, ScoringConfig, default_config
from hta.errors import UserError
from hta.evaluation.scores import AGGREGATES, anomaly_scores
from hta.images import resize, to_tensor
from hta.models.pyramid import plan_of

RUNTIME = {"threads": 1, "precision": "float32", "not_cuda": True}
CONFIG = {"min_size": 14, "max_size": 22, "nfc": 4, "niter": 3, **RUNTIME}


def picture(seed, height=20, width=24):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def model():
    return hta.train([picture(0), picture(1)], default_config(**CONFIG))


def test_scores_and_maps_of_several_images_of_any_size(model):
    images = [picture(2), picture(3, 40, 30), picture(4, 11, 64)]
    scores, decisions, maps = model.score(images)
    assert scores.shape == (3,)
    assert scores.dtype == np.float64
    assert ((scores > 0) & (scores < 1)).all()
    assert decisions.tolist() == (scores > model.threshold(ScoringConfig()).threshold).tolist()
    assert [m.shape for m in maps] == [(20, 24), (40, 30), (11, 64)]
    assert all(m.dtype == np.float32 and 0 <= m.min() < m.max() <= 1 for m in maps)
    assert len(set(scores.tolist())) == 3


def test_every_form_of_an_image_scores_alike(model, tmp_path):
    pixels = picture(5)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    forms = [pixels, pixels / 255, pixels.astype(np.float32) / 255, Image.fromarray(pixels), tmp_path / "a.png"]
    results = model.score([*forms, str(tmp_path / "a.png")])
    np.testing.assert_allclose(results.anomaly_scores, results.anomaly_scores[0], rtol=0, atol=1e-6)
    gray = model.score([pixels[..., 0], pixels[..., :1], np.repeat(pixels[..., :1], 3, axis=2)]).anomaly_scores
    assert gray[0] == gray[1] == gray[2] != results.anomaly_scores[0]


@pytest.mark.parametrize("form", [lambda p: p, Image.fromarray])
def test_one_image_needs_no_list(model, form):
    one, several = model.score(form(picture(6))), model.score([form(picture(6))])
    assert one.anomaly_scores.tolist() == several.anomaly_scores.tolist()
    np.testing.assert_array_equal(one.anomaly_maps[0], several.anomaly_maps[0])


def test_an_image_does_not_depend_on_the_others_nor_on_their_order(model):
    images = [picture(seed) for seed in range(2, 25)]  # more than a batch
    order = np.random.default_rng(0).permutation(len(images))
    scores, _, maps = model.score(images)
    shuffled, _, shuffled_maps = model.score([images[i] for i in order])
    assert shuffled.tolist() == scores[order].tolist()
    for place, i in enumerate(order):
        np.testing.assert_array_equal(shuffled_maps[place], maps[i])


def test_the_aggregate_is_that_of_the_shares(model):
    images = [picture(2), picture(3), picture(4)]
    shares = np.stack([votes.shares for votes in model.stream(images)])
    for aggregate in AGGREGATES:
        expected = anomaly_scores(torch.from_numpy(shares), aggregate).numpy()
        assert model.score(images, aggregate=aggregate).anomaly_scores.tolist() == expected.tolist()
        assert ScoringConfig(aggregate=aggregate).aggregate == aggregate


def test_the_fraction_follows_the_task_and_the_shots(model):
    image = picture(2)
    assert model.score(image).anomaly_scores == model.score(image, fraction_defect=0.10).anomaly_scores  # two shots
    assert model.score(image).anomaly_scores > model.score(image, fraction_defect=1).anomaly_scores
    assert model.resolve_scoring(ScoringConfig(), "class").fraction_defect == 1
    assert model.resolve_scoring(ScoringConfig(0.3), "class").fraction_defect == 0.3


def test_another_aspect_ratio_is_said_once_a_model(caplog):
    model = hta.train(picture(0), default_config(**CONFIG))  # of 20 x 24 px
    model.score([picture(1), picture(2, 40, 48), picture(3, 41, 49)])
    assert "squeezed" not in caplog.text
    odd = [picture(1), picture(2, 30, 40), picture(3, 11, 64)]
    list(model.stream(odd, warn=False))
    assert "squeezed" not in caplog.text
    for _ in range(2):
        model.score(odd)
        list(model.stream(odd))
    (record,) = (record for record in caplog.records if "squeezed" in record.getMessage())
    assert record.levelname == "WARNING"
    assert "(20 x 24 px, height x width)" in record.getMessage()
    assert "one has 30 x 40 px" in record.getMessage()


def test_maps_can_be_left_out(model):
    with_maps, without = model.score(picture(2)), model.score(picture(2), with_maps=False)
    assert without.anomaly_maps is None
    assert without.anomaly_scores.tolist() == with_maps.anomaly_scores.tolist()


def test_networks_are_folded_once_for_many_calls(model):
    model.score(picture(2))
    evaluator = model.evaluator((0.1,))
    model.score(picture(3))
    assert model.evaluator((0.1,)) is evaluator
    assert model.evaluator((0.2,)) is not evaluator
    assert model.evaluator((0.2,), with_maps=False).score(model.training_images).maps is None


def test_a_stream_shows_the_images_in_order(model):
    seen = []
    images = [picture(2), picture(3, 30, 20)]
    votes = list(model.stream(images, ScoringConfig(batch_size=1), observe=seen.append))
    assert [v.image_size for v in votes] == [(20, 24), (30, 20)]
    for image, array in zip(images, seen, strict=True):
        np.testing.assert_array_equal(array, image.astype(np.float32) / 255)


@pytest.mark.parametrize(
    ("precision", "hardware", "count", "fits"),
    [
        ("bfloat16", False, 256, True),
        ("bfloat16", False, 257, False),
        ("auto", True, 257, False),
        ("auto", False, 257, True),
        ("float32", True, 257, True),
    ],
)
def test_more_images_than_bfloat16_tells_apart_are_refused(monkeypatch, precision, hardware, count, fits):
    monkeypatch.setattr(runtime, "has_native_bfloat16", lambda device: hardware)
    images, config = [picture(0) / np.float32(255)] * count, default_config(**CONFIG | {"precision": precision})
    if fits:
        assert runs.prepare(images, ["a.png"] * count, config).record.num_images == count
    else:
        with pytest.raises(UserError, match=r"257 training images: .* 256 apart at most; give --precision float32"):
            runs.prepare(images, ["a.png"] * count, config)


def test_training_images_are_prepared_one_at_a_time_as_all_at_once():
    images = [picture(seed, 70, 90) / np.float32(255) for seed in range(3)]
    held = []

    def stream():
        for image in images:
            copy = image.copy()
            held.append(weakref.ref(copy))
            yield copy
            del copy
            assert sum(ref() is not None for ref in held) <= 1

    config = default_config(**CONFIG)
    prepared = runs.prepare(stream(), ["a", "b", "c"], config)
    together = resize(to_tensor(images), plan_of(config.model, (70, 90)).working_size)
    assert torch.equal(prepared.images, together)
    assert (prepared.record.image_size, prepared.record.is_gray) == ((70, 90), False)


def test_the_number_of_training_images_is_checked_before_they_are_read():
    def unread():
        raise AssertionError("read")
        yield

    config = default_config(**CONFIG | {"precision": "bfloat16"})
    with pytest.raises(UserError, match="257 training images"):
        runs.prepare(unread(), ["a.png"] * 257, config)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.score([]), "images: none given"),
        (lambda m: m.score("nowhere.png"), r"nowhere\.png: no such file"),
        (lambda m: m.score([picture(0), np.zeros((3, 4, 4))]), "shape"),
        (lambda m: m.score(picture(0) * 1.0), "scale it to"),
        (lambda m: m.score(picture(0), aggregate="minmax"), "--aggregate minmax"),
        (lambda m: m.score([picture(0)] * 2, aggregate="median"), "--aggregate median"),
        (lambda m: m.score(picture(0), fraction_defect=0), "--fraction_defect 0"),
        (lambda m: m.score(picture(0), fraction_defect=1.5), "--fraction_defect 1.5: must be 0 < value <= 1"),
        (lambda m: m.score(picture(0), fraction_defect=float("nan")), "--fraction_defect nan"),
    ],
)
def test_wrong_calls_are_named(model, call, message):
    with pytest.raises(UserError, match=message):
        call(model)


def test_minmax_of_one_image_is_refused_before_it_is_read(model):
    with pytest.raises(UserError, match="--aggregate minmax"):
        model.score("nowhere.png", aggregate="minmax")


def test_save_and_load_keep_the_scores(tmp_path):
    trained = hta.train(picture(0), default_config(**CONFIG), folder=tmp_path / "wall")
    loaded = hta.load("wall", tmp_path, RuntimeConfig(**RUNTIME))
    by_path = hta.load(tmp_path / "wall", runtime=RuntimeConfig(**RUNTIME))
    images = [picture(seed) for seed in range(4)]
    first = trained.score(images)
    for other in (loaded.score(images), by_path.score(images)):
        assert other.anomaly_scores.tolist() == first.anomaly_scores.tolist()
        for one, two in zip(first.anomaly_maps, other.anomaly_maps, strict=True):
            np.testing.assert_array_equal(one, two)
