import json

import numpy as np
import pytest

from ct3dlib.regions import Regions, sidecar
from ct3dlib.regions.label_map import REGIONS
from ct3dlib.regions.mask import on_grid


def status(**found):
    return {name: found.get(name, "absent") for name in REGIONS[1:]}


def test_sidecar_by_hand():
    mask = np.zeros((4, 2, 3), np.uint8)
    mask[1, 0, :2] = 8
    mask[2] = 8
    mask[3, 0, 0] = 8
    mask[3, 1, 2] = 19
    regions = Regions(
        mask,
        status(heart="approximate", spine="ok"),
        sources={"heart": "classical+medsam2", "spine": "labelmap", "aorta": "labelmap"},
        agreement={"heart": 0.75, "aorta": 0.25},
    )
    rows = sidecar(regions, (5.0, 2.0, 1.0))
    assert json.loads(json.dumps(rows)) == rows
    assert [row["id"] for row in rows] == list(range(1, 21))
    assert rows[7] == {
        "id": 8,
        "name": "heart",
        "status": "approximate",
        "source": "classical+medsam2",
        "voxels": 9,
        "ml": 0.09,
        "agreement": 0.75,
        "key_slice": 2,
        "start": 1,
        "stop": 4,
    }
    assert (rows[18]["status"], rows[18]["key_slice"]) == ("ok", 3)
    assert (rows[18]["source"], rows[18]["agreement"]) == ("labelmap", None)
    assert (rows[9]["status"], rows[9]["source"], rows[9]["agreement"]) == (
        "absent",
        "labelmap",
        0.25,
    )
    assert rows[0]["source"] is None
    assert regions.backend == "classical+medsam2+labelmap"
    assert (rows[0]["voxels"], rows[0]["key_slice"], rows[0]["stop"]) == (0, None, None)


def test_regions_refuse_a_status_that_the_mask_denies():
    mask = np.zeros((1, 1, 2), np.uint8)
    with pytest.raises(ValueError, match="heart is 'ok' and has 0 voxels"):
        Regions(mask, status(heart="ok"), {})
    mask[0, 0, 0] = 8
    with pytest.raises(ValueError, match="heart is 'absent' and has 1 voxels"):
        Regions(mask, status(), {})


def test_regions_refuse_an_unknown_id():
    with pytest.raises(ValueError, match="region ids are 0 to 20, found 21"):
        Regions(np.full((1, 1, 1), 21, np.uint8), status(), {})


def test_regions_refuse_a_status_of_other_names():
    wrong = status() | {"knee": "ok"}
    del wrong["heart"]
    with pytest.raises(ValueError, match=r"wrong: \['heart', 'knee'\]"):
        Regions(np.zeros((1, 1, 1), np.uint8), wrong, {})


def test_regions_move_to_a_finer_grid_at_the_same_place() -> None:
    mask = np.zeros((2, 2, 2), np.uint8)
    mask[1, 0, 1] = 9
    coarse = np.diag([0.0, 0.0, 0.0, 1.0])
    coarse[[2, 1, 0], [0, 1, 2]] = 4.0
    fine = coarse.copy()
    fine[:3, :3] /= 2
    fine[:3, 3] = -1.0
    moved = on_grid(mask, coarse, affine=fine, shape=(4, 4, 6))
    assert np.argwhere(moved == 9).tolist() == [
        [d, h, w] for d in (2, 3) for h in (0, 1) for w in (2, 3)
    ]
    assert set(np.unique(moved)) == {0, 9}
    assert on_grid(mask, coarse, affine=coarse, shape=(2, 2, 2)) is mask
