"""Hashes of arrays and attributes, worked out by hand."""

import hashlib

import numpy as np

from ct3dlib.cohort.hashes import array_sha256, attributes_sha256


def test_an_array_is_its_type_shape_and_values():
    array = np.array([[1, 2, 3]], np.int16)
    wanted = hashlib.sha256(b"<i2[1, 3]" + bytes([1, 0, 2, 0, 3, 0])).hexdigest()
    assert array_sha256(array) == wanted
    assert array_sha256(np.asfortranarray(array)[:, ::-1][:, ::-1]) == wanted
    others = array.T, array.astype(np.uint16), array + np.int16(1)
    assert wanted not in {array_sha256(other) for other in others}


def test_attributes_are_hashed_as_the_file_holds_them_but_for_the_hash():
    wanted = hashlib.sha256(b'{"ct3d": {"a": [1, 2.5]}, "ome": {}}').hexdigest()
    assert attributes_sha256({"ome": {}, "ct3d": {"a": (1, 2.5)}}) == wanted
    assert (
        attributes_sha256({"ct3d": {"attributes_sha256": "x", "a": [1, 2.5]}, "ome": {}}) == wanted
    )
    assert attributes_sha256({"ct3d": {"a": [1, 2.6]}, "ome": {}}) != wanted
    assert attributes_sha256({"ct3d": {"a": [1, 2.5]}, "ome": {"b": 1}}) != wanted
