import gzip
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ct3dlib.datasets.files import (
    Header,
    is_utf8,
    read_header,
    relative,
    slice_folders,
    slice_number,
    stem,
)


def _write(path: Path, affine: np.ndarray | None, shape: tuple[int, ...] = (4, 5, 6)) -> Header:
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.int16), affine), path)
    return read_header(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
def test_header_is_canonical_d_h_w(tmp_path: Path, name: str) -> None:
    # File axes: 4 towards z (3 mm), 5 towards -x (0.5 mm), 6 towards y (0.7 mm).
    affine = np.array([[0, -0.5, 0, 1], [0, 0, 0.7, 2], [3.0, 0, 0, 3], [0, 0, 0, 1]])
    header = _write(tmp_path / name, affine)
    assert header.shape == (4, 6, 5)
    assert header.spacing == pytest.approx((3.0, 0.7, 0.5))


def test_header_of_an_oblique_scan_keeps_its_steps(tmp_path: Path) -> None:
    c, s = np.cos(0.3), np.sin(0.3)
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-0.6, -0.8, 2.0])
    header = _write(tmp_path / "a.nii.gz", affine)
    assert header.shape == (6, 5, 4)
    assert header.spacing == pytest.approx((2.0, 0.8, 0.6), rel=1e-5)


def test_corners_are_places_whatever_the_order_of_axes(tmp_path: Path) -> None:
    # 4 x 5 x 6 voxels of 1, 2, 3 mm, the first at (10, 20, 30); then stored flipped and turned.
    affine = np.array([[1.0, 0, 0, 10], [0, 2, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1]])
    turned = np.array([[0, 0, -1.0, 13], [2, 0, 0, 20], [0, -3, 0, 45], [0, 0, 0, 1]])
    wanted = ((10, 20, 30), (13, 20, 30), (10, 28, 30), (10, 20, 45))
    for name, stated, shape in (("a", affine, (4, 5, 6)), ("b", turned, (5, 6, 4))):
        header = _write(tmp_path / f"{name}.nii", stated, shape)
        assert (header.spacing, header.shape) == ((3.0, 2.0, 1.0), (6, 5, 4))
        assert header.corners == wanted


def test_blank_headers_know_no_spacing(tmp_path: Path) -> None:
    assert _write(tmp_path / "none.nii.gz", None) == Header(None, (6, 5, 4))
    assert _write(tmp_path / "identity.nii.gz", np.eye(4)) == Header(None, (6, 5, 4))
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    image.header.set_zooms((0.5, 0.75, 2.0))
    nibabel.save(image, tmp_path / "steps.nii.gz")
    assert read_header(tmp_path / "steps.nii.gz") == Header(None, (6, 5, 4))


def test_other_kinds_of_nifti_are_read(tmp_path: Path) -> None:
    affine = np.diag([-0.5, -0.75, 2.0, 1])
    nibabel.save(nibabel.Nifti2Image(np.zeros((4, 5, 6)), affine), tmp_path / "two.nii.gz")
    swapped = nibabel.Nifti1Header(endianness=">")
    swapped.set_data_dtype(np.int16)
    big = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), affine, header=swapped)
    (tmp_path / "big.nii").write_bytes(big.to_bytes())
    for name in ("two.nii.gz", "big.nii"):
        assert read_header(tmp_path / name) == Header((2.0, 0.75, 0.5), (6, 5, 4))
    assert (tmp_path / "big.nii").read_bytes()[:4] == b"\x00\x00\x01\x5c"


def test_a_last_axis_of_one_is_dropped_and_4d_is_not_known(tmp_path: Path) -> None:
    assert _write(tmp_path / "a.nii", np.eye(4), (4, 5, 6, 1)).shape == (6, 5, 4)
    assert _write(tmp_path / "b.nii", np.eye(4), (4, 5, 6, 2)) == Header(None, None)
    assert _write(tmp_path / "c.nii", np.eye(4), (4, 5)) == Header(None, None)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x" * 400,
        b"\x1f\x8b\x08\x00junk",
        gzip.compress(b"x" * 100),
        b"\x5c\x01\0\0" + b"\0" * 344,
    ],
    ids=["empty", "text", "broken gzip", "gzip of text", "zero header"],
)
def test_unreadable_headers_are_not_known(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.nii.gz").write_bytes(content)
    assert read_header(tmp_path / "a.nii.gz") == Header(None, None)


def test_missing_file_and_broken_affine_are_not_known(tmp_path: Path) -> None:
    assert read_header(tmp_path / "none.nii") == Header(None, None)
    for bad in (0, np.nan, np.inf):
        header = nibabel.Nifti1Header()
        header.set_data_shape((4, 5, 6))
        header["sform_code"] = 1
        header["srow_x"][0] = header["srow_y"][1] = 1
        header["srow_z"][2] = bad
        (tmp_path / "bad.nii").write_bytes(header.binaryblock)
        assert read_header(tmp_path / "bad.nii") == Header(None, None)


def test_stem_drops_the_endings_of_volumes_only() -> None:
    names = ("a.nii.gz", "a.NII", "a.b.nii", "a.nrrd", "a.b.nhdr", "a.MHA", "a.mhd", "1.2.840")
    assert [stem(name) for name in names] == ["a", "a", "a.b", "a", "a.b", "a", "a", "1.2.840"]


def test_slices_are_sorted_by_number_and_stand_alone_in_their_folder() -> None:
    paths = [Path(p) for p in ("a/10.jpg", "a/9.JPEG", "a/-2.jpg", "b/1.jpg", "b/x.txt", "c/x.jpg")]
    assert slice_folders(paths) == [[Path("a/-2.jpg"), Path("a/9.JPEG"), Path("a/10.jpg")]]
    assert [slice_number(Path(n)) for n in ("+3.jpg", "3.jpg.png", "3_4.jpg")] == [3, None, None]


def test_names_that_are_no_text_are_escaped() -> None:
    path = Path(os.fsdecode(b"/root/d\xe9j\xe0/\xff.nii"))
    assert (relative(path, Path("/root")), is_utf8(path)) == (r"d\xe9j\xe0/\xff.nii", False)
    fine = Path("/root/déjà/患.nii")
    assert (relative(fine, Path("/root")), is_utf8(fine)) == ("déjà/患.nii", True)
