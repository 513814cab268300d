"""How well a scan finds its text and a text its scan: ranks in a gallery, beside those of chance.

Letters: Q queries, G items of a gallery, N items in all, E channels of an embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from ct3dlib.metrics.bootstrap import Score, ScoreTable, scores_with_intervals

# Of 8 is asked in pools (Merlin, arXiv:2406.06512), of 50 and 100 in whole splits (CT-CLIP,
# arXiv:2403.17834).
RECALLS = (1, 5, 8, 10, 50, 100)
# Cosines of float32 embeddings that are no further apart than this are the same.
TIE = 1e-6
_QUERIES = 1024  # at a time


@dataclass(frozen=True, eq=False)
class Gallery:
    """Which items are ranked among each other.

    Args:
        protocol: How they were chosen; numbers of two protocols cannot be compared.
        pools: Numbers of items; each pool is a gallery, and its items ask in it.
    """

    protocol: str
    pools: tuple[NDArray[np.intp], ...]

    @property
    def size(self) -> int:
        """Items of one pool."""
        return len(self.pools[0])


@dataclass(frozen=True, eq=False)
class Ranked:
    """What queries found.

    Args:
        query: Number of the item that asks, Q.
        rank: Place of its best positive, from 1, Q.
        positives: Items of its gallery that are right, Q.
        n_gallery: Items of its gallery.
        protocol: Of the gallery.
    """

    query: NDArray[np.intp]
    rank: NDArray[np.intp]
    positives: NDArray[np.intp]
    n_gallery: int
    protocol: str


def first_gallery(studies: Sequence[str]) -> Gallery:
    """Return the first item of each study as one gallery: a scan, whatever was reconstructed."""
    return Gallery("first", (first_of_each(studies),))


def dup_gallery(count: int) -> Gallery:
    """Return all items as one gallery: each reconstruction of a study, its text as often."""
    return Gallery("dup", (np.arange(count),))


def dedup_text_gallery(text_ids: Int[np.ndarray, " N"]) -> Gallery:
    """Return the first item of each text as one gallery: no two texts in it are equal."""
    return Gallery("dedup_text", (first_of_each(text_ids.tolist()),))


def pool_gallery(items: NDArray[np.intp], size: int, *, repeats: int, seed: int) -> Gallery:
    """Return galleries of a fixed size, so that splits of any size can be compared.

    Each repeat deals the items anew into pools that do not overlap; those of the last, incomplete
    pool ask in another repeat.

    Args:
        items: Numbers of items, as of the gallery `first`.
        size: Items of a pool.
        repeats: How often the items are dealt.
        seed: Of the dealing.

    Raises:
        ValueError: There are fewer items than a pool has, or `size` or `repeats` is below 1.
    """
    if size < 1 or repeats < 1:
        raise ValueError(f"pools need a size and repeats of 1 or more: {size} and {repeats}")
    whole = len(items) // size
    if not whole:
        raise ValueError(f"a pool of {size} needs {size} items, there are {len(items)}; lower it")
    rng = np.random.default_rng(seed)
    dealt = (rng.permutation(items)[: whole * size] for _ in range(repeats))
    return Gallery(f"pool{size}", tuple(pool for deal in dealt for pool in np.split(deal, whole)))


def first_of_each(keys: Sequence[object]) -> NDArray[np.intp]:
    """Return the number of the first item of each key, in order."""
    first: dict[object, int] = {}
    for number, key in enumerate(keys):
        first.setdefault(key, number)
    return np.fromiter(first.values(), np.intp, len(first))


def best_ranks(
    similarity: Float[np.ndarray, "Q G"], positives: Bool[np.ndarray, "Q G"]
) -> Int[np.ndarray, " Q"]:
    """Return the rank of the best positive of each query, from 1.

    Ties go against the query: what is wrong and as similar as the best positive, within `TIE`,
    comes before it. So embeddings that are all the same find nothing that chance would not find.

    Raises:
        ValueError: A query has no positive, or a similarity is not finite, which would otherwise
            rank first.
    """
    if not np.isfinite(similarity).all():
        raise ValueError("a similarity is not finite; look for NaN in the model's embeddings")
    if (lonely := np.flatnonzero(~positives.any(1))).size:
        raise ValueError(f"query {lonely[0]} has no positive in its gallery of {len(positives[0])}")
    best = np.where(positives, similarity, -np.inf).max(1, keepdims=True)
    return 1 + (~positives & (similarity >= best - TIE)).sum(1)


def rank_items(
    queries: Float[np.ndarray, "N E"],
    items: Float[np.ndarray, "N E"],
    text_ids: Int[np.ndarray, " N"],
    *,
    gallery: Gallery,
    turn: int = 0,
) -> Ranked:
    """Return the rank that each item has for its own query; items of equal text are all right.

    Args:
        queries: L2-normalised, as those of scans.
        items: L2-normalised, as those of texts.
        text_ids: Equal for equal texts.
        gallery: Who asks among whom.
        turn: A control: each item is asked for by the one so many places further in its pool.
    """
    found = []
    for pool in gallery.pools:
        held, ids = items[pool].astype(np.float64), text_ids[pool]
        asking = np.roll(queries[pool], -turn, axis=0).astype(np.float64)
        for start in range(0, len(pool), _QUERIES):
            here = slice(start, start + _QUERIES)
            positives = ids[here, None] == ids
            ranks = best_ranks(asking[here] @ held.T, positives)
            found.append((pool[here], ranks, positives.sum(1)))
    query, rank, count = (np.concatenate(part) for part in zip(*found, strict=True))
    return Ranked(query, rank, count, gallery.size, gallery.protocol)


def recall_at(rank: Int[np.ndarray, " Q"], k: int) -> float:
    """Return the share of queries whose best positive is among the first k."""
    return float(np.mean(rank <= k))


def rank_scores(rank: Int[np.ndarray, " Q"], n_gallery: int) -> dict[str, float]:
    """Return `r1`, `r5` and so on below the gallery's size, `mrr`, `median_rank`, `mean_rank`.

    `mrr` is the mean of 1 / rank (Voorhees, "The TREC-8 question answering track report", 1999).
    """
    recalls = {f"r{k}": recall_at(rank, k) for k in _recalls(n_gallery)}
    middle = {"median_rank": float(np.median(rank)), "mean_rank": float(np.mean(rank))}
    return recalls | {"mrr": float(np.mean(1 / rank))} | middle


def chance_scores(positives: Int[np.ndarray, " Q"], n_gallery: int) -> dict[str, float]:
    """Return what a random order of the gallery has: `chance_r1` and so on, and `chance_mrr`.

    Of N items P are right. The first k hold none with probability C(N - P, k) / C(N, k), the
    hypergeometric distribution at 0; with P = 1 the recall is k / N. The mean reciprocal rank is
    the sum over k of P(rank = k) / k.

    Args:
        positives: Items of a query's gallery that are right, for each query.
        n_gallery: Items of it.

    Raises:
        ValueError: A query has no positive, or more than there are items.
    """
    if positives.min() < 1 or positives.max() > n_gallery:
        raise ValueError(
            f"a query has 1 to {n_gallery} positives, found {positives.min()} to {positives.max()}"
        )
    counts, queries = np.unique(positives, return_counts=True)
    ahead = np.arange(n_gallery)
    missing = (n_gallery - counts[:, None] - ahead).clip(0) / (n_gallery - ahead)
    none = np.cumprod(missing, axis=1)  # P k: none of the first k + 1 is right
    share = queries / queries.sum()
    found = share @ (1 - none)
    recalls = {f"chance_r{k}": float(found[k - 1]) for k in _recalls(n_gallery)}
    at = np.diff(found, prepend=0.0)
    return recalls | {"chance_mrr": float(np.sum(at / (ahead + 1)))}


def retrieval_row(
    *directions: Ranked, patients: Sequence[str], resamples: int = 1000, seed: int
) -> dict[str, Any]:
    """Return the scores of one or both directions, their 95 % intervals, and those of chance.

    Patients are resampled, the gallery stays: an interval says what other queries would find in it.
    Several directions count as one list of queries. Beside the scores stand `protocol`,
    `n_gallery`, `n` ranks, `n_patients`.

    Args:
        directions: Of one gallery.
        patients: The patient of each item, all N.
        resamples: Draws.
        seed: Of the draws.
    """
    rank = np.concatenate([one.rank for one in directions])
    positives = np.concatenate([one.positives for one in directions])
    query = np.concatenate([one.query for one in directions])
    size = directions[0].n_gallery
    row = interval_row(
        lambda chosen: rank_scores(rank[chosen], size),
        np.asarray(patients)[query].tolist(),
        resamples=resamples,
        seed=seed,
    )
    gallery = {"protocol": directions[0].protocol, "n_gallery": size}
    return {**gallery, **chance_scores(positives, size), **row}


def interval_row(
    score: Score, groups: Sequence[str], *, resamples: int = 1000, seed: int
) -> ScoreTable:
    """Return `scores_with_intervals`, or with one patient alone the scores with no interval."""
    if len(set(groups)) > 1:
        return scores_with_intervals(score, groups, resamples=resamples, seed=seed)
    row: ScoreTable = {}
    for key, value in score(np.arange(len(groups))).items():
        row |= {key: value, f"{key}_ci": None}
    return row | {"n": len(groups), "n_patients": len(set(groups)), "undefined_resamples": 0}


def effective_rank(embeddings: Float[np.ndarray, "N E"]) -> float:
    """Return how many dimensions embeddings fill: 1 on a line, min(N - 1, E) at the most.

    The exponential of the entropy of the singular values' shares (Roy and Vetterli, "The effective
    rank", EUSIPCO 2007), of embeddings without their mean, which tells no item from another. 0
    where all are the same.
    """
    centred = embeddings.astype(np.float64) - embeddings.mean(0, dtype=np.float64)
    values = np.linalg.svd(centred, compute_uv=False)
    if values[0] <= TIE:
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def _recalls(n_gallery: int) -> list[int]:
    """Return the places that are asked for; all of a gallery hold every query's positive."""
    return [k for k in RECALLS if k < n_gallery or k == 1]
