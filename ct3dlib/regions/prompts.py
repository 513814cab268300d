"""What MedSAM2 is shown of a region that a provider found: boxes or masks on key slices."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage

from ct3dlib.regions.tracker import Prompt

LARGE_PART = 0.1  # of a region's volume: smaller parts get no prompt of their own
LARGE_SPOT = 0.2  # of a part's area on its key slice
MOST_PARTS = 4
COARSE = 128  # parts are told apart on slices of about this many pixels a side
_FACES = ndimage.generate_binary_structure(3, 1)
_AROUND = np.ones((3, 3), bool)


def prompts_of(
    mask: NDArray[np.bool_], *, size: int, kind: Literal["box", "mask"], margin: float, reach: int
) -> list[Prompt]:
    """Return the prompts of a region: one for each of its large parts, on the largest slice.

    A part that is several spots on that slice, as the aorta beside its arch, gets one for each.

    Args:
        mask: The region, D H W.
        size: Rows and columns of the pictures that the network sees.
        kind: Box around the spot, or the spot itself.
        margin: Added to a box on each side, of its size.
        reach: Slices that a track may go beyond the part.
    """
    steps = [max(1, n // COARSE) for n in mask.shape[1:]]
    coarse = mask[:, :: steps[0], :: steps[1]]
    prompts = []
    for part in _parts(coarse, LARGE_PART, _FACES):
        areas = part.sum(axis=(1, 2))
        key, slices = int(areas.argmax()), np.flatnonzero(areas)
        for spot in _parts(part[key], LARGE_SPOT, _AROUND):
            # A cell says what its corner is: what it does not show lies within one cell.
            wide = np.asarray(ndimage.binary_dilation(spot, _AROUND), bool)
            fine = wide.repeat(steps[0], axis=0).repeat(steps[1], axis=1)
            plane = mask[key] & fine[: mask.shape[1], : mask.shape[2]]
            prompts.append(
                Prompt(
                    key=key,
                    start=max(0, int(slices[0]) - reach),
                    stop=min(len(mask), int(slices[-1]) + 1 + reach),
                    box=box_around(plane, size, margin) if kind == "box" else None,
                    mask=_shrink(plane, size) if kind == "mask" else None,
                )
            )
    return prompts


def _parts(
    mask: NDArray[np.bool_], share: float, neighbours: NDArray[np.generic]
) -> list[NDArray[np.bool_]]:
    """Return connected parts that make up at least a share of a mask, largest first."""
    numbers = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, neighbours, output=numbers)
    sizes = np.bincount(numbers.ravel())
    sizes[0] = 0
    large = [i for i in np.argsort(-sizes, kind="stable") if sizes[i] >= share * sizes.sum() > 0]
    return [numbers == i for i in large[:MOST_PARTS]]


def box_around(
    plane: NDArray[np.bool_], size: int, margin: float
) -> tuple[float, float, float, float]:
    """Return the box (x0, y0, x1, y1) of a mask H W in pixels of the network's pictures."""
    edges = []
    for axis, n in ((0, plane.shape[1]), (1, plane.shape[0])):
        places = np.flatnonzero(plane.any(axis=axis))
        low, high = float(places[0]), float(places[-1] + 1)
        wider = margin * (high - low)
        edges.append(to_pictures(low - wider, high + wider, n, size))
    (x0, x1), (y0, y1) = edges
    return x0, y0, x1, y1


def to_pictures(low: float, high: float, n: int, size: int) -> tuple[float, float]:
    """Return a span of n voxels, edge to edge, in pixels of the network's pictures."""
    return max(0.0, float(low)) * size / n, min(float(n), float(high)) * size / n


def _shrink(plane: NDArray[np.bool_], size: int) -> torch.Tensor:
    """Return a mask H W on the network's pictures: the nearest pixels, or any if they miss it."""
    rows, columns = (((np.arange(size) + 0.5) * n / size).astype(np.intp) for n in plane.shape)
    nearest = torch.from_numpy(plane[np.ix_(rows, columns)])
    if nearest.any():
        return nearest
    every = torch.from_numpy(plane).float()[None]
    return F.adaptive_max_pool2d(every, (size, size))[0].bool()


def slices_of(prompts: Sequence[Prompt]) -> list[int]:
    """Return every slice that some prompt's track may reach, rising."""
    return sorted({z for prompt in prompts for z in range(prompt.start, prompt.stop)})
