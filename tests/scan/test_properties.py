"""What holds for every grid: any spacing, shape, one of 48 orientations, oblique, sheared."""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.valuerep import DSfloat

from ct3dlib.config import RecipeSpec
from ct3dlib.scan.dicom import read_dicom
from ct3dlib.scan.geometry import (
    Orientation,
    canonical,
    crop_or_pad,
    orientation,
    reorient,
    shear,
)
from ct3dlib.scan.intensity import to_hu
from ct3dlib.scan.itk import read_itk
from ct3dlib.scan.nifti import read_nifti, write_nifti
from ct3dlib.scan.normalize import normalize, restore, validity
from ct3dlib.scan.reading import Reading
from ct3dlib.scan.resample import resize, straighten
from ct3dlib.scan.volume import Volume
from tests.corpus.case import body
from tests.corpus.dicom_files import one_slice
from tests.strategies import AIR, BRIGHT, Shape, affines, bright_voxels, shapes, steady


def corners(shape: Shape) -> NDArray[np.float64]:
    """Return the eight outer corners of a grid in voxels, as columns."""
    ends = list(itertools.product(*((-0.5, n - 0.5) for n in shape)))
    return np.c_[np.array(ends), np.ones(8)].T


def world(volume: Volume, voxel: Shape) -> NDArray[np.float64]:
    """Return where a voxel lies, mm."""
    return (volume.affine @ (*voxel, 1))[:3]


def off_by(volume: Volume, at: NDArray[np.float64], grid: Volume) -> float:
    """Return how far the light of a volume lies from a place, in voxels of a grid."""
    light = np.clip(volume.array.astype(np.float64) - AIR, 0, None)
    index = [(light * axis).sum() / light.sum() for axis in np.indices(volume.shape)]
    there = (volume.affine @ (*index, 1))[:3]
    return float(np.abs(np.linalg.inv(grid.affine[:3, :3]) @ (there - at)).max())


@steady(150)
@given(affines(tilted=True), shapes(1, 5))
def test_reorient_is_undone_by_its_inverse(affine, shape):
    volume = Volume(np.arange(np.prod(shape)).reshape(shape), affine)
    how = orientation(affine)
    places = [how.permutation.index(axis) for axis in range(3)]
    back = Orientation((places[0], places[1], places[2]), tuple(how.flips[p] for p in places))
    again = reorient(reorient(volume, how), back)
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_allclose(again.affine, affine, atol=1e-9)
    assert orientation(canonical(volume).affine) == Orientation((0, 1, 2), (False,) * 3)


@steady(60)
@given(affines(tilted=True), shapes(1, 6), shapes(1, 9))
def test_every_step_moves_the_affine_with_the_voxels(affine, shape, other):
    volume = Volume(np.zeros(shape, np.int16), affine)
    outer = affine @ corners(shape)
    upright = canonical(volume)
    there = upright.affine @ corners(upright.shape)
    # The same eight places in another order.
    assert max(np.abs(outer - one[:, None]).max(axis=0).min() for one in there.T) < 1e-9
    np.testing.assert_allclose(resize(volume, other).affine @ corners(other), outer, atol=1e-9)
    straight = straighten(upright, fill=AIR)
    assert shear(straight.affine) < 1e-12
    inside = np.linalg.inv(straight.affine) @ outer
    limits = np.array(straight.shape)[:, None]
    assert ((inside[:3] > -0.501) & (inside[:3] < limits - 0.499)).all()


@steady(100)
@given(shapes(1, 6), st.tuples(*[st.integers(-4, 6)] * 3), shapes(1, 8))
def test_crop_and_pad_keep_what_lies_in_both(shape, start, box):
    array = np.arange(1, np.prod(shape) + 1, dtype=np.int16).reshape(shape)
    volume = Volume(array, np.eye(4)[[2, 1, 0, 3]])
    cut = crop_or_pad(volume, start, shape=box, fill=0)
    d, h, w = (-one for one in start)
    back = crop_or_pad(cut, (d, h, w), shape=shape, fill=0)
    index = np.stack(np.indices(shape), axis=-1) - start
    kept = ((index >= 0) & (index < box)).all(axis=-1)
    np.testing.assert_array_equal(back.array, np.where(kept, array, 0))
    np.testing.assert_array_equal(back.affine, volume.affine)
    assert np.count_nonzero(cut.array) == kept.sum()


def through_nifti(volume: Volume, folder: Path) -> Volume:
    """Write and read a NIfTI file."""
    write_nifti(folder / "a.nii.gz", volume)
    return read_nifti(folder / "a.nii.gz").volume


def through_itk(ending: str) -> Callable[[Volume, Path], Volume]:
    """Return what writes a file by ITK, whose axes are x y z = W H D, and reads it."""

    def through(volume: Volume, folder: Path) -> Volume:
        image = SimpleITK.GetImageFromArray(volume.array)
        axes = volume.affine[:3, [2, 1, 0]]
        lengths = np.linalg.norm(axes, axis=0)
        image.SetSpacing(lengths.tolist())
        image.SetDirection((axes / lengths).ravel().tolist())
        image.SetOrigin(volume.affine[:3, 3].tolist())
        SimpleITK.WriteImage(image, folder / f"a{ending}")
        return read_itk(folder / f"a{ending}").volume

    return through


def through_dicom(volume: Volume, folder: Path) -> Volume:
    """Write slices at their true positions and read the series."""
    directions = volume.affine[:3, :3] / volume.spacing
    cosines = [*directions[:, 2], *directions[:, 1]]
    files = []
    for number, plane in enumerate(volume.array):
        tags = {
            "ImagePositionPatient": world(volume, (number, 0, 0)).tolist(),
            "ImageOrientationPatient": cosines,
            "PixelSpacing": list(volume.spacing[1:]),
        }
        texts = {tag: [DSfloat(x, auto_format=True) for x in value] for tag, value in tags.items()}
        stored = (plane + 1024).astype(np.uint16)
        files.append(one_slice(folder / f"{number}.dcm", number, stored, **texts))
    return read_dicom(files).volume


@pytest.mark.parametrize(
    ("through", "tilted"),
    [
        (through_nifti, True),
        (through_dicom, True),
        (through_itk(".nrrd"), False),
        (through_itk(".mha"), False),
    ],
    ids=["nifti", "dicom", "nrrd", "mha"],
)
def test_a_bright_voxel_keeps_its_place_through_every_reader(through, tilted):
    @steady(20)
    @given(bright_voxels(tilted=tilted))
    def holds(drawn):
        volume, voxel = drawn
        with tempfile.TemporaryDirectory() as folder:
            read = through(volume, Path(folder))
        found = np.argwhere(read.array == BRIGHT)
        assert len(found) == 1
        assert (read.array == AIR).sum() == volume.array.size - 1
        at = tuple(found[0].tolist())
        np.testing.assert_allclose(world(read, at), world(volume, voxel), atol=1e-3)

    holds()


def recipes(finest: float) -> st.SearchStrategy[RecipeSpec]:
    """Draw recipes that do not thin out voxels of `finest` mm, with any box and centre."""
    spacing = st.tuples(*[st.floats(0.5 * finest, finest)] * 3)
    return st.builds(
        RecipeSpec,
        spacing=st.none() | spacing,
        shape=st.none() | shapes(6, 40),
        center=st.sampled_from(["volume", "body"]),
        clip_first=st.none() | st.just((-1000.0, 1000.0)),
        min_slices=st.just(2),
    )


@steady(150)
@given(st.data(), bright_voxels(tilted=True))
def test_a_bright_voxel_survives_every_recipe_and_its_way_back(data, drawn):
    volume, voxel = drawn
    stored, record = normalize(volume, data.draw(recipes(min(volume.spacing))))
    around = tuple(slice(i - 1, i + 2) for i in voxel)
    assume(validity(record).array[around].all())
    assert off_by(stored, world(volume, voxel), volume) < 0.5
    back = restore(stored, record)
    if not record.straightened:  # which blurs along axes that are none of the voxel's
        assert np.unravel_index(back.array.argmax(), back.shape) == voxel
    assert off_by(back, world(volume, voxel), volume) < 0.5
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-9)


# No value between air and the volume's own, as interpolation makes them.
FILL = -2000


@steady(80)
@given(st.data(), affines(tilted=True), shapes(3, 8))
def test_validity_is_where_the_way_back_has_values(data, affine, shape):
    volume = Volume(np.full(shape, 100, np.int16), affine)
    stored, record = normalize(volume, data.draw(recipes(min(volume.spacing))))
    valid = validity(record).array.astype(bool)
    back = restore(stored, record, fill=FILL).array
    assert (back[~valid] == FILL).all()
    assert (back[valid] != FILL).all()
    if not record.straightened:
        assert (back[valid] == 100).all()
        # By hand: voxels whose centre lies within the outer edges of the stored, unpadded grid.
        index = np.stack([*np.indices(shape), np.ones(shape)]).reshape(4, -1)
        there = np.linalg.inv(np.array(record.affine)) @ affine @ index
        held = np.array([record.start, np.zeros(3, int) - record.start, record.resampled_shape])
        low = np.maximum(held[1], 0)[:, None]
        high = np.minimum(held[1] + held[2], record.shape)[:, None]
        clear = ((there[:3] > low - 0.499) & (there[:3] < high - 0.501)).all(axis=0)
        outside = ((there[:3] < low - 0.501) | (there[:3] > high - 0.499)).any(axis=0)
        assert valid.ravel()[clear].all()
        assert not valid.ravel()[outside].any()


SCAN = body()


def reading_of(array: NDArray[np.generic], *, hu: bool | None = None) -> Reading:
    """Return a reading whose file says nothing of slope and intercept."""
    volume = Volume(array, np.eye(4))
    return Reading(volume, slope=None, intercept=None, hu=hu, sha256="")


@steady(60)
@given(
    st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0]),
    st.integers(-9000, -900).map(float),
)
@example(1.0, -1024.0)
@example(1.0, -8192.0)
def test_bringing_to_hu_twice_is_bringing_once(slope, intercept):
    stored = np.rint((SCAN.astype(np.float64) - intercept) / slope).astype(np.float32)
    once = to_hu(reading_of(stored), slope=slope, intercept=intercept, state="auto")
    assert once.state == "rescaled"
    assert np.abs(once.volume.array - SCAN).max() <= slope / 2 + 1e-3
    again = to_hu(reading_of(once.volume.array), slope=slope, intercept=intercept, state="auto")
    assert again.state == "hu"
    np.testing.assert_array_equal(again.volume.array, once.volume.array)
