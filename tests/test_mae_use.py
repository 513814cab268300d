"""The steps that predict and embed whole splits."""

from argparse import Namespace

import numpy as np
import pandas as pd
import pytest
import torch

from ct3dlib.config import EmbeddingsSpec
from ct3dlib.inference.embed import load_volume_encoder
from ct3dlib.models.exported import load_model
from tests.inference.encoders import RECIPE, hu_of, save_mae, save_predictor, seen_of
from tests.stores import write_shard
from workflow_scripts import embed, join_embeddings, predict


def test_a_split_is_predicted_and_no_other(tmp_path, monkeypatch):
    contract = {"task": "regression", "names": ["ml"], "mean": [10.0], "std": [2.0]}
    model = save_predictor(tmp_path / "m", contract, num_outputs=1)
    table = write_shard(tmp_path / "0000.parquet", "volumes", {"a": hu_of(0)}, RECIPE)
    catalog = pd.DataFrame(
        {"volume": ["a", "b"], "patient": ["p", "q"], "split": ["valid", "train"]}
    )
    monkeypatch.setattr(predict, "read_catalog", lambda path: catalog)
    out = tmp_path / "predictions/valid.csv"
    predict.main(
        Namespace(
            model=model, catalog=None, volumes=[table], split="valid", device="cpu", table=out
        )
    )
    found = pd.read_csv(out)
    assert list(found) == ["volume", "patient", "status", "reason", "message", "pred_ml"]
    assert found["volume"].tolist() == ["a"]
    with torch.no_grad():
        wanted = load_model(model).module(seen_of(hu_of(0))).item() * 2 + 10
    assert found["pred_ml"][0] == pytest.approx(wanted, abs=1e-5)
    assert [path.name for path in out.parent.iterdir()] == ["valid.csv"]


def test_shards_are_embedded_and_joined(tmp_path):
    model, tables = save_mae(tmp_path / "m"), []
    spec = EmbeddingsSpec(regional=(1, 2, 1))
    for shard, name in enumerate("ba"):
        volumes = write_shard(
            tmp_path / f"{shard:04}.parquet", "volumes", {name: hu_of(shard)}, RECIPE
        )
        tables.append(tmp_path / f"embeddings/{shard:04}.parquet")
        embed.main(
            Namespace(spec=spec, model=model, volumes=volumes, table=tables[-1], device="cpu")
        )
    join_embeddings.main(Namespace(tables=tables, table=tmp_path / "valid.parquet"))
    found = pd.read_parquet(tmp_path / "valid.parquet")
    assert found["volume"].tolist() == ["a", "b"]
    encoder = load_volume_encoder(model, torch.device("cpu"))
    with torch.no_grad():
        tokens = encoder.model(seen_of(hu_of(0)))[0].numpy()
    np.testing.assert_allclose(found["class"][1], tokens[0], atol=1e-5)
    assert [len(row) for row in found["regional"]] == [24, 24]
