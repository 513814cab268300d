"""The order in which a model of a recipe sees the axes of a stored volume.

Stores hold D H W. "dwh" models see D W H, as BTB3D does: its H is the first axis of a NIfTI file,
which in an LPS file runs right to left, as our W. Nothing is flipped. Each order is its own
inverse.
"""

from typing import Any

from numpy.typing import NDArray

from ct3dlib.config import Axes

Triple = tuple[int, int, int]


def to_model(array: NDArray[Any], axes: Axes) -> NDArray[Any]:
    """Return a stored volume, its last three axes D H W, in the order that a model sees."""
    match axes:
        case "dhw":
            return array
        case "dwh":
            return array.swapaxes(-2, -1)


def from_model(array: NDArray[Any], axes: Axes) -> NDArray[Any]:
    """Return what a model made, its last three axes those it sees, as D H W."""
    return to_model(array, axes)


def swapped(triple: Triple, axes: Axes) -> Triple:
    """Return a (D, H, W) shape or place in a model's order, or a model's in that of the store."""
    depth, height, width = triple
    return (depth, width, height) if axes == "dwh" else triple
