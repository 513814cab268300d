"""Texts as vectors: a table of what an encoder made of the text of each volume."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ct3dlib.errors import StoreError

_COLUMNS = ("volume", "embedding")


def read_embeddings(path: Path) -> Mapping[str, NDArray[np.float32]]:
    """Return the vector of each volume that a Parquet table has one for.

    Its columns are `volume`, an id of the catalog, and `embedding`, a list of numbers; others are
    ignored. All vectors have one length.

    Raises:
        StoreError: The table is missing, is none, is empty or lacks a column; a volume has two
            rows; a vector is empty, of another length, or holds a value that is no finite number.
    """
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path}: cannot be read as a Parquet table ({error}); write one with the columns "
            f"{' and '.join(_COLUMNS)}, or correct transformer.text.embeddings"
        ) from error
    for column in _COLUMNS:
        if column not in table:
            found = ", ".join(map(repr, table.columns)) or "none"
            raise StoreError(f"{path}: no column {column!r}, found {found}; rename the table's")
    nameless = [found for found in table["volume"] if not isinstance(found, str)]
    if nameless:
        raise StoreError(
            f"{path}: a row has the volume {nameless[0]!r}, wanted an id of the catalog; leave the "
            f"row out"
        )
    repeated = table.loc[table["volume"].duplicated(), "volume"].tolist()
    if repeated:
        raise StoreError(
            f"{path}: volume {repeated[0]} has more than one row; leave one text of each"
        )
    if table.empty:
        raise StoreError(f"{path}: has no rows; embed the texts, or set transformer.text to null")
    vectors = {
        volume: _vector(path, volume, values)
        for volume, values in zip(table["volume"], table["embedding"], strict=True)
    }
    _check_lengths(path, vectors)
    return vectors


def read_embedding(path: Path) -> NDArray[np.float32]:
    """Return the one vector of a NumPy file, `.npy`.

    Raises:
        StoreError: The file is missing or none, or its array is no vector of finite numbers.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(
            f"{path}: cannot be read as a NumPy file ({error}); save the text's vector with np.save"
        ) from error
    if not isinstance(values, np.ndarray):
        raise StoreError(f"{path}: holds several arrays; save the text's vector alone with np.save")
    return _vector(path, "the text", values)


def _vector(path: Path, volume: str, values: object) -> NDArray[np.float32]:
    """Return the numbers of one row."""
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
            vector = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"{path}: the embedding of {volume} is no list of numbers ({error})"
        ) from error
    if vector.ndim != 1 or not vector.size:
        raise StoreError(
            f"{path}: the embedding of {volume} has shape {vector.shape}, wanted a list of numbers"
        )
    if not np.isfinite(vector).all():
        bad = vector[~np.isfinite(vector)][0]
        raise StoreError(
            f"{path}: the embedding of {volume} holds {bad}, wanted finite numbers; embed its text "
            f"again, or leave its row out"
        )
    return vector


def _check_lengths(path: Path, vectors: Mapping[str, NDArray[np.float32]]) -> None:
    """Raise unless all vectors are as long as the first."""
    (first, length), *rest = ((volume, len(vector)) for volume, vector in vectors.items())
    if length == 1:
        raise StoreError(f"{path}: embeddings have one number, wanted a text encoder's vectors")
    for volume, other in rest:
        if other != length:
            raise StoreError(
                f"{path}: embeddings differ in length: {first} has {length} numbers, {volume} has "
                f"{other}; use one encoder for all texts"
            )
