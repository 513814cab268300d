"""How well scans and texts of held-out patients find each other, and what asking tells of findings.

Letters: N volumes, R regions, E the shared width.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ct3dlib.errors import StoreError
from ct3dlib.inference.embed_studies import ScanTable, Split, embed_stored
from ct3dlib.inference.vlm import TextTable, TrainedVlm
from ct3dlib.inference.zero_shot import score_findings
from ct3dlib.metrics.region_retrieval import RegionPairs, region_accuracy, region_retrieval
from ct3dlib.metrics.retrieval import (
    Gallery,
    Ranked,
    dedup_text_gallery,
    dup_gallery,
    effective_rank,
    first_gallery,
    pool_gallery,
    rank_items,
    recall_at,
    retrieval_row,
)
from ct3dlib.regions.label_map import REGIONS

logger = logging.getLogger(__name__)

_SEED = 0  # of pools and resamples
_POOLS = (32, 64, 100, 128)
_REPEATS = 20
_HEADLINES = (
    *("pool32_r1", "pool32_r1_ci", "chance_r1", "region_accuracy", "region_retrieval_r1"),
    *("zero_shot_auroc", "zero_shot_macro_auroc", "effective_rank", "n"),
)


class Evaluated(NamedTuple):
    """Scores as JSON holds them, and `direction`, `query`, `rank`, `positives` of each query."""

    metrics: dict[str, Any]
    ranks: pd.DataFrame


class _Paired(NamedTuple):
    """Volumes with a text, an item each."""

    studies: Sequence[str]
    patients: Sequence[str]
    scans: ScanTable
    texts: TextTable
    first: NDArray[np.intp]  # items that stand for their study
    masked: NDArray[np.bool_]  # items whose regions are known


def evaluate_vlm(
    model: TrainedVlm,
    valid: Split,
    *,
    tune: Split | None,
    random: TrainedVlm | None = None,
    resamples: int = 1000,
) -> Evaluated:
    """Return how well scans and texts find each other and what is told of findings unseen.

    The headlines `pool32_r1` and `chance_r1` are means of both directions over pools of 32 studies;
    `shuffled_r1` is a control that must be at chance: each scan is held to be another study's.
    `region_accuracy` is over pairs; `region_retrieval_r1` over regions, each among other patients.
    `zero_shot_auroc` is of the ensemble of prompts. All else is in `retrieval`, `regions` and
    `zero_shot`; `random_initialisation` holds the headlines of a model that has learnt nothing.

    Args:
        model: On its device.
        valid: What is reported.
        tune: Thresholds are chosen on it; None: scores that need one are None.
        random: A model with fresh weights, beside which the other one stands.
        resamples: Draws of patients for intervals.

    Raises:
        StoreError: There is no volume, or no study has a text.
        CheckpointError: The volumes are of another recipe than the model's.
    """
    metrics, ranks = _evaluate(model, valid, tune, resamples=resamples)
    if random is not None:
        found = _evaluate(random, valid, tune, resamples=resamples)[0]
        metrics["random_initialisation"] = {key: found[key] for key in _HEADLINES}
    logger.info(
        "%s studies; R@1 of pools of 32: %s, chance %s; zero-shot AUROC of the %s findings %s: %s",
        *(metrics["n"], metrics["pool32_r1"], metrics["chance_r1"]),
        *(len(scored := metrics["zero_shot_findings"]), ", ".join(scored)),
        metrics["zero_shot_macro_auroc"],
    )
    return Evaluated(metrics, ranks)


def _evaluate(model: TrainedVlm, valid: Split, tune: Split | None, *, resamples: int) -> Evaluated:
    """Return the scores of one model."""
    volumes = [volume for study in valid.studies for volume in study.volumes]
    scans = embed_stored(model, volumes, regions=valid.regions)
    paired = _paired(model, valid, scans)
    retrieval, shuffled, ranks = _retrieval(paired, resamples)
    pool = retrieval.get("pool32", {}).get("both", {})
    regions = _regions(paired, resamples)
    zero_shot = score_findings(model, valid, scans, tune=tune, resamples=resamples)
    ensemble = zero_shot["ensemble"]
    metrics = {
        "pool32_r1": pool.get("r1"),
        "pool32_r1_ci": pool.get("r1_ci"),
        "chance_r1": pool.get("chance_r1"),
        "shuffled_r1": shuffled,
        "region_accuracy": regions["accuracy"]["micro"],
        "region_accuracy_chance": regions["accuracy"]["chance"],
        "region_retrieval_r1": regions["retrieval"]["r1"],
        "region_retrieval_chance": regions["retrieval"]["chance_r1"],
        "zero_shot_auroc": {k: row["auroc"] for k, row in ensemble.get("findings", {}).items()},
        "zero_shot_macro_auroc": ensemble.get("macro", {}).get("18", {}).get("auroc"),
        "zero_shot_findings": ensemble.get("macro", {}).get("18", {}).get("findings", []),
        "n": len(paired.first),
        "retrieval": retrieval,
        "regions": regions,
        "zero_shot": zero_shot,
        "effective_rank": {
            "scans": effective_rank(paired.scans.global_[paired.first]),
            "texts": effective_rank(paired.texts.global_[paired.first]),
            "width": model.model.spec.embedding_size,
        },
        "truncated": paired.texts.truncated,
    }
    return Evaluated(metrics, ranks)


def _paired(model: TrainedVlm, split: Split, scans: ScanTable) -> _Paired:
    """Return the volumes that have a text, with the vectors of both; texts are encoded once."""
    kept = [s for s in split.studies if s.name in split.texts and not split.texts[s.name].too_short]
    if not kept:
        raise StoreError(
            f"none of {len(split.studies)} studies has a text of more than a few words; see "
            f"findings and answer in the catalog"
        )
    names = [study.name for study in kept]
    place = {name: k for k, name in enumerate(names)}
    of_volume = [study for study in split.studies for _ in study.volumes]
    rows = [i for i, study in enumerate(of_volume) if study.name in place]
    texts = model.embed_texts([split.texts[name] for name in names])
    studies = [of_volume[i].name for i in rows]
    volumes = [volume.volume for study in split.studies for volume in study.volumes]
    masks = {mask.volume for mask in split.regions}
    text = [place[name] for name in studies]
    return _Paired(
        studies=studies,
        patients=[of_volume[i].patient for i in rows],
        scans=ScanTable(scans.global_[rows], scans.region[rows], scans.present[rows]),
        texts=TextTable(
            global_=texts.global_[text],
            region=texts.region[text],
            mention=texts.mention[text],
            text_ids=texts.text_ids[text],
            region_ids=texts.region_ids[text],
            truncated=texts.truncated,
        ),
        first=first_gallery(studies).pools[0],
        masked=np.array([volumes[i] in masks for i in rows]),
    )


def _retrieval(
    paired: _Paired, resamples: int
) -> tuple[dict[str, Any], float | None, pd.DataFrame]:
    """Return the rows of all protocols, the shuffled control, and the ranks of `first`."""
    first = first_gallery(paired.studies)
    galleries = [first, dedup_text_gallery(paired.texts.text_ids)]
    if len(paired.studies) > first.size:
        galleries.append(dup_gallery(len(paired.studies)))
    pools = (size for size in _POOLS if size <= first.size)
    galleries += [
        pool_gallery(first.pools[0], size, repeats=_REPEATS, seed=_SEED) for size in pools
    ]

    def row(*ranked: Ranked) -> dict[str, Any]:
        return retrieval_row(*ranked, patients=paired.patients, resamples=resamples, seed=_SEED)

    rows, shuffled, tables = {}, None, {}
    for gallery in galleries:
        there, back = tables[gallery.protocol] = _both_ways(paired, gallery)
        rows[gallery.protocol] = {
            "both": row(there, back),
            "scan_to_text": row(there),
            "text_to_scan": row(back),
        }
        if gallery.protocol == "pool32":
            turned = _both_ways(paired, gallery, turn=1)
            shuffled = float(np.mean([recall_at(one.rank, 1) for one in turned]))
    return rows, shuffled, _rank_table(paired, tables["first"])


def _both_ways(paired: _Paired, gallery: Gallery, *, turn: int = 0) -> tuple[Ranked, Ranked]:
    """Return the ranks of texts for scans, and of scans for texts."""
    scans, texts, ids = paired.scans.global_, paired.texts.global_, paired.texts.text_ids
    return (
        rank_items(scans, texts, ids, gallery=gallery, turn=turn),
        rank_items(texts, scans, ids, gallery=gallery, turn=turn),
    )


def _rank_table(paired: _Paired, ranked: tuple[Ranked, Ranked]) -> pd.DataFrame:
    """Return a row for each query of the gallery `first`."""
    names = ("scan_to_text", "text_to_scan")
    tables = [
        pd.DataFrame(
            {
                "direction": name,
                "query": [paired.studies[i] for i in one.query],
                "rank": one.rank,
                "positives": one.positives,
            }
        )
        for name, one in zip(names, ranked, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


def _regions(paired: _Paired, resamples: int) -> dict[str, Any]:
    """Return the scores of regions of the volumes that stand for their studies.

    Of a scan whose regions nobody knows the model takes all to be there; `n_masks` counts others.
    """
    kept, scans, texts = paired.first, paired.scans, paired.texts
    present, mention = scans.present[kept], texts.mention[kept]

    def pairs(valid: NDArray[np.bool_]) -> RegionPairs:
        return RegionPairs(
            scans=scans.region[kept],
            texts=texts.region[kept],
            present=present,
            valid=valid,
            normal=mention == 0,
            text_ids=texts.region_ids[kept],
            patients=np.asarray(paired.patients)[kept].tolist(),
        )

    mentioned, abnormal = pairs(present & (mention >= 0)), pairs(present & (mention == 1))
    return {
        "names": list(REGIONS[1:]),
        "n_masks": int(paired.masked[kept].sum()),
        "accuracy": region_accuracy(mentioned, resamples=resamples, seed=_SEED),
        "retrieval": region_retrieval(mentioned, resamples=resamples, seed=_SEED),
        "abnormal_retrieval": region_retrieval(abnormal, resamples=resamples, seed=_SEED),
    }
