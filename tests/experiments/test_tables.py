"""Tables and plots from results made by hand."""

import csv
import io
import subprocess
import sys

import pytest
from matplotlib.container import BarContainer
from PIL import Image
from scipy import stats

from hta.experiments.__main__ import main
from hta.experiments.paper import AVERAGE, paper_parts, paper_value
from hta.experiments.plots import class_bars, shots_curve
from hta.experiments.presets import METHOD_VERSION
from hta.experiments.results import ResultsFolder
from hta.experiments.table_text import to_csv
from hta.experiments.tables import build_table
from tests.experiments.helpers import write_result


def paper(table, name, column="Ours", dataset="fashionmnist", shots=1):
    return paper_value(table, dataset, shots, name, column)


def lines_of(table, folder):
    return list(csv.DictReader(io.StringIO(to_csv(build_table(table, ResultsFolder(folder).results())))))


def line(lines, name, column="Ours"):
    (found,) = (row for row in lines if row["class"] == name and row["column"] == column and "preset" in row["setup"])
    return found


def test_a_row_has_mean_std_draws_and_its_verdict(tmp_path):
    bag, trouser, sandals = (paper(1, name) for name in ("bag", "trouser", "sandals"))
    within, above, below = bag.mean + bag.std - 0.1, trouser.mean + trouser.std + 0.1, sandals.mean - sandals.std - 0.1
    write_result(tmp_path, (within - 1) / 100, draw=1)
    write_result(tmp_path, (within + 1) / 100, draw=2)
    write_result(tmp_path, above / 100, pos_class="trouser")
    write_result(tmp_path, below / 100, pos_class="sandals")
    lines = lines_of(1, tmp_path)
    row = line(lines, "bag")
    assert (row["ours"], row["draws"], row["verdict"]) == (f"{within:.2f}", "2", "within one std")
    assert float(row["std"]) == pytest.approx(2**0.5, abs=0.01)
    assert float(row["minmax"]) == pytest.approx(within - 1, abs=0.01)
    assert float(row["difference"]) == pytest.approx(bag.std - 0.1, abs=0.01)
    assert float(row["GEOM"]) == paper(1, "bag", "GEOM").mean
    assert (line(lines, "trouser")["verdict"], line(lines, "trouser")["std"]) == ("above", "")
    assert line(lines, "sandals")["verdict"] == "below"
    assert (line(lines, "coat")["ours"], line(lines, "coat")["verdict"]) == ("", "not run")


def test_an_average_has_no_verdict_and_the_range_of_its_draws(tmp_path, capsys):
    for draw in (1, 2, 3):
        write_result(tmp_path, 0.8, draw=draw)
    write_result(tmp_path, 0.9, pos_class="trouser")
    row = line(lines_of(1, tmp_path), "average of 2 classes")
    assert (row["ours"], row["draws"], row["verdict"]) == ("85.00", "1 to 3", "")
    assert row["difference"]
    assert main(["summary", "--results", str(tmp_path)]) == 0
    assert "| 2 | 1 to 3 | 85.0 |" in capsys.readouterr().out


def test_averages_are_over_the_classes_run_on_both_sides(tmp_path):
    ours = {"bag": 80.0, "trouser": 90.0, "sandals": 70.0}
    for name, value in ours.items():
        write_result(tmp_path, value / 100, pos_class=name)
    row = line(lines_of(1, tmp_path), "average of 3 classes")
    printed = [paper(1, name) for name in ours]
    mean = sum(value.mean for value in printed) / 3
    assert float(row["ours"]) == 80
    assert float(row["paper"]) == pytest.approx(mean)
    assert float(row["paper_std"]) == pytest.approx(sum(value.std for value in printed) / 3)
    assert float(row["DROCC"]) == pytest.approx(sum(paper(1, name, "DROCC").mean for name in ours) / 3)

    (part,) = (part for part in build_table(1, ResultsFolder(tmp_path).results()) if part.setup)
    differences = [value - p.mean for value, p in zip(ours.values(), printed, strict=True)]
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    middle, half = part.mean_difference("Ours")
    assert (middle - half, middle + half) == pytest.approx((interval.low, interval.high))
    assert part.hours == pytest.approx(3)


def test_the_printed_table_says_what_was_run_how_and_what_was_not(tmp_path, capsys):
    write_result(tmp_path, 0.8)
    write_result(tmp_path, 0.7, test_limit=None, preset="paper", settings=(("min_size", 26),))
    write_result(tmp_path, 0.6, title="CIFAR10 (JPEG subset)", dataset="folder", pos_class="frog",
                 num_transforms=54, paper_dataset="cifar10")  # fmt: skip
    assert main(["table", "1", "--results", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "**FashionMNIST, 1 training image, 42 transformations, preset fast, 1000 test images**" in text
    assert "preset paper, whole test set, min_size=26**" in text
    assert "**CIFAR10 (JPEG subset), 1 training image, 54 transformations, preset fast" in text
    frog = paper(1, "frog", dataset="cifar10")
    assert f"| frog | 60.0 | 1 | 59.0 | {frog.mean:.1f} ± {frog.std:.1f} |" in text
    assert text.count("| coat | not run |") == 1  # not of the changed setting
    assert "**paris, 1 training image**: not run (paper's average: Ours 66.6 ± 7.9)" in text
    assert "Mean difference to the paper, Ours:" in text
    assert "Total time of these runs: 3.0 hours." in text
    assert (tmp_path / "tables" / "table_1.md").read_text() + "\n" == text
    assert (tmp_path / "tables" / "table_1.csv").exists()


@pytest.mark.parametrize(
    ("table", "data"),
    [
        (1, dict(pos_class="bag", shots=1)),
        (2, dict(dataset="paris", title="Paris", pos_class="eiffel", shots=5, paper_dataset="paris")),
        (3, dict(dataset="mnist", title="MNIST", pos_class="8", shots=10, paper_dataset="mnist")),
        (4, dict(dataset="folder", title="CIFAR10 (JPEG)", pos_class="frog", shots=50, paper_dataset="cifar10")),
        (6, dict(dataset="cifar", title="CIFAR10", pos_class="frog", shots=1, paper_dataset="cifar10", variant="a")),
    ],
)
def test_runs_of_another_number_of_transformations_do_not_stand_beside_the_paper(tmp_path, table, data):
    transforms = {"fashionmnist": 42, "mnist": 42, "paris": 54, "cifar10": 54}
    for num_transforms in (54, 42, 4):
        write_result(tmp_path, num_transforms / 100, num_transforms=num_transforms, **data)
    dataset = data.get("paper_dataset", "fashionmnist")
    column = data.get("variant", "Ours")
    printed = paper(table, data["pos_class"], column, dataset, data["shots"])
    rows = {row["ours"]: row for row in lines_of(table, tmp_path) if row["class"] == data["pos_class"] and row["ours"]}
    assert len(rows) == 3
    for ours, row in rows.items():
        beside = float(ours) == transforms[dataset]
        assert row["paper"] == (str(printed.mean) if beside else "")
        assert bool(row["verdict"]) is bool(row["difference"]) is beside
        assert "GEOM" not in row or bool(row["GEOM"]) is beside


def test_the_ablation_takes_every_variant_and_no_setup_without_one(tmp_path):
    frog = dict(title="CIFAR10", dataset="cifar", pos_class="frog", num_transforms=54, paper_dataset="cifar10")
    write_result(tmp_path, 0.8, **frog)
    write_result(tmp_path, 0.55, variant="b", **frog)
    write_result(tmp_path, 0.9)
    lines = lines_of(6, tmp_path)
    assert line(lines, "frog")["ours"] == "80.00"
    assert line(lines, "frog", "b")["paper"] == str(paper(6, "frog", "b", "cifar10").mean)
    assert line(lines, "frog", "b")["verdict"] == "within one std"
    assert line(lines, "frog", "g")["verdict"] == "not run"
    assert not any("FashionMNIST" in row["setup"] for row in lines)
    assert not any(row["column"] == "b" for row in lines_of(1, tmp_path))


def test_the_ablation_is_paired_with_the_method_by_class_and_draw(tmp_path, capsys):
    cifar = dict(title="CIFAR10", dataset="cifar", num_transforms=54, paper_dataset="cifar10")
    for (name, draw), ours, changed in ((("frog", 1), 0.8, 0.7), (("frog", 2), 0.6, 0.3), (("cat", 1), 0.5, 0.54)):
        write_result(tmp_path, ours, pos_class=name, draw=draw, **cifar)
        write_result(tmp_path, changed, pos_class=name, draw=draw, variant="b", **cifar)
    write_result(tmp_path, 0.1, pos_class="dog", variant="c", **cifar)
    write_result(tmp_path, 0.2, pos_class="frog", variant="c", draw=2, **cifar)
    assert main(["table", "6", "--brief", "--results", str(tmp_path)]) == 0
    half = stats.ttest_1samp([-20, 4], 0).confidence_interval(0.95).high + 8
    expected = f"Minus Ours on the same images (95 % interval over classes): b -8.0 ± {half:.1f}, c -40.0."
    assert expected in capsys.readouterr().out


def test_the_ablation_compares_on_the_same_draws(tmp_path):
    frog = dict(title="CIFAR10", dataset="cifar", pos_class="frog", num_transforms=54, paper_dataset="cifar10")
    write_result(tmp_path, 0.8, **frog)
    write_result(tmp_path, 0.2, draw=2, **frog)
    write_result(tmp_path, 0.9, **(frog | {"pos_class": "cat"}))
    write_result(tmp_path, 0.55, variant="b", **frog)
    lines = lines_of(6, tmp_path)
    assert (line(lines, "frog")["ours"], line(lines, "frog")["draws"]) == ("80.00", "1")
    assert "average of 1 class" in {row["class"] for row in lines if row["column"] == "Ours"}


@pytest.mark.parametrize(
    ("command", "variant"), [(["table", "1"], "ours"), (["plot"], "ours"), (["table", "6"], "b"), (["table", "6"], "c")]
)
def test_results_of_one_draw_and_different_images_are_refused(tmp_path, capsys, command, variant):
    frog = dict(title="CIFAR10", dataset="cifar", pos_class="frog", num_transforms=54, paper_dataset="cifar10")
    others = frog | {"data_sha256": "others"}
    one = write_result(tmp_path, 0.8, **frog)
    write_result(tmp_path, 0.5, variant="b", **frog)
    write_result(tmp_path, 0.7, draw=2, **others)
    write_result(tmp_path, 0.7, **others | {"pos_class": "cat"})
    write_result(tmp_path, 0.7, **others | {"title": "CIFAR10 (JPEG subset)"})
    arguments = [*command, "--results", str(tmp_path)]
    assert main(arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    other = write_result(tmp_path, 0.9, variant=variant, **others)
    capsys.readouterr()
    assert main(arguments) == 2
    message = capsys.readouterr().err.strip()
    assert message.count("\n") == 0
    assert all(words in message for words in (other.name, "different images", "--dataset_title"))
    assert one.name in message or variant != "ours"
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_images_in_order_are_a_part_of_their_own(tmp_path):
    write_result(tmp_path, 0.8)
    write_result(tmp_path, 0.6, in_order=True, data_sha256="others")
    drawn, ordered = (part for part in build_table(1, ResultsFolder(tmp_path).results()) if part.setup)
    assert ordered.setup.describe() == f"{drawn.setup.describe()}, training images in data-set order"
    assert [part.cells["bag", "Ours"].mean for part in (drawn, ordered)] == [{1: 80.0}, {1: 60.0}]
    assert main(["plot", "--results", str(tmp_path)]) == 0
    assert len(list((tmp_path / "plots").iterdir())) == 4


def test_fractions_and_both_defect_columns(tmp_path):
    fractions = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
    by_fraction = {f"{fraction:g}": 0.5 + fraction / 4 for fraction in fractions}
    bottle = dict(dataset="mvtec", title="MVTec AD", pos_class="bottle", paper_dataset="mvtec", fractions=fractions)
    write_result(tmp_path, by_fraction, num_transforms=4, **bottle)
    write_result(tmp_path, by_fraction, num_transforms=54, shots=5, **bottle)
    cells = dict(bottle, dataset="defects", title="solar cells", pos_class="elpv_poly", paper_dataset=None)
    write_result(tmp_path, by_fraction, num_transforms=4, **cells)

    lines = lines_of(7, tmp_path)
    ours = {row["column"]: float(row["ours"]) for row in lines if row["class"] == "bottle" and row["ours"] and "4 t" in
            row["setup"] and "54" not in row["setup"]}  # fmt: skip
    assert ours == {"1": 50.25, "5": 51.25, "10": 52.5, "20": 55, "50": 62.5, "100": 75}
    (row,) = (r for r in lines if r["class"] == "bottle" and r["column"] == "5" and "MVTec AD, 1 t" in r["setup"])
    assert float(row["paper"]) == paper(7, "bottle", "5", "mvtec").mean
    (cell,) = (r for r in lines if r["class"] == "elpv_poly" and r["column"] == "1")
    assert (cell["ours"], cell["paper"], cell["verdict"]) == ("50.25", "", "")

    columns = {(r["class"], r["column"]): r["ours"] for r in lines_of(5, tmp_path) if r["ours"]}
    # One-shot takes 5 % of the patches, five-shot 10 %.
    assert columns["bottle", "Ours2"] == "51.25"
    assert columns["bottle", "Ours1"] == "52.50"
    assert not any(name == "elpv_poly" for name, _ in columns)


def test_every_table_prints_without_any_run_and_results_of_another_version_are_left_out(tmp_path, capsys):
    write_result(tmp_path, 0.8)
    (path,) = tmp_path.glob("*.json")
    path.write_text(path.read_text().replace(f'"method_version": {METHOD_VERSION}', '"method_version": 0'))
    for table in range(1, 8):
        assert main(["table", str(table), "--results", str(tmp_path)]) == 0
        text = capsys.readouterr().out
        assert text.count("not run (paper's average") == len(paper_parts(table))
    assert main(["plot", "--results", str(tmp_path)]) == 2


def test_a_result_of_other_settings_than_its_run_would_have_is_left_out(tmp_path):
    spec = write_result(tmp_path, 0.8)
    (path,) = tmp_path.glob("*.json")
    assert len(list(ResultsFolder(tmp_path).results())) == 1
    path.write_text(path.read_text().replace(f'"key": "{spec.key}"', '"key": "000000000000"'))
    assert list(ResultsFolder(tmp_path).results()) == []
    assert not ResultsFolder(tmp_path).holds(spec)


def test_the_brief_table_has_what_was_run_as_it_stands(tmp_path, capsys):
    write_result(tmp_path, 0.8)
    write_result(tmp_path, 0.9, pos_class="trouser")
    write_result(tmp_path, 0.7, settings=(("niter", 500),))
    assert main(["table", "1", "--brief", "--results", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    bag, trouser = paper(1, "bag"), paper(1, "trouser")
    assert "| normal class | ours | draws | paper | difference | verdict |" in text
    assert f"| bag | 80.0 | 1 | {bag.mean:.1f} ± {bag.std:.1f} | {80 - bag.mean:+.1f} | within one std |" in text
    assert "Not run: t_shirt, pullover, dress, coat, sandals, shirt, sneaker, ankle_boot." in text
    mean = (80 - bag.mean + 90 - trouser.mean) / 2
    assert f"Mean difference to the paper, Ours: {mean:+.1f} ±" in text
    assert text.count("1 below, 1 within one std.") == 1
    averages = [paper(1, AVERAGE, dataset=name) for name in ("paris", "cifar10", "mnist")]
    absent = [f"1 training image (paper's average: Ours {value.mean:.1f} ± {value.std:.1f})" for value in averages]
    assert f"Not run of table 1: paris, {absent[0]}; cifar10, {absent[1]}; mnist, {absent[2]}." in text
    assert "niter=500" not in text


def test_the_brief_table_names_what_was_run_with_changed_settings_alone(tmp_path, capsys):
    write_result(tmp_path, 0.7, settings=(("niter", 500),))
    assert main(["table", "1", "--brief", "--results", str(tmp_path)]) == 0
    assert "fashionmnist, 1 training image (changed settings alone)." in capsys.readouterr().out


def test_data_sets_that_the_paper_has_not_are_named_one_by_one(tmp_path, capsys):
    foreign = dict(dataset="defects", pos_class="good", num_transforms=4, paper_dataset=None, fractions=(0.01, 1.0))
    both = {"0.01": 0.6, "1": 0.7}
    write_result(tmp_path, both, title="Tiles", **foreign)
    for title in ("Cells", "Bolts"):
        write_result(tmp_path, both, title=title, settings=(("niter", 500),), **foreign)
    assert main(["table", "7", "--brief", "--results", str(tmp_path)]) == 0
    absent = capsys.readouterr().out.split("Not run of table 7:")[1]
    assert [absent.count(f"{title}, 1 training image (changed") for title in ("Tiles", "Cells", "Bolts")] == [0, 1, 1]


def test_the_summary_keeps_columns_apart(tmp_path, capsys):
    bottle = dict(dataset="mvtec", title="MVTec AD", pos_class="bottle", paper_dataset="mvtec", fractions=(0.05, 1.0))
    for num_transforms, rate in ((54, 0.9), (4, 0.1)):
        write_result(tmp_path, {"0.05": 0.8, "1": 0.7}, num_transforms=num_transforms, false_alarms=rate, **bottle)
    assert main(["summary", "--results", str(tmp_path)]) == 0
    one, two = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| 5 |"))
    assert (": Ours1 |" in one, ": Ours2 |" in two) == (True, True)
    assert one.endswith("| 90 (90 to 90) | 2.00 |")
    assert two.endswith("| 10 (10 to 10) |  |")


def test_the_brief_table_has_columns_side_by_side(tmp_path, capsys):
    frog = dict(title="CIFAR10", dataset="cifar", pos_class="frog", num_transforms=54, paper_dataset="cifar10")
    write_result(tmp_path, 0.8, **frog)
    write_result(tmp_path, 0.55, variant="b", **frog)
    assert main(["table", "6", "--brief", "--results", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    printed = [paper(6, "frog", column, "cifar10") for column in ("Ours", *"abcdefg")]
    assert "| normal class |  | Ours | a | b | c | d | e | f | g |" in text
    assert f"| frog | ours | 80.0 | not run | 55.0 |{' not run |' * 5}" in text
    assert "average" not in text.split("Not run of")[0]  # of one class
    assert f"| frog | paper | {' | '.join(f'{value.mean:.1f} ± {value.std:.1f}' for value in printed)} |" in text


def test_the_summary_has_a_line_for_every_part_that_was_run(tmp_path, capsys):
    write_result(tmp_path, 0.8)
    write_result(tmp_path, 0.9, pos_class="trouser")
    write_result(tmp_path, 0.7, settings=(("niter", 500),))
    for draw, rate in ((1, 0.125), (2, 0.25), (3, 0.75)):
        write_result(tmp_path, 0.7, shots=5, draw=draw, false_alarms=rate)
    assert main(["summary", "--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    printed = (paper(1, "bag").mean + paper(1, "trouser").mean) / 2
    start = "| 1 | FashionMNIST, 1 training image, 42 transformations, preset fast, 1000 test images | 2 | 1 | 85.0 |"
    assert lines[2].startswith(f"{start} {printed:.1f} | {85 - printed:+.1f} ± ")
    assert lines[2].endswith("| 1 below, 1 within one std |  | 2.00 |")
    five = paper(2, "bag", shots=5)
    assert lines[3].startswith("| 2 | FashionMNIST, 5 training images")
    assert f"| 1 | 3 | 70.0 | {five.mean:.1f} | {70 - five.mean:+.1f} |" in lines[3]
    assert lines[3].endswith("| 25 (12 to 75) | 3.00 |")
    assert len(lines) == 4


def test_plots_are_pictures_of_every_setup(tmp_path):
    for shots in (1, 5):
        write_result(tmp_path, 0.8, shots=shots)
        write_result(tmp_path, 0.9, shots=shots, pos_class="trouser")
    assert main(["plot", "--results", str(tmp_path)]) == 0
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert [name.split("_")[0] for name in names] == ["classes", "classes", "shots"]
    for name in names:
        with Image.open(tmp_path / "plots" / name) as picture:
            assert min(picture.size) > 300


def test_plots_say_what_was_not_run(tmp_path):
    write_result(tmp_path, 0.8)
    write_result(tmp_path, 0.4, draw=2)
    (part,) = (part for part in build_table(1, ResultsFolder(tmp_path).results()) if part.setup)

    (bars,) = class_bars(part).axes
    ours, printed = (bars_of for bars_of in bars.containers if isinstance(bars_of, BarContainer))
    tops = dict(zip((tick.get_text() for tick in bars.get_xticklabels()), printed, strict=True))
    assert tops["bag"].get_y() + tops["bag"].get_height() == pytest.approx(paper(1, "bag").mean)
    assert (len(printed), len(bars.texts)) == (11, 9)  # ten classes and an average; all but bag
    assert {text.get_text() for text in bars.texts} == {"not run"}
    assert [bar.get_height() for bar in ours] == pytest.approx([10, 10])  # from chance to the mean of both draws

    (lines,) = shots_curve(part.setup, [part]).axes
    assert [tick.get_text() for tick in lines.get_xticklabels()] == ["1\n1 class", "5\nnot run", "10\nnot run"]
    every = lines.containers[-1].lines[0].get_ydata()
    assert every.tolist() == [paper(table, AVERAGE, shots=n).mean for table, n in ((1, 1), (2, 5), (3, 10))]


def test_nobody_needs_to_listen(tmp_path):
    command = f"{sys.executable} -m hta.experiments summary --results {tmp_path} >&-"
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_may_leave_early(tmp_path):
    command = [sys.executable, "-m", "hta.experiments", "table", "1", "--results", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
