"""Fine-tuned models in use: what numbers mean, and rows of whole splits."""

import numpy as np
import pandas as pd
import pytest
import torch

from ct3dlib.cohort.store import read_status, write_table
from ct3dlib.errors import CheckpointError, StoreError
from ct3dlib.inference.predictor import load_predictor, predict_split, predictions
from ct3dlib.inference.scans import Given, refusal
from tests.inference.encoders import RECIPE, hu_of, save_mae, save_predictor, seen_of
from tests.stores import write_shard

CPU = torch.device("cpu")
WINDOW = torch.tensor([[-1000.0, 600.0]])


def _values(hu):
    return torch.from_numpy(hu.transpose(0, 2, 1).copy())[None, None]


def _reader(hu):
    return lambda: Given("v", hu, (-1000.0, 600.0))


@pytest.mark.parametrize(
    ("task", "names", "of_logits"),
    [
        ("binary", ["Label"], lambda x: 1 / (1 + np.exp(-x))),
        ("multilabel", ["nodule", "effusion", "air"], lambda x: 1 / (1 + np.exp(-x))),
        ("multiclass", ["a", "b", "c"], lambda x: np.exp(x) / np.exp(x).sum()),
    ],
)
def test_logits_become_probabilities(tmp_path, task, names, of_logits):
    folder = save_predictor(tmp_path, {"task": task, "names": names}, num_outputs=len(names))
    model = load_predictor(folder, CPU)
    hu = hu_of(0)
    with torch.no_grad():
        logits = model.model(seen_of(hu))[0].double().numpy()
    found = model.predict(_values(hu), WINDOW)
    np.testing.assert_allclose(found[0], of_logits(logits), atol=1e-6)
    assert np.abs(logits).max() > 0.05
    assert model.columns == tuple(f"prob_{name}" for name in names)


def test_numbers_come_back_in_their_own_unit(tmp_path):
    contract = {
        "task": "regression",
        "names": ["ml", "HU"],
        "mean": [100.0, -5.0],
        "std": [20.0, 2.0],
    }
    model = load_predictor(save_predictor(tmp_path, contract, num_outputs=2), CPU)
    torch.nn.init.zeros_(model.model.head[-1].weight)
    model.model.head[-1].bias.data = torch.tensor([1.5, -2.0])
    found = model.predict(_values(hu_of(0)), WINDOW)
    np.testing.assert_allclose(found, [[130.0, -9.0]], rtol=1e-6)
    assert model.columns == ("pred_ml", "pred_HU")


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_each_row_is_its_own_volumes_and_a_bad_one_is_empty(tmp_path, batch_size):
    contract = {"task": "multilabel", "names": ["a", "b"]}
    model = load_predictor(save_predictor(tmp_path, contract, num_outputs=2), CPU)
    readers = [_reader(hu_of(i)) for i in range(5)]
    readers.insert(2, refusal("FILE_TRUNCATED", "x.nii.gz: cut"))
    frame = predictions(model, readers, batch_size=batch_size)
    assert list(frame) == ["prob_a", "prob_b", "reason", "message"]
    assert frame["reason"].tolist() == ["", "", "FILE_TRUNCATED", "", "", ""]
    assert frame["message"].tolist()[2] == "x.nii.gz: cut"
    numbers = frame[["prob_a", "prob_b"]].to_numpy()
    assert np.isnan(numbers[2]).all()
    alone = [model.predict(_values(hu_of(i)), WINDOW)[0] for i in range(5)]
    np.testing.assert_allclose(np.delete(numbers, 2, axis=0), alone, atol=1e-6)
    assert len(np.unique(np.round(alone, 4), axis=0)) == 5


def test_other_models_and_contracts_with_holes_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="a MaskedAutoencoder predicts nothing; give a fine"):
        load_predictor(save_mae(tmp_path / "mae"), CPU)
    for number, (contract, match) in enumerate(
        [
            ({"task": "binary"}, "its contract is incomplete .'names'"),
            ({"task": "guess", "names": ["a"]}, "task 'guess', wanted one of binary, multiclass"),
            ({"task": "binary", "names": ["a", "b"]}, "names, mean and std are not of the 1 out"),
            ({"task": "regression", "names": ["a"]}, "its contract is incomplete .'mean'"),
        ]
    ):
        folder = save_predictor(tmp_path / str(number), contract, num_outputs=1)
        with pytest.raises(CheckpointError, match=match):
            load_predictor(folder, CPU)


def test_a_split_has_a_row_for_each_volume_of_its_catalog(tmp_path):
    contract = {"task": "binary", "names": ["Label"]}
    model = load_predictor(save_predictor(tmp_path / "m", contract, num_outputs=1), CPU)
    arrays = {name: hu_of(i) for i, name in enumerate("cab")}
    table = write_shard(tmp_path / "0000.parquet", "volumes", arrays, RECIPE)
    frame = read_status(table)
    bad = {"volume": "bad", "status": "rejected", "reason": "NAN_VOXELS", "message": "bad: NaN"}
    frame = pd.concat([frame, pd.DataFrame([{**bad, "node": "", "sha256": ""}])])
    write_table(frame, table)
    catalog = pd.DataFrame({"volume": ["a", "b", "bad", "c"], "patient": ["p", "p", "q", "r"]})
    found = predict_split(model, catalog, [table])
    assert list(found) == ["volume", "patient", "status", "reason", "message", "prob_Label"]
    assert found[["volume", "patient"]].equals(catalog)
    assert found["status"].tolist() == ["predicted", "predicted", "rejected", "predicted"]
    assert found["reason"].tolist() == ["", "", "NAN_VOXELS", ""]
    assert found["message"].tolist() == ["", "", "bad: NaN", ""]
    alone = [model.predict(_values(arrays[name]), WINDOW)[0, 0] for name in "abc"]
    np.testing.assert_allclose(found["prob_Label"].dropna(), alone, atol=1e-6)
    for rows in (catalog[:3], pd.concat([catalog, pd.DataFrame({"volume": ["z"]})])):
        with pytest.raises(StoreError, match=r"[cz]: in the catalog or in the tables of volumes"):
            predict_split(model, rows, [table])
