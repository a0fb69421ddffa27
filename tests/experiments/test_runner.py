"""Real, tiny runs through the runner: nothing twice, nothing lost, nothing stale."""

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import cloudpickle
import numpy as np
import psutil
import pytest
import torch
from dask import distributed

from hta import runs, runtime
from hta.experiments import runner
from hta.experiments.__main__ import main
from tests.experiments.helpers import make_tree, records, run_arguments

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


def test_what_is_sent_to_a_worker_is_pickled_and_runs_in_a_fresh_process(here, tree, tmp_path, monkeypatch):
    code = """
import pickle, sys
results = [task(*values, **named) for task, values, named in pickle.load(sys.stdin.buffer)]
sys.stdout.buffer.write(pickle.dumps(results))
"""

    def in_a_fresh_process(tasks):
        command = [sys.executable, "-c", code]
        ended = subprocess.run(command, input=cloudpickle.dumps(tasks), stdout=subprocess.PIPE, check=True)
        return pickle.loads(ended.stdout)  # noqa: S301

    monkeypatch.setattr(runner.joblib, "Parallel", lambda **_: in_a_fresh_process)
    monkeypatch.setattr(runner, "_workers", lambda *_: contextlib.nullcontext({"n_jobs": -1}))
    assert main(run_arguments(tree, tmp_path, *ONE_THREAD, "--dask-scheduler", "a cluster")) == 0
    assert records(tmp_path) == records(here)


def test_a_run_whose_worker_is_killed_has_failed_and_the_others_continue(tree, tmp_path, monkeypatch, caplog):
    made_up = {"results": {"auroc": {"mean": 0.5}}, "run": {"seconds_training": 1, "seconds_scoring": 1}}

    def attempt(spec, *_):
        if (spec.pos_class, spec.variant) != ("bee", "f"):
            return spec, made_up, {}
        while len([*tmp_path.glob("*.json")]) < 3:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(runner, "_attempt_in_worker", attempt)
    assert main(run_arguments(tree, tmp_path, *ONE_THREAD, "--jobs", "2")) == 1
    assert caplog.text.count("a worker died") == 2  # after the first death three others have arrived, then none has
    assert "1 of 4 runs failed" in caplog.text
    assert len(stamps(tmp_path)) == 3
    (failed,) = (tmp_path / "failed").glob("insects_bee_1shot_draw1_f_*.json")
    assert json.loads(failed.read_text())["error"] == runner._DIED


RUNNER_WITH_LONG_SECOND_DRAWS = """
import sys, time
from hta.experiments import __main__, runner
attempt = runner._attempt_in_worker
def slow(spec, *arguments):
    if spec.draw == 2:
        from hta.experiments import runner
        runner.execute = lambda *_: time.sleep(1000)
    return attempt(spec, *arguments)
runner._attempt_in_worker = slow
__main__.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_workers_give_the_same_results_and_end_with_a_runner_that_is_killed(here, tree, tmp_path):
    arguments = run_arguments(tree, tmp_path, *ONE_THREAD, "--draws", "1-2")
    command = [sys.executable, "-c", RUNNER_WITH_LONG_SECOND_DRAWS, *arguments, "--jobs", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(stamps(tmp_path)) == 4 or process.poll() is not None)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert records(tmp_path) == records(here)
    before = stamps(tmp_path)
    wait_until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))

    assert main([*arguments, "--variants", "f"]) == 0  # those under way are done again, and only those
    after = stamps(tmp_path)
    assert len(after) == 6
    assert {name: after[name] for name in before} == before


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
