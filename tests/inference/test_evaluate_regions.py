"""Region masks against references."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from ct3dlib.cohort.private import RawRoot
from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import RecipeSpec
from ct3dlib.errors import StoreError, VolumeError
from ct3dlib.inference.evaluate_regions import (
    Found,
    backends,
    compare_regions,
    evaluate_regions,
    score_regions,
    stored_regions,
    summarise,
)
from ct3dlib.regions.label_files import LabelMap
from ct3dlib.regions.label_map import REGIONS
from ct3dlib.regions.mask import sidecar
from ct3dlib.scan.nifti import write_nifti
from ct3dlib.scan.normalize import normalize
from ct3dlib.scan.resample import resample_to
from ct3dlib.scan.volume import Volume
from tests.inference.region_stores import AFFINE, regions_of, write_region_store, write_store

HEART, LIVER, SPLEEN, SPINE = 8, 15, 16, 19
ALL = frozenset(range(1, len(REGIONS)))
SHAPE = (4, 5, 6)


def _ids(**boxes: tuple[slice, ...]) -> np.ndarray:
    """Return ids of 4 x 5 x 6 voxels with a box for each region."""
    ids = np.zeros(SHAPE, np.uint8)
    for name, box in boxes.items():
        ids[box] = REGIONS.index(name)
    return ids


def _reference(ids: np.ndarray, known: frozenset[int] = ALL) -> LabelMap:
    return LabelMap(Volume(ids, AFFINE, "uint8"), known)


def test_scores_by_hand():
    # heart: 6 voxels of 12 found, and 3 beside it; the spleen is missed, the liver invented.
    truth = _ids(heart=np.s_[0, :2], spleen_pancreas=np.s_[3, 0, :4])
    mask = _ids(heart=np.s_[0, 1], liver_biliary=np.s_[2, 0, :5], spine=np.s_[1, 1])
    mask[0, 2, :3] = HEART
    found = score_regions(mask, _reference(truth, ALL - {SPINE}), voxel_ml=0.5)
    rows = {row["region"]: row for row in found}
    assert list(rows) == [REGIONS[i] for i in sorted((HEART, LIVER, SPLEEN))]
    heart = {"id": HEART, "region": "heart", "dice": 2 * 6 / (9 + 12), "ml": 4.5}
    assert rows["heart"] == pytest.approx({**heart, "reference_ml": 6.0, "volume_error": -0.25})
    spleen, liver = rows["spleen_pancreas"], rows["liver_biliary"]
    assert (spleen["dice"], spleen["ml"], spleen["reference_ml"]) == (0, 0, 2)
    assert spleen["volume_error"] == -1
    assert (liver["dice"], liver["ml"], liver["reference_ml"]) == (0, 2.5, 0)
    assert math.isnan(liver["volume_error"])


def test_lungs_are_their_lobes_together_where_the_reference_knows_all_of_them():
    truth, mask = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    truth[0], truth[1] = 1, 2
    mask[0], mask[1] = 2, 1  # the right voxels of the wrong lobes
    *lobes, lungs = score_regions(mask, _reference(truth), voxel_ml=1.0)
    assert [row["dice"] for row in lobes] == [0, 0]
    assert (lungs["id"], lungs["region"], lungs["dice"], lungs["ml"]) == (None, "lungs", 1, 60)
    some = score_regions(mask, _reference(truth, ALL - {3}), voxel_ml=1.0)
    assert [row["id"] for row in some] == [1, 2]


def test_masks_of_two_grids_are_refused():
    with pytest.raises(ValueError, match="masks of one shape"):
        score_regions(np.zeros((2, 2, 2), np.uint8), _reference(_ids()), voxel_ml=1.0)


def test_a_mask_is_what_it_is(tmp_path):
    mask = np.random.default_rng(0).integers(0, 21, SHAPE).astype(np.uint8)
    volumes = stored_volumes([write_region_store(tmp_path / "0.parquet", {"a": mask}, {})])
    found = compare_regions(volumes, stored_regions, lambda _: _reference(mask))
    summary = summarise(found.scores)
    assert summary["region"].tolist() == [*REGIONS[1:], "lungs"]
    assert (summary["dice"] == 1).all()
    assert (summary["volume_error"] == 0).all()
    assert not summary[["missed", "invented"]].to_numpy().any()
    assert found.scores["reference_ml"].sum() == pytest.approx(
        0.04 * ((mask > 0).sum() + ((mask > 0) & (mask < 6)).sum())
    )


def test_rows_say_who_found_a_region(tmp_path):
    mask = _ids(heart=np.s_[0], liver_biliary=np.s_[1])
    volumes = stored_volumes([write_region_store(tmp_path / "0.parquet", {"a": mask}, {})])
    said = sidecar(regions_of(mask, heart=0.75), (5.0, 4.0, 2.0))
    scores = compare_regions(
        volumes, lambda _: Found(mask, said), lambda _: _reference(mask)
    ).scores
    heart, liver = scores.to_dict("records")
    assert (heart["volume"], heart["status"], heart["source"]) == ("a", "ok", "classical")
    assert heart["agreement"] == 0.75
    assert math.isnan(liver["agreement"])


def test_volumes_without_a_reference_are_left_out_before_a_provider_is_asked(tmp_path, caplog):
    masks = {name: _ids(heart=np.s_[0]) for name in ("a", "b", "c")}
    volumes = stored_volumes([write_region_store(tmp_path / "0.parquet", masks, {})])
    asked = []

    def find(volume):
        asked.append(volume.volume)
        if volume.volume == "c":
            raise VolumeError("NO_LUNGS", "c: no lungs")
        return stored_regions(volume)

    def reference(volume):
        if volume.volume == "a":
            raise VolumeError("NO_LABEL_MAP", "a: no label map a.nii.gz")
        return _reference(masks[volume.volume])

    with caplog.at_level("INFO"):
        found = compare_regions(volumes, find, reference)
    assert asked == ["b", "c"]
    assert found.compared == 1
    assert [(v.volume, v.reason) for v in found.left_out] == [
        ("a", "NO_LABEL_MAP"),
        ("c", "NO_LUNGS"),
    ]
    assert "a: left out: a: no label map a.nii.gz" in caplog.text


def test_summary_by_hand():
    columns = ["region", "id", "dice", "ml", "reference_ml", "volume_error"]
    scores = pd.DataFrame(
        [
            ("lungs", None, 0.5, 5.0, 10.0, -0.5),
            ("heart", HEART, 0.9, 11.0, 10.0, 0.1),
            ("heart", HEART, 0.6, 8.0, 10.0, -0.2),
            ("heart", HEART, 0.0, 0.0, 10.0, -1.0),
            ("heart", HEART, 0.0, 3.0, 0.0, math.nan),
            ("trachea_bronchi", 6, 0.0, 3.0, 0.0, math.nan),
        ],
        columns=columns,
    )
    airway, heart, lungs = summarise(scores).to_dict("records")
    assert heart == pytest.approx(
        {
            "id": HEART,
            "region": "heart",
            "n": 4,
            "dice": 0.375,
            "dice_median": 0.3,
            "volume_error": -1.1 / 3,
            "missed": 1,
            "invented": 1,
        }
    )
    assert (airway["region"], airway["invented"]) == ("trachea_bronchi", 1)
    assert math.isnan(airway["volume_error"])
    assert lungs["region"] == "lungs"


@pytest.fixture
def cohort(tmp_path):
    """Return a region store of one volume, its catalog, and the raw root with its true mask.

    The truth has a blank header, as files of CT-RATE's first version have.
    """
    ids = np.zeros((8, 9, 10), np.uint8)
    ids[1:5, 2:6, 3:7], ids[5:7, 2:6, 3:7] = HEART, LIVER
    scan = Volume(np.where(ids > 0, 40, -1000).astype(np.int16), AFFINE)
    volume, record = normalize(scan, RecipeSpec(spacing=(5.0, 4.0, 2.0), shape=(9, 8, 12)))
    mask = resample_to(
        Volume(ids, AFFINE, "uint8"), affine=volume.affine, shape=volume.shape, fill=0, nearest=True
    ).array.astype(np.uint8)
    said = {
        "affine": volume.affine.tolist(),
        "record": record.model_dump(mode="json"),
        "regions": sidecar(regions_of(mask), volume.spacing),
    }
    table = write_store(tmp_path / "0.parquet", "regions", {"a": (mask, said)})
    raw = tmp_path / "raw"
    raw.mkdir()
    write_nifti(raw / "a.nii.gz", Volume(ids, np.eye(4)[[2, 1, 0, 3]], "uint8"))
    return table, pd.DataFrame({"volume": ["a"], "regions_truth": ["a.nii.gz"]}), raw


def test_the_true_masks_of_a_catalog_lie_on_their_scans_voxels(cohort):
    table, catalog, raw = cohort
    found = evaluate_regions(catalog, [table], raw=RawRoot(raw))
    assert found["dice"] == {"heart": 1.0, "liver_biliary": 1.0}
    assert found["volume_error"] == {"heart": 0.0, "liver_biliary": 0.0}
    assert found["missed"] == found["invented"] == {"heart": 0, "liver_biliary": 0}
    assert found["n_by_region"] == {"heart": 1, "liver_biliary": 1}
    assert (found["backend"], found["n"], found["left_out"]) == ("classical", 1, 0)
    assert found["spacing"] == pytest.approx([5, 4, 2])
    assert "NaN" not in json.dumps(found)


def test_an_error_of_volume_without_truth_is_null(cohort, tmp_path):
    table, catalog, raw = cohort
    write_nifti(
        raw / "a.nii.gz", Volume(np.zeros((8, 9, 10), np.uint8), np.eye(4)[[2, 1, 0, 3]], "uint8")
    )
    found = evaluate_regions(catalog, [table], raw=RawRoot(raw))
    assert found["volume_error"] == {"heart": None, "liver_biliary": None}
    assert found["invented"] == {"heart": 1, "liver_biliary": 1}


def test_a_true_mask_of_another_shape_is_refused(cohort):
    table, catalog, raw = cohort
    write_nifti(raw / "a.nii.gz", Volume(np.zeros((8, 9, 11), np.uint8), np.eye(4), "uint8"))
    with pytest.raises(StoreError, match=r"a.nii.gz: shape .* is not that of its scan, \(8, 9, 10"):
        evaluate_regions(catalog, [table], raw=RawRoot(raw))


def test_a_catalog_without_true_masks_is_refused(cohort):
    table, catalog, raw = cohort
    with pytest.raises(StoreError, match="no volume of these region tables has a true mask"):
        evaluate_regions(catalog.assign(regions_truth=None), [table], raw=RawRoot(raw))


def test_true_masks_that_are_all_unreadable_are_an_error(cohort):
    table, catalog, raw = cohort
    (raw / "a.nii.gz").write_bytes(b"nothing")
    with pytest.raises(StoreError, match=r"none of 1 true masks can be used; .*a\.nii\.gz"):
        evaluate_regions(catalog, [table], raw=RawRoot(raw))


def test_a_store_without_records_has_no_place_for_true_masks(cohort, tmp_path):
    _, catalog, raw = cohort
    table = write_region_store(tmp_path / "1.parquet", {"a": _ids(heart=np.s_[0])}, {})
    with pytest.raises(StoreError, match="has no record of its scan; run its rule again"):
        evaluate_regions(catalog, [table], raw=RawRoot(raw))


def test_backends_are_named_once(cohort, tmp_path):
    table, _, _ = cohort
    frame = pd.read_parquet(table)
    more = pd.concat([frame, frame.assign(backend="labelmap+classical+medsam2")])
    more = pd.concat([more, frame.assign(status="rejected", backend="")])
    more.to_parquet(tmp_path / "2.parquet")
    assert backends([tmp_path / "2.parquet"]) == "classical+labelmap+medsam2"
