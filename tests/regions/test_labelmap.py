"""Label maps beside the scans: found, held against the scan's grid, brought onto the volume's."""

import os
from itertools import product

import numpy as np
import pytest

from ct3dlib.cohort.private import RawRoot
from ct3dlib.config import LabelMapSpec, RecipeSpec
from ct3dlib.errors import StoreError, VolumeError
from ct3dlib.regions.labelmap import LabelMapProvider
from ct3dlib.regions.provider import Request
from ct3dlib.regions.working_grid import to_working_grid
from ct3dlib.scan.geometry import Orientation, reorient, shifted
from ct3dlib.scan.normalize import normalize
from ct3dlib.scan.volume import Volume
from tests.regions.label_maps import OBLIQUE, UPRIGHT, save_labels

HU = {0: -1000, 1: 300, 5: 700, 19: 1200}  # of a region, so that the CT shows where it is
NATIVE = RecipeSpec(min_slices=1)
STORED = {
    "lps": Orientation((0, 1, 2), (False, False, False)),
    "ras": Orientation((0, 1, 2), (False, True, True)),
    "feet-last": Orientation((0, 1, 2), (True, False, False)),
    "sagittal": Orientation((2, 0, 1), (True, False, True)),
}


def scene(affine=UPRIGHT, shape=(6, 8, 10)):
    """Return labels of a left lobe (1), a right one (5) and a spine (19); no two sides alike."""
    labels = np.zeros(shape, np.uint8)
    labels[2:5, 1:5, 6:9] = 1
    labels[1:4, 2:6, 1:4] = 5
    labels[:, 6:7, 4:6] = 19
    return Volume(labels, affine, "uint8")


def ct_of(labels):
    return Volume(np.vectorize(HU.get)(labels.array).astype(np.int16), labels.affine)


def provider(root, **spec):
    (root / "masks").mkdir(exist_ok=True)
    return LabelMapProvider(
        LabelMapSpec(folder="masks", numbering="regions", **spec), RawRoot(root)
    )


def request_of(scan, recipe=NATIVE, *, name="a", sources=("a.nii.gz",)):
    """Return what the store holds of a scan, as the provider is asked for it."""
    volume, record = normalize(scan, recipe)
    return Request(volume, name, sources, record, to_working_grid(volume, 3.0))


def provided(root, scan, labels, recipe=NATIVE, **how):
    """Return volume and regions of a scan whose label map is written first."""
    save_labels(root / "masks/a.nii.gz", labels.array, labels.affine, **how)
    request = request_of(scan, recipe)
    return request.volume, provider(root)(request)


@pytest.mark.parametrize(("scan", "labels"), [*product(STORED, STORED)])
def test_axes_of_either_file_do_not_matter(tmp_path, scan, labels):
    there = scene(OBLIQUE)
    volume, found = provided(
        tmp_path, reorient(ct_of(there), STORED[scan]), reorient(there, STORED[labels])
    )
    np.testing.assert_array_equal(found.labels, there.array)
    np.testing.assert_array_equal(np.vectorize(HU.get)(found.labels), volume.array)
    left, right = (np.argwhere(found.labels == i).mean(axis=0) for i in (1, 5))
    assert (volume.affine @ [*left, 1])[0] > (volume.affine @ [*right, 1])[0]  # x grows to the left
    assert found.known == found.sure == set(range(1, 21))


def test_a_qform_is_enough(tmp_path):
    there = scene(OBLIQUE)
    _, found = provided(tmp_path, ct_of(there), there, sform=False)
    np.testing.assert_array_equal(found.labels, there.array)


@pytest.mark.parametrize("blank", ["both", "labels"])
def test_a_blank_label_map_fits_a_blank_scan_alone(tmp_path, blank):
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = 3.0, 2.0, 1.5, 1
    scan = ct_of(scene(affine if blank == "both" else UPRIGHT))
    save_labels(tmp_path / "masks/a.nii.gz", scene().array, None)
    if blank == "both":
        np.testing.assert_array_equal(provider(tmp_path)(request_of(scan)).labels, scene().array)
    else:
        with pytest.raises(VolumeError, match="is it of this scan"):
            provider(tmp_path)(request_of(scan))


def fit(shape, affine=UPRIGHT):
    """Return the affine of a grid of this shape over the field of view of `scene`."""
    ratio = np.array((6, 8, 10)) / shape
    moved = affine.copy()
    moved[:3, :3] *= ratio
    moved[:3, 3] += affine[:3, :3] @ ((ratio - 1) / 2)
    return moved


@pytest.mark.parametrize("shape", [(18, 8, 20), (3, 8, 5), (4, 5, 7)], ids=["3x2", "half", "odd"])
def test_a_label_map_may_be_finer_or_coarser(tmp_path, shape):
    labels = np.random.default_rng(0).integers(0, 21, shape).astype(np.uint8)
    _, found = provided(tmp_path, ct_of(scene()), Volume(labels, fit(shape), "uint8"))
    for at in np.ndindex(6, 8, 10):  # the cell that the voxel's centre lies in
        cell = [int((i + 0.5) * m / n) for i, m, n in zip(at, shape, (6, 8, 10), strict=True)]
        edge = [(i + 0.5) * m / n % 1 < 1e-6 for i, m, n in zip(at, shape, (6, 8, 10), strict=True)]
        if not any(edge):  # between two cells either may have it
            assert found.labels[at] == labels[tuple(cell)]


def test_a_recipe_that_crops_and_pads_takes_its_part_of_the_label_map(tmp_path):
    there = scene(OBLIQUE)
    recipe = RecipeSpec(shape=(10, 8, 7), min_slices=1)
    volume, found = provided(tmp_path, ct_of(there), there, recipe)
    want = np.vectorize({v: k for k, v in {**HU, 0: -1024}.items()}.get)(
        np.where(volume.array == -1000, -1024, volume.array)
    )
    np.testing.assert_array_equal(found.labels, want)
    assert not found.labels[[0, 1, -2, -1]].any()
    assert set(np.unique(found.labels)) == set(HU)


def test_a_recipe_that_resamples_takes_the_nearest_label(tmp_path):
    there = scene()
    recipe = RecipeSpec(spacing=(1.5, 1.0, 0.75), min_slices=1)
    volume, found = provided(tmp_path, ct_of(there), there, recipe)
    assert volume.shape == (12, 16, 20)
    np.testing.assert_array_equal(found.labels, there.array.repeat(2, 0).repeat(2, 1).repeat(2, 2))


def test_a_tilted_gantry_is_undone_once(tmp_path):
    tilted = UPRIGHT.copy()
    tilted[1, 0] = -1.6  # slices slide forward by 1.6 mm each
    labels = scene(tilted)
    volume, found = provided(tmp_path, ct_of(labels), labels)
    assert volume.shape[1] > labels.shape[1]
    back = np.linalg.inv(tilted) @ volume.affine
    seen = 0
    for at in np.ndindex(volume.shape):
        place = (back @ [*at, 1])[:3]
        if np.abs(place - np.floor(place) - 0.5).min() < 0.02:  # between two voxels
            continue
        near = np.rint(place).astype(int)
        inside = (near >= 0).all() and (near < labels.shape).all()
        assert found.labels[at] == (labels.array[tuple(near)] if inside else 0)
        seen += 1
    assert seen > 0.8 * volume.array.size
    assert set(np.unique(found.labels)) == set(HU)


def mirrored():
    affine = UPRIGHT.copy()
    affine[0] *= -1  # right for left, as a writer that takes LPS for RAS leaves it
    return affine


ELSEWHERE = {
    "shift-d": (shifted(UPRIGHT, (1, 0, 0)), (6, 8, 10)),
    "shift-h": (shifted(UPRIGHT, (0, -1, 0)), (6, 8, 10)),
    "shift-w": (shifted(UPRIGHT, (0, 0, 1)), (6, 8, 10)),
    "mirrored": (mirrored(), (6, 8, 10)),
    "other-patient": (shifted(UPRIGHT, (40, -9, 3)), (6, 8, 10)),
    "slice-missing": (UPRIGHT, (5, 8, 10)),
    "half-the-view": (fit((6, 8, 10)), (6, 8, 5)),
    "other-spacing": (np.diag([2, 2, 2, 1]) @ UPRIGHT, (6, 8, 10)),
    "turned-on-end": (UPRIGHT[:, [1, 0, 2, 3]], (6, 8, 10)),
}


@pytest.mark.parametrize(("affine", "shape"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_label_map_of_another_place_is_refused(tmp_path, affine, shape):
    labels = Volume(np.ones(shape, np.uint8), affine, "uint8")
    with pytest.raises(
        VolumeError, match=r"^masks/a.nii.gz: its field of view ends up to "
    ) as found:
        provided(tmp_path, ct_of(scene()), labels)
    assert found.value.reason == "LABEL_MAP_ELSEWHERE"
    assert f"(shape {shape}, the scan's (6, 8, 10)); is it of this scan?" in str(found.value)


def test_the_message_says_how_far_it_is_away(tmp_path):
    labels = Volume(scene().array, shifted(UPRIGHT, (0, 2, 0)), "uint8")
    with pytest.raises(VolumeError, match=r"ends up to 2\.0 voxels from the scan's"):
        provided(tmp_path, ct_of(scene()), labels)


def test_less_than_half_a_voxel_is_no_other_place(tmp_path):
    moved = UPRIGHT.copy()
    moved[:3, 3] += UPRIGHT[:3, :3] @ [0.4, -0.4, 0.4]
    _, found = provided(tmp_path, ct_of(scene()), Volume(scene().array, moved, "uint8"))
    np.testing.assert_array_equal(found.labels[1:-1, 1:-1, 1:-1], scene().array[1:-1, 1:-1, 1:-1])


def test_a_scan_that_came_from_no_store_is_held_against_itself(tmp_path):
    save_labels(tmp_path / "masks/scan.nii.gz", scene().array)
    volume = ct_of(scene())
    request = Request(volume, "scan", (), None, to_working_grid(volume, 3.0))
    np.testing.assert_array_equal(provider(tmp_path)(request).labels, scene().array)


@pytest.mark.parametrize(
    ("sources", "strip", "file"),
    [
        (("p/s/a.nii.gz",), 0, "p/s/a.nii.gz"),
        (("p/s/a.nii.gz",), 0, "p/s/a.nii"),
        (("p/s/a.NII",), 0, "p/s/a.nii.gz"),
        (("train/p/s/a.nii.gz",), 1, "p/s/a.nii.gz"),
        (("p/s/a.nii.gz",), 3, "vol.nii.gz"),
        (("p/s/a.nii.gz",), 0, "vol.nii.gz"),
        (("p/s/1.dcm", "p/s/2.dcm"), 0, "p/s.nii.gz"),
        (("p/a.mhd", "p/a.raw"), 0, "p/a.nii.gz"),
        (("p/a.nrrd",), 0, "p/a.nii.gz"),
        ((), 0, "vol.nii"),
    ],
    ids=[
        "same-tree", "unpacked", "capitals", "one-folder-less", "nothing-left", "by-name",
        "dicom", "metaimage", "nrrd", "no-catalog",
    ],
)  # fmt: skip
def test_a_label_map_lies_where_its_scan_does_or_has_its_name(tmp_path, sources, strip, file):
    path = save_labels(tmp_path / "masks" / file, scene().array)
    assert provider(tmp_path, strip=strip).find("vol", sources) == path


def test_the_place_of_the_scan_counts_more_than_the_name(tmp_path):
    save_labels(tmp_path / "masks/vol.nii.gz", scene().array)
    path = save_labels(tmp_path / "masks/p/a.nii", scene().array)
    assert provider(tmp_path).find("vol", ("p/a.nii.gz",)) == path


def test_a_folder_of_masks_is_a_label_map(tmp_path):
    for name, region in (("heart", 1), ("spine", 19)):
        labels = (scene().array == region).astype(np.uint8)
        save_labels(tmp_path / f"masks/a/{name}.nii.gz", labels)
    found = provider(tmp_path)(request_of(ct_of(scene())))
    want = np.where(scene().array == 1, 8, np.where(scene().array == 19, 19, 0))
    np.testing.assert_array_equal(found.labels, want)
    assert found.known == {8, 19}


def test_a_volume_without_a_label_map_says_where_it_was_looked_for(tmp_path):
    asked = request_of(ct_of(scene()), name="vol", sources=("p/s/a.nii.gz",))
    with pytest.raises(VolumeError) as caught:
        provider(tmp_path)(asked)
    assert caught.value.reason == "NO_LABEL_MAP"
    assert str(caught.value) == "vol: no label map p/s/a.nii.gz, vol.nii.gz in masks"
    assert provider(tmp_path).identity("vol", ("p/s/a.nii.gz",)) == ""


def test_a_folder_that_is_not_there_is_refused_at_once(tmp_path):
    with pytest.raises(StoreError, match=r"labelmap\.folder: .*masks is no folder; correct it"):
        LabelMapProvider(LabelMapSpec(folder="masks"), RawRoot(tmp_path))


def test_a_source_may_not_point_out_of_the_raw_root(tmp_path):
    with pytest.raises(VolumeError, match="points out of the raw root") as caught:
        provider(tmp_path).find("vol", ("../a.nii.gz",))
    assert caught.value.reason == "UNSAFE_PATH"


def test_identity_follows_the_file_and_not_its_folder(tmp_path):
    path = save_labels(tmp_path / "masks/a.nii.gz", scene().array)
    sources = ("a.nii.gz",)
    old = provider(tmp_path).identity("vol", sources)
    (tmp_path / "masks").rename(tmp_path / "elsewhere")
    spec = LabelMapSpec(folder=str(tmp_path / "elsewhere"))  # a full path is taken as it is
    moved = LabelMapProvider(spec, RawRoot(tmp_path))
    assert moved.identity("vol", sources) == old != ""
    os.utime(tmp_path / "elsewhere" / path.name, ns=(0, 1))  # fetched again
    assert moved.identity("vol", sources) == old
    save_labels(tmp_path / "elsewhere" / path.name, scene().array[::-1])
    assert moved.identity("vol", sources) != old


def test_identity_of_a_folder_follows_each_of_its_files(tmp_path):
    for name in ("heart", "spine"):
        save_labels(tmp_path / f"masks/a/{name}.nii.gz", scene().array.clip(0, 1))
    seen = {provider(tmp_path).identity("vol", ("a.nii.gz",))}
    save_labels(tmp_path / "masks/a/spine.nii.gz", scene().array[::-1].clip(0, 1))
    seen.add(provider(tmp_path).identity("vol", ("a.nii.gz",)))
    (tmp_path / "masks/a/heart.nii.gz").unlink()
    seen.add(provider(tmp_path).identity("vol", ("a.nii.gz",)))
    assert len(seen) == 3
    (tmp_path / "masks/a/aorta.nii.gz").symlink_to(tmp_path / "nowhere")
    assert provider(tmp_path).identity("vol", ("a.nii.gz",)) in seen
    with pytest.raises(VolumeError, match="aorta") as found:
        provider(tmp_path)(request_of(ct_of(scene())))
    assert found.value.reason == "FILE_MISSING"


PSEUDONYM = "v0123456789ab"


@pytest.mark.parametrize("fault", ["none", "missing", "elsewhere"])
def test_no_message_names_what_a_pseudonym_hides(tmp_path, caplog, fault):
    hidden = RawRoot(tmp_path, {f"{PSEUDONYM}:0": "p/Jane-Doe.nii.gz"})
    affine = shifted(UPRIGHT, (1, 0, 0)) if fault == "elsewhere" else UPRIGHT
    (tmp_path / "masks").mkdir()
    if fault != "missing":
        save_labels(tmp_path / "masks/p/Jane-Doe.nii.gz", scene().array, affine)
    spec = LabelMapSpec(folder="masks", numbering="regions")
    asked = request_of(ct_of(scene()), name=PSEUDONYM, sources=(f"{PSEUDONYM}:0",))
    if fault == "none":
        labels = LabelMapProvider(spec, hidden)(asked).labels
        np.testing.assert_array_equal(labels, scene().array)
        return
    with pytest.raises(VolumeError) as caught:
        LabelMapProvider(spec, hidden)(asked)
    reason = {"missing": "NO_LABEL_MAP", "elsewhere": "LABEL_MAP_ELSEWHERE"}[fault]
    assert caught.value.reason == reason
    assert str(caught.value) == f"{PSEUDONYM}: {reason}; the log says more"
    assert "Jane-Doe" in caplog.text


@pytest.mark.parametrize("regions", [(1, 5), (2, 3), (1, 4)])
def test_a_header_that_mirrors_the_lungs_is_refused_where_the_field_of_view_is_the_same(
    tmp_path, regions
):
    centred = UPRIGHT.copy()
    centred[0, 3] = -4.5 * 1.5
    other_way = centred.copy()
    other_way[0] *= -1
    there = scene(centred)
    left, right = regions
    ids = np.select([there.array == 1, there.array == 5], [left, right], 0).astype(np.uint8)
    scan = ct_of(there)
    assert (provided(tmp_path, scan, Volume(ids, centred, "uint8"))[1].labels == ids).all()
    with pytest.raises(VolumeError, match="left lung lies to the patient's right") as found:
        provided(tmp_path, scan, Volume(ids, other_way, "uint8"))
    assert found.value.reason == "LABEL_MAP_ELSEWHERE"


def test_a_label_map_without_a_label_says_nothing_about_the_patient(tmp_path):
    there = scene()
    with pytest.raises(VolumeError, match="all its voxels are 0, as of a program") as found:
        provided(tmp_path, ct_of(there), Volume(np.zeros_like(there.array), UPRIGHT, "uint8"))
    assert found.value.reason == "BAD_LABELS"
