"""`ct3d generate`: volumes drawn from a trained token transformer."""

from pathlib import Path
from typing import Annotated

import typer

from ct3dlib.cli_single import MetadataTable, SeriesChoice, default_device
from ct3dlib.config import MaskSchedule, SampleOrder, SamplesSpec
from ct3dlib.inference.decode import find_model
from ct3dlib.inference.generate import SourceScan, generate_samples
from ct3dlib.inference.loaded import load_transformer
from ct3dlib.inference.single import read_scan


def _new_folder(path: Path) -> Path:
    """Refuse a folder that holds something, before anything is computed."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise typer.BadParameter(f"{path}: is there already; give a folder that is new or empty")
    return path


def generate(  # noqa: PLR0913  (a parameter for each option)
    model: Annotated[Path, typer.Argument(help="models/transformer")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", callback=_new_folder, help="folder: NIfTI and samples.csv"),
    ],
    num_samples: Annotated[int, typer.Option(min=1, help="volumes to draw")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="the same volumes for the same seed")] = 0,
    label: Annotated[
        list[str] | None,
        typer.Option(help="finding or class; of several, one sample after another"),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="forward passes of one sample")] = 12,
    schedule: Annotated[MaskSchedule, typer.Option(help="how many positions a step draws")] = (
        "cosine"
    ),
    order: Annotated[SampleOrder, typer.Option(help="which positions come first")] = "confidence",
    temperature: Annotated[float, typer.Option(min=0.0, help="0: the likeliest")] = 1.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="classes that may be drawn")] = None,
    guidance: Annotated[float, typer.Option(min=0.0, help="weight of the label at the end")] = 0.0,
    source: Annotated[
        Path | None, typer.Option(help="scan to translate, of a model that was trained to")
    ] = None,
    source_label: Annotated[str, typer.Option(help="what the source is, as t1")] = "",
    metadata: MetadataTable = None,
    series: SeriesChoice = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="its tokenizer, or a folder that holds it; else beside the model"),
    ] = None,
) -> None:
    """Draw volumes from a trained transformer and write them as NIfTI.

    With a source they are what it would be under the labels asked for, on its own grid.
    """
    if source is None and (source_label or metadata or series):
        raise typer.BadParameter("--source-label, --metadata and --series belong to a --source")
    spec = SamplesSpec(
        num_samples=num_samples,
        seed=seed,
        labels=tuple(label or ()),
        steps=steps,
        schedule=schedule,
        order=order,
        temperature=temperature,
        top_k=top_k,
        guidance=guidance,
    )
    device = default_device()
    transformer = load_transformer(model, device)
    if label and not transformer.labels:
        raise typer.BadParameter(f"{model}: was trained without labels; leave --label out")
    found = find_model(tokenizer or model.resolve().parent, transformer.tokenizer_sha256, device)
    translated = None
    if source is not None:
        scan = read_scan(source, found.recipe, metadata=metadata, series=series)
        translated = SourceScan(scan, source_label)
    table = generate_samples(transformer, found, spec, folder=output, source=translated)
    table.to_csv(output / "samples.csv", index=False)
    typer.echo(f"{output}: {len(table)} volumes")
