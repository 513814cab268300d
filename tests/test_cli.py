"""The `ct3d` command line: what a user can get wrong is one line that names the way out."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from ct3dlib.cli import main


def _fails(monkeypatch, capsys, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["ct3d", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code in (1, 2)
    return " ".join(capsys.readouterr().err.split())


def test_verify_of_nothing(monkeypatch, capsys, tmp_path):
    error = _fails(monkeypatch, capsys, "verify", tmp_path / "nope")
    assert error.startswith(f"ct3d: {tmp_path}/nope: no such file or folder; give data/")


def test_verify_of_no_table(monkeypatch, capsys, tmp_path):
    marker = tmp_path / "valid.done"
    marker.write_text("{}")
    assert f"{marker}: not a status table" in _fails(monkeypatch, capsys, "verify", marker)


def test_verify_names_a_path_without_tables_beside_one_that_has_some(monkeypatch, capsys, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/0000.parquet").touch()
    (tmp_path / "empty").mkdir()
    error = _fails(monkeypatch, capsys, "verify", tmp_path / "data", tmp_path / "empty")
    assert error.startswith(f"ct3d: {tmp_path}/empty: no status table beside a store")


def test_verify_goes_on_after_an_empty_table(monkeypatch, capsys, tmp_path):
    (tmp_path / "0000.parquet").touch()
    (tmp_path / "0001.zarr").mkdir()
    monkeypatch.setattr(sys, "argv", ["ct3d", "verify", str(tmp_path), str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        main()
    first, second, total = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path}/0000.parquet: 0000.zarr cannot be verified: ")
    assert second.startswith(
        f"{tmp_path}/0001.parquet: 0001.zarr is a store without a status table"
    )
    assert total == "2 tables, 2 problems"


def test_decode_checks_the_name_before_it_works(monkeypatch, capsys):
    error = _fails(monkeypatch, capsys, "decode", "tokens", "--volume", "v", "-o", "x.txt")
    assert "x.txt: the name must end with .nii" in error


def test_decode_of_missing_tokens(monkeypatch, capsys, tmp_path):
    tokens = tmp_path / "tokens/valid"
    error = _fails(monkeypatch, capsys, "decode", tokens, "--volume", "v", "-o", "x.nii.gz")
    assert error.startswith(f"ct3d: {tokens}.parquet: no such table; give tokens/SPLIT")


def test_describe_lists_what_a_catalog_will_reject(monkeypatch, capsys, tmp_path):
    path = tmp_path / "folder.parquet"
    rows = {"volume": ["a", "b"], "problem": [None, "NOT_CT"], "problem_message": [None, "an MR"]}
    pd.DataFrame(rows).to_parquet(path)
    monkeypatch.setattr(sys, "argv", ["ct3d", "describe", str(Path(path))])
    with pytest.raises(SystemExit, match="0"):
        main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"{path}: 2 volumes", "  b to be rejected, an MR"]
    assert lines[-1].split() == ["a"]
