"""From a request to runs: keys, tables, parts of an array, and mistakes that are refused before anything is run."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from hta.data.specs import benchmark_spec
from hta.errors import UserError
from hta.experiments import plan
from hta.experiments.__main__ import main
from hta.experiments.plan import VARIANTS, Request, RunSpec, paper_part, plan_runs, requests_of_tables
from hta.experiments.results import is_done
from tests.data.trees import write_mnist
from tests.experiments.helpers import make_tree, run_arguments

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("data") / "tree")


def test_the_key_covers_everything_that_matters(tree, monkeypatch):
    request = Request(datasets=["folder"], data_root=str(tree), num_transforms=4, classes=["ant"])
    changes = [dict(), dict(preset="paper"), dict(seed=1), dict(test_limit=4), dict(draws=[2]), dict(shots=[2])]
    changes += [dict(variants=["a"]), dict(num_transforms=42), dict(fractions=[0.5]), dict(dataset_title="other")]
    changes += [dict(settings=(("niter", 7),)), dict(preparation=(("size", 64),)), dict(classes=["bee"])]
    changes += [dict(in_order=True), dict(precision="float32")]
    keys = [run.key for change in changes for run in plan_runs([replace(request, **change)])]
    with monkeypatch.context() as patch:
        patch.setattr(plan, "METHOD_VERSION", 99)
        keys.append(plan_runs([request])[0].key)
    assert len(set(keys)) == len(keys) == len(changes) + 1
    assert plan_runs([replace(request, paper_dataset="cifar10")])[0].key == keys[0]


def test_the_seed_of_the_training_can_be_set_alone(tree):
    request = Request(datasets=["folder"], data_root=str(tree), num_transforms=4, classes=["ant"], draws=[1, 2])
    plain = plan_runs([request])
    other = plan_runs([replace(request, settings=plan.parse_overrides("--set", ["manualSeed=3"]))])
    assert [run.config().training.manualSeed for run in plain + other] == [1, 2, 3, 3]
    assert [run.training_seed for run in plain + other] == [1, 2, 3, 3]
    assert [run.data_sha256 for run in plain] == [run.data_sha256 for run in other]
    assert plain[0].data_sha256 != plain[1].data_sha256
    assert len({run.key for run in plain + other}) == 4
    assert [replace(run, settings=()) for run in other] == plain
    assert other[0].changes == "manualSeed=3"


def test_stored_results_have_the_keys_and_names_of_their_runs():
    paths = list(RESULTS.glob("*.json"))
    assert len(paths) > 100
    for path in paths:
        record = json.loads(path.read_text())
        stored = RunSpec.from_dict(record["spec"], str(path))
        assert (stored.key, f"{stored.name}.json") == (record["key"], path.name)
        assert is_done(RESULTS, stored)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--classes", "wasp"), "--classes wasp"),
        (("--shots", "9"), "--shots 9"),
        (("--shots", "0"), "--shots: '0': must be a whole number, 1 or more"),
        (("--draws", "9", "--in_order"), "--draws 9: with --shots 1 choose 1 to"),
        (("--seed", "-1"), "--seed: '-1': must be a whole number, 0 or more"),
        (("--fractions", "2"), "--fractions: '2': must be 0 < value <= 1"),
        (("--draws", "3-1"), "--draws 3-1"),
        (("--part", "3/2"), "--part 3/2"),
        (("--prepare", "sise=3"), "--prepare sise=3"),
        (("--prepare", "geometry=crop", "size=64", "train_filter=5", "sise=3"), "--prepare sise=3"),
        (("--prepare", "geometry=round"), "--geometry round: must be one of squash, fit_then_squash, crop"),
        (("--prepare", "size=10"), "--size 10: must be 11 <= value <= 4096"),
        (("--prepare", "mean_intensity=1"), "--mean_intensity 1.0: must be 0 <= value < 1"),
        (("--set", "niter=few"), "--set niter=few"),
        (("--set", "niter=0"), "--niter 0"),
        (("--set", "num_transforms=42"), "--set num_transforms=42: not a setting to override; give --num_transforms"),
        (("--set", "niter=3", "task=defect"), "give another of --datasets"),
        (("--set", "manualSeed=-1"), "--manualSeed -1"),
        (("--test_limit", "1"), "--test_limit: '1': must be a whole number, 2 or more"),
        (("--paper_dataset", "cifar"), "--paper_dataset cifar: not in the paper's tables; give one of"),
        (("--tables", "1", "--shots", "5"), "--shots: contradicts --tables"),
        (("--tables", "5"), "--datasets folder: in none of these --tables, which have mvtec"),
        (("--tables", "8"), "--tables"),
        (("--tables", "1", "--datasets", "mnist", "cifar"), "name one data set"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tree, tmp_path, capsys, more, words):
    results = tmp_path / "results"
    if "--tables" in more:
        arguments = ["run", "--datasets", "folder", "--dataset_title", "T", "--results", str(results), *more]
    else:
        arguments = run_arguments(tree, results, *more)
    assert main(arguments) == 2
    message = capsys.readouterr().err.strip()
    assert words in message
    assert message.count("\n") == 0
    assert not results.exists()


def test_a_run_needs_data_sets_or_tables(tmp_path, capsys):
    assert main(["run", "--data_root", str(tmp_path)]) == 2
    assert "--datasets is missing: name one or more, or give --tables" in capsys.readouterr().err


def test_the_parts_of_an_array_make_the_whole(tree, tmp_path, capsys):
    def listed(*more):
        assert main(run_arguments(tree, tmp_path, "--draws", "1-3", "--dry_run", *more)) == 0
        return capsys.readouterr().out.splitlines()

    whole, parts = listed(), [listed("--part", f"{number}/4") for number in range(1, 5)]
    assert sorted(whole) == sorted(line for part in parts for line in part)
    assert len(whole) == 6
    assert all(line.startswith("to do: Insects ") for line in whole)


def test_a_data_set_is_downloaded_only_on_demand_and_several_tables_plan_their_runs_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "torchvision.datasets.MNIST.download", lambda dataset: write_mnist(Path(dataset.raw_folder), [1, 2], [1, 2])
    )
    data = tmp_path / "data"
    arguments = ["run", "--datasets", "mnist", "--data_root", str(data), "--results", str(tmp_path / "results")]
    arguments += ["--dry_run", "--classes", "1", "2", "--tables", "1", "1"]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert all(words in message for words in (f"--data_root {data}", "MNIST/raw/", "or use --download"))
    assert not data.exists()
    for more in (["--download"], []):
        assert main([*arguments, *more]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(",")[0] for line in lines] == ["to do: MNIST 1", "to do: MNIST 2"]


def test_a_table_names_its_data_sets_shots_variants_and_transformations():
    base = Request(datasets=(), data_root="data", draws=(1, 2), preset="paper")
    for table in range(1, 8):
        requests = requests_of_tables([table], base)
        assert {(request.draws, request.preset) for request in requests} == {((1, 2), "paper")}
        wanted = {(benchmark_spec(name).table_name, n) for r in requests for name, n in product(r.datasets, r.shots)}
        assert wanted == set(paper_part(table).groupby(["dataset", "shots"]).groups)
        variants = {variant for request in requests for variant in request.variants}
        assert variants == (set(VARIANTS) - {"views"} if table == 6 else {"ours"})
    assert [r.num_transforms for r in requests_of_tables([5], base)] == [54, 4]
    (only,) = requests_of_tables([4, 5], replace(base, datasets=["CIFAR-10"]))
    assert (only.datasets, only.shots) == (("cifar",), (50, 80))
    with pytest.raises(UserError, match=r"--datasets paris: in none of these --tables, which have cifar, mvtec"):
        requests_of_tables([4, 5], replace(base, datasets=["paris"]))


def test_workers_in_another_folder_find_the_data_and_take_turns_on_the_devices(tree, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("hta.experiments.__main__.run_missing", lambda runs, root, *_, **__: seen.append((runs, root)))
    monkeypatch.chdir(tree.parent)
    more = ("--threads", "3", "--draws", "1-2", "--precision", "float32", "--device", "cuda:0", "cuda:1")
    assert main(run_arguments(tree.name, tmp_path, *more)) == 0
    ((runs, root),) = seen
    assert root == str(tree)
    assert [config.device for config in runs.values()] == ["cuda:0", "cuda:1"] * 2
    assert {(config.threads, config.not_cuda, config.precision) for config in runs.values()} == {(3, True, "float32")}
