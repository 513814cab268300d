"""How well regions of scans and what is written of them go together.

Letters: B studies, R regions, E channels, P pairs of a study and a region.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from ct3dlib.metrics.bootstrap import Score
from ct3dlib.metrics.retrieval import TIE, best_ranks, chance_scores, first_of_each, interval_row

_RECALLS = (1, 5)
_FEWEST = 2  # patients of a gallery


@dataclass(frozen=True, eq=False)
class RegionPairs:
    """Regions of scans beside what is written of them.

    Args:
        scans: L2-normalised embeddings of regions of scans.
        texts: L2-normalised embeddings of what is written of them.
        present: Whether a scan shows a region.
        valid: Present, and written of.
        normal: Whether the text calls the region normal.
        text_ids: Equal where the same is written of a region.
        patients: Of each study.

    Raises:
        ValueError: A pair is valid whose region is not present.
    """

    scans: Float[np.ndarray, "B R E"]
    texts: Float[np.ndarray, "B R E"]
    present: Bool[np.ndarray, "B R"]
    valid: Bool[np.ndarray, "B R"]
    normal: Bool[np.ndarray, "B R"]
    text_ids: Int[np.ndarray, "B R"]
    patients: Sequence[str]

    def __post_init__(self) -> None:
        """Check that what is written of can be seen."""
        wrong = np.argwhere(self.valid & ~self.present)
        if len(wrong):
            b, r = wrong[0]
            raise ValueError(f"study {b}, region {r}: valid, and not present in the scan")

    @property
    def num_regions(self) -> int:
        """Regions, R."""
        return self.valid.shape[1]


def region_accuracy(pairs: RegionPairs, *, resamples: int = 1000, seed: int) -> dict[str, Any]:
    """Return how often the text of a region is most like that region of its own scan.

    A valid pair (b, r) is right where <scan_br, text_br> is larger than <scan_bs, text_br> for
    each other present region s; ties are wrong. Which region it is tells them apart: this says
    nothing of findings, `region_retrieval` does.

    Args:
        pairs: Of held-out studies.
        resamples: Draws of patients.
        seed: Of the draws.

    Returns:
        `micro`, the mean over pairs, and `macro`, that over regions of the means over their pairs,
        each with its interval; `chance` and `chance_macro`, the means of 1 / present regions;
        `n` pairs; `by_region` and `n_by_region`, lists of R. Scores are None where no pair is
        valid.
    """
    study, region = np.nonzero(pairs.valid)
    patients = [pairs.patients[b] for b in study.tolist()]
    own = pairs.texts[study, region].astype(np.float64)  # P E
    alike = np.einsum("pe,pse->ps", own, pairs.scans[study].astype(np.float64))
    alike[~pairs.present[study]] = -np.inf
    mine = alike[np.arange(len(region)), region]
    right = (alike >= mine[:, None] - TIE).sum(1) == 1
    chance = 1 / pairs.present[study].sum(1)

    def score(chosen: NDArray[np.intp]) -> dict[str, float]:
        hit = right[chosen]
        return {"micro": float(hit.mean()), "macro": _macro(hit, region[chosen])}

    return {
        **_row(
            score,
            ("micro", "macro"),
            patients,
            resamples=resamples,
            seed=seed,
        ),
        "chance": float(chance.mean()) if len(region) else None,
        "chance_macro": _macro(chance, region) if len(region) else None,
        "by_region": _by_region(right, region, pairs.num_regions),
        "n_by_region": pairs.valid.sum(0).tolist(),
    }


def region_retrieval(pairs: RegionPairs, *, resamples: int = 1000, seed: int) -> dict[str, Any]:
    """Return how well a region finds its text among those of other patients, and back.

    Each region has a gallery of its own: the first valid study of each patient. Right are a
    study's own text, an equal one, and, where both say that the region is normal, any other of
    these: no scan could tell them apart. Regions of fewer than 2 patients are left out.

    Args:
        pairs: Of held-out studies.
        resamples: Draws of patients.
        seed: Of the draws.

    Returns:
        `r1` and `r5`, means over regions of the means over queries of both directions, with
        intervals; `chance_r1` and `chance_r5` likewise, exact; `n` queries; `n_regions`;
        `r1_by_region` and `chance_r1_by_region`, lists of R, None where a region is left out.
    """
    ranks, regions, who = [np.zeros(0, np.intp)], [np.zeros(0, np.intp)], []
    chances: list[dict[str, float] | None] = [None] * pairs.num_regions
    for r in range(pairs.num_regions):
        items = np.flatnonzero(pairs.valid[:, r])
        items = items[first_of_each([pairs.patients[b] for b in items.tolist()])]
        if len(items) < _FEWEST:
            continue
        scans, texts = (of[items, r].astype(np.float64) for of in (pairs.scans, pairs.texts))
        same = _same(pairs.normal[items, r], pairs.text_ids[items, r])
        alike = scans @ texts.T
        ranks += [best_ranks(alike, same), best_ranks(alike.T, same)]
        regions.append(np.full(2 * len(items), r))
        who += 2 * [pairs.patients[b] for b in items.tolist()]
        chances[r] = _chance(same)
    hits = {f"r{k}": np.concatenate(ranks) <= k for k in _RECALLS}
    region = np.concatenate(regions)

    def score(queries: NDArray[np.intp]) -> dict[str, float]:
        return {name: _macro(hit[queries], region[queries]) for name, hit in hits.items()}

    known = [chance for chance in chances if chance is not None]
    return {
        **_row(score, tuple(hits), who, resamples=resamples, seed=seed),
        **{f"chance_{k}": float(np.mean([c[k] for c in known])) if known else None for k in hits},
        "n_regions": len(known),
        "r1_by_region": _by_region(hits["r1"], region, pairs.num_regions),
        "chance_r1_by_region": [None if c is None else c["r1"] for c in chances],
    }


def _same(normal: Bool[np.ndarray, " n"], ids: Int[np.ndarray, " n"]) -> Bool[np.ndarray, "n n"]:
    """Return which texts of a region are right for which studies."""
    return (ids[:, None] == ids) | (normal[:, None] & normal)


def _chance(same: Bool[np.ndarray, "n n"]) -> dict[str, float]:
    """Return the recalls of a random order; 1 beyond the gallery."""
    exact = chance_scores(same.sum(1), len(same))
    return {f"r{k}": exact.get(f"chance_r{k}", 1.0) for k in _RECALLS}


def _row(
    score: Score, names: Sequence[str], patients: Sequence[str], *, resamples: int, seed: int
) -> dict[str, Any]:
    """Return scores of pairs with their intervals; None where there is no pair."""
    if patients:
        return dict(interval_row(score, patients, resamples=resamples, seed=seed))
    empty = {key: None for name in names for key in (name, f"{name}_ci")}
    return {**empty, "n": 0, "n_patients": 0, "undefined_resamples": 0}


def _macro(values: NDArray[np.generic], region: NDArray[np.intp]) -> float:
    """Return the mean over regions of the means over their pairs."""
    count = np.bincount(region)
    total = np.bincount(region, weights=values.astype(np.float64))
    return float((total[count > 0] / count[count > 0]).mean())


def _by_region(
    hit: NDArray[np.bool_], region: NDArray[np.intp], num_regions: int
) -> list[float | None]:
    """Return the share of hits of each region; None where it has no pair."""
    pairs = [hit[region == r] for r in range(num_regions)]
    return [float(h.mean()) if len(h) else None for h in pairs]
