import numpy as np
import pytest

from ct3dlib.metrics.codebook import CodeUsage


def test_usage_and_perplexity_match_hand_computation():
    usage = CodeUsage(codebook_size=8)
    usage.add(np.array([[5, 5], [5, 5]]))
    usage.add(np.array([0, 0, 5, 2]))
    # Counts 0: 2, 2: 1, 5: 5 of 8 tokens.
    assert usage.tokens == 8
    assert usage.usage == 3 / 8
    shares = np.array([2, 1, 5]) / 8
    assert usage.perplexity == pytest.approx(np.prod(shares**-shares))


def test_usage_is_over_the_tokens_where_the_codebook_is_larger():
    usage = CodeUsage(codebook_size=2**18)
    usage.add(np.arange(10))
    assert usage.usage == 1
    assert usage.perplexity == pytest.approx(10)


def test_counts_do_not_depend_on_how_indices_come_in_parts():
    indices = np.random.default_rng(0).integers(0, 50, (6, 20))
    whole, parts = CodeUsage(64), CodeUsage(64)
    whole.add(indices)
    for part in indices:
        parts.add(part)
    np.testing.assert_array_equal(whole.codes, parts.codes)
    np.testing.assert_array_equal(whole.counts, parts.counts)


def test_nothing_seen_uses_nothing():
    assert CodeUsage(8).usage == CodeUsage(8).perplexity == 0


def test_indices_outside_the_codebook_are_refused():
    with pytest.raises(ValueError, match="indices span 3 to 8, the codebook has 0 to 7"):
        CodeUsage(8).add(np.array([3, 8]))
