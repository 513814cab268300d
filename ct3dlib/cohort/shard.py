"""One shard of volumes: from raw series to int16 HU in a store, bad ones as rejected rows."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ct3dlib.cohort.catalog import without_root
from ct3dlib.cohort.histogram import summarize
from ct3dlib.cohort.ome import multiscales
from ct3dlib.cohort.private import RawRoot, raw_root
from ct3dlib.cohort.stage import OpenShard, Row, fill_shard
from ct3dlib.cohort.status_rows import rejected_row, stored_row
from ct3dlib.cohort.store import key_of, records, write_node
from ct3dlib.cohort.stored_array import StoredArray
from ct3dlib.config import RecipeSpec
from ct3dlib.errors import DatasetError, VolumeError
from ct3dlib.scan.dicom import read_dicom
from ct3dlib.scan.intensity import to_hu
from ct3dlib.scan.itk import read_itk
from ct3dlib.scan.nifti import read_nifti
from ct3dlib.scan.normalize import normalize
from ct3dlib.scan.npz import read_npz
from ct3dlib.scan.reading import JSON, Reading
from ct3dlib.scan.slices import read_key_slices, read_slices
from ct3dlib.scan.volume import Volume

logger = logging.getLogger(__name__)

COLUMNS = {
    "volume": "str",
    "status": "str",
    "reason": "str",
    "message": "str",
    "node": "str",
    "sha256": "str",
    "source_sha256": "str",
    "shape": "object",
    "spacing": "object",
    "hu_state": "str",
    "lost": "float64",
    "facts": "str",
    "intensity": "str",
}
_PROVENANCE = (
    *("sources", "size", "mtime_ns", "metadata_hash"),
    *("domain", "slope", "intercept", "spacing"),
)


def store_shard(
    rows: pd.DataFrame,
    root: Path,
    *,
    recipe: RecipeSpec,
    code: str,
    status: Path,
    private: Path | None = None,
) -> pd.DataFrame:
    """Store every series of a shard and write its status table.

    Finished volumes whose key (source, recipe, code) is unchanged are kept. A volume that cannot
    be used becomes a rejected row; only a fault of the store itself raises.

    Args:
        rows: The shard's slice of the catalog.
        root: Folder that the rows' sources are relative to.
        recipe: How volumes are normalised.
        code: Fingerprint of the code that does it.
        status: Where the status table goes; the store lies beside it.
        private: Folder of the table that says which files a pseudonymised catalog means.

    Returns:
        The status table: exactly one row per row of `rows`, in the same order.

    Raises:
        DatasetError: The root, or every source of the shard, is away when one is to be read.
        StoreError: The store holds something else, or does not read back what was written.
    """
    listed = records(rows)
    raw = raw_root(root, rows, private=private)

    def make_row(row: Row, shard: OpenShard) -> Row:
        found = _store_row(row, raw, recipe=recipe, code=code, shard=shard)
        if not found["reason"].startswith("FILE_") or row["problem"]:
            return found
        _check_root(listed, raw)
        if found["reason"] != "FILE_MISSING":
            return found
        way_out = f"once it is there, delete {status} and run again"
        return {**found, "message": f"{found['message']}; {way_out}"}

    return fill_shard(listed, make_row, status=status, kind="volumes", columns=COLUMNS)


def _check_root(rows: Sequence[Row], raw: RawRoot) -> None:
    """Refuse a root that is away: a network disk that is gone a moment must not reject a shard.

    Args:
        rows: The shard's slice of the catalog.
        raw: Where the rows' sources are.

    Raises:
        DatasetError: The root is no folder, or none of the sources is there.
    """
    root = raw.folder
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; mount it, or correct raw_root, and run again")
    sources = [source for row in rows if not row["problem"] for source in row["sources"]]
    if sources and not any(_is_there(source, raw) for source in sources):
        raise DatasetError(
            f"{root}: none of the shard's {len(sources)} files is there ({sources[0]}, ...); mount "
            f"it and run again, or build the catalog again if they are gone for good"
        )


def _is_there(source: str, raw: RawRoot) -> bool:
    """Return whether the file of a source is there; one that points elsewhere is not looked for."""
    try:
        return raw.path(source).exists()
    except VolumeError:
        return False


def _store_row(row: Row, raw: RawRoot, *, recipe: RecipeSpec, code: str, shard: OpenShard) -> Row:
    """Return the status row of one series, stored or rejected."""
    volume = row["volume"]
    made_by = recipe.model_dump(mode="json", exclude={"window", "range", "axes"})
    provenance = {**{k: row[k] for k in _PROVENANCE}, "item": _item(row)}
    key = key_of(provenance, made_by, code)
    node = f"{volume}@{key}"
    try:
        if row["problem"]:
            raise VolumeError(row["problem"], row["problem_message"])
        _check_domain(row, recipe)
        shard.ensure(
            node,
            lambda: _store_volume(row, raw, recipe=recipe, store=shard.store, node=node),
        )
        return _status_row(volume, StoredArray(shard.store, node))
    except VolumeError as error:
        logger.warning("%s: rejected, %s: %s", volume, error.reason, error)
        return {
            **dict.fromkeys(COLUMNS, ""),
            **rejected_row(volume, error, message=_message(row, error, raw)),
            "spacing": None,
            "lost": float("nan"),
        }


def _check_domain(row: Row, recipe: RecipeSpec) -> None:
    """Refuse a series whose values mean something else than the recipe's, before it is read."""
    if row["domain"] != recipe.domain:
        raise VolumeError(
            "WRONG_DOMAIN",
            f"{row['sources'][0]}: values of domain {row['domain']}, the recipe wants "
            f"{recipe.domain}; give it a recipe with domain: {row['domain']}",
        )


def _message(row: Row, error: VolumeError, raw: RawRoot) -> str:
    """Return a message that names a file of the series, as those from below the readers do not.

    Of a pseudonymised series the message stays in the log.
    """
    sources = list(row["sources"])
    if row["problem"] and raw.hides(sources[0]):
        return str(error)
    if raw.hides(sources[0]):
        return f"{sources[0]}: {error.reason}; the log says more"
    message = without_root(str(error), raw.folder)
    named = any(source in message for source in sources)
    return message if named else f"{sources[0]}: {message}"


def _store_volume(row: Row, raw: RawRoot, *, recipe: RecipeSpec, store: Path, node: str) -> None:
    """Read, rescale, normalise and write one series."""
    reading = read_series(row, raw, slices=recipe.slices)
    source, state, evidence = _settled(reading, row, recipe)
    volume, record = normalize(source, recipe)
    facts = {**reading.facts, **evidence}
    attributes = {
        "ome": multiscales(str(row["volume"]), volume.affine),
        "ct3d": {
            "volume": row["volume"],
            "source": list(row["sources"]),
            "source_sha256": reading.sha256,
            "affine": volume.affine.tolist(),
            "domain": volume.domain,
            "hu_state": state,
            "recipe": recipe.model_dump(mode="json", exclude={"window", "range", "axes"}),
            "record": record.model_dump(mode="json"),
            "facts": json.loads(json.dumps(facts, default=str)),
            "intensity": summarize(volume.array),
        },
    }
    write_node(store, node, volume.array, attributes=attributes)


def _settled(
    reading: Reading, row: Row, recipe: RecipeSpec
) -> tuple[Volume, str, Mapping[str, JSON]]:
    """Return the volume in the recipe's domain, its HU state and why; "" where it is not in HU."""
    if recipe.domain != "hu":
        return reading.volume, "", {}
    hu = to_hu(reading, slope=row["slope"], intercept=row["intercept"], state=recipe.hu_state)
    return hu.volume, hu.state, hu.evidence


def read_series(row: Mapping[str, Any], raw: RawRoot, *, slices: int | None = None) -> Reading:
    """Read the series of a catalog row.

    Args:
        row: Of the catalog.
        raw: Where its files are.
        slices: Of pictures around a key slice, as the recipe's; None: all there are.

    Raises:
        VolumeError: The series cannot be read, or a source points out of the raw root.
        StoreError: The files behind the row's pseudonyms are not known.
        ValueError: The row is of a kind that nobody reads.
    """
    reading = _read(row, [raw.path(source) for source in row["sources"]], slices=slices)
    # NIfTI, NRRD and MetaImage hold values of any meaning: the catalog knows which.
    return replace(reading, volume=replace(reading.volume, domain=row["domain"]))


def _read(row: Mapping[str, Any], paths: list[Path], *, slices: int | None) -> Reading:
    """Read files by their kind."""
    spacing = None
    if row["spacing"] is not None:
        depth, height, width = row["spacing"]
        spacing = depth, height, width
    match row["kind"]:
        case "nifti":
            return read_nifti(paths[0], spacing=spacing)
        case "dicom":
            return read_dicom(paths)
        case "itk":
            return read_itk(paths[0], spacing=spacing)
        case "pictures" if slices is not None:
            return read_key_slices(paths, slices, spacing=spacing)
        case "pictures":
            return read_slices(paths, spacing=spacing)
        case "npz":
            return read_npz(paths[0], *_place(row))
        case kind:
            raise ValueError(f"volume {row['volume']}: no reader for kind {kind!r}")


def _item(row: Mapping[str, Any]) -> int | None:
    """Return which of many volumes a row is; pandas makes floats of a column that has gaps."""
    return None if row["item"] is None else int(row["item"])


def _place(row: Mapping[str, Any]) -> tuple[str, int]:
    """Return the array of a .npz file that a row's metadata name, and the item in it."""
    member, item = json.loads(row["metadata"]).get("member"), _item(row)
    if not isinstance(member, str) or item is None:
        raise VolumeError(
            "ITEM_MISSING",
            f"{row['sources'][0]}: the catalog names array {member} and item {item}, wanted both; "
            f"build it again",
        )
    return member, item


def _status_row(volume: str, array: StoredArray) -> Row:
    """Return the row of a stored volume from what stands in the store."""
    ct3d, ome = array.attributes["ct3d"], array.attributes["ome"]
    return {
        **stored_row(volume, array),
        "source_sha256": ct3d["source_sha256"],
        "spacing": ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"],
        "hu_state": ct3d["hu_state"],
        "lost": float(ct3d["record"].get("lost", 0.0)),
        "facts": json.dumps(ct3d["facts"], sort_keys=True),
        "intensity": json.dumps(ct3d["intensity"], sort_keys=True),
    }
