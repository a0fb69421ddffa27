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
    measure_case,
    new_process,
    peak_memory_mib,
    run_benchmark,
    run_in,
    score_images,
    time_in_turns,
    train_finest,
)
from hta.speed.workload import benchmark_config, discriminator_gflop

ALL = {"explicit": 8.0, "float32": 4.0, "float32_no_compile": 8.0}
SCORING = {"explicit": 3.0, "float32": 0.5}
REPORT = {
    "machine": {"cpu": "CPU", "cores": 2, "torch": "2", "native_bfloat16": False},
    "cases": [
        {
            "num_transforms": 54,
            "threads": 2,
            "seconds": {"25 px": ALL, "all scales": ALL, "scoring": SCORING},
            "ratios": {
                "25 px": {"float32": 2.0, "float32_no_compile": 1.0},
                "all scales": {"float32": 2.0, "float32_no_compile": 1.0},
                "scoring": {"float32": 6.0},
            },
        },
        {
            "num_transforms": 4,
            "threads": 1,
            "seconds": {"25 px": SCORING, "all scales": SCORING, "scoring": SCORING},
            "ratios": {name: {"float32": 6.0} for name in ("25 px", "all scales", "scoring")},
        },
    ],
    "convolution": {"float32": {"peak_gflops": 100.0, "discriminator_finest": 0.5, "scoring": 0.7}},
    "peak_memory_mib": {"explicit": 2.0, "float32": 1.0},
}


def small_config(precision="float32", compiled=True):
    config = benchmark_config(1, precision, compiled, num_transforms=4)
    return replace(config, model=replace(config.model, max_size=25, nfc=4))


@pytest.fixture
def in_this_process(monkeypatch):
    """Without a second process; the measurements leave nothing behind, not even a number of threads."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(measure, "run_in", lambda _, work, *args: work(*args))
    yield
    torch.set_num_threads(threads)
    measure.plain_training.cache_clear()
    measure.plain_scoring.cache_clear()


def test_the_report_is_a_table_for_each_case():
    assert format_report(REPORT).splitlines() == [
        "CPU, 2 cores, torch 2",
        "seconds of an iteration of training (3 + 3 steps), and of scoring an image; ratio: of explicit to hta",
        "bfloat16 is left out: this processor does not have it",
        "",
        "54 transformations, 2 threads",
        "     scale  explicit s  float32 s  ratio  float32_no_compile s  ratio",
        "     25 px      8.0000     4.0000    2.0                8.0000    1.0",
        "all scales      8.0000     4.0000    2.0                8.0000    1.0",
        "   scoring      3.0000     0.5000    6.0",
        "",
        "4 transformations, 1 thread",
        "     scale  explicit s  float32 s  ratio",
        "     25 px      3.0000     0.5000    6.0",
        "all scales      3.0000     0.5000    6.0",
        "   scoring      3.0000     0.5000    6.0",
        "",
        "of torch's forward convolution, 54 transformations, 2 threads:",
        "float32: its peak is 100 GFLOP/s; the discriminator's forward and backward at the finest scale reach 50%, "
        "scoring 70%",
        "peak memory (MiB): explicit 2, float32 1",
    ]
    native = REPORT | {"machine": REPORT["machine"] | {"native_bfloat16": True}}
    assert "left out" not in format_report(native)


def test_the_comparison_is_printed_drawn_and_written(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("hta.speed.__main__.run_benchmark", lambda *args: asked.append(args) or REPORT)
    argv = ["--quick", "--threads", "1", "--json", str(tmp_path / "f.json"), "--chart", str(tmp_path / "c.png")]
    assert main(argv) == 0
    assert asked == [(1, "auto", True)]
    assert capsys.readouterr().out == format_report(REPORT) + "\n"
    assert json.loads((tmp_path / "f.json").read_text()) == REPORT
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


BOTH = ["float32", "bfloat16"]
FOUR = ["float32", "float32_no_compile", "bfloat16", "bfloat16_no_compile"]


@pytest.mark.parametrize(
    ("arguments", "native", "expected"),
    [
        ((0, "auto", False), True, [(54, 2, FOUR), (4, 2, BOTH), (54, 1, BOTH), (4, 1, BOTH)]),
        ((3, "auto", False), False, [(54, 3, FOUR[:2]), (4, 3, BOTH[:1])]),
        ((3, "bfloat16", False), False, [(54, 3, FOUR[2:]), (4, 3, BOTH[1:])]),
        ((0, "auto", True), True, [(54, 2, BOTH[1:])]),
        ((0, "auto", True), False, [(54, 2, BOTH[:1])]),
        ((1, "float32", True), True, [(54, 1, BOTH[:1])]),
    ],
)
def test_what_a_run_measures(monkeypatch, in_this_process, arguments, native, expected):
    measured = []

    def note(_, configs):
        (model,) = {config.model for config in configs.values()}
        (threads,) = {config.runtime.threads for config in configs.values()}
        measured.append((model.num_transforms, threads, list(configs)))
        assert all(config.runtime.compile == (not name.endswith("_no_compile")) for name, config in configs.items())
        assert all(name.startswith(config.runtime.precision) for name, config in configs.items())
        return {"seconds": {"scoring": dict.fromkeys(configs, 0.5)}}

    monkeypatch.setattr(measure, "has_native_bfloat16", lambda _: native)
    monkeypatch.setattr(measure, "available_cores", lambda: 2)
    monkeypatch.setattr(measure, "measure_case", note)
    monkeypatch.setattr(measure, "measure_convolution", lambda config, seconds: (config.runtime, seconds))
    monkeypatch.setattr(measure, "train_finest", lambda config, *_: (None, config.runtime.precision))
    report = run_benchmark(*arguments)
    assert measured == expected
    names = [name for name in expected[0][2] if "_" not in name]
    assert report["peak_memory_mib"].pop("explicit") > 0
    assert report["peak_memory_mib"] == {name: name for name in names}
    assert [(runtime.threads, runtime.precision, s) for runtime, s in report["convolution"].values()] == [
        (expected[0][1], name, 0.5) for name in names
    ]


def test_growth_is_a_table(tmp_path, monkeypatch, capsys):
    row = {"what": "training images", "value": 5, "unit": "iteration", "seconds": 1.5, "peak_memory_mib": 1234.0}
    monkeypatch.setattr("hta.speed.__main__.measure_growth", lambda *_: [row])
    assert main(["--growth", "--json", str(tmp_path / "f.json")]) == 0
    assert "| training images | 5 | 1.500 | iteration | 1,234 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "f.json").read_text())["growth"][0]["seconds"] == 1.5


def test_every_setting_grows_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(measure, "run_in", lambda process, work, config, *values: (config.model, values))
    rows = list(measure.measure_growth(1, "float32"))
    assert len(rows) == 5 + 5 + 5 + 3 + 3
    for row in rows:
        what, value, model, values = (row[key] for key in ("what", "value", "seconds", "peak_memory_mib"))
        grown = {
            "image side (px)": model.max_size if values == (value, 1) else None,
            "image side (px), M = 4": model.max_size if model.num_transforms == 4 else None,
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


def test_turns_alternate_until_they_have_taken_long_enough():
    done = []

    def way(name, seconds):
        return lambda: done.append(name) or seconds + done.count(name) / 8

    assert time_in_turns([way("a", 0), way("b", 1)], (1, 2), rounds=2) == [0.1875, 1.3125]
    assert "".join(done) == "abb" * 2
    done.clear()
    assert time_in_turns([way("a", 4)], (1,)) == [4.125]
    assert "".join(done) == "a"


def test_both_methods_are_timed_and_weighed(in_this_process):
    configs = {"a": small_config(), "b": small_config("bfloat16"), "b_no_compile": small_config("bfloat16", False)}
    start = time.perf_counter()
    case = measure_case(None, configs)
    elapsed = time.perf_counter() - start
    assert {name: list(row) for name, row in case["seconds"].items()} == {
        "25 px": ["explicit", *configs],
        "all scales": ["explicit", *configs],
        "scoring": ["explicit", "a", "b"],
    }
    assert case["seconds"]["all scales"] == case["seconds"]["25 px"]
    for name, row in case["seconds"].items():
        assert all(0 < seconds < elapsed for seconds in row.values())
        assert case["ratios"][name] == {way: row["explicit"] / row[way] for way in row if way != "explicit"}
    for seconds, memory in (train_finest(small_config(), 25, 2), score_images(small_config(), 3)):
        assert 0 < seconds < 10 < memory


def test_fractions_of_the_convolution_peak(monkeypatch, in_this_process):
    monkeypatch.setattr(measure, "measure_conv_peak", lambda *_: 100.0)
    monkeypatch.setattr(measure, "measure_discriminator", lambda *_: 50.0)
    gflop = discriminator_gflop(small_config().model, 25, 4)
    assert measure.measure_convolution(small_config(), gflop / 70) == pytest.approx(
        {"peak_gflops": 100.0, "discriminator_finest": 0.5, "scoring": 0.7}
    )


def test_arithmetic_is_measured():
    runtime = resolve(small_config().runtime)
    assert measure.measure_discriminator(small_config(), runtime) > 0
    assert measure.measure_conv_peak(small_config(), runtime) > 0


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
