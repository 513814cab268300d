"""Embeddings: what they are the means of, and their tables."""

import math

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import zarr

from ct3dlib.cohort.store import read_status, write_table
from ct3dlib.errors import CheckpointError, StoreError, VolumeError
from ct3dlib.inference import embedding_tables
from ct3dlib.inference.embed import load_volume_encoder
from ct3dlib.inference.embedding_tables import (
    embed_shard,
    join_embeddings,
    write_parquet,
    write_zarr,
)
from ct3dlib.inference.scans import stored_readers
from ct3dlib.models.exported import save_model
from tests.inference.encoders import (
    RECIPE,
    hu_of,
    save_mae,
    save_predictor,
    seen_of,
)
from tests.models.test_mae import model as mae_model
from tests.stores import write_shard

CPU = torch.device("cpu")
COLUMNS = [
    *("volume", "status", "stage", "reason", "message", "volume_sha256", "model_sha256"),
    *("class", "pooled", "regional"),
]


@pytest.fixture
def encoder(tmp_path):
    return load_volume_encoder(save_mae(tmp_path / "mae"), CPU)


def _given(*volumes):
    values = [torch.from_numpy(hu.transpose(0, 2, 1).copy())[None] for hu in volumes]
    return torch.stack(values), torch.tensor([[-1000.0, 600.0]] * len(volumes))


def _tokens(encoder, hu):
    with torch.no_grad():
        return encoder.model(seen_of(hu))[0].numpy()


# The model's grid is 2 3 4 along D W H, so 2 4 3 along D H W.
@pytest.mark.parametrize("regional", [(2, 4, 3), (1, 1, 1), (2, 2, 2), (1, 3, 2), (4, 4, 4)])
def test_embeddings_are_tokens_and_their_means(encoder, regional):
    volumes = [hu_of(0), hu_of(1)]
    found = encoder.embed(*_given(*volumes), regional=regional)
    for hu, embedding in zip(volumes, found, strict=True):
        tokens = _tokens(encoder, hu)
        np.testing.assert_allclose(embedding.cls, tokens[0], atol=1e-5)
        np.testing.assert_allclose(embedding.pooled, tokens[1:].mean(0), atol=1e-5)
        grid = tokens[1:].reshape(2, 3, 4, 12).transpose(0, 2, 1, 3)  # D H W C
        assert embedding.regional.shape == (*regional, 12)
        for cell in np.ndindex(*regional):
            box = tuple(
                slice(i * n // m, math.ceil((i + 1) * n / m))
                for i, n, m in zip(cell, (2, 4, 3), regional, strict=True)
            )
            wanted = grid[box].reshape(-1, 12).mean(0)
            np.testing.assert_allclose(embedding.regional[cell], wanted, atol=1e-5)


def test_the_encoder_of_a_fine_tuned_model_is_its_own(tmp_path):
    contract = {"task": "binary", "names": ["Label"]}
    encoder = load_volume_encoder(save_predictor(tmp_path, contract, num_outputs=1), CPU)
    (found,) = encoder.embed(*_given(hu_of(3)), regional=None)
    np.testing.assert_allclose(found.cls, _tokens(encoder, hu_of(3))[0], atol=1e-5)
    assert found.regional is None


def test_a_model_without_a_recipe_is_refused(tmp_path):
    network = mae_model()
    save_model(tmp_path, network, spec=network.spec, contract={}, training={})
    with pytest.raises(CheckpointError, match="its contract holds no recipe"):
        load_volume_encoder(tmp_path, CPU)


def _shard(path, volumes, rejected=()):
    table = write_shard(path, "volumes", volumes, RECIPE)
    bad = [
        {"volume": name, "status": "rejected", "reason": "NAN_VOXELS", "message": f"{name}: NaN"}
        for name in rejected
    ]
    frame = pd.concat([read_status(table), pd.DataFrame(bad)]).fillna({"node": "", "sha256": ""})
    write_table(frame, table)
    return table


def _embedded(encoder, table, out, regional=(1, 2, 3)):
    rows = stored_readers([table], encoder.recipe, model=encoder.name)
    embed_shard(encoder, rows, regional=regional, batch_size=2, table=out)
    return out


def test_a_shard_and_its_split_have_a_row_for_each_volume(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_tables, "_ROWS_PER_GROUP", 2)
    volumes = {name: hu_of(i) for i, name in enumerate("gcaeb")}
    first = _shard(tmp_path / "v/0000.parquet", {n: volumes[n] for n in "gca"}, ["f"])
    second = _shard(tmp_path / "v/0001.parquet", {n: volumes[n] for n in "eb"}, ["d"])
    tables = [_embedded(encoder, t, tmp_path / "e" / t.name) for t in (first, second)]
    assert pq.read_table(tables[0])["volume"].to_pylist() == ["a", "c", "f", "g"]
    assert join_embeddings(tables, tmp_path / "e.parquet") == {"embedded": 5, "rejected": 2}
    joined = pd.read_parquet(tmp_path / "e.parquet")
    assert list(joined) == COLUMNS
    assert joined["volume"].tolist() == list("abcdefg")
    hashes = pd.concat([read_status(first), read_status(second)]).set_index("volume")["sha256"]
    for row in joined.to_dict("records"):
        assert row["model_sha256"] == encoder.sha256
        assert row["volume_sha256"] == hashes[row["volume"]]
        told = (row["status"], row["stage"], row["reason"], row["message"])
        if row["volume"] in "df":
            assert told == ("rejected", "volumes", "NAN_VOXELS", f"{row['volume']}: NaN")
            assert row["class"] is row["pooled"] is row["regional"] is None
            continue
        assert told == ("embedded", "", "", "")
        (made,) = encoder.embed(*_given(volumes[row["volume"]]), regional=(1, 2, 3))
        np.testing.assert_allclose(row["class"], made.cls, atol=1e-5)
        np.testing.assert_allclose(row["pooled"], made.pooled, atol=1e-5)
        np.testing.assert_allclose(row["regional"].reshape(1, 2, 3, 12), made.regional, atol=1e-5)
    assert not list(tmp_path.rglob("*.partial"))


def test_tables_that_do_not_belong_together_are_not_joined(encoder, tmp_path):
    one = _shard(tmp_path / "v/0000.parquet", {"a": hu_of(0)})
    tables = [_embedded(encoder, one, tmp_path / f"{i}.parquet") for i in range(2)]
    with pytest.raises(StoreError, match="a: in two tables of embeddings; delete the one whose"):
        join_embeddings(tables, tmp_path / "all.parquet")
    assert not (tmp_path / "all.parquet").exists()
    _embedded(encoder, one, tables[1], regional=None)
    assert pq.read_schema(tables[1]).names == COLUMNS[:-1]
    with pytest.raises(StoreError, match=r"1\.parquet: has other columns than .*0\.parquet; del"):
        join_embeddings(tables, tmp_path / "all.parquet")


def test_an_empty_shard_is_a_table_without_rows(encoder, tmp_path):
    table = _shard(tmp_path / "v/0000.parquet", {})
    out = _embedded(encoder, table, tmp_path / "0000.parquet")
    assert join_embeddings([out], tmp_path / "all.parquet") == {}
    assert pq.read_schema(tmp_path / "all.parquet").names == COLUMNS


def test_a_zarr_group_holds_what_a_table_holds(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_tables, "_ROWS_PER_GROUP", 2)
    made = encoder.embed(*_given(hu_of(0), hu_of(1)), regional=(1, 2, 3))
    rows = [made[0], VolumeError("NAN_VOXELS", "b: NaN"), made[1]]
    how = {"encoder": encoder, "regional": (1, 2, 3)}
    errors = write_zarr(rows, ["a", "b", "c"], tmp_path / "e.zarr", **how)
    assert errors == ["", "NAN_VOXELS: b: NaN", ""]
    assert errors == write_parquet(rows, {"Path": ["a", "b", "c"]}, tmp_path / "e.parquet", **how)
    group, table = zarr.open_group(tmp_path / "e.zarr"), pd.read_parquet(tmp_path / "e.parquet")
    assert list(table) == ["Path", "error", "class", "pooled", "regional"]
    assert group["ids"][:].tolist() == table["Path"].tolist() == ["a", "b", "c"]
    assert group["error"][:].tolist() == table["error"].tolist() == errors
    shapes = {"class": (3, 12), "pooled": (3, 12), "regional": (3, 1, 2, 3, 12)}
    for name, shape in shapes.items():
        array = group[name][:]
        assert (array.shape, array.dtype) == (shape, np.float32)
        assert np.isnan(array[1]).all()
        assert table[name][1] is None
        for i in (0, 2):
            np.testing.assert_array_equal(array[i].ravel(), table[name][i])
    np.testing.assert_array_equal(group["regional"][2], made[1].regional)
    assert group.attrs["ct3d"]["model_sha256"] == encoder.sha256
