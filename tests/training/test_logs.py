"""--log: TensorBoard, wandb and MLflow get what metrics.csv and the page say; nothing is imported without it."""

import csv
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main_train
from hta.config import Config
from hta.errors import RunError, UserError
from hta.model import load
from hta.runtime import RuntimeConfig
from hta.training import logs
from hta.training.animation import picture_row
from hta.training.logs import Logger, check_installed, opened
from hta.training.progress import LOSSES
from tests.helpers import interrupted, picture, save, snapshot

ROOT = Path(__file__).parents[2]
NITER, SCALES = 3, 2
TRAIN = [
    *("--input_name", "photo.png", "--min_size", "17", "--max_size", "22", "--nfc", "2", "--niter", f"{NITER}"),
    *("--num_samples", "0", "--checkpoint_every", "1", "--threads", "1", "--precision", "float32", "--not_cuda"),
]
NAMES = ("tensorboard", "wandb", "mlflow")
FOLDER = Path("TrainedModels") / "photo"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A working directory with one image, in which wandb and MLflow stay on this machine."""
    save(tmp_path / "photo.png", picture())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'runs.db'}")
    return tmp_path


def kept_losses():
    """The rows of metrics.csv by loss: step and value."""
    rows = list(csv.DictReader((FOLDER / "metrics.csv").open()))
    steps = [int(row["scale"]) * NITER + int(row["iteration"]) for row in rows]
    assert steps == list(range(SCALES * NITER))
    return {name: [(step, float(row[name])) for step, row in zip(steps, rows, strict=True)] for name in LOSSES}


def shares_on_page():
    record = json.loads((FOLDER / "config.json").read_text())
    return record["training_shares"]


def assert_all_of_it(scalars):
    """Scalars, steps and values by name, are the run's."""
    expected = kept_losses() | {
        f"vote_share/scale_{n}": [((n + 1) * NITER - 1, share)] for n, share in enumerate(shares_on_page())
    }
    assert set(scalars) == set(expected)
    for name, rows in expected.items():
        assert [step for step, _ in scalars[name]] == [step for step, _ in rows]
        assert [value for _, value in scalars[name]] == pytest.approx([value for _, value in rows], rel=1e-5)


def read_events():
    """The scalars and the pictures in the event files of the run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(FOLDER / "log"), size_guidance={"scalars": 0, "images": 0}).Reload()
    tags = events.Tags()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    return scalars, {tag: events.Images(tag) for tag in tags["images"]}


def test_tensorboard_gets_what_metrics_csv_has_and_overwrite_knows_its_files(workspace):
    pytest.importorskip("tensorboard")
    assert main_train.main([*TRAIN, "--log", "tensorboard", "tensorboard"]) == 0
    assert len(list((FOLDER / "log").iterdir())) == 1
    scalars, images = read_events()
    assert_all_of_it(scalars)
    model = load("photo", runtime=RuntimeConfig(not_cuda=True, precision="float32"))
    (event,) = images["samples/scale_1"]
    assert event.step == 2 * NITER - 1
    (workspace / "sample.png").write_bytes(event.encoded_image_string)
    assert np.array_equal(np.asarray(Image.open("sample.png")), picture_row(model.pyramid, model.training_images, 0))
    assert set(images) == {"samples/scale_0", "samples/scale_1"}
    logged = snapshot(FOLDER)
    assert main_train.main([*TRAIN, "--overwrite"]) == 0
    without = snapshot(FOLDER)
    assert [name for name in set(logged) - set(without) if not name.startswith("log")] == []
    assert [name for name in without if name != "train.html" and logged[name] != without[name]] == []
    (FOLDER / "log").mkdir()
    (FOLDER / "log" / "mine.txt").write_text("mine")
    assert main_train.main([*TRAIN, "--overwrite"]) == 2


def test_a_resumed_training_says_every_step_once(workspace, monkeypatch):
    pytest.importorskip("tensorboard")
    with interrupted(monkeypatch, *(1, 1)):
        assert main_train.main([*TRAIN, "--log", "tensorboard"]) == 130
    assert len(read_events()[0]["d_real"]) == NITER + 2
    assert main_train.main([*TRAIN, "--log", "tensorboard", "--resume"]) == 0
    scalars, images = read_events()
    assert_all_of_it(scalars)
    assert [len(events) for events in images.values()] == [1, 1]


def test_mlflow_gets_what_metrics_csv_has(workspace):
    mlflow = pytest.importorskip("mlflow")
    assert main_train.main([*TRAIN, "--log", "mlflow"]) == 0
    client = mlflow.MlflowClient()
    (run,) = client.search_runs(["0"])
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    assert_all_of_it({name: sorted((m.step, m.value) for m in history) for name, history in histories.items()})
    assert (run.info.run_name, run.info.status) == ("photo", "FINISHED")
    assert run.data.params["training.niter"] == f"{NITER}"
    found = [file.path for file in client.list_artifacts(run.info.run_id, "samples")]
    assert found == ["samples/scale_0.png", "samples/scale_1.png"]


def records_of(path):
    """The records in a file of wandb: blocks of 32 KiB, in which parts of records follow a header of 7 bytes each."""
    data, place, record = path.read_bytes(), 7, b""
    while place < len(data):
        left = -place % 32768 or 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb_gets_what_metrics_csv_has_without_a_network(workspace):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    assert main_train.main([*TRAIN, "--log", "wandb"]) == 0
    (path,) = Path("wandb").glob("offline-run-*/*.wandb")
    scalars, configs = {}, ""
    for record in map(Record.FromString, records_of(path)):
        configs += str(record.run.config)
        row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for name in {*row} - {"step"}:
            if isinstance(row[name], float) and not name.startswith("_"):
                scalars.setdefault(name, []).append((row["step"], row[name]))
    assert_all_of_it(scalars)
    assert "manualSeed" in configs
    assert len(list(Path("wandb").glob("offline-run-*/files/media/images/samples/scale_*.png"))) == SCALES
    assert main_train.main([*TRAIN, "--overwrite"]) == 0
    assert path.exists()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("extra", [[], ["--dry_run"], ["--overwrite"]])
def test_a_library_that_is_absent_is_named_before_anything_happens(workspace, monkeypatch, capsys, name, extra):
    monkeypatch.setattr(logs, "find_spec", lambda module: None)
    before = snapshot()
    assert main_train.main([*TRAIN, "--log", name, *extra]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("loading torch")]
    assert lines == [f"error: --log {name}: {name} is not installed; pip install {name}, or leave it out"]
    assert snapshot() == before


def test_a_folder_is_no_library(tmp_path, monkeypatch):
    (tmp_path / "hta_no_library").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    check_installed(["json"])
    with pytest.raises(UserError, match="pip install hta_no_library"):
        check_installed(["json", "hta_no_library"])


@pytest.mark.parametrize("arguments", [["--log", "tensorboard", "paper"], ["--log"]])
def test_other_names_are_refused(workspace, capsys, arguments):
    assert main_train.main([*TRAIN, *arguments]) == 2
    assert "--log" in capsys.readouterr().err
    assert not Path("TrainedModels").exists()


def test_nothing_is_imported_without_the_flag(workspace):
    code = "import sys, main_train; status = main_train.main(sys.argv[1:]); print('MODULES', status, *sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code, *TRAIN, "--niter", "1"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    status, *modules = result.stdout.splitlines()[-1].removeprefix("MODULES ").split()
    assert status == "0"
    assert "hta.training.logs" in modules
    assert {*NAMES, "torch.utils.tensorboard"} & set(modules) == set()


def logger(heard, name, broken=()):
    def hear(part):
        def call(*arguments):
            if part in broken:
                raise ValueError(f"{name} is broken")
            heard.append((name, part, *arguments))

        return call

    return Logger(*map(hear, Logger._fields))


def test_a_log_that_fails_is_said_once_and_the_others_go_on(tmp_path, monkeypatch, caplog):
    heard = []
    adapters = {"wandb": lambda *_: logger(heard, "wandb", ["scalars"]), "mlflow": lambda *_: logger(heard, "mlflow")}
    monkeypatch.setattr(logs, "_ADAPTERS", adapters)
    with caplog.at_level(logging.WARNING, "hta"), opened(["wandb", "mlflow"], tmp_path, Config()) as log:
        log.scalars(0, {"a": 1.0})
        log.scalars(1, {"a": 2.0})
    assert heard == [
        ("mlflow", "scalars", 0, {"a": 1.0}),
        ("mlflow", "scalars", 1, {"a": 2.0}),
        ("mlflow", "close", False),
    ]
    assert caplog.messages == ["--log wandb: failed and gets no more of this training (wandb is broken)"]


def test_a_log_that_cannot_start_ends_the_run_and_the_others(tmp_path, monkeypatch):
    heard = []

    def broken(*_):
        raise ValueError("no key\nhere")

    monkeypatch.setattr(logs, "_ADAPTERS", {"mlflow": lambda *_: logger(heard, "mlflow"), "wandb": broken})
    said = r"--log wandb: cannot be started \(no key.*--resume"
    with pytest.raises(RunError, match=said), opened(["mlflow", "wandb"], tmp_path, Config()):
        raise AssertionError
    assert heard == [("mlflow", "close", True)]
