"""The main job on real CT: a folder of NIfTI and DICOM to tokens, and back onto the scan grid."""

import json
import subprocess

import nibabel
import numpy as np
import pandas as pd
import pytest
import yaml

from tests.test_config import merged

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.xdist_group("real"),
]

# Learning is not the point here: a few steps, a coarse grid.
SHORT = {
    "recipes": {"chest": {"spacing": [8.0, 8.0, 8.0], "shape": [49, 48, 56]}},
    "tokenizers": {
        "lfq": {
            "crop": [17, 24, 24],
            "steps": 6,
            "validate_every": 3,
            "save_every": 3,
            "log_every": 1,
        }
    },
}


def test_a_folder_of_real_scans_becomes_tokens(
    real_data, repository, snakemake, environment, tmp_path
):
    preset = tmp_path / "preset.yaml"
    folder = yaml.safe_load((repository / "configs/folder.yaml").read_text())
    preset.write_text(yaml.safe_dump(merged(folder, SHORT)))
    out = tmp_path / "out"
    done = snakemake("tokens/valid.done", directory=out, preset=preset, CT3D_RAW=str(real_data))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    catalog = pd.read_parquet(out / "data/catalog/folder.parquet")
    assert catalog.groupby("patient")["split"].nunique().max() == 1
    tables = [pd.read_parquet(p) for p in (out / "data/volumes/chest").glob("*/*.parquet")]
    status = pd.concat(tables).set_index("volume")
    whole = [v for v in catalog["volume"] if "LIDC-IDRI" in v or "totalsegmentator" in v]
    assert len(whole) == 4
    assert set(status.loc[status["status"] == "stored"].index) <= set(whole)
    assert all(status.loc[status["status"] == "rejected", "reason"] != "")

    tokens = pd.read_parquet(out / "tokens/valid.parquet")
    assert sorted(tokens["volume"]) == sorted(catalog.loc[catalog["split"] == "valid", "volume"])
    marker = json.loads((out / "tokens/valid.done").read_text())
    assert marker["encoded"] >= 1
    assert marker["bits_per_token"] == 18

    volume = tokens.loc[tokens["status"] == "encoded", "volume"].iloc[0]
    source = catalog.set_index("volume").loc[volume]
    if source["kind"] != "nifti":
        return
    output = tmp_path / "x.nii.gz"
    command = ["ct3d", "decode", "tokens/valid", "--volume", volume, "-o", str(output)]
    subprocess.run(command, cwd=out, env=environment, check=True, capture_output=True)
    decoded, scan = nibabel.load(output), nibabel.load(real_data / source["sources"][0])
    assert decoded.shape == scan.shape
    assert np.allclose(decoded.affine, scan.affine, atol=1e-3)
