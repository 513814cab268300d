import json
import re
from pathlib import Path

import pytest

from ct3dlib.datasets.tables import (
    join_names,
    parse_metadata,
    read_columns,
    read_metadata,
    volume_key,
)
from ct3dlib.errors import DatasetError


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("validation_1_a_1.nii.gz", "valid_1_a_1"),
        ("valid_1_a_1.nii.gz", "valid_1_a_1"),
        (" train_1_a_1 ", "train_1_a_1"),
        ("./a/b.nii", "a/b"),
        ("a\\validation_2.nii", "a/valid_2"),
        ("1.2.840", "1.2.840"),
    ],
)
def test_volume_key_is_one_for_all_spellings(name: str, wanted: str) -> None:
    assert volume_key(name) == wanted


def test_join_names_are_path_id_and_last_name() -> None:
    assert join_names("a b/ct.nii.gz", "a_b_ct") == ("a b/ct", "a_b_ct", "ct")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[0.341796875, 0.341796875]", (1.5, 0.341796875, 0.341796875)),
        ("[0.75]", (1.5, 0.75, 0.75)),
        ("0.75", (1.5, 0.75, 0.75)),
        ("['0.7', '0.8']", (1.5, 0.7, 0.8)),
        ("(0.7 0.8)", (1.5, 0.7, 0.8)),
        ("0.7\\0.8", (1.5, 0.7, 0.8)),
        ("[1.000000, 7.5e-1]", (1.5, 1.0, 0.75)),
    ],
)
def test_xy_spacing_is_read_in_every_form(text: str, wanted: tuple[float, float, float]) -> None:
    cells = {"XYSpacing": text, "ZSpacing": "1.5", "RescaleSlope": "1", "RescaleIntercept": "-8192"}
    found = parse_metadata(cells)
    assert found.spacing == wanted
    assert (found.slope, found.intercept) == (1.0, -8192.0)
    assert found.faults == ()


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        ({"ZSpacing": "nan"}, "ZSpacing is 'nan'"),
        ({"ZSpacing": ""}, "ZSpacing is ''"),
        ({"ZSpacing": "0"}, "ZSpacing is '0'"),
        ({"ZSpacing": "-1.5"}, "ZSpacing is '-1.5'"),
        ({"XYSpacing": "[nan, nan]"}, r"XYSpacing is '\[nan, nan\]'"),
        ({"XYSpacing": "[1, 2, 3]"}, r"XYSpacing is '\[1, 2, 3\]'"),
        ({"XYSpacing": "[0, 1]"}, r"XYSpacing is '\[0, 1\]'"),
        ({"RescaleSlope": "one"}, "RescaleSlope is 'one'"),
        ({"RescaleIntercept": "1e999"}, "RescaleIntercept is '1e999'"),
    ],
)
def test_what_is_no_number_is_a_fault(cells: dict[str, str], fault: str) -> None:
    good = {"XYSpacing": "1", "ZSpacing": "1", "RescaleSlope": "1", "RescaleIntercept": "0"}
    found = parse_metadata({**good, **cells})
    assert len(found.faults) == 1
    assert re.fullmatch(fault, found.faults[0])
    assert found.spacing is None or "Rescale" in fault


def test_metadata_text_leaves_blanks_out_and_ignores_column_order() -> None:
    first = parse_metadata({"B": " 2 ", "A": "036Y", "RescaleType": "  "})
    second = parse_metadata({"A": "036Y", "RescaleType": "", "B": "2"})
    assert first.text == second.text
    assert json.loads(first.text) == {"A": "036Y", "B": "2"}


def test_first_of_repeated_names_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m.csv"
    path.write_text("\ufeffVolumeName,ZSpacing\nvalid_1.nii.gz,1\nvalidation_1.nii.gz,2\n")
    found = read_metadata(path)
    assert json.loads(found["valid_1"].text)["ZSpacing"] == "1"
    assert "m.csv: 1 rows repeat a name" in caplog.text


def test_unreadable_tables_raise(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    with pytest.raises(DatasetError, match=r"m\.csv: cannot be read"):
        read_metadata(path)
    path.write_text("Name\n")
    with pytest.raises(DatasetError, match=r"m\.csv: no column 'VolumeName'"):
        read_metadata(path)
    path.write_text("VolumeName\n")
    with pytest.raises(DatasetError, match=r"no column 'ZSpacing', found 'VolumeName'; columns"):
        read_metadata(path, ["ZSpacing"])
    path.write_bytes(b"VolumeName\n\xff\xfe\n")
    with pytest.raises(DatasetError, match=r"m\.csv: cannot be read"):
        read_metadata(path)
    path.write_text("VolumeName;RescaleSlope\n")
    with pytest.raises(DatasetError, match=r"found 'VolumeName;RescaleSlope'; .* by commas"):
        read_metadata(path)
    path.write_text("")
    with pytest.raises(DatasetError, match="no column 'VolumeName', found none"):
        read_metadata(path)


def test_spaces_around_columns_and_long_cells_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(f"VolumeName , Note, ZSpacing\na, {'x' * 200_000}, 2\n")
    assert read_columns(path) == ("VolumeName", "Note", "ZSpacing")
    assert json.loads(read_metadata(path, ["ZSpacing"])["a"].text)["ZSpacing"] == "2"
