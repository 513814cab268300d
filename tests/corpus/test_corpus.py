"""Every way to be bad ends as one rejected row with its code; what is only odd is stored."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ct3dlib.cohort.shard import store_shard
from ct3dlib.config import CatalogSpec, RecipeSpec
from ct3dlib.datasets import build_catalog
from tests.corpus.case import Case
from tests.corpus.dicom_cases import DICOM_CASES
from tests.corpus.itk_cases import ITK_CASES
from tests.corpus.nifti_cases import NIFTI_CASES, nifti
from tests.corpus.slice_cases import SLICE_CASES
from tests.corpus.table_cases import TABLE_CASES, volume_of, write_table, write_volumes

IN_HU = [*NIFTI_CASES, *DICOM_CASES, *ITK_CASES]
CASES = [*IN_HU, *SLICE_CASES]
GOOD = ("good-1", "good-2")
FOLDER = CatalogSpec(dataset="folder", shards={"train": 1, "tune": 1, "valid": 1})
CT_RATE = FOLDER.model_copy(update={"dataset": "ct_rate"})
RECIPE = RecipeSpec(spacing=(4.0, 5.0, 5.0))
EIGHT_BIT = RecipeSpec(domain="window8", window=(0, 255))
CASE = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def ingest(root: Path, spec: CatalogSpec = FOLDER, recipe: RecipeSpec = RECIPE) -> pd.DataFrame:
    """Return catalog and status table of a raw root, joined."""
    return stored(build_catalog(root, spec), root, recipe)


def stored(rows: pd.DataFrame, root: Path, recipe: RecipeSpec = RECIPE) -> pd.DataFrame:
    """Store the rows of a catalog beside the raw root and return their status beside them."""
    status = root.parent / "volumes" / "0000.parquet"
    table = store_shard(rows, root, recipe=recipe, code="1", status=status)
    assert table["volume"].tolist() == rows["volume"].tolist()
    return rows.merge(table, on="volume", validate="1:1", suffixes=("", "_stored"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Return the rows of all cases: of HU in one run, of pictures in another."""
    root = tmp_path_factory.mktemp("corpus") / "raw"
    for name in GOOD:
        (root / name).mkdir(parents=True)
        (root / name / "scan.nii").write_bytes(nifti())
    write_cases(root, IN_HU)
    pictures = tmp_path_factory.mktemp("pictures") / "raw"
    write_cases(pictures, SLICE_CASES)
    rows = pd.concat([ingest(root), ingest(pictures, recipe=EIGHT_BIT)])
    return rows.assign(case=rows["sources"].map(lambda sources: sources[0].split("/")[0]))


def write_cases(root: Path, cases: Sequence[Case]) -> None:
    """Write cases, each into its folder."""
    for case in cases:
        (root / case.name).mkdir(parents=True)
        case.write(root / case.name)


def test_the_corpus_is_large_and_no_two_of_it_share_a_folder() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert sum(bool(case.reason) for case in CASES) >= 60


def test_rows_are_the_inputs_and_the_good_ones_are_stored(run: pd.DataFrame) -> None:
    assert len(run) == len(GOOD) + sum(bool(case.reason) + case.stored for case in CASES)
    assert (run.loc[run["case"].isin(GOOD), "status"] == "stored").all()
    assert set(run["status"]) == {"stored", "rejected"}


@CASE
def test_a_bad_input_is_a_row_with_its_code_and_a_way_out(run: pd.DataFrame, case: Case) -> None:
    mine = run[run["case"] == case.name]
    assert (mine["status"] == "stored").sum() == case.stored, mine["message"].tolist()
    rejected = mine[mine["status"] == "rejected"]
    assert rejected["reason"].tolist() == [case.reason] * bool(case.reason)
    for message in rejected["message"]:
        assert re.search(case.match, message)
        assert f"{case.name}/" in message
        assert re.search(r"; \w{3,}", message), "no way out"
        assert not Path(message.split(":")[0]).is_absolute()


def test_every_documented_code_is_met_here_or_in_the_tests_of_its_reader(repository: Path) -> None:
    table = (repository / "docs" / "data.md").read_text().split("## Reason codes")[1]
    documented = set(re.findall(r"^\| `([A-Z0-9_]+)` \|", table, re.MULTILINE))
    tests = [Path(__file__), repository / "tests/test_cli_segment.py"]
    for folder in ("datasets", "regions", "inference"):
        tests += (repository / "tests" / folder).glob("test_*.py")
    others = "\n".join(path.read_text() for path in tests)
    met = {case.reason for case in CASES}
    assert {code for code in documented - met if f'"{code}"' not in others} == set()


def test_an_odd_grid_keeps_its_true_size(run: pd.DataFrame) -> None:
    shapes = run[run["status"] == "stored"].set_index("case")["shape_stored"].map(tuple)
    for name in (*GOOD, "metres", "negative-pixdim", "qform-disagrees", "dcm-slope-per-slice"):
        depth = 10 if name.startswith("dcm") else 12
        step = 2.5 if name.startswith("dcm") else 4.0
        assert shapes[name] == (int(depth * step / 4), 10, 12), name


@pytest.fixture(scope="module", params=["ct_rate", "folder"])
def tables(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("tables") / "raw"
    if request.param == "folder":
        rows = write_volumes(root / "scans", TABLE_CASES)
        write_table(root / "metadata.csv", rows)
        return ingest(root).set_index("volume").rename(lambda name: name.removeprefix("scans_"))
    rows = write_volumes(root / "dataset/train/train_1/train_1_a", TABLE_CASES)
    write_table(root / "dataset/metadata/train_metadata.csv", rows)
    return ingest(root, CT_RATE).set_index("volume")


@pytest.mark.parametrize("number", range(len(TABLE_CASES)), ids=[c.name for c in TABLE_CASES])
def test_a_table_row_of_no_use_has_its_code(tables: pd.DataFrame, number: int) -> None:
    case, row = TABLE_CASES[number], tables.loc[volume_of(number)]
    assert row["reason"] == case.reason
    assert re.search(case.match, row["message"])
    if case.reason:
        assert f"{volume_of(number)}.nii: " in row["message"]
        assert "; correct the row" in row["message"]


def test_ct_rate_without_a_row_on_a_list_or_there_twice(tmp_path: Path) -> None:
    base = tmp_path / "raw/dataset"
    rows = write_volumes(base / "train/train_1/train_1_a", TABLE_CASES[:1] * 4)
    write_table(base / "metadata/train_metadata.csv", [*rows[:2], rows[3]])
    (base / "exclude.txt").write_text("train_1_a_1.nii.gz  # a phantom\n")
    (base / "train_fixed").mkdir()
    (base / "train_fixed/train_3_a_1.nii").write_bytes(nifti())
    found = ingest(tmp_path / "raw", CT_RATE).set_index("volume")["reason"].to_dict()
    assert found == {
        "train_0_a_1": "",
        "train_1_a_1": "EXCLUDED",
        "train_2_a_1": "NO_METADATA",
        "train_3_a_1": "",
        "train_3_a_1-2": "DUPLICATE_NAME",
    }


@pytest.fixture
def two(tmp_path: Path) -> pd.DataFrame:
    root = tmp_path / "raw"
    root.mkdir()
    for name in "ab":
        (root / f"{name}.nii").write_bytes(nifti())
    np.savez(root / "pack.npz", train_images=np.zeros((3, 9, 9, 9), np.uint8))
    return build_catalog(root, FOLDER)


BYTES = {"domain": "uint8", "window": (0, 255)}
IN_NPZ = {
    "sources": [["pack.npz"]],
    "kind": "npz",
    "domain": "uint8",
    "item": 1,
    "metadata": '{"member": "train_images"}',
}


@pytest.mark.parametrize(
    ("edit", "recipe", "reason", "match"),
    [
        ({"sources": [["../b.nii"]]}, {}, "UNSAFE_PATH", r"^\.\./b\.nii: points out of"),
        ({"sources": [["/etc/passwd"]]}, {}, "UNSAFE_PATH", "^/etc/passwd: points out of"),
        (
            {"slope": 1.0, "intercept": -1024.0},
            {"hu_state": "stored"},
            "HU_DOUBLE_RESCALE",
            "^a.nii: hu_state is stored, but the values are HU already",
        ),
        ({}, {"hu_state": "stored"}, "HU_UNKNOWN", "^a.nii: .* give no slope and intercept"),
        ({}, BYTES, "WRONG_DOMAIN", "^a.nii: values of domain hu, the recipe wants uint8; give"),
        ({"domain": "uint8"}, BYTES, "NOT_8_BIT", "^a.nii: values from -1.*; convert the file"),
        ({**IN_NPZ, "item": 9}, BYTES, "ITEM_MISSING", "^pack.npz: .*no item 9; build the catalog"),
        (
            {**IN_NPZ, "metadata": '{"member": "test_images"}'},
            BYTES,
            "ITEM_MISSING",
            "^pack.npz: no array test_images, it has train_images; build the catalog again",
        ),
    ],
    ids=[
        "leaves-root",
        "absolute",
        "double-rescale",
        "no-rescale",
        "other-domain",
        "not-8-bit",
        "no-item",
        "no-array",
    ],
)
def test_what_the_catalog_or_the_recipe_rules_out(two, tmp_path, edit, recipe, reason, match):
    rows = stored(two.head(1).assign(**edit), tmp_path / "raw", RecipeSpec(**recipe))
    assert rows["reason"].tolist() == [reason]
    assert re.search(match, rows["message"].iloc[0])


def test_a_volume_that_killed_its_reader_twice(two: pd.DataFrame, tmp_path: Path) -> None:
    node = stored(two, tmp_path / "raw")["node"].iloc[0]
    shutil.rmtree(tmp_path / "volumes/0000.zarr" / node)
    (tmp_path / "volumes/0000.attempts.json").write_text(json.dumps({node: 2}))
    rows = stored(two, tmp_path / "raw")
    assert rows["reason"].tolist() == ["READER_CRASHED", ""]
    assert re.search("^a.nii: a@.*died 2 times", rows["message"].iloc[0])


@pytest.mark.parametrize("seed", range(4))
def test_noise_over_a_sound_file_never_ends_a_run(tmp_path: Path, seed: int) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    rng = np.random.default_rng(seed)
    whole = nifti()
    for number in range(40):
        damaged = bytearray(whole)
        for place in rng.integers(0, 352, 3):
            damaged[place] = rng.integers(256)
        (root / f"{number}.nii").write_bytes(damaged)
    rows = ingest(root)
    assert len(rows) == 40
    assert set(rows["status"]) <= {"stored", "rejected"}
