"""`ct3d generate`: volumes drawn from a trained token transformer."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from pydantic import ValidationError

from ct3dlib.cli_single import (
    Blending,
    MetadataTable,
    Overlap,
    RoiSize,
    SeriesChoice,
    WindowsAtATime,
    default_device,
    in_chosen_windows,
)
from ct3dlib.config import MaskSchedule, SampleOrder, SamplesSpec
from ct3dlib.config.explain import explain
from ct3dlib.inference.decode import find_model
from ct3dlib.inference.generate import SourceScan, generate_samples
from ct3dlib.inference.loaded import load_transformer
from ct3dlib.inference.single import read_scan
from ct3dlib.text.embeddings import read_embedding

_DEFAULT = SamplesSpec()


def _new_folder(path: Path) -> Path:
    """Refuse a folder that holds something, before anything is computed."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise typer.BadParameter(f"{path}: is there already; give a folder that is new or empty")
    return path


Checkpoint = Annotated[Path, typer.Option(help="the trained transformer, models/transformer")]
NewFolder = Annotated[
    Path,
    typer.Option("--output", "-o", callback=_new_folder, help="folder: NIfTI and samples.csv"),
]
NumSamples = Annotated[int, typer.Option(min=1, help="volumes to draw")]
Seed = Annotated[int, typer.Option(min=0, help="the same volumes for the same seed")]
Labels = Annotated[
    list[str] | None,
    typer.Option(help="finding or class; of several, one sample after another"),
]
Steps = Annotated[int, typer.Option(min=1, help="forward passes of one sample")]
Schedule = Annotated[MaskSchedule, typer.Option(help="how many positions a step draws")]
Order = Annotated[SampleOrder, typer.Option(help="which positions come first")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0: the likeliest")]
TopK = Annotated[int | None, typer.Option(min=1, help="classes that may be drawn; else all")]
ChoiceTemperature = Annotated[float, typer.Option(min=0.0, help="noise of the order by confidence")]
Guidance = Annotated[float, typer.Option(min=0.0, help="weight of the label at the end")]
SourceFile = Annotated[
    Path | None, typer.Option(help="scan to translate, of a model that was trained to")
]
SourceLabel = Annotated[str, typer.Option(help="what the source is, as t1")]
Target = Annotated[str | None, typer.Option(help="what the source is translated into, as t2")]
TextFile = Annotated[
    Path | None,
    typer.Option(
        help="vector of a text, .npy, by the encoder that the training's texts went through"
    ),
]
TokenizerFolder = Annotated[
    Path | None,
    typer.Option(help="its tokenizer, or a folder that holds it; else beside the checkpoint"),
]


def generate(  # noqa: PLR0913  (a parameter for each option)
    checkpoint: Checkpoint,
    output: NewFolder,
    num_samples: NumSamples = _DEFAULT.num_samples,
    seed: Seed = _DEFAULT.seed,
    label: Labels = None,
    steps: Steps = _DEFAULT.steps,
    schedule: Schedule = _DEFAULT.schedule,
    order: Order = _DEFAULT.order,
    temperature: Temperature = _DEFAULT.temperature,
    top_k: TopK = _DEFAULT.top_k,
    choice_temperature: ChoiceTemperature = _DEFAULT.choice_temperature,
    guidance: Guidance = _DEFAULT.guidance,
    source: SourceFile = None,
    source_label: SourceLabel = "",
    target: Target = None,
    text: TextFile = None,
    metadata: MetadataTable = None,
    series: SeriesChoice = None,
    tokenizer: TokenizerFolder = None,
    roi_size: RoiSize = None,
    overlap: Overlap = None,
    sw_batch_size: WindowsAtATime = None,
    mode: Blending = None,
) -> None:
    """Draw volumes from a trained transformer and write them as NIfTI.

    With a source they are what it would be as the target, on its own grid.

    Options of windows that are left out stay as the tokenizer was trained; a causal one takes none.
    """
    if source is None and (source_label or metadata or series):
        raise typer.BadParameter("--source-label, --metadata and --series belong to a --source")
    labels = _asked_for(label, target, translates=source is not None)
    try:
        spec = SamplesSpec(
            num_samples=num_samples,
            seed=seed,
            labels=labels,
            steps=steps,
            schedule=schedule,
            order=order,
            temperature=temperature,
            top_k=top_k,
            choice_temperature=choice_temperature,
            guidance=guidance,
        )
    except ValidationError as error:
        raise typer.BadParameter(explain(error, SamplesSpec.model_json_schema())) from error
    device = default_device()
    transformer = load_transformer(checkpoint, device)
    if spec.labels and not transformer.labels:
        raise typer.BadParameter(
            f"{checkpoint}: was trained without labels; leave --label and --target out"
        )
    folder = tokenizer or checkpoint.resolve().parent
    found = in_chosen_windows(
        find_model(folder, transformer.tokenizer_sha256, device),
        roi_size=roi_size,
        overlap=overlap,
        sw_batch_size=sw_batch_size,
        mode=mode,
    )
    translated = None
    if source is not None:
        scan = read_scan(source, found.recipe, metadata=metadata, series=series)
        translated = SourceScan(scan, source_label)
    said = None if text is None else torch.from_numpy(read_embedding(text))
    table = generate_samples(transformer, found, spec, folder=output, source=translated, text=said)
    table.to_csv(output / "samples.csv", index=False)
    typer.echo(f"{output}: {len(table)} volumes")


def _asked_for(
    labels: list[str] | None, target: str | None, *, translates: bool
) -> tuple[str, ...]:
    """Return the labels that samples are asked for: those of --label, or the one of --target."""
    if target is None:
        return tuple(labels or ())
    if not translates:
        raise typer.BadParameter(
            f"--target {target}: is what a --source becomes; give one, or say --label {target}"
        )
    if labels:
        raise typer.BadParameter(
            f"--target {target}, --label {', '.join(labels)}: both say what the source becomes; "
            f"give one of them"
        )
    return (target,)
