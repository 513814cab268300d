import contextlib
import random

import numpy as np
import pytest

from ct3dlib.errors import VolumeError
from ct3dlib.scan.itk import read_itk
from tests.scan.itk_files import (
    ARRAY,
    LPS,
    RAW,
    STEPS,
    meta,
    nrrd,
    picture,
    refused,
    save,
)


def test_skips_before_the_voxels_are_honoured(tmp_path):
    (tmp_path / "a.raw").write_bytes(b"12345" + RAW)
    for number, path in enumerate(
        (
            nrrd(tmp_path / "a.nrrd", *LPS, "byte skip: 5", data=b"12345" + RAW),
            nrrd(tmp_path / "b.nrrd", *LPS, "byte skip: -1", data=b"12345" + RAW),
            nrrd(tmp_path / "a.nhdr", *LPS, "byteskip: 5", "data file: a.raw", data=b""),
            meta(tmp_path / "a.mhd", *STEPS, "HeaderSize = 5", where="a.raw", data=b""),
            meta(tmp_path / "b.mhd", *STEPS, "HeaderSize = -1", where="a.raw", data=b""),
        )
    ):
        assert np.array_equal(read_itk(path).volume.array, ARRAY), number


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_the_ending_does_not_count(tmp_path, ending):
    path = save(tmp_path / f"a.{ending}", picture()).rename(tmp_path / f"b.{ending.upper()}")
    other = path.rename(tmp_path / "c")
    np.testing.assert_array_equal(read_itk(other).volume.array, ARRAY)


def test_a_header_with_windows_line_ends_is_read(tmp_path):
    path = nrrd(tmp_path / "a.nrrd", *LPS, data=b"")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + RAW)
    np.testing.assert_array_equal(read_itk(path).volume.array, ARRAY)


@pytest.mark.parametrize(
    ("write", "lines", "match"),
    [
        (nrrd, {"encoding": "bzip2"}, "encoding 'bzip2', wanted raw or gzip"),
        (nrrd, {"encoding": "hex"}, "encoding 'hex', wanted raw or gzip"),
        (nrrd, {"kind": "block"}, "voxels of type 'block', wanted one number per voxel"),
        (meta, {"kind": "MET_STRING"}, "voxels of type 'MET_STRING', wanted one number"),
    ],
    ids=["bzip2", "hex", "block", "string"],
)
def test_what_is_not_read_is_said(tmp_path, write, lines, match):
    path = write(tmp_path / "a", *(LPS if write is nrrd else STEPS), **lines)
    with pytest.raises(VolumeError, match=match):
        read_itk(path)


@pytest.mark.parametrize(
    ("write", "line", "match"),
    [
        (nrrd, "line skip: 2", "a line skip, or a byte skip of packed voxels, is not read"),
        (nrrd, "byte skip: many", "byteskip is 'many', no number"),
        (meta, "HeaderSize = -7", "HeaderSize -7; write the header anew"),
        (meta, "BinaryData = False", "voxels as text; write it anew with BinaryData = True"),
    ],
    ids=["line skip", "byte skip", "header size", "text"],
)
def test_odd_ways_to_store_voxels_are_refused(tmp_path, write, line, match):
    path = write(tmp_path / "a", *(LPS if write is nrrd else STEPS), line)
    refused(path, "FILE_UNREADABLE", match)


def test_voxels_in_another_file_must_be_there_and_beside(tmp_path):
    for number, write in enumerate((nrrd, meta)):
        for name, reason, match in (
            ("none.raw", "FILE_MISSING", "lie in none.raw, and there is no such file"),
            ("/etc/passwd", "UNSAFE_PATH", "lie in /etc/passwd, wanted a file beside it"),
            ("../a.raw", "UNSAFE_PATH", "wanted a file beside it; move it there"),
            ("a%03d.raw 1 5 1", "FILE_UNREADABLE", "wanted one file; write them into"),
            ("LIST", "FILE_UNREADABLE", "lie in 'LIST', wanted one file"),
            ("a" * 5000, "FILE_UNREADABLE", "lie in 'aaa.*', wanted one file"),
        ):
            path = tmp_path / f"a{number}"
            if write is nrrd:
                nrrd(path, *LPS, f"data file: {name}", data=b"")
            else:
                meta(path, *STEPS, where=name, data=b"")
            refused(path, reason, match)


@pytest.mark.parametrize(
    ("content", "reason", "match"),
    [
        (b"", "FILE_TRUNCATED", "cut short, it is empty; fetch it again"),
        (b"hello = world\n", "FILE_UNREADABLE", "neither an NRRD nor a MetaImage header"),
        (b"NRRD0004\ntype: short\n", "FILE_TRUNCATED", "no end of the header within 21 bytes"),
        (b"NDims = 3\nDimSize = 7 6 5\n", "FILE_TRUNCATED", "no end of the header"),
    ],
    ids=["empty", "text", "nrrd", "metaimage"],
)
def test_files_that_are_neither_are_refused(tmp_path, content, reason, match):
    (tmp_path / "a.mha").write_bytes(content)
    refused(tmp_path / "a.mha", reason, match)


@pytest.mark.parametrize("seed", range(4))
def test_no_damage_of_a_header_does_more_than_refuse_the_file(tmp_path, seed):
    rng = random.Random(seed)
    whole = [
        nrrd(tmp_path / "a.nrrd", *LPS).read_bytes(),
        meta(tmp_path / "a.mha", *STEPS).read_bytes(),
        save(tmp_path / "b.mha", picture(), packed=True).read_bytes(),
        save(tmp_path / "b.nrrd", picture(), packed=True).read_bytes(),
    ]
    path = tmp_path / "damaged"
    for _ in range(250):
        content = bytearray(rng.choice(whole))
        for _ in range(rng.choice((1, 1, 2, 4))):
            place = rng.randrange(250)
            few = bytes(rng.choice(b"0123456789-. =:()\nae\xff") for _ in range(rng.randrange(6)))
            content[place : place + rng.choice((0, 1, len(few)))] = few
        path.write_bytes(content)
        with contextlib.suppress(VolumeError):
            assert read_itk(path).volume.array.ndim == 3
