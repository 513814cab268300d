"""`ct3d segment`: the regions of one scan, or one object in it by a box."""

import math
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from pydantic import ValidationError

from ct3dlib.cli_evaluate import read_regions
from ct3dlib.cli_segment_model import boxes_name, by_model
from ct3dlib.cli_single import MetadataTable, SeriesChoice, default_device, nifti_name
from ct3dlib.cohort.private import RawRoot
from ct3dlib.config import Medsam2Spec, RecipeSpec, RegionsSpec
from ct3dlib.config.explain import explain
from ct3dlib.datasets.files import stem
from ct3dlib.errors import ConfigError
from ct3dlib.inference.segment import Box, segment_box
from ct3dlib.inference.single import Scan, read_scan
from ct3dlib.regions import Segmenter, build_segmenter, sidecar
from ct3dlib.regions.label_map import REGIONS
from ct3dlib.regions.pictures import WINDOWS
from ct3dlib.regions.refine import build_refiner
from ct3dlib.scan.nifti import write_nifti
from ct3dlib.scan.normalize import restore
from ct3dlib.scan.volume import Volume

_NATIVE = RecipeSpec(min_slices=1)  # upright, in HU, its own spacing


def _window(text: str) -> tuple[float, float]:
    """Return the HU of black and white that a name or two numbers say."""
    if text in WINDOWS:
        return dict(WINDOWS.items())[text]
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not -math.inf < low < high < math.inf:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(WINDOWS)}, nor LOW,HIGH in HU")
    return low, high


Source = Annotated[Path, typer.Argument(help="NIfTI, NRRD, MetaImage, DICOM file or folder")]
Output = Annotated[
    Path,
    typer.Option("--output", "--out", "-o", callback=nifti_name, help="NIfTI of labels to write"),
]
BoxCorners = Annotated[
    tuple[int, int, int, int] | None,
    typer.Option(help="X0 Y0 X1 Y1: first and last voxel of the object along the file's axes i, j"),
]
KeySlice = Annotated[
    int | None, typer.Option("--slice", help="voxel along the file's axis k that the box lies in")
]
Reach = Annotated[
    tuple[int, int] | None, typer.Option(help="first and last slice that the object may reach")
]
Weights = Annotated[
    str | None, typer.Option(envvar="MEDSAM2_WEIGHTS", help="MedSAM2's .pt file, or hf://...")
]
Sha256 = Annotated[
    str | None, typer.Option(envvar="MEDSAM2_SHA256", help="hash of that file, as sha256sum says")
]
WindowName = Annotated[
    str | None,
    typer.Option(help=f"{', '.join(WINDOWS)}, or LOW,HIGH in HU: how an object is seen; soft"),
]
Model = Annotated[
    Path | None, typer.Option("--model", "--checkpoint", help="models/mae_segment tells classes")
]
Boxes = Annotated[
    Path | None, typer.Option(callback=boxes_name, help="CSV of the lesions that --model tells")
]
ConfigFile = Annotated[
    Path | None, typer.Option(help="YAML whose section `regions` says who finds regions")
]


def segment(  # noqa: PLR0913  (a parameter for each option)
    source: Source,
    output: Output,
    box: BoxCorners = None,
    key: KeySlice = None,
    slices: Reach = None,
    window: WindowName = None,
    weights: Weights = None,
    sha256: Sha256 = None,
    config: ConfigFile = None,
    model: Model = None,
    boxes: Boxes = None,
    metadata: MetadataTable = None,
    series: SeriesChoice = None,
) -> None:
    """Write the 20 regions of a scan, or with --box one lesion or organ, on the scan's own grid.

    A box lies in one axial slice, its numbers counted from 0 as a NIfTI viewer shows them; MedSAM2
    draws the object there and follows it through the slices above and below.

    With --model a trained segmenter tells its classes instead, and --boxes lists the lesions among
    them: voxels of the file, mm, and how sure it is.
    """
    if output.resolve() == source.resolve():
        raise typer.BadParameter(f"{output}: is the input itself; give another name")
    if (box is None) != (key is None):
        raise typer.BadParameter("--box and --slice belong together: a box lies in one slice")
    if (model is not None and (box or slices or window or config)) or (boxes and not model):
        raise typer.BadParameter(
            "--model finds by itself, without --box, --slices, --window and --config; --boxes is "
            "of the lesions that it tells"
        )
    if model is not None:
        made, classes = by_model(source, model, boxes=boxes, metadata=metadata, series=series)
    elif box is None or key is None:
        if slices is not None or window is not None:
            raise typer.BadParameter(
                "--slices and --window are for an object; give --box and --slice too"
            )
        raw, regions = read_regions(config) if config else (Path(), RegionsSpec(recipe="native"))
        scan = read_scan(source, _NATIVE, metadata=metadata, series=series)
        made, classes = _regions(scan, source, build_segmenter(regions, RawRoot(raw)), raw=raw)
    else:
        spec, seen = _medsam2(weights, sha256), _window(window or "soft")
        scan = read_scan(source, _NATIVE, metadata=metadata, series=series)
        made = segment_box(scan, Box(box, key, slices), build_refiner(spec), window=seen)
        classes = {1: "object"}
        ml = float(made.array.sum()) * float(np.prod(made.spacing)) / 1000
        typer.echo(f"{ml:.1f} ml in {int(made.array.any(axis=(1, 2)).sum())} slices")
    write_nifti(output, made, classes=classes)
    typer.echo(str(output))


def _regions(
    scan: Scan, source: Path, segmenter: Segmenter, *, raw: Path
) -> tuple[Volume, dict[int, str]]:
    """Return the regions of a scan on its own grid, and print what was found."""
    place, root = source.resolve(), raw.resolve()
    found = segmenter(
        scan.volume,
        name=stem(source.name),
        sources=(place.relative_to(root).as_posix(),) if place.is_relative_to(root) else (),
        record=scan.record,
    )
    for row in sidecar(found, scan.volume.spacing):
        typer.echo(
            f"{row['name']:24} {row['status']:12} {row['ml']:8.1f} ml  {row['source'] or ''}"
        )
    labels = Volume(found.mask, scan.volume.affine, "uint8")
    return restore(labels, scan.record, fill=0, nearest=True), dict(enumerate(REGIONS[1:], start=1))


def _medsam2(weights: str | None, sha256: str | None) -> Medsam2Spec:
    """Return where MedSAM2's weights are; it never runs without."""
    if weights is None or sha256 is None:
        raise ConfigError(
            "a box needs MedSAM2's weights: give --weights and --sha256, or set MEDSAM2_WEIGHTS "
            "and MEDSAM2_SHA256"
        )
    precision = "bf16" if default_device().type == "cuda" else "fp32"
    try:
        return Medsam2Spec(weights=weights, sha256=sha256, precision=precision)
    except ValidationError as error:
        raise ConfigError(explain(error, Medsam2Spec.model_json_schema())) from error
