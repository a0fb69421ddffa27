"""Files and folders that appear whole or not at all, whatever stops the writer."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from hta.errors import RunError
from hta.files import new_folder, sweep, write_atomically, write_figure

ROOT = Path(__file__).parents[1]


def fill(path, text="new", **options):
    with new_folder(path, **options) as fresh:
        (fresh / "a.txt").write_text(text)


def content(folder):
    return {path.relative_to(folder).as_posix(): path.is_file() and path.read_text() for path in folder.rglob("*")}


def test_a_folder_appears_whole_and_leaves_nothing_beside_it(tmp_path):
    fill(tmp_path / "deep" / "out")
    fill(tmp_path / "deep" / "out", "newer", replace=True)
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
        fill(tmp_path / "out", replace=True)
    assert calls[:2] == ["out", "new"]
    assert content(tmp_path) == {"out": False, "out/a.txt": "old"}


def test_an_old_folder_that_cannot_go_back_is_kept(tmp_path, monkeypatch):
    fill(tmp_path / "out", "old")
    rename = Path.rename

    def only_away(self, target):
        if self.name != "out":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", only_away)
    with pytest.raises(RunError):
        fill(tmp_path / "out", replace=True)
    monkeypatch.undo()
    make_old(tmp_path)
    fill(tmp_path / "another")
    assert [path.read_text() for path in tmp_path.glob(".*/old/a.txt")] == ["old"]


def test_a_link_to_a_folder_stays_and_its_folder_is_replaced(tmp_path):
    fill(tmp_path / "real", "old")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "out").symlink_to("../real", target_is_directory=True)
    fill(tmp_path / "links" / "out", replace=True)
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
    fill(tmp_path / "out", "newer", replace=True)
    write_atomically(tmp_path / "a.bin", b"new")
    assert all((path / "work").read_text() == "of another" for path in left)


KILLED = """
import os, sys
from pathlib import Path
from hta.files import new_folder
with new_folder(Path(sys.argv[1])) as fresh:
    (fresh / "half").write_text("half")
    os._exit(1)
"""


def make_old(folder):
    """Let all that writers have left be older than any start of a process."""
    for mark in folder.glob(".*/alive"):
        os.utime(mark, (time.time() - 86400,) * 2)


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX systems")
def test_the_leftover_of_a_killed_process_goes_and_the_work_of_a_living_one_stays(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "killed"], cwd=ROOT, check=False)
    assert len(list(tmp_path.glob(".*.part/new/half"))) == 1
    fill(tmp_path / "soon")  # it may be a process that has just begun
    assert len(list(tmp_path.glob(".*.part"))) == 1
    with new_folder(tmp_path / "living") as fresh:
        (fresh / "a.txt").write_text("new")
        make_old(tmp_path)
        fill(tmp_path / "later")
        assert [path.parent for path in tmp_path.glob(".*.part")] == [tmp_path]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["later", "living", "soon"]


def test_sweep_removes_files_and_folders_that_were_left(tmp_path):
    (tmp_path / ".0123.part").write_text("half")
    (tmp_path / ".4567.part").mkdir()
    (tmp_path / "kept.part").write_text("a name of one's own")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.part"]


def test_a_figure_is_written_at_its_own_resolution_and_always_the_same(tmp_path):
    for name in ("one.png", "two.png"):
        figure = Figure(figsize=(2, 1), dpi=60)
        figure.subplots().plot([0, 1])
        write_figure(figure, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as image:
        assert image.size == (120, 60)
        assert "Software" not in image.info
