"""`ct3d segment --model`: the classes of one scan as a trained segmenter tells them."""

from pathlib import Path

import numpy as np
import typer

from ct3dlib.cli_single import default_device
from ct3dlib.cohort.durable import publish
from ct3dlib.inference.segmenter import Segmented, lesion_table, load_segmenter
from ct3dlib.inference.single import Scan, read_scan
from ct3dlib.regions.classes import LESION
from ct3dlib.scan.normalize import restore
from ct3dlib.scan.volume import Volume


def boxes_name(path: Path | None) -> Path | None:
    """Refuse a name that is no table's before anything is computed."""
    if path is not None and path.suffix.lower() != ".csv":
        raise typer.BadParameter(f"{path}: the name must end with .csv")
    return path


def by_model(
    source: Path,
    folder: Path,
    *,
    boxes: Path | None,
    metadata: Path | None,
    series: str | None,
) -> tuple[Volume, dict[int, str]]:
    """Return the classes of a scan on its own grid, 0 where the recipe cropped it, and their names.

    Args:
        source: The scan, as `read_scan` takes it.
        folder: Of the segmenter.
        boxes: Where its lesions are listed; None: they are not.
        metadata: As `read_scan` takes it.
        series: As `read_scan` takes it.
    """
    segmenter = load_segmenter(folder, default_device())
    if boxes is not None and LESION not in segmenter.classes:
        raise typer.BadParameter(
            f"--boxes: {folder} tells {', '.join(segmenter.classes[1:])} and no lesions; leave it "
            f"out, or train a model with mae_segment.masks: [lesions]"
        )
    scan = read_scan(source, segmenter.recipe, metadata=metadata, series=series)
    found = segmenter.segment(np.asarray(scan.volume.array), scan.window)
    if boxes is not None:
        _write_boxes(boxes, found, scan)
    classes = Volume(found.classes, scan.volume.affine, "uint8")
    names = {i: name for i, name in enumerate(segmenter.classes) if i}
    return restore(classes, scan.record, fill=0, nearest=True), names


def _write_boxes(path: Path, found: Segmented, scan: Scan) -> None:
    """Write the lesions of a scan as CSV: its own voxels, and mm; print how many there are."""
    told = Volume(np.asarray(found.lesions), scan.volume.affine, "mr")
    table = lesion_table(restore(told, scan.record, fill=0.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    table.to_csv(partial, index=False)
    publish(partial, path)
    typer.echo(f"{path}: {len(table)} lesions")
