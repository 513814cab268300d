"""Vectors of texts from their table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ct3dlib.errors import StoreError
from ct3dlib.text.embeddings import read_embedding, read_embeddings


def _table(folder: Path, volumes: list[object], embeddings: list[object]) -> Path:
    path = folder / "texts.parquet"
    pd.DataFrame({"volume": volumes, "embedding": embeddings, "model": "m"}).to_parquet(path)
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_numbers_of_any_kind_become_float32(tmp_path, dtype):
    rows = [np.array([1, 2, 3], dtype), np.array([4, 5, 6], dtype)]
    found = read_embeddings(_table(tmp_path, ["a", "b"], rows))
    assert {name: vector.tolist() for name, vector in found.items()} == {
        "a": [1, 2, 3],
        "b": [4, 5, 6],
    }
    assert {vector.dtype for vector in found.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("volumes", "embeddings", "message"),
    [
        (["a", "b", "a"], [[1.0]] * 3, r"texts.parquet: volume a has more than one row"),
        (["a", "b"], [[1.0, 2.0], [1.0]], r"a has 2 numbers, b has 1; use one encoder"),
        (["a", "b"], [[1.0], [np.nan]], r"embedding of b holds nan, wanted finite numbers"),
        (["a"], [[1e300]], r"embedding of a holds inf, wanted finite numbers"),
        (["a", "b"], [[1.0], None], r"embedding of b has shape \(\), wanted a list of numbers"),
        (["a"], [[]], r"embedding of a has shape \(0,\), wanted a list of numbers"),
        ([None, "a"], [[1.0], [2.0]], r"a row has the volume nan, wanted an id of the catalog"),
        (["a"], [["x", "y"]], r"embedding of a is no list of numbers \(could not convert"),
        ([], [], r"texts.parquet: has no rows; embed the texts, or set transformer.text to null"),
    ],
    ids=["twice", "lengths", "nan", "overflow", "null", "empty", "nameless", "words", "no rows"],
)
def test_what_is_wrong_with_a_table_is_named(tmp_path, volumes, embeddings, message):
    with pytest.raises(StoreError, match=message):
        read_embeddings(_table(tmp_path, volumes, embeddings))


@pytest.mark.parametrize("column", ["volume", "embedding"])
def test_a_missing_column_is_named_with_those_that_are_there(tmp_path, column):
    path = _table(tmp_path, ["a"], [[1.0]])
    pd.read_parquet(path).drop(columns=column).to_parquet(path)
    with pytest.raises(StoreError, match=rf"no column '{column}', found '.*', 'model'; rename"):
        read_embeddings(path)


def test_a_file_that_is_missing_or_no_table_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"none.parquet: cannot be read as a Parquet table"):
        read_embeddings(tmp_path / "none.parquet")
    (tmp_path / "some.parquet").write_text("volume,embedding\n")
    with pytest.raises(StoreError, match=r"some.parquet: .* correct transformer.text.embeddings"):
        read_embeddings(tmp_path / "some.parquet")


def test_one_vector_from_a_numpy_file(tmp_path):
    np.save(tmp_path / "a.npy", np.array([1.0, 2.0]))
    found = read_embedding(tmp_path / "a.npy")
    assert (found.tolist(), found.dtype) == ([1, 2], np.float32)


def test_files_that_hold_no_vector_are_refused(tmp_path):
    np.save(tmp_path / "grid.npy", np.zeros((2, 2)))
    np.save(tmp_path / "nan.npy", np.array([np.nan]))
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    (tmp_path / "text.npy").write_text("no vector")
    for name, message in {
        "grid.npy": r"grid.npy: the embedding of the text has shape \(2, 2\), wanted a list",
        "nan.npy": r"nan.npy: the embedding of the text holds nan, wanted finite numbers",
        "two.npz": r"two.npz: holds several arrays; save the text's vector alone",
        "text.npy": r"text.npy: cannot be read as a NumPy file .*; save the text's vector",
        "none.npy": r"none.npy: cannot be read as a NumPy file .*No such file",
    }.items():
        with pytest.raises(StoreError, match=message):
            read_embedding(tmp_path / name)


def test_one_number_is_no_embedding(tmp_path):
    with pytest.raises(StoreError, match=r"embeddings have one number, wanted a text encoder's"):
        read_embeddings(_table(tmp_path, ["a", "b"], [[1.0], [2.0]]))
