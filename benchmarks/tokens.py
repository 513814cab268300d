"""Tokens of one volume on disk: the token store beside codes in an .npz, as BTB3D keeps them.

The volume has 241 x 512 x 512 voxels and 31 x 64 x 64 tokens of 18 bits, drawn evenly: no
compressor gains anything. Every file of the store is counted, and both are read back first.

    python benchmarks/tokens.py --json metrics/benchmarks.json
"""

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ingest import publish
from numpy.typing import NDArray
from store import TOKENS, folder_size, record

from ct3dlib.cohort.packing import pack_indices, unpack_indices
from ct3dlib.cohort.store import StoredArray, create_store, write_node
from ct3dlib.config import LFQSpec
from ct3dlib.quantizers import LFQ

QUANTIZER = LFQ(LFQSpec(bits=18))
NODE = f"valid_1_a_1@{0:012x}"
SHA256 = "0" * 64


def store_bytes(indices: NDArray[np.int64], folder: Path) -> int:
    """Return the bytes of a token store with one volume, its provenance included.

    Raises:
        RuntimeError: Other indices are read than were written.
    """
    store = folder / "0000.zarr"
    ct3d = {
        "volume": "valid_1_a_1",
        "volume_sha256": SHA256,
        "tokenizer_sha256": SHA256,
        "shape": list(indices.shape),
        "bits": QUANTIZER.bits,
        "affine": np.diag((1.5, 0.75, 0.75, 1.0)).tolist(),
    }
    create_store(store, "tokens")
    write_node(store, NODE, pack_indices(indices, QUANTIZER.bits), attributes={"ct3d": ct3d})
    read = unpack_indices(StoredArray(store, NODE).read(), QUANTIZER.bits, indices.shape)
    if not np.array_equal(read, indices):
        raise RuntimeError("the store gives other indices than were written")
    return folder_size(store)


def npz_bytes(indices: NDArray[np.int64], folder: Path) -> int:
    """Return the bytes of an .npz with the codes, 1 C d h w, float32.

    Raises:
        RuntimeError: Other codes are read than were written.
    """
    path = folder / "valid_1_a_1.nii_embedded.npz"
    codes = QUANTIZER.indices_to_codes(torch.from_numpy(indices)[None])
    np.savez(path, arr=codes.numpy())
    read = torch.from_numpy(np.load(path)["arr"])
    if not np.array_equal(QUANTIZER.codes_to_indices(read)[0].numpy(), indices):
        raise RuntimeError("the .npz gives other codes than were written")
    return path.stat().st_size


def compare(grid: tuple[int, int, int], folder: Path) -> list[dict[str, Any]]:
    """Return the records of one volume with a grid of tokens."""
    indices = np.random.default_rng(0).integers(0, QUANTIZER.codebook_size, grid)
    ours, peer = store_bytes(indices, folder), npz_bytes(indices, folder)
    count = math.prod(grid)
    return [
        record("tokens/volume_against_npz", ours / 1e3, peer / 1e3, "kB"),
        record("tokens/bits_of_a_token", 8 * ours / count, 8 * peer / count, "bits"),
    ]


def main() -> None:
    """Print the table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=int, nargs=3, default=list(TOKENS), help="tokens, d h w")
    parser.add_argument("--json", type=Path, help="file that the records are joined to")
    args = parser.parse_args()
    depth, height, width = args.grid
    with tempfile.TemporaryDirectory() as folder:
        records = compare((depth, height, width), Path(folder))
    publish(records, args.json)


if __name__ == "__main__":
    main()
