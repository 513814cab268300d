"""A chest of ellipsoids and tubes with its truth, to test region backends on."""

import numpy as np
from numpy.typing import NDArray

from ct3dlib.scan.volume import Volume

EXTENT = (330.0, 260.0, 350.0)  # mm


def chest(
    spacing: tuple[float, float, float], *, seed: int = 0
) -> tuple[Volume, NDArray[np.uint8]]:
    """Return a volume in HU, tilted by 5 degrees in the scanner, and region ids of 10 organs."""
    shape = tuple(round(e / s) for e, s in zip(EXTENT, spacing, strict=True))
    z, y, x = np.meshgrid(
        *((np.arange(n) + 0.5) * s for n, s in zip(shape, spacing, strict=True)),
        indexing="ij",
        sparse=True,
    )
    y, x = y - EXTENT[1] / 2, x - EXTENT[2] / 2  # mm from the middle; x grows to the left
    hu = np.full(shape, -1000.0)
    truth = np.zeros(shape, np.uint8)

    def put(where: NDArray[np.bool_], value: float, region: int = 0) -> None:
        hu[np.broadcast_to(where, shape)] = value
        truth[np.broadcast_to(where, shape)] = region

    def ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]):
        terms = (((a - c) / r) ** 2 for a, c, r in zip((z, y, x), centre, radii, strict=True))
        return sum(terms) < 1

    put((y / 112) ** 2 + (x / 160) ** 2 < 1, -100)
    put((y / 100) ** 2 + (x / 146) ** 2 < 1, 50)
    put((np.abs(y - 122) < 4) & (np.abs(x) < 150), 60)  # the table
    for centre in np.arange(20.0, 310.0, 24.0):
        rib = np.abs((y / 92) ** 2 + (x / 134) ** 2 - 1) < 0.09
        put(rib & (np.abs(z - centre - 0.2 * y) < 5) & (np.abs(x) > 12), 420, 20)
    dome = 110 - 0.004 * (x + 70) ** 2 - 0.006 * (y + 10) ** 2
    inside = (y / 84) ** 2 + (x / 124) ** 2 < np.clip((325 - z) / 110, 0, 1)
    put(inside & (np.abs(x) > 22) & (z > np.broadcast_to(dome, shape)) & (x < 0), -860, 5)
    put(inside & (np.abs(x) > 22) & (z > np.broadcast_to(dome - 12, shape)) & (x > 0), -860, 2)
    put(inside & (z < dome - 5) & (x < 40 - 0.2 * y), 62, 15)
    put(ellipsoid((150, -22, 25), (56, 46, 62)), 42, 8)
    put((np.hypot(y - 30, x - 30) < 12) & (z < 240), 42, 10)
    put((np.hypot(y - 58, x) < 19) & (np.abs(x) < 30), 230, 19)
    put((np.abs(x) < 6) & (y > 76) & (y < 94), 260, 19)
    put((np.hypot(y - 4, x) < 9) & (z > 218), -990, 6)
    for side in (-1, 1):
        put((np.hypot(y - 4, x - side * (226 - z)) < 7) & (z < 226) & (z > 196), -990, 6)
    hu += np.random.default_rng(seed).normal(0, 15, shape)
    tilt = np.deg2rad(5)
    affine = np.eye(4)
    affine[:3, 0] = np.array([0, -np.sin(tilt), np.cos(tilt)]) * spacing[0]
    affine[:3, 1] = np.array([0, np.cos(tilt), np.sin(tilt)]) * spacing[1]
    affine[:3, 2] = np.array([1, 0, 0]) * spacing[2]
    affine[:3, 3] = (-170, -120, 60)
    return Volume(np.clip(hu, -1024, 3071).astype(np.int16), affine), truth
