"""A mask written into a store, beside the volume that it is of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ct3dlib.cohort.store import StoredVolume, write_node


def write_mask_node(
    store: Path,
    node: str,
    mask: NDArray[np.uint8],
    *,
    volume: StoredVolume,
    kind: Literal["regions", "lesions"],
    facts: Mapping[str, Any],
) -> None:
    """Write a mask as a new group of a store; it appears whole or not at all.

    Its attributes say which values of which volume it was made from, and where they are.

    Args:
        store: A shard's store that `create_store` made.
        node: Name of the group.
        mask: Ids on the grid of the volume, D H W.
        volume: What it is of.
        kind: What the ids mean.
        facts: What else its attributes say under `ct3d`.

    Raises:
        StoreError: As `write_node`.
    """
    of = volume.array.attributes
    ct3d = {
        "volume": volume.volume,
        "volume_sha256": volume.sha256,
        "source": list(volume.sources),
        "affine": volume.affine.tolist(),
        "domain": kind,
        "record": of["ct3d"].get("record"),
        **facts,
    }
    write_node(store, node, mask, attributes={"ome": of["ome"], "ct3d": ct3d})
