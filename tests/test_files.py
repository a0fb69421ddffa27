"""Files and folders that appear whole or not at all, whatever stops the writer."""

import contextlib
import errno
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from hta import files
from hta.errors import RunError, UserError
from hta.files import locked, new_folder, recover, sweep, write_atomically, write_figure

posix = pytest.mark.skipif(sys.platform == "win32", reason="locks and signals of POSIX systems")


def fill(path, text="new", meanwhile=lambda: None, **options):
    with new_folder(path, **options) as fresh:
        (fresh / "a.txt").write_text(text)
        meanwhile()


def nothing(_):
    """What must not be lost in a folder that may be replaced."""
    return []


def content(folder):
    return {path.relative_to(folder).as_posix(): path.is_file() and path.read_text() for path in folder.rglob("*")}


def test_a_folder_appears_whole_and_leaves_nothing_beside_it(tmp_path):
    fill(tmp_path / "deep" / "out")
    fill(tmp_path / "deep" / "out", "newer", replace=nothing)
    assert content(tmp_path) == {"deep": False, "deep/out": False, "deep/out/a.txt": "newer"}
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "deep" / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_the_old_folder_is_back_where_the_swap_is_stopped_midway(tmp_path, monkeypatch, error):
    fill(tmp_path / "out", "old")
    rename, calls = Path.rename, []

    def stopped(self, target):
        calls.append(self.name)
        if len(calls) == 2:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else RunError):
        fill(tmp_path / "out", replace=nothing)
    assert calls[:2] == ["out", "new"]
    assert content(tmp_path) == {"out": False, "out/a.txt": "old"}


def test_an_old_folder_that_cannot_go_back_is_kept(tmp_path, monkeypatch):
    fill(tmp_path / "out", "old")
    rename = Path.rename

    def only_away(self, target):
        if self.parent != tmp_path:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", only_away)
    with pytest.raises(RunError):
        fill(tmp_path / "out", replace=nothing)
    monkeypatch.undo()
    assert [path.read_text() for path in tmp_path.glob(".*/old/out/a.txt")] == ["old"]
    fill(tmp_path / "another")
    assert content(tmp_path) == {"out": False, "out/a.txt": "old", "another": False, "another/a.txt": "new"}


def test_a_link_to_a_folder_stays_and_its_folder_is_replaced(tmp_path):
    fill(tmp_path / "real", "old")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "out").symlink_to("../real", target_is_directory=True)
    fill(tmp_path / "links" / "out", replace=nothing)
    assert (tmp_path / "links" / "out").is_symlink()
    assert (tmp_path / "real" / "a.txt").read_text() == "new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "links", "out", "real"]


def test_a_name_as_long_as_names_may_be(tmp_path):
    fill(tmp_path / ("x" * 255))
    write_atomically(tmp_path / ("y" * 255), b"new")
    assert {path.name[0] for path in tmp_path.iterdir()} == {"x", "y"}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    for data in (b"old", b"new"):
        write_atomically(tmp_path / "a.bin", data)
    (tmp_path / "folder").mkdir()
    for path in ("missing/a.bin", "folder"):
        with pytest.raises(RunError, match="cannot be written"):
            write_atomically(tmp_path / path, b"x")
    assert (tmp_path / "a.bin").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "folder"]


def test_what_a_process_of_the_same_number_left_is_in_nobodys_way(tmp_path):
    """In a container, where numbers of processes are small and come again."""
    left = [tmp_path / f".{name}.{os.getpid()}.part" for name in ("out", "a.bin")]
    for path in left:
        path.mkdir()
        (path / "work").write_text("of another")
    fill(tmp_path / "out")
    fill(tmp_path / "out", "newer", replace=nothing)
    write_atomically(tmp_path / "a.bin", b"new")
    assert all((path / "work").read_text() == "of another" for path in left)


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def replace_and_die(path, moment):
    """Let a process be killed while it replaces a folder: within the block, between the two renames, or after them."""
    child = os.fork()
    if not child:
        if moment == "end":
            shutil.rmtree = die
        look = die if moment == "swap" else nothing  # it looks into the old folder once that has made room
        with contextlib.suppress(BaseException), new_folder(path, replace=look) as fresh:
            (fresh / "half").write_text("half")
            if moment == "block":
                die()
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


@posix
def test_the_leftover_of_a_killed_process_goes_and_the_work_of_a_living_one_stays(tmp_path):
    replace_and_die(tmp_path / "out", "block")
    assert len(list(tmp_path.glob(".*.part/new/half"))) == 1
    with new_folder(tmp_path / "living") as fresh:
        (fresh / "a.txt").write_text("new")
        fill(tmp_path / "later")
        with pytest.raises(UserError, match="living: another process is writing there; wait, or choose"):
            fill(tmp_path / "living")
        assert len(list(tmp_path.glob(".*.part"))) == 1
    fill(tmp_path / "out")  # the dead one is in nobody's way
    assert sorted(path.name for path in tmp_path.iterdir()) == ["later", "living", "out"]


@posix
def test_a_folder_is_put_back_where_its_replacer_was_killed_between_the_renames(tmp_path, caplog):
    for taken in (False, True):
        fill(tmp_path / "out", "old")
        replace_and_die(tmp_path / "out", "swap")
        assert not (tmp_path / "out").exists()
        if taken:
            (tmp_path / "out").write_text("of another")
        recover(tmp_path / "out")
        back = "out-1" if taken else "out"
        assert content(tmp_path) == {back: False, f"{back}/a.txt": "old"} | ({"out": "of another"} if taken else {})
        assert f"{back}: put back" in caplog.text
        shutil.rmtree(tmp_path / back)


@posix
def test_a_folder_that_was_replaced_does_not_come_back(tmp_path):
    fill(tmp_path / "out", "old")
    replace_and_die(tmp_path / "out", "end")
    shutil.rmtree(tmp_path / "out")
    recover(tmp_path / "out")
    assert content(tmp_path) == {}


@pytest.mark.parametrize("keep", [False, True])
def test_a_place_that_changes_in_the_meantime_is_left_alone(tmp_path, keep):
    """Taken by another, replaced by another, and with a file of the user's in it."""
    for number, replace in enumerate((None, nothing, lambda folder: [path.name for path in folder.glob("mine")])):
        out = tmp_path / str(number) / "out"
        out.parent.mkdir()
        if replace:
            fill(out, "old")
        words = r"out: .*out-1$" if keep else "out: cannot be written .* see what is there"

        def change(out=out, is_other=replace is nothing):
            if is_other:
                shutil.rmtree(out)
            out.mkdir(exist_ok=True)
            (out / "mine").write_text("mine")

        with pytest.raises(RunError, match=words):
            fill(out, "new", change, replace=replace, keep=keep)
        found = content(out.parent)
        assert found.pop("out/a.txt", None) == ("old" if number == 2 else None)
        kept = {"out-1": False, "out-1/a.txt": "new"} if keep else {}
        assert found == {"out": False, "out/mine": "mine"} | kept


@posix
def test_a_link_that_comes_in_the_meantime_is_not_followed(tmp_path):
    fill(tmp_path / "mine", "mine")

    def link():
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "out").symlink_to("mine")

    for replace in (None, nothing):
        if replace:
            fill(tmp_path / "out")
        with pytest.raises(RunError):
            fill(tmp_path / "out", "new", link, replace=replace)
        assert (tmp_path / "out").is_symlink()
        (tmp_path / "out").unlink()
    assert content(tmp_path) == {"mine": False, "mine/a.txt": "mine"}


def test_a_place_that_cannot_be_written_is_said_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    for place, words in (
        ("/", "mounted here"),
        (tmp_path / "file" / "out", "see what is there"),
        ("file", "it exists"),
    ):
        with pytest.raises((UserError, RunError), match=words), new_folder(tmp_path / place):
            pytest.fail("there was nothing to fill")
    assert content(tmp_path) == {"file": ""}


@posix
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.EIO, errno.EBADF])
def test_a_file_system_without_locks_is_said_once_and_worked_on(tmp_path, monkeypatch, caplog, code):
    def impossible(*_):
        raise OSError(code, os.strerror(code))

    files._say_no_locks.cache_clear()
    monkeypatch.setattr("fcntl.flock", impossible)
    with pytest.raises(RunError, match="out-1"):  # nothing says that both are at work, and yet neither harms the other
        fill(tmp_path / "out", "slow", lambda: fill(tmp_path / "out", "fast"), keep=True)
    assert (tmp_path / "out" / "a.txt").read_text() == "fast"
    assert (tmp_path / "out-1" / "a.txt").read_text() == "slow"
    assert not list(tmp_path.glob(".*"))
    assert caplog.text.count("cannot lock files") == 1

    replace_and_die(tmp_path / "out", "swap")
    (left,) = tmp_path.glob(".*.part")
    recover(tmp_path / "out")
    assert not (tmp_path / "out").exists()  # it may live
    os.utime(left, (time.time() - 120,) * 2)
    recover(tmp_path / "out")
    assert (tmp_path / "out" / "a.txt").read_text() == "fast"
    replace_and_die(tmp_path / "new", "block")
    (left,) = tmp_path.glob(".*.part")
    for age, count in ((3600, 1), (90_000, 0)):
        os.utime(left, (time.time() - age,) * 2)
        fill(tmp_path / f"after {age}")
        assert len(list(tmp_path.glob(".*.part"))) == count


@posix
def test_a_lock_follows_no_link_and_spares_what_is_in_the_file(tmp_path):
    for name in ("notes", "lock"):
        (tmp_path / name).write_text("mine")
    with locked(tmp_path / "lock"), pytest.raises(UserError, match="busy"), locked(tmp_path / "lock", "busy"):
        pass
    (tmp_path / "link").symlink_to("notes")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("link", "dangling"):
        with pytest.raises(OSError, match=f"symbolic links: .*{name}"), locked(tmp_path / name):
            pass
    with locked(tmp_path / "new") as is_certain:
        assert is_certain
        assert (tmp_path / "new").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "link", "lock", "notes"]
    assert {(tmp_path / name).read_text() for name in ("notes", "lock")} == {"mine"}


def test_sweep_removes_what_writers_leave_and_no_other_hidden_file(tmp_path):
    number = "0123456789abcdef"
    (tmp_path / f".{number}.part").write_text("half")
    (tmp_path / f".{number}{number}.part" / "new").mkdir(parents=True)
    (tmp_path / f".{number}.lock").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    (tmp_path / f".{number[::-1]}.part").symlink_to("mine")
    for name in ("kept.part", ".film.part", ".lock"):
        (tmp_path / name).write_text("a name of one's own")
    sweep(tmp_path)
    assert sorted(content(tmp_path)) == [".film.part", ".lock", "kept.part", "mine", "mine/file"]


def test_a_figure_is_written_at_its_own_resolution_and_always_the_same(tmp_path):
    for name in ("one.png", "two.png"):
        figure = Figure(figsize=(2, 1), dpi=60)
        figure.subplots().plot([0, 1])
        write_figure(figure, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as image:
        assert image.size == (120, 60)
        assert "Software" not in image.info
