"""The preset `medsam2` end to end: label maps, classical regions, and random weights on a CPU."""

import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from ct3dlib.cohort.verify import verify_table
from tests.regions.medsam2_golden import native_weights
from tests.workflow.conftest import MINIATURE, Run

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]


def _blank(masks: Path, folder: Path) -> Path:
    """Copy label maps without the geometry in their headers."""
    folder.mkdir()
    for path in masks.glob("*.nii.gz"):
        labels = np.asanyarray(nibabel.load(path).dataobj)
        nibabel.save(nibabel.Nifti1Image(labels, None), folder / path.name)
    return folder


def test_the_preset_makes_masks_of_a_cohort(
    snakemake: Run, repository: Path, miniature: Path, copy: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "medsam2.pt"
    torch.save({"model": native_weights()}, weights)
    over = tmp_path / "over.yaml"
    regions = {
        "recipe": "chest",
        "classical": MINIATURE["regions"]["classical"],
        "labelmap": {"numbering": "regions"},
        # Random weights agree with nobody: the heart is taken whatever they draw, as 0 asks.
        "medsam2": {"accept": 0.0, "regions": ["heart", "spine"], "precision": "fp32"},
    }
    over.write_text(
        yaml.safe_dump(
            {**MINIATURE, "raw_root": "data/raw", "regions": regions, "report": {"title": "masks"}}
        )
    )
    variables = {
        "CT3D_RAW": "unused",
        # True masks of the scans of `valid`, their headers as blank as the scans'; the others
        # fall back.
        "CT3D_LABELMAPS": str(_blank(copy / "data/raw/dataset/regions/valid", tmp_path / "maps")),
        "MEDSAM2_WEIGHTS": str(weights),
        "MEDSAM2_SHA256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "CT3D_TEST_MEDSAM2_SIZE": "128",
    }
    given = [repository / "configs/medsam2.yaml", over]

    def run(target: str, **changes: str):
        return snakemake(target, directory=copy, preset=given, **{**variables, **changes})

    # Every shard would be refused alike.
    refused = run("data/regions/chest/valid/0000.parquet", MEDSAM2_SHA256="0" * 64)
    assert refused.returncode != 0
    log = (copy / "logs/regions/chest/valid/0000.log").read_text()
    assert "CheckpointError" in log
    assert "sha256" in log

    done = run("masks")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    tables = sorted((copy / "data/regions/chest").glob("*/*.parquet"))
    rows = pd.concat([pd.read_parquet(path) for path in tables])
    rows = rows[rows["status"] == "stored"]
    found = {row["volume"]: json.loads(row["regions"]) for _, row in rows.iterrows()}
    assert len(found) >= 5
    for volume, regions in found.items():
        by_name = {row["name"]: row for row in regions}
        provider = "labelmap" if volume.startswith("valid") else "classical"
        assert by_name["liver_biliary"]["source"] == provider
        for name in ("heart", "spine"):
            drawn = by_name[name]
            taken = bool(drawn["agreement"])
            assert drawn["source"] == provider + ("+medsam2" if taken else "")
        assert by_name["pleura"]["source"] == "derived"
    assert any(r["agreement"] for regions in found.values() for r in regions)
    skipped = {
        r["volume"]: [s["reason"] for s in json.loads(r["skipped"])] for _, r in rows.iterrows()
    }
    assert skipped["valid_1_a_1"] == []
    assert skipped["train_1_a_1"] == ["NO_LABEL_MAP"]
    assert not [finding for table in tables for finding in verify_table(table)]
