"""Scans of noise with one bright box, whose three sides differ, somewhere."""

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ct3dlib.models.segmenter import Segmenter

SHAPE = (13, 16, 24)
SIDES = (4, 5, 7)
WINDOW = (-1000.0, 1000.0)
TINY = {
    "encoder": {"hidden_size": 24, "num_layers": 4, "num_heads": 2},
    "patch_size": [13, 8, 8],
}


def cube(rng: np.random.Generator, shape=SHAPE, sides=SIDES):
    """Return HU and where the box is."""
    hu = rng.normal(-700, 60, shape).astype(np.int16)
    start = [int(rng.integers(0, n - side + 1)) for n, side in zip(shape, sides, strict=True)]
    inside = np.zeros(shape, np.uint8)
    inside[tuple(slice(a, a + n) for a, n in zip(start, sides, strict=True))] = 1
    hu[inside > 0] += 1200
    return hu, inside


def bright_logits(
    model: Segmenter, volumes: Float[Tensor, "B 1 D H W"]
) -> Float[Tensor, "B K D H W"]:
    """Return logits of the last class that grow with brightness, 0 of the others: a forward pass
    that knows without being trained."""
    middle = sum(model.spec.encoder.range) / 2
    logits = volumes.new_zeros(len(volumes), model.spec.num_classes, *volumes.shape[2:])
    logits[:, -1:] = 20 * (volumes - middle)
    return logits
