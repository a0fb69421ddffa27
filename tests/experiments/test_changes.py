"""What changed settings move, from results made by hand."""

import pytest
from scipy import stats

from hta.experiments.__main__ import main
from hta.experiments.changes import compare_changes
from hta.experiments.results import load_runs
from tests.experiments.helpers import write_result


@pytest.fixture
def results(tmp_path):
    """Two classes and draws plain, two changes of settings, one preset, one changed run without a plain one."""
    plain = {("bag", 1): 0.80, ("bag", 2): 0.60, ("trouser", 1): 0.90}
    for (pos_class, draw), auroc in plain.items():
        write_result(tmp_path, auroc, pos_class=pos_class, draw=draw)
    for (pos_class, draw), auroc in {("bag", 1): 0.83, ("bag", 2): 0.64, ("trouser", 1): 0.92}.items():
        write_result(tmp_path, auroc, pos_class=pos_class, draw=draw, settings=(("niter", 500),))
    write_result(tmp_path, 0.75, settings=(("min_size", 26), ("niter", 500)))
    write_result(tmp_path, 0.85, preset="paper")
    write_result(tmp_path, 0.10, preset="paper", settings=(("niter", 500),))
    write_result(tmp_path, 0.20, pos_class="coat", settings=(("niter", 500),))
    write_result(tmp_path, 0.30, variant="b")
    write_result(tmp_path, 0.40, test_limit=500, preparation=(("train_clahe", True),))
    return tmp_path


def differences(pairs, change):
    same = pairs[pairs["change"] == change]
    return dict(zip(zip(same["pos_class"], same["draw"], strict=True), same["difference"], strict=True))


def test_a_change_is_compared_with_the_plain_run_of_its_class_and_draw(results):
    pairs = compare_changes(load_runs(results))
    fast, long = (pairs[pairs["label"].str.endswith(f"preset {name}, 1000 test images")] for name in ("fast", "paper"))
    assert len(fast) + len(long) == len(pairs)
    assert differences(fast, "niter=500") == pytest.approx({("bag", 1): 3, ("bag", 2): 4, ("trouser", 1): 2})
    assert differences(fast, "min_size=26, niter=500") == pytest.approx({("bag", 1): -5})
    assert differences(fast, "preset paper") == pytest.approx({("bag", 1): 5})
    assert differences(long, "niter=500") == pytest.approx({("bag", 1): -75})
    # Other ways to a score, of the plain runs: the helper's min-max is one point lower, its scales reach half of the
    # AUROC, and all of it.
    assert list(differences(fast, "score: min-max normalised").values()) == pytest.approx([-1, -1, -1])
    halves = {("bag", 1): -40, ("bag", 2): -30, ("trouser", 1): -45}
    assert differences(fast, "score: scale 0 alone") == pytest.approx(halves)
    assert differences(fast, "score: scale 1 alone")["bag", 1] == pytest.approx(0)


def test_the_printed_comparison(results, capsys):
    assert main(["changes", "--results", str(results)]) == 0
    text = capsys.readouterr().out
    half = stats.ttest_1samp([3, 4, 2], 0).confidence_interval(0.95).high - 3
    assert "| changed | bag, draw 1 | bag, draw 2 | trouser, draw 1 | mean difference |" in text
    assert "| nothing | 80.0 | 60.0 | 90.0 |  |" in text
    assert f"| niter=500 | +3.0 | +4.0 | +2.0 | +3.0 ± {half:.1f} |" in text
    assert "| preset paper | +5.0 |  |  | +5.0 |" in text
    assert "coat" not in text
    assert "train_clahe" not in text


def test_runs_of_other_images_are_not_compared(tmp_path):
    write_result(tmp_path, 0.8)
    write_result(tmp_path, 0.7, data_sha256="others", settings=(("niter", 500),))
    write_result(tmp_path, 0.6, data_sha256="others", seed=1)
    assert compare_changes(load_runs(tmp_path)).empty


@pytest.mark.parametrize("settings", [(), (("niter", 500),)], ids=["plain", "changed"])
def test_without_a_plain_and_a_changed_run_nothing_is_printed(tmp_path, capsys, settings):
    write_result(tmp_path, 0.8, settings=settings)
    assert main(["changes", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == ""


def test_runs_of_two_precisions_are_told(tmp_path, capsys):
    write_result(tmp_path, 0.8)
    write_result(tmp_path, 0.7, settings=(("niter", 500),), dtype="float32")
    write_result(tmp_path, 0.75, settings=(("min_size", 26),))
    write_result(tmp_path, 0.6, draw=2)
    write_result(tmp_path, 0.61, draw=2, settings=(("niter", 500),))
    assert main(["changes", "--results", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "| niter=500 (float32 beside bfloat16) | -10.0 |  | -10.0 |" in text
    assert "| niter=500 |  | +1.0 | +1.0 |" in text
    assert "| min_size=26 | -5.0 |  | -5.0 |" in text


def test_ways_to_a_score_are_means_over_all_classes(tmp_path, capsys):
    for name, draw, auroc in (("bag", 1, 0.8), ("bag", 2, 0.6), ("coat", 1, 0.4)):
        write_result(tmp_path, auroc, pos_class=name, draw=draw)
    write_result(tmp_path, 0.7, settings=(("niter", 500),))
    write_result(tmp_path, 0.9, shots=5)  # of one class
    write_result(tmp_path, 0.9, title="Of one class", paper_dataset=None)
    assert main(["scores", "--results", str(tmp_path)]) == 0
    header, _, only = capsys.readouterr().out.strip().splitlines()
    # Scale 0 has half of the AUROC: -40 and -30 for the bag, -20 for the coat; its scale 1 has all of it.
    half = stats.ttest_1samp([-35, -20], 0).confidence_interval(0.95).high + 27.5
    assert header == "| run | classes | min-max normalised | scale 0 alone | scale 1 alone |"
    assert only.endswith(f"1000 test images | 2 | -1.0 ± 0.0 | -27.5 ± {half:.1f} | +0.0 ± 0.0 |")


def test_recipes_are_compared_on_the_same_training_images(tmp_path, capsys):
    for name, draw, ours, views in (("bag", 1, 0.5, 0.7), ("bag", 2, 0.6, 0.9), ("coat", 1, 0.7, None)):
        write_result(tmp_path, ours, pos_class=name, draw=draw, data_sha256=f"{name}{draw}")
        if views is not None:
            write_result(tmp_path, views, pos_class=name, draw=draw, data_sha256=f"{name}{draw}", variant="views")
    write_result(tmp_path, 0.99, pos_class="bag", draw=3, data_sha256="bag3")  # not by the recipe views
    write_result(tmp_path, 0.01, pos_class="bag", draw=1, data_sha256="bag1", num_transforms=54)  # another part
    dark = dict(pos_class="bag", data_sha256="bag1", preparation=(("mean_intensity", 0.25),))
    write_result(tmp_path, 0.3, **dark)
    write_result(tmp_path, 0.2, variant="views", **dark)
    assert main(["recipes", "--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    ways = ["paper's recipe and score, 250 iterations, to 51 px", "views, nearest patches, to 51 px"]
    assert lines[0] == f"| normal class | {' | '.join(ways)} | false alarms |"
    assert lines[2].startswith("| FashionMNIST bag, 1 image, M = 42 | 55.0 ± 7.1 (2) | 80.0 ± 14.1 (2) |")
    assert lines[3].startswith("| FashionMNIST bag, 1 image, M = 42, mean_intensity=0.25 | 30.0 | 20.0 |")
    assert lines[4].startswith("| mean of 1 | 55.0 | 80.0 |")
    assert "coat" not in "".join(lines)
