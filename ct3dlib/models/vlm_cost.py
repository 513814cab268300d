"""What a scan encoder costs before anyone builds it: tokens, parameters, operations.

Closed forms of `SliceEncoder` and of the projections behind it. Letters: N tokens, C channels,
F channels within feed-forward, P voxels of a patch times windows, R = 20 regions, E channels of
the space shared with texts, H heads.
"""

import math
from collections import Counter
from dataclasses import dataclass

from ct3dlib.config import SliceEncoderSpec, VlmModelSpec
from ct3dlib.config.base import Shape
from ct3dlib.config.encoder import VisionTransformerSpec
from ct3dlib.models.slice_encoder import grid_for
from ct3dlib.nn.occupancy import NUM_REGIONS
from ct3dlib.nn.slice_attention import NUM_KNOTS, Reach, reaches_of


@dataclass(frozen=True)
class ScanCost:
    """What encoding one volume takes.

    Args:
        grid: Tokens along z, y, x.
        parameters: Numbers that are learnt, for each part.
        flops: Operations of a forward pass, for each part; a multiplication and its addition are
            two. Norms, activations, softmax and biases are left out, as is usual.
    """

    grid: Shape
    parameters: dict[str, int]
    flops: dict[str, int]

    @property
    def tokens(self) -> int:
        """Tokens of a volume."""
        return math.prod(self.grid)

    @property
    def all_parameters(self) -> int:
        """Parameters of all parts."""
        return sum(self.parameters.values())

    @property
    def all_flops(self) -> int:
        """Operations of all parts."""
        return sum(self.flops.values())


def scan_cost(spec: VlmModelSpec, shape: Shape) -> ScanCost:
    """Return what encoding one volume takes, up to its vectors in the space shared with texts.

    Args:
        spec: Of the model; its text encoder does not count.
        shape: Voxels of a volume.
    """
    vision = spec.vision
    grid = grid_for(shape, vision.patch_size)
    parameters, flops = Counter[str](), Counter[str]()
    _count_embedding_(vision, grid, parameters=parameters, flops=flops)
    for reaches in reaches_of(vision):
        _count_block_(vision.encoder, reaches, grid, parameters=parameters, flops=flops)
    _count_pool_(vision.encoder, math.prod(grid), parameters=parameters, flops=flops)
    # A matrix for volumes, one for regions, neither with a bias.
    matrix = vision.encoder.hidden_size * spec.embedding_size
    parameters["projections"] = 2 * matrix
    flops["projections"] = 2 * (1 + NUM_REGIONS) * matrix
    return ScanCost(grid, dict(parameters), dict(flops))


def _count_embedding_(
    spec: SliceEncoderSpec, grid: Shape, *, parameters: Counter[str], flops: Counter[str]
) -> None:
    """Add patches, positions and regions as the first block takes them."""
    width, tokens = spec.encoder.hidden_size, math.prod(grid)
    voxels = len(spec.windows) * math.prod(spec.patch_size)
    parameters["patches"] = (voxels + 1) * width
    flops["patches"] = 2 * tokens * voxels * width
    parameters["positions"] = (grid[0] + grid[1] * grid[2]) * width
    if spec.region_input:
        parameters["regions"] = NUM_REGIONS * width
        flops["regions"] = 2 * tokens * NUM_REGIONS * width


def _count_block_(
    encoder: VisionTransformerSpec,
    reaches: tuple[Reach, ...],
    grid: Shape,
    *,
    parameters: Counter[str],
    flops: Counter[str],
) -> None:
    """Add one block: linear layers cost C (4 C + 2 F) a token, attention 2 C a pair of tokens."""
    width, tokens = encoder.hidden_size, math.prod(grid)
    inner = round(encoder.mlp_ratio * width)
    row = {"plane": grid[1] * grid[2], "z": grid[0], "joint": tokens}
    parameters["feed_forward"] += 2 * width * inner + inner + 3 * width
    flops["linear"] += 2 * tokens * 2 * width * inner
    for reach in reaches:
        parameters["attention"] += 4 * width**2 + 6 * width
        parameters["distances"] += NUM_KNOTS * encoder.num_heads if reach == "z" else 0
        flops["linear"] += 2 * tokens * 4 * width**2
        flops[f"attention_{reach}"] += 2 * tokens * row[reach] * 2 * width


def _count_pool_(
    encoder: VisionTransformerSpec,
    tokens: int,
    *,
    parameters: Counter[str],
    flops: Counter[str],
) -> None:
    """Add the last norm and the queries of the volume and of its regions."""
    width, queries = encoder.hidden_size, 1 + NUM_REGIONS
    parameters["pool"] = 2 * width + 3 * width**2 + 3 * width + (queries + NUM_REGIONS) * width
    flops["pool"] = 2 * tokens * 2 * width**2 + 4 * queries * tokens * width
    flops["pool"] += 2 * queries * width**2
