"""A model whose vectors are planted finds everything; random and constant ones find chance."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ct3dlib.cohort.labels import LABELS
from ct3dlib.errors import CheckpointError, StoreError
from ct3dlib.inference.evaluate_vlm import evaluate_vlm
from ct3dlib.regions.label_map import REGIONS
from ct3dlib.text.reasoning import Reasoning
from tests.inference.vlms import planted, report, write_split

HEADLINES = {
    *("pool32_r1", "pool32_r1_ci", "chance_r1", "shuffled_r1", "region_accuracy"),
    *("region_retrieval_r1", "region_retrieval_chance", "zero_shot_auroc", "n"),
}


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    return write_split(tmp_path_factory.mktemp("valid"), 40, seed=0)


@pytest.fixture(scope="module")
def tune(tmp_path_factory):
    return write_split(tmp_path_factory.mktemp("tune"), 12, seed=1)


@pytest.fixture(scope="module")
def perfect(valid, tune):
    return evaluate_vlm(planted(), valid, tune=tune, random=planted("random"), resamples=20)


def test_the_headlines_of_a_perfect_model(perfect):
    metrics = perfect.metrics
    assert set(metrics) >= HEADLINES
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert (metrics["pool32_r1"], metrics["pool32_r1_ci"], metrics["n"]) == (1.0, [1.0, 1.0], 40)
    assert metrics["chance_r1"] == pytest.approx(1 / 32)
    assert metrics["shuffled_r1"] <= metrics["chance_r1"]
    assert (metrics["region_accuracy"], metrics["region_accuracy_chance"]) == (1.0, 1 / 20)
    assert metrics["region_retrieval_r1"] == 1.0
    assert metrics["zero_shot_auroc"] == dict.fromkeys(LABELS, 1.0)
    assert metrics["zero_shot_macro_auroc"] == 1.0


def test_a_model_that_has_learnt_nothing_stands_beside_it_at_chance(perfect):
    found = perfect.metrics["random_initialisation"]
    # 80 queries: three standard errors of a share of 1/32
    assert found["pool32_r1"] == pytest.approx(found["chance_r1"], abs=0.058)
    assert found["region_accuracy"] == pytest.approx(1 / 20, abs=0.03)
    assert found["zero_shot_macro_auroc"] == pytest.approx(0.5, abs=0.06)
    assert set(found) < set(perfect.metrics)


def test_each_number_says_its_gallery_and_its_chance(perfect):
    rows = perfect.metrics["retrieval"]
    sizes = {name: row["both"]["n_gallery"] for name, row in rows.items()}
    assert sizes == {"first": 40, "dedup_text": 40, "dup": 80, "pool32": 32}
    for name, row in rows.items():
        for direction in ("both", "scan_to_text", "text_to_scan"):
            one = row[direction]
            assert one["protocol"] == name
            copies = 2 if name == "dup" else 1  # either reconstruction is right
            assert one["chance_r1"] == pytest.approx(copies / sizes[name])
            assert one["n_patients"] == 20
        assert row["both"]["n"] == 2 * row["scan_to_text"]["n"]
    assert rows["pool32"]["scan_to_text"]["n"] == 32 * 20
    assert rows["first"]["both"]["r5"] == 1


def test_the_table_has_a_row_for_each_query_of_both_directions(perfect, valid):
    ranks = perfect.ranks
    assert list(ranks.columns) == ["direction", "query", "rank", "positives"]
    names = [study.name for study in valid.studies]
    for direction in ("scan_to_text", "text_to_scan"):
        part = ranks[ranks["direction"] == direction]
        assert part["query"].tolist() == names
        assert (part["rank"] == 1).all()
        assert (part["positives"] == 1).all()


def test_constant_vectors_find_nothing(valid):
    found = evaluate_vlm(planted("constant"), valid, tune=None, resamples=10).metrics
    assert found["pool32_r1"] == found["region_accuracy"] == 0
    assert found["region_retrieval_r1"] <= found["region_retrieval_chance"]
    assert set(found["zero_shot_auroc"].values()) == {0.5}
    assert found["effective_rank"]["scans"] == found["effective_rank"]["texts"] == 0


def test_findings_are_asked_by_both_sets_of_prompts_over_both_sets_of_findings(perfect, valid):
    zero_shot = perfect.metrics["zero_shot"]
    assert {size: len(names) for size, names in zero_shot["classes"].items()} == {
        "18": 18,
        "16": 16,
    }
    for prompts in ("ensemble", "pair"):
        found = zero_shot[prompts]
        assert found["macro"]["16"]["findings"] == zero_shot["classes"]["16"]
        assert found["macro"]["18"]["auroc_ci"] == [1.0, 1.0]
        row = found["findings"]["Cardiomegaly"]
        labels = [valid.labels[study.volumes[0].volume][2] for study in valid.studies]
        assert row["prevalence"] == pytest.approx(np.mean(labels))
        assert (row["balanced_accuracy"], row["f1"], row["n"]) == (1.0, 1.0, 40)
        # Both thresholds lie between what tune's studies with and without it are told.
        assert 0 < row["threshold"] < 1
        assert row["threshold"] == row["f1_threshold"]


def test_without_tune_no_threshold_is_chosen_on_what_is_reported(valid):
    row = evaluate_vlm(planted(), valid, tune=None, resamples=5).metrics["zero_shot"]["ensemble"]
    found = row["findings"]["Lung nodule"]
    assert found["auroc"] == 1
    assert found["threshold"] is found["balanced_accuracy"] is found["f1"] is None
    assert row["macro"]["18"]["f1"] is None


def test_regions_are_named_and_abnormal_ones_stand_alone(perfect):
    regions = perfect.metrics["regions"]
    assert regions["names"] == list(REGIONS[1:])
    assert len(regions["accuracy"]["by_region"]) == 20
    assert regions["accuracy"]["n"] == 40 * 20
    assert regions["n_masks"] == 40
    # One study a patient in both; of the abnormal ones fewer.
    assert regions["retrieval"]["n"] == 2 * 20 * 20
    assert 0 < regions["abnormal_retrieval"]["n"] < regions["retrieval"]["n"]
    assert regions["abnormal_retrieval"]["r1"] == 1


def test_regions_that_no_scan_shows_have_no_score(tmp_path):
    split = write_split(tmp_path, 4, seed=2, masks=False)
    found = evaluate_vlm(planted(), split, tune=None, resamples=5).metrics
    assert found["region_accuracy"] is found["region_retrieval_r1"] is None
    assert found["regions"]["n_masks"] == 0
    assert found["pool32_r1"] is found["chance_r1"] is found["shuffled_r1"] is None
    assert found["retrieval"]["first"]["both"]["r1"] == 1


def test_equal_texts_are_all_right_and_short_ones_take_no_part(valid):
    texts = dict(valid.texts)
    first, second, short = (valid.studies[i].name for i in (0, 4, 7))
    texts[second] = texts[first]
    texts[short] = Reasoning("", ("Normal.",), "report")
    found = evaluate_vlm(planted(), replace(valid, texts=texts), tune=None, resamples=5)
    assert found.metrics["n"] == 39
    assert short not in set(found.ranks["query"])
    positives = found.ranks.set_index("query")["positives"]
    assert positives.loc[first].tolist() == positives.loc[second].tolist() == [2, 2]
    assert found.metrics["retrieval"]["dedup_text"]["both"]["n_gallery"] == 38
    # All 40 are still asked for findings.
    row = found.metrics["zero_shot"]["pair"]["findings"]["Emphysema"]
    assert row["n"] == 40


def test_volumes_without_labels_are_not_asked(valid):
    found = evaluate_vlm(planted(), replace(valid, labels={}), tune=None, resamples=5).metrics
    assert found["zero_shot_auroc"] == {}
    assert found["zero_shot_macro_auroc"] is None


def test_a_finding_that_nobody_has_keeps_its_row(valid):
    labels = {name: [0, *row[1:]] for name, row in valid.labels.items()}
    found = evaluate_vlm(planted(), replace(valid, labels=labels), tune=None, resamples=5).metrics
    assert found["zero_shot_auroc"]["Medical material"] is None
    assert found["zero_shot"]["pair"]["findings"]["Medical material"]["prevalence"] == 0
    assert found["zero_shot_findings"] == list(LABELS[1:])
    assert found["zero_shot_macro_auroc"] == 1


def test_what_cannot_be_evaluated_is_refused(valid):
    with pytest.raises(StoreError, match="none of 40 studies has a text of more than a few words"):
        evaluate_vlm(planted(), replace(valid, texts={}), tune=None)
    with pytest.raises(StoreError, match="there is no stored volume to embed; see the status"):
        evaluate_vlm(planted(), replace(valid, studies=[]), tune=None)
    other = planted()
    other = replace(other, recipe=other.recipe.model_copy(update={"spacing": (1.0, 1.0, 1.0)}))
    with pytest.raises(CheckpointError, match="its spacing is None, the model abababababab was"):
        evaluate_vlm(other, valid, tune=None)


def test_a_report_says_what_its_labels_say():
    assert report([1, 0] + 16 * [0]).steps[:2] == (
        "Medical material is present.",
        "Arterial wall calcification is not present.",
    )
