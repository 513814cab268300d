import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ct3dlib.datasets.files import Header, read_header, stem, walk


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


def test_walk_is_sorted_and_leaves_out_hidden_and_unfinished(tmp_path: Path) -> None:
    for name in ("b/2.nii", "b/10.nii", "a.nii", ".git/x.nii", ".x.nii", "y.nii.partial", "~z.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in walk(tmp_path)]
    assert found == ["a.nii", "b/10.nii", "b/2.nii"]


def test_walk_follows_links_once(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    (root / "a").mkdir(parents=True)
    other.mkdir()
    (other / "x.nii").touch()
    (root / "a/link").symlink_to(other)
    (root / "a/loop").symlink_to(root)
    assert [path.name for path in walk(root)] == ["x.nii"]


def test_stem_drops_only_nifti() -> None:
    assert [stem(n) for n in ("a.nii.gz", "a.NII", "a.b.nii", "1.2.840")] == [
        "a",
        "a",
        "a.b",
        "1.2.840",
    ]
