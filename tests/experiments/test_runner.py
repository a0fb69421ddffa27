"""Real, tiny runs through the runner: nothing twice, nothing lost, nothing stale."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from dask import distributed

from hta import runs, runtime
from hta.config import default_config
from hta.data.specs import benchmark_spec as spec_of
from hta.errors import UserError
from hta.evaluation.calibration import NUM_VIEWS, VIEWS_SEED
from hta.evaluation.views import view_rule
from hta.experiments import planning, results, runner, spec, unit
from hta.experiments.__main__ import main
from hta.experiments.paper import paper_parts
from hta.experiments.presets import VARIANTS
from hta.experiments.results import ResultsFolder
from hta.experiments.spec import RunSpec
from tests.data.trees import write_mnist
from tests.experiments.helpers import make_tree, records, run_arguments

SLOW = ("min_size=11", "max_size=13", "nfc=3", "niter=8", "Gsteps=1", "Dsteps=1")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("data") / "tree")


def stamps(results):
    return {path.name: path.stat().st_mtime_ns for path in results.glob("*.json")}


def wait_until(condition, seconds=200):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited too long")


@pytest.mark.slow
def test_a_run_is_the_same_in_this_process_and_in_two_workers_and_is_not_done_twice(tree, tmp_path):
    here, workers = tmp_path / "here", tmp_path / "workers"
    more = ("--draws", "1-2", "--variants", "ours", "f", "--threads", "1", "--keep_scores")
    assert main(run_arguments(tree, here, *more)) == 0
    assert main(run_arguments(tree, workers, "--jobs", "2", *more)) == 0
    assert len(records(here)) == 2 * 2 * 2
    assert records(here) == records(workers)
    one = next(record for record in records(here).values() if record["spec"]["variant"] == "ours")
    assert one["test_images"].items() >= {"normal": 4, "anomalous": 4, "available": 8}.items()
    assert len(one["results"]["auroc_by_scale"]) == len(one["results"]["training_shares"]) == len(one["scales"].split())
    first = next(here.glob("*.npz"))
    with np.load(first) as scores:
        assert scores["scores"].shape == scores["labels"].shape == scores["names"].shape == (8,)

    before = stamps(here)
    next(here.glob("*ant*.json")).unlink()
    assert main(run_arguments(tree, here, *more)) == 0
    changed = [name for name, stamp in stamps(here).items() if stamp != before[name]]
    assert len(changed) == 1
    assert records(here) == records(workers)


def test_a_result_that_is_cut_off_or_of_other_images_is_not_reused(tmp_path):
    own, results = make_tree(tmp_path / "own"), tmp_path / "results"
    arguments = run_arguments(own, results, "--classes", "ant", "--variants", "f")
    assert main(arguments) == 0
    (path,) = results.glob("*.json")
    whole = records(results)
    path.write_text(path.read_text()[:100])
    assert main(arguments) == 0
    assert records(results) == whole

    trained = own / whole[path.name]["training_images"][0]
    (own / "train" / "bee" / "0.png").replace(trained)
    assert main(arguments) == 0
    assert len(records(results)) == 2


def test_a_result_under_the_name_of_another_is_not_taken_for_it(tree, tmp_path):
    arguments = run_arguments(tree, tmp_path, "--variants", "f")
    assert main(arguments) == 0
    whole = records(tmp_path)
    ant, bee = sorted(tmp_path.glob("*.json"))
    ant.write_text(bee.read_text())
    assert main(arguments) == 0
    assert records(tmp_path) == whole


def test_auroc_by_aggregate_fraction_and_scale():
    run = spec.RunSpec("defects", "x", "x", 1, 1, "ours", "fast", 4, "", fractions=(0.05, 1.0))
    labels = np.array([0, 0, 1, 1])
    # Shares of 2 fractions, 4 images and 2 scales; the second scale counts ten times as much until it is normalised.
    lowest = np.array([[0.9, 5.0], [0.8, 9.0], [0.1, 6.0], [0.2, 4.0]]) / 10
    shares = np.stack([lowest, lowest[::-1]])
    results, scores = unit.measure(run, shares, labels)
    # Means over scales: normal 0.295 and 0.49, anomalous 0.305 and 0.21: three pairs of four are in order.
    assert results["auroc"]["mean"] == 0.75
    # Normalised: normal (1 + 0.2) / 2 and (0.875 + 1) / 2, anomalous (0 + 0.4) / 2 and (0.125 + 0) / 2.
    assert results["auroc"]["minmax"] == 1
    assert results["auroc_by_scale"] == [1, 0.75]
    assert results["auroc_by_fraction"]["1"]["mean"] == 0.25
    assert results["fraction"] == 0.05
    np.testing.assert_allclose(scores, [0.705, 0.51, 0.695, 0.79])


def test_the_key_holds_everything_that_matters(tree, monkeypatch):
    request = planning.Request(datasets=["folder"], data_root=str(tree), num_transforms=4, classes=["ant"])
    changes = [dict(preset="paper"), dict(seed=1), dict(test_limit=4), dict(draws=[2]), dict(shots=[2])]
    changes += [dict(variants=["a"]), dict(num_transforms=42), dict(fractions=[0.5]), dict(dataset_title="other")]
    changes += [dict(settings=(("niter", 7),)), dict(preparation=(("size", 64),)), dict(classes=["bee"])]
    changes += [dict(in_order=True)]
    keys = [planning.plan_runs(request, "auto")[0].key, planning.plan_runs(request, "float32")[0].key]
    for change in changes:
        (run,) = planning.plan_runs(planning.Request(**vars(request) | change), "auto")
        keys.append(run.key)
    monkeypatch.setattr(spec, "METHOD_VERSION", 99)
    keys.append(planning.plan_runs(request, "auto")[0].key)
    assert len(set(keys)) == len(keys)
    compared = planning.Request(**vars(request) | dict(paper_dataset="cifar10"))
    monkeypatch.undo()
    assert planning.plan_runs(compared, "auto")[0].key == keys[0]


def test_images_in_order_are_the_first_ones_of_their_class(tree, tmp_path):
    assert main(run_arguments(tree, tmp_path, "--in_order", "--classes", "ant", "--draws", "1-2", "--shots", "1")) == 0
    images = {record["spec"]["draw"]: record["training_images"] for record in records(tmp_path).values()}
    assert images == {1: ["train/ant/0.png"], 2: ["train/ant/1.png"]}
    assert all("_index" in name for name in records(tmp_path))


def test_stored_results_have_the_keys_of_their_runs():
    folder = Path(results.__file__).parent / "results"
    for path in folder.glob("*.json"):
        record = json.loads(path.read_text())
        stored = RunSpec.from_dict(record["spec"], str(path))
        assert (stored.key, f"{stored.name}.json") == (record["key"], path.name)
        assert ResultsFolder(folder).holds(stored)


def test_a_failed_run_is_recorded_the_others_go_on_and_it_is_tried_again(tree, tmp_path, capsys):
    # One scale of 100 px cannot be had from images of 64 px.
    results = tmp_path / "results"
    arguments = run_arguments(tree, results, "--classes", "ant", "--variants", "d", "f", "--prepare", "size=64")
    assert main(arguments) == 1
    assert "1 of 2 runs failed" in capsys.readouterr().err
    assert [record["spec"]["variant"] for record in records(results).values()] == ["f"]
    (failed,) = (results / "failed").glob("*.json")
    assert "max_size" in failed.read_text()
    failed.write_text("{}")
    assert main(arguments) == 1
    assert "max_size" in failed.read_text()
    assert len(records(results)) == 1


def test_images_are_counted_against_the_precision_of_the_run(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_MAX_IMAGES", {torch.bfloat16: 0})
    monkeypatch.setattr(runtime, "has_native_bfloat16", lambda device: True)
    arguments = run_arguments(tree, tmp_path, "--classes", "ant", "--variants", "f")
    assert main([*arguments, "--precision", "float32"]) == 0
    assert main(arguments) == 1
    (failed,) = (tmp_path / "failed").glob("*.json")
    assert "give --precision float32" in failed.read_text()


@pytest.mark.slow
def test_killing_the_runner_repeats_at_most_the_runs_under_way(tree, tmp_path):
    results = tmp_path / "results"
    arguments = run_arguments(tree, results, "--jobs", "2", "--draws", "1-3", tiny=SLOW)
    runner = subprocess.Popen([sys.executable, "-m", "hta.experiments", *arguments], stderr=subprocess.DEVNULL)
    wait_until(lambda: len(stamps(results)) >= 1)
    children = psutil.Process(runner.pid).children(recursive=True)
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    landed = stamps(results)
    assert 1 <= len(landed) < 6
    wait_until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))

    assert main(arguments) == 0
    after = stamps(results)
    assert len(after) == 6
    assert {name: after[name] for name in landed} == landed


@pytest.mark.slow
def test_the_death_of_a_worker_does_not_end_the_others(tree, tmp_path, caplog):
    results, killed = tmp_path / "results", []

    def kill_one_worker():
        wait_until(lambda: any(results.glob("*.json")))
        workers = [p for p in psutil.Process().children() if "joblib.externals.loky.backend.popen" in str(p.cmdline())]
        workers[0].kill()
        killed.append(workers[0])

    killer = threading.Thread(target=kill_one_worker)
    killer.start()
    assert main(run_arguments(tree, results, "--jobs", "2", "--draws", "1-3", tiny=SLOW)) == 0
    killer.join()
    assert killed
    assert "a worker died" in caplog.text
    assert len(records(results)) == 6


def test_workers_that_die_before_anything_landed_end_the_runner(tree, tmp_path, monkeypatch, caplog):
    def die(task, runner):  # a function in a function goes to a worker as it is
        os._exit(1)

    monkeypatch.setattr(runner, "_attempt_quietly", die)
    assert main(run_arguments(tree, tmp_path, "--jobs", "2", "--variants", "f")) == 1
    assert "a worker died" in caplog.text
    assert [json.loads(path.read_text())["error"] for path in (tmp_path / "failed").glob("*.json")] == [
        runner._DIED
    ] * 2
    assert not any(tmp_path.glob("*.json"))


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_results(tree, tmp_path):
    here, cluster_results = tmp_path / "here", tmp_path / "cluster"
    more = ("--threads", "1", "--variants", "ours", "f")
    assert main(run_arguments(tree, here, *more)) == 0
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        arguments = run_arguments(tree, cluster_results, "--dask-scheduler", cluster.scheduler_address, *more)
        assert main(arguments) == 0
    assert len(records(here)) == 4
    assert records(here) == records(cluster_results)


def test_without_dask_the_extra_is_named(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    assert main(run_arguments(tree, tmp_path / "results", "--dask-scheduler", "tcp://127.0.0.1:1")) == 2
    assert "hta[cluster]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--classes", "wasp"), "--pos_class wasp"),
        (("--shots", "9"), "--num_images 9"),
        (("--draws", "3-1"), "--draws 3-1"),
        (("--part", "3/2"), "--part 3/2"),
        (("--prepare", "sise=3"), "--prepare sise=3"),
        (("--set", "niter=few"), "--set niter=few"),
        (("--set", "niter=0"), "--niter 0"),
        (("--set", "num_transforms=42"), "--set num_transforms=42: not a setting to override; give --num_transforms"),
        (("--set", "niter=3", "task=defect"), "give another of --datasets"),
        (("--set", "manualSeed=3"), "give --seed"),
        (("--test_limit", "0"), "--test_limit"),
        (("--paper_dataset", "cifar"), "--paper_dataset cifar: not in the paper's tables; give one of"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tree, tmp_path, capsys, more, words):
    results = tmp_path / "results"
    assert main(run_arguments(tree, results, *more)) == 2
    message = capsys.readouterr().err.strip()
    assert words in message
    assert message.count("\n") == 0
    assert not results.exists()


def test_the_parts_of_an_array_make_the_whole(tree, tmp_path, capsys):
    def listed(*more):
        assert main(run_arguments(tree, tmp_path, "--draws", "1-3", "--dry_run", *more)) == 0
        return capsys.readouterr().out.splitlines()

    whole, parts = listed(), [listed("--part", f"{number}/4") for number in range(1, 5)]
    assert sorted(whole) == sorted(line for part in parts for line in part)
    assert len(whole) == 6
    assert all(line.startswith("to do: Insects ") for line in whole)


def test_folders_of_results_merge_by_copying(tree, tmp_path, capsys):
    parts = [tmp_path / "one", tmp_path / "two"]
    for number, part in enumerate(parts, 1):
        assert main(run_arguments(tree, part, "--part", f"{number}/2")) == 0
        assert len(records(part)) == 1
    for path in parts[1].glob("*.json"):
        shutil.copy(path, parts[0])
    merged = stamps(parts[0])
    assert len(merged) == 2
    assert main(run_arguments(tree, parts[0])) == 0
    assert stamps(parts[0]) == merged
    capsys.readouterr()
    assert main(["table", "1", "--results", str(parts[0])]) == 0
    table = capsys.readouterr().out
    for name, record in ((record["spec"]["pos_class"], record) for record in records(parts[0]).values()):
        assert f"| {name} | {100 * record['results']['auroc']['mean']:.1f} | 1 |" in table
    assert "average of 2 classes" in table


def test_a_data_set_is_fetched_on_demand_only(tmp_path, monkeypatch, capsys):
    def fetch(dataset):
        write_mnist(Path(dataset.raw_folder), [1, 2], [1, 2])

    monkeypatch.setattr("torchvision.datasets.MNIST.download", fetch)
    data, results = tmp_path / "data", tmp_path / "results"
    arguments = ["run", "--datasets", "mnist", "--data_root", str(data), "--results", str(results), "--dry_run"]
    arguments += ["--classes", "1", "2"]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert all(words in message for words in (f"--data_root {data}", "MNIST/raw/", "or use --download"))
    assert not data.exists()
    assert main([*arguments, "--download"]) == 0
    assert capsys.readouterr().out.count("to do: MNIST") == 2
    assert main(arguments) == 0


def test_a_table_names_its_data_sets_shots_variants_and_transformations():
    base = planning.Request(datasets=(), data_root="data", draws=(1, 2), preset="paper")
    for table in range(1, 8):
        requests = planning.requests_of_tables([table], base)
        assert {(request.draws, request.preset) for request in requests} == {((1, 2), "paper")}
        wanted = {(spec_of(name).table_name, n) for r in requests for name, n in product(r.datasets, r.shots)}
        assert wanted == set(paper_parts(table))
        variants = {variant for request in requests for variant in request.variants}
        assert variants == (set(VARIANTS) if table == 6 else {"ours"})
    assert [r.num_transforms for r in planning.requests_of_tables([5], base)] == [54, 4]
    (only,) = planning.requests_of_tables([4, 5], replace(base, datasets=["CIFAR-10"]))
    assert (only.datasets, only.shots) == (("cifar",), (50, 80))
    with pytest.raises(UserError, match=r"--datasets paris: in none of these --tables, which have cifar, mvtec"):
        planning.requests_of_tables([4, 5], replace(base, datasets=["paris"]))


def test_one_command_plans_what_several_tables_need_once(tmp_path, capsys):
    write_mnist(tmp_path / "MNIST" / "raw", [1, 2], [1, 2])
    arguments = ["run", "--datasets", "mnist", "--data_root", str(tmp_path), "--classes", "1", "2", "--dry_run"]
    arguments += ["--results", str(tmp_path / "results")]
    assert main([*arguments, "--tables", "1", "1"]) == 0
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == ["to do: MNIST 1", "to do: MNIST 2"]
    for more, words in (
        (["--tables", "1", "--shots", "5"], "--shots: contradicts --tables"),
        (["--tables", "5"], "--datasets mnist: in none of these --tables, which have mvtec"),
        (["--tables", "8"], "--tables"),
        (["--tables", "1", "--datasets", "mnist", "cifar", "--dataset_title", "T"], "name one data set"),
    ):
        assert main([*arguments, *more]) == 2
        message = capsys.readouterr().err.strip()
        assert words in message
        assert message.count("\n") == 0
    assert main(["run", "--data_root", str(tmp_path)]) == 2
    assert "--datasets is missing: name one or more, or give --tables" in capsys.readouterr().err


def test_workers_in_another_folder_find_the_data(tree, tmp_path, monkeypatch):
    dealt = []
    monkeypatch.setattr("hta.experiments.__main__.run_tasks", lambda tasks, *_: dealt.extend(tasks))
    monkeypatch.chdir(tree.parent)
    assert main(run_arguments(tree.name, tmp_path)) == 0
    assert [task.data_root for task in dealt] == [str(tree)] * 2


def test_devices_are_dealt_out_in_turn(tree):
    request = planning.Request(datasets=["folder"], data_root=str(tree), num_transforms=4, draws=[1, 2])
    runs = planning.plan_runs(request, "auto")
    tasks = planning.deal_tasks(runs, str(tree), ["cuda:0", "cuda:1"], not_cuda=False, threads=2)
    assert [task.runtime.device for task in tasks] == ["cuda:0", "cuda:1"] * 2
    assert all(task.runtime.threads == 2 for task in tasks)


def test_the_decision_is_the_products_views_and_threshold():
    run = spec.RunSpec("folder", "x", "x", 1, 1, "ours", "fast", 4, "", seed=5)
    images = [np.random.default_rng(n).random((20, 20, 3), dtype=np.float32) for n in range(2)]
    config = default_config(task="class", num_transforms=4, min_size=11, max_size=13)
    training_set = runs.prepare(images, ["a", "b"], config)
    share, seen = 1 / 3, []  # a score of 2 / 3, which rounded is above it

    def shares_of(views):
        seen.append(views)
        return np.full((1, len(views), 2), share)

    scores = np.array([0.6666663, 1 - share, 0.6666669, 0.7])
    decision = unit.decision_on_views(run, shares_of, training_set, scores, np.array([0, 0, 1, 1]))
    assert decision["threshold"] == 0.666667
    assert list(decision["confusion"].values()) == [2, 0, 2, 0]
    expected = view_rule("class", 4).draw(training_set.images, NUM_VIEWS, VIEWS_SEED, None)
    assert torch.equal(torch.cat(seen), expected)


def test_the_decision_on_defects_takes_the_mirror_images_that_the_run_recognises():
    run = spec.RunSpec("defects", "x", "good", 1, 1, "ours", "fast", 4, "", fractions=(0.1, 1.0))
    images = [np.random.default_rng(n).random((20, 20, 3), dtype=np.float32) for n in range(2)]
    config = default_config(task="defect", min_size=11, max_size=13)
    training_set = runs.prepare(images, ["a", "b"], config)
    mirrors = torch.cat([training_set.images.flip(-1), training_set.images.flip(-2)])
    # Chance is 1 / 4, half of it 1 / 8: of the four mirror images the second alone is recognised, by all patches.
    of_mirrors, seen = np.array([[0.9, 0.1, 0.9, 0.9], [0.12, 0.13, 0.12, 0.12]]), []

    def shares_of(views):
        if len(views) == len(mirrors) and torch.equal(views, mirrors):
            return of_mirrors[..., None]
        seen.append(views)
        return np.full((2, len(views), 1), 0.5)

    unit.decision_on_views(run, shares_of, training_set, np.array([0.1, 0.9]), np.array([0, 1]))

    def recognition(images):
        return torch.tensor([0.0, 1.0, 0.0, 0.0])

    expected = view_rule("defect", 4).draw(training_set.images, NUM_VIEWS, VIEWS_SEED, recognition)
    assert torch.equal(torch.cat(seen), expected)


def test_the_decision_counts_the_scores_above_the_threshold_of_the_views(tree, tmp_path):
    assert main(run_arguments(tree, tmp_path, "--classes", "ant", "--threads", "1", "--keep_scores")) == 0
    (record,) = records(tmp_path).values()
    decision = record["results"]["decision"]
    with np.load(next(tmp_path.glob("*.npz"))) as kept:
        rejected, labels = kept["scores"] > decision["threshold"], kept["labels"]
    assert (decision["source"], decision["target_fpr"]) == ("calibrated", 0.05)
    assert decision["confusion"]["false_positives"] == (rejected & (labels == 0)).sum()
    assert decision["confusion"]["true_positives"] == (rejected & (labels == 1)).sum()
    assert sum(decision["confusion"].values()) == len(labels)
