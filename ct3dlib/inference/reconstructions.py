"""A shard of volumes as a model reconstructs them: NIfTI files on the grids of their scans."""

import logging
from pathlib import Path

import pandas as pd

from ct3dlib.cohort.attempts import Attempts
from ct3dlib.cohort.durable import publish, room_for
from ct3dlib.cohort.stage import Row, sole_writer
from ct3dlib.cohort.store import StoredVolume, write_table
from ct3dlib.config import TokensSpec
from ct3dlib.inference.decode import to_volume
from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.inference.reconstruct import reconstruct
from ct3dlib.inference.shards import PROVENANCE, VolumeShard
from ct3dlib.progress import progress
from ct3dlib.scan.nifti import write_nifti
from ct3dlib.scan.reading import file_sha256
from ct3dlib.scan.volume import Volume

logger = logging.getLogger(__name__)

COLUMNS = {
    "volume": "str",
    "status": "str",
    "stage": "str",
    "reason": "str",
    "message": "str",
    "file": "str",
    "sha256": "str",
    "shape": "object",
    **PROVENANCE,
}


def store_reconstructions_shard(
    volumes: Path, tokenizer: Tokenizer, spec: TokensSpec, *, code: str, status: Path
) -> pd.DataFrame:
    """Write every stored volume of a shard as the model gives it back; finished files are kept.

    Args:
        volumes: Status table of the volume shard.
        tokenizer: A trained model of any kind, on the device to use.
        spec: How windows of a causal model are batched.
        code: Fingerprint of the code that does it.
        status: Where the status table goes, with the name of each file in the folder of the same
            name beside it. Files there that it does not name are removed. Each
            file has its hash beside it, as `sha256sum -c` reads it.

    Returns:
        The status table, one row per row of `volumes`.

    Raises:
        CheckpointError: The volumes are of another recipe than the model's.
        StoreError: The store of the volumes is damaged, or the disk is full.
    """
    source, folder = VolumeShard(volumes, tokenizer, spec, code), status.with_suffix("")
    rows = source.rows
    folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder):
        attempts = Attempts(status.with_suffix(".attempts.json"))

        def make(volume: StoredVolume, node: str) -> Row:
            path = folder / f"{node}.nii.gz"
            if not _is_whole(path):
                with attempts.guard(node):
                    _publish(_reconstructed(source, volume), path)
            shape = volume.array.attributes["ct3d"]["record"]["source_shape"]
            return {"file": path.name, "sha256": file_sha256(path), "shape": shape}

        named = progress(rows, name=f"reconstructions {status.stem}", unit="volume")
        done = [
            {"file": "", **source.make_row(row, make, stage="reconstructions")} for row in named
        ]
        frame = pd.DataFrame(done, columns=list(COLUMNS)).astype(COLUMNS)
        write_table(frame, status)
        kept = {folder / row["file"] for row in done if row["file"]}
        for path in set(folder.iterdir()) - kept - {_sidecar(path) for path in kept}:
            path.unlink()
    logger.info("%s: %d of %d volumes", status, (frame["status"] == "encoded").sum(), len(frame))
    return frame


def _reconstructed(source: VolumeShard, volume: StoredVolume) -> Volume:
    """Return a stored volume through the model, int16 on its scan's own grid."""
    tokenizer = source.tokenizer
    out = reconstruct(
        tokenizer,
        volume.read_checked(),
        window=source.window(volume),
        windows_per_batch=source.spec.windows_per_batch,
    )
    ct3d = volume.array.attributes["ct3d"]
    return to_volume(out.hu, ct3d, domain=tokenizer.recipe.domain)


def _publish(volume: Volume, path: Path) -> None:
    """Write a file that appears whole or not at all, after a power cut too, and then its hash."""
    partial = path.with_name(f"partial.{path.name}")
    _sidecar(path).unlink(missing_ok=True)
    with room_for(partial, volume.array.nbytes):
        write_nifti(partial, volume)
        publish(partial, path)
    partial = path.with_name(f"partial.{path.name}.sha256")
    partial.write_text(f"{file_sha256(path)}  {path.name}\n", encoding="utf-8")
    publish(partial, _sidecar(path))


def _sidecar(path: Path) -> Path:
    """Return the file that holds a file's hash."""
    return path.with_name(f"{path.name}.sha256")


def _is_whole(path: Path) -> bool:
    """Return whether a file is there and as it was written."""
    try:
        return _sidecar(path).read_text(encoding="utf-8").split()[0] == file_sha256(path)
    except (OSError, ValueError, IndexError):
        return False
