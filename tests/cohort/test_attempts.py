"""A volume that kills its reader is found after two deaths."""

import subprocess
import sys

import pytest

from ct3dlib.cohort.attempts import Attempts
from ct3dlib.errors import StoreError, VolumeError


def die(path, volume):
    """Let a process end inside the guard without running any handler."""
    code = (
        "import os, pathlib, sys; from ct3dlib.cohort.attempts import Attempts\n"
        "with Attempts(pathlib.Path(sys.argv[1])).guard(sys.argv[2]): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path), volume]).returncode == 9


def test_two_deaths_at_a_volume_reject_it(tmp_path):
    path = tmp_path / "a.json"
    die(path, "v")
    with Attempts(path).guard("other"):
        pass
    die(path, "v")
    with (
        pytest.raises(VolumeError, match=r"died 2 times.*delete .*a\.json") as error,
        Attempts(path).guard("v"),
    ):
        pass
    assert error.value.reason == "READER_CRASHED"


def test_running_out_of_memory_counts_as_a_death(tmp_path):
    path = tmp_path / "a.json"
    for _ in range(2):
        with pytest.raises(MemoryError), Attempts(path).guard("v"):
            raise MemoryError
    with pytest.raises(VolumeError, match="died 2 times"), Attempts(path).guard("v"):
        pass


def test_success_and_plain_errors_leave_nothing(tmp_path):
    path = tmp_path / "a.json"
    attempts = Attempts(path)
    with attempts.guard("v"):
        assert path.exists()
    with pytest.raises(VolumeError), attempts.guard("v"):
        raise VolumeError("NAN_VOXELS", "v: NaN")
    assert not path.exists()


@pytest.mark.parametrize("fault", [OSError(28, "No space left"), StoreError("damaged")], ids=str)
def test_a_failing_disk_is_not_the_volumes_fault(tmp_path, fault):
    path = tmp_path / "a.json"
    for _ in range(3):
        with pytest.raises(type(fault)), Attempts(path).guard("v"):
            raise fault
    assert not path.exists()


def test_a_damaged_file_starts_anew(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{")
    with Attempts(path).guard("v"):
        pass
    assert not path.exists()
