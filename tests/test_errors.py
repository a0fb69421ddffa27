"""Errors name what their reader typed: options in a script, parameters in the library."""

import pytest

import hta
import main_eval
import main_train
from hta.errors import UserError
from tests.helpers import picture


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hta.default_config(niter=0), "niter 0: must be 1 <= value"),
        (lambda: hta.default_config(ker_size=4), "ker_size 4: must be odd, such as 3 or 5"),
        (
            lambda: hta.train(picture(0, 12, 12)),
            "image of 12 x 12 px: a side is below min_size 25; give a larger image",
        ),
        (
            lambda: hta.load("nowhere"),
            "nowhere: no model here; train one with main_train.py, or check name_or_path and models_dir",
        ),
        (
            lambda: hta.train(picture(0, 40, 40), folder="taken"),
            "taken: exists and is not a model of hta; give another folder",
        ),
    ],
)
def test_the_library_names_parameters(tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(UserError) as caught:
        call()
    assert str(caught.value).endswith(message)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (main_train, "--input_name a.png --niter 0", "--niter 0: must be 1 <= value"),
        (main_eval, "--input_name nowhere --test_dir .", "or check --input_name and --models_dir"),
    ],
)
def test_a_script_names_options(tmp_path, monkeypatch, capsys, script, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert script.main(arguments.split()) == 2
    assert message in capsys.readouterr().err
