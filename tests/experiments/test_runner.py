"""Real, tiny runs through the runner: nothing twice, nothing lost, nothing stale."""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import torch
from dask import distributed

from hta import runs, runtime
from hta.experiments import runner
from hta.experiments.__main__ import main
from tests.experiments.helpers import TINY, make_tree, records, run_arguments

ONE_THREAD = ("--variants", "ours", "f", "--threads", "1")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("data") / "tree")


@pytest.fixture(scope="module")
def here(tree, tmp_path_factory):
    """Four runs in this process: two classes, two variants."""
    results = tmp_path_factory.mktemp("here")
    assert main(run_arguments(tree, results, *ONE_THREAD, "--keep_scores")) == 0
    return results


def test_scores_that_were_not_kept_are_said(here, tree, tmp_path, caplog):
    results = shutil.copytree(here, tmp_path / "results")
    next(results.glob("*.npz")).unlink()
    with caplog.at_level(logging.WARNING):
        assert main(run_arguments(tree, results, *ONE_THREAD)) == 0
        assert not caplog.messages
        assert main(run_arguments(tree, results, *ONE_THREAD, "--keep_scores")) == 0
    assert "the scores of 1 runs that are done were not kept" in caplog.text


def stamps(results):
    return {path.name: path.stat().st_mtime_ns for path in results.glob("*.json")}


def wait_until(condition, seconds=200):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited too long")


def test_a_result_has_its_scores_and_the_decision_at_the_threshold_of_views(here):
    assert len(records(here)) == 4
    name, record = next((n, record) for n, record in records(here).items() if record["spec"]["variant"] == "ours")
    found, scales = record["results"], record["scales"].split()
    assert record["test_images"].items() >= {"normal": 4, "anomalous": 4, "available": 8}.items()
    assert len(found["auroc_by_scale"]) == len(found["training_shares"]) == len(scales)
    with np.load((here / name).with_suffix(".npz")) as kept:
        assert kept["scores"].shape == kept["labels"].shape == kept["names"].shape == (8,)
        rejected, labels = kept["scores"] > found["decision"]["threshold"], kept["labels"]
    assert (found["decision"]["source"], found["decision"]["target_fpr"]) == ("calibrated", 0.05)
    assert found["decision"]["confusion"]["false_positives"] == (rejected & (labels == 0)).sum()
    assert found["decision"]["confusion"]["true_positives"] == (rejected & (labels == 1)).sum()
    assert sum(found["decision"]["confusion"].values()) == len(labels)


def test_only_missing_damaged_and_misnamed_results_are_made_again(here, tree, tmp_path):
    results = shutil.copytree(here, tmp_path / "results")
    ant, bee, *others = sorted(results.glob("*f_fast*.json")) + sorted(results.glob("*ours*.json"))
    before = stamps(results)
    ant.write_text(bee.read_text())
    bee.write_text(bee.read_text()[:100])
    others[0].unlink()
    assert main(run_arguments(tree, results, *ONE_THREAD)) == 0
    assert records(results) == records(here)
    after = stamps(results)
    assert [name for name in before if before[name] == after[name]] == [others[1].name]


def test_a_result_of_other_images_is_not_reused(tmp_path):
    own, results = make_tree(tmp_path / "own"), tmp_path / "results"
    arguments = run_arguments(own, results, "--classes", "ant", "--variants", "f")
    assert main(arguments) == 0
    (record,) = records(results).values()
    (own / "train" / "bee" / "0.png").replace(own / record["training_images"][0])
    assert main(arguments) == 0
    assert len(records(results)) == 2


def test_a_dask_cluster_gives_the_same_results(here, tree, tmp_path):
    with distributed.LocalCluster(
        n_workers=1, processes=False, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        arguments = run_arguments(tree, tmp_path, "--dask-scheduler", cluster.scheduler_address, *ONE_THREAD)
        assert main(arguments) == 0
    assert records(tmp_path) == records(here)


def test_without_dask_the_extra_is_named(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    assert main(run_arguments(tree, tmp_path / "results", "--dask-scheduler", "tcp://127.0.0.1:1")) == 2
    assert "hta[cluster]" in capsys.readouterr().err


def test_a_scheduler_that_dies_ends_the_runner(tree, tmp_path, capfd):
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard", "--host", "127.0.0.1"]
    command += ["--port", "0", "--scheduler-file", str(tmp_path / "file")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as scheduler:

        def kill_it_once_a_client_is_there():
            for line in scheduler.stderr:
                if "Receive client connection" in line:
                    time.sleep(1)  # until the client knows it too
                    scheduler.kill()

        watcher = threading.Thread(target=kill_it_once_a_client_is_there)
        watcher.start()
        wait_until((tmp_path / "file").exists)
        address = json.loads((tmp_path / "file").read_text())["address"]
        capfd.readouterr()
        start = time.monotonic()
        assert main(run_arguments(tree, tmp_path / "results", "--dask-scheduler", address)) == 1
        assert time.monotonic() - start < 60
        watcher.join()
    _, waiting, gone = capfd.readouterr().err.strip().splitlines()
    assert "has no workers yet" in waiting
    assert all(words in gone for words in (f"--dask-scheduler {address}", "is gone", "the same command"))


@pytest.mark.parametrize("address", ["silent", "tcp://127.0.0.1:1", "nonsense", "tls://127.0.0.1:1"])
def test_an_address_without_a_scheduler_is_one_line(tree, tmp_path, monkeypatch, capfd, address):
    monkeypatch.setattr(runner, "_CONNECT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = address.replace("silent", f"tcp://127.0.0.1:{silent.getsockname()[1]}")
        assert main(run_arguments(tree, tmp_path / "results", "--dask-scheduler", address)) == 2
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: --dask-scheduler ")
    assert "no Dask scheduler can be reached there" in message


def processes_of_runs():
    children = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_a_run_whose_process_is_killed_has_failed_and_the_others_continue(here, tree, tmp_path, capfd):
    def kill_the_first():
        wait_until(processes_of_runs)
        processes_of_runs()[0].kill()

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    more = ("--variants", "f", "--threads", "1", "--draws", "1-2", "--jobs", "2")
    assert main(run_arguments(tree, tmp_path, *more)) == 1
    killer.join()
    assert processes_of_runs() == []
    (failed,) = (tmp_path / "failed").glob("insects_ant_1shot_draw1_f_*.json")
    assert "died with status -9" in json.loads(failed.read_text())["error"]
    assert len(records(tmp_path)) == 3
    bee = {name: record for name, record in records(here).items() if "bee_1shot_draw1_f" in name}
    assert bee
    assert {name: records(tmp_path)[name] for name in bee} == bee
    printed = capfd.readouterr().err
    assert "1 of 4 runs failed" in printed
    assert "Warning" not in printed  # of something that the dead process left


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_a_runner_that_is_stopped_and_results_stay(tree, tmp_path, ending):
    # Those of variant f are there at once, those of the method never end.
    arguments = run_arguments(
        tree, tmp_path, "--variants", "f", "ours", "--threads", "1", tiny=(*TINY, "niter=1000000")
    )
    command = [sys.executable, "-m", "hta.experiments", *arguments, "--jobs", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until(lambda: process.poll() is not None or len(stamps(tmp_path)) == 2)
    wait_until(lambda: process.poll() is not None or len(psutil.Process(process.pid).children(recursive=True)) >= 2)
    children = psutil.Process(process.pid).children(recursive=True)
    before = records(tmp_path)
    if ending == signal.SIGINT:  # as a terminal does, to all of them
        os.killpg(process.pid, ending)
    else:
        process.kill()
    _, printed = process.communicate(timeout=60)
    assert process.returncode == (130 if ending == signal.SIGINT else -signal.SIGKILL)
    assert ending == signal.SIGKILL or "Traceback" not in printed
    assert ending == signal.SIGKILL or printed.strip().splitlines()[-1].startswith(
        "interrupted: finished runs are kept"
    )
    wait_until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))
    assert len(before) == 2
    assert records(tmp_path) == before


def test_a_folder_where_a_result_goes_fails_one_run_before_its_work(here, tree, tmp_path):
    ant, bee = (path.name for path in sorted(here.glob("*_f_fast_*.json")))
    (tmp_path / ant).mkdir()
    assert main(run_arguments(tree, tmp_path, "--variants", "f")) == 1
    assert "move it away" in json.loads((tmp_path / "failed" / ant).read_text())["error"]
    assert (tmp_path / ant).is_dir()
    assert (tmp_path / bee).is_file()


def test_names_of_classes_may_be_long_and_not_utf8(tmp_path, capsys):
    tree, results = make_tree(tmp_path / "tree"), tmp_path / "results"
    names = dict(ant="a" * 250, bee=os.fsdecode(b"b\xff\x1b[2J"))
    for old, new in names.items():
        for split in ("train", "test"):
            (tree / split / old).rename(tree / split / new)
    assert main(run_arguments(tree, results, "--variants", "f")) == 0
    assert main(["table", "6", "--results", str(results)]) == 0
    assert "\\xff\\x1b[2J" in (results / "tables" / "table_6.md").read_text()
    assert "\x1b" not in capsys.readouterr().out


def test_images_in_order_are_the_first_ones_of_their_class(tree, tmp_path):
    more = ("--in_order", "--classes", "ant", "--draws", "1-2", "--shots", "1", "--variants", "f")
    assert main(run_arguments(tree, tmp_path, *more)) == 0
    images = {record["spec"]["draw"]: record["training_images"] for record in records(tmp_path).values()}
    assert images == {1: ["train/ant/0.png"], 2: ["train/ant/1.png"]}
    assert all("_index" in name for name in records(tmp_path))


def test_a_failed_run_is_recorded_the_others_continue_and_it_is_tried_again(tree, tmp_path, capsys):
    # One scale of 100 px is impossible with images of 64 px.
    arguments = run_arguments(tree, tmp_path, "--classes", "ant", "--variants", "d", "f", "--prepare", "size=64")
    assert main(arguments) == 1
    assert "1 of 2 runs failed" in capsys.readouterr().err
    assert [record["spec"]["variant"] for record in records(tmp_path).values()] == ["f"]
    (failed,) = (tmp_path / "failed").glob("*.json")
    assert "image of 64 x 64 px" in json.loads(failed.read_text())["error"]
    failed.write_text("{}")
    assert main(arguments) == 1
    assert "image of 64 x 64 px" in failed.read_text()
    assert len(records(tmp_path)) == 1


def test_images_are_counted_against_the_precision_of_the_run(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_MAX_IMAGES", {torch.bfloat16: 0})
    monkeypatch.setattr(runtime, "has_native_bfloat16", lambda device: True)
    arguments = run_arguments(tree, tmp_path, "--classes", "ant", "--variants", "f")
    assert main([*arguments, "--precision", "float32"]) == 0
    assert main(arguments) == 1
    (failed,) = (tmp_path / "failed").glob("*.json")
    assert "give --precision float32" in failed.read_text()


def test_folders_of_results_merge_by_copying(here, tree, tmp_path, capsys):
    parts = [tmp_path / "one", tmp_path / "two"]
    for number, part in enumerate(parts, 1):
        assert main(run_arguments(tree, part, "--part", f"{number}/2", "--threads", "1")) == 0
        assert len(records(part)) == 1
    merged = shutil.copytree(parts[1], parts[0], dirs_exist_ok=True)
    before = stamps(merged)
    assert main(run_arguments(tree, merged)) == 0
    assert stamps(merged) == before
    assert records(merged).items() <= records(here).items()
    capsys.readouterr()
    assert main(["table", "1", "--results", str(merged)]) == 0
    table = capsys.readouterr().out
    for record in records(merged).values():
        assert f"| {record['spec']['pos_class']} | {100 * record['results']['auroc']['mean']:.1f} | 1 |" in table
    assert "average of 2 classes" in table
