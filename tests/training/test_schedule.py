import pytest

from ct3dlib.training.schedule import ema_decay, learning_rate
from tests.contracts.objective_cases import spec_of


def test_the_rate_rises_on_a_line_and_falls_on_half_a_cosine():
    spec = spec_of(steps=12, warmup_steps=4, learning_rate=2.0)
    assert [learning_rate(spec, step) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert learning_rate(spec, 4) == 2.0
    assert learning_rate(spec, 6) == pytest.approx(1 + 2**-0.5)
    assert learning_rate(spec, 8) == pytest.approx(1.0)
    assert learning_rate(spec, 12) == 0.0


def test_stopping_earlier_does_not_bend_the_cosine():
    whole, part = spec_of(steps=10), spec_of(steps=10, stop_at=5)
    assert [learning_rate(whole, s) for s in range(5)] == [learning_rate(part, s) for s in range(5)]


def test_warm_up_alone_is_a_line():
    spec = spec_of(steps=4, warmup_steps=8, learning_rate=8.0)
    assert [learning_rate(spec, step) for step in range(4)] == [1.0, 2.0, 3.0, 4.0]


def test_the_average_forgets_fast_at_first():
    assert ema_decay(0.9, 0) == 0.1
    assert ema_decay(0.9, 8) == 0.5
    assert ema_decay(0.9, 1000) == 0.9


def test_the_cosine_ends_at_the_lowest_rate():
    spec = spec_of(steps=12, warmup_steps=4, learning_rate=2.0, min_learning_rate=0.5)
    assert learning_rate(spec, 0) == 0.5
    assert learning_rate(spec, 4) == 2.0
    assert learning_rate(spec, 8) == pytest.approx(1.25)
    assert learning_rate(spec, 12) == 0.5
    with pytest.raises(ValueError, match=r"min_learning_rate \(3.0\) is above learning_rate \(2"):
        spec_of(steps=1, learning_rate=2.0, min_learning_rate=3.0)
