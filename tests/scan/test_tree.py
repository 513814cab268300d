import logging
import os
from pathlib import Path

import pytest

from ct3dlib.scan.tree import may_be_dicom, walk


def found(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in walk(root)]


def test_walk_is_sorted_and_leaves_out_hidden_and_unfinished(tmp_path: Path) -> None:
    for name in ("b/2.nii", "b/10.nii", "a.nii", ".git/x.nii", ".x.nii", "y.nii.partial", "~z.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert found(tmp_path) == ["a.nii", "b/10.nii", "b/2.nii"]


def test_walk_follows_links_once(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    (root / "a").mkdir(parents=True)
    other.mkdir()
    (other / "x.nii").touch()
    (root / "a/link").symlink_to(other)
    (root / "a/loop").symlink_to(root)
    assert [path.name for path in walk(root)] == ["x.nii"]


def test_walk_yields_links_that_lead_nowhere_and_no_pipes(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-pipe").symlink_to(tmp_path / "pipe")
    assert found(tmp_path) == ["gone", "round"]


def test_walk_warns_of_a_folder_that_cannot_be_listed(tmp_path, monkeypatch, caplog) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.nii").touch()
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "a":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with caplog.at_level(logging.WARNING):
        assert found(tmp_path) == ["b/x.nii"]
    assert f"{tmp_path / 'a'}: left out, the folder cannot be read (Permission den" in caplog.text


@pytest.mark.parametrize(
    ("name", "may_be"),
    [("a", True), ("a.dcm", True), ("1.2.840", True), ("a.IMA", True), ("a.nii.gz", False)],
)
def test_a_name_may_rule_dicom_out(name: str, may_be: bool) -> None:
    assert may_be_dicom(Path(name)) == may_be
