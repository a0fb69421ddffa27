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
from hta.experiments.plan import METHOD_VERSION, paper_part
from hta.experiments.plots import class_bars, shots_curve
from hta.experiments.results import AVERAGE, is_done, load_runs
from hta.experiments.tables import build_table, to_csv, to_lines
from tests.experiments.helpers import write_result

CIFAR = dict(title="CIFAR10", dataset="cifar", num_transforms=54, paper_dataset="cifar10")
FROG = CIFAR | {"pos_class": "frog"}


def paper(table, name, column="Ours", dataset="fashionmnist", shots=1):
    """Mean and standard deviation that the paper prints."""
    part = paper_part(table, dataset, shots)
    ((mean, std),) = part.loc[(part["pos_class"] == name) & (part["column"] == column), ["paper", "paper_std"]].values
    return mean, std


def spread(mean_and_std):
    return "{:.1f} ± {:.1f}".format(*mean_and_std)


def printed(capsys, folder, *command):
    capsys.readouterr()
    assert main([*command, "--results", str(folder)]) == 0
    return capsys.readouterr().out


def lines_of(table, folder):
    return list(csv.DictReader(io.StringIO(to_csv(build_table(table, load_runs(folder))))))


def line(lines, name, column="Ours"):
    (found,) = (row for row in lines if row["class"] == name and row["column"] == column and "preset" in row["setup"])
    return found


def parts_that_were_run(table, folder):
    return [part for _, part in build_table(table, load_runs(folder)).groupby("part") if part["label"].iloc[0]]


def half_of_interval(values):
    return stats.ttest_1samp(values, 0).confidence_interval(0.95).high - sum(values) / len(values)


def test_a_row_has_mean_std_draws_and_its_verdict(tmp_path):
    bag, trouser, sandals = (paper(1, name) for name in ("bag", "trouser", "sandals"))
    within, above, below = sum(bag) - 0.1, sum(trouser) + 0.1, sandals[0] - sandals[1] - 0.1
    write_result(tmp_path, (within - 1) / 100, draw=1)
    write_result(tmp_path, (within + 1) / 100, draw=2)
    write_result(tmp_path, above / 100, pos_class="trouser")
    write_result(tmp_path, below / 100, pos_class="sandals")
    lines = lines_of(1, tmp_path)
    row = line(lines, "bag")
    assert (row["ours"], row["draws"], row["verdict"]) == (f"{within:.2f}", "2", "within one std")
    assert float(row["std"]) == pytest.approx(2**0.5, abs=0.01)
    assert float(row["minmax"]) == pytest.approx(within - 1, abs=0.01)
    assert float(row["difference"]) == pytest.approx(bag[1] - 0.1, abs=0.01)
    assert float(row["GEOM"]) == paper(1, "bag", "GEOM")[0]
    assert (line(lines, "trouser")["verdict"], line(lines, "trouser")["std"]) == ("above", "")
    assert line(lines, "sandals")["verdict"] == "below"
    assert (line(lines, "coat")["ours"], line(lines, "coat")["verdict"]) == ("", "not run")


def test_names_are_text_in_spreadsheets_and_in_markdown(tmp_path):
    write_result(tmp_path, 0.7, pos_class="=1+1|2")
    assert "'=1+1|2" in {row["class"] for row in lines_of(1, tmp_path)}
    assert to_lines(["a|b"], [["c|d"]]) == [r"| a\|b |", "| --- |", r"| c\|d |"]


def test_averages_are_over_the_classes_run_on_both_sides(tmp_path, capsys):
    ours = {"bag": 80.0, "trouser": 90.0, "sandals": 70.0}
    for name, value in ours.items():
        write_result(tmp_path, value / 100, pos_class=name)
    for draw in (2, 3):
        write_result(tmp_path, 0.8, draw=draw)
    row = line(lines_of(1, tmp_path), "average of 3 classes")
    means, stds = zip(*(paper(1, name) for name in ours), strict=True)
    assert (row["ours"], row["draws"], row["verdict"]) == ("80.00", "1 to 3", "")
    assert float(row["paper"]) == pytest.approx(sum(means) / 3)
    assert float(row["paper_std"]) == pytest.approx(sum(stds) / 3)
    assert float(row["DROCC"]) == pytest.approx(sum(paper(1, name, "DROCC")[0] for name in ours) / 3)
    differences = [value - mean for value, mean in zip(ours.values(), means, strict=True)]
    text = f"{sum(differences) / 3:+.1f} ± {half_of_interval(differences):.1f}"
    full = printed(capsys, tmp_path, "table", "1")
    assert f"Mean difference to the paper, Ours: {text} (95 % interval over classes); " in full
    assert "Time: 5.00 hours." in full


def test_the_printed_table_says_what_was_run_how_and_what_was_not(tmp_path, capsys):
    write_result(tmp_path, 0.8)
    write_result(tmp_path, 0.7, test_limit=None, preset="paper", settings=(("min_size", 26),))
    write_result(tmp_path, 0.6, **FROG | {"title": "CIFAR10 (JPEG subset)", "dataset": "folder"})
    text = printed(capsys, tmp_path, "table", "1")
    assert "**FashionMNIST, 1 training image, 42 transformations, preset fast, 1000 test images**" in text
    assert "preset paper, whole test set, min_size=26**" in text
    assert "**CIFAR10 (JPEG subset), 1 training image, 54 transformations, preset fast" in text
    assert f"| frog | 60.0 | 1 | 59.0 | {spread(paper(1, 'frog', dataset='cifar10'))} |" in text
    assert text.count("| coat | not run |") == 1  # not of the changed setting
    assert "**paris, 1 training image**: not run (paper's average: Ours 66.6 ± 7.9)" in text
    assert "Total time of these runs: 3.0 hours." in text
    assert (tmp_path / "tables" / "table_1.md").read_text() + "\n" == text
    assert (tmp_path / "tables" / "table_1.csv").exists()


@pytest.mark.parametrize(
    ("table", "dataset", "pos_class", "shots", "own"),
    [(1, "fashionmnist", "bag", 1, 42), (2, "paris", "eiffel", 5, 54), (3, "mnist", "8", 10, 42),
     (4, "cifar10", "frog", 50, 54), (6, "cifar10", "frog", 1, 54)],
)  # fmt: skip
def test_runs_of_another_number_of_transformations_are_not_shown_beside_the_paper(
    tmp_path, table, dataset, pos_class, shots, own
):
    column = "a" if table == 6 else "Ours"
    for number in (54, 42, 4):
        write_result(tmp_path, number / 100, dataset="folder", title="T", pos_class=pos_class, shots=shots,
                     paper_dataset=dataset, num_transforms=number, variant=column.lower())  # fmt: skip
    rows = {float(row["ours"]): row for row in lines_of(table, tmp_path) if row["class"] == pos_class and row["ours"]}
    assert len(rows) == 3
    for ours, row in rows.items():
        assert row["paper"] == (str(paper(table, pos_class, column, dataset, shots)[0]) if ours == own else "")
        assert bool(row["verdict"]) is bool(row["difference"]) is (ours == own)
        assert "GEOM" not in row or bool(row["GEOM"]) is (ours == own)


def test_the_ablation_compares_every_variant_with_the_method_on_the_same_draws(tmp_path, capsys):
    for (name, draw), ours, changed in ((("frog", 1), 0.8, 0.7), (("frog", 2), 0.6, 0.3), (("cat", 1), 0.5, 0.54)):
        write_result(tmp_path, ours, **CIFAR, pos_class=name, draw=draw)
        write_result(tmp_path, changed, **CIFAR, pos_class=name, draw=draw, variant="b")
    write_result(tmp_path, 0.1, **CIFAR, pos_class="dog", variant="c")
    write_result(tmp_path, 0.2, **FROG, variant="c", draw=2)
    write_result(tmp_path, 0.9, **FROG, draw=3)  # of a draw, a class and a setup without another variant
    write_result(tmp_path, 0.9, **CIFAR, pos_class="bird")
    write_result(tmp_path, 0.9)
    text = printed(capsys, tmp_path, "table", "6", "--brief")
    half = half_of_interval([-20, 4])
    assert f"Minus Ours on the same images (95 % interval over classes): b -8.0 ± {half:.1f}, c -40.0." in text
    lines = lines_of(6, tmp_path)
    assert (line(lines, "frog")["ours"], line(lines, "frog")["draws"]) == ("70.00", "2")
    assert "average of 2 classes" in {row["class"] for row in lines if row["column"] == "Ours"}
    assert line(lines, "frog", "b")["paper"] == str(paper(6, "frog", "b", "cifar10")[0])
    assert line(lines, "frog", "g")["verdict"] == "not run"
    assert not any("FashionMNIST" in row["setup"] for row in lines)
    assert not any(row["column"] == "b" for row in lines_of(1, tmp_path))


def test_columns_are_side_by_side_in_the_brief_table(tmp_path, capsys):
    write_result(tmp_path, 0.8, **FROG)
    write_result(tmp_path, 0.55, **FROG, variant="b")
    text = printed(capsys, tmp_path, "table", "6", "--brief")
    values = [spread(paper(6, "frog", column, "cifar10")) for column in ("Ours", *"abcdefg")]
    assert "| normal class |  | Ours | a | b | c | d | e | f | g |" in text
    assert f"| frog | ours | 80.0 | not run | 55.0 |{' not run |' * 5}" in text
    assert "average" not in text.split("Not run of")[0]  # of one class
    assert f"| frog | paper | {' | '.join(values)} |" in text


@pytest.mark.parametrize(
    ("command", "variant"), [(["table", "1"], "ours"), (["plot"], "ours"), (["table", "6"], "b"), (["table", "6"], "c")]
)
def test_results_of_one_draw_and_different_images_are_refused(tmp_path, capsys, command, variant):
    others = FROG | {"data_sha256": "others"}
    one = write_result(tmp_path, 0.8, **FROG)
    write_result(tmp_path, 0.5, variant="b", **FROG)
    write_result(tmp_path, 0.7, draw=2, **others)
    write_result(tmp_path, 0.7, **others | {"pos_class": "cat"})
    write_result(tmp_path, 0.7, **others | {"title": "CIFAR10 (JPEG subset)"})
    printed(capsys, tmp_path, *command)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    other = write_result(tmp_path, 0.9, variant=variant, **others)
    assert main([*command, "--results", str(tmp_path)]) == 2
    message = capsys.readouterr().err.strip()
    assert message.count("\n") == 0
    assert all(words in message for words in (other.name, "different images", "--dataset_title"))
    assert one.name in message or variant != "ours"
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_images_in_order_are_a_part_of_their_own(tmp_path):
    write_result(tmp_path, 0.8)
    write_result(tmp_path, 0.6, in_order=True, data_sha256="others")
    drawn, ordered = parts_that_were_run(1, tmp_path)
    assert ordered["label"].iloc[0] == f"{drawn['label'].iloc[0]}, training images in data-set order"
    assert [part["ours"].dropna().tolist() for part in (drawn, ordered)] == [[80, 80], [60, 60]]  # class and average


def test_fractions_and_both_defect_columns(tmp_path):
    fractions = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)
    by_fraction = {f"{fraction:g}": 0.5 + fraction / 4 for fraction in fractions}
    bottle = dict(dataset="mvtec", title="MVTec AD", pos_class="bottle", paper_dataset="mvtec", fractions=fractions)
    write_result(tmp_path, by_fraction, num_transforms=4, **bottle)
    write_result(tmp_path, by_fraction, num_transforms=54, shots=5, **bottle)
    cells = dict(bottle, dataset="defects", title="solar cells", pos_class="elpv_poly", paper_dataset=None)
    write_result(tmp_path, by_fraction, num_transforms=4, **cells)

    rows = [row for row in lines_of(7, tmp_path) if row["ours"] and ", 1 training image, 4 t" in row["setup"]]
    ours = {row["column"]: float(row["ours"]) for row in rows if row["class"] == "bottle"}
    assert ours == {"1": 50.25, "5": 51.25, "10": 52.5, "20": 55, "50": 62.5, "100": 75}
    (row,) = (row for row in rows if row["class"] == "bottle" and row["column"] == "5")
    assert float(row["paper"]) == paper(7, "bottle", "5", "mvtec")[0]
    (cell,) = (row for row in rows if row["class"] == "elpv_poly" and row["column"] == "1")
    assert (cell["ours"], cell["paper"], cell["verdict"]) == ("50.25", "", "")

    columns = {(row["class"], row["column"]): row["ours"] for row in lines_of(5, tmp_path) if row["ours"]}
    # One-shot takes 5 % of the patches, five-shot 10 %.
    assert columns["bottle", "Ours2"] == "51.25"
    assert columns["bottle", "Ours1"] == "52.50"
    assert not any(name == "elpv_poly" for name, _ in columns)


def test_results_of_another_version_or_key_are_left_out_and_tables_print_without_any(tmp_path, capsys):
    specs = [write_result(tmp_path, 0.8, draw=draw) for draw in (1, 2, 3)]
    changes = [(f'"method_version": {METHOD_VERSION}', '"method_version": 0'), (specs[1].key, "0" * 12), ("{", "")]
    assert len(load_runs(tmp_path)) == 3
    assert all(is_done(tmp_path, spec) for spec in specs)
    for spec, change in zip(specs, changes, strict=True):
        path = tmp_path / f"{spec.name}.json"
        path.write_text(path.read_text().replace(*change))
        assert not is_done(tmp_path, spec)
    for table in range(1, 8):
        count = len(paper_part(table)[["dataset", "shots"]].drop_duplicates())
        assert printed(capsys, tmp_path, "table", str(table)).count("not run (paper's average") == count
    assert main(["plot", "--results", str(tmp_path)]) == 2


def test_the_brief_table_has_what_was_run_with_plain_settings(tmp_path, capsys):
    write_result(tmp_path, 0.8)
    write_result(tmp_path, 0.9, pos_class="trouser")
    write_result(tmp_path, 0.7, settings=(("niter", 500),))
    write_result(tmp_path, 0.7, settings=(("niter", 500),), **FROG)
    text = printed(capsys, tmp_path, "table", "1", "--brief")
    (bag, std), (trouser, _) = paper(1, "bag"), paper(1, "trouser")
    assert "| normal class | ours | draws | paper | difference | verdict |" in text
    assert f"| bag | 80.0 | 1 | {bag:.1f} ± {std:.1f} | {80 - bag:+.1f} | within one std |" in text
    assert "Not run: t_shirt, pullover, dress, coat, sandals, shirt, sneaker, ankle_boot." in text
    assert f"Mean difference to the paper, Ours: {(80 - bag + 90 - trouser) / 2:+.1f} ±" in text
    assert text.count("1 below, 1 within one std.") == 1
    absent = [f"{name}, 1 training image (paper's average: Ours {spread(paper(1, AVERAGE, dataset=name))})"
              for name in ("paris", "mnist")]  # fmt: skip
    changed = "cifar10, 1 training image (changed settings alone)"
    assert f"Not run of table 1: {'; '.join([*absent, changed])}." in text
    assert "niter=500" not in text


def test_data_sets_that_the_paper_does_not_have_are_named_one_by_one(tmp_path, capsys):
    foreign = dict(dataset="defects", pos_class="good", num_transforms=4, paper_dataset=None, fractions=(0.01, 1.0))
    both = {"0.01": 0.6, "1": 0.7}
    write_result(tmp_path, both, title="Tiles", **foreign)
    for title in ("Cells", "Bolts"):
        write_result(tmp_path, both, title=title, settings=(("niter", 500),), **foreign)
    absent = printed(capsys, tmp_path, "table", "7", "--brief").split("Not run of table 7:")[1]
    assert [absent.count(f"{title}, 1 training image (changed") for title in ("Tiles", "Cells", "Bolts")] == [0, 1, 1]


def test_the_summary_has_a_line_for_every_plain_part_and_column(tmp_path, capsys):
    write_result(tmp_path, 0.8)
    write_result(tmp_path, 0.9, pos_class="trouser")
    write_result(tmp_path, 0.7, settings=(("niter", 500),))
    for draw, rate in ((1, 0.125), (2, 0.25), (3, 0.75)):
        write_result(tmp_path, 0.7, shots=5, draw=draw, false_alarms=rate)
    bottle = dict(dataset="mvtec", title="MVTec AD", pos_class="bottle", paper_dataset="mvtec", fractions=(0.05, 1.0))
    for number, rate in ((54, 0.9), (4, 0.1)):
        write_result(tmp_path, {"0.05": 0.8, "1": 0.7}, num_transforms=number, false_alarms=rate, **bottle)
    lines = printed(capsys, tmp_path, "summary").strip().splitlines()
    mean = (paper(1, "bag")[0] + paper(1, "trouser")[0]) / 2
    start = "| 1 | FashionMNIST, 1 training image, 42 transformations, preset fast, 1000 test images | 2 | 1 | 85.0 |"
    assert lines[2].startswith(f"{start} {mean:.1f} | {85 - mean:+.1f} ± ")
    assert lines[2].endswith("| 1 below, 1 within one std |  | 2.00 |")
    five, _ = paper(2, "bag", shots=5)
    assert lines[3].startswith("| 2 | FashionMNIST, 5 training images")
    assert f"| 1 | 3 | 70.0 | {five:.1f} | {70 - five:+.1f} |" in lines[3]
    assert lines[3].endswith("| 25 (12 to 75) | 3.00 |")
    one, two = lines[4:]
    assert (": Ours1 |" in one, ": Ours2 |" in two) == (True, True)
    assert one.endswith("| 90 (90 to 90) | 2.00 |")
    assert two.endswith("| 10 (10 to 10) |  |")


def test_plots_are_pictures_of_every_setup(tmp_path, capsys):
    write_result(tmp_path, 0.8)
    write_result(tmp_path, 0.8, shots=5)
    write_result(tmp_path, 0.9, in_order=True)
    printed(capsys, tmp_path, "plot")
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    plain = "fashionmnist_{}42_fast_1000{}.png"
    classes = [plain.format("1shot_", ""), plain.format("1shot_", "_in-order"), plain.format("5shot_", "")]
    assert names == [
        *(f"classes_{name}" for name in classes),
        *(f"shots_{plain.format('', x)}" for x in ("", "_in-order")),
    ]
    with Image.open(tmp_path / "plots" / names[0]) as picture:
        assert min(picture.size) > 300


def test_plots_say_what_was_not_run(tmp_path):
    write_result(tmp_path, 0.8)
    write_result(tmp_path, 0.4, draw=2)
    (part,) = parts_that_were_run(1, tmp_path)

    (bars,) = class_bars(part).axes
    ours, beside = (bars_of for bars_of in bars.containers if isinstance(bars_of, BarContainer))
    tops = dict(zip((tick.get_text() for tick in bars.get_xticklabels()), beside, strict=True))
    assert tops["bag"].get_y() + tops["bag"].get_height() == pytest.approx(paper(1, "bag")[0])
    assert (len(beside), len(bars.texts)) == (11, 9)  # ten classes and an average; all but bag
    assert {text.get_text() for text in bars.texts} == {"not run"}
    assert [bar.get_height() for bar in ours] == pytest.approx([10, 10])  # from chance to the mean of both draws

    (lines,) = shots_curve(part).axes
    assert [tick.get_text() for tick in lines.get_xticklabels()] == ["1\n1 class", "5\nnot run", "10\nnot run"]
    every = lines.containers[-1].lines[0].get_ydata()
    assert every.tolist() == [paper(table, AVERAGE, shots=n)[0] for table, n in ((1, 1), (2, 5), (3, 10))]


def test_nobody_needs_to_listen(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["summary", "--results", str(tmp_path)]) == 0


def test_a_reader_may_leave_early(tmp_path):
    command = [sys.executable, "-m", "hta.experiments", "table", "1", "--results", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"loading torch ...\n"
    assert process.returncode == 141
