"""The table of what more training images gain, by hand."""

import math

from scipy import stats

from hta.experiments.__main__ import main
from hta.experiments.plan import paper_part
from tests.experiments.helpers import write_result


def papers(table, *classes):
    """The mean of what the paper prints for these classes of FashionMNIST."""
    values = paper_part(table, "fashionmnist", {1: 1, 2: 5, 3: 10}[table])
    values = values[values["column"] == "Ours"].set_index("pos_class")["paper"]
    return sum(values[name] for name in classes) / len(classes)


def test_gains_are_over_the_classes_and_draws_that_were_run_with_one_image_too(tmp_path, capsys):
    for name, shots, draw, auroc in (
        ("bag", 1, 1, 0.4),
        ("bag", 1, 2, 0.6),
        ("coat", 1, 1, 0.8),
        ("shirt", 1, 1, 0.2),
        ("bag", 5, 1, 0.8),
        ("coat", 5, 1, 0.9),
        ("dress", 5, 1, 0.7),
        ("bag", 10, 1, 0.6),
    ):
        write_result(tmp_path, auroc, pos_class=name, shots=shots, draw=draw)
    write_result(tmp_path, 0.1, pos_class="coat", shots=10, settings=(("niter", 100),))  # changed
    write_result(tmp_path, 0.1, pos_class="coat", shots=10, in_order=True)
    write_result(tmp_path, 0.1, pos_class="coat", shots=10, variant="e")  # not the method
    write_result(tmp_path, 0.1, title="Of one image", paper_dataset=None)
    write_result(tmp_path, 0.3, num_transforms=4)
    write_result(tmp_path, 0.2, num_transforms=4, shots=5)
    for shots in (1, 5):
        write_result(tmp_path, shots / 10, title="Unpublished", paper_dataset=None, test_limit=None, shots=shots)
    assert main(["gains", "--results", str(tmp_path)]) == 0
    title, _, *lines = capsys.readouterr().out.strip().splitlines()
    assert title.startswith("| data set | training images | classes | ours | paper | gain over one image |")
    half = stats.t.ppf(0.975, 1) * math.sqrt(((40 - 25) ** 2 + (10 - 25) ** 2) / 2)  # bag, draw 1: 40; coat: 10
    one, five = papers(1, "bag", "coat", "shirt"), papers(2, "bag", "coat", "dress")
    gains = papers(2, "bag", "coat") - papers(1, "bag", "coat"), papers(3, "bag") - papers(1, "bag")
    setup = "FashionMNIST, 42 transformations, preset fast, 1000 test images"
    rotations = "FashionMNIST, 4 transformations, preset fast, 1000 test images"
    assert lines[:2] == [
        f"| {rotations} | 1 | 1 | 30.0 |  |  |  | 0.075 | 0.037 |",
        f"| {rotations} | 5 | 1 | 20.0 |  | -10.0 |  | 0.050 | 0.025 |",
    ]
    assert lines[2:] == [
        f"| {setup} | 1 | 3 | 50.0 | {one:.1f} |  |  | 0.125 | 0.062 |",
        f"| {setup} | 5 | 3 | 80.0 | {five:.1f} | +25.0 ± {half:.1f} | {gains[0]:+.1f} | 0.200 | 0.100 |",
        f"| {setup} | 10 | 1 | 60.0 | {papers(3, 'bag'):.1f} | +20.0 | {gains[1]:+.1f} | 0.150 | 0.075 |",
        "| Unpublished, 42 transformations, preset fast, whole test set | 1 | 1 | 10.0 |  |  |  | 0.025 | 0.013 |",
        "| Unpublished, 42 transformations, preset fast, whole test set | 5 | 1 | 50.0 |  | +40.0 |  | 0.125 | 0.062 |",
    ]
