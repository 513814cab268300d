"""What is written is there whole or not at all."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ct3dlib.cohort.arrays import write_array
from ct3dlib.cohort.durable import publish, room_for
from ct3dlib.cohort.store import create_store, has_node, write_node, write_table
from ct3dlib.errors import StoreError


@pytest.fixture
def calls(monkeypatch):
    """Return what is synced and renamed, in order."""
    found = []
    sync, rename = os.fsync, os.replace

    def record_sync(handle):
        found.append(("sync", str(Path(f"/proc/self/fd/{handle}").readlink())))
        sync(handle)

    def record_rename(source, target):
        found.append(("rename", str(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr("pathlib.os.replace", record_rename)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_every_file_is_on_the_disk_before_its_name_is(calls, tmp_path):
    partial, final = tmp_path / "a.partial", tmp_path / "a"
    (partial / "0").mkdir(parents=True)
    (partial / "zarr.json").write_text("{}")
    (partial / "0/c").write_text("x")
    publish(partial, final)
    assert {path for _, path in calls[:-2]} == {
        str(partial),
        *(str(partial / name) for name in ("zarr.json", "0", "0/c")),
    }
    assert calls[-2:] == [("rename", str(final)), ("sync", str(tmp_path))]
    assert (final / "0/c").read_text() == "x"


def test_a_folder_takes_the_place_of_an_older_one(tmp_path):
    for name, file in (("a", "old"), ("a.partial", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    publish(tmp_path / "a.partial", tmp_path / "a")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["new"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named_and_given_back(code, tmp_path):
    partial = tmp_path / "a.partial"
    partial.write_text("half")
    wanted = r"a\.partial: the disk is full .*up to 123 bytes are needed, \d+ are free; make room"
    with pytest.raises(StoreError, match=wanted), room_for(partial, 123):
        raise OSError(code, "no room")
    assert not partial.exists()


def test_other_faults_of_the_disk_pass(tmp_path):
    with pytest.raises(OSError, match="broken"), room_for(tmp_path / "a", 1):
        raise OSError(errno.EIO, "broken")


def test_a_disk_that_fills_up_in_the_middle_leaves_nothing_visible(tmp_path, monkeypatch):
    store = tmp_path / "0000.zarr"
    create_store(store, "volumes")
    array = np.zeros((4, 5, 6), dtype=np.int16)
    array[1] = 7

    def fill_up(path, values):
        write_array(path, values)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ct3dlib.cohort.store.write_array", fill_up)
    with pytest.raises(StoreError, match=r"a@1\.partial: the disk is full .*up to 240 bytes"):
        write_node(store, "a@1", array, attributes={})
    assert [p.name for p in store.iterdir()] == ["zarr.json"]
    monkeypatch.undo()
    write_node(store, "a@1", array, attributes={})
    assert has_node(store, "a@1")


def test_a_real_limit_in_the_middle_of_a_write_leaves_nothing_visible(tmp_path):
    code = """
import pathlib, resource, sys
import numpy as np
from ct3dlib.cohort.store import create_store, write_node
from ct3dlib.errors import StoreError
store = pathlib.Path(sys.argv[1])
create_store(store, "volumes")
noise = np.random.default_rng(0).integers(-1024, 3071, (32, 64, 64), dtype=np.int16)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, resource.RLIM_INFINITY))
try:
    write_node(store, "a@1", noise, attributes={})
except StoreError as error:
    sys.exit(str(error))
"""
    store = tmp_path / "0000.zarr"
    done = subprocess.run(
        [sys.executable, "-c", code, str(store)], capture_output=True, text=True, check=False
    )
    assert "the disk is full" in done.stderr, done.stderr
    assert "up to 262144 bytes are needed" in done.stderr
    assert [p.name for p in store.iterdir()] == ["zarr.json"]


def test_the_same_table_gives_the_same_bytes_without_versions(tmp_path):
    frame = pd.DataFrame({"volume": ["a", "b"], "shape": [[1, 2, 3], None], "lost": [0.5, None]})
    for name in ("1", "2"):
        write_table(frame, tmp_path / name)
    content = (tmp_path / "1").read_bytes()
    assert content == (tmp_path / "2").read_bytes()
    assert b"pandas" not in content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]
