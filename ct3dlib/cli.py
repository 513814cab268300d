"""`ct3d`: commands for people, on one volume, one store or one model."""

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from ct3dlib import __version__
from ct3dlib.cli_evaluate import evaluating
from ct3dlib.cli_generate import generate
from ct3dlib.cli_interchange import export, importing
from ct3dlib.cli_predict import attention, embed, predict
from ct3dlib.cli_segment import segment
from ct3dlib.cli_single import default_device, encode, nifti_name, reconstruct
from ct3dlib.cohort.location import location
from ct3dlib.cohort.verify import find_tables, verify_layout, verify_table
from ct3dlib.errors import Ct3dError
from ct3dlib.inference.decode import decode_volume, find_model, find_tokenizer, find_tokens
from ct3dlib.inference.describe import describe_model, describe_table
from ct3dlib.inference.encoded_file import SUFFIX, decode_scan, read_encoded
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


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@app.command()
def decode(
    tokens: Annotated[
        Path,
        typer.Argument(help="tokens/valid, its .parquet, one shard of it, or a file of `encode`"),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", callback=nifti_name, help="NIfTI to write, in HU")
    ],
    volume: Annotated[
        str | None, typer.Option(help="id of the volume; a file of `encode` holds one")
    ] = None,
    models: Annotated[
        Path | None, typer.Option(help="folder of models; next to tokens/ when absent")
    ] = None,
    stored_grid: Annotated[
        bool, typer.Option(help="stay on the store's grid instead of the scan's own")
    ] = False,
) -> None:
    """Decode a volume's tokens into a NIfTI file in HU, on the grid of the original scan."""
    folder, device = models or _beside(tokens, "models"), default_device()
    if tokens.suffix == SUFFIX:
        encoded = read_encoded(tokens)
        tokenizer = find_model(folder, encoded.provenance["tokenizer_sha256"], device)
        made = decode_scan(tokenizer, encoded, stored_grid=stored_grid)
    elif volume is None:
        raise typer.BadParameter(f"{tokens}: holds many volumes; give the id of one, --volume")
    else:
        array = find_tokens(tokens, volume)
        tokenizer = find_tokenizer(folder, array, device)
        made = decode_volume(array, tokenizer, stored_grid=stored_grid)
    write_nifti(output, made)
    typer.echo(str(output))


@app.command()
def verify(
    paths: Annotated[
        list[str],
        typer.Argument(help="status tables, stores or folders that hold them; tables' URLs too"),
    ],
    model: Annotated[
        list[Path] | None,
        typer.Option(help="model in use, one or more: what others made is stale"),
    ] = None,
) -> None:
    """Read every stored array and reconstructed file again and hold it against its status table.

    Damage is mended by deleting the status table and running the pipeline again.
    """
    in_use = {load_model(folder).sha256 for folder in model or ()}
    found = chain.from_iterable(find_tables(location(path)) for path in paths)
    tables = list(dict.fromkeys(found))
    problems = 0
    of_tables = chain.from_iterable(verify_table(table, in_use) for table in tables)
    for finding in chain(of_tables, verify_layout(tables)):
        problems += 1
        typer.secho(f"{finding.table}: {finding.volume} {finding.problem}", fg="red")
    typer.echo(f"{len(tables)} tables, {problems} problems")
    raise typer.Exit(1 if problems else 0)


@app.command()
def describe(
    path: Annotated[str, typer.Argument(help="a model's folder, a table or a catalog, or its URL")],
) -> None:
    """Print what a model expects and was trained on, or what a table holds."""
    match location(path):
        case Path() as folder if folder.is_dir():
            typer.echo(describe_model(folder))
        case table:
            typer.echo(describe_table(table))


app.command()(reconstruct)
app.command()(encode)
app.command()(generate)
app.command()(segment)
app.command()(predict)
app.command()(embed)
app.command()(attention)
app.command()(export)
app.add_typer(evaluating, name="evaluate")
app.add_typer(importing, name="import")


def _beside(tokens: Path, name: str) -> Path:
    """Return the folder `name` next to the tokens folder that a path lies in."""
    for parent in (tokens.absolute(), *tokens.absolute().parents):
        if parent.name == "tokens":
            return parent.parent / name
    return Path(name)
