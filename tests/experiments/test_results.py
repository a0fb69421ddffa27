"""Damaged results: each is named once and left out, and everything else is printed as without it."""

import copy
import json
import os
import random

import pytest

from hta.experiments.__main__ import main
from hta.experiments.plan import RunSpec
from hta.experiments.results import is_done, load_runs
from tests.experiments.helpers import write_result
from tests.fuzzing import TIMES

NONSENSE = [None, True, -1, 5, 1.5, float("nan"), float("inf"), 10**400, -(10**400), 2**40, "0.5", "\ud800", "\x1b[2J"]
NONSENSE += [[], [None], {}, {"mean": "x"}, [[[[]]]]]
BYTES = {
    "empty": b"",
    "nested": b"[" * 100_000,
    "nested objects": b'{"spec":' * 50_000,
    "list": b"[]",
    "null": b"null",
    "zeros": bytes(1000),
    "utf-16": '{"format_version": 1}'.encode("utf-16"),
    "latin-1": '{"format_version": "é"}'.encode("latin-1"),
    "5,000 digits": b'{"format_version": ' + b"1" * 5000 + b"}",
    "archive": b"PK\x03\x04" + bytes(range(256)),
}


def leaves(record, path=()):
    """The paths of all values of a record, without those of the run that nothing is read from."""
    for key, value in record.items() if isinstance(record, dict) else ():
        yield (*path, key)
        yield from leaves(value, (*path, key))


def mutate(record, draw):
    """A record with one value replaced or missing; its key fits where there is one."""
    path = draw.choice([*leaves(record)])
    *above, last = path
    record = copy.deepcopy(record)
    owner = record
    for key in above:
        owner = owner[key]
    is_optional = path[-1] in ("mean", "minmax", "value", "test_limit", "paper_dataset")
    nonsense = [x for x in NONSENSE if not (x is None and is_optional) and x != owner[last]]
    if last in ("seconds_training", "seconds_scoring", "shots", "draw", "seed", "test_limit"):
        nonsense = [x for x in nonsense if x not in (5, 1.5, 2**40)]
    if last == "auroc_by_scale":
        nonsense = [x for x in nonsense if x not in ([], [None])]
    if path == ("spec", "in_order") or last in ("settings", "preparation", "title", "pos_class", "data_sha256"):
        nonsense = [x for x in nonsense if x not in (True, [], {}) and not isinstance(x, str)]
    if (
        not is_optional
        and path[-2:-1] != ("decision",)
        and last not in ("decision", "in_order")
        and draw.random() < 0.2
    ):
        del owner[last]
    else:
        owner[last] = draw.choice(nonsense)
    if path[0] == "spec" and len(path) == 2 and draw.random() < 0.5:
        try:
            record["key"] = RunSpec(**record["spec"]).key
        except Exception:  # noqa: BLE001 (then there is no key that fits)
            record["key"] = "0" * 12
    return record


def printed(capsys, folder, expected=0):
    """What all commands print, and the lines about files that were left out."""
    capsys.readouterr()
    texts = []
    for command in (["summary"], ["table", "1"], ["table", "7"], ["changes"], ["scores"], ["seeds"], ["plot"]):
        assert main([*command, "--results", str(folder)]) == 0
        captured = capsys.readouterr()
        texts.append(captured.out.replace(str(folder), ""))
        named = captured.err.splitlines()
        assert len(named) == expected
    return texts, named


def write_good(folder):
    write_result(folder, 0.8, false_alarms=0.1)
    write_result(folder, 0.7, settings=(("niter", 500),))
    write_result(folder, 0.9, pos_class="trouser")


@pytest.mark.filterwarnings("error")
def test_each_of_200_damaged_results_is_named_once_and_left_out(tmp_path, capsys):
    draw = random.Random(0)
    good, mixed = tmp_path / "good", tmp_path / "mixed"
    write_good(good)
    write_good(mixed)
    whole = {path.name for path in mixed.iterdir()}
    specs = [write_result(mixed, 0.5, false_alarms=0.1, draw=number) for number in range(2, 2 + 200 * TIMES)]
    for spec in specs:
        path = mixed / f"{spec.name}.json"
        path.write_text(json.dumps(mutate(json.loads(path.read_text()), draw)))
    _, lines = both = printed(capsys, mixed, len(specs))
    assert both[0] == printed(capsys, good)[0]
    assert sorted(line.split(":")[0] for line in lines) == sorted(str(mixed / f"{spec.name}.json") for spec in specs)
    assert all(len(line) < 700 and line.isprintable() for line in lines)
    assert not any(is_done(mixed, spec) for spec in specs)
    assert {path.name for path in mixed.glob("*.json")} >= whole


def test_what_is_no_result_at_all_is_named_once_and_left_out(tmp_path, capsys):
    good, mixed = tmp_path / "good", tmp_path / "mixed"
    write_good(good)
    write_good(mixed)
    for name, content in BYTES.items():
        (mixed / f"{name}.json").write_bytes(content)
    (mixed / "folder.json").mkdir()
    os.mkfifo(mixed / "pipe.json")
    (mixed / "loop.json").symlink_to("loop.json")
    (mixed / "nowhere.json").symlink_to("nothing")
    (mixed / "device.json").symlink_to("/dev/zero")
    (mixed / "sparse.json").touch()
    os.truncate(mixed / "sparse.json", 8 * 2**30)
    (mixed / "control\x1b[2J\n.json").write_bytes(b"{")
    (mixed / os.fsdecode(b"bytes\xff.json")).write_bytes(b"{")
    texts, lines = printed(capsys, mixed, len(BYTES) + 8)
    assert texts == printed(capsys, good)[0]
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    "value", [5, 1.0001, -1e-9, float("nan"), float("-inf"), "0.5", True, pytest.param(10**400, id="400 digits")]
)
@pytest.mark.parametrize("place", ["mean", "minmax", "by_fraction", "by_scale", "value", "combined", "rate"])
def test_a_share_out_of_range_is_not_printed(tmp_path, place, value):
    spec = write_result(tmp_path, 0.8, false_alarms=0.1, combined=0.7)
    path = tmp_path / f"{spec.name}.json"
    record = json.loads(path.read_text())
    results = record["results"]
    owner = {"by_fraction": results["auroc_by_fraction"]["1"], "value": results["decision"]["false_positive_rate"]}
    if place == "by_scale":
        results["auroc_by_scale"][1] = value
    elif place == "combined":
        results["combined"]["auroc"] = value
    elif place == "rate":
        results["combined"]["decision"]["false_positive_rate"]["value"] = value
    else:
        owner.get(place, results["auroc"])["mean" if place == "by_fraction" else place] = value
    path.write_text(json.dumps(record))
    assert load_runs(tmp_path).empty


def test_a_folder_of_results_that_is_a_file_is_an_error_of_the_user(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert main(["summary", "--results", str(tmp_path / "file")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_titles_are_no_formulas(tmp_path, capsys):
    write_result(tmp_path, 0.8, title="costs $5_{ and $6^")
    assert main(["plot", "--results", str(tmp_path)]) == 0
    assert "costs-5-and-6" in capsys.readouterr().out
