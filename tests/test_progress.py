import logging
import re
import sys

import pytest

from ct3dlib import progress as module
from ct3dlib.progress import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[float]:
    """Let each item take 12 s; return the time."""
    caplog.set_level(logging.INFO)
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def _work(items, clock, **arguments):
    for item in progress(items, name="volumes 0003", unit="volume", **arguments):
        clock[0] += 12
        yield item


def test_a_log_file_gets_a_line_per_interval(clock, caplog):
    assert list(_work(range(6), clock)) == list(range(6))
    assert caplog.messages == [
        "volumes 0003: 3/6 (50%), 0.08/s, 0:00:36 left",
        "volumes 0003: 6 volumes in 72.0 s, 0.08 volumes/s",
    ]


def test_what_was_done_before_counts_but_not_in_the_rate(clock, caplog):
    list(_work(range(10, 14), clock, initial=10))
    assert caplog.messages == [
        "volumes 0003: 13/14 (93%), 0.08/s, 0:00:12 left",
        "volumes 0003: 14 volumes in 48.0 s, 0.08 volumes/s",
    ]


def test_an_unknown_total_is_left_out(clock, caplog):
    list(_work(iter(range(4)), clock))
    assert caplog.messages[0] == "volumes 0003: 3 done, 0.08/s"


def test_a_terminal_gets_a_bar(monkeypatch, capsys, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress([1, 2, 3], name="tokens", unit="volume")) == [1, 2, 3]
    assert re.search(r"tokens: 100%.*3/3", capsys.readouterr().err)
    assert caplog.messages == []


def test_other_ranks_are_silent(monkeypatch, capsys, clock, caplog):
    monkeypatch.setenv("RANK", "1")
    assert list(_work(range(6), clock)) == list(range(6))
    assert caplog.messages == []
    assert capsys.readouterr().err == ""
