"""`ct3d evaluate regions`: a region store, or a provider, against label maps."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import yaml

from ct3dlib.cli import main
from ct3dlib.cohort.private import RawRoot
from ct3dlib.cohort.store import write_table
from ct3dlib.config import LabelMapSpec, RegionsSpec
from ct3dlib.regions.shard import segment_shard
from ct3dlib.scan.nifti import write_nifti
from ct3dlib.scan.volume import Volume
from tests.inference.region_stores import AFFINE, write_label_map, write_region_store, write_store

HEART, LIVER, SPLEEN = 8, 15, 16


def _ids(region: int, rows: int) -> np.ndarray:
    """Return ids of 4 x 5 x 6 voxels of 0.04 ml: rows of six voxels in the second slice."""
    ids = np.zeros((4, 5, 6), np.uint8)
    ids[1, :rows] = region
    return ids


MASKS = {"a": _ids(HEART, 3), "b": _ids(LIVER, 2), "c": _ids(HEART, 1)}


@pytest.fixture
def ct3d(monkeypatch, capsys):
    """Return a function that runs a command and returns what it prints."""

    def run(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["ct3d", "evaluate", "regions", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        assert (exit_.value.code or 0) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return run


@pytest.fixture
def store(tmp_path):
    """Return a region store of three volumes; one of them names its file."""
    return write_region_store(
        tmp_path / "data/regions/chest/valid/0000.parquet",
        MASKS,
        {"a": ["train/p1/scan.nii.gz"]},
    ).parent


@pytest.fixture
def reference(tmp_path):
    """Return label maps of two volumes: one where the scan lies, one called as its volume."""
    write_label_map(tmp_path / "maps/p1/scan.nii.gz", _ids(HEART, 2))
    write_label_map(tmp_path / "maps/b.nii.gz", _ids(SPLEEN, 1))
    return tmp_path / "maps"


def test_masks_against_label_maps_by_hand(ct3d, store, reference, tmp_path):
    out = tmp_path / "scores.csv"
    printed = ct3d(store, "--reference", reference, "--strip", 1, "-o", out)
    heart, liver, spleen = pd.read_csv(out).to_dict("records")
    assert heart == pytest.approx(
        {
            "id": HEART,
            "region": "heart",
            "n": 1,
            "dice": 0.8,
            "dice_median": 0.8,
            "volume_error": 0.5,
            "missed": 0,
            "invented": 0,
        }
    )
    assert (liver["region"], liver["dice"], liver["invented"]) == ("liver_biliary", 0, 1)
    assert (spleen["region"], spleen["missed"], spleen["volume_error"]) == (
        "spleen_pancreas",
        1,
        -1,
    )
    rows = pd.read_csv(tmp_path / "scores.volumes.csv").set_index(["volume", "region"])
    assert rows.loc[("a", "heart"), ["ml", "reference_ml"]].tolist() == pytest.approx([0.72, 0.48])
    assert rows.loc[("a", "heart"), ["status", "source"]].tolist() == ["ok", "classical"]
    assert rows.loc[("b", "spleen_pancreas"), "status"] == "absent"
    lines = printed.splitlines()
    assert lines[1].split() == ["heart", "1", "0.800", "0.800", "+50.0%", "0", "0"]
    assert lines[4] == "2 volumes compared, 1 left out"
    assert lines[5] == "  1 NO_LABEL_MAP, as c: no label map c.nii.gz in maps"
    assert lines[6] == str(out)


def test_masks_against_themselves_are_right(ct3d, store, tmp_path):
    for name, mask in MASKS.items():
        write_label_map(tmp_path / f"same/{name}.nii.gz", mask)
    out = tmp_path / "x.csv"
    assert "3 volumes compared, 0 left out" in ct3d(
        store, "--reference", tmp_path / "same", "-o", out
    )
    assert pd.read_csv(out)[["dice", "dice_median"]].to_numpy().tolist() == [[1, 1], [1, 1]]


def test_a_region_that_references_do_not_know_does_not_count(ct3d, store, tmp_path):
    heart = tmp_path / "some/a"
    write_label_map(heart / "heart.nii.gz", MASKS["a"] > 0)
    write_label_map(tmp_path / "some/b/heart.nii.gz", np.zeros((4, 5, 6)))
    out = tmp_path / "x.csv"
    assert "2 volumes compared" in ct3d(store, "--reference", tmp_path / "some", "-o", out)
    assert pd.read_csv(out)["region"].tolist() == ["heart"]


@pytest.fixture
def volumes(tmp_path):
    """Return a volume store, and a preset whose provider reads label maps of the raw root."""
    hu = np.zeros((4, 5, 6), np.int16)
    table = write_store(tmp_path / "data/volumes/0000.parquet", "volumes", {"a": (hu, {})})
    write_label_map(tmp_path / "raw/given/a.nii.gz", _ids(HEART, 4))
    preset = tmp_path / "preset.yaml"
    labelmap = {"folder": "${CT3D_GIVEN:given}"}
    regions = {"providers": ["labelmap"], "labelmap": labelmap}
    preset.write_text(yaml.safe_dump({"raw_root": str(tmp_path / "raw"), "regions": regions}))
    return table, preset


def test_a_provider_is_scored_without_a_store(ct3d, volumes, tmp_path):
    table, preset = volumes
    write_label_map(tmp_path / "maps/a.nii.gz", _ids(HEART, 2))
    out = tmp_path / "x.csv"
    ct3d(table, "--reference", tmp_path / "maps", "-o", out, "--config", preset)
    (row,) = pd.read_csv(out).to_dict("records")
    assert (row["region"], row["volume_error"]) == ("heart", 1)
    assert row["dice"] == pytest.approx(2 / 3, rel=1e-5)
    (row,) = pd.read_csv(tmp_path / "x.volumes.csv").to_dict("records")
    assert (row["source"], row["ml"]) == ("labelmap", pytest.approx(0.96))


def test_a_region_store_keeps_where_its_scans_lie_and_who_was_skipped(ct3d, tmp_path):
    hu = np.zeros((4, 5, 6), np.int16)
    nodes = {name: (hu, {"source": [f"scans/{name}.nii.gz"]}) for name in ("a", "b")}
    table = write_store(tmp_path / "volumes/0000.parquet", "volumes", nodes)
    maps = write_label_map(tmp_path / "maps/scans/a.nii.gz", _ids(HEART, 2)).parents[1]
    spec = RegionsSpec(
        recipe="native",
        providers=("labelmap", "classical"),
        labelmap=LabelMapSpec(folder="maps"),
    )
    status = tmp_path / "regions/0000.parquet"
    frame = segment_shard(table, spec, raw=RawRoot(tmp_path), code="c", status=status)
    rows = frame.set_index("volume")
    assert json.loads(rows.loc["a", "skipped"]) == []
    (skip,) = json.loads(rows.loc["b", "skipped"])
    assert (skip["provider"], skip["reason"]) == ("labelmap", "NO_LABEL_MAP")
    ct3d(status, "--reference", maps, "-o", tmp_path / "x.csv")
    (row,) = pd.read_csv(tmp_path / "x.volumes.csv").query("region == 'heart'").to_dict("records")
    assert (row["volume"], row["dice"], row["source"]) == ("a", 1, "labelmap")


def test_rejected_volumes_are_said(ct3d, store, reference, tmp_path):
    table = store / "0000.parquet"
    frame = pd.read_parquet(table)
    last = frame["volume"] == "c"
    frame.loc[last, ["status", "reason", "message"]] = ["rejected", "NAN_VOXELS", "c: 3 NaN"]
    write_table(frame, table)
    printed = ct3d(store, "--reference", reference, "--strip", 1, "-o", tmp_path / "x.csv")
    assert "2 volumes compared, 1 left out\n  1 NAN_VOXELS, as c: 3 NaN\n" in printed


def test_pseudonyms_are_told_by_the_private_folder_beside_the_tables(ct3d, tmp_path):
    name = "v0123456789ab"
    table = write_region_store(
        tmp_path / "data/regions/chest/valid/0000.parquet",
        {name: MASKS["a"]},
        {name: [f"{name}:0"]},
    )
    write_label_map(tmp_path / "maps/p1/scan.nii.gz", MASKS["a"])
    out = tmp_path / "x.csv"
    arguments = (table, "--reference", tmp_path / "maps", "-o", out)
    assert "a pseudonym that names.parquet does not tell" in ct3d(*arguments, code=1)
    private = tmp_path / "data/private"
    private.mkdir()
    row = {"volume": name, "name": "x", "study": "s", "patient": "p", "mtime_ns": 0}
    row |= {"sources": ["p1/scan.nii.gz"], "metadata": "{}", "problem_message": ""}
    row |= {"regions_truth": None, "lesion_mask": None}
    pd.DataFrame([row]).to_parquet(private / "names.parquet")
    assert "1 volumes compared" in ct3d(*arguments)
    assert "p1" not in (tmp_path / "x.volumes.csv").read_text()


def test_no_reference_at_all_is_an_error_with_the_way_out(ct3d, store, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    error = ct3d(store, "--reference", empty, "-o", tmp_path / "x.csv", code=1)
    assert f"{empty}: none of 3 volumes can be compared, as c: no label map c.nii.gz in" in error
    assert error.endswith("lies as its scan does (--strip), or is called as the volume\n")
    assert not (tmp_path / "x.csv").exists()


def test_references_whose_numbers_mean_nothing(ct3d, store, tmp_path):
    path = tmp_path / "maps/a.nii.gz"
    write_nifti(path, Volume(MASKS["a"], AFFINE, "uint8"))
    arguments = (store, "--reference", tmp_path / "maps", "-o", tmp_path / "x.csv")
    write_label_map(tmp_path / "maps/b.nii.gz", MASKS["b"])
    printed = ct3d(*arguments)
    assert "1 UNKNOWN_CLASSES, as maps/a.nii.gz: its header does not name its classes" in printed
    assert "2 volumes compared, 1 left out" in ct3d(*arguments, "--numbering", "regions")


def test_tables_without_a_volume(ct3d, reference, tmp_path):
    table = write_region_store(tmp_path / "r/0000.parquet", MASKS, {})
    write_table(pd.read_parquet(table).iloc[:0], table)
    error = ct3d(table, "--reference", reference, "-o", tmp_path / "x.csv", code=1)
    assert "these tables hold no volume; run their rule again" in error


@pytest.mark.parametrize(
    ("output", "message"),
    [("x.txt", "the name must end with .csv"), ("no/x.csv", "no such folder; make it first")],
    ids=["ending", "folder"],
)
def test_names_of_tables_are_checked_before_the_work(ct3d, store, reference, output, message):
    error = ct3d(store, "--reference", reference, "-o", reference / output, code=2)
    assert message in " ".join(error.replace("│", " ").split())


def test_who_finds_regions_is_asked_for(ct3d, store, volumes, reference, tmp_path):
    table, preset = volumes
    out = ("--reference", reference, "-o", tmp_path / "x.csv")

    def error(*arguments: object) -> str:
        return " ".join(ct3d(*arguments, *out, code=2).replace("│", " ").split())

    assert "these tables hold volumes; say who finds their regions" in error(table)
    assert "hold regions already; leave it out" in error(store, "--config", preset)
    assert "these tables hold regions and volumes; give regions" in error(store, table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raw_root: x\n", "preset.yaml: there is no section regions; give a config or a preset"),
        ("- a\n", "preset.yaml: not a config"),
        ("a: [\n", "preset.yaml: while parsing"),
        ("regions: {providers: [labelmap]}\n", "set labelmap.folder"),
        ("regions: {labelmap: {folder: '${NO_SUCH}'}}\n", "variable NO_SUCH is not set"),
    ],
    ids=["no-section", "no-mapping", "no-yaml", "no-folder", "no-variable"],
)
def test_a_config_that_says_nothing_of_regions(ct3d, volumes, reference, text, message):
    table, preset = volumes
    preset.write_text(text)
    arguments = ("--reference", reference, "-o", reference / "x.csv", "--config", preset)
    assert message in " ".join(ct3d(table, *arguments, code=1).split())
