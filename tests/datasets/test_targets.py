"""What is learnt of each volume: labels of the catalog, and tables as people write them."""

import logging
import math
from pathlib import Path

import pandas as pd
import pytest

from ct3dlib.cohort.catalog import Row, to_frame
from ct3dlib.cohort.labels import LABELS
from ct3dlib.config import Task
from ct3dlib.datasets.targets import Targets, catalog_targets, read_targets
from ct3dlib.errors import ConfigError, DatasetError


def _row(volume: str, *sources: str, **others: object) -> Row:
    fields = {"dataset": "folder", "kind": "nifti", **others}
    return Row(
        volume=volume, patient=volume, study=volume, sources=sources, size=1, mtime_ns=1, **fields
    )


@pytest.fixture
def catalog() -> pd.DataFrame:
    """Return three files, two of one name, and a DICOM series with a damaged file beside it."""
    damaged = {"problem": "UNREADABLE", "problem_message": "cut short"}
    return to_frame(
        [
            _row("p1_ct", "p1/ct.nii.gz"),
            _row("p2_ct", "p2/ct.nii.gz"),
            _row("p3_chest", "p3/my chest.nii.gz"),
            _row("p4_series", "p4/series/1.dcm", "p4/series/2.dcm", kind="dicom"),
            _row("p4_damaged", "p4/series/3.dcm", kind="dicom", **damaged),
        ]
    )


def _read(
    text: str | bytes,
    catalog: pd.DataFrame,
    folder: Path,
    *,
    task: Task = "binary",
    columns: tuple[str, ...] = ("Label",),
) -> Targets:
    table = folder / "labels.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_targets(table, catalog, task=task, columns=columns)


def _lists(targets: Targets) -> dict[str, list[float | None]]:
    """Return the values as lists, None where one is not known."""
    return {
        volume: [None if math.isnan(x) else x for x in vector.tolist()]
        for volume, vector in targets.values.items()
    }


@pytest.mark.parametrize(
    ("name", "volume"),
    [
        ("p1/ct.nii.gz", "p1_ct"),
        ("./p2/ct.nii.gz", "p2_ct"),
        ("p2\\ct.nii", "p2_ct"),
        ("p2_ct", "p2_ct"),
        ("/data/raw/p1/ct.nii.gz", "p1_ct"),
        ("D:\\raw\\p2\\ct.nii.gz", "p2_ct"),
        ("my chest.nii.gz", "p3_chest"),
        ("/raw/p3/my chest", "p3_chest"),
        ("p4/series", "p4_series"),
        ("/data/p4/series/", "p4_series"),
        ("series", "p4_series"),
        ("p4/series/3.dcm", "p4_damaged"),
    ],
)
def test_a_row_names_a_volume(name: str, volume: str, catalog: pd.DataFrame, tmp_path: Path):
    assert _lists(_read(f"Path,Label\n{name},1\n", catalog, tmp_path)) == {volume: [1.0]}


@pytest.mark.parametrize(
    "name", ["other/ct.nii.gz", "p9/p1_ct", "p1", "1/my chest.nii.gz", "ct2.nii.gz", ""]
)
def test_a_row_of_another_scan_names_none(name: str, catalog: pd.DataFrame, tmp_path: Path):
    found = _read(f"Path,Label\n{name},1\np1/ct,0\n", catalog, tmp_path)
    assert _lists(found) == {"p1_ct": [0.0]}


def test_a_name_of_several_volumes_is_an_error(catalog: pd.DataFrame, tmp_path: Path):
    message = r"labels\.csv: row 3: 'ct\.nii\.gz' names 2 volumes, p1_ct, p2_ct; .*raw root, or the"
    with pytest.raises(DatasetError, match=message):
        _read("Path,Label\np1/ct,1\nct.nii.gz,1\n", catalog, tmp_path)


def test_volumes_of_one_file_are_named_by_id(tmp_path: Path):
    rows = [_row(f"organ_{i}", "organ.npz", kind="npz", item=i) for i in range(2)]
    found = _read("Path,Label\norgan_0,1\norgan_1,0\n", to_frame(rows), tmp_path)
    assert _lists(found) == {"organ_0": [1.0], "organ_1": [0.0]}
    with pytest.raises(DatasetError, match=r"'organ\.npz' names 2 volumes"):
        _read("Path,Label\norgan.npz,1\n", to_frame(rows), tmp_path)


def test_every_picture_of_a_data_set_of_pictures_is_a_volume(tmp_path: Path):
    kinds = {"kind": "pictures", "dataset": "pictures"}
    rows = [_row("f_1", "f/1.png", **kinds), _row("f_2", "f/2.png", **kinds)]
    found = _read("Path,Label\nf/2.png,1\n/raw/f/1.png,0\n", to_frame(rows), tmp_path)
    assert _lists(found) == {"f_2": [1.0], "f_1": [0.0]}


def test_binary_is_one_number_and_blank_is_left_out(catalog: pd.DataFrame, tmp_path: Path):
    found = _read("Path,Label\np1/ct,1.0\np2/ct,\nseries,0\n", catalog, tmp_path)
    assert found.names == ("Label",)
    assert _lists(found) == {"p1_ct": [1.0], "p4_series": [0.0]}
    assert {vector.dtype.name for vector in found.values.values()} == {"float32"}


def test_multilabel_keeps_what_is_known(catalog: pd.DataFrame, tmp_path: Path):
    text = "b,Path,a\n1,p1/ct,\n,p2/ct,\n0,series,1\n"
    found = _read(text, catalog, tmp_path, task="multilabel", columns=("a", "b"))
    assert found.names == ("a", "b")
    assert _lists(found) == {"p1_ct": [None, 1.0], "p4_series": [1.0, 0.0]}


def test_regression_takes_numbers_as_they_are(catalog: pd.DataFrame, tmp_path: Path):
    text = "Path,age,volume\np1/ct,64.5,-1e3\np2/ct,,2\np3/my chest,,\n"
    found = _read(text, catalog, tmp_path, task="regression", columns=("age", "volume"))
    assert found.names == ("age", "volume")
    assert _lists(found) == {"p1_ct": [64.5, -1000.0], "p2_ct": [None, 2.0]}


@pytest.mark.parametrize(
    ("cells", "names", "places"),
    [
        (("vessel", "organ", "vessel"), ("organ", "vessel"), (1, 0, 1)),
        (("10", "9", "10.0"), ("9", "10"), (1, 0, 1)),
        (("-1", "3", "0"), ("-1", "0", "3"), (0, 2, 1)),
        (("10", "9", "T1"), ("10", "9", "T1"), (0, 1, 2)),
    ],
    ids=["names", "numbers", "gaps", "both"],
)
def test_classes_are_one_hot_in_their_order(
    cells: tuple[str, ...],
    names: tuple[str, ...],
    places: tuple[int, ...],
    catalog: pd.DataFrame,
    tmp_path: Path,
):
    rows = "".join(f"p{i}/{'ct' if i < 3 else 'my chest'},{c}\n" for i, c in enumerate(cells, 1))
    found = _read(f"Path,Label\n{rows}series,\n", catalog, tmp_path, task="multiclass")
    assert found.names == names
    wanted = [[float(i == place) for i in range(len(names))] for place in places]
    assert _lists(found) == dict(zip(("p1_ct", "p2_ct", "p3_chest"), wanted, strict=True))


def test_classes_are_those_of_the_table_for_every_catalog(catalog: pd.DataFrame, tmp_path: Path):
    text = "Path,Label\nother,a\np1/ct,b\np2/ct,c\n"
    found = _read(text, catalog, tmp_path, task="multiclass")
    assert found.names == ("a", "b", "c")
    assert _lists(found) == {"p1_ct": [0.0, 1.0, 0.0], "p2_ct": [0.0, 0.0, 1.0]}


def test_files_as_spreadsheets_write_them(catalog: pd.DataFrame, tmp_path: Path):
    # A byte order mark, CRLF, spaces, a comma and a line break in quotes, blank and short rows.
    text = (
        b'\xef\xbb\xbf Path ,Note, Label\r\n p1/ct.nii.gz ,"a, b\r\nc", 1 \r\n\r\n,,\r\n'
        b'"p2/ct.nii.gz",x,"0",,\r\n"p3/my chest.nii.gz"\r\n'
    )
    assert _lists(_read(text, catalog, tmp_path)) == {"p1_ct": [1.0], "p2_ct": [0.0]}
    # Rows count as a spreadsheet shows them: the line break is within one, the blank ones are two.
    with pytest.raises(DatasetError, match=r"row 5, column 'Label' is 'x'"):
        _read(text.replace(b',"0"', b",x"), catalog, tmp_path)


NOT = {
    "binary": (r"2", r"wanted 0, 1 or nothing \(not known\); more than two .* task multiclass"),
    "multilabel": ("-1", r"wanted 0, 1 or nothing \(not known\)$"),
    "multiclass": ("1.5", r"the name or whole number of a class, .* of task regression"),
    "regression": ("1,5", r"wanted a number with a decimal point, or nothing \(not known\)"),
}


@pytest.mark.parametrize("task", NOT)
def test_a_cell_of_another_kind_is_named(task: Task, catalog: pd.DataFrame, tmp_path: Path):
    cell, wanted = NOT[task]
    message = rf"labels\.csv: row 3, column 'Label' is '{cell}'; .*{wanted}"
    with pytest.raises(DatasetError, match=message):
        _read(f'Path,Label\np1/ct,1\np2/ct,"{cell}"\n', catalog, tmp_path, task=task)


@pytest.mark.parametrize("cell", ["nan", "inf", "1e39"])
@pytest.mark.parametrize("task", ["binary", "regression"])
def test_a_number_that_float32_lacks_is_refused(
    cell: str, task: Task, catalog: pd.DataFrame, tmp_path: Path
):
    with pytest.raises(DatasetError, match=f"row 2, column 'Label' is '{cell}'"):
        _read(f"Path,Label\np1/ct,{cell}\n", catalog, tmp_path, task=task)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Path,label\n", r"no column 'Label', found 'Path', 'label'; .*separated by commas"),
        ("Path;Label\na;1\n", r"no column 'Path', found 'Path;Label'; columns are separated by"),
        ("", r"no column 'Path', found none"),
        ("Path,Label,Label\n", r"twice the column 'Label', found 'Path', 'Label', 'Label'"),
        ("Path,Label\n,\n", r"labels\.csv: no rows below the header; add one per volume"),
        ("Path,Label\na, b,1\n", r"row 2 has 3 cells, the header 2; .* in double quotes"),
        ("Path,Label\np1/ct,\n", r"labels\.csv: Label: blank for every volume; fill it in"),
        (b"Path,Label\n\xff,1\n", r"labels\.csv: cannot be read \(.*utf-8.*; save it as CSV"),
    ],
    ids=["missing", "semicolons", "empty", "twice", "no-rows", "comma", "blank", "latin"],
)
def test_a_table_of_no_use_is_an_error(
    text: str | bytes, message: str, catalog: pd.DataFrame, tmp_path: Path
):
    with pytest.raises(DatasetError, match=message):
        _read(text, catalog, tmp_path)


def test_a_missing_table_is_an_error(catalog: pd.DataFrame, tmp_path: Path):
    with pytest.raises(DatasetError, match=r"none\.csv: cannot be read \(.*; save it as CSV"):
        read_targets(tmp_path / "none.csv", catalog, task="binary")


def test_one_class_is_none(catalog: pd.DataFrame, tmp_path: Path):
    message = r"'Label' has 1 classes \(a\); task multiclass needs two or more"
    with pytest.raises(DatasetError, match=message):
        _read("Path,Label\np1/ct,a\np2/ct,a\n", catalog, tmp_path, task="multiclass")


def test_a_task_of_one_column_takes_one(catalog: pd.DataFrame, tmp_path: Path):
    with pytest.raises(ValueError, match=r"task binary has one column, not \('a', 'b'\)"):
        _read("Path,a,b\n", catalog, tmp_path, columns=("a", "b"))


def test_rows_without_a_volume_are_counted(
    catalog: pd.DataFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        _read("Path,Label\nx,1\np1/ct,0\ny,1\n\n,1\nz,1\n", catalog, tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'labels.csv'}: 4 of 5 rows name no volume of the catalog, the first are "
        f"rows 2, 4, 6"
    ]


def test_a_table_of_other_scans_is_an_error(catalog: pd.DataFrame, tmp_path: Path):
    message = (
        r"none of 2 rows names a volume of the catalog; row 2 has 'x/1\.nii', the catalog has "
        r"'p1/ct\.nii\.gz', volume 'p1_ct'; give paths relative to the raw root, or ids"
    )
    with pytest.raises(DatasetError, match=message):
        _read("Path,Label\nx/1.nii,1\nx/2.nii,1\n", catalog, tmp_path)


def test_a_volume_may_come_twice_if_both_rows_agree(catalog: pd.DataFrame, tmp_path: Path):
    same = "Path,a,b\np1/ct,1,\np1_ct,1.0,\n"
    found = _read(same, catalog, tmp_path, task="multilabel", columns=("a", "b"))
    assert _lists(found) == {"p1_ct": [1.0, None]}
    message = r"rows 2 and 4 contradict each other about volume p1_ct, 1 and blank; keep one of"
    with pytest.raises(DatasetError, match=message):
        _read("Path,Label\np1/ct,1\np2/ct,1\np1_ct,\n", catalog, tmp_path)


def _findings() -> pd.DataFrame:
    first = tuple(int(i in (0, 7)) for i in range(18))
    second = tuple(int(i == 9) for i in range(18))
    rows = [_row("a", "a", labels=first), _row("b", "b", labels=second), _row("c", "c")]
    return to_frame(rows)


def _classes() -> pd.DataFrame:
    classes = {"a": "vessel", "b": "liver", "c": None, "d": "bone"}
    return to_frame([_row(name, name, label=label) for name, label in classes.items()])


def test_findings_of_the_catalog_are_all_or_those_named():
    every = catalog_targets(_findings(), task="multilabel")
    assert every.names == LABELS
    assert [i for i, x in enumerate(every.values["a"]) if x] == [0, 7]
    assert set(every.values) == {"a", "b"}
    named = catalog_targets(_findings(), ("Lung nodule", "Emphysema"), task="multilabel")
    assert named.names == ("Lung nodule", "Emphysema")
    assert _lists(named) == {"a": [0.0, 1.0], "b": [1.0, 0.0]}
    assert _lists(catalog_targets(_findings(), ("Emphysema",), task="binary")) == {
        "a": [1.0],
        "b": [0.0],
    }


def test_classes_of_the_catalog_are_one_hot():
    found = catalog_targets(_classes(), task="multiclass")
    assert found.names == ("bone", "liver", "vessel")
    assert _lists(found) == {"a": [0, 0, 1], "b": [0, 1, 0], "d": [1, 0, 0]}
    two = catalog_targets(_classes(), ("vessel", "bone"), task="multiclass")
    assert _lists(two) == {"a": [1, 0], "d": [0, 1]}
    # Told from all others, a volume of another class is an example of what it is not.
    one = catalog_targets(_classes(), ("vessel",), task="binary")
    assert _lists(one) == {"a": [1], "b": [0], "d": [0]}


@pytest.mark.parametrize(
    ("catalog", "names", "task", "message"),
    [
        (_classes(), ("lung",), "binary", r"has no 'lung'; it has bone, liver, vessel"),
        (_classes(), None, "regression", r"task regression: the catalog holds no numbers.*csv"),
        (to_frame([_row("a", "a")]), None, "multilabel", r"the catalog has no labels; .*csv"),
        (to_frame([_row("a", "a")]), ("x",), "binary", r"has no 'x'; it has no labels"),
        (_classes(), None, "binary", r"learns one label, not 3 \(bone, .*name one in findings"),
        (_findings(), None, "multiclass", r"has findings, and .* set task to multilabel"),
        (_classes(), ("bone",), "multiclass", r"two classes or more, not bone; .* binary"),
    ],
    ids=["unknown", "numbers", "none", "unknown-none", "several", "findings", "one-class"],
)
def test_labels_that_do_not_fit_the_task_are_refused(
    catalog: pd.DataFrame, names: tuple[str, ...] | None, task: Task, message: str
):
    with pytest.raises(ConfigError, match=message):
        catalog_targets(catalog, names, task=task)
