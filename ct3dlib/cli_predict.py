"""`ct3d predict`, `embed` and `attention`: scans and a model of whole volumes."""

from pathlib import Path
from typing import Annotated

import typer

from ct3dlib.cli_interchange import read_recipe
from ct3dlib.cli_single import MetadataTable, SeriesChoice, default_device, nifti_name
from ct3dlib.cohort.durable import publish
from ct3dlib.config import RecipeSpec, Shape
from ct3dlib.inference.attention import attention_volume
from ct3dlib.inference.contract import check_recipe
from ct3dlib.inference.embed import load_volume_encoder
from ct3dlib.inference.embedding_tables import embed_all, write_parquet, write_zarr
from ct3dlib.inference.predictor import load_predictor, predictions
from ct3dlib.inference.scan_table import read_scans
from ct3dlib.inference.scans import VOLUMES_PER_BATCH
from ct3dlib.inference.single import read_scan
from ct3dlib.scan.nifti import write_nifti


def _cells(text: str) -> Shape:
    """Return the cells along D, H and W that D,H,W says."""
    try:
        depth, height, width = map(int, text.split(","))
    except ValueError:
        depth = height = width = 0
    if min(depth, height, width) < 1:
        raise typer.BadParameter(
            f"--regional {text}: wanted D,H,W, three whole numbers above 0, as 4,4,4"
        )
    return depth, height, width


def _check_output(path: Path, inputs: list[str], endings: tuple[str, ...]) -> None:
    """Refuse a name of another kind, or an input's, before anything is computed."""
    if path.suffix not in endings:
        raise typer.BadParameter(f"{path}: the name must end with {' or '.join(endings)}")
    if any(path.resolve() == Path(name).resolve() for name in inputs):
        raise typer.BadParameter(f"{path}: is the input itself; give another name")


Checkpoint = Annotated[Path, typer.Option("--checkpoint", "--model", help="models/NAME")]
Inputs = Annotated[
    list[str],
    typer.Option(
        "--input", "-i", help="CSV of scans; or status tables of stored volumes, .parquet, URLs too"
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="CSV to write")]
PathColumn = Annotated[str, typer.Option(help="of the CSV: NIfTI, NRRD, DICOM file or folder")]
Root = Annotated[
    Path | None, typer.Option(help="where relative paths start; the CSV's folder when absent")
]
Stated = Annotated[
    str | None,
    typer.Option(
        "--recipe", help="refuse the model unless it was trained on it: a name, or a .json"
    ),
]
ConfigFile = Annotated[Path, typer.Option(help="where recipes have names")]
BatchSize = Annotated[int, typer.Option(min=1, help="volumes at a time")]


def predict(  # noqa: PLR0913  (a parameter for each option)
    checkpoint: Checkpoint,
    inputs: Inputs,
    output: Output,
    path_column: PathColumn = "Path",
    root: Root = None,
    recipe: Stated = None,
    config: ConfigFile = Path("config.yaml"),
    batch_size: BatchSize = VOLUMES_PER_BATCH,
) -> None:
    """Write what a fine-tuned model says of scans: a probability of each class, or numbers.

    The output is the input with columns prob_CLASS (of a regression pred_NAME) and `error`, which
    says why a scan could not be read. Fails only where none could.
    """
    _check_output(output, inputs, (".csv",))
    model = load_predictor(checkpoint, default_device())
    _check_stated(model.recipe, recipe, config, name=model.name)
    scans = read_scans(inputs, model.recipe, model=model.name, path_column=path_column, root=root)
    scans.check_columns([*model.columns, "error"])
    made = predictions(model, scans.readers, batch_size=batch_size)
    told = made.pop("reason").str.cat(made.pop("message"), sep=": ")
    made["error"] = told.where(told != ": ", "")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.partial")
    scans.with_columns(made).to_csv(partial, index=False, float_format="%.9g")
    publish(partial, output)
    _finish(output, made["error"].tolist())


def embed(  # noqa: PLR0913  (a parameter for each option)
    checkpoint: Checkpoint,
    inputs: Inputs,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="table to write, .parquet; or .zarr")
    ],
    regional: Annotated[
        str, typer.Option(metavar="D,H,W", help="cells of the regional means")
    ] = "4,4,4",
    path_column: PathColumn = "Path",
    root: Root = None,
    recipe: Stated = None,
    config: ConfigFile = Path("config.yaml"),
    batch_size: BatchSize = VOLUMES_PER_BATCH,
) -> None:
    """Write embeddings of scans: class token, mean of the patches, means of regions of a grid.

    Of any model with a volume encoder. Fails only where no scan could be read.
    """
    _check_output(output, inputs, (".parquet", ".zarr"))
    cells = _cells(regional)
    if output.suffix == ".zarr" and output.exists():
        raise typer.BadParameter(f"{output}: is there already; delete it or give another name")
    encoder = load_volume_encoder(checkpoint, default_device())
    _check_stated(encoder.recipe, recipe, config, name=encoder.name)
    scans = read_scans(
        inputs, encoder.recipe, model=encoder.name, path_column=path_column, root=root
    )
    made = embed_all(encoder, scans.readers, regional=cells, batch_size=batch_size)
    ids = scans.frame[scans.key].tolist()
    if output.suffix == ".zarr":
        errors = write_zarr(made, ids, output, encoder=encoder, regional=cells)
    else:
        named = {scans.key: ids}
        errors = write_parquet(made, named, output, encoder=encoder, regional=cells)
    _finish(output, errors)


def attention(  # noqa: PLR0913  (a parameter for each option)
    source: Annotated[Path, typer.Argument(help="NIfTI, NRRD, MetaImage, DICOM file or folder")],
    checkpoint: Checkpoint,
    output: Annotated[
        Path, typer.Option("--output", "-o", callback=nifti_name, help="NIfTI to write, float32")
    ],
    layer: Annotated[int | None, typer.Option(help="block, from 1; the last when absent")] = None,
    rollout: Annotated[
        bool, typer.Option("--rollout", help="follow attention down through all blocks")
    ] = False,
    metadata: MetadataTable = None,
    series: SeriesChoice = None,
) -> None:
    """Write how much a model's class token looks at each place of a scan, on the scan's own grid.

    The shares of all patches add up to 1; between their centres the map is interpolated.
    """
    if output.resolve() == source.resolve():
        raise typer.BadParameter(f"{output}: is the input itself; give another name")
    encoder = load_volume_encoder(checkpoint, default_device())
    scan = read_scan(source, encoder.recipe, metadata=metadata, series=series)
    write_nifti(output, attention_volume(encoder, scan, layer=layer, rollout=rollout))
    typer.echo(str(output))


def _check_stated(contract: RecipeSpec, stated: str | None, config: Path, *, name: str) -> None:
    """Refuse a model of another recipe than the user believes it to be of."""
    if stated is not None:
        keys = read_recipe(stated, config).model_dump(mode="json")
        check_recipe(contract, keys, model=name, data=f"recipe {stated}")


def _finish(output: Path, errors: list[str]) -> None:
    """Print how many scans could be used, and fail where none could."""
    failed = sum(map(bool, errors))
    typer.echo(f"{output}: {len(errors) - failed} of {len(errors)} scans, {failed} with an error")
    if failed == len(errors):
        typer.secho(f"ct3d: no scan could be used, as {errors[0]}", err=True, fg="red")
        raise typer.Exit(1)
