"""The step that trains the token transformer: what it refuses before it starts."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ct3dlib.cohort.catalog import SCHEMA
from ct3dlib.cohort.packing import pack_indices
from ct3dlib.cohort.store import create_store, write_node, write_table
from ct3dlib.config import TransformerSpec
from ct3dlib.errors import StoreError
from workflow_scripts.train_transformer import main


@pytest.fixture
def args(tmp_path: Path) -> Namespace:
    """Return what the rule gives: one encoded volume of each split, and a table of texts."""
    tokens = tmp_path / "tokens"
    for split in ("train", "tune"):
        store = tokens / split / "0000.zarr"
        store.parent.mkdir(parents=True)
        create_store(store, "tokens")
        ct3d = {"volume": split, "bits": 9, "shape": [1, 1, 2]}
        packed = pack_indices(np.zeros((1, 1, 2), np.int64), 9)
        sha256 = write_node(store, f"{split}@0", packed, attributes={"ct3d": ct3d})
        row = {"volume": split, "status": "encoded", "reason": "", "message": "", "shard": 0}
        row |= {"node": f"{split}@0", "sha256": sha256, "shape": [1, 1, 2]}
        write_table(pd.DataFrame([row]), tokens / f"{split}.parquet")
    rows = [{"volume": "train", "study": "s"}, {"volume": "tune", "study": "s"}]
    catalog = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(catalog, tmp_path / "catalog.parquet")
    texts = pd.DataFrame({"volume": ["tune"], "embedding": [[1.0, 2.0]]})
    texts.to_parquet(tmp_path / "texts.parquet")
    spec = {"steps": 1, "batch_size": 1, "micro_batch_size": 1, "model": {}}
    return Namespace(
        spec=TransformerSpec.model_validate(spec),
        catalog=tmp_path / "catalog.parquet",
        tokens=tokens,
        texts=tmp_path / "texts.parquet",
    )


def test_texts_of_other_volumes_than_the_training_s_are_refused(args):
    text = {"text": {"embeddings": str(args.texts)}}
    args.spec = TransformerSpec.model_validate({**args.spec.model_dump(), **text})
    with pytest.raises(StoreError, match=r"texts.parquet has a row for no encoded volume of the"):
        main(args)


def test_a_training_that_is_to_translate_needs_several_volumes_of_a_study(args):
    args.spec = args.spec.model_copy(update={"source": "study"})
    with pytest.raises(StoreError, match=r"transformer.source: no study has two encoded volumes"):
        main(args)
