"""What other readers learn about a stored volume."""

import numpy as np
import pytest
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr_models.v05 import Image

from ct3dlib.cohort.ome import multiscales
from ct3dlib.cohort.store import create_store, write_node

# Voxel (d, h, w) to LPS mm: 2 mm slices, 0.5 mm rows, 0.75 mm columns.
ALIGNED = np.array([[0, 0, 0.75, -120], [0, 0.5, 0, -99.5], [2, 0, 0, 31], [0, 0, 0, 1.0]])


def oblique(degrees: float) -> np.ndarray:
    """Return the grid turned about the patient's x axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]]) @ ALIGNED


def transforms(affine: np.ndarray) -> list[dict[str, object]]:
    """Return the transformations of the single level."""
    (level,) = multiscales("a", affine)["multiscales"][0]["datasets"]
    return level["coordinateTransformations"]


def test_an_aligned_grid_has_its_spacing_and_its_first_voxel_in_z_y_x():
    assert transforms(ALIGNED) == [
        {"type": "scale", "scale": [2.0, 0.5, 0.75]},
        {"type": "translation", "translation": [31.0, -99.5, -120.0]},
    ]


@pytest.mark.parametrize("affine", [oblique(8), ALIGNED @ np.diag([1, -1, 1, 1])], ids=str)
def test_a_grid_that_ome_cannot_place_has_its_spacing_alone(affine):
    (scale,) = transforms(affine)
    assert scale["type"] == "scale"
    assert scale["scale"] == pytest.approx([2, 0.5, 0.75])


@pytest.fixture
def stored(tmp_path):
    """Return the folder of a stored volume and its voxels."""
    array = np.random.default_rng(0).integers(-1024, 3071, (5, 70, 9), dtype=np.int16)
    store = tmp_path / "0000.zarr"
    create_store(store, "volumes")
    write_node(store, "a@1", array, attributes={"ome": multiscales("a", ALIGNED)})
    return store / "a@1", array


def test_metadata_hold_the_rules_of_version_0_5(stored):
    folder, _ = stored
    image = Image.from_zarr(zarr.open_group(folder, mode="r"))
    (scale,) = image.ome_attributes.multiscales
    assert [(a.name, a.type, a.unit) for a in scale.axes] == [
        (name, "space", "millimeter") for name in "zyx"
    ]
    assert [dataset.path for dataset in scale.datasets] == ["0"]
    assert zarr.open_array(folder / "0", mode="r").metadata.dimension_names == ("z", "y", "x")


def test_the_reference_reader_finds_the_same_voxels_and_place(stored):
    folder, array = stored
    (node,) = Reader(parse_url(folder))()
    assert np.array_equal(np.asarray(node.data[0]), array)
    assert [axis["name"] for axis in node.metadata["axes"]] == ["z", "y", "x"]
    (level,) = node.metadata["coordinateTransformations"]
    assert level == transforms(ALIGNED)
