import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from ct3dlib.datasets.targets import Targets
from ct3dlib.errors import StoreError
from ct3dlib.inference.evaluate_predictions import evaluate_predictions, join_targets, roc_curves


def table_of(count: int = 40, names=("a", "b"), prefix: str = "prob") -> pd.DataFrame:
    rng = np.random.default_rng(0)
    columns = {f"{prefix}_{name}": rng.random(count) for name in names}
    ids = [f"v{i}" for i in range(count)]
    patients = [f"p{i // 2}" for i in range(count)]
    return pd.DataFrame({"volume": ids, "patient": patients, "status": "predicted", **columns})


def test_findings_have_scikit_learns_auroc_of_what_is_known():
    table, rng = table_of(), np.random.default_rng(1)
    values = rng.integers(0, 2, (40, 2)).astype(np.float32)
    values[3, 1] = np.nan
    targets = Targets(("a", "b"), {f"v{i}": row for i, row in enumerate(values)})
    found = evaluate_predictions(join_targets(table, targets), "multilabel")
    assert found["n"] == 40
    assert found["auroc"]["a"] == pytest.approx(roc_auc_score(values[:, 0], table["prob_a"]))
    known = ~np.isnan(values[:, 1])
    assert found["auroc"]["b"] == pytest.approx(
        roc_auc_score(values[known, 1], table.loc[known, "prob_b"])
    )
    low, high = found["findings"]["b"]["auroc_ci"]
    assert low < found["auroc"]["b"] < high
    assert (found["findings"]["b"]["n"], found["findings"]["b"]["n_patients"]) == (39, 20)


def test_rejected_and_unlabelled_volumes_are_left_out_and_curves_need_both_kinds():
    table = table_of(6)
    table.loc[0, "status"] = "rejected"
    values = {f"v{i}": np.array([i % 2, 0], np.float32) for i in range(5)}
    found = join_targets(table, Targets(("a", "b"), values))
    assert (len(found.patients), found.outputs.shape) == (4, (4, 2))
    assert evaluate_predictions(found, "multilabel")["auroc"]["b"] is None
    curves = roc_curves(found)
    assert list(curves) == ["a"]
    assert curves["a"].true_positive_rate[0] == 0
    assert curves["a"].true_positive_rate[-1] == curves["a"].false_positive_rate[-1] == 1


def test_classes_and_numbers_have_their_own_scores():
    table = table_of(30)
    total = table["prob_a"] + table["prob_b"]
    table["prob_a"], table["prob_b"] = table["prob_a"] / total, table["prob_b"] / total
    one_hot = np.eye(2, dtype=np.float32)
    right = {f"v{i}": one_hot[int(table["prob_b"][i] > 0.5)] for i in range(30)}
    found = evaluate_predictions(join_targets(table, Targets(("a", "b"), right)), "multiclass")
    assert found["classes"]["accuracy"] == found["classes"]["auroc"] == 1
    only = {f"v{i}": one_hot[0] for i in range(30)}
    found = evaluate_predictions(join_targets(table, Targets(("a", "b"), only)), "multiclass")
    assert found["classes"] is None
    assert "class" in found["classes_missing"]
    numbers = table_of(30, ("age",), prefix="pred")
    true = {f"v{i}": np.array([v + 1], np.float32) for i, v in enumerate(numbers["pred_age"])}
    found = evaluate_predictions(join_targets(numbers, Targets(("age",), true)), "regression")
    assert found["regression"]["age"]["mae"] == pytest.approx(1)
    assert found["regression"]["age"]["pearson"] == pytest.approx(1)
    same = {f"v{i}": np.array([1], np.float32) for i in range(30)}
    found = evaluate_predictions(join_targets(numbers, Targets(("age",), same)), "regression")
    assert found["regression"]["age"] is None


def test_predictions_that_fit_no_label_are_refused():
    with pytest.raises(StoreError, match="none of 6 volumes has both a prediction and a label"):
        join_targets(table_of(6), Targets(("a",), {"other": np.zeros(1, np.float32)}))
    with pytest.raises(StoreError, match="no column prob_c or pred_c; predict with a model of"):
        join_targets(table_of(6), Targets(("c",), {"v0": np.zeros(1, np.float32)}))


def test_what_is_known_of_too_few_patients_is_not_scored_and_the_rest_is():
    table = table_of(12)
    rng = np.random.default_rng(2)
    values = np.c_[np.arange(12) % 2, np.full(12, np.nan)].astype(np.float32)
    targets = Targets(("a", "b"), {f"v{i}": row for i, row in enumerate(values)})
    found = evaluate_predictions(join_targets(table, targets), "multilabel")
    assert found["auroc"]["a"] == pytest.approx(roc_auc_score(values[:, 0], table["prob_a"]))
    assert (found["auroc"]["b"], found["findings"]["b"]["n"]) == (None, 0)
    values[:2, 1] = [0, 1]  # both kinds, of one patient
    found = evaluate_predictions(join_targets(table, targets), "multilabel")
    assert found["auroc"]["b"] is None
    assert found["findings"]["b"]["n_positive"] == 1
    numbers = table_of(12, ("a", "b"), prefix="pred")
    values[:, 0] = rng.random(12)
    found = evaluate_predictions(join_targets(numbers, targets), "regression")["regression"]
    assert found["a"]["n"] == 12
    assert found["b"] is None
