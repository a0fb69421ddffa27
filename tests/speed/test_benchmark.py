"""python -m hta.speed: its arithmetic, its processes, its errors. The figures themselves are no test's business."""

import pytest

from hta.config import ModelConfig
from hta.speed import __main__ as command
from hta.speed.growth import Growth, format_growth
from hta.speed.measure import time_in_turns
from hta.speed.plain import PlainProcess, Work
from hta.speed.report import Report, Timing, draw_chart, format_report
from hta.speed.workload import benchmark_config, discriminator_gflop


def report() -> Report:
    machine = {"cpu": "CPU", "threads": 2, "dtype": "bfloat16", "torch": "2"}
    training = [Timing(2.0, 1.0), Timing(6.0, 1.0)]
    return Report(machine, [25, 32], training, Timing(3.0, 0.5), 100.0, 50.0, 70.0, {"explicit": 2.0, "hta": 1.0})


def test_ratios_are_of_sums_and_of_the_finest():
    ratios = report().summary()["ratios"]
    assert (ratios["training_all_scales"], ratios["training_finest"], ratios["scoring"]) == (4.0, 6.0, 6.0)
    assert report().summary()["conv_peak_fraction"] == {"discriminator_finest": 0.5, "scoring": 0.7}
    assert "32 px" in format_report(report())


def test_the_way_without_compiled_kernels_stands_beside():
    both = report()
    assert both.summary()["ratios"]["training_all_scales_no_compile"] is None
    both.training = [Timing(2.0, 1.0, 2.0), Timing(6.0, 1.0, 2.0)]
    ratios = both.summary()["ratios"]
    assert (ratios["training_all_scales_no_compile"], ratios["training_finest_no_compile"]) == (2.0, 3.0)
    assert "3.0" in format_report(both).splitlines()[4].split()


def test_chart_is_a_png(tmp_path):
    draw_chart(report(), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_operations_of_a_discriminator_by_hand():
    # Four rotations of a square: four canvases of the image's own size, 2 x 9 operations a pair of channels and pixel.
    config = ModelConfig(num_transforms=4, num_layer=5)
    per_canvas = 18 * (23**2 * 3 * 8 + (21**2 + 19**2 + 17**2) * 8 * 8 + 15**2 * 8 * 5)
    assert discriminator_gflop(config, 25, 8) == pytest.approx(4 * per_canvas / 1e9)


def test_turns_alternate_and_the_first_is_not_counted():
    done = []

    def way(name, seconds):
        def work():
            done.append(name)
            return seconds[min(done.count(name), len(seconds)) - 1]

        return work

    medians = time_in_turns([way("a", [100, 1]), way("b", [100, 2])], (1, 2), rounds=2)
    assert medians == [1, 2]
    assert "".join(done) == "ab" + "abb" * 2


def test_the_plain_process_times_what_it_is_asked_for():
    with PlainProcess(threads=1) as plain:
        assert 0 < plain.measure(Work("score")) < 60
        assert 0 < plain.measure(Work("train", scale=0)) < 60


def test_growth_is_a_table():
    table = format_growth([Growth("training images", 5, "iteration", 1.5, 1234.0)])
    assert "| training images | 5 | 1.500 | iteration | 1,234 |" in table
    assert benchmark_config(1, "float32").model.num_transforms == 54


@pytest.mark.parametrize(
    ("argv", "said"),
    [(["--json", "nowhere/f.json"], "--json nowhere/f.json"), (["--growth", "--chart", "c.png"], "--chart c.png")],
)
def test_wrong_options_are_one_line(argv, said, capsys):
    assert command.main(argv) == 2
    assert said in capsys.readouterr().err
