"""The benchmark of planted defects: its plants, its count, and what maps of a short training reach."""

import numpy as np

import hta
from hta.studies.demo import TRAINING_CORNER, brick_wall, cut
from hta.studies.planted import main, measure, peak_hits, plant


def test_plants_are_seeded_and_as_large_as_they_should_be():
    pairs = plant(brick_wall(), 6, seed=3)
    again = plant(brick_wall(), 6, seed=3)
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
    result = peak_hits([near, far], [mask, mask], reach=2)
    assert (result.hits, result.plants) == (1, 2)
    # Within 2 px of the corner lie (0,0) (0,1) (0,2) (1,0) (1,1) (2,0).
    assert result.chance == 0.06


def test_maps_of_a_short_training_peak_on_the_plants(monkeypatch, capsys):
    image = cut(brick_wall(), *TRAINING_CORNER)
    model = hta.train(image, hta.default_config(niter=40, max_size=40, threads=1))
    results = [measure(model, 20, seed) for seed in (0, 1)]
    # 27 to 33 of 40 after trainings with four seeds in two precisions; a random pixel would meet 5 of 40.
    assert sum(result.hits for result in results) >= 20
    assert all(result.plants == 20 and result.chance < 0.2 for result in results)

    monkeypatch.setattr("hta.studies.planted.load", lambda *_: model)
    assert main(["--seed", "1"]) == 0
    hits, chance = results[1].hits, results[1].chance
    assert f"within 5 px of the defect in {hits} of 20 images (a random pixel: {chance:.0%})" in capsys.readouterr().out
