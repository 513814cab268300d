"""`ct3d`: commands for people, on one volume, one store or one model."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from pyarrow import ArrowInvalid
from pyarrow.parquet import read_schema

from ct3dlib import __version__
from ct3dlib.cohort.verify import verify_table
from ct3dlib.errors import Ct3dError, StoreError
from ct3dlib.inference.decode import decode_volume, find_tokenizer, find_tokens
from ct3dlib.inference.describe import describe_model, describe_table
from ct3dlib.models.exported import load_model
from ct3dlib.scan.nifti import write_nifti

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Work with the volumes, tokens and models that the pipeline made.",
)


def main() -> None:
    """Run the command line; an error that a user can cause is one line, not a traceback."""
    try:
        app()
    except (Ct3dError, OSError) as error:
        typer.secho(f"ct3d: {error}", err=True, fg="red")
        raise SystemExit(1) from error


def _nifti_name(path: Path) -> Path:
    """Refuse a name that is not NIfTI's before anything is computed."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise typer.BadParameter(f"{path}: the name must end with .nii or .nii.gz")
    return path


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@app.command()
def decode(
    tokens: Annotated[Path, typer.Argument(help="tokens/valid, its .parquet, or one shard of it")],
    volume: Annotated[str, typer.Option(help="id of the volume")],
    output: Annotated[
        Path, typer.Option("--output", "-o", callback=_nifti_name, help="NIfTI to write, in HU")
    ],
    models: Annotated[
        Path | None, typer.Option(help="folder of models; next to tokens/ when absent")
    ] = None,
    stored_grid: Annotated[
        bool, typer.Option(help="stay on the store's grid instead of the scan's own")
    ] = False,
) -> None:
    """Decode a volume's tokens into a NIfTI file in HU, on the grid of the original scan."""
    array = find_tokens(tokens, volume)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = find_tokenizer(models or _beside(tokens, "models"), array, device)
    write_nifti(output, decode_volume(array, tokenizer, stored_grid=stored_grid))
    typer.echo(str(output))


@app.command()
def verify(
    paths: Annotated[list[Path], typer.Argument(help="status tables, or folders that hold them")],
    model: Annotated[
        Path | None, typer.Option(help="tokenizer in use: tokens of another one are stale")
    ] = None,
) -> None:
    """Read every stored array again and hold it against its status table."""
    sha256 = load_model(model).sha256 if model else None
    tables = [table for path in paths for table in _status_tables(path)]
    if not tables:
        raise StoreError(f"{paths[0]}: no status table beside a store here or below")
    problems = 0
    for table in tables:
        for finding in verify_table(table, sha256):
            problems += 1
            typer.secho(f"{table}: {finding.volume} {finding.problem}", fg="red")
    typer.echo(f"{len(tables)} tables, {problems} problems")
    raise typer.Exit(1 if problems else 0)


@app.command()
def describe(
    path: Annotated[Path, typer.Argument(help="a model's folder, a table or a catalog")],
) -> None:
    """Print what a model expects and was trained on, or what a table holds."""
    typer.echo(describe_model(path) if path.is_dir() else describe_table(path))


def _beside(tokens: Path, name: str) -> Path:
    """Return the folder `name` next to the tokens folder that a path lies in."""
    for parent in (tokens.absolute(), *tokens.absolute().parents):
        if parent.name == "tokens":
            return parent.parent / name
    return Path(name)


def _status_tables(path: Path) -> list[Path]:
    """Return the status tables of stores at or below a path.

    Raises:
        StoreError: There is nothing at the path, or a table cannot be read.
    """
    if not path.exists():
        raise StoreError(f"{path}: no such file or folder; give data/, tokens/ or a status table")
    found = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    columns = {table: _columns(table) for table in found}
    # A split's joined table has the shard too: its stores belong to the tables of its shards.
    return [t for t in found if "node" in columns[t] and "shard" not in columns[t]]


def _columns(table: Path) -> set[str]:
    """Return the names of a table's columns."""
    try:
        return set(read_schema(table).names)
    except (OSError, ArrowInvalid) as error:
        raise StoreError(f"{table}: not a status table ({error})") from error
