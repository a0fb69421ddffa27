"""Whatever stops a script, runs beside it or comes into its folders: what was there before is there or was replaced."""

import errno
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

import hta
import main_eval
import main_train
from hta import files, inputs, runs
from hta.config import default_config
from hta.data.folders import load_training_images
from hta.evaluation import results
from hta.model import find_model
from hta.models.storage import RunFolder
from hta.training import samples
from tests.fuzzing import TIMES
from tests.helpers import enter_copy, picture, save, snapshot

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="locks, links and signals of POSIX systems")

MACHINE = ["--threads", "1", "--precision", "float32", "--not_cuda"]
TINY = {"min_size": 19, "max_size": 22, "nfc": 2, "threads": 1, "precision": "float32", "not_cuda": True}
SCALES = ["--min_size", "19", "--max_size", "22", "--nfc", "2", "--num_samples", "1", "--checkpoint_every", "1"]
TRAIN = ["--input_name", "wall.png", *SCALES, *MACHINE]
WALL = Path("TrainedModels") / "wall"
KILLS, SEED = int(os.environ.get("HTA_TEST_KILLS", f"{6 * TIMES}")), int(os.environ.get("HTA_TEST_SEED", "0"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The model `wall`, its image and a folder of test images; only to be read."""
    root = tmp_path_factory.mktemp("trained")
    save(root / "wall.png", picture())
    hta.train(root / "wall.png", default_config(niter=1, **TINY), folder=root / WALL, num_samples=1)
    for name in ("good/0.png", "=cut/0.png", "'cut/0.png"):
        save(root / "parts" / name, picture(seed=1))
    return root


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    return enter_copy(trained, tmp_path, monkeypatch)


def evaluate(*arguments, out="out"):
    return main_eval.main(["--input_name", "wall", "--test_dir", "parts", "--out", out, *MACHINE, *arguments])


def last_line(capsys):
    return capsys.readouterr().err.splitlines()[-1]


def start(script, arguments):
    """Run a script in a copy of this process, with its messages in a file of its own; gives its number."""
    child = os.fork()
    if not child:
        code = 99  # of an exception, which must not go on in this copy
        try:
            with Path(f"messages.{os.getpid()}").open("w") as stream:
                sys.stdout = sys.stderr = stream
                code = script.main(arguments)
        finally:
            os._exit(code)
    return child


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def status(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tensors(folder):
    return {name: data for name, data in snapshot(folder).items() if name.startswith("scale_")}


def when(monkeypatch, owner, name, action):
    """Do something just before a function of the program is called."""
    function = getattr(owner, name)

    def called(*arguments, **options):
        action()
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, called)


# --- evaluations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_that_comes_into_the_results_meanwhile_survives_and_so_do_both_results(
    place, capsys, monkeypatch, overwrite
):
    if overwrite:
        assert evaluate() == 0
    before = snapshot()

    def come():
        Path("out/maps/mine").mkdir(parents=True)
        Path("out/maps/mine/notes.txt").write_text("mine")

    when(monkeypatch, results, "write_scores", come)
    assert evaluate(*["--overwrite"] * overwrite) == 1
    assert last_line(capsys).startswith("error: out: ")
    after = snapshot()
    assert {name: after[name] for name in before} == before
    assert after["out/maps/mine/notes.txt"] == b"mine"
    assert {"out-1/scores.csv", "out-1/report.html", "out-1/maps/good/0.png.png"} < after.keys()
    assert not [name for name in after if name.startswith(".")]


@pytest.mark.parametrize("arguments", [[], ["--overwrite"]])
def test_a_second_evaluation_into_a_folder_is_refused_before_it_begins(place, capsys, monkeypatch, arguments):
    outcomes = []

    def again():
        monkeypatch.undo()
        monkeypatch.chdir(place)
        when(monkeypatch, inputs, "readable", lambda: pytest.fail("it has begun"))
        outcomes.extend([evaluate(*arguments), last_line(capsys)])

    when(monkeypatch, results, "write_scores", again)
    assert evaluate(*arguments) == 0
    assert outcomes == [2, "error: out: another process is writing there; wait, or choose another folder"]


def test_overwrite_takes_results_and_nothing_else(place, capsys):
    assert evaluate() == 0
    Path("out/.DS_Store").write_text("of a desktop")
    assert evaluate("--overwrite") == 0  # names that a spreadsheet takes for formulas included
    for name in ("maps/notes.txt", "maps/good/1.png", "overlays/good/0.png.jpeg", "maps/good/mine/", "overlays/x.png/"):
        mine = Path("out") / name
        mine.mkdir() if name.endswith("/") else mine.write_text("mine")
        before = snapshot()
        assert evaluate("--overwrite") == 2
        assert f"holds {name.rstrip('/')}, which is not a result" in last_line(capsys)
        assert snapshot() == before
        mine.rmdir() if name.endswith("/") else mine.unlink()
    shutil.move("out/maps/good", "mine")
    for name, target in (("maps/good", "../../mine"), ("link.csv", "wall.png"), ("overlays/dangling", "nowhere")):
        Path("out", name).symlink_to(target)
        assert evaluate("--overwrite") == 2
        assert f"holds {name}, which is not a result" in last_line(capsys)
        Path("out", name).unlink()
    Path("out/scores.csv").unlink()  # nothing tells whose the maps are
    assert evaluate("--overwrite") == 2
    assert len(snapshot("mine")) == 1


def test_results_of_a_model_do_not_leave_it_by_a_link(place, capsys):
    Path("mine").mkdir()
    arguments = ["--input_name", "wall", "--test_dir", "parts", *MACHINE]
    for link in (WALL / "results", WALL / "results" / "parts"):
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(place / "mine")
        for more in ([], ["--overwrite"]):
            assert main_eval.main([*arguments, *more]) == 2
            assert last_line(capsys).startswith(f"error: {link}: is a link")
        assert main_eval.main([*arguments, "--out", str(link / "given")]) == 0  # asked for in so many words
        shutil.rmtree("mine/given")
        link.unlink()
    assert list(Path("mine").iterdir()) == []


# --- trainings --------------------------------------------------------------------------------------------------------


@pytest.fixture
def begun(place):
    """An unfinished run in place of the model."""
    shutil.rmtree(WALL)
    images = load_training_images([Path("wall.png")])
    with runs.new_run(RunFolder(WALL), runs.prepare(images, ["wall.png"], default_config(niter=1, **TINY))):
        pass
    Path("mine").mkdir()
    Path("mine/only.txt").write_text("copy")
    return place


@pytest.mark.parametrize("name", ["samples", ".lock", "samples/best.png", "samples/keep/"])
def test_a_resumed_run_follows_no_link_and_deletes_no_file(begun, capsys, name):
    own = WALL / name
    own.parent.mkdir(exist_ok=True)
    if name.endswith("/"):
        own.mkdir()
    elif name == "samples/best.png":
        own.write_text("mine")
    else:
        own.symlink_to(begun / ("mine" if name == "samples" else "mine/only.txt"))
    before = snapshot()
    assert main_train.main([*TRAIN, "--resume"]) == 2
    assert str(own) in last_line(capsys).replace("contains ", f"{WALL}/").replace("wall: wall", "wall")
    assert snapshot() == before
    own.rmdir() if name.endswith("/") else own.unlink()
    assert main_train.main([*TRAIN, "--resume"]) == 0


@pytest.mark.parametrize("existed", [False, True])
def test_a_file_that_comes_into_the_samples_meanwhile_survives_and_the_run_can_be_finished(
    begun, capsys, monkeypatch, existed
):
    if existed:
        (WALL / "samples").mkdir()

    def come():
        (WALL / "samples").mkdir(exist_ok=True)
        (WALL / "samples" / "mine.txt").write_text("mine")

    when(monkeypatch, samples, "write_png", come)
    assert main_train.main([*TRAIN, "--resume"]) == 1
    assert "samples: cannot be written" in last_line(capsys)
    assert (WALL / "samples" / "mine.txt").read_text() == "mine"
    monkeypatch.undo()
    monkeypatch.chdir(begun)
    (WALL / "samples" / "mine.txt").unlink()
    assert main_train.main([*TRAIN, "--resume"]) == 0


@pytest.mark.parametrize("command", ["evaluate", "resume", "train", "dry_run", "other"])
def test_a_model_whose_replacement_was_killed_midway_is_back(place, capsys, caplog, command):
    model = snapshot(WALL)
    with pytest.MonkeyPatch.context() as patch:  # it is asked once the old model has made room, too
        patch.setattr(runs, "foreign_files", lambda path: [] if path == WALL else die())
        assert status(start(main_train, [*TRAIN, "--niter", "2", "--overwrite"])) == -signal.SIGKILL
    assert not WALL.exists()
    words = "wall: put back; a process that was replacing it was killed"
    if command == "evaluate":
        assert evaluate() == 0
    elif command == "other":
        assert main_train.main([*TRAIN, "--niter", "1", "--name", "other"]) == 0
    else:
        options = {"resume": ["--resume"], "train": [], "dry_run": ["--dry_run"]}[command]
        assert main_train.main([*TRAIN, *options]) == 2
        assert ("is finished" if command == "resume" else "contains a trained model") in last_line(capsys)
    assert words in caplog.text
    assert {name: data for name, data in snapshot(WALL).items() if name != ".lock"} == model
    assert not list(WALL.parent.glob(".*"))


def test_a_file_system_without_locks_is_said_and_used(place, monkeypatch, caplog):
    def impossible(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    files._say_no_locks.cache_clear()
    monkeypatch.setattr("fcntl.flock", impossible)
    assert main_train.main([*TRAIN, "--niter", "1", "--overwrite"]) == 0
    assert evaluate() == 0
    assert caplog.text.count("cannot lock files (Function not implemented)") == 1
    assert not [name for name in snapshot() if Path(name).name.startswith(".")]


# --- kills and races --------------------------------------------------------------------------------------------------


def test_models_and_results_survive_kills_at_any_moment(place):
    """The folder holds the old model or a new run, which goes on to the same bits; results are whole or not there."""
    draw, new = random.Random(SEED), [*TRAIN, "--niter", "2"]
    begun = time.monotonic()
    assert status(start(main_train, [*new, "--name", "whole"])) == 0
    seconds = time.monotonic() - begun
    models = [tensors(WALL), tensors(WALL.parent / "whole")]
    for number in range(KILLS):
        child = start(main_train, [*new, "--resume" if number % 3 else "--overwrite"])
        time.sleep(draw.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        status(child)
        folder = find_model("wall")
        assert folder.exists, number
        assert not folder.finished or tensors(WALL) in models, number
        assert not list(WALL.parent.glob(".*")), number
    assert status(start(main_train, [*new, "--overwrite" if folder.finished else "--resume"])) == 0
    assert tensors(WALL) == models[1]

    into = ["--input_name", "whole", "--test_dir", "parts", "--out", "out", *MACHINE, "--overwrite"]
    begun = time.monotonic()
    assert status(start(main_eval, into)) == 0
    seconds = time.monotonic() - begun
    files, scores = snapshot("out").keys(), Path("out/scores.csv").read_bytes()
    for number in range(KILLS):
        child = start(main_eval, into)
        time.sleep(draw.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        status(child)
        results.check_target(Path("out"), None, overwrite=True)
        assert (snapshot("out").keys(), Path("out/scores.csv").read_bytes()) == (files, scores), number
        assert not list(place.glob(".*.part")), number
    assert status(start(main_eval, into)) == 0
    assert not [name for name in snapshot() if Path(name).name.startswith(".")]


@pytest.mark.parametrize("overwrite", [False, True])
def test_of_several_evaluations_into_a_folder_one_wins_and_the_others_are_refused(place, overwrite):
    if overwrite:
        assert evaluate() == 0
    into = ["--input_name", "wall", "--test_dir", "parts", "--out", "out", *MACHINE, *["--overwrite"] * overwrite]
    children = [start(main_eval, into) for _ in range(3)]
    codes = [status(child) for child in children]
    said = [Path(f"messages.{child}").read_text() for child in children]
    if overwrite:  # one that starts after another has ended replaces its results
        assert 0 in codes
        assert set(codes) <= {0, 2}
    else:
        assert sorted(codes) == [0, 2, 2], said
    assert ["error: " in text for text in said] == [code == 2 for code in codes], said
    assert [path.name for path in place.glob("out*")] == ["out"]
    assert not list(place.glob(".*"))
