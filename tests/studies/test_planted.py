"""The study of planted defects: its plants, its count, and the maps of a short training."""

import re

import numpy as np

from hta.studies.__main__ import main
from hta.studies.planted import peak_hits, plant


def test_plants_are_seeded_and_as_large_as_they_should_be():
    pairs, again = plant(6, seed=3), plant(6, seed=3)
    assert all(np.array_equal(one[0], other[0]) for one, other in zip(pairs, again, strict=True))
    for _, mask in pairs:
        rows, columns = np.nonzero(mask)
        assert 12 <= np.ptp(rows) + 1 <= 24
        assert 12 <= np.ptp(columns) + 1 <= 24


def test_hits_and_chance_by_hand():
    mask = np.zeros((10, 10), dtype=bool)
    mask[0, 0] = True
    near, far = np.zeros((10, 10)), np.zeros((10, 10))
    near[0, 2] = far[0, 3] = 1
    # (0,0) (0,1) (0,2) (1,0) (1,1) and (2,0) are within 2 px of the corner.
    assert peak_hits([near, far], [mask, mask], reach=2) == (1, 0.06)


def test_maps_of_a_short_training_peak_on_the_plants(wall_model, capsys):
    argv = ["planted", "--input_name", str(wall_model.folder.path), "--plants", "100", "--threads", "1"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    found = re.fullmatch(r"the map's maximum lies within 5 px of the defect in (\d+) of 100 images "
                         r"\(a random pixel: (\d+)%\)\n", printed)  # fmt: skip
    # 56 to 64 after trainings with three seeds in two precisions.
    assert int(found[1]) >= 40 > 20 >= int(found[2])
