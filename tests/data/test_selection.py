"""One run's images from options; folders of defects."""

import numpy as np
import pytest
from PIL import Image

from hta.data.selection import load_dataset, select
from hta.data.specs import BenchmarkOptions, is_defect_set
from hta.errors import UserError
from tests.experiments.helpers import make_tree


@pytest.fixture
def defects(tmp_path):
    draw = np.random.default_rng(0)
    for folder, count in (("train/good", 3), ("test/good", 2), ("test/scratch", 4)):
        (tmp_path / "tiles" / folder).mkdir(parents=True)
        for number in range(count):
            picture = Image.fromarray(draw.integers(0, 255, (150, 190), dtype=np.uint8))
            picture.save(tmp_path / "tiles" / folder / f"{number}.png")
    return tmp_path / "tiles"


def test_images_of_one_run_in_data_set_order(tmp_path):
    options = BenchmarkOptions("folder", str(make_tree(tmp_path / "tree")), "bee", index_download=2)
    selection = select(options, 1)
    assert selection.training_ids() == ["train/bee/1.png"]
    assert selection.training_images()[0].shape == (128, 128, 3)
    indices = selection.test_indices()
    assert selection.labels(indices).tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert len(selection.test_indices(test_limit=4)) == 4


def test_a_random_draw_is_a_choice_of_its_own(tmp_path):
    tree = str(make_tree(tmp_path / "tree", train=20))
    first, second, ordered = (
        select(
            BenchmarkOptions("folder", tree, "ant", index_download=k, random_images_download=random), 5
        ).training_ids()
        for k, random in ((1, True), (2, True), (1, False))
    )
    assert ordered == [f"train/ant/{n}.png" for n in (0, 1, 10, 11, 12)]
    assert len({tuple(sorted(names)) for names in (first, second, ordered)}) == 3


@pytest.mark.parametrize("missing", ["dataset", "pos_class"])
def test_what_is_missing_is_named(missing):
    given = dict(dataset="mnist", pos_class="8") | {missing: None}
    with pytest.raises(UserError, match=f"--{missing} is missing"):
        select(BenchmarkOptions(**given), 1)


def test_a_folder_of_defects_needs_no_masks(defects):
    benchmark = load_dataset("defects", defects)
    assert benchmark.classes == ("tiles",)
    assert (benchmark.spec.num_transforms, benchmark.spec.train_clahe) == (4, False)
    assert load_dataset("defects", defects, num_transforms=42).spec.train_clahe
    assert benchmark.train_id(benchmark.train_indices("tiles")[0]) == "train/good/0.png"
    assert [benchmark.is_normal(index, "tiles") for index in range(6)] == [True] * 2 + [False] * 4
    assert benchmark.strata == ("good",) * 2 + ("scratch",) * 4
    assert benchmark.test_image(5).shape == (128, 128, 3)
    assert is_defect_set("defects")
    assert not is_defect_set("cifar10")


@pytest.mark.parametrize(("folder", "words"), [("train/good", "train/good"), ("test/good", "test/good")])
def test_a_folder_of_another_form_is_refused(defects, folder, words):
    (defects / folder).rename(defects / "elsewhere")
    with pytest.raises(UserError, match=words):
        load_dataset("defects", defects)
