"""What is shown while work runs: bars of any width, lines where there is no terminal, and the time left."""

import logging
import os
import re
import struct
import sys
import time

import pytest

from hta.config import ModelConfig
from hta.models.scales import plan_of
from hta.training import progress
from hta.training.progress import Costs, Journal, Progress, progress_bar
from hta.training.scale import IterationLosses

PLAN = plan_of(ModelConfig(num_transforms=4), (64, 64))


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_a_bar_is_wide_enough_to_be_seen(monkeypatch, columns):
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown = b""
    with os.fdopen(slave, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        for title, seconds in (("scale 10", 35_999), ("good images", 3_599)):
            bar = Progress(title, 1000, 499)
            bar._bar.mininterval = 0
            bar.advance(seconds)
            bar.close()
            shown += os.read(master, 65536)
    os.close(master)
    bars = [
        len(found) for found in re.findall(r"\|([^|\r\n]*)\| 50 %, (?:9 h 59 min|59 min \d\d s) left", shown.decode())
    ]
    assert len(bars) >= 2  # each is drawn when it ends, and mostly before
    assert min(bars) >= (columns - 40) + 2
    assert max(len(line) for line in re.split(r"[\r\n]+", shown.decode())) <= columns


def test_without_a_terminal_there_is_a_line_at_most_every_30_seconds(monkeypatch, caplog):
    monkeypatch.setattr(Progress, "_spoke", time.monotonic() - 31)
    with caplog.at_level(logging.INFO, "hta"):
        for _ in range(3):  # also of many short parts
            assert list(progress_bar(range(50), "scoring", 50)) == list(range(50))
    assert len(caplog.messages) == 1
    assert re.fullmatch(r"scoring: 2 %, \d+ s left", caplog.messages[0])


def test_the_time_left_includes_later_scales_and_what_follows():
    costs = Costs(PLAN, ModelConfig(num_transforms=4), num_images=2)
    last = PLAN.num_scales - 1
    assert costs.seconds_left(last, 100, 90, 0.5) == 5  # nothing follows
    assert costs.iterations == sorted(costs.iterations)  # larger scales take longer
    expected = 0.5 * (10 + 100 * costs.iterations[last] / costs.iterations[last - 1])
    assert costs.seconds_left(last - 1, 100, 90, 0.5) == pytest.approx(expected)
    ends = [
        Costs(PLAN, ModelConfig(num_transforms=4), 2, number).seconds_left(last, 100, 100, 0.5) for number in (0, 50)
    ]
    assert 0 < ends[0] < ends[1]


def test_a_journal_says_once_how_long_all_will_take(caplog):
    journal = Journal(Costs(PLAN, ModelConfig(num_transforms=4)), 20)
    with caplog.at_level(logging.INFO, "hta"):
        for n in range(PLAN.num_scales):
            journal.begin_scale(n, 0)
            for iteration in range(20):
                journal.record(n, iteration, IterationLosses(1, 1, 1, 1))
            journal.end_scale()
    assert [message.split(":")[0] for message in caplog.messages] == ["scale 0"]
    assert caplog.messages[0].endswith("left in all")
    assert len(journal.rows) == 20 * PLAN.num_scales
    assert progress.format_duration(3700) == "1 h 01 min"
