import gzip
import hashlib
import zlib

import numpy as np
import pytest
import SimpleITK

from ct3dlib.errors import VolumeError
from ct3dlib.scan.intensity import to_hu
from ct3dlib.scan.itk import read_itk
from ct3dlib.scan.itk_header import read_text_header
from ct3dlib.scan.nifti import read_nifti
from tests.scan.itk_files import (
    ARRAY,
    FORMATS,
    LPS,
    RAW,
    SHAPE,
    STEPS,
    meta,
    nrrd,
    picture,
    refused,
    save,
)


@pytest.mark.parametrize("name", FORMATS)
def test_values_and_facts_of_every_format(tmp_path, name):
    ending, packed = name.split("-")
    path = save(tmp_path / f"a.{ending}", picture(), packed == "1")
    reading = read_itk(path)
    np.testing.assert_array_equal(reading.volume.array, ARRAY)
    assert reading.volume.array.dtype == np.int16
    assert (reading.slope, reading.intercept, reading.hu) == (None, None, None)
    assert reading.source == str(path)
    detached = ending in ("nhdr", "mhd")
    assert reading.facts == {
        "format": "nrrd" if ending in ("nrrd", "nhdr") else "metaimage",
        "stored_dtype": "int16",
        "files": 2 if detached else 1,
    }
    digests = sorted(hashlib.sha256(f.read_bytes()).hexdigest() for f in tmp_path.iterdir())
    want = hashlib.sha256("".join(digests).encode()).hexdigest() if detached else digests[0]
    assert reading.sha256 == want


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
@pytest.mark.parametrize("code", ["u1", "i1", "u2", "i2", "u4", "i4", "i8", "f4", "f8"])
def test_every_voxel_type_reads_as_itk_reads_it(tmp_path, ending, code):
    array = (np.abs(ARRAY) // 8).astype(code)
    path = save(tmp_path / f"a.{ending}", picture(array), packed=True)
    got = read_itk(path).volume.array
    assert got.dtype == (np.float32 if code.startswith("f") else np.int16)
    np.testing.assert_array_equal(got, SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))))


def test_integers_beyond_int16_become_float32(tmp_path):
    path = save(tmp_path / "a.mha", picture(np.full(SHAPE, 40000, np.uint16)))
    assert read_itk(path).volume.array.dtype == np.float32
    assert read_itk(path).volume.array.max() == 40000


def test_big_endian_voxels_are_swapped(tmp_path):
    swapped = ARRAY.astype(">i2").tobytes()
    for path in (
        nrrd(tmp_path / "a.nrrd", *LPS, data=swapped, endian="big"),
        meta(tmp_path / "a.mha", *STEPS, "BinaryDataByteOrderMSB = True", data=swapped),
        meta(tmp_path / "b.mha", *STEPS, "ElementByteOrderMSB = True", data=swapped),
    ):
        got = read_itk(path).volume.array
        np.testing.assert_array_equal(got, ARRAY)
        assert got.dtype == np.dtype(np.int16)


@pytest.mark.parametrize("cut", [1, 8, 200])
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_was_cut_short_is_refused(tmp_path, name, cut):
    ending, packed = name.split("-")
    path = save(tmp_path / f"a.{ending}", picture(), packed == "1")
    data = read_text_header(path).data
    data.write_bytes(data.read_bytes()[:-cut])
    refused(path, "FILE_TRUNCATED", "the file is cut short, .*; fetch it again")


@pytest.mark.parametrize("ending", ["nrrd", "nhdr", "mha", "mhd"])
def test_damaged_bytes_never_pass(tmp_path, ending):
    path = save(tmp_path / f"a.{ending}", picture(), True)
    text = read_text_header(path)
    whole = text.data.read_bytes()
    for place in range(text.offset + 10, len(whole), 7):  # gzip's own header is 10 bytes
        broken = bytearray(whole)
        broken[place] ^= 0x5A
        text.data.write_bytes(broken)
        with pytest.raises(VolumeError) as caught:
            read_itk(path)
        assert caught.value.reason in ("FILE_UNREADABLE", "FILE_TRUNCATED")


def test_more_voxels_than_stated_are_refused(tmp_path):
    packed = zlib.compress(RAW + b"\0\0")
    path = meta(tmp_path / "a.mha", *STEPS, "CompressedData = True", data=packed)
    refused(path, "FILE_UNREADABLE", "holds more than the 420 bytes of voxels")


def test_a_stream_of_two_members_is_one_volume(tmp_path):
    packed = gzip.compress(RAW[:100]) + gzip.compress(RAW[100:])
    path = nrrd(tmp_path / "a.nrrd", *LPS, encoding="gzip", data=packed)
    np.testing.assert_array_equal(read_itk(path).volume.array, ARRAY)


def test_a_stated_size_is_refused_before_memory_is_asked_for(tmp_path):
    path = meta(tmp_path / "a.mha", *STEPS, sizes="90000 90000 90000")
    refused(path, "TOO_LARGE", "729000000000000 voxels")
    path = meta(tmp_path / "b.mha", *STEPS, "CompressedData = True", sizes="1500 1500 1500")
    refused(path, "FILE_TRUNCATED", "cannot hold the 6750000000 of voxels")
    refused(meta(tmp_path / "c.mha", *STEPS, sizes="0 6 5"), "FILE_UNREADABLE", "states shape")


def test_a_missing_file_and_nan_voxels_are_refused(tmp_path):
    refused(tmp_path / "none.mha", "FILE_MISSING", "no such file")
    holes = ARRAY.astype(np.float32)
    holes[1, 2, 3] = np.nan
    path = save(tmp_path / "a.nrrd", picture(holes))
    refused(path, "NAN_VOXELS", "1 voxels are not finite; mend or drop it")


@pytest.mark.real
@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_a_real_ct_is_the_same_as_from_nifti(real_data, tmp_path, ending):
    source = real_data / "totalsegmentator/example_ct.nii.gz"
    want = read_nifti(source)
    path = save(tmp_path / f"a.{ending}", SimpleITK.ReadImage(str(source)), packed=True)
    got = read_itk(path)
    np.testing.assert_array_equal(got.volume.array, want.volume.array)
    np.testing.assert_allclose(got.volume.affine, want.volume.affine, atol=1e-3)
    assert to_hu(got, slope=None, intercept=None, state="auto").state == "hu"
