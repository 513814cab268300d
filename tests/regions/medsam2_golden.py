"""Random weights with MedSAM2's names, and the slices and prompts of tests/golden/medsam2."""

import json
import math
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ct3dlib.regions.medsam2_network import Network, make_network
from ct3dlib.regions.tracker import Features, Prompt, encode

FOLDER = Path(__file__).parents[1] / "golden/medsam2"
FILE = Path("weights.pt")
SIZE = 128
NUM_SLICES = 10


@cache
def golden() -> dict[str, Tensor]:
    """Return what SAM 2's own code found."""
    with np.load(FOLDER / "golden128.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@cache
def native_weights() -> dict[str, Tensor]:
    """Return weights, each of which is random by its name."""
    shapes = json.loads((FOLDER / "native_keys.json").read_text())
    weights = {name: _random(name, shape) for name, shape in shapes.items()}
    bias = "sam_mask_decoder.pred_obj_score_head.layers.2.bias"
    weights[bias] = weights[bias] - golden()["bias"]  # so that objects come and go
    return weights


def _random(name: str, shape: list[int]) -> Tensor:
    normal = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    values = torch.from_numpy(normal.astype(np.float32))
    if len(shape) >= 2 and values.numel() > 4096:
        return values * math.prod(shape[1:]) ** -0.5
    if name.endswith("gamma"):
        return 0.2 + 0.05 * values
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.1 * values
    return (0.05 if len(shape) == 1 else 0.3) * values


@cache
def network() -> Network:
    """Return the network with these weights."""
    return make_network(native_weights(), path=FILE, size=SIZE)


def pictures() -> Tensor:
    """Return ten slices of waves and a bright tube, uint8."""
    z, y, x = np.mgrid[:NUM_SLICES, :SIZE, :SIZE]
    tube = (x - 64 - z) ** 2 + (y - 95) ** 2 < 90
    grey = 120 + 60 * np.sin(x / 9 + z / 5) * np.cos(y / 11) + 50 * tube
    return torch.from_numpy(grey.clip(0, 255).astype(np.uint8))


@cache
def features() -> Features:
    """Return the features of all slices."""
    return encode(network(), pictures(), range(NUM_SLICES), batch=4, precision="fp32")


def prompts(start: int = 0, stop: int = NUM_SLICES) -> list[Prompt]:
    """Return two boxes and a mask on slices 4, 7 and 5."""
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[40:71, 23:52] = True
    return [
        Prompt(4, start, stop, box=(22.0, 32.0, 58.0, 88.0)),
        Prompt(7, start, stop, box=(55.0, 86.0, 75.0, 104.0)),
        Prompt(5, start, stop, mask=mask),
    ]
