"""A folder that holds NRRD, MetaImage and JPEG slices beside NIfTI and DICOM."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from PIL import Image

from ct3dlib.cohort.catalog import Row
from ct3dlib.config import CatalogSpec
from ct3dlib.datasets import build_catalog, read_dataset
from tests.datasets.trees import write_csv, write_dicom, write_nifti

AFFINE = np.diag([-0.8, -0.8, 2.0, 1.0])


def _rows(root: Path) -> dict[str, Row]:
    rows = list(read_dataset("folder", root))
    by_id = {row.volume: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


def _write_itk(path: Path) -> Path:
    """Write 9 x 5 x 6 voxels, D H W, whose file axes run to x, z and -y: 0.8, 2 and 0.7 mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(np.zeros((5, 9, 6), np.int16))
    image.SetSpacing((0.8, 2.0, 0.7))
    image.SetDirection((1, 0, 0, 0, 0, -1, 0, 1, 0))
    SimpleITK.WriteImage(image, str(path))
    return path


def _write_slices(folder: Path, *names: str, size: tuple[int, int] = (5, 6)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(np.zeros(size, np.uint8)).save(folder / name, format="JPEG")


def test_itk_files_are_rows_with_their_canonical_header_and_all_their_files(tmp_path: Path) -> None:
    for name in ("one.nrrd", "two/b.nhdr", "three.mha", "four/d.mhd"):
        _write_itk(tmp_path / name)
    rows = _rows(tmp_path)
    assert {volume: row.sources for volume, row in rows.items()} == {
        "one": ("one.nrrd",),
        "two_b": ("two/b.nhdr", "two/b.raw"),
        "three": ("three.mha",),
        "four_d": ("four/d.mhd", "four/d.raw"),
    }
    for row in rows.values():
        assert (row.kind, row.domain, row.problem) == ("itk", "hu", None)
        assert row.shape == (9, 5, 6)
        assert row.spacing == pytest.approx((2.0, 0.7, 0.8))
        assert row.size == sum((tmp_path / source).stat().st_size for source in row.sources)


def test_headers_are_read_without_voxels(tmp_path: Path) -> None:
    path = _write_itk(tmp_path / "a.nrrd")
    before = _rows(tmp_path)["a"]
    path.write_bytes(path.read_bytes().split(b"\n\n")[0] + b"\n\n")
    after = _rows(tmp_path)["a"]
    assert (after.shape, after.spacing) == (before.shape, before.spacing)


@pytest.mark.parametrize(
    "content", [b"", b"no scan", b"NRRD0004\ntype: short\n"], ids=["empty", "text", "cut"]
)
def test_a_damaged_itk_file_is_a_row_and_no_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mha").write_bytes(content)
    row = _rows(tmp_path)["a"]
    assert (row.kind, row.shape, row.spacing, row.sources) == ("itk", None, None, ("a.mha",))


def test_a_header_without_its_voxels_is_a_row_of_itself(tmp_path: Path) -> None:
    path = _write_itk(tmp_path / "a.mhd")
    path.with_suffix(".raw").unlink()
    assert _rows(tmp_path)["a"].sources == ("a.mhd",)


def test_a_blank_itk_header_takes_its_spacing_from_the_table(tmp_path: Path) -> None:
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 6 5 9\nendian: little\nencoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(head.encode() + bytes(2 * 6 * 5 * 9))
    assert _rows(tmp_path)["a"].spacing is None
    columns = ("VolumeName", "XYSpacing", "ZSpacing", "RescaleSlope", "RescaleIntercept")
    write_csv(tmp_path / "metadata.csv", columns, [["a.nrrd", "[0.5, 0.5]", 3, 1, -1024]])
    row = _rows(tmp_path)["a"]
    assert (row.spacing, row.slope, row.intercept) == ((3.0, 0.5, 0.5), 1, -1024)


def test_one_name_in_two_formats_is_a_duplicate(tmp_path: Path) -> None:
    write_nifti(tmp_path / "x.nii.gz", AFFINE)
    _write_itk(tmp_path / "x.mha")
    _write_itk(tmp_path / "x.nrrd")
    rows = _rows(tmp_path)
    assert {volume: (row.sources[0], row.problem) for volume, row in rows.items()} == {
        "x": ("x.mha", None),
        "x-2": ("x.nii.gz", "DUPLICATE_NAME"),
        "x-3": ("x.nrrd", "DUPLICATE_NAME"),
    }
    assert rows["x-2"].problem_message == "x.nii.gz: x.mha has this name too; rename or remove one"


def test_a_folder_of_numbered_pictures_is_a_series(tmp_path: Path) -> None:
    _write_slices(tmp_path / "cases/p1", "10.png", "-1.jpeg", "0.jpg", "9.JPG")
    _write_slices(tmp_path / "cases/p2", "0.jpg")
    rows = _rows(tmp_path)
    assert set(rows) == {"cases_p1", "cases_p2"}
    row = rows["cases_p1"]
    names = ("-1.jpeg", "0.jpg", "9.JPG", "10.png")
    assert row.sources == tuple(f"cases/p1/{name}" for name in names)
    assert (row.kind, row.domain, row.problem) == ("pictures", "window8", None)
    assert (row.shape, row.spacing) == ((4, 5, 6), None)
    assert (rows["cases_p2"].shape, rows["cases_p2"].patient) == ((1, 5, 6), "p2")


@pytest.mark.parametrize("other", ["notes.txt", "cover.jpg", "1b.jpg", "0.gif"])
def test_a_folder_with_any_other_file_is_no_stack(tmp_path: Path, other: str) -> None:
    _write_slices(tmp_path / "a", "0.jpg", "1.jpg")
    (tmp_path / "a" / other).touch()
    assert _rows(tmp_path) == {}


def test_two_slices_of_one_number_are_refused(tmp_path: Path) -> None:
    _write_slices(tmp_path / "a", "0.jpg", "01.jpg", "1.jpeg")
    row = _rows(tmp_path)["a"]
    assert row.problem == "DUPLICATE_POSITIONS"
    assert row.problem_message == "a/01.jpg: 1.jpeg has the same number; drop one of the two"


def test_a_damaged_first_slice_hides_the_shape_only(tmp_path: Path) -> None:
    _write_slices(tmp_path / "a", "0.jpg", "1.jpg")
    (tmp_path / "a/0.jpg").write_bytes(b"no picture")
    assert (_rows(tmp_path)["a"].shape, _rows(tmp_path)["a"].problem) == (None, None)


def test_the_table_gives_slices_their_spacing_by_folder(tmp_path: Path) -> None:
    _write_slices(tmp_path / "a/b", "0.jpg", "1.jpg")
    columns = ("VolumeName", "XYSpacing", "ZSpacing")
    write_csv(tmp_path / "metadata.csv", columns, [["a/b", "[0.5, 0.5]", 5]])
    assert _rows(tmp_path)["a_b"].spacing == (5.0, 0.5, 0.5)


def test_files_of_all_formats_stand_in_one_row_each(tmp_path: Path) -> None:
    write_nifti(tmp_path / "sub-1/ct.nii.gz", AFFINE)
    write_dicom(tmp_path / "series", patient="P-7", uid="1.2.3")
    _write_itk(tmp_path / "P-7_copy.mhd")
    _write_itk(tmp_path / "other/c.nhdr")
    _write_slices(tmp_path / "P-7", "0.jpg", "1.jpg")
    rows = _rows(tmp_path)
    assert sorted(row.kind for row in rows.values()) == ["dicom", "itk", "itk", "nifti", "pictures"]
    sources = [source for row in rows.values() for source in row.sources]
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert len(sources) == len(set(sources))
    assert set(sources) == files
    # The DICOM PatientID begins the names of the other two: one patient, one split.
    same = {row.patient for row in rows.values() if row.kind in ("dicom", "pictures")}
    assert same == {rows["P-7_copy"].patient}
    assert len({row.patient for row in rows.values()}) == 3


def test_a_split_table_names_a_stack_by_its_folder(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        _write_slices(tmp_path / f"stacks/{name}", "0.jpg", "1.jpg")
    entries = [["stacks/a", "valid"], ["b", "train"], ["stacks/c", "train"]]
    write_csv(tmp_path / "split.csv", ("VolumeName", "split"), entries)
    spec = CatalogSpec(
        dataset="folder", split_csv="split.csv", shards={"train": 1, "tune": 1, "valid": 1}
    )
    frame = build_catalog(tmp_path, spec).set_index("volume")
    assert frame["split"]["stacks_a"] == "valid"
    assert {frame["split"]["stacks_b"], frame["split"]["stacks_c"]} <= {"train", "tune"}
