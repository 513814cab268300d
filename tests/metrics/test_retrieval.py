"""Ranks worked out by hand, chance against draws, galleries and their intervals."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import label_ranking_average_precision_score, top_k_accuracy_score

from ct3dlib.metrics.retrieval import (
    best_ranks,
    chance_scores,
    dedup_text_gallery,
    dup_gallery,
    effective_rank,
    first_gallery,
    pool_gallery,
    rank_items,
    rank_scores,
    recall_at,
    retrieval_row,
)

# Scan 0 finds its text first; scan 1 third; scan 2 ties with a wrong text, which counts as second.
TOY = np.array([[0.9, 0.1, 0.2], [0.8, 0.3, 0.5], [0.1, 0.7, 0.7]])


def ids(patients):
    return [f"p{number:03d}" for number in patients]


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_ranks_by_hand():
    own = np.eye(3, dtype=bool)
    assert best_ranks(TOY, own).tolist() == [1, 3, 2]
    # Columns: text 0 is beaten by nothing; 0.3 comes after 0.7; 0.7 is the largest of its column.
    assert best_ranks(TOY.T.copy(), own).tolist() == [1, 2, 1]


def test_the_best_ranked_positive_counts_and_others_take_no_place():
    similarity = np.array([[0.9, 0.8, 0.7, 0.6], [0.9, 0.8, 0.7, 0.6]])
    positives = np.array([[False, True, False, True], [True, True, True, False]])
    assert best_ranks(similarity, positives).tolist() == [2, 1]
    tied = np.full((2, 4), 0.5)  # two positives and two wrong ones; three and one
    assert best_ranks(tied, positives).tolist() == [3, 2]


def test_scores_by_hand():
    found = rank_scores(np.array([1, 3, 2, 10]), n_gallery=10)
    assert found == {
        "r1": 0.25,
        "r5": 0.75,
        "r8": 0.75,
        "mrr": pytest.approx((1 + 1 / 3 + 1 / 2 + 1 / 10) / 4),
        "median_rank": 2.5,
        "mean_rank": 4.0,
    }
    assert recall_at(np.array([1, 3, 2, 10]), 10) == 1


def test_scores_are_those_of_scikit_learn():
    similarity = np.random.default_rng(0).normal(size=(40, 40))
    rank = best_ranks(similarity, np.eye(40, dtype=bool))
    found = rank_scores(rank, 40)
    for k in (1, 5, 8, 10):
        assert found[f"r{k}"] == pytest.approx(top_k_accuracy_score(np.arange(40), similarity, k=k))
    # With one positive the mean average precision is the mean reciprocal rank.
    precision = label_ranking_average_precision_score(np.eye(40), similarity)
    assert found["mrr"] == pytest.approx(precision)


@given(
    n=st.integers(2, 12),
    copies=st.integers(1, 6),
    noise=st.sampled_from([0.0, 1e-9, 1e-8]),
    seed=st.integers(0, 5),
)
def test_embeddings_that_are_all_the_same_do_not_beat_chance(n, copies, noise, seed):
    rng = np.random.default_rng(seed)
    one = rng.normal(size=(1, 16))
    same = np.repeat(one / np.linalg.norm(one), n, axis=0)
    texts = same + noise * rng.normal(size=same.shape)
    text_ids = np.arange(n) // copies
    ranked = rank_items(same, texts, text_ids, gallery=dup_gallery(n))
    found, chance = rank_scores(ranked.rank, n), chance_scores(ranked.positives, n)
    for key, value in chance.items():
        assert found[key.removeprefix("chance_")] <= value + 1e-12


def test_equal_rows_in_other_batches_are_ties():
    same = np.repeat(unit(np.random.default_rng(0).normal(size=(1, 768))), 33, axis=0)
    near = np.nextafter(same, np.float32(2))  # what another order of additions gives
    ranked = rank_items(
        same,
        np.where(np.arange(33)[:, None] % 2, same, near),
        np.arange(33),
        gallery=dup_gallery(33),
    )
    assert ranked.rank.tolist() == [33] * 33


@pytest.mark.parametrize(("n", "p"), [(6, 1), (6, 2), (7, 5), (5, 5)])
def test_chance_is_that_of_all_orders(n, p):
    best = np.array([min(places[:p]) + 1 for places in itertools.permutations(range(n))])
    found = chance_scores(np.array([p, p]), n)
    for k in (1, 5):
        if f"chance_r{k}" in found:
            assert found[f"chance_r{k}"] == pytest.approx(np.mean(best <= k))
    assert found["chance_mrr"] == pytest.approx(np.mean(1 / best))


def test_chance_is_hypergeometric():
    mixed = chance_scores(np.array([1, 3, 3, 8]), 96)
    for k in (1, 5, 8, 10, 50):
        each = [1 - math.comb(96 - p, k) / math.comb(96, k) for p in (1, 3, 3, 8)]
        assert mixed[f"chance_r{k}"] == pytest.approx(np.mean(each), rel=1e-12)
    assert chance_scores(np.ones(5, int), 1564)["chance_r5"] == pytest.approx(5 / 1564, rel=1e-12)
    assert chance_scores(np.ones(5, int), 3039)["chance_r100"] == pytest.approx(100 / 3039)


def test_random_embeddings_have_chance_in_their_interval():
    rng = np.random.default_rng(4)
    scans, texts = unit(rng.normal(size=(200, 32))), unit(rng.normal(size=(200, 32)))
    gallery = pool_gallery(np.arange(200), 32, repeats=5, seed=0)
    ranked = rank_items(scans, texts, np.arange(200), gallery=gallery)
    row = retrieval_row(ranked, patients=ids(range(200)), resamples=300, seed=0)
    assert row["chance_r1"] == pytest.approx(1 / 32)
    low, high = row["r1_ci"]
    assert low <= 1 / 32 <= high
    low, high = row["mrr_ci"]
    assert low <= row["chance_mrr"] <= high


def test_galleries_hold_what_their_protocols_say():
    studies = ["a", "a", "b", "c", "c", "d"]
    text_ids = np.array([5, 5, 7, 5, 5, 9])  # a and c have one text
    assert [p.tolist() for p in first_gallery(studies).pools] == [[0, 2, 3, 5]]
    assert [p.tolist() for p in dup_gallery(6).pools] == [[0, 1, 2, 3, 4, 5]]
    assert [p.tolist() for p in dedup_text_gallery(text_ids).pools] == [[0, 2, 5]]
    scans = unit(np.random.default_rng(0).normal(size=(6, 4)))
    found = {
        g.protocol: rank_items(scans, scans, text_ids, gallery=g)
        for g in (first_gallery(studies), dup_gallery(6), dedup_text_gallery(text_ids))
    }
    assert {p: r.n_gallery for p, r in found.items()} == {"first": 4, "dup": 6, "dedup_text": 3}
    assert found["first"].positives.tolist() == [2, 1, 2, 1]
    assert found["dup"].positives.tolist() == [4, 4, 1, 4, 4, 1]
    assert found["dedup_text"].positives.tolist() == [1, 1, 1]
    assert found["first"].query.tolist() == [0, 2, 3, 5]
    assert all((r.rank == 1).all() for r in found.values())


def test_pools_of_a_repeat_do_not_overlap_and_all_items_take_their_turn():
    items = np.arange(100, 175)
    gallery = pool_gallery(items, 32, repeats=20, seed=3)
    assert (gallery.protocol, gallery.size, len(gallery.pools)) == ("pool32", 32, 40)
    for first, second in zip(gallery.pools[::2], gallery.pools[1::2], strict=True):
        assert len(set(first) | set(second)) == 64
    assert set(np.concatenate(gallery.pools)) == set(items)
    again = pool_gallery(items, 32, repeats=20, seed=3)
    assert all((a == b).all() for a, b in zip(gallery.pools, again.pools, strict=True))
    assert not np.array_equal(gallery.pools[0], gallery.pools[2])


def test_pools_rank_their_own_items_alone():
    # All scans are alike but for a trace of their own text: of n items the own one is first.
    rng = np.random.default_rng(0)
    scans = unit(rng.normal(size=(70, 8)))
    gallery = pool_gallery(np.arange(70), 10, repeats=2, seed=0)
    texts = unit(scans + 0.4 * rng.normal(size=scans.shape))
    ranked = rank_items(scans, texts, np.arange(70), gallery=gallery)
    for k, item in enumerate(ranked.query):
        pool = next(p for p in gallery.pools[7 * (k // 70) :] if item in p)
        mine = scans[item] @ texts[item]
        assert ranked.rank[k] == sum(scans[item] @ texts[j] >= mine for j in pool)


def test_the_turned_control_is_chance_where_the_model_is_perfect():
    scans = unit(np.random.default_rng(1).normal(size=(96, 16)))
    gallery = pool_gallery(np.arange(96), 32, repeats=3, seed=0)
    perfect = rank_items(scans, scans, np.arange(96), gallery=gallery)
    turned = rank_items(scans, scans, np.arange(96), gallery=gallery, turn=1)
    assert recall_at(perfect.rank, 1) == 1
    assert recall_at(turned.rank, 1) == 0  # its own text is first, another one's is asked for
    assert abs(turned.rank.mean() - 17) < 3


def test_long_lists_of_queries_are_ranked_as_short_ones():
    rng = np.random.default_rng(2)
    scans, texts = unit(rng.normal(size=(1500, 4))), unit(rng.normal(size=(1500, 4)))
    ranked = rank_items(scans, texts, np.arange(1500), gallery=dup_gallery(1500))
    whole = best_ranks(
        scans.astype(np.float64) @ texts.T.astype(np.float64), np.eye(1500, dtype=bool)
    )
    assert (ranked.rank == whole).all()


def test_a_row_holds_both_directions_and_resamples_patients():
    rng = np.random.default_rng(0)
    scans = unit(rng.normal(size=(40, 6)))
    texts = unit(scans + 0.5 * rng.normal(size=scans.shape))
    there = rank_items(scans, texts, np.arange(40), gallery=dup_gallery(40))
    back = rank_items(texts, scans, np.arange(40), gallery=dup_gallery(40))
    patients = ids(np.arange(40) // 2)
    row = retrieval_row(there, back, patients=patients, resamples=50, seed=0)
    assert (row["protocol"], row["n_gallery"], row["n"], row["n_patients"]) == ("dup", 40, 80, 20)
    assert row["r1"] == pytest.approx((recall_at(there.rank, 1) + recall_at(back.rank, 1)) / 2)
    assert row["r1_ci"][0] <= row["r1"] <= row["r1_ci"][1]
    assert row["chance_r10"] == pytest.approx(10 / 40)
    assert "r50" not in row
    assert "chance_r50" not in row


def test_one_patient_has_scores_without_intervals():
    scans = unit(np.eye(3))
    ranked = rank_items(scans, scans, np.arange(3), gallery=dup_gallery(3))
    row = retrieval_row(ranked, patients=["a", "a", "a"], seed=0)
    assert (row["r1"], row["r1_ci"], row["n"], row["n_patients"]) == (1.0, None, 3, 1)


def test_the_effective_rank_by_hand():
    square = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])  # both singular values sqrt(2)
    assert effective_rank(square) == pytest.approx(2)
    assert effective_rank(square + 7) == pytest.approx(2)  # the mean does not count
    line = np.outer([1.0, 2, 3, 4], [3.0, 4])
    assert effective_rank(line) == pytest.approx(1)
    # singular values 3 and 1: shares 3/4 and 1/4
    scaled = square * [3, 1]
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(scaled) == pytest.approx(expected)
    assert effective_rank(np.ones((5, 3))) == 0
    assert effective_rank(unit(np.repeat([[1.0, 2, 3]], 9, axis=0))) == 0
    assert effective_rank(np.random.default_rng(0).normal(size=(4000, 8))) > 7.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: best_ranks(np.full((1, 2), np.nan), np.ones((1, 2), bool)), "not finite; look"),
        (lambda: best_ranks(np.zeros((1, 2)), np.zeros((1, 2), bool)), "query 0 has no positive"),
        (lambda: pool_gallery(np.arange(20), 32, repeats=1, seed=0), "pool of 32 needs 32 items, "),
        (lambda: pool_gallery(np.arange(20), 4, repeats=0, seed=0), "1 or more: 4 and 0"),
        (lambda: chance_scores(np.array([0, 1]), 4), "1 to 4 positives, found 0 to 1"),
    ],
    ids=["nan", "no-positive", "small", "no-repeats", "chance"],
)
def test_what_cannot_be_ranked_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
