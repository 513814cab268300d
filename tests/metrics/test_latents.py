import numpy as np
import pytest

from ct3dlib.metrics.latents import ChannelStatistics


def parts() -> list[np.ndarray]:
    """Return latents of four volumes of different sizes, far from 0 against their spread."""
    rng = np.random.default_rng(0)
    scale, shift = np.array([1.0, 0.01, 30.0]), np.array([0.0, 100.0, -5.0])
    shapes = [(3, 4, 5, 6), (3, 1, 1, 1), (3, 2, 7, 3), (3, 8, 2, 2)]
    return [(rng.standard_normal(shape).T * scale + shift).T.astype(np.float32) for shape in shapes]


def statistics_of(latents: list[np.ndarray]) -> ChannelStatistics:
    statistics = ChannelStatistics(3)
    for part in latents:
        statistics.add(part)
    return statistics


def test_statistics_match_hand_computation():
    statistics = ChannelStatistics(2)
    statistics.add(np.array([[1.0, 3.0], [5.0, 5.0]]))
    statistics.add(np.array([[8.0], [5.0]]))
    assert statistics.count == 3
    np.testing.assert_allclose(statistics.mean, [4, 5])
    np.testing.assert_allclose(statistics.std, [(26 / 3) ** 0.5, 0])


def test_statistics_of_parts_match_numpy_over_all_positions():
    latents = parts()
    joined = np.concatenate([part.reshape(3, -1) for part in latents], axis=1).astype(np.float64)
    statistics = statistics_of(latents)
    assert statistics.count == joined.shape[1]
    np.testing.assert_allclose(statistics.mean, joined.mean(axis=1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(statistics.std, joined.std(axis=1), rtol=1e-10)


def test_merging_shards_equals_one_pass():
    latents = parts()
    merged = statistics_of(latents[:1])
    merged.merge(statistics_of(latents[1:]))
    merged.merge(ChannelStatistics(3))
    whole = statistics_of(latents)
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(merged.std, whole.std, rtol=1e-12)


def test_float16_latents_are_summed_in_float64():
    latents = np.full((1, 64, 64, 64), 2.0, np.float16)
    latents[0, 0, 0, 0] = 1000
    statistics = ChannelStatistics(1)
    statistics.add(latents)
    np.testing.assert_allclose(statistics.mean, 2 + 998 / 64**3, rtol=1e-12)
    np.testing.assert_allclose(statistics.std, latents.astype(np.float64).std(), rtol=1e-10)


def test_nothing_added_has_no_statistics():
    empty = ChannelStatistics(3)
    with pytest.raises(ValueError, match="no latents were added, so channels have no mean"):
        _ = empty.mean
    with pytest.raises(ValueError, match="no latents were added"):
        _ = empty.std


def test_other_channels_are_refused():
    statistics = ChannelStatistics(3)
    with pytest.raises(ValueError, match="latents have 4 channels, these statistics have 3"):
        statistics.add(np.zeros((4, 2, 2, 2)))
    with pytest.raises(ValueError, match="statistics of 4 channels do not merge into 3"):
        statistics.merge(ChannelStatistics(4))


def test_latents_that_are_not_finite_are_refused_and_leave_no_trace():
    statistics = ChannelStatistics(1)
    statistics.add(np.array([[1.0, 3.0]]))
    with pytest.raises(ValueError, match="2 of 3 latents are not finite; check the volume for NaN"):
        statistics.add(np.array([[np.nan, 0, np.inf]]))
    assert (statistics.count, statistics.mean) == (2, 2)
