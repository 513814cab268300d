"""`ct3d reconstruct` and `ct3d encode`: one scan or one stack of pictures, and a model."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from ct3dlib.inference.decode import to_volume
from ct3dlib.inference.encoded_file import SUFFIX, encode_scan, write_encoded
from ct3dlib.inference.loaded import Tokenizer, load_tokenizer
from ct3dlib.inference.single import (
    GREY,
    Scan,
    is_stack,
    read_scan,
    reconstruct_scan,
    reconstruct_stack,
    with_windows,
)
from ct3dlib.report.movie import Window, comparison_frames, write_movie
from ct3dlib.scan.nifti import write_nifti
from ct3dlib.scan.picture import check_target, read_stack, write_stack


def default_device() -> torch.device:
    """Return the graphics card where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def nifti_name(path: Path) -> Path:
    """Refuse a name that is not NIfTI's before anything is computed."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise typer.BadParameter(f"{path}: the name must end with .nii or .nii.gz")
    return path


def _encoded_name(path: Path) -> Path:
    """Refuse a name that is not NumPy's."""
    if path.suffix != SUFFIX:
        raise typer.BadParameter(f"{path}: the name must end with {SUFFIX}")
    return path


def _movie_name(path: Path | None) -> Path | None:
    """Refuse a name that is no movie's."""
    if path is not None and path.suffix.lower() not in (".gif", ".mp4"):
        raise typer.BadParameter(f"{path}: the name must end with .gif or .mp4")
    return path


_SCAN = "NIfTI, NRRD or MetaImage, a DICOM file or a folder of them"
Model = Annotated[Path, typer.Option("--model", "--checkpoint", help="models/NAME")]
MetadataTable = Annotated[
    Path | None,
    typer.Option(help="CSV with a row for the file: VolumeName, RescaleSlope, XYSpacing, ..."),
]
SeriesChoice = Annotated[
    str | None, typer.Option(help="of several DICOM series: its number, or the start of its UID")
]
Source = Annotated[
    Path, typer.Argument(help=f"{_SCAN}; a PNG or JPEG, a folder of them, or an MP4")
]
Output = Annotated[
    Path,
    typer.Option("--output", "-o", help="NIfTI in HU for a scan; of pictures the kind that came"),
]
RoiSize = Annotated[
    tuple[int, int, int] | None, typer.Option(help="voxels of a window, D H W as the model sees")
]
Overlap = Annotated[float | None, typer.Option(help="share of a window, from 0 to under 1")]
WindowsAtATime = Annotated[int | None, typer.Option(help="windows at a time")]
Mode = Literal["gaussian", "constant", "hann"]
Blending = Annotated[Mode | None, typer.Option(help="weights in a window")]
StoredGrid = Annotated[
    bool, typer.Option(help="stay on the recipe's grid instead of the scan's own")
]
MovieFile = Annotated[
    Path | None,
    typer.Option(callback=_movie_name, help="GIF or MP4 of original, result and difference"),
]
Every = Annotated[int, typer.Option(min=1, help="slices that a frame of the movie stands for")]
Compared = tuple[NDArray[np.generic], NDArray[np.generic], Window]


def reconstruct(  # noqa: PLR0913  (a parameter for each option)
    source: Source,
    model: Model,
    output: Output,
    metadata: MetadataTable = None,
    series: SeriesChoice = None,
    roi_size: RoiSize = None,
    overlap: Overlap = None,
    sw_batch_size: WindowsAtATime = None,
    mode: Blending = None,
    stored_grid: StoredGrid = False,
    movie: MovieFile = None,
    every: Every = 1,
) -> None:
    """Send one scan through a model and write it in HU, on the grid of the original scan.

    A picture is one slice, a movie or a folder of pictures a stack of them, in natural order. Their
    grey values 0 to 255 map linearly onto the range that the model sees, whatever its window.

    Options of windows that are left out stay as the model was trained; a causal model takes none.
    """
    if output.resolve() == source.resolve():
        raise typer.BadParameter(f"{output}: is the input itself; give another name")
    tokenizer = in_chosen_windows(
        load_tokenizer(model, default_device()),
        roi_size=roi_size,
        overlap=overlap,
        sw_batch_size=sw_batch_size,
        mode=mode,
    )
    if not is_stack(source):
        nifti_name(output)
        scan = read_scan(source, tokenizer.recipe, metadata=metadata, series=series)
        compared = _reconstruct_scan(tokenizer, scan, output, stored_grid=stored_grid)
    elif metadata or series or stored_grid:
        raise typer.BadParameter(f"{source}: pictures have no metadata, series or stored grid")
    else:
        compared = _reconstruct_pictures(tokenizer, source, output)
    typer.echo(str(output))
    if movie is not None:
        write_movie(movie, comparison_frames(*compared, every=every))
        typer.echo(str(movie))


def in_chosen_windows(
    tokenizer: Tokenizer,
    *,
    roi_size: tuple[int, int, int] | None,
    overlap: float | None,
    sw_batch_size: int | None,
    mode: Mode | None,
) -> Tokenizer:
    """Return a tokenizer with the windows that the options name; None leaves one as it is.

    Raises:
        ConfigError: The model takes none of them, or a value does not fit.
    """
    named = {"roi_size": roi_size, "overlap": overlap, "mode": mode}
    named["sw_batch_size"] = sw_batch_size
    # An overlap of 0 is an overlap, not an option that was left out.
    changes = {name: value for name, value in named.items() if value is not None}
    return with_windows(tokenizer, changes) if changes else tokenizer


def _reconstruct_scan(
    tokenizer: Tokenizer, scan: Scan, output: Path, *, stored_grid: bool
) -> Compared:
    """Write what a scan becomes; returns both on the recipe's grid, and the window."""
    hu = reconstruct_scan(tokenizer, scan)
    ct3d = {"affine": scan.record.affine, "record": scan.record.model_dump(mode="json")}
    domain = tokenizer.recipe.domain
    write_nifti(output, to_volume(hu, ct3d, domain=domain, stored_grid=stored_grid))
    return scan.volume.array, hu, scan.window


def _reconstruct_pictures(tokenizer: Tokenizer, source: Path, output: Path) -> Compared:
    """Write what pictures become; returns both, and the grey values that they span."""
    stack = read_stack(source)
    check_target(output, stack)
    made = reconstruct_stack(tokenizer, stack.array)
    write_stack(output, replace(stack, array=made))
    return stack.array, made, GREY


def encode(
    source: Annotated[Path, typer.Argument(help=_SCAN)],
    model: Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", callback=_encoded_name, help="NumPy archive, .npz")
    ],
    metadata: MetadataTable = None,
    series: SeriesChoice = None,
) -> None:
    """Write the tokens of one scan, or its latents where the model makes no tokens.

    `ct3d decode` makes a scan of the file again.
    """
    if is_stack(source):
        raise typer.BadParameter(f"{source}: pictures are no scan; `ct3d reconstruct` takes them")
    tokenizer = load_tokenizer(model, default_device())
    scan = read_scan(source, tokenizer.recipe, metadata=metadata, series=series)
    encoded = encode_scan(tokenizer, scan)
    write_encoded(output, encoded)
    typer.echo(f"{output}: {encoded.kind} {' x '.join(map(str, encoded.values.shape))}")
