"""python -m hta.speed: its arithmetic, its processes, its errors. The figures themselves are no test's business."""

import json
import time
from dataclasses import replace

import pytest
import torch

from hta.config import ModelConfig
from hta.runtime import resolve
from hta.speed import measure
from hta.speed.__main__ import format_report, main
from hta.speed.measure import (
    Timing,
    new_process,
    peak_memory_mib,
    run_in,
    score_images,
    summarize,
    time_in_turns,
    train_finest,
)
from hta.speed.workload import benchmark_config, discriminator_gflop

FIGURES = {
    "machine": {"cpu": "CPU", "threads": 2, "dtype": "bfloat16", "torch": "2"},
    "sizes": [25, 32],
    "training": [Timing(2.0, 1.0), Timing(6.0, 1.0)],
    "scoring": Timing(3.0, 0.5),
    "conv_peak_gflops": 100.0,
    "discriminator_gflops": 50.0,
    "scoring_gflops": 70.0,
    "peak_memory_mib": {"explicit": 2.0, "hta": 1.0},
}
REPORT = summarize(FIGURES)


def test_ratios_are_of_sums_and_of_the_finest_with_and_without_compiled_kernels():
    ratios = REPORT["ratios"]
    assert (ratios["training_all_scales"], ratios["training_finest"], ratios["scoring"]) == (4.0, 6.0, 6.0)
    assert ratios["training"] == [2.0, 6.0]
    assert ratios["training_all_scales_no_compile"] is None
    both = summarize(FIGURES | {"training": [Timing(2.0, 1.0, 2.0), Timing(6.0, 1.0, 2.0)]})
    ratios = both["ratios"]
    assert (ratios["training_all_scales_no_compile"], ratios["training_finest_no_compile"]) == (2.0, 3.0)
    assert both["conv_peak_fraction"] == {"discriminator_finest": 0.5, "scoring": 0.7}
    assert both["training"][0] == {"explicit": 2.0, "hta": 1.0, "operators": 2.0}
    assert format_report(both).splitlines() == [
        "CPU, 2 threads, bfloat16, torch 2",
        "one iteration of training (3 + 3 steps), and one scored image, 54 transformations",
        "     scale  explicit s       hta s       ratio  no_compile       ratio",
        "     25 px      2.0000      1.0000         2.0      2.0000         1.0",
        "     32 px      6.0000      1.0000         6.0      2.0000         3.0",
        "       all      8.0000      2.0000         4.0      4.0000         2.0",
        "   scoring      3.0000      0.5000         6.0                        ",
        "forward convolution peak 100 GFLOP/s; of it the discriminator's forward and backward at the finest scale "
        "reach 50%, scoring 70%",
        "peak memory (MiB): explicit 2, hta 1",
    ]


def test_the_comparison_is_printed_drawn_and_written(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("hta.speed.__main__.run_benchmark", lambda *args: asked.append(args) or REPORT)
    argv = ["--quick", "--threads", "1", "--json", str(tmp_path / "f.json"), "--chart", str(tmp_path / "c.png")]
    assert main(argv) == 0
    assert asked == [(1, "auto", True)]
    assert capsys.readouterr().out == format_report(REPORT) + "\n"
    assert json.loads((tmp_path / "f.json").read_text()) == REPORT
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_growth_is_a_table(tmp_path, monkeypatch, capsys):
    row = {"what": "training images", "value": 5, "unit": "iteration", "seconds": 1.5, "peak_memory_mib": 1234.0}
    monkeypatch.setattr("hta.speed.__main__.measure_growth", lambda *_: [row])
    assert main(["--growth", "--json", str(tmp_path / "f.json")]) == 0
    assert "| training images | 5 | 1.500 | iteration | 1,234 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "f.json").read_text())["growth"][0]["seconds"] == 1.5


def test_every_setting_grows_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(measure, "run_in", lambda process, work, config, *values: (config.model, values))
    rows = list(measure.measure_growth(1, "float32"))
    assert len(rows) == 5 + 5 + 3 + 3
    for row in rows:
        what, value, model, values = (row[key] for key in ("what", "value", "seconds", "peak_memory_mib"))
        grown = {
            "image side (px)": model.max_size if values == (value, 1) else None,
            "training images": values[-1],
            "transformations": model.num_transforms,
            "test images": values[0],
        }
        assert grown[what] == value


def test_operations_of_a_discriminator_by_hand():
    # Four rotations of a square: four canvases of the image's own size, 2 x 9 operations a pair of channels and pixel.
    config = ModelConfig(num_transforms=4, num_layer=5)
    per_canvas = 18 * (23**2 * 3 * 8 + (21**2 + 19**2 + 17**2) * 8 * 8 + 15**2 * 8 * 5)
    assert discriminator_gflop(config, 25, 8) == pytest.approx(4 * per_canvas / 1e9)


def test_turns_alternate_and_the_first_is_not_counted():
    done = []

    def way(name, seconds):
        return lambda: done.append(name) or (100 if done.count(name) == 1 else seconds)

    medians = time_in_turns([way("a", 1), way("b", 2)], (1, 2), rounds=2)
    assert medians == [1, 2]
    assert "".join(done) == "ab" + "abb" * 2


def test_both_methods_are_timed_and_weighed(monkeypatch):
    small = benchmark_config(1, "float32")
    config = replace(small, model=replace(small.model, num_transforms=4, max_size=25, nfc=4))
    runtime = resolve(config.runtime)
    monkeypatch.setattr(measure, "_PLAIN", (config, runtime))
    monkeypatch.setattr(measure, "NUM_TRANSFORMS", 4)
    monkeypatch.setattr(measure, "run_in", lambda _, work, *args: work(*args))
    start = time.perf_counter()
    timings = [measure.measure_training(None, [config, config], 1, 0)]
    timings.append(measure.measure_scoring(None, config, runtime, 1))
    elapsed = time.perf_counter() - start
    assert all(0 < seconds < elapsed for t in timings for seconds in (t.explicit, t.hta))
    assert timings[0].operators > 0
    assert timings[1].operators is None
    for seconds, memory in (train_finest(config, 25, 2), score_images(config, 3)):
        assert 0 < seconds < 10 < memory
    assert measure.measure_discriminator(config, runtime, 1) > 0
    measure.plain_training.cache_clear()
    measure.plain_scoring.cache_clear()


def test_a_process_of_its_own_has_its_own_threads_and_memory():
    with new_process(threads=2) as process:
        assert run_in(process, torch.get_num_threads) == 2
        assert run_in(process, peak_memory_mib) < peak_memory_mib()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--json", "nowhere/f.json"], "--json nowhere/f.json"),
        (["--growth", "--chart", "c.png"], "--chart c.png"),
        (["--precision", "int8"], "--precision int8"),
        (["--threads", "-1"], "--threads -1"),
    ],
)
def test_wrong_options_are_one_line(argv, said, capsys):
    assert main(argv) == 2
    assert said in capsys.readouterr().err
