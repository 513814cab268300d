"""Lists of what is left out."""

from pathlib import Path

import pytest

from ct3dlib.datasets.exclusions import read_exclusions
from ct3dlib.errors import DatasetError


def test_names_are_read_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "exclude.txt"
    path.write_text(
        "\ufeff# heads\n"
        "train_1_a_1.nii.gz\n"
        "\n"
        "dataset/train/train_2/train_2_a/train_2_a_1.nii.gz  # a path\n"
        "  validation_3_a  \n"
        "!train_4\n"
        "train_4\n",  # the first line of a name counts
        encoding="utf-8",
    )
    assert read_exclusions(path) == {
        "train_1_a_1": True,
        "train_2_a_1": True,
        "valid_3_a": True,
        "train_4": False,
    }


def test_a_list_that_cannot_be_read_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone\.txt: no such file; write a name a line into it"):
        read_exclusions(tmp_path / "gone.txt")
    (tmp_path / "latin.txt").write_bytes("größe\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"latin\.txt: cannot be read .* save it as UTF-8 text"):
        read_exclusions(tmp_path / "latin.txt")
