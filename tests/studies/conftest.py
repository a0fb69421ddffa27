"""A model of the demo's wall that several studies look at."""

import pytest

import hta
from hta.studies.demo import TRAINING_CORNER, cut


@pytest.fixture(scope="session")
def wall_model(tmp_path_factory):
    """Trained by the paper's recipe for 8 iterations at three scales, and saved in its folder."""
    config = hta.default_config(recipe="paper", niter=8, max_size=32, threads=1)
    return hta.train(cut(*TRAINING_CORNER), config, folder=tmp_path_factory.mktemp("models") / "wall")
