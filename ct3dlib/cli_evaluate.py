"""`ct3d evaluate`: what the pipeline made against references that lie elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
import yaml

from ct3dlib.cohort.durable import publish
from ct3dlib.cohort.location import Location, location
from ct3dlib.cohort.private import RawRoot, raw_root
from ct3dlib.cohort.store import (
    StoredVolume,
    held_by,
    read_status,
    records,
    stored_volumes,
)
from ct3dlib.cohort.stored_array import store_of
from ct3dlib.cohort.verify import find_tables
from ct3dlib.config import LabelMapSpec, Numbering, RegionsSpec, load_regions
from ct3dlib.errors import ConfigError, StoreError
from ct3dlib.inference.evaluate_regions import (
    Comparison,
    Found,
    LeftOut,
    compare_regions,
    regions_by,
    stored_regions,
    summarise,
)
from ct3dlib.regions import build_segmenter
from ct3dlib.regions.drawn import record_of
from ct3dlib.regions.label_files import LabelMap
from ct3dlib.regions.labelmap import LabelMapProvider

evaluating = typer.Typer(no_args_is_help=True, help="Hold what was made against references.")


@evaluating.callback()
def _group() -> None:
    """Keep `regions` a name of its own while it is the only one."""


def _csv_name(path: Path) -> Path:
    """Refuse a name that is no table's, or a folder that is not there, before anything is done."""
    if path.suffix != ".csv":
        raise typer.BadParameter(f"{path}: the name must end with .csv")
    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"{path.parent}: no such folder; make it first")
    return path


Tables = Annotated[
    list[str],
    typer.Argument(help="data/regions/RECIPE/SPLIT or data/volumes/RECIPE/SPLIT, tables in them"),
]
ReferenceFolder = Annotated[
    Path,
    typer.Option(
        "--reference", exists=True, file_okay=False, help="label maps: placed as scans, or VOLUME"
    ),
]
Table = Annotated[
    Path,
    typer.Option("--output", "-o", callback=_csv_name, help="a row per region; .volumes.csv: each"),
]
Strip = Annotated[int, typer.Option(min=0, help="leading folders that references do not have")]
Numbers = Annotated[
    Numbering | None, typer.Option(help="what numbers mean in references that name no classes")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(help="of a volume store: config or preset whose `regions` says who finds them"),
]


@evaluating.command()
def regions(
    tables: Tables,
    reference: ReferenceFolder,
    output: Table,
    strip: Strip = 0,
    numbering: Numbers = None,
    config: ConfigFile = None,
) -> None:
    """Compare region masks with reference label maps.

    Tables of volumes are segmented on the way, as --config says, and nothing of it is kept: so a
    provider is tried out before a data set is sent through it.
    """
    found = list(dict.fromkeys(t for text in tables for t in find_tables(location(text))))
    volumes = stored_volumes(found)
    lookup = LabelMapProvider(
        LabelMapSpec(folder=reference.resolve().name or ".", strip=strip, numbering=numbering),
        _raw(reference.resolve().parent, volumes, found),
    )
    find = _finder(found, volumes, config)
    compared = compare_regions(volumes, find, lambda volume: _reference(lookup, volume))
    left_out = [*_rejected(found), *compared.left_out]
    if not compared.compared:
        raise StoreError(_nothing(reference, len(volumes), left_out))
    summary = summarise(compared.scores)
    _write(summary, output)
    _write(compared.scores, output.with_suffix(".volumes.csv"))
    _say(summary, compared, left_out)
    typer.echo(str(output))


def _finder(
    tables: Sequence[Location], volumes: Sequence[StoredVolume], config: Path | None
) -> Callable[[StoredVolume], Found]:
    """Return what gives the regions of a volume: the store itself, or the providers of a config."""
    kinds = {str((held_by(store_of(table)) or {}).get("kind")) for table in tables}
    match sorted(kinds):
        case ["regions"] if config is None:
            return stored_regions
        case ["regions"]:
            raise typer.BadParameter(f"{config}: these tables hold regions already; leave it out")
        case ["volumes"] if config is not None:
            folder, spec = read_regions(config)
            return regions_by(build_segmenter(spec, _raw(folder, volumes, tables)))
        case ["volumes"]:
            raise typer.BadParameter(
                "these tables hold volumes; say who finds their regions, --config, or give "
                "data/regions"
            )
        case others:
            raise typer.BadParameter(
                f"these tables hold {' and '.join(others)}; give regions, or volumes and --config"
            )


def read_regions(config: Path) -> tuple[Path, RegionsSpec]:
    """Return raw_root and the section `regions` of a config or a preset.

    Raises:
        ConfigError: It is no YAML, has no such section, or a value does not fit.
    """
    try:
        mapping: Any = yaml.safe_load(config.read_text(encoding="utf-8"))
        if not isinstance(mapping, Mapping):
            raise ConfigError("not a config")
        folder, spec = load_regions(mapping)
    except (OSError, yaml.YAMLError, ConfigError) as error:
        raise ConfigError(f"{config}: {error}") from error
    return Path(folder), spec


def _raw(folder: Path, volumes: Sequence[StoredVolume], tables: Sequence[Location]) -> RawRoot:
    """Return a raw root that tells pseudonyms, where data/private lies beside the tables."""
    known = [volume for volume in volumes if volume.sources]
    rows = pd.DataFrame(
        {"volume": [v.volume for v in known], "sources": [v.sources for v in known]}
    )
    above = [p for table in tables if isinstance(table, Path) for p in table.absolute().parents]
    private = next((p / "private" for p in above if (p / "private").is_dir()), None)
    return raw_root(folder, rows, private=private)


def _reference(lookup: LabelMapProvider, volume: StoredVolume) -> LabelMap:
    """Return the reference of a volume on its grid."""
    return lookup.read(
        volume.volume,
        volume.sources,
        record=record_of(volume),
        affine=volume.affine,
        shape=volume.shape,
    )


def _rejected(tables: Sequence[Location]) -> list[LeftOut]:
    """Return the volumes that the tables themselves reject."""
    rows = [row for table in tables for row in records(read_status(table))]
    return [
        LeftOut(row["volume"], row["reason"], row["message"])
        for row in rows
        if row["status"] == "rejected"
    ]


def _nothing(reference: Path, num_volumes: int, left_out: Sequence[LeftOut]) -> str:
    """Return why no volume could be compared, and the way out."""
    if not left_out:
        return "these tables hold no volume; run their rule again"
    last = left_out[-1]
    why = f"{reference}: none of {num_volumes} volumes can be compared, as {last.message}"
    if last.reason != "NO_LABEL_MAP":
        return why
    return f"{why}; a label map lies as its scan does (--strip), or is called as the volume"


def _write(frame: pd.DataFrame, path: Path) -> None:
    """Write a table, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    frame.to_csv(partial, index=False, float_format="%.6g")
    publish(partial, path)


def _say(summary: pd.DataFrame, compared: Comparison, left_out: Sequence[LeftOut]) -> None:
    """Print the table and who is not in it."""
    shown = summary.drop(columns="id").rename(columns={"dice_median": "median"})
    formats = {"dice": "{:.3f}", "median": "{:.3f}", "volume_error": "{:+.1%}"}
    typer.echo(
        shown.to_string(
            index=False,
            na_rep="",
            formatters={name: text.format for name, text in formats.items()},
        )
    )
    typer.echo(f"{compared.compared} volumes compared, {len(left_out)} left out")
    reasons = dict.fromkeys(volume.reason for volume in left_out)
    for reason in reasons:
        messages = [volume.message for volume in left_out if volume.reason == reason]
        typer.echo(f"  {len(messages)} {reason}, as {messages[0]}")
