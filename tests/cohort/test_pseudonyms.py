"""Keyed names and the key that they depend on."""

import hashlib
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ct3dlib.cohort.pseudonyms import UNKEYED, Pseudonyms
from ct3dlib.errors import StoreError


def test_names_are_those_of_rfc_4231(tmp_path: Path) -> None:
    # HMAC-SHA256 by its definition, RFC 2104: H(key ^ opad, H(key ^ ipad, text)).
    names = Pseudonyms(tmp_path / "key")
    name = names.of("patient", "LIDC-7")
    key = bytes.fromhex((tmp_path / "key").read_text()).ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in key) + b"patient/LIDC-7").digest()
    assert name == f"p{hashlib.sha256(bytes(b ^ 0x5C for b in key) + inner).hexdigest()[:12]}"


def test_a_name_is_kept_and_is_another_one_under_another_key(tmp_path: Path) -> None:
    name = Pseudonyms(tmp_path / "a/key").of("patient", "LIDC-7")
    assert Pseudonyms(tmp_path / "a/key").of("patient", "LIDC-7") == name
    assert Pseudonyms(tmp_path / "a/key").of("study", "LIDC-7")[1:] != name[1:]
    assert Pseudonyms(tmp_path / "b/key").of("patient", "LIDC-7") != name
    assert UNKEYED.of("patient", "LIDC-7") != name


def test_only_the_owner_may_read_the_key(tmp_path: Path) -> None:
    Pseudonyms(tmp_path / "private/key").of("patient", "LIDC-7")
    assert stat.S_IMODE((tmp_path / "private/key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o700
    assert [path.name for path in (tmp_path / "private").iterdir()] == ["key"]


def test_no_key_is_made_before_a_name_is(tmp_path: Path) -> None:
    assert Pseudonyms(tmp_path / "key").fingerprint is None
    assert Pseudonyms(tmp_path / "key", "123456789abc").fingerprint == "123456789abc"
    assert not (tmp_path / "key").exists()


def test_a_fingerprint_does_not_tell_the_key(tmp_path: Path) -> None:
    names = Pseudonyms(tmp_path / "key")
    names.of("patient", "LIDC-7")
    assert names.fingerprint is not None
    assert names.fingerprint not in (tmp_path / "key").read_text()
    assert names.fingerprint != names.of("patient", "")[1:]


@pytest.mark.parametrize("text", [None, "", "zz", "ab" * 32])
def test_a_lost_or_other_key_raises(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "key"
    names = Pseudonyms(path)
    names.of("patient", "LIDC-7")
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(StoreError, match=r"key: .*bring the key back.*or delete it and"):
        Pseudonyms(path, names.fingerprint).of("patient", "LIDC-7")


def test_without_a_key_nothing_is_hidden() -> None:
    with pytest.raises(ValueError, match="without a key hide nothing"):
        _ = UNKEYED.folder


def test_processes_that_make_the_key_at_once_agree(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def name(number: int) -> str:
        del number
        barrier.wait()
        return Pseudonyms(tmp_path / "key").of("patient", "LIDC-7")

    with ThreadPoolExecutor(8) as pool:
        names = set(pool.map(name, range(8)))
    assert names == {Pseudonyms(tmp_path / "key").of("patient", "LIDC-7")}
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
