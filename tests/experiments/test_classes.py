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
    assert main(["classes", "--results", str(tmp_path)]) == 0
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith("| data set | normal class | draws | paper's score | combined | difference |")
    half = stats.t.ppf(0.975, 1) * math.sqrt(((15 - 10.5) ** 2 + (6 - 10.5) ** 2) / 2)
    assert lines[:5] == [
        "| FashionMNIST | bag | 2 | 60.0 ± 14.1 | 75.0 ± 21.2 | +15.0 | 15 | 38 |",
        "| FashionMNIST | shirt | 1 | 40.0 | 46.0 | +6.0 | 10 | 23 |",
        "| FashionMNIST | coat | 1 | 70.0 | 68.0 | -2.0 | 10 | 34 |",
        f"| FashionMNIST, held out | mean of 2 | 1 to 2 | 50.0 | 60.5 | +10.5 ± {half:.1f} | 12 | 30 |",
        "| FashionMNIST, development | mean of 1 | 1 | 70.0 | 68.0 | -2.0 | 10 | 34 |",
    ]


def test_runs_without_the_score_make_no_table(tmp_path, capsys):
    write_result(tmp_path, 0.5)
    assert main(["classes", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == ""
