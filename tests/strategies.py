"""What property tests draw: grids of any orientation, and the same examples in every run."""

import itertools
from collections.abc import Callable

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ct3dlib.scan.volume import Volume

AIR, BRIGHT = -1000, 2000
FLIPS_AND_AXES = list(
    itertools.product(itertools.product((1, -1), repeat=3), itertools.permutations(range(3)))
)

Shape = tuple[int, int, int]


def steady(count: int) -> Callable[..., object]:
    """Return settings that draw the same examples in every run."""
    slow = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=slow,
    )


def shapes(low: int, high: int) -> st.SearchStrategy[Shape]:
    """Draw the three lengths of a grid."""
    return st.tuples(*[st.integers(low, high)] * 3)


def turned(degrees: tuple[float, float, float]) -> NDArray[np.float64]:
    """Return the rotation by three angles about x, y and z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[[one, two], [one, two]] = np.cos(angle)
        step[one, two], step[two, one] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ step
    return matrix


@st.composite
def affines(draw: st.DrawFn, *, tilted: bool) -> NDArray[np.float64]:
    """Draw an affine, D H W to LPS mm; where `tilted`, D may lean towards H and W."""
    signs, axes = draw(st.sampled_from(FLIPS_AND_AXES))
    angles = draw(st.tuples(*[st.floats(-20, 20)] * 3))
    directions = (turned(angles)[:, ::-1] * np.array(signs))[:, axes]
    if tilted:
        directions[:, 0] += directions[:, 1:] @ draw(st.tuples(*[st.floats(-0.35, 0.35)] * 2))
    affine = np.eye(4)
    affine[:3, :3] = directions * draw(st.tuples(*[st.floats(0.7, 2.5)] * 3))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    return affine


@st.composite
def bright_voxels(draw: st.DrawFn, *, tilted: bool) -> tuple[Volume, Shape]:
    """Draw a volume of air with one bright voxel off its faces, and that voxel."""
    shape = draw(shapes(6, 9))
    voxel = draw(st.tuples(*(st.integers(2, n - 3) for n in shape)))
    array = np.full(shape, AIR, np.int16)
    array[voxel] = BRIGHT
    return Volume(array, draw(affines(tilted=tilted))), voxel
