"""One's own scans, without labels, under pseudonyms, through both trainings on two ranks."""

import json

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from ct3dlib.cohort.catalog import read_catalog
from tests.test_config import merged
from tests.workflow.conftest import MINIATURE

pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.xdist_group("own")]

TWO_RANKS = {"device": "cpu", "devices": 2, "micro_batch_size": 1}
OWN = {
    "raw_root": "scans",
    "phantom": None,
    "catalog": {
        "dataset": "folder",
        "pseudonymise": True,
        "shards": {"train": 1, "tune": 1, "valid": 1},
    },
    "tokenizers": {"lfq": TWO_RANKS},
    "transformer": TWO_RANKS,
    "samples": {"labels": []},
}


def write_scan(path, rng) -> None:
    """Write soft tissue with two lungs in air, HU, 8 mm."""
    hu = np.full((44, 36, 24), -1000.0)
    hu[4:-4, 4:-4] = 40
    hu[8:18, 8:-8, 4:-4] = hu[-18:-8, 8:-8, 4:-4] = -850
    hu += rng.normal(0, 10, hu.shape)
    affine = np.diag([-8.0, -8.0, 8.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(hu.astype(np.int16), affine), path)


def test_scans_without_labels_train_both_models_on_two_ranks(snakemake, tmp_path):
    rng = np.random.default_rng(0)
    out = tmp_path / "out"
    (out / "scans").mkdir(parents=True)
    for name in "abcde":
        write_scan(out / f"scans/Doe_Jane_{name}.nii.gz", rng)
    preset = tmp_path / "own.yaml"
    preset.write_text(yaml.safe_dump(merged(MINIATURE, OWN)))
    done = snakemake("samples/samples.csv", directory=out, preset=preset)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    spec = json.loads((out / "models/transformer/spec.json").read_text())
    assert spec["contract"]["labels"] == []
    assert spec["training"]["step"] == MINIATURE["transformer"]["steps"]
    assert len(list((out / "samples").glob("*.nii.gz"))) == MINIATURE["samples"]["num_samples"]
    told = pq.read_table(out / "data/private/names.parquet").to_pandas()
    assert set(told["name"]) == {f"Doe_Jane_{name}" for name in "abcde"}
    assert set(told["volume"]) == set(read_catalog(out / "data/catalog/folder.parquet")["volume"])
    for path in published(out):
        assert b"Jane" not in path.read_bytes(), path
        assert "Jane" not in str(path)


def published(out):
    """Yield the files of a run that may be passed on."""
    for folder in ("data/catalog", "data/volumes", "data/regions", "models", "tokens", "samples"):
        yield from (path for path in (out / folder).rglob("*") if path.is_file())
