"""Names of data sets and classes."""

import pytest

from hta.data.specs import SPECS, benchmark_spec, class_index, default_task
from hta.errors import UserError


@pytest.mark.parametrize(
    ("dataset", "spelling", "label"),
    [
        ("cifar", "plane", 0),
        ("cifar10", "Airplane", 0),
        ("cifar", "automobile", 1),
        ("CIFAR10", "9", 9),
        ("mnist", "7", 7),
        ("mnist", "3 - three", 3),
        ("fashion-mnist", "T-shirt/top", 0),
        ("fashionmnist", "t_shirt", 0),
        ("fashionmnist", "Sandal", 5),
        ("fashionmnist", "Ankle boot", 9),
        ("fashionmnist", 8, 8),
        ("mvtec", "metal nut", 7),
        ("paris", "Musee d'Orsay", 5),
    ],
)
def test_classes_go_by_their_usual_spellings(dataset, spelling, label):
    assert class_index(benchmark_spec(dataset), spelling) == label


@pytest.mark.parametrize("wrong", ["zebra", "10", "-1", ""])
def test_an_unknown_class_lists_the_choices(wrong):
    with pytest.raises(UserError, match=r"--pos_class .*plane, car, bird"):
        class_index(benchmark_spec("cifar"), wrong)


def test_the_aliases_lead_to_classes():
    assert all(name in spec.classes for spec in SPECS.values() for _, name in spec.aliases)


def test_an_unknown_data_set_lists_the_choices():
    with pytest.raises(UserError, match=r"--dataset svhn: .*cifar, mnist, .*folder, defects"):
        benchmark_spec("svhn")


def test_tasks():
    assert {name: default_task(name) for name in SPECS} == dict.fromkeys(SPECS, "class") | {
        "mvtec": "defect",
        "defects": "defect",
    }
