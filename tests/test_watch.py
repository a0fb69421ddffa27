"""The watched folder: every file that arrives is answered once, whatever it is and however slowly it comes."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hta
import main_eval
from hta import watch
from hta.config import default_config
from tests.helpers import enter_copy, picture, save, snapshot

ROOT = Path(__file__).parents[1]
QUICK = ["--threads", "1", "--precision", "float32", "--not_cuda"]
TINY = dict(min_size=14, max_size=22, nfc=4, niter=3, threads=1, precision="float32", not_cuda=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of either recipe and an empty inbox; only to be read."""
    root = tmp_path_factory.mktemp("trained")
    for name, recipe in (("wall", None), ("votes", "paper")):
        config = default_config(**TINY, recipe=recipe)
        hta.train(picture(), config, folder=root / "TrainedModels" / name, num_samples=0)
    (root / "inbox").mkdir()
    return root


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    yield enter_copy(trained, tmp_path, monkeypatch)
    signal.signal(signal.SIGTERM, before)


def run(capsys, *options, model="wall", patience="0"):
    """Watch until all files are answered; returns the answers by path and what stderr says."""
    capsys.readouterr()
    words = ["--once", "--interval", "0.01", "--patience", patience, *QUICK, *map(str, options)]
    assert watch.main(["--input_name", model, "--dir", "inbox", *words]) == 0
    out, err = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    assert len({answer["path"] for answer in answers}) == len(answers)
    return {answer.pop("path"): answer for answer in answers}, err


def encoded(pixels, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def command_of(*options):
    words = [sys.executable, "-m", "hta.watch", "--input_name", "wall", "--dir", "inbox", *QUICK, *options]
    return {"args": words, "env": os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}


class Watching:
    """`python -m hta.watch` in a process of its own, whose lines are read as they come."""

    def __init__(self, *options):
        self.process = subprocess.Popen(**command_of(*options), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.lines, self.said = [], []
        streams = (self.process.stdout, self.lines), (self.process.stderr, self.said)
        self._readers = [threading.Thread(target=lambda a, b: b.extend(iter(a.readline, b"")), args=s) for s in streams]

    def __enter__(self):
        for reader in self._readers:
            reader.start()
        self.wait(lambda: any(b"ready" in line for line in self.said))
        return self

    def wait(self, done):
        end = time.monotonic() + 120
        while not done():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, (len(self.lines), self.said)
            time.sleep(0.02)

    def end(self, how):
        self.process.send_signal(how)
        assert self.process.wait(60) == 0
        for reader in self._readers:
            reader.join()
        return [json.loads(line) for line in self.lines], self.said[-1].decode()

    def __exit__(self, *error):
        self.process.kill()
        for reader in self._readers:
            reader.join()
        self.process.stdout.close()
        self.process.stderr.close()


# --- a process --------------------------------------------------------------------------------------------------------


def test_each_of_500_files_is_answered_once_the_broken_and_the_half_written_too(place):
    inbox, kinds = place / "inbox", {"png": "PNG", "jpg": "JPEG", "BMP": "BMP"}
    whole = {end: [encoded(picture(i), kind) for i in range(20)] for end, kind in kinds.items()}
    files = {}
    for i in range(500):
        end = list(kinds)[i % 3]
        folder = ("", "left/", "right/deep/")[i % 5 % 3]
        files[f"{folder}{i:03d}.{end}"] = whole[end][i % 20]
    names = list(files)
    halves, broken = names[7:500:100], names[40:500:50]
    assert (len(halves), len(broken)) == (5, 10)
    for name in names:
        (inbox / name).parent.mkdir(parents=True, exist_ok=True)
    with Watching("--patience", "4") as watching:
        for number, name in enumerate(n for n in names if n not in halves):
            data = files[name]
            (inbox / f"{name}.part").write_bytes(data[: len(data) // 3] if name in broken else data)
            (inbox / f"{name}.part").rename(inbox / name)
            if number == 250:  # the others come while these are scored
                watching.wait(lambda: len(watching.lines) > 50)
        watching.wait(lambda: len(watching.lines) >= 485)
        for name in halves:
            (inbox / name).write_bytes(files[name][: len(files[name]) // 2])
        time.sleep(0.7)  # the halves are looked at, and read, several times
        for name in halves:
            with (inbox / name).open("ab") as stream:
                stream.write(files[name][len(files[name]) // 2 :])
        watching.wait(lambda: len(watching.lines) >= 500)
        time.sleep(0.5)  # for answers that should not come
        answers, summary = watching.end(signal.SIGINT)
    assert Counter(answer["path"] for answer in answers) == Counter(names)
    assert {answer["path"] for answer in answers if "error" in answer} == {*broken}
    assert all(set(a) == {"path", "error", "milliseconds"} for a in answers if "error" in a)
    decisions = Counter(answer.get("decision") for answer in answers)
    text = f"500 images: {decisions['pass']} accepted, {decisions['reject']} rejected, 10 could not be read\n"
    assert summary == text
    overlays = {name.removesuffix(".jpg") for name, data in snapshot("inbox_overlays").items() if data is not None}
    assert overlays == {*names} - {*broken}
    # What came in halves has the score of its picture.
    scores = {answer["path"]: answer.get("score") for answer in answers}
    for name in halves:
        twins = [n for n in names if files[n] == files[name] and n not in halves and n not in broken]
        assert twins
        assert {scores[twin] for twin in twins} == {scores[name]}


def test_new_files_alone_and_each_again_when_it_changes(place):
    save(place / "inbox" / "old.png", picture(1))
    save(place / "inbox" / "changed.png", picture(2))
    with Watching("--new_only", "--no_overlays") as watching:
        save(place / "inbox" / "changed.png", picture(3))
        watching.wait(lambda: len(watching.lines) == 1)
        save(place / "inbox" / "changed.png", picture(4))
        watching.wait(lambda: len(watching.lines) == 2)
        answers, summary = watching.end(signal.SIGTERM)
    assert [answer["path"] for answer in answers] == ["changed.png"] * 2
    assert answers[0]["score"] != answers[1]["score"]
    assert summary.startswith("2 images: ")
    assert not (place / "inbox_overlays").exists()


def test_a_reader_may_leave(place):
    save(place / "inbox" / "a.png", picture(1))
    with subprocess.Popen(**command_of(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read().splitlines()
        assert said == [b"loading torch ...", b"ready: watching inbox"]
    assert process.returncode == 141


# --- what is answered -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("wall", []),
        ("wall", ["--threshold", "0.3", "--no_frame_check"]),
        ("wall", ["--good_dir", "good", "--target_fpr", "0.2"]),
        ("wall", ["--score", "paper"]),
        ("votes", ["--score", "combined"]),
        ("votes", []),
        ("votes", ["--aggregate", "calibrated", "--fraction_defect", "0.3"]),
    ],
)
@pytest.mark.parametrize("maps", [True, False])
def test_the_answers_are_those_of_main_eval(place, capsys, model, options, maps):
    for i in range(4):
        save(place / "inbox" / f"{i}.png", picture(i))
        save(place / "good" / f"{i}.png", picture(10 + i))
    save(place / "inbox" / "blank.png", np.full((20, 24, 3), 90, np.uint8))
    found, _ = run(capsys, *options, *([] if maps else ["--no_overlays"]), model=model)
    without = [] if maps else ["--no_maps"]
    words = ["--input_name", model, "--test_dir", "inbox", "--out", "out", "--batch_size", "1", *QUICK, *options]
    assert main_eval.main([*words, *without]) == 0
    with Path("out/scores.csv").open(encoding="utf-8") as stream:
        rows = {row["path"]: row for row in csv.DictReader(stream)}
    assert list(found) == sorted(found, key=lambda name: (Path("inbox", name).stat().st_mtime_ns, name))
    assert {*found} == {*rows}
    for name, answer in found.items():
        row = rows[name]
        assert answer["score"] == float(row["anomaly_score"])
        assert (answer["decision"], answer["fault"] or "") == (row["decision"], row["fault"])
        assert answer["milliseconds"] > 0
    if "--no_frame_check" not in options:
        assert (found["blank.png"]["decision"], found["blank.png"]["fault"]) == ("reject", "nearly uniform")


def test_names_may_be_anything_and_what_is_no_image_or_hidden_is_left_out(place, capsys):
    inbox = os.fsencode(place / "inbox")
    data = encoded(picture(1))
    for folder in (b"sub", b".hidden"):
        os.mkdir(inbox + b"/" + folder)  # noqa: PTH102
    wanted = [b"=1+1.png", b"\xff\xfe.PNG", b"a\nb\x1b[2J.png", "\u0444\u00e9.png".encode(), b"sub/x.png"]
    for name in [*wanted, b".x.png", b"y.png.part", b"y.png.tmp", b"note.txt", b".hidden/z.png", b"sub/._x.png"]:
        with open(inbox + b"/" + name, "wb") as stream:  # noqa: PTH123
            stream.write(data)
    (place / "inbox" / "link.png").symlink_to("nowhere")
    (place / "inbox" / "sub" / "up").symlink_to("..")
    found, err = run(capsys)
    assert {os.fsencode(name) for name in found} == {*wanted}
    assert len({answer["score"] for answer in found.values()}) == 1
    assert err.splitlines()[-1].startswith("5 images: ")
    assert sum(data is not None for data in snapshot("inbox_overlays").values()) == 5


def test_a_broken_file_gets_an_error_once_its_time_is_up(place, capsys):
    (place / "inbox" / "half.png").write_bytes(encoded(picture(1))[:-30])
    (place / "inbox" / "empty.jpg").touch()
    start = time.monotonic()
    found, err = run(capsys, patience="0.5")
    assert time.monotonic() - start > 0.5
    assert "the file is empty" in found["empty.jpg"]["error"]
    assert "inbox/half.png: damaged" in found["half.png"]["error"]
    assert err.splitlines()[-1] == "2 images: 0 accepted, 0 rejected, 2 could not be read"
    assert not (place / "inbox_overlays").exists()


def test_a_file_that_changes_while_it_is_read_is_answered_as_it_is_then(place, capsys, monkeypatch):
    path, judge, calls = place / "inbox" / "a.png", watch.Judge.__call__, []

    def slowly(self, source, **options):
        answer = judge(self, source, **options)
        if source == Path("inbox/a.png"):
            calls.append(source)
            if len(calls) == 1:
                save(path, picture(5))
        return answer

    save(path, picture(5))
    expected, _ = run(capsys)
    save(path, picture(1))
    monkeypatch.setattr(watch.Judge, "__call__", slowly)
    found, err = run(capsys)
    assert len(calls) == 2
    assert found["a.png"]["score"] == expected["a.png"]["score"]
    assert err.splitlines()[-1].startswith("1 images: ")


# --- overlays ---------------------------------------------------------------------------------------------------------


def test_an_overlay_replaces_only_another_overlay(place, capsys):
    for i in range(3):
        save(place / "inbox" / f"{i}.png", picture(i))
    foreign = encoded(picture(9), "JPEG")
    place.joinpath("seen").mkdir()
    place.joinpath("seen", "0.png.jpg").write_bytes(foreign)
    _, err = run(capsys, "--overlays", "seen")
    first = snapshot("seen")
    assert {*first} == {f"{i}.png.jpg" for i in range(3)}
    assert first["0.png.jpg"] == foreign
    assert "0.png.jpg: exists, and hta.watch did not write it" in err
    with Image.open("seen/1.png.jpg") as overlay:
        assert overlay.size == (307, 256)
    save(place / "inbox" / "1.png", picture(7))
    run(capsys, "--overlays", "seen")
    second = snapshot("seen")
    assert [name for name in first if first[name] != second[name]] == ["1.png.jpg"]


def test_what_an_overlay_shows_is_what_main_eval_shows(place, capsys):
    save(place / "inbox" / "a.png", picture(3))
    run(capsys)
    words = ["--input_name", "wall", "--test_dir", "inbox", "--out", "out", *QUICK]
    assert main_eval.main(words) == 0
    with Image.open("inbox_overlays/a.png.jpg") as ours, Image.open("out/overlays/a.png.png") as theirs:
        difference = np.asarray(ours).astype(float) - np.asarray(theirs)
    assert np.abs(difference).mean() < 3  # JPEG


def test_a_place_where_no_overlay_can_be_written_costs_no_answer(place, capsys):
    save(place / "inbox" / "a.png", picture(3))
    place.joinpath("taken").write_text("a file")
    found, err = run(capsys, "--overlays", "taken")
    assert set(found) == {"a.png"}
    assert "no overlay: " in err


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--overlays", "inbox/overlays"], "--overlays"),
        (["--overlays", "."], "--overlays"),
        (["--dir", "nowhere"], "--dir nowhere: no such folder"),
        (["--dir", "inbox/a.png"], "--dir inbox/a.png: no such folder"),
        (["--dir", ""], "--dir is missing"),
        (["--input_name", "roof"], "roof"),
        (["--interval", "0"], "--interval 0"),
        (["--patience", "-1"], "--patience -1"),
        (["--aggregate", "minmax", "--score", "paper"], "--aggregate minmax"),
        (["--test_dir", "inbox"], "unrecognized arguments: --test_dir"),
        (["--batch_size", "4"], "unrecognized arguments: --batch_size"),
        (["--good_dir", "inbox"], "--target_fpr 0.05 needs at least 19"),
    ],
)
def test_mistakes_are_told_in_one_line_and_nothing_is_written(place, capsys, options, words):
    save(place / "inbox" / "a.png", picture(3))
    before = snapshot()
    assert watch.main(["--input_name", "wall", "--dir", "inbox", *QUICK, "--once", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("error: ")
    assert words in err.splitlines()[-1]
    assert snapshot() == before


def test_help_does_without_torch():
    command = [sys.executable, "-X", "importtime", "-m", "hta.watch", "--help"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--dir" in found.stdout
    assert " torch\n" not in found.stderr


# --- the inbox --------------------------------------------------------------------------------------------------------


def looks(inbox):
    """The names that two looks find ready, and which are then answered."""
    ready = []
    for _ in range(2):
        time.sleep(0.002)
        for arrival in inbox.look():
            arrival.answered = True
            ready.append(arrival.path.name)
    return ready


def test_a_file_is_ready_once_two_looks_agree(tmp_path):
    inbox, path = watch.Inbox(tmp_path), tmp_path / "a.png"
    for size in (0, 10, 20):
        path.write_bytes(b"x" * size)
        assert inbox.look() == []
    time.sleep(0.002)
    assert [arrival.path for arrival in inbox.look()] == [path]
    assert [arrival.path for arrival in inbox.look()] == [path]  # until it is answered
    assert looks(inbox) == ["a.png"]
    assert looks(inbox) == []
    os.utime(path, ns=(1, 1))
    assert looks(inbox) == ["a.png"]
    path.unlink()
    assert looks(inbox) == []
    path.write_bytes(b"y")
    assert looks(inbox) == ["a.png"]


def test_the_oldest_comes_first(tmp_path):
    for name, when in (("a.png", 3), ("b.png", 1), ("c.png", 2)):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, ns=(when, when))
    assert looks(watch.Inbox(tmp_path)) == ["b.png", "c.png", "a.png"]


def test_a_folder_that_is_away_for_a_while_is_not_answered_anew(tmp_path, caplog):
    folder = tmp_path / "share"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"x")
    inbox = watch.Inbox(folder)
    assert looks(inbox) == ["a.png"]
    folder.rename(tmp_path / "elsewhere")
    assert looks(inbox) == []
    (tmp_path / "elsewhere" / "b.png").write_bytes(b"x")
    (tmp_path / "elsewhere").rename(folder)
    assert looks(inbox) == ["b.png"]
    assert [record.getMessage() for record in caplog.records] == [f"cannot be opened for now: {folder}"]
