"""The library: images in every form, one or several, and a model that was never on a disk."""

import copy
import csv
import io
import json
import logging
import multiprocessing
import os
import pickle
import sys
import time
import weakref
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hta
import main_eval
from hta import images, runs, runtime
from hta.config import RuntimeConfig, ScoringConfig, default_config
from hta.data.folders import load_training_images
from hta.errors import HtaError, UserError
from hta.images import read_image, resize, to_array, to_tensor
from hta.models.scales import plan_of
from hta.models.storage import RunFolder
from hta.training.progress import Progress
from tests.helpers import picture, save, snapshot

if sys.platform != "win32":
    import resource

RUNTIME = {"threads": 1, "precision": "float32", "not_cuda": True}
CONFIG = {"min_size": 14, "max_size": 22, "nfc": 4, "niter": 3, **RUNTIME}


def load(name):
    return hta.load(name, runtime=RuntimeConfig(**RUNTIME))


@pytest.fixture(scope="module")
def model():
    return hta.train([picture(0), picture(1)], default_config(**CONFIG))


@pytest.fixture(scope="module")
def of_votes():
    """A model by the paper's recipe, whose scores and maps are made of votes."""
    return hta.train([picture(0), picture(1)], default_config(**CONFIG, recipe="paper"))


@pytest.mark.parametrize("recipe", [None, "paper"])
def test_scores_and_maps_of_several_images_of_any_size(model, of_votes, recipe):
    model = model if recipe is None else of_votes
    images = [picture(2), picture(3, 40, 30), picture(4, 11, 64)]
    scores, decisions, maps = model.score(images)
    assert scores.shape == (3,)
    assert scores.dtype == np.float64
    limits = model.threshold(ScoringConfig())
    if recipe is None:
        assert (limits.threshold, limits.decided_by) == (1.0, "score")
        peaks = np.array([votes.peak for votes in model.stream(images)])
        assert np.argsort(scores).tolist() == np.argsort(peaks).tolist()
    else:
        assert ((scores > 0) & (scores < 1)).all()
    assert decisions.tolist() == (scores > limits.threshold).tolist()
    assert [m.shape for m in maps] == [(20, 24), (40, 30), (11, 64)]
    assert all(m.dtype == np.float32 and 0 <= m.min() < m.max() <= 1 for m in maps)
    assert len(set(scores.tolist())) == 3
    scorer = model.scorer
    without = model.score(images, with_maps=False)
    assert (without.anomaly_maps, without.anomaly_scores.tolist()) == (None, scores.tolist())
    assert model.scorer is scorer  # folded once


def test_every_form_of_an_image_scores_alike(model, tmp_path):
    pixels = picture(5)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    forms = [pixels, pixels / 255, pixels.astype(np.float32) / 255, Image.fromarray(pixels), tmp_path / "a.png"]
    results = model.score([*forms, str(tmp_path / "a.png")])
    np.testing.assert_allclose(results.anomaly_scores, results.anomaly_scores[0], rtol=0, atol=1e-6)
    for form in (pixels, Image.fromarray(pixels)):  # one image needs no list
        one = model.score(form)
        assert one.anomaly_scores.tolist() == model.score([form]).anomaly_scores.tolist()
        np.testing.assert_allclose(one.anomaly_maps[0], results.anomaly_maps[0], rtol=0, atol=1e-6)
    gray = model.score([pixels[..., 0], pixels[..., :1], np.repeat(pixels[..., :1], 3, axis=2)]).anomaly_scores
    assert gray[0] == gray[1] == gray[2] != results.anomaly_scores[0]


def test_one_or_several_images_in_every_container(model, tmp_path):
    pixels = [picture(seed) for seed in range(5, 9)]
    for number, array in enumerate(pixels):
        Image.fromarray(array).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    Image.new("L", (24, 20)).save(tmp_path / "3_mask.png")
    tensors = torch.from_numpy(np.stack(pixels))
    opaque = np.full((4, 20, 24, 1), 255, np.uint8)
    containers = [
        *(tmp_path, str(tmp_path), os.fsencode(tmp_path), [tmp_path / "0.png", *pixels[1:]], (p for p in pixels)),
        *(map(os.fsencode, sorted(tmp_path.glob("?.png"))), np.array([str(p) for p in sorted(tmp_path.glob("?.png"))])),
        *(np.stack(pixels), np.stack(pixels) / 255, np.concatenate([np.stack(pixels), opaque], axis=3)),
        *(tensors, tensors.movedim(-1, 1), (tensors.movedim(-1, 1) / 255).requires_grad_(), [tensors[:1], tensors[1:]]),
        [
            tensors[0],
            tensors[1].movedim(-1, 0),
            io.BytesIO((tmp_path / "2.png").read_bytes()),
            Image.fromarray(pixels[3]),
        ],
    ]
    expected = model.score(pixels).anomaly_scores
    for container in containers:
        np.testing.assert_allclose(model.score(container).anomaly_scores, expected, rtol=0, atol=1e-6)
    with (tmp_path / "1.png").open("rb") as file:
        assert model.score(file).anomaly_scores == pytest.approx(expected[1], abs=1e-6)
    grays = np.stack(pixels)[..., 0]
    np.testing.assert_allclose(model.score(grays).anomaly_scores, model.score(list(grays)).anomaly_scores)
    trained = hta.train(tmp_path, default_config(**CONFIG | {"niter": 1}))
    assert trained.record.sources == tuple(str(tmp_path / f"{number}.png") for number in range(4))


def test_channels_first_in_numpy_are_warned_of(model, caplog):
    assert len(model.score(picture(0).transpose(2, 0, 1)).anomaly_scores) == 3
    assert "(3, 20, 24) is read as 3 gray images; colours come last" in caplog.text


def test_the_library_shows_what_it_has():
    assert dir(hta) == ["HTADetector", "Model", "__version__", "default_config", "load", "train"]


def test_large_images_keep_their_size_in_models_and_maps(of_votes, tmp_path, monkeypatch):
    model = of_votes  # whose scores have a range, 0 to 1, to which the tolerance relates
    monkeypatch.setattr(images, "LARGE", 3000)
    monkeypatch.setattr(images, "_REDUCED", 1000)
    large, other = picture(0, 60, 72), picture(1, 50, 60)
    (scores, _, maps), small = model.score([large, other]), model.score([large[:50, :59]])
    assert [one.shape for one in maps] == [(60, 72), (50, 60)]
    (votes,) = model.stream([to_array(large)])  # as the scripts pass them
    assert (votes.image_size, votes.full_size_map().shape) == ((60, 72), (60, 72))
    assert small.anomaly_maps[0].shape == (50, 59)
    monkeypatch.undo()
    np.testing.assert_allclose(model.score([large, other]).anomaly_scores, scores, atol=0.02)
    monkeypatch.setattr(images, "LARGE", 3000)
    for number, array in enumerate([large, other]):
        Image.fromarray(array).save(tmp_path / f"{number}.png")
    paths = sorted(tmp_path.iterdir())
    prepared = runs.prepare(load_training_images(paths), ["0.png", "1.png"], default_config(**CONFIG))
    assert prepared.record.image_size == (60, 72)
    of_large = replace(model, record=prepared.record, training_images=prepared.images)
    assert of_large.was_trained_on(read_image(paths[0]))
    assert not of_large.was_trained_on(read_image(paths[1])[::-1])


def test_progress_of_many_images_is_logged(model, caplog, monkeypatch):
    monkeypatch.setattr(Progress, "_spoke", time.monotonic() - 31)
    with caplog.at_level(logging.INFO, "hta"):
        model.score(np.stack([picture(seed=n) for n in range(17)]), with_maps=False)
    assert [line for line in caplog.messages if line.startswith("scoring: 5 %")]


def test_an_image_does_not_depend_on_the_others_nor_on_their_order(model):
    images = [picture(seed) for seed in range(2, 25)]  # more than a batch
    order = np.random.default_rng(0).permutation(len(images))
    scores, _, maps = model.score(images)
    shuffled, _, shuffled_maps = model.score([images[i] for i in order])
    assert shuffled.tolist() == scores[order].tolist()
    for place, i in enumerate(order):
        np.testing.assert_array_equal(shuffled_maps[place], maps[i])


def test_the_fraction_follows_the_task_and_the_shots(of_votes):
    model, image = of_votes, picture(2)
    assert model.score(image).anomaly_scores == model.score(image, fraction_defect=0.10).anomaly_scores  # two shots
    assert model.score(image).anomaly_scores > model.score(image, fraction_defect=1).anomaly_scores
    of_class = replace(model, task="class")
    assert (of_class.fraction(ScoringConfig()), of_class.fraction(ScoringConfig(0.3))) == (1, 0.3)


def test_another_aspect_ratio_is_said_once_per_model(model, caplog):
    model = replace(model)  # of 20 x 24 px
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
    assert "(24 x 20 px, width x height)" in record.getMessage()
    assert "one has 40 x 30 px" in record.getMessage()


def test_a_stream_shows_the_images_in_order(model):
    seen = []
    images = [picture(2), picture(3, 30, 20)]
    votes = list(model.stream(images, ScoringConfig(batch_size=1), observe=seen.append))
    assert [v.image_size for v in votes] == [(20, 24), (30, 20)]
    for image, array in zip(images, seen, strict=True):
        np.testing.assert_array_equal(array, image.astype(np.float32) / 255)


# --- decisions --------------------------------------------------------------------------------------------------------


def test_an_image_is_decided_alike_alone_and_among_others(model):
    images = [picture(seed) for seed in range(20)]
    for aggregate in ("mean", "calibrated"):
        together = model.score(images, aggregate=aggregate, target_fpr=0.5)
        assert set(together.decisions.tolist()) == {True, False}
        for i in (0, 7, 19):
            alone = model.score(images[i], aggregate=aggregate, target_fpr=0.5)
            assert alone.anomaly_scores[0] == pytest.approx(together.anomaly_scores[i], abs=1e-5)
            assert alone.decisions[0] == together.decisions[i]


@pytest.mark.parametrize("recipe", [None, "paper"])
def test_calibrated_scores_are_standardised_by_the_views(model, of_votes, recipe):
    model = model if recipe is None else of_votes
    images = [picture(2), picture(3)]
    shares = np.stack([votes.shares for votes in model.stream(images)])
    views = model.calibration(ScoringConfig(score="paper")).shares
    deviations = (views.mean(axis=0) - shares) / views.std(axis=0, ddof=1)
    scores = model.score(images, aggregate="calibrated").anomaly_scores
    np.testing.assert_allclose(scores, deviations.mean(axis=1), rtol=1e-9)


def test_a_given_threshold_overrides(model):
    images = [picture(seed) for seed in range(6)]
    scores = model.score(images).anomaly_scores
    middle = float(np.median(scores))
    assert model.score(images, threshold=middle).decisions.tolist() == (scores > middle).tolist()
    threshold = model.threshold(ScoringConfig(threshold=middle))
    assert (threshold.threshold, threshold.source, threshold.target_fpr) == (middle, "given", None)
    assert threshold.pixel_threshold == model.threshold(ScoringConfig()).pixel_threshold
    by_minmax = [model.score(images, aggregate="minmax", threshold=t, with_maps=False).decisions for t in (None, 0.5)]
    assert by_minmax[0] is None
    assert by_minmax[1].tolist() == (model.score(images, aggregate="minmax").anomaly_scores > 0.5).tolist()


def test_defects_are_decided_by_their_maps_and_classes_by_their_scores(of_votes):
    model, images = of_votes, [picture(seed) for seed in range(6)]
    peaks = np.array([votes.peak for votes in model.stream(images)])
    target = 0.5
    limit = model.threshold(ScoringConfig(target_fpr=target))
    assert (limit.decided_by, limit.source, limit.target_fpr) == ("map", "calibrated", target)
    decisions = model.score(images, target_fpr=target).decisions
    assert decisions.tolist() == (peaks > limit.pixel_threshold).tolist()
    by_minmax = model.threshold(ScoringConfig(target_fpr=target, aggregate="minmax"))
    assert (by_minmax.decided_by, by_minmax.reason) == ("map", None)
    assert replace(model, task="class").threshold(ScoringConfig()).decided_by == "score"
    assert model.threshold(ScoringConfig(), with_maps=False).decided_by == "map"
    assert model.threshold(ScoringConfig(aggregate="calibrated"), with_maps=False).decided_by == "score"
    assert model.score(images, with_maps=False).decisions.tolist() == model.score(images).decisions.tolist()
    assert model.threshold(ScoringConfig(threshold=0.5)).decided_by == "score"


def test_scores_of_distances_decide_with_maps_and_without(model):
    images = [picture(seed) for seed in range(14)]
    peaks = np.array([votes.peak for votes in model.stream(images)])
    target = 0.5
    limit = model.threshold(ScoringConfig(target_fpr=target))
    assert (limit.threshold, limit.decided_by, limit.source) == (1.0, "score", "calibrated")
    assert limit.target_fpr == target
    for with_maps in (True, False):
        scores = model.score(images, target_fpr=target, with_maps=with_maps)
        assert set(scores.decisions.tolist()) == {True, False}
        assert scores.decisions.tolist() == (scores.anomaly_scores > 1).tolist()
        assert scores.decisions.tolist() == (peaks > limit.pixel_threshold).tolist()
        assert model.threshold(ScoringConfig(target_fpr=target), with_maps=with_maps) == limit
    # Aggregates are of votes, which decide as the paper's.
    assert model.threshold(ScoringConfig(aggregate="minmax")).decided_by == "map"
    assert model.threshold(ScoringConfig(aggregate="calibrated"), with_maps=False).decided_by == "score"
    assert model.threshold(ScoringConfig(score="paper")).decided_by == "map"


def test_a_target_below_what_the_views_support_is_refused(model):
    for of_task, with_maps in ((model, True), (model, False), (replace(model, task="class"), True)):
        with pytest.raises(UserError, match=r"^target_fpr 0\.0049: 200 views .* below 0\.005; .* 204 or more"):
            of_task.threshold(ScoringConfig(target_fpr=0.0049), with_maps=with_maps)
    assert model.threshold(ScoringConfig(target_fpr=1 / 201)).target_fpr == 1 / 201
    assert model.threshold(ScoringConfig(target_fpr=0.0001, threshold=0.5)).source == "given"


@pytest.mark.parametrize(("recipe", "decided_by"), [(None, "score"), ("paper", "map")])
def test_good_images_make_the_threshold(model, of_votes, recipe, decided_by):
    model = model if recipe is None else of_votes
    images, others = [picture(seed) for seed in range(121, 140)], [picture(seed) for seed in (0, *range(200, 210))]
    good = model.score_good(images, ScoringConfig())
    scores = model.score(others, good_images=images)
    limit = model.threshold(ScoringConfig(), good=good)
    assert (limit.source, limit.decided_by, limit.pixel_threshold) == ("good images", decided_by, good.peaks.max())
    assert limit.pixel_threshold < 1  # none of them is a frame that cannot be judged
    working = [votes.peak for votes in model.stream(others)]
    assert scores.decisions.tolist() == [bool(peak > good.peaks.max()) for peak in working]
    if recipe is None:
        assert limit.threshold == 1.0
        assert scores.decisions.tolist() == (scores.anomaly_scores > 1).tolist()
        of_good = model.anomaly_scores(good, ScoringConfig(), limit)
        assert of_good.max() == pytest.approx(1, abs=1e-9)
    with pytest.raises(UserError, match="needs at least 19"):
        model.score(picture(0), good_images=images[:5])


def test_a_training_image_is_known_through_a_change_of_its_size(model, tmp_path):
    original = picture(0, 40, 48)
    Image.fromarray(original).save(tmp_path / "wall.png")
    images = load_training_images([tmp_path / "wall.png"], 30)
    prepared = runs.prepare(images, ["wall.png"], default_config(**CONFIG))
    model = replace(model, record=prepared.record, training_images=prepared.images)
    assert model.was_trained_on(read_image(tmp_path / "wall.png"))
    Image.fromarray(np.clip(original.astype(int) + 3, 0, 255).astype(np.uint8)).save(tmp_path / "brighter.png")
    assert not model.was_trained_on(read_image(tmp_path / "brighter.png"))


@pytest.mark.parametrize("again", [lambda m: pickle.loads(pickle.dumps(m)), copy.copy, copy.deepcopy])  # noqa: S301
def test_a_copy_scores_alike_before_and_after_the_model_has_scored(model, again):
    image, fresh = picture(7), replace(model)
    copies = [again(fresh)]
    expected = fresh.score(image)
    copies += [again(fresh), again(copies[0])]
    for same in copies:
        scores = same.score(image)
        assert (scores.anomaly_scores, scores.decisions) == (expected.anomaly_scores, expected.decisions)
        np.testing.assert_array_equal(scores.anomaly_maps[0], expected.anomaly_maps[0])


def test_a_model_goes_to_a_process_that_is_started_anew(model):
    image = picture(7)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(model.score, image).result()
    assert there.anomaly_scores == model.score(image).anomaly_scores


def test_a_saved_model_is_one_that_was_trained_into_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, config = [picture(0), picture(1)], default_config(**CONFIG)
    model = hta.train(images, config)
    hta.train(images, config, folder="trained", num_samples=0)
    model.save(Path("TrainedModels", "saved"))
    trained, saved = snapshot("trained"), snapshot("TrainedModels/saved")
    assert set(trained) - set(saved) == {"metrics.csv", "curves.png", "samples", "train.html"} | {
        name for name in trained if name.startswith("samples/")
    }
    assert saved.items() <= trained.items()
    loaded = load("saved")
    assert loaded.score(picture(7)).anomaly_scores == model.score(picture(7)).anomaly_scores
    save(Path("parts/a.png"), picture(7))
    assert (
        main_eval.main(
            ["--input_name", "saved", "--test_dir", "parts", "--out", "out", "--not_cuda", "--precision", "float32"]
        )
        == 0
    )
    with Path("out/scores.csv").open() as stream:
        assert float(next(csv.DictReader(stream))["anomaly_score"]) == model.score(picture(7)).anomaly_scores[0]
    replace(loaded, task="class").save("copy")
    assert snapshot("copy") == saved


def test_a_model_is_saved_over_another_only_if_asked_and_never_over_other_files(model, tmp_path):
    model.save(tmp_path / "wall")
    with pytest.raises(UserError, match="contains a trained model"):
        model.save(tmp_path / "wall")
    loaded = load(tmp_path / "wall")
    loaded.save(tmp_path / "wall", overwrite=True)  # over itself
    assert load(tmp_path / "wall").score(picture(7)).anomaly_scores == model.score(picture(7)).anomaly_scores
    (tmp_path / "wall" / "thesis.txt").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"thesis\.txt"):
        model.save(tmp_path / "wall", overwrite=True)
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limits of file sizes")
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_model_that_cannot_be_written_whole_leaves_what_there_was(model, tmp_path, overwrite):
    if overwrite:
        model.save(tmp_path / "wall")
    before = snapshot(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # bytes
    try:
        with pytest.raises(HtaError, match=r"cannot be written \(File too large"):
            model.save(tmp_path / "wall", overwrite=overwrite)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(("name", "error"), [("a\0b", "null character"), ("a" * 300, "File name too long")])
def test_a_path_that_can_be_none_is_refused_by_save_and_load(model, tmp_path, name, error):
    with pytest.raises(HtaError, match=error):
        model.save(tmp_path / name)
    with pytest.raises(UserError, match="no model here"):
        load(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_model_that_votes_otherwise_than_when_it_was_saved_is_refused(model, tmp_path):
    folder = RunFolder(tmp_path / "wall")
    model.save(folder.path)
    path = folder.path / "config.json"
    kept, record = path.read_bytes(), folder.read_record()
    shares = record.training_shares
    assert shares == pytest.approx(model.scorer.shares(model.training_images)[0, 0], abs=1e-6)
    for wrong in ((shares[0] + 0.2, *shares[1:]), shares[1:]):
        folder.write_record(replace(record, training_shares=wrong))
        with pytest.raises(UserError, match=r"wall: votes on its training image otherwise than when it was saved"):
            load(folder.path).score(picture(0))
    for allowed in ((shares[0] + 0.02, *shares[1:]), ()):
        folder.write_record(replace(record, training_shares=allowed))
        assert load(folder.path).score(picture(0)).anomaly_scores == model.score(picture(0)).anomaly_scores
    data = json.loads(kept)
    del data["kernels"], data["training_shares"]  # as it was before these were recorded
    path.write_text(json.dumps(data))
    assert load(folder.path).score(picture(0)).anomaly_scores == model.score(picture(0)).anomaly_scores


def test_maps_by_the_nearest_patch_need_no_votes(model, of_votes):
    images = [picture(2), picture(3, 40, 30), np.zeros((20, 24, 3), np.uint8)]
    for votes, alone in zip(model.stream(images), model.stream(images, with_shares=False), strict=True):
        assert (alone.anomaly_map == votes.anomaly_map).all()
        assert (votes.shares.shape, alone.shares.shape, alone.fault) == ((3,), (0,), votes.fault)
    shares = [votes.shares.tolist() for votes in of_votes.stream(images)]
    assert [votes.shares.tolist() for votes in of_votes.stream(images, with_shares=False)] == shares


def test_votes_that_are_not_finite_decide_nothing(model):
    broken = copy.deepcopy(replace(model))
    broken.pyramid.scales[0].discriminator.body.blocks[0].norm.running_var.fill_(-1)
    with pytest.raises(UserError, match="votes are not finite"):
        broken.score(picture(0))
    with pytest.raises(UserError, match="votes are not finite"):
        list(broken.stream([picture(0)], with_maps=False))


def test_a_model_in_memory_has_no_folder_to_keep_anything_in(model):
    with pytest.raises(UserError, match="no folder; train it with folder=PATH"):
        model.keep_calibration()


# --- training images --------------------------------------------------------------------------------------------------


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
        unread = (pytest.fail("read") for _ in images)
        with pytest.raises(UserError, match=r"257 training images: .* supports at most 256; give --precision float32"):
            runs.prepare(unread, ["a.png"] * count, config)


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


def nearly(levels):
    return np.random.default_rng(0).integers(128, 128 + levels, (40, 48, 3), dtype=np.uint8)


ONE_PIXEL = nearly(1)
ONE_PIXEL[3, 4] = 255


@pytest.mark.parametrize(
    "blank", [nearly(1), nearly(1) * 0, nearly(3), ONE_PIXEL, np.dstack([picture(0), picture(0)[..., :1] * 0])]
)
def test_a_training_image_that_teaches_nothing_is_refused_before_the_work(blank, tmp_path):
    config = default_config(**CONFIG)
    with pytest.raises(UserError, match=r"^image 0: is of one colour.* teaches nothing; [^\n]*$"):
        hta.train(blank, config, folder=tmp_path / "model")
    with pytest.raises(UserError, match="image 1: is of one colour"):
        hta.train([picture(3, *blank.shape[:2]), blank], config, folder=tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_values_in_a_tenth_of_the_range_are_hinted_at(caplog):
    config, wide = default_config(**CONFIG), picture(0).astype(np.uint16)
    runs.prepare([to_array(wide * 16)], ["12_bits.tif"], config)  # 12 bits in 16
    assert "12_bits.tif: uses less than a tenth of the range" in caplog.text
    caplog.clear()
    runs.prepare([to_array(wide * 30)], ["dim.tif"], config)
    assert not caplog.messages
    with pytest.raises(UserError, match="scale its values"):
        runs.prepare([to_array(wide)], ["8_bits.tif"], config)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.score([]), "images: none given"),
        (lambda m: m.score(iter([])), "images: none given"),
        (lambda m: m.score(5), "int is not accepted"),
        (lambda m: m.score([[picture(0)]]), "list is not accepted"),
        (lambda m: m.score(io.StringIO("text")), "image: text; give a file opened with 'rb'"),
        (lambda m: m.score(np.zeros((20, 24, 2))), "shape"),
        (lambda m: m.score(torch.zeros(2, 20, 24, 5)), "shape"),
        (lambda m: m.score("nowhere.png"), r"nowhere\.png: no such file"),
        (lambda m: m.score([picture(0), np.zeros((3, 4, 5, 2))]), "shape"),
        (lambda m: m.score(picture(0) * 1.0), "scale it to"),
        (lambda m: m.score("nowhere.png", aggregate="minmax"), "^aggregate minmax"),  # before it is read
        (lambda m: m.score([picture(0)] * 2, aggregate="median"), "^aggregate median"),
        (lambda m: m.score(picture(0), fraction_defect=float("nan")), "^fraction_defect nan"),
        (lambda m: m.score(picture(0), target_fpr=1), "^target_fpr 1"),
        (lambda m: m.score(picture(0), threshold=float("nan")), "^threshold nan"),
    ],
)
def test_wrong_calls_are_named(model, call, message):
    with pytest.raises(UserError, match=message):
        call(model)
