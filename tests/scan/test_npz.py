import hashlib
import tracemalloc
import zipfile

import numpy as np
import pytest

from ct3dlib.errors import VolumeError
from ct3dlib.scan.npz import read_npz

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 5)).astype(np.uint8)
LABELS = np.arange(6, dtype=np.uint8)[:, None]


@pytest.fixture(params=[np.savez, np.savez_compressed], ids=["stored", "deflated"])
def archive(request, tmp_path):
    path = tmp_path / "organmnist3d.npz"
    request.param(path, train_images=IMAGES, train_labels=LABELS, val_images=IMAGES[:2])
    return path


def refused(path, member, item, reason, match):
    with pytest.raises(VolumeError, match=match) as caught:
        read_npz(path, member, item)
    assert caught.value.reason == reason
    assert path.name in str(caught.value)


@pytest.mark.parametrize("item", range(6))
def test_one_item_is_read_with_its_label(archive, item):
    reading = read_npz(archive, "train_images", item)
    volume = reading.volume
    np.testing.assert_array_equal(volume.array, IMAGES[item])
    assert (volume.array.dtype, volume.domain, volume.spacing) == (np.uint8, "uint8", (1, 1, 1))
    assert (volume.affine @ (1, 2, 3, 1)).tolist() == [3, 2, 1, 1]
    assert (reading.slope, reading.intercept, reading.hu) == (None, None, False)
    assert reading.facts == {
        "format": "npz",
        "member": "train_images",
        "item": item,
        "label": [item],
        "assumed_orientation": True,
        "assumed_spacing": True,
    }
    want = hashlib.sha256(IMAGES[item].tobytes() + bytes([item])).hexdigest()
    assert reading.sha256 == want
    assert reading.source.endswith(f"organmnist3d.npz[train_images][{item}]")


def test_an_array_without_labels_is_read_too(archive):
    reading = read_npz(archive, "val_images", 1)
    assert "label" not in reading.facts
    assert reading.sha256 == hashlib.sha256(IMAGES[1].tobytes()).hexdigest()


def test_items_and_arrays_that_are_not_there_are_named(archive):
    refused(archive, "train_images", 6, "ITEM_MISSING", r"shape \(6, 3, 4, 5\) and no item 6")
    refused(archive, "train_images", -1, "ITEM_MISSING", "no item -1; build the catalog again")
    names = "train_images, train_labels, val_images"
    refused(archive, "test_images", 0, "ITEM_MISSING", f"no array test_images, it has {names}")


def test_a_damaged_byte_anywhere_is_found_at_the_first_reading(tmp_path):
    for save in (np.savez, np.savez_compressed):
        path = tmp_path / f"{save.__name__}.npz"
        save(path, train_images=IMAGES)
        with zipfile.ZipFile(path) as whole:
            info = whole.infolist()[0]
        data = bytearray(path.read_bytes())
        data[info.header_offset + info.compress_size] ^= 0x5A  # behind item 0, in the last ones
        path.write_bytes(data)
        refused(path, "train_images", 0, "FILE_UNREADABLE", "train_images is damaged .*fetch it")


def test_a_file_cut_short_and_no_archive_have_their_reason(archive, tmp_path):
    archive.write_bytes(archive.read_bytes()[:-100])
    refused(archive, "train_images", 0, "FILE_TRUNCATED", "its table of contents is not there")
    archive.write_bytes(b"")
    refused(archive, "train_images", 0, "FILE_TRUNCATED", "the file is cut short")
    archive.write_bytes(b"no archive")
    refused(archive, "train_images", 0, "FILE_UNREADABLE", "not a NumPy archive")
    refused(tmp_path / "none.npz", "train_images", 0, "FILE_MISSING", "no such file")


@pytest.mark.parametrize(
    ("images", "reason", "match"),
    [
        (IMAGES[..., None], "NOT_3D", r"items with 4 axes \(3, 4, 5, 1\), wanted 3"),
        (IMAGES[0], "NOT_3D", r"items with 2 axes \(4, 5\)"),
        (IMAGES.astype(np.int16), "FILE_UNREADABLE", "values of type int16, wanted uint8"),
        (np.asfortranarray(IMAGES), "FILE_UNREADABLE", "Fortran order True, wanted numbers in C"),
        (np.array([None, {}]), "FILE_UNREADABLE", "holds object"),
        (np.zeros((2, 0, 3, 4), np.uint8), "FILE_UNREADABLE", "states shape"),
    ],
    ids=["5 axes", "3 axes", "int16", "fortran", "objects", "empty"],
)
def test_arrays_that_are_no_volumes_are_refused(tmp_path, images, reason, match):
    np.savez(tmp_path / "a.npz", train_images=images)
    refused(tmp_path / "a.npz", "train_images", 0, reason, match)


def test_a_member_shorter_than_its_header_states_is_refused(tmp_path):
    np.save(tmp_path / "train_images.npy", IMAGES)
    short = (tmp_path / "train_images.npy").read_bytes()[:-70]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("train_images.npy", short)
        archive.writestr("val_images.npy", b"no array")
    assert read_npz(tmp_path / "a.npz", "train_images", 0).volume.shape == (3, 4, 5)
    refused(tmp_path / "a.npz", "train_images", 5, "FILE_TRUNCATED", "ends within item 5")
    refused(tmp_path / "a.npz", "val_images", 0, "FILE_UNREADABLE", "val_images is damaged")


def test_memory_stays_small_while_an_item_is_read(tmp_path):
    many = np.zeros((400, 32, 32, 32), np.uint8)
    np.savez_compressed(tmp_path / "a.npz", train_images=many)
    tracemalloc.start()
    read_npz(tmp_path / "a.npz", "train_images", 399)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < many.nbytes / 2
