import numpy as np
import pytest

from ct3dlib.errors import VolumeError
from ct3dlib.scan.intensity import apply_window, remove_window, to_hu
from ct3dlib.scan.reading import Reading
from ct3dlib.scan.resample import resize
from ct3dlib.scan.volume import Volume


def reading(array, *, hu=None):
    return Reading(
        Volume(array, np.eye(4)), slope=None, intercept=None, hu=hu, sha256="0", source="raw/a.nii"
    )


def auto(array, intercept):
    return to_hu(reading(array), slope=1.0, intercept=intercept, state="auto")


@pytest.mark.parametrize("intercept", [-1024.0, -8192.0, -1000.0])
def test_auto_finds_hu_and_stored_values(phantom, intercept):
    as_is = auto(phantom, intercept)
    assert as_is.state == "hu"
    np.testing.assert_array_equal(as_is.volume.array, phantom)
    stored = (phantom.astype(np.int32) - int(intercept)).astype(np.float32)
    rescaled = auto(stored, intercept)
    assert rescaled.state == "rescaled"
    assert np.abs(rescaled.volume.array - phantom).max() < 1e-3


@pytest.mark.parametrize("pad", [-2000, -1024, 0])
def test_auto_sees_through_padding_of_stored_values(phantom, pad):
    stored = phantom.astype(np.int16) + 1024
    stored[:, :8] = pad
    result = auto(stored, -1024.0)
    assert result.state == "rescaled"
    np.testing.assert_array_equal(result.volume.array[:, 8:], phantom[:, 8:])
    assert (result.volume.array[:, :8] == -1024).all()


@pytest.mark.parametrize("pad", [-1024, -2048, -3024])
def test_auto_sees_through_padding_of_hu(phantom, pad):
    padded = phantom.copy()
    padded[:, :12] = pad
    result = auto(padded, -1024.0)
    assert result.state == "hu"
    assert result.volume.array.min() == -1024


def test_auto_takes_lung_for_air_where_the_field_of_view_is_tight(phantom):
    tight = phantom[6:18, 10:30, 10:38]
    assert (tight < -950).mean() < 0.001
    assert auto(tight, -1024.0).state == "hu"
    assert auto(tight + 1024, -1024.0).state == "rescaled"


def test_slope_that_differs_from_one_is_applied(phantom):
    stored = ((phantom.astype(np.float32) + 1024) / 0.5).astype(np.float32)
    result = to_hu(reading(stored), slope=0.5, intercept=-1024.0, state="auto")
    assert result.state == "rescaled"
    np.testing.assert_allclose(result.volume.array, phantom, atol=1e-3)


def test_slope_1_and_intercept_0_are_held_against_the_values(phantom):
    assert to_hu(reading(phantom), slope=1.0, intercept=0.0, state="auto").state == "hu"
    mask = np.zeros((9, 9, 9), dtype=np.int16)
    mask[2:5] = 1
    with pytest.raises(VolumeError, match="metadata state 1 and 0; correct slope") as caught:
        to_hu(reading(mask), slope=1.0, intercept=0.0, state="auto")
    assert caught.value.reason == "HU_UNKNOWN"
    assert to_hu(reading(mask), slope=1.0, intercept=0.0, state="stored").state == "hu"


def test_double_rescale_is_refused(phantom):
    with pytest.raises(VolumeError, match=r"raw/a\.nii.*HU already.*use hu_state: auto") as caught:
        to_hu(reading(phantom), slope=1.0, intercept=-1024.0, state="stored")
    assert caught.value.reason == "HU_DOUBLE_RESCALE"


def test_stored_is_believed_otherwise(phantom):
    stored = phantom.astype(np.int16) + 1024
    result = to_hu(reading(stored), slope=1.0, intercept=-1024.0, state="stored")
    assert result.state == "rescaled"
    np.testing.assert_array_equal(result.volume.array, phantom)
    assert result.volume.array.dtype == np.int16


@pytest.mark.parametrize(
    ("state", "slope", "match"),
    [
        ("stored", None, "give no slope and intercept; add them or use hu_state: auto"),
        ("auto", None, "do not look like HU .*no gas.* or say hu_state: hu"),
        ("auto", 1.0, "neither would do.*say hu_state: hu or stored"),
    ],
)
def test_unknown_states_are_refused(state, slope, match):
    noise = np.random.default_rng(0).integers(300, 600, (8, 8, 8)).astype(np.int16)
    intercept = None if slope is None else -1024.0
    with pytest.raises(VolumeError, match=match) as caught:
        to_hu(reading(noise), slope=slope, intercept=intercept, state=state)
    assert caught.value.reason == "HU_UNKNOWN"


def test_two_plausible_states_are_refused():
    # Air, soft tissue and as much of something 1000 higher: rescaled, that is tissue in turn.
    rng = np.random.default_rng(0)
    levels = rng.choice([-1000, -40, 960], (30, 30, 30), p=[0.2, 0.5, 0.3])
    levels = levels + rng.normal(0, 5, levels.shape)
    with pytest.raises(VolumeError, match="both would do") as caught:
        auto(levels.astype(np.float32), -1000.0)
    assert caught.value.reason == "HU_UNKNOWN"


def test_file_that_states_hu_and_recipe_that_does_are_believed(phantom):
    odd = np.arange(500, 527, dtype=np.int16).reshape(3, 3, 3)
    assert to_hu(reading(odd, hu=True), slope=1.0, intercept=-1024.0, state="stored").state == "hu"
    assert to_hu(reading(odd), slope=1.0, intercept=-1024.0, state="hu").state == "hu"


@pytest.mark.parametrize("state", ["auto", "hu", "stored"])
def test_one_value_throughout_is_no_scan(state):
    flat = np.full((3, 4, 5), -1024, np.int16)
    with pytest.raises(
        VolumeError, match=r"raw/a\.nii: all its voxels are -1024; drop it"
    ) as caught:
        to_hu(reading(flat, hu=True), slope=1.0, intercept=-1024.0, state=state)
    assert caught.value.reason == "NO_CONTRAST"
    flat[2, 3, 4] = 0
    assert to_hu(reading(flat, hu=True), slope=None, intercept=None, state=state).state == "hu"


def test_hu_are_clipped_to_what_the_store_holds():
    wild = np.array([[[-3024, -1025, -1024, 0, 3071, 3072, 32767]]], np.int16)
    result = to_hu(reading(wild), slope=None, intercept=None, state="hu")
    assert result.volume.array.ravel().tolist() == [-1024, -1024, -1024, 0, 3071, 3071, 3071]
    assert result.volume.array.dtype == np.int16


def test_window_by_hand_and_back():
    hu = np.array([-1024, -1000, 0, 500, 1000, 3071], np.int16)
    seen = apply_window(hu, (-1000.0, 1000.0), onto=(-1.0, 1.0))
    assert seen.dtype == np.float32
    assert seen.tolist() == [-1, -1, 0, 0.5, 1, 1]
    back = remove_window(seen, (-1000.0, 1000.0), onto=(-1.0, 1.0))
    assert back.tolist() == [-1000, -1000, 0, 500, 1000, 1000]
    assert apply_window(hu, (-1000.0, 200.0), onto=(0.0, 1.0))[2] == pytest.approx(1000 / 1200)


@pytest.mark.parametrize("onto", [(-1.0, 1.0), (0.0, 1.0)])
def test_every_hu_of_a_window_comes_back(onto):
    hu = np.arange(-1000, 1001, dtype=np.int16)
    back = remove_window(
        apply_window(hu, (-1000.0, 1000.0), onto=onto), (-1000.0, 1000.0), onto=onto
    )
    assert np.abs(back - hu).max() < 1e-3
    np.testing.assert_array_equal(np.rint(back), hu)


def test_window_comes_after_resampling_and_not_before():
    edges = np.array([-3000, 3000], np.float32).reshape(1, 1, 2)
    after = apply_window(
        resize(Volume(edges, np.eye(4)), (1, 1, 4)).array, (-1e3, 1e3), onto=(-1e3, 1e3)
    )
    before = resize(
        Volume(apply_window(edges, (-1e3, 1e3), onto=(-1e3, 1e3)), np.eye(4)), (1, 1, 4)
    )
    assert after.ravel().tolist() == [-1000, -1000, 1000, 1000]
    assert before.array.ravel().tolist() == [-1000, -500, 500, 1000]
