"""`ct3d export` and `ct3d import`: tokens and models of other programs."""

import logging
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
import yaml
from pydantic import ValidationError

from ct3dlib.config import RecipeSpec
from ct3dlib.config.explain import explain
from ct3dlib.errors import ConfigError
from ct3dlib.inference.decode import find_tokenizer, find_tokens
from ct3dlib.inference.imported import Format, import_checkpoint
from ct3dlib.inference.interchange import encoded_volumes, export_tokens, import_tokens
from ct3dlib.inference.loaded import load_tokenizer

TokenFormat = Annotated[Literal["btb3d"], typer.Option("--format", help="whose files these are")]

# Recipes of config.yaml that published weights of a format were trained on.
_RECIPES: dict[Format, str] = {"tangerine": "mae256"}

importing = typer.Typer(no_args_is_help=True, help="Take in tokens and models of other programs.")


def export(
    tokens: Annotated[Path, typer.Argument(help="tokens/valid, its .parquet, or one shard of it")],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder of the files")],
    file_format: TokenFormat,
    volume: Annotated[list[str] | None, typer.Option(help="id; all of the table if absent")] = None,
    models: Annotated[Path, typer.Option(help="folder of models")] = Path("models"),
    encoded: Annotated[
        Path | None,
        typer.Option(help="latents/valid or as TOKENS: write latents to encoded/ as well"),
    ] = None,
) -> None:
    """Write tokens as files of another program: NAME.nii_embedded.npz, one a volume."""
    del file_format  # there is one
    volumes = volume or encoded_volumes(tokens)
    tokenizer = find_tokenizer(models, find_tokens(tokens, volumes[0]), torch.device("cpu"))
    for path in export_tokens(tokens, tokenizer, volumes, folder=output, latents=encoded):
        typer.echo(str(path))


@importing.command("tokens")
def tokens_(
    folder: Annotated[Path, typer.Argument(help="holds NAME.nii_embedded.npz, one a volume")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="table to write, .parquet; its store beside it")
    ],
    model: Annotated[Path, typer.Option(help="folder of the tokenizer that decodes them")],
    file_format: TokenFormat,
    volumes: Annotated[
        list[Path] | None, typer.Option(help="status table of stored volumes, which have grids")
    ] = None,
) -> None:
    """Store another program's tokens where `decode`, `verify` and `export` find them."""
    del file_format  # there is one
    if output.suffix != ".parquet":
        raise typer.BadParameter(f"{output}: the name must end with .parquet")
    tokenizer = load_tokenizer(model, torch.device("cpu"))
    frame = import_tokens(folder, tokenizer, tables=volumes or (), status=output)
    typer.echo(f"{output}: {len(frame)} volumes")


@importing.command()
def checkpoint(
    path: Annotated[Path, typer.Argument(help="file that torch.save wrote")],
    output: Annotated[Path, typer.Option("--output", "-o", help="models/NAME")],
    file_format: Annotated[Format, typer.Option("--format", help="the program that wrote it")],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="of the volumes it was trained on: a name in the config, or a .json; "
            "tangerine: mae256 if absent"
        ),
    ] = None,
    config: Annotated[Path, typer.Option(help="where recipes have names")] = Path("config.yaml"),
) -> None:
    """Turn a checkpoint into a model of the pipeline; every weight must fit."""
    name = recipe or _RECIPES.get(file_format)
    if name is None:
        raise typer.BadParameter(f"a {file_format} file does not say its recipe; give --recipe")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    import_checkpoint(path, file_format, read_recipe(name, config), folder=output)
    typer.echo(str(output))


def read_recipe(name: str, config: Path) -> RecipeSpec:
    """Return the recipe of a JSON file, or of a name in a config.

    Raises:
        ConfigError: The config has no such recipe, or a value does not fit.
        OSError: A file cannot be read.
    """
    try:
        if name.endswith(".json"):
            return RecipeSpec.model_validate_json(Path(name).read_bytes())
        recipes = yaml.safe_load(config.read_text(encoding="utf-8"))["recipes"]
        if name in recipes:
            return RecipeSpec.model_validate(recipes[name])
    except ValidationError as error:
        found = explain(error, RecipeSpec.model_json_schema())
        raise ConfigError(f"{name}: not a recipe: {found}") from error
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"{config}: not a config with recipes; give another --config") from error
    raise ConfigError(
        f"{config}: no recipe {name!r}; there are {', '.join(sorted(recipes))}: give one of them "
        f"or a .json file"
    )
