"""NRRD and MetaImage files for tests, by ITK and by hand."""

import numpy as np
import pytest
import SimpleITK

from ct3dlib.errors import VolumeError
from ct3dlib.scan.itk import read_itk

SHAPE = (5, 6, 7)
ARRAY = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
RAW = ARRAY.tobytes()
LANDMARK = (3, 1, 5)  # d, h, w
FORMATS = [f"{ending}-{packed}" for ending in ("nrrd", "nhdr", "mha", "mhd") for packed in (0, 1)]


def turn(x, y, z):
    """Return a rotation by three angles, rad."""
    (cx, cy, cz), (sx, sy, sz) = np.cos((x, y, z)), np.sin((x, y, z))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


DIRECTIONS = {
    "axial": np.eye(3),
    "flipped": np.diag([-1.0, 1.0, -1.0]),
    "sagittal": np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]]),
    "oblique": turn(0.3, -0.2, 0.5),
    "oblique flipped": turn(0.1, 0.4, -0.3) @ np.diag([1.0, -1, 1]),
}


def picture(array=ARRAY, direction=DIRECTIONS["oblique"]):
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-100.0, 55.5, 1234.0))
    image.SetDirection(direction.ravel().tolist())
    return image


def save(path, image, packed=False):
    SimpleITK.WriteImage(image, str(path), packed)
    return path


def nrrd(path, *lines, sizes="7 6 5", data=RAW, encoding="raw", kind="short", endian="little"):
    """Write an NRRD by hand; `lines` are the fields of its geometry."""
    axes = len(sizes.split())
    head = [
        "NRRD0004",
        "# a comment: with a colon",
        f"type: {kind}",
        f"dimension: {axes}",
        f"sizes: {sizes}",
        f"endian: {endian}",
        f"encoding: {encoding}",
        *lines,
        "key:=value",
    ]
    path.write_bytes(("\n".join(head) + "\n\n").encode() + data)
    return path


def meta(path, *lines, sizes="7 6 5", data=RAW, where="LOCAL", kind="MET_SHORT"):
    """Write a MetaImage by hand."""
    head = [
        "ObjectType = Image",
        f"NDims = {len(sizes.split())}",
        "BinaryData = True",
        f"DimSize = {sizes}",
        *lines,
        f"ElementType = {kind}",
        f"ElementDataFile = {where}",
    ]
    path.write_bytes(("\n".join(head) + "\n").encode() + data)
    return path


LPS = (
    "space: left-posterior-superior",
    "space directions: (0.7,0,0) (0,0.8,0) (0,0,2.5)",
    "space origin: (1,2,3)",
)
STEPS = ("ElementSpacing = 0.7 0.8 2.5", "Offset = 1 2 3", "TransformMatrix = 1 0 0 0 1 0 0 0 1")


def refused(path, reason, match, **kwargs):
    """Check that a file is refused with its reason and a message that names it."""
    with pytest.raises(VolumeError, match=match) as caught:
        read_itk(path, **kwargs)
    assert caught.value.reason == reason
    assert path.parent.name in str(caught.value)
