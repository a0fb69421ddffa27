"""The table of the score "combined", by hand."""

import math

from scipy import stats

from hta.experiments.__main__ import main
from tests.experiments.helpers import write_result


def test_scores_are_compared_by_class_and_by_part(tmp_path, capsys):
    for name, draw, paper, combined in (
        ("bag", 1, 0.5, 0.6),
        ("bag", 2, 0.7, 0.9),
        ("shirt", 1, 0.4, 0.46),
        ("coat", 1, 0.7, 0.68),
        ("sneaker", 1, 0.9, None),
    ):
        write_result(tmp_path, paper, pos_class=name, draw=draw, combined=combined, false_alarms=draw / 10)
    write_result(tmp_path, 0.1, pos_class="bag", shots=5, combined=0.2)  # not one-shot
    write_result(tmp_path, 0.1, pos_class="bag", variant="e", combined=0.2)  # not the method
    write_result(tmp_path, 0.1, pos_class="bag", settings=(("niter", 100),), combined=0.3)  # another part
    assert main(["classes", "--results", str(tmp_path)]) == 0
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith("| data set | normal class | draws | paper's score | combined | difference |")
    half = stats.t.ppf(0.975, 1) * math.sqrt(((15 - 10.5) ** 2 + (6 - 10.5) ** 2) / 2)
    assert lines.pop(3) == "| FashionMNIST, fast, niter=100 | bag | 1 | 10.0 | 30.0 | +20.0 |  | 15 |"
    assert lines.pop(5).startswith("| FashionMNIST, fast, niter=100, held out | mean of 1 |")
    assert lines[:5] == [
        "| FashionMNIST, fast | bag | 2 | 60.0 ± 14.1 | 75.0 ± 21.2 | +15.0 | 15 | 38 |",
        "| FashionMNIST, fast | shirt | 1 | 40.0 | 46.0 | +6.0 | 10 | 23 |",
        "| FashionMNIST, fast | coat | 1 | 70.0 | 68.0 | -2.0 | 10 | 34 |",
        f"| FashionMNIST, fast, held out | mean of 2 | 1 to 2 | 50.0 | 60.5 | +10.5 ± {half:.1f} | 12 | 30 |",
        "| FashionMNIST, fast, development | mean of 1 | 1 | 70.0 | 68.0 | -2.0 | 10 | 34 |",
    ]


def test_runs_without_the_score_make_no_table(tmp_path, capsys):
    write_result(tmp_path, 0.5)
    assert main(["classes", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == ""
