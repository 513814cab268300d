"""Findings told by asking, against scikit-learn and thresholds worked out by hand."""

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    roc_auc_score,
)

from ct3dlib.cohort.labels import LABELS
from ct3dlib.inference.evaluate_predictions import Predicted
from ct3dlib.inference.zero_shot import (
    Asked,
    ask,
    choose_threshold,
    probabilities,
    zero_shot_scores,
)
from ct3dlib.text.prompts import CLASS_SETS, ENSEMBLE, PAIR, prompts_of
from tests.inference.vlms import Planted, planted


def drawn(count, *, seed, signal=0.0):
    """Return probabilities of 18 findings, a signal above noise, of two studies a patient."""
    rng = np.random.default_rng(seed)
    true = (rng.random((count, 18)) < 0.3).astype(np.float64)
    told = 1 / (1 + np.exp(-(rng.normal(size=true.shape) + signal * true)))
    return Predicted(LABELS, told, true, tuple(f"p{i // 2}" for i in range(count)))


def test_a_probability_is_the_softmax_of_both_sentences():
    rng = np.random.default_rng(0)
    scans, positive, negative = (rng.normal(size=(n, 8)).astype(np.float32) for n in (5, 3, 3))
    found = probabilities(scans, Asked(positive, negative), scale=2.5)
    for i in range(5):
        for k in range(3):
            logits = 2.5 * np.array([scans[i] @ positive[k], scans[i] @ negative[k]])
            expected = np.exp(logits[0]) / np.exp(logits).sum()
            assert found[i, k] == pytest.approx(expected, rel=1e-5)


class Counted(Planted):
    """Vectors of length 1 drawn for each sentence, and how many were asked for."""

    asked: list[str]

    def embed_sentences(self, sentences):
        self.asked.extend(sentences)
        rows = [np.random.default_rng(list(text.encode())).normal(size=6) for text in sentences]
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_an_ensemble_is_the_mean_of_its_sentences_brought_to_length_1():
    model = planted()
    model = Counted(model.model, model.recipe, model.tokenizer, model.sha256)
    object.__setattr__(model, "asked", [])
    found = ask(model, LABELS, ENSEMBLE)
    assert len(model.asked) == len(set(model.asked)) == 18 * 7 * 2  # each sentence once
    for k in (0, 9, 17):
        for side, texts in zip(
            found, prompts_of(LABELS[k], ENSEMBLE).__dict__.values(), strict=True
        ):
            mean = model.embed_sentences(list(texts)).mean(0)
            np.testing.assert_allclose(side[k], mean / np.linalg.norm(mean), rtol=1e-5)
    pair = ask(model, LABELS[:2], PAIR)
    one = model.embed_sentences(["Arterial wall calcification is not present."])[0]
    np.testing.assert_allclose(pair.negative[1], one, rtol=1e-6)


def test_thresholds_by_hand():
    told = np.array([0.9, 0.8, 0.7, 0.4, 0.2])
    true = np.array([True, False, True, False, False])
    # From 0.7 on: both found, 1 of 3 false: (1 + 2/3) / 2; F1 2 * 2 / (2 + 3) = 0.8.
    for score in ("balanced_accuracy", "f1"):
        assert choose_threshold(told, true, score=score) == pytest.approx(0.55)
    # From 0.9 on one of 3 found, none false: 2/3; from 0.2 on all: balanced 1/2 and F1 3/4.
    told, true = np.array([0.9, 0.6, 0.4, 0.2]), np.array([True, False, True, True])
    assert choose_threshold(told, true, score="balanced_accuracy") == pytest.approx(0.75)
    assert choose_threshold(told, true, score="f1") == pytest.approx(0.2)
    # Equal probabilities come in together.
    told, true = np.array([0.5, 0.5, 0.1]), np.array([True, False, False])
    assert choose_threshold(told, true, score="f1") == pytest.approx(0.3)


@pytest.mark.parametrize("true", [[True, True], [False, False], []], ids=["all", "none", "empty"])
def test_one_class_has_no_threshold(true):
    told = np.full(len(true), 0.5)
    assert choose_threshold(told, np.array(true, bool), score="f1") is None


@pytest.mark.parametrize("score", ["balanced_accuracy", "f1"])
def test_no_threshold_is_better_than_the_chosen_one(score):
    tune = drawn(60, seed=3, signal=1.0)
    told, true = tune.outputs[:, 0].round(2), tune.targets[:, 0] > 0
    measure = f1_score if score == "f1" else balanced_accuracy_score
    best = max(measure(true, told >= t) for t in np.unique(told))
    chosen = choose_threshold(told, true, score=score)
    assert measure(true, told >= chosen) == pytest.approx(best)


def test_scores_are_those_of_scikit_learn_at_thresholds_of_tune():
    valid, tune = drawn(80, seed=0, signal=1.5), drawn(60, seed=1, signal=1.5)
    found = zero_shot_scores(valid, tune, resamples=20)
    row = found["findings"]["Emphysema"]
    k = LABELS.index("Emphysema")
    told, true = valid.outputs[:, k], valid.targets[:, k] > 0
    assert row["auroc"] == pytest.approx(roc_auc_score(true, told))
    assert row["average_precision"] == pytest.approx(average_precision_score(true, told))
    level = choose_threshold(tune.outputs[:, k], tune.targets[:, k] > 0, score="balanced_accuracy")
    assert row["threshold"] == level
    assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true, told >= level))
    level = choose_threshold(tune.outputs[:, k], tune.targets[:, k] > 0, score="f1")
    assert row["f1_threshold"] == level
    assert row["f1"] == pytest.approx(f1_score(true, told >= level))
    assert (row["prevalence"], row["n_positive"]) == (true.mean(), true.sum())
    for size, names in CLASS_SETS.items():
        columns = [LABELS.index(name) for name in names]
        macro = found["macro"][str(size)]
        expected = roc_auc_score(valid.targets[:, columns], valid.outputs[:, columns])
        assert macro["auroc"] == pytest.approx(expected)
        assert macro["auroc_ci"][0] <= expected <= macro["auroc_ci"][1]
    assert found["macro"]["18"]["auroc"] != found["macro"]["16"]["auroc"]


def test_noise_has_one_half_in_its_intervals():
    found = zero_shot_scores(drawn(150, seed=5), None, resamples=200)
    low, high = found["macro"]["18"]["auroc_ci"]
    assert low <= 0.5 <= high
    inside = [row["auroc_ci"][0] <= 0.5 <= row["auroc_ci"][1] for row in found["findings"].values()]
    assert sum(inside) >= 14  # 95 % of 18 are 17; fewer than 14 come once in 1000 times


def test_one_patient_has_no_score():
    valid = drawn(6, seed=0)
    valid = Predicted(valid.names, valid.outputs, valid.targets, ("a",) * 6)
    found = zero_shot_scores(valid, None, resamples=5)
    assert found["findings"]["Emphysema"]["auroc"] is None
    assert found["macro"]["18"] == {
        **dict.fromkeys(
            ("auroc", "average_precision", "balanced_accuracy", "sensitivity", "specificity", "f1")
        ),
        "auroc_ci": None,
        "findings": [],
    }
