"""One scan, or one stack of pictures, through a model: no catalog, no store.

A scan takes the way that a shard of volumes takes: its reader, HU, the recipe that the model was
trained on, and back onto the scan's own grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from pydantic import ValidationError

from ct3dlib.config import RecipeSpec, SlidingWindowSpec, TokensSpec
from ct3dlib.config.explain import explain
from ct3dlib.datasets.files import is_itk, is_nifti
from ct3dlib.datasets.tables import Metadata, join_names, read_metadata
from ct3dlib.errors import ConfigError, DatasetError, VolumeError
from ct3dlib.inference.loaded import Tokenizer
from ct3dlib.inference.reconstruct import reconstruct
from ct3dlib.scan.axes import swapped
from ct3dlib.scan.dicom import Series, list_series, read_dicom
from ct3dlib.scan.intensity import to_hu
from ct3dlib.scan.itk import read_itk
from ct3dlib.scan.nifti import read_nifti
from ct3dlib.scan.normalize import Record, normalize
from ct3dlib.scan.picture import is_movie, is_picture, picture_files
from ct3dlib.scan.reading import Reading
from ct3dlib.scan.tree import may_be_dicom
from ct3dlib.scan.volume import Volume

GREY = (0.0, 255.0)
WINDOWS_PER_BATCH: int = TokensSpec.model_fields["windows_per_batch"].default


@dataclass(frozen=True, eq=False)
class Scan:
    """One scan on the grid of a recipe: what a store holds of a volume.

    Args:
        volume: Canonical axes, in the numbers of a store.
        record: The way back to the scan's own grid.
        window: Values that map to the recipe's range.
        hu_state: "hu", "rescaled", or "" where the values are not HU.
        sha256: Hash of the file's bytes, or of the sorted hashes of several.
    """

    volume: Volume
    record: Record
    window: tuple[float, float]
    hu_state: str
    sha256: str


def is_stack(path: Path) -> bool:
    """Return whether an input is pictures: a PNG, JPEG or MP4, or a folder of them, not DICOM."""
    if path.is_dir():
        return bool(picture_files(path)) and not list_series(path)
    return is_picture(path) or is_movie(path)


def read_scan(
    path: Path, recipe: RecipeSpec, *, metadata: Path | None = None, series: str | None = None
) -> Scan:
    """Read one scan and bring it onto the grid of a recipe.

    Args:
        path: A NIfTI, NRRD or MetaImage file, a DICOM file, or a folder of DICOM files.
        recipe: Of the model that the scan is for.
        metadata: CSV with `VolumeName` and any of `RescaleSlope`, `RescaleIntercept`, `XYSpacing`
            and `ZSpacing`; DICOM speaks for itself.
        series: Which of several DICOM series: its number, from 1, or the start of its UID.

    Raises:
        VolumeError: The scan cannot be read or used, or one of several series must be chosen.
        DatasetError: The table cannot be read, or has no row for the scan.
        ConfigError: A series is to be chosen of one file.
    """
    reading, stated = _read(path, metadata=metadata, series=series)
    try:
        if recipe.domain == "hu":
            slope, intercept = (stated.slope, stated.intercept) if stated else (None, None)
            hu = to_hu(reading, slope=slope, intercept=intercept, state=recipe.hu_state)
            source, state = hu.volume, hu.state
        else:
            source, state = replace(reading.volume, domain=recipe.domain), ""
        volume, record = normalize(source, recipe)
    except VolumeError as error:
        text = str(error)
        named = text if reading.source in text else f"{path}: {text}"
        raise VolumeError(error.reason, named) from error
    return Scan(volume, record, record.window or recipe.window, state, reading.sha256)


def _read(
    path: Path, *, metadata: Path | None, series: str | None
) -> tuple[Reading, Metadata | None]:
    """Read a scan by its kind, and its row of a table."""
    if series is not None and not path.is_dir():
        raise ConfigError(
            f"{path}: one file, and series {series!r} is given; leave it out, or give the folder"
        )
    try:
        there = path.exists()
    except OSError as error:
        raise VolumeError("FILE_UNREADABLE", f"{path}: {error.strerror}; correct it") from error
    if not there:
        raise VolumeError("FILE_MISSING", f"{path}: no such file or folder; correct the path")
    if is_nifti(path) or is_itk(path):
        stated = None if metadata is None else _stated(path, metadata)
        spacing = stated.spacing if stated else None
        read = read_nifti if is_nifti(path) else read_itk
        return read(path, spacing=spacing), stated
    if path.is_dir():
        return read_dicom(_chosen(path, series).files), None
    if not may_be_dicom(path):
        raise VolumeError(
            "FILE_UNREADABLE",
            f"{path}: no kind of scan ends so; give NIfTI, NRRD, MetaImage, DICOM or a folder of "
            f"DICOM files",
        )
    return read_dicom([path]), None


def _stated(path: Path, metadata: Path) -> Metadata:
    """Return the row of a table that names a file."""
    rows = read_metadata(metadata)
    for name in join_names(path.as_posix(), path.name):
        if name in rows:
            return rows[name]
    raise DatasetError(
        f"{metadata}: no row of its {len(rows)} has the VolumeName {path.name}; add one, or leave "
        f"the table out if the file states its geometry and holds HU"
    )


def _chosen(folder: Path, wanted: str | None) -> Series:
    """Return one DICOM series below a folder.

    Raises:
        VolumeError: There is none, or several and `wanted` names not one of them.
    """
    listed = list_series(folder)
    whole = [one for one in listed if one.problem is None]
    if not whole:
        if listed and listed[0].problem:
            raise VolumeError(*listed[0].problem)
        raise VolumeError(
            "FILE_MISSING", f"{folder}: no DICOM series and no pictures; give a folder that has one"
        )
    if wanted is None and len(whole) == 1:
        return whole[0]
    if wanted is not None:
        if wanted.isdecimal() and 0 < int(wanted) <= len(whole):
            return whole[int(wanted) - 1]
        if len(found := [one for one in whole if one.uid.startswith(wanted)]) == 1:
            return found[0]
    named = "none chosen" if wanted is None else f"{wanted!r} is not one of them"
    raise VolumeError(
        "MIXED_SERIES",
        f"{folder}: {len(whole)} DICOM series, {named}; choose by number or by the start of the "
        f"UID:\n{_listing(whole)}",
    )


def _listing(series: Sequence[Series]) -> str:
    """Return a line for each series."""
    return "\n".join(
        f"  {number}: {one.uid}, {one.num_slices} x {one.rows} x {one.columns} voxels, "
        f"{len(one.files)} files"
        for number, one in enumerate(series, start=1)
    )


def with_windows(tokenizer: Tokenizer, changes: dict[str, Any]) -> Tokenizer:
    """Return a tokenizer with other sliding windows; what it reconstructs changes with them.

    Args:
        tokenizer: Not causal.
        changes: Keys of `SlidingWindowSpec`; the others stay as they are.

    Raises:
        ConfigError: The model is causal, a value does not fit, or `roi_size` is missing or not
            whole latents.
    """
    model = tokenizer.model
    keys = ", ".join(sorted(changes))
    if model.spec.name == "causal":
        raise ConfigError(
            f"{tokenizer.name} is causal and has windows of its own; leave {keys} out"
        )
    given = {} if tokenizer.sliding is None else tokenizer.sliding.model_dump()
    if "roi_size" not in {**given, **changes}:
        raise ConfigError(f"{tokenizer.name} sees volumes whole; beside {keys} give roi_size too")
    try:
        sliding = SlidingWindowSpec.model_validate({**given, **changes})
    except ValidationError as error:
        found = explain(error, SlidingWindowSpec.model_json_schema())
        raise ConfigError(f"sliding windows: {found}") from error
    pairs = zip(sliding.roi_size, model.downsampling, strict=True)
    if any(n % step for n, step in pairs):
        raise ConfigError(
            f"roi_size {sliding.roi_size} is not whole latents; each axis must be a multiple of "
            f"{model.downsampling}"
        )
    return replace(tokenizer, sliding=sliding)


def reconstruct_scan(tokenizer: Tokenizer, scan: Scan) -> NDArray[np.float32]:
    """Return what a scan becomes through a model, HU within the window, on the recipe's grid."""
    return reconstruct(
        tokenizer,
        scan.volume.array,
        window=scan.window,
        windows_per_batch=WINDOWS_PER_BATCH,
    ).hu


def reconstruct_stack(
    tokenizer: Tokenizer, stack: UInt8[np.ndarray, "D H W"]
) -> UInt8[np.ndarray, "D H W"]:
    """Return what grey slices become through a model.

    Grey 0 to 255 maps linearly onto the model's range, whatever its window: black is what the
    window's low end is to it. The last slice, row and column are repeated to fill whole latents,
    for a causal model at least one window (9 slices at a downsampling of 8), and cut off again.
    """
    axes = tokenizer.recipe.axes
    depth, height, width = stack.shape
    seen = swapped((depth, height, width), axes)
    pad = swapped(tokenizer.model.padding(seen), axes)
    filled = np.pad(stack, [(0, n) for n in pad], mode="edge")
    out = reconstruct(tokenizer, filled, window=GREY, windows_per_batch=WINDOWS_PER_BATCH).hu
    return np.rint(out[:depth, :height, :width]).astype(np.uint8)
