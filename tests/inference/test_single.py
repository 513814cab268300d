"""One scan or one stack of pictures, from a file and through a model."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image

from ct3dlib.config import CausalTokenizerSpec, LFQSpec, RecipeSpec, SlidingWindowSpec
from ct3dlib.errors import ConfigError, DatasetError, VolumeError
from ct3dlib.inference.decode import to_volume
from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.inference.reconstruct import reconstruct
from ct3dlib.inference.single import (
    GREY,
    WINDOWS_PER_BATCH,
    is_stack,
    read_scan,
    reconstruct_scan,
    reconstruct_stack,
    with_windows,
)
from ct3dlib.models.tokenizer import CausalTokenizer
from ct3dlib.scan.nifti import read_nifti, write_nifti
from ct3dlib.scan.volume import Volume
from tests.corpus.case import body
from tests.corpus.dicom_files import one_slice, uid_of
from tests.inference.doubles import Blocks, fsq_model, kl_spec

SMALL = SlidingWindowSpec(roi_size=(8, 8, 12), overlap=0.25, sw_batch_size=2)
RECIPE = RecipeSpec(min_slices=2, hu_state="hu")
# D runs down, H to the front and W to the right: the recipe turns all three over.
AFFINE = np.array([[0, 0, -0.7, 30], [0, -0.8, 0, 12.5], [-2.5, 0, 0, 400], [0, 0, 0, 1.0]])

BODY = body().astype(np.int16)


def lossless(recipe: RecipeSpec = RECIPE) -> Tokenizer:
    return Tokenizer(Blocks(kl_spec((2, 2, 2))).eval(), recipe, SMALL, "f" * 64)


def causal(axes: str = "dhw") -> Tokenizer:
    torch.manual_seed(0)
    spec = CausalTokenizerSpec(
        filters=4,
        num_res_blocks=1,
        channel_multipliers=(1, 2, 2),
        norm_groups=2,
        quantizer=LFQSpec(bits=6),
    )
    recipe = RecipeSpec.model_validate({"axes": axes})
    return Tokenizer(CausalTokenizer(spec).eval(), recipe, None, "f" * 64)


def scan_file(path: Path) -> np.ndarray:
    hu = np.random.default_rng(0).integers(-1024, 1500, (7, 10, 13)).astype(np.int16)
    write_nifti(path, Volume(hu, AFFINE))
    return hu


@pytest.mark.parametrize("axes", ["dhw", "dwh"])
def test_a_lossless_model_gives_a_scan_back_in_hu_on_its_own_grid(tmp_path, axes: str):
    hu = scan_file(tmp_path / "a.nii.gz")
    tokenizer = lossless(RecipeSpec.model_validate({**RECIPE.model_dump(), "axes": axes}))
    scan = read_scan(tmp_path / "a.nii.gz", tokenizer.recipe)
    np.testing.assert_array_equal(scan.volume.array, hu[::-1, ::-1, ::-1])
    assert (scan.hu_state, scan.window) == ("hu", (-1000.0, 1000.0))
    ct3d = {"affine": scan.record.affine, "record": scan.record.model_dump(mode="json")}
    volume = to_volume(reconstruct_scan(tokenizer, scan), ct3d, domain="hu")
    write_nifti(tmp_path / "b.nii.gz", volume)
    back = read_nifti(tmp_path / "b.nii.gz").volume
    assert back.array.dtype == np.int16
    np.testing.assert_array_equal(back.array, np.clip(hu, -1000, 1000))
    first, second = (nibabel.load(tmp_path / f"{name}.nii.gz") for name in "ab")
    assert first.shape == second.shape == (13, 10, 7)
    np.testing.assert_array_equal(first.affine, second.affine)


def test_resampled_scans_come_back_on_their_own_grid_too(tmp_path):
    d, h, w = np.meshgrid(*(np.linspace(-1, 1, n) for n in (9, 20, 26)), indexing="ij")
    hu = np.rint(300 * d + 200 * h - 100 * w).astype(np.int16)  # linear: resampling keeps it
    write_nifti(tmp_path / "a.nii", Volume(hu, AFFINE))
    recipe = RecipeSpec(min_slices=2, hu_state="hu", spacing=(1.25, 1.6, 1.4))
    tokenizer = lossless(recipe)
    scan = read_scan(tmp_path / "a.nii", recipe)
    assert scan.volume.shape == (18, 10, 13)
    ct3d = {"affine": scan.record.affine, "record": scan.record.model_dump(mode="json")}
    back = to_volume(reconstruct_scan(tokenizer, scan), ct3d, domain="hu")
    assert back.shape == hu.shape
    inner = (slice(1, -1),) * 3
    assert np.abs(back.array.astype(int) - hu)[inner].max() <= 2


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_nrrd_and_metaimage_are_scans_too(tmp_path, suffix: str):
    hu = np.random.default_rng(0).integers(-1000, 1500, (7, 10, 13)).astype(np.int16)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(hu), str(tmp_path / f"a{suffix}"))
    scan = read_scan(tmp_path / f"a{suffix}", RECIPE)
    np.testing.assert_array_equal(scan.volume.array, hu)


def test_a_table_states_rescale_and_spacing(tmp_path):
    stored = BODY + np.int16(1024)
    image = nibabel.Nifti1Image(stored.transpose(2, 1, 0), None)
    nibabel.save(image, tmp_path / "valid_1_a_1.nii.gz")
    columns = "VolumeName,RescaleSlope,RescaleIntercept,XYSpacing,ZSpacing"
    row = 'valid_1_a_1.nii.gz,1,-1024,"[0.8, 0.8]",2.5'
    (tmp_path / "metadata.csv").write_text(f"{columns}\n{row}\n")
    recipe = RecipeSpec(min_slices=2)
    path = tmp_path / "valid_1_a_1.nii.gz"
    scan = read_scan(path, recipe, metadata=tmp_path / "metadata.csv")
    assert scan.hu_state == "rescaled"
    assert scan.volume.spacing == (2.5, 0.8, 0.8)
    np.testing.assert_array_equal(scan.volume.array, BODY)
    (tmp_path / "other.csv").write_text(f"{columns}\nvalid_2_a_1.nii.gz,1,0,1,1\n")
    message = r"other\.csv: no row of its 1 has the VolumeName valid_1_a_1\.nii\.gz; add one"
    with pytest.raises(DatasetError, match=message):
        read_scan(path, recipe, metadata=tmp_path / "other.csv")
    with pytest.raises(VolumeError, match="no spacing is known"):
        read_scan(path, recipe)


def test_one_of_several_dicom_series_is_chosen(tmp_path):
    uids = [f"1.2.{first}.{uid_of(first)}" for first in (7, 9)]
    for which, uid in enumerate(uids):
        for k in range(8 + 2 * which):
            one_slice(tmp_path / f"{which}-{k}.dcm", k, SeriesInstanceUID=uid)
    recipe = RecipeSpec(min_slices=2)
    with pytest.raises(VolumeError) as error:
        read_scan(tmp_path, recipe)
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f"{tmp_path}: 2 DICOM series, none chosen; choose by number or by")
    size = " x ".join(map(str, BODY.shape[1:]))
    assert lines[1:] == [
        f"  1: {uids[0]}, 8 x {size} voxels, 8 files",
        f"  2: {uids[1]}, 10 x {size} voxels, 10 files",
    ]
    for choice in ("2", "1.2.9", uids[1]):
        scan = read_scan(tmp_path, recipe, series=choice)
        np.testing.assert_array_equal(scan.volume.array, BODY[:10])
    for choice in ("3", "1.2", "5"):
        with pytest.raises(VolumeError, match=f"'{choice}' is not one of them"):
            read_scan(tmp_path, recipe, series=choice)


def test_one_series_needs_no_choice_and_a_damaged_one_is_told(tmp_path):
    recipe = RecipeSpec(min_slices=2)
    files = [one_slice(tmp_path / f"{k}.dcm", k) for k in range(8)]
    np.testing.assert_array_equal(read_scan(tmp_path, recipe).volume.array, BODY[:8])
    with pytest.raises(VolumeError) as error:
        read_scan(files[3], recipe)
    assert (error.value.reason, str(files[3]) in str(error.value)) == ("SINGLE_SLICE", True)
    for path in files:
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(VolumeError, match="8 files of this folder alike"):
        read_scan(tmp_path, recipe)


def test_what_is_no_scan_is_said(tmp_path):
    (tmp_path / "a.txt").write_text("none")
    for path, message in (
        (tmp_path / "gone", "gone: no such file or folder; correct the path"),
        (tmp_path / "a.txt", r"a\.txt: no kind of scan ends so; give NIfTI, NRRD"),
        (tmp_path, "no DICOM series and no pictures; give a folder that has one"),
    ):
        with pytest.raises(VolumeError, match=message):
            read_scan(path, RECIPE)
    scan_file(tmp_path / "a.nii")
    with pytest.raises(ConfigError, match=r"a\.nii: one file, and series '2' is given; leave it"):
        read_scan(tmp_path / "a.nii", RECIPE, series="2")
    with pytest.raises(VolumeError, match=r"a\.nii: the series has 7 slices, need at least 8"):
        read_scan(tmp_path / "a.nii", RecipeSpec(hu_state="hu"))


def test_values_of_another_domain_are_taken_as_they_are(tmp_path):
    values = np.random.default_rng(0).integers(0, 900, (7, 10, 13)).astype(np.int16)
    write_nifti(tmp_path / "a.nii.gz", Volume(values, AFFINE))
    recipe = RecipeSpec(domain="mr", percentiles=(0, 100), min_slices=2)
    scan = read_scan(tmp_path / "a.nii.gz", recipe)
    assert scan.volume.domain == "mr"
    assert scan.hu_state == ""
    assert scan.window == (values[values > 0].min(), values.max())
    made = reconstruct_scan(lossless(recipe), scan)
    np.testing.assert_allclose(made, np.maximum(scan.volume.array, scan.window[0]), atol=1e-3)


def test_what_counts_as_pictures(tmp_path):
    for name in ("a.png", "b.JPG", "c.mp4", "d.nii.gz", "e.dcm"):
        assert is_stack(tmp_path / name) == (name[0] in "abc")
    assert not is_stack(tmp_path)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "1.png")
    assert is_stack(tmp_path)
    one_slice(tmp_path / "1.dcm", 0)
    assert not is_stack(tmp_path)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 11, 14), (12, 9, 16)])
def test_a_lossless_model_gives_pictures_back(shape):
    stack = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for window in ((-1000, 1000), (-160, 240)):
        tokenizer = lossless(RecipeSpec(window=window, range=(0, 1)))
        np.testing.assert_array_equal(reconstruct_stack(tokenizer, stack), stack)


def test_grey_spans_the_range_that_a_model_sees():
    seen = []

    class Watching(Blocks):
        def encode(self, volumes: torch.Tensor) -> torch.Tensor:
            seen.append(volumes)
            return super().encode(volumes)

    tokenizer = Tokenizer(
        Watching(kl_spec((2, 2, 2))).eval(), RecipeSpec(window=(-150, 250)), None, "f" * 64
    )
    reconstruct_stack(tokenizer, np.array([[[0, 51, 255]]], np.uint8))
    # The last slice, row and column are repeated up to whole latents.
    wanted = torch.tensor([-1, 51 / 255 * 2 - 1, 1, 1]).expand(1, 1, 2, 2, 4)
    torch.testing.assert_close(seen[0], wanted)


@pytest.mark.parametrize("axes", ["dhw", "dwh"])
@pytest.mark.parametrize("depth", [1, 4, 9, 10])
def test_a_causal_model_sees_the_last_slice_again_up_to_whole_windows(axes: str, depth: int):
    tokenizer = causal(axes)
    stack = np.random.default_rng(depth).integers(0, 256, (depth, 11, 18), dtype=np.uint8)
    found = reconstruct_stack(tokenizer, stack)
    assert found.shape == stack.shape
    slices = 9 if depth <= 9 else 17
    filled = np.pad(stack, [(0, slices - depth), (0, 5), (0, 6)], mode="edge")
    out = reconstruct(tokenizer, filled, window=GREY, windows_per_batch=WINDOWS_PER_BATCH).hu
    np.testing.assert_array_equal(found, np.rint(out[:depth, :11, :18]))


def test_windows_are_changed_one_by_one_and_an_overlap_of_0_counts():
    tokenizer = replace(lossless(), model=fsq_model())
    changed = with_windows(tokenizer, {"overlap": 0.0, "mode": "constant"})
    assert changed.sliding == SlidingWindowSpec(
        roi_size=(8, 8, 12), overlap=0.0, sw_batch_size=2, mode="constant"
    )
    assert tokenizer.sliding == SMALL
    whole = replace(tokenizer, sliding=None)
    wanted = SlidingWindowSpec(roi_size=(4, 6, 8))
    assert with_windows(whole, {"roi_size": (4, 6, 8)}).sliding == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overlap": 1.0}, "sliding windows: overlap: Input should be less than 1, found 1.0"),
        ({"sw_batch_size": 0}, "sw_batch_size: Input should be greater than 0, found 0"),
        ({"roi_size": (8, 7, 8)}, r"roi_size \(8, 7, 8\) is not whole latents; .* \(2, 2, 2\)"),
    ],
    ids=["overlap", "batch", "roi"],
)
def test_windows_that_do_not_fit_are_refused(changes: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        with_windows(lossless(), changes)


def test_windows_need_a_size_and_a_model_that_has_none_of_its_own():
    with pytest.raises(ConfigError, match="sees volumes whole; beside mode, overlap give roi_size"):
        with_windows(replace(lossless(), sliding=None), {"overlap": 0.0, "mode": "hann"})
    with pytest.raises(ConfigError, match="is causal and has windows of its own; leave overlap ou"):
        with_windows(causal(), {"overlap": 0.0})
