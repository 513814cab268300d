"""A recipe of a fixed `size`: where the corners of a scan come to lie in its store.

Three lengths, three spacings, and a ball of its own brightness near each corner: an axis that is
swapped, flipped or stretched about the wrong point moves at least one of them.
"""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from ct3dlib.cohort.shard import store_shard
from ct3dlib.cohort.store import StoredVolume, stored_volumes
from ct3dlib.config import CatalogSpec, RecipeSpec
from ct3dlib.datasets import build_catalog
from ct3dlib.scan.geometry import shear
from ct3dlib.scan.nifti import write_nifti
from ct3dlib.scan.volume import Volume
from tests.strategies import Shape, turned

SHAPE = (75, 128, 112)
SPACING = (3.2, 2.6, 2.4)
SIZE = (64, 64, 48)
AIR = -1024
RADIUS = 14.0  # mm
NAMES = ("axial", "oblique", "backwards", "tilted")
CORNERS = list(itertools.product((0, 1), repeat=3))
SPEC = CatalogSpec(dataset="folder", shards={"train": 1, "tune": 1, "valid": 1})


def affine_of(name: str) -> NDArray[np.float64]:
    """Return the affine of a scan, D H W to LPS mm, off the origin."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag(SPACING)[::-1]
    affine[:3, 3] = 31, -77, 412
    match name:
        case "oblique":
            affine[:3, :3] = turned((8, -5, 11)) @ affine[:3, :3]
        case "backwards":
            affine[:3, [0, 2]] *= -1
        case "tilted":  # the gantry, by 15 degrees: slices shift towards the back
            affine[1, 0] = SPACING[0] * np.tan(np.deg2rad(15))
    return affine


def corners_of(affine: NDArray[np.float64], shape: Shape) -> NDArray[np.float64]:
    """Return the outer corners of a grid in the world, one a row."""
    places = [[*(np.array(corner) * shape - 0.5), 1] for corner in CORNERS]
    return (np.array(places) @ affine.T)[:, :3]


def phantom_of(affine: NDArray[np.float64]) -> tuple[Volume, NDArray[np.float64]]:
    """Return a scan with a ball of 100, 300, ... 1500 HU near each corner, and their centres."""
    grid = np.stack([*np.indices(SHAPE), np.ones(SHAPE)])
    world = np.einsum("ij,jdhw->idhw", affine, grid)[:3]
    share = 0.2 + 0.6 * np.array(CORNERS) + np.random.default_rng(0).uniform(-0.03, 0.03, (8, 3))
    centres = (np.c_[share * SHAPE, np.ones(8)] @ affine.T)[:, :3]
    array = np.full(SHAPE, float(AIR))
    for number, centre in enumerate(centres):
        away = np.linalg.norm(world - centre[:, None, None, None], axis=0)
        # A rim of 6 mm as a scanner's blur makes it; the middle of what is bright is the centre.
        inside = np.clip((RADIUS + 3 - away) / 6, 0, 1)
        array += inside * (100 + 200 * number - AIR)
    return Volume(np.rint(array).astype(np.int16), affine), centres


class Case(NamedTuple):
    """A scan, the centres of its balls, and what the volumes stage made of its file."""

    scan: Volume
    centres: NDArray[np.float64]
    volume: StoredVolume


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("size")
    (folder / "raw").mkdir()
    made = {name: phantom_of(affine_of(name)) for name in NAMES}
    for name, (scan, _) in made.items():
        write_nifti(folder / f"raw/{name}.nii.gz", scan)
    rows = build_catalog(folder / "raw", SPEC)
    status = folder / "0000.parquet"
    recipe = RecipeSpec(size=SIZE, hu_state="hu")
    store_shard(rows, folder / "raw", recipe=recipe, code="1", status=status)
    return {v.volume: Case(*made[v.volume], v) for v in stored_volumes([status])}


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


def test_the_physical_extent_is_kept(case):
    scan, _, volume = case
    assert volume.shape == SIZE
    found, wanted = corners_of(volume.affine, SIZE), corners_of(scan.affine, SHAPE)
    if shear(scan.affine) < 1e-6:
        # The same eight places; in another order where the file's axes ran backwards.
        away = np.linalg.norm(found[:, None] - wanted, axis=2)
        assert sorted(away.argmin(axis=1)) == list(range(8))
        assert away.min(axis=1) == pytest.approx(np.zeros(8), abs=1e-3)
        return
    # Upright around the leaning box; what is beyond it is less than a voxel of the scan.
    low, high = found.min(axis=0), found.max(axis=0)
    np.testing.assert_allclose(low, wanted.min(axis=0), atol=1e-3)
    beyond = high - wanted.max(axis=0)
    assert ((beyond > -1e-3) & (beyond < SPACING[::-1])).all()


def test_corner_landmarks_are_found_within_half_a_voxel(case):
    _, centres, volume = case
    hu = volume.read().astype(np.float64)
    labels = np.empty(SIZE, np.int32)
    assert ndimage.label(hu > AIR + 300, output=labels) == 8
    numbers = np.arange(1, 9)
    # Which ball is which its brightness says, not its place.
    numbers = numbers[np.argsort(ndimage.maximum(hu, labels, numbers))]
    brightest = ndimage.maximum(hu, labels, numbers)
    np.testing.assert_allclose(brightest, 100 + 200 * np.arange(8), atol=1)
    places = np.array(ndimage.center_of_mass(hu - AIR, labels, numbers))
    wanted = (np.c_[centres, np.ones(8)] @ np.linalg.inv(volume.affine).T)[:, :3]
    # Half a voxel is what is promised; centres laid corner to corner would be off by 0.2.
    assert np.abs(places - wanted).max() < 0.1


def test_the_background_is_air(case):
    _, centres, volume = case
    hu = volume.read()
    assert hu.dtype == np.int16
    grid = np.stack([*np.indices(SIZE), np.ones(SIZE)])
    world = np.einsum("ij,jdhw->idhw", volume.affine, grid)[:3]
    away = np.min([np.linalg.norm(world - c[:, None, None, None], axis=0) for c in centres], axis=0)
    reach = np.linalg.norm(volume.affine[:3, :3], axis=0).max() * np.sqrt(3)
    far = away > RADIUS + 3 + reach
    assert far.mean() > 0.5
    assert (hu[far] == AIR).all()
    assert hu.max() <= 1500
    assert hu.min() == AIR
