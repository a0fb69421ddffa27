"""The detector by scikit-learn's and PyOD's conventions."""

import copy
import inspect
import io
import os
import pickle
import pickletools
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from PIL import Image
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import get_scorer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import estimator_checks_generator

import hta
from hta import model as model_module
from hta.config import ModelConfig, RuntimeConfig, ScoringConfig, TrainingConfig, default_config
from hta.errors import UserError
from tests.helpers import picture, save

SETTINGS = {"min_size": 14, "max_size": 18, "nfc": 2, "niter": 2, "threads": 1, "precision": "float32"}
SETTINGS |= {"not_cuda": True, "compile": False}
NORMAL, OTHERS = np.stack([picture(0), picture(1)]), np.stack([picture(seed) for seed in range(2, 8)])


@pytest.fixture(scope="module")
def detector():
    return hta.HTADetector(**SETTINGS).fit(NORMAL)


# What it computes


@pytest.mark.parametrize(
    ("settings", "decided_by"),
    [
        ({}, "score"),
        ({"threshold": 1.4}, "score"),
        ({"recipe": "paper", "target_fpr": 0.2}, "map"),
        ({"recipe": "paper", "aggregate": "calibrated", "fraction_defect": 0.3}, "score"),
        ({"task": "class", "num_transforms": 4}, "score"),
    ],
)
def test_it_scores_and_decides_as_the_model_does(settings, decided_by):
    fitted = hta.HTADetector(**SETTINGS, **settings).fit(NORMAL)
    of_training = {f.name for part in (ModelConfig, TrainingConfig) for f in fields(part)} & set(settings)
    model = hta.train(NORMAL, default_config(**SETTINGS, **{name: settings[name] for name in of_training}))
    scoring = {name: value for name, value in settings.items() if name not in of_training}
    for images in (OTHERS, NORMAL):
        expected, values = model.score(images, with_maps=False, **scoring), fitted.decision_function(images)
        assert fitted.predict(images).tolist() == (values > fitted.threshold_).tolist() == expected.decisions.tolist()
        if decided_by == "score":
            assert values.tolist() == expected.anomaly_scores.tolist()
        else:
            assert values.tolist() == [float(votes.peak) for votes in model.stream(images)]
    limits = model.threshold(ScoringConfig(**scoring), with_maps=False)
    assert limits.decided_by == decided_by
    assert fitted.threshold_ == (limits.pixel_threshold if decided_by == "map" else limits.threshold)
    assert fitted.decision_scores_.tolist() == fitted.decision_function(NORMAL).tolist()
    assert fitted.labels_.tolist() == fitted.predict(NORMAL).tolist()
    assert (values.dtype, fitted.labels_.dtype.kind) == (np.float64, "i")


def test_higher_is_more_anomalous_and_1_is_anomalous(detector):
    scores = detector.decision_function(OTHERS)
    assert detector.decision_scores_.max() < scores.min() < detector.threshold_ < scores.max()
    assert detector.labels_.tolist() == [0, 0]
    assert detector.predict(OTHERS)[[scores.argmin(), scores.argmax()]].tolist() == [0, 1]


def test_a_blank_frame_is_anomalous_whatever_the_threshold():
    images = np.stack([np.full_like(NORMAL[0], 90), OTHERS[0]])
    fitted = hta.HTADetector(**SETTINGS, threshold=1e9).fit(NORMAL)
    assert fitted.predict(images).tolist() == [1, 0]
    assert fitted.set_params(no_frame_check=True).fit(NORMAL).predict(images).tolist() == [0, 0]


def test_good_images_make_the_threshold():
    good = [picture(seed) for seed in range(20, 39)]
    fitted = hta.HTADetector(**SETTINGS, recipe="paper").fit(NORMAL, good_images=good)
    assert fitted.threshold_ == fitted.decision_function(good).max()
    assert fitted.threshold_ != hta.HTADetector(**SETTINGS, recipe="paper").fit(NORMAL).threshold_


@pytest.mark.parametrize(
    ("settings", "good_images", "message"),
    [
        ({}, [picture(2)] * 3, r"^good_images: 3 good images, but target_fpr 0\.05 needs at least 19"),
        ({}, [], "^images: none given"),
        ({}, ["nope.png"] * 19, r"^nope\.png: "),
        ({"target_fpr": 1e-4}, None, "target_fpr 0.0001: 200 views .*, or good_images with 9999"),
        ({"score": "nearest", "aggregate": "calibrated"}, None, "aggregate calibrated: combines votes"),
    ],
)
def test_what_makes_no_threshold_is_refused_before_the_training(settings, good_images, message):
    with pytest.raises(ValueError, match=message):  # not the error of the device, which the training would give
        hta.HTADetector(**SETTINGS | {"device": "cuda:99"} | settings).fit(NORMAL, good_images=good_images)


def test_a_seed_gives_the_same_scores_and_another_one_others(detector):
    scores = [clone(detector).set_params(manualSeed=seed).fit(NORMAL).decision_function(OTHERS) for seed in (0, 1)]
    assert (scores[0] == detector.decision_function(OTHERS)).all()
    assert (scores[0] != scores[1]).all()


# What it takes


def test_every_form_of_images_scores_alike(detector, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(len(OTHERS))]
    for path, image in zip(paths, OTHERS, strict=True):
        save(path, image)
    expected = detector.decision_function(OTHERS)
    opaque = np.concatenate([OTHERS, np.full_like(OTHERS[..., :1], 255)], axis=3)
    names = [str(path) for path in paths]
    for X in (list(OTHERS), opaque, paths, names, np.array(names), [Image.fromarray(image) for image in OTHERS]):
        assert detector.decision_function(X).tolist() == expected.tolist()
    assert detector.decision_function(OTHERS / 255) == pytest.approx(expected, rel=1e-3)
    gray = OTHERS[..., 0]
    assert detector.predict(gray).tolist() == detector.predict(gray[..., None]).tolist()
    sizes = [picture(2), picture(3, 40, 30), picture(4, 11, 64)]
    assert detector.decision_function(sizes).tolist() == [detector.decision_function([x])[0] for x in sizes]
    files = [io.BytesIO(path.read_bytes()) for path in paths[:1]]
    for X in (paths[:1], files):
        assert hta.HTADetector(**SETTINGS).fit(X).predict(paths[:1]).tolist() == [0]


def test_one_stack_of_four_gray_images_is_four_images(detector):
    assert detector.decision_function(OTHERS[:4, ..., 0]).shape == (4,)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (NORMAL[0], r"X: has 20 entries, but 1 images; give a stack \(N, H, W\)"),
        (NORMAL[0, ..., 0], "X: has 20 entries, but 1 images"),
        (np.zeros(5), "X: has 5 entries, but 1 images"),
        (np.zeros((2, 3, 20, 24, 3)), "X: has 2 entries, but 1 images"),
        (np.zeros((2, 20, 24, 2)), r"image: shape \(20, 24, 2\) is not accepted"),
        (np.zeros((0, 20, 24)), "images: none given"),
        ([], "images: none given"),
        ("a.png", "X: one str is not accepted"),
        (Path("a.png"), f"X: one {type(Path()).__name__} is not accepted"),
        (iter([NORMAL[0]]), "X: one list_iterator is not accepted"),
        (csr_array(np.eye(3)), "X: one csr_array is not accepted"),
        ([NORMAL], "X: has 1 entries, but 2 images"),
        (["no.png"], "no.png: no such file"),
        ([3], "image: int is not accepted"),
        (NORMAL.astype(np.int64), "image: type int64 is not accepted"),
        (NORMAL * 1.0, r"image: values outside \[0, 1\] or NaN"),
        (NORMAL / 255 - 0.1, r"image: values outside \[0, 1\] or NaN"),
        (np.where(NORMAL > 200, np.nan, NORMAL / 255), r"image: values outside \[0, 1\] or NaN"),
    ],
)
def test_wrong_images_are_value_errors_in_one_line(detector, X, message):
    for call in (detector.decision_function, detector.predict, clone(detector).fit):
        with pytest.raises(ValueError, match=f"^{message}") as caught:
            call(copy.copy(X))
        assert isinstance(caught.value, UserError)
        assert "\n" not in str(caught.value)


# Settings


def test_its_parameters_are_all_settings_with_their_defaults():
    parts = (ModelConfig, TrainingConfig, RuntimeConfig, ScoringConfig)
    expected = {f.name: f.default for part in parts for f in fields(part)}
    assert hta.HTADetector().get_params() == expected
    assert list(inspect.signature(hta.HTADetector).parameters) == list(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"niter": 0}, "niter 0: must be 1 <= value"),
        ({"min_size": 30, "max_size": 20}, "min_size 30 is above max_size 20"),
        ({"aggregate": "minmax"}, "aggregate minmax: makes scores depend on the other images"),
        ({"device": "cuda:99"}, "device cuda:99"),
    ],
)
def test_wrong_values_are_kept_until_fit_names_them(settings, message):
    wrong = hta.HTADetector(**SETTINGS | settings)
    assert clone(wrong).get_params() == wrong.get_params()
    with pytest.raises(ValueError, match=f"^{message}"):
        wrong.fit(NORMAL)
    with pytest.raises(NotFittedError):
        wrong.predict(NORMAL)


def test_misspelt_settings_are_refused_at_once():
    with pytest.raises(TypeError, match=r"HTADetector.__init__\(\) got an unexpected keyword argument 'nitr'"):
        hta.HTADetector(nitr=3)
    with pytest.raises(ValueError, match="Invalid parameter 'nitr'"):
        hta.HTADetector().set_params(nitr=3)


def test_changed_settings_wait_for_the_next_fit(detector):
    changed = copy.deepcopy(detector).set_params(threshold=-1e9)
    assert (changed.threshold_, changed.predict(NORMAL).tolist()) == (1.0, [0, 0])
    assert changed.fit(NORMAL).predict(NORMAL).tolist() == [1, 1]


# Tools


def test_a_clone_is_not_fitted(detector):
    copied = clone(detector)
    assert copied.get_params() == detector.get_params()
    with pytest.raises(NotFittedError):
        copied.decision_function(NORMAL)


@pytest.mark.parametrize("settings", [{}, {"recipe": "paper", "fraction_defect": 0.3, "threshold": 0.7}])
def test_a_pickle_holds_files_and_scores_alike(settings):
    fitted = hta.HTADetector(**SETTINGS, **settings).fit(NORMAL)
    scores, decisions = fitted.decision_function(OTHERS), fitted.predict(OTHERS)
    data = pickle.dumps(fitted)
    strings = [str(argument) for _, argument, _ in pickletools.genops(data)]
    assert not any(text.startswith(("torch", "hta.model")) for text in strings)
    again = pickle.loads(data)  # noqa: S301
    assert again.model_.folder is None
    assert again.decision_function(OTHERS).tolist() == scores.tolist()
    assert again.predict(OTHERS).tolist() == decisions.tolist()
    assert (again.threshold_, again.labels_.tolist()) == (fitted.threshold_, fitted.labels_.tolist())
    assert pickle.loads(pickle.dumps(again)).predict(OTHERS).tolist() == decisions.tolist()  # noqa: S301


@pytest.mark.parametrize("settings", [{}, {"fraction_defect": 0.3}, {"score": "paper", "aggregate": "calibrated"}])
def test_a_pickle_needs_no_new_calibration(settings, monkeypatch):
    fitted = hta.HTADetector(**SETTINGS, **settings).fit(NORMAL)
    monkeypatch.setattr(model_module, "calibrate", None)
    again = pickle.loads(pickle.dumps(fitted))  # noqa: S301
    assert again.decision_function(OTHERS).tolist() == fitted.decision_function(OTHERS).tolist()


def test_it_works_in_a_pipeline(detector):
    flip = FunctionTransformer(np.flip, kw_args={"axis": 2})
    pipeline = clone(make_pipeline(flip, detector)).fit(np.flip(NORMAL, axis=2))
    flipped, expected = np.flip(OTHERS, axis=2), detector.decision_function(OTHERS)
    assert pipeline.decision_function(flipped).tolist() == expected.tolist()
    assert pipeline.predict(flipped).tolist() == detector.predict(OTHERS).tolist()
    assert (pipeline.decision_function(OTHERS) != expected).any()
    again = pickle.loads(pickle.dumps(pipeline))  # noqa: S301
    assert again.decision_function(flipped).tolist() == expected.tolist()


def test_scorers_of_scikit_learn_know_the_direction(detector):
    images, labels = np.concatenate([NORMAL, OTHERS]), [0] * 2 + [1] * 6
    assert get_scorer("roc_auc")(detector, images, labels) == 1
    assert get_scorer("recall")(detector, images, labels) == detector.predict(OTHERS).mean() > 0


def test_two_processes_of_joblib_train_and_score(detector, tmp_path):
    def work(unfitted, fitted, number):
        scores = unfitted.set_params(manualSeed=number).fit(NORMAL), fitted.decision_function(OTHERS)
        (tmp_path / f"{os.getpid()}.pid").touch()
        end = time.monotonic() + 60
        while len(list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < end:
            time.sleep(0.02)  # so that both tasks cannot go to one process
        return scores

    tasks = [delayed(work)(clone(detector), detector, number) for number in (0, 1)]
    (first, scores), (second, others) = Parallel(n_jobs=2, backend="loky")(tasks)
    get_reusable_executor().shutdown(wait=True)
    pids = {int(path.stem) for path in tmp_path.iterdir()}
    assert len(pids) == 2
    assert os.getpid() not in pids
    expected = detector.decision_function(OTHERS).tolist()
    assert scores.tolist() == others.tolist() == first.decision_function(OTHERS).tolist() == expected
    assert second.decision_function(OTHERS).tolist() != expected


# The checks of scikit-learn


class OfRows(hta.HTADetector):
    """Makes an image of each row of a table, by which scikit-learn's checks, which are made for tables, apply.

    Training takes the first two rows, which saves time.
    """

    def fit(self, X, y=None):
        images = self._images(X)
        return super().fit(images[:2] if np.ndim(images) == 3 else images, y)

    def decision_function(self, X):
        return super().decision_function(self._images(X))

    def predict(self, X):
        return super().predict(self._images(X))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags

    @staticmethod
    def _images(X):
        table = np.asarray(X)
        if table.ndim != 2 or table.dtype.kind not in "fiu" or table.size == 0:
            return X
        with np.errstate(over="ignore"):
            levels = np.where(np.isfinite(table), 1 / (1 + np.exp(-table.astype(np.float64))), table)
        blocks = np.stack([np.resize(row, (4, 4)) for row in levels]).repeat(4, axis=1).repeat(4, axis=2)
        return (blocks + np.linspace(0, 1, 256).reshape(16, 16)) / 2


WORDS = "wants words about tables in the error, which is one line about images"
NOT_FOR_IMAGES = {
    "check_n_features_in": "images have a size, which may differ, and no number of features",
    "check_n_features_in_after_fitting": "images have a size, which may differ, and no number of features",
    "check_outliers_train": "wants 1 for normal, -1 for anomalous and lower scores for those: PyOD's way is the other",
    "check_dtype_object": "arrays of objects hold paths and images here, not numbers",
    "check_complex_data": WORDS,
    "check_estimators_empty_data_messages": WORDS,
    "check_estimator_sparse_tag": WORDS,
    "check_estimator_sparse_array": WORDS,
    "check_estimator_sparse_matrix": WORDS,
    "check_fit2d_predict1d": WORDS,
    "check_array_api_input": "skips itself unless SciPy was started in a mode of its own",
}
SMALLEST = {"max_size": 16, "nfc": 1, "niter": 1, "num_layer": 2, "Gsteps": 1, "Dsteps": 1, "recipe": "paper"}
OF_ROWS = OfRows(**SETTINGS | SMALLEST)
CHECKS = [check for _, check in estimator_checks_generator(OF_ROWS)]


def name_of(check):
    return check.func.__name__


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("check", [check for check in CHECKS if name_of(check) not in NOT_FOR_IMAGES], ids=name_of)
def test_checks_of_scikit_learn(check):
    check(clone(OF_ROWS))


def test_the_checks_are_those_that_make_sense():
    names = {name_of(check) for check in CHECKS}
    assert set(NOT_FOR_IMAGES) - {"check_array_api_input"} <= names  # scikit-learn 1.6 lacks it
    assert names - set(NOT_FOR_IMAGES) >= {
        f"check_{name}"
        for name in (
            *("estimator_cloneable", "estimator_repr", "no_attributes_set_in_init", "parameters_default_constructible"),
            *("get_params_invariance", "set_params", "do_not_raise_errors_in_init_or_set_params", "valid_tag_types"),
            *("dont_overwrite_parameters", "estimators_overwrite_params", "estimators_unfitted", "fit_idempotent"),
            *("estimators_pickle", "estimators_nan_inf", "pipeline_consistency", "methods_subset_invariance"),
        )
    }


@pytest.mark.parametrize("X", [csr_array(np.eye(3)), np.eye(3) * 1j, np.zeros((0, 3)), np.zeros(3), np.zeros((3, 0))])
def test_what_those_with_other_words_refuse_is_refused(X):
    with pytest.raises(ValueError, match=r"^(X|images?): "):
        clone(OF_ROWS).fit(X)
