"""Reconstructed scans: files on the scan's own grid, whole or not there, made once."""

import errno
import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest

from ct3dlib.cohort.store import records, stored_volumes
from ct3dlib.cohort.verify import find_tables, verify_table
from ct3dlib.config import SlidingWindowSpec, TokensSpec
from ct3dlib.errors import StoreError
from ct3dlib.inference import reconstructions
from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.inference.reconstructions import store_reconstructions_shard
from ct3dlib.scan.nifti import read_nifti
from ct3dlib.scan.reading import file_sha256
from tests.inference.conftest import RECIPE
from tests.inference.doubles import Blocks, kl_spec

SPEC = TokensSpec(tokenizer="any")


@pytest.fixture
def tokenizer() -> Tokenizer:
    windows = SlidingWindowSpec(roi_size=(4, 8, 8))
    return Tokenizer(Blocks(kl_spec((2, 2, 2))).eval(), RECIPE, windows, "a" * 64)


@pytest.fixture
def status(tmp_path):
    return tmp_path / "reconstructions/valid/0000.parquet"


def test_files_are_the_scans_on_their_own_grids(volumes, tokenizer, status):
    frame = store_reconstructions_shard(volumes, tokenizer, SPEC, code="1", status=status)
    assert frame["status"].tolist() == ["encoded", "encoded", "rejected"]
    assert frame["reason"].tolist() == ["", "", "NAN_VOXELS"]
    for row, volume in zip(records(frame), stored_volumes([volumes]), strict=False):
        path = status.with_suffix("") / row["file"]
        record = volume.array.attributes["ct3d"]["record"]
        found = read_nifti(path).volume
        assert found.array.dtype == np.int16
        assert list(found.shape) == record["source_shape"] == row["shape"]
        np.testing.assert_allclose(found.affine, record["source_affine"], atol=1e-5)
        assert file_sha256(path) == row["sha256"]
        # The model is lossless, and the store on the scan's own voxels.
        np.testing.assert_array_equal(found.array, volume.read())


def test_finished_files_are_kept_and_stale_ones_go(volumes, tokenizer, status):
    store_reconstructions_shard(volumes, tokenizer, SPEC, code="1", status=status)
    folder, table = status.with_suffix(""), status.read_bytes()
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "partial.b@1.nii.gz").write_bytes(b"half")
    status.unlink()
    store_reconstructions_shard(volumes, tokenizer, SPEC, code="1", status=status)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    assert status.read_bytes() == table
    other = replace(tokenizer, sha256="b" * 64)
    store_reconstructions_shard(volumes, other, SPEC, code="1", status=status)
    assert len(list(folder.glob("*.nii.gz"))) == len(list(folder.glob("*.sha256"))) == 2
    assert not set(folder.iterdir()) & set(times)


def test_a_damaged_file_is_made_anew(volumes, tokenizer, status):
    store_reconstructions_shard(volumes, tokenizer, SPEC, code="1", status=status)
    path = sorted(status.with_suffix("").glob("*.nii.gz"))[0]
    whole, table = path.read_bytes(), status.read_bytes()
    hashed = f"{hashlib.sha256(whole).hexdigest()}  {path.name}\n"
    assert path.with_name(f"{path.name}.sha256").read_text() == hashed
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    store_reconstructions_shard(volumes, tokenizer, SPEC, code="1", status=status)
    assert path.read_bytes() == whole
    assert status.read_bytes() == table


def test_verify_finds_a_flipped_byte_a_lost_file_a_stray_and_another_model(
    volumes, tokenizer, status, tmp_path
):
    store_reconstructions_shard(volumes, tokenizer, SPEC, code="1", status=status)
    assert find_tables(tmp_path / "reconstructions") == [status]
    assert list(verify_table(status, {tokenizer.sha256})) == []
    stale = [finding.problem for finding in verify_table(status, {"b" * 64})]
    assert stale == ["is stale: reconstructed by another tokenizer"] * 2
    first, second = sorted(status.with_suffix("").glob("*.nii.gz"))
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    second.unlink()
    (status.with_suffix("") / "stray.nii.gz").touch()
    found = [f"{finding.volume} {finding.problem}" for finding in verify_table(status)]
    assert re.match(r"a is damaged: .*delete .*0000\.parquet and run again", found[0])
    assert re.match(r"b cannot be read: .*No such file.*0000\.parquet and run again", found[1])
    assert found[2:] == ["stray.nii.gz is in the folder but not in the table"]


def test_files_whose_table_is_lost_are_found(volumes, tokenizer, status, tmp_path):
    store_reconstructions_shard(volumes, tokenizer, SPEC, code="1", status=status)
    status.unlink()
    assert find_tables(tmp_path / "reconstructions") == [status]
    (found,) = verify_table(status)
    assert found.volume == "0000"
    assert "is a folder without a status table; run its rule again" in found.problem


def test_a_full_disk_leaves_no_half_of_a_file(volumes, tokenizer, status, monkeypatch):
    def full(path, volume):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reconstructions, "write_nifti", full)
    with pytest.raises(StoreError, match=r"the disk is full .*; make room or raise the quota"):
        store_reconstructions_shard(volumes, tokenizer, SPEC, code="1", status=status)
    assert not status.exists()
    assert not list(status.with_suffix("").iterdir())
