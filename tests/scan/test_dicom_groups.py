"""What a series id holds beside one volume: copies, phases, acquisitions, damaged files."""

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from ct3dlib.errors import VolumeError
from ct3dlib.scan.dicom import Series, list_series, read_dicom


@pytest.fixture
def stored():
    return np.random.default_rng(0).integers(0, 2000, (12, 8, 9)).astype(np.uint16)


@pytest.fixture
def write(stored, write_slice):
    """Write slices: `write(prefix, heights, each)`; `each(n)` are the tags of the n-th."""

    def slices(prefix, heights, each=lambda _: {}, *, add=0):
        return [
            write_slice(f"{prefix}{n:02}.dcm", stored[n % 12] + np.uint16(add), z, **each(n))
            for n, z in enumerate(heights)
        ]

    return slices


def heights(count, *, start=0.0, step=2.5):
    return [start + step * n for n in range(count)]


def kept_and_left(folder: Path) -> tuple[Series, list[tuple[int, str | None]]]:
    """Return the one volume below a folder, and files and codes of all else."""
    found = list_series(folder)
    (kept,) = (one for one in found if one.problem is None)
    left = [(len(one.files), one.problem[0]) for one in found if one.problem is not None]
    return kept, sorted(left)


@pytest.mark.parametrize("per_acquisition", [1, 2, 3, 4, 12])
def test_a_copy_costs_no_slice_whatever_the_acquisitions(write, tmp_path, per_acquisition):
    files = write("a", heights(12), lambda n: {"AcquisitionNumber": n // per_acquisition + 1})
    alone = read_dicom(files)
    shutil.copy(files[3], tmp_path / "dicom" / "copy.dcm")
    kept, left = kept_and_left(tmp_path)
    assert (len(kept.files), kept.num_slices, left) == (13, 12, [])
    reading = read_dicom(kept.files)
    np.testing.assert_array_equal(reading.volume.array, alone.volume.array)
    assert reading.facts["duplicates"] == 1


@pytest.mark.parametrize("per_acquisition", [1, 4, 12])
def test_a_series_in_two_folders_is_one_volume(write, tmp_path, per_acquisition):
    write("a", heights(12), lambda n: {"AcquisitionNumber": n // per_acquisition + 1})
    shutil.copytree(tmp_path / "dicom", tmp_path / "again")
    kept, left = kept_and_left(tmp_path)
    assert (len(kept.files), kept.num_slices, left) == (24, 12, [])
    assert read_dicom(kept.files).facts["duplicates"] == 12


def test_acquisitions_that_follow_one_another_are_one_volume(write, tmp_path):
    write("a", heights(6), lambda _: {"AcquisitionNumber": 1})
    write("b", heights(6, start=15.0), lambda _: {"AcquisitionNumber": 2})
    kept, left = kept_and_left(tmp_path)
    assert (kept.num_slices, left) == (12, [])


def test_where_acquisitions_meet_in_one_slice_nothing_is_lost(write, tmp_path):
    write("a", heights(6), lambda _: {"AcquisitionNumber": 1})
    # Its first slice lies where the last of the other does, with other pixels.
    write("b", heights(7, start=12.5), lambda _: {"AcquisitionNumber": 2})
    kept, left = kept_and_left(tmp_path)
    assert (len(kept.files), left) == (13, [])
    with pytest.raises(VolumeError, match="different slices at one position") as caught:
        read_dicom(kept.files)
    assert caught.value.reason == "DUPLICATE_POSITIONS"


@pytest.mark.parametrize("tag", ["AcquisitionNumber", "TemporalPositionIdentifier"])
def test_phases_are_told_apart_and_each_left_out_one_is_listed(write, tmp_path, tag):
    write("b", heights(12), lambda _: {tag: 1}, add=1)
    write("a", heights(12), lambda _: {tag: 2})
    write("c", heights(5), lambda _: {tag: 3}, add=2)
    kept, left = kept_and_left(tmp_path)
    assert len({path.name[0] for path in kept.files}) == 1
    assert (kept.num_slices, left) == (12, [(5, "FOUR_D"), (12, "FOUR_D")])
    (message,) = {one.problem[1] for one in list_series(tmp_path) if len(one.files) == 5}
    assert "another acquisition of the region of" in message
    assert "; give each a series id of its own" in message


def test_phases_of_several_shots_each_are_put_together(write, tmp_path):
    write("a", heights(12), lambda n: {"AcquisitionNumber": n // 4 + 1})
    write("b", heights(12), lambda n: {"AcquisitionNumber": n // 4 + 11}, add=1)
    kept, left = kept_and_left(tmp_path)
    assert (kept.num_slices, left) == (12, [(12, "FOUR_D")])


def test_two_reconstructions_between_each_others_slices_are_two(write, tmp_path):
    write("a", heights(12), lambda _: {"AcquisitionNumber": 1})
    write("b", heights(12, start=0.8), lambda _: {"AcquisitionNumber": 2})
    kept, left = kept_and_left(tmp_path)
    assert [path.name[0] for path in kept.files] == ["a"] * 12
    assert left == [(12, "FOUR_D")]
    assert kept.spacing[0] == pytest.approx(2.5)


def test_acquisitions_that_take_turns_make_up_one_grid(write, tmp_path):
    write("a", heights(12), lambda n: {"AcquisitionNumber": n % 3 + 1})
    kept, left = kept_and_left(tmp_path)
    assert (kept.num_slices, left) == (12, [])


def test_what_is_of_another_kind_is_listed_with_its_code(write, tmp_path):
    write("a", heights(12))
    write("b", heights(5), lambda _: {"PixelSpacing": [0.4, 0.4]})
    write("c", heights(3), lambda _: {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]})
    write("d", heights(2), lambda _: {"ImagePositionPatient": None})
    write("e", heights(20), lambda _: {"Modality": "OT", "PixelSpacing": [0.5, 0.5]})
    kept, left = kept_and_left(tmp_path)
    assert (len(kept.files), kept.num_slices) == (12, 12)
    assert left == [(2, "NO_GEOMETRY"), (3, "LOCALIZER"), (5, "MIXED_SERIES"), (20, "NOT_CT")]


def test_cosines_that_differ_in_the_last_digit_do_not_part_a_series(write, tmp_path):
    near = [[1, 0, 0, 0, y, -0.05] for y in (0.99849, 0.99851)]
    write("a", heights(12), lambda n: {"ImageOrientationPatient": near[n % 2]})
    kept, left = kept_and_left(tmp_path)
    assert (kept.num_slices, left) == (12, [])


def test_without_series_id_folders_are_kept_apart(write, tmp_path):
    write("a", heights(12), lambda _: {"SeriesInstanceUID": None})
    shutil.copytree(tmp_path / "dicom", tmp_path / "other")
    assert [(len(one.files), one.problem) for one in list_series(tmp_path)] == [(12, None)] * 2


def test_a_processed_copy_of_the_same_ids_is_refused_by_its_folders(write, tmp_path):
    write("a", heights(12))
    (tmp_path / "dicom").rename(tmp_path / "original")
    write("a", heights(12), add=7)
    (series,) = list_series(tmp_path)
    with pytest.raises(VolumeError, match=r"24 files in .*/dicom, .*/original\): 2 diff") as caught:
        read_dicom(series.files)
    assert caught.value.reason == "FOUR_D"


@pytest.mark.parametrize("bare", [[0], [4], range(11)], ids=["first", "middle", "all-but-one"])
def test_slices_with_and_without_rescale_are_not_mixed(write, bare):
    gone = {"RescaleSlope": None, "RescaleIntercept": None}
    files = write("a", heights(12), lambda n: gone if n in bare else {})
    with pytest.raises(VolumeError, match=f"{len(bare)} of 12 slices state no slope") as caught:
        read_dicom(files)
    assert caught.value.reason == "BAD_RESCALE"


@pytest.mark.parametrize("step", [1e-5, 1e-3, 0.005])
def test_slices_in_another_unit_are_no_volume(write, step):
    with pytest.raises(VolumeError, match="12 slices within") as caught:
        read_dicom(write("a", heights(12, step=step)))
    assert caught.value.reason == "BAD_GEOMETRY"


@pytest.mark.parametrize("unit", ["hu", " HU", "Hu"])
def test_the_unit_may_be_written_in_any_case(write, unit):
    assert read_dicom(write("a", heights(12), lambda _: {"RescaleType": unit})).hu is True


def without_mark(path: Path, *, meta: bool, implicit: bool) -> Path:
    """Rewrite a file as old archives hold it: without preamble, mark and perhaps group 2."""
    dataset = pydicom.dcmread(path)
    whole = path.read_bytes()
    bare = path.with_suffix("")
    if meta:
        bare.write_bytes(whole[132:])
    else:
        dataset.preamble = None
        del dataset.file_meta
        dataset.save_as(bare, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        assert bare.read_bytes()[128:132] != b"DICM"
    path.unlink()
    return bare


@pytest.mark.parametrize(
    ("meta", "implicit"), [(True, False), (False, False), (False, True)],
    ids=["group-2", "explicit", "implicit"],
)  # fmt: skip
def test_files_without_mark_and_ending_are_found(write, stored, tmp_path, meta, implicit):
    for path in write("a", heights(12)):
        without_mark(path, meta=meta, implicit=implicit)
    kept, left = kept_and_left(tmp_path)
    assert left == []
    np.testing.assert_array_equal(
        read_dicom(kept.files).volume.array, stored.astype(np.int16) - 1024
    )


@pytest.mark.parametrize(
    ("start", "reasons"),
    [
        (b"\x08\x00\x05\x00CS", []),
        (bytes([8, 0, 0, 0, 0, 0, 0, 0]), []),
        (bytes([8, 0, 5, 0, 10, 0, 0, 0]), ["FILE_UNREADABLE"]),
        (b"\x02\x00\x01\x00UL", ["FILE_UNREADABLE"]),
    ],
    ids=["kind", "zeros", "length", "group-2"],
)
def test_what_only_starts_like_dicom_ends_no_run(tmp_path, start, reasons):
    (tmp_path / "voxels").write_bytes(start + bytes(range(200)))
    assert [one.problem[0] for one in list_series(tmp_path)] == reasons


def test_links_that_lead_nowhere_are_one_row(write, tmp_path):
    for path in write("a", heights(12))[8:]:
        path.unlink()
        path.symlink_to(tmp_path / "unmounted" / path.name)
    (tmp_path / "dicom" / "notes.txt").symlink_to(tmp_path / "nowhere")
    kept, left = kept_and_left(tmp_path)
    assert (kept.num_slices, left) == (8, [(4, "FILE_MISSING")])
    (message,) = (one.problem[1] for one in list_series(tmp_path) if one.problem)
    assert "a08.dcm: a link that leads nowhere; put it back" in message
    assert "(4 files of this folder alike)" in message


def test_files_bad_in_one_way_are_one_row_of_their_folder(write, tmp_path):
    write("a", heights(12), lambda _: {"NumberOfFrames": 5})
    for number in range(3):
        (tmp_path / "dicom" / f"z{number}.dcm").write_bytes(b"")
    found = list_series(tmp_path)
    assert [(len(one.files), one.problem[0]) for one in found] == [
        (12, "NO_GEOMETRY"),
        (3, "FILE_TRUNCATED"),
    ]
    assert found[0].problem[1].endswith("convert it to enhanced CT (12 files of this folder alike)")


@pytest.mark.parametrize("modality", ["RTDOSE", "US", "SEG"])
def test_another_modality_is_named_before_its_geometry(write, tmp_path, modality):
    tags = {"Modality": modality, "NumberOfFrames": 3, "PixelSpacing": None}
    write("a", [0.0], lambda _: tags)
    (series,) = list_series(tmp_path)
    assert series.problem[0] == "NOT_CT"
    assert f"modality {modality}, wanted CT" in series.problem[1]


def test_a_file_that_may_not_be_read_says_so(write, tmp_path, monkeypatch):
    files = write("a", heights(12))
    opened = Path.open

    def refuse(path, *args, **kwargs):
        if path == files[5]:
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    (refused,) = (one for one in list_series(tmp_path) if one.problem)
    assert refused.problem == (
        "FILE_UNREADABLE",
        f"{files[5]}: no permission to read it; change its owner or mode",
    )


def test_hidden_folders_are_passed_over(write, tmp_path):
    write("a", heights(12), lambda _: {"SeriesInstanceUID": generate_uid()})
    (tmp_path / "dicom").rename(tmp_path / ".snapshot")
    assert list_series(tmp_path) == []


@pytest.mark.parametrize(("tag", "value"), [("RescaleType", "OD"), ("Modality", "MR")])
def test_slices_of_another_unit_are_not_of_the_volume(write_slice, phantom, tmp_path, tag, value):
    stored = phantom + 1024
    for number, plane in enumerate(stored):
        extra = {tag: value} if number >= 20 else {}
        write_slice(f"{number}.dcm", plane, 2.5 * number, **extra)
    kept, left_out = sorted(list_series(tmp_path / "dicom"), key=lambda one: -len(one.files))
    assert (len(kept.files), kept.problem) == (20, None)
    assert left_out.problem is not None
    assert left_out.problem[0] in ("MIXED_SERIES", "NOT_HU", "NOT_CT")
