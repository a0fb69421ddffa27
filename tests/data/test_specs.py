"""Names of data sets and classes."""

import pytest

from hta.data.specs import SPECS, benchmark_spec, default_task
from hta.errors import UserError


@pytest.mark.parametrize(
    ("dataset", "spelling", "name"),
    [
        ("cifar", "plane", "plane"),
        ("cifar10", "Airplane", "plane"),
        ("cifar", "automobile", "car"),
        ("CIFAR10", "9", "truck"),
        ("mnist", "7", "7"),
        ("mnist", "3 - three", "3"),
        ("fashion-mnist", "T-shirt/top", "t_shirt"),
        ("fashionmnist", "t_shirt", "t_shirt"),
        ("fashionmnist", "Sandal", "sandals"),
        ("fashionmnist", "Ankle boot", "ankle_boot"),
        ("fashionmnist", 8, "bag"),
        ("mvtec", "metal nut", "metal_nut"),
        ("paris", "Musee d'Orsay", "museedorsay"),
    ],
)
def test_classes_go_by_their_usual_spellings(dataset, spelling, name):
    assert benchmark_spec(dataset).class_name(spelling) == name


def test_an_unknown_class_or_data_set_lists_the_choices():
    for wrong in ("zebra", "10", "-1", ""):
        with pytest.raises(UserError, match=r"--pos_class .*plane, car, bird"):
            benchmark_spec("cifar").class_name(wrong)
    with pytest.raises(UserError, match=r"--dataset svhn: .*cifar, mnist, .*folder, defects"):
        benchmark_spec("svhn")


def test_the_aliases_lead_to_classes():
    assert all(name in spec.classes for spec in SPECS.values() for _, name in spec.aliases)


def test_tasks():
    assert {name for name in SPECS if default_task(name) == "defect"} == {"mvtec", "defects"}
    assert {default_task(name) for name in SPECS} == {"defect", "class"}
