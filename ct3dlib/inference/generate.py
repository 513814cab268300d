"""Volumes drawn from a trained token transformer."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ct3dlib.cohort.hashes import array_sha256
from ct3dlib.config import SamplesSpec, Shape
from ct3dlib.errors import CheckpointError
from ct3dlib.inference.decode import to_volume
from ct3dlib.inference.loaded import Tokenizer, Transformer
from ct3dlib.inference.reconstruct import decode_indices, encode_volume
from ct3dlib.inference.sampler import Prompt, sample_indices, sample_seeds
from ct3dlib.inference.single import Scan
from ct3dlib.models.maskgit import Conditions, Source, Text
from ct3dlib.progress import progress
from ct3dlib.scan.nifti import write_nifti
from ct3dlib.scan.volume import Volume

_WINDOWS_PER_BATCH = 8


@dataclass(frozen=True)
class SourceScan:
    """What is translated.

    Args:
        scan: On the grid of the tokenizer's recipe.
        label: What it is, as the catalog names it.
    """

    scan: Scan
    label: str


def generate_samples(
    model: Transformer,
    tokenizer: Tokenizer,
    spec: SamplesSpec,
    *,
    folder: Path,
    source: SourceScan | None = None,
    text: Float[Tensor, " E"] | None = None,
) -> pd.DataFrame:
    """Draw volumes and write them as NIfTI.

    They lie on the grid of the training volumes, in HU or whatever the recipe's window spans;
    translated ones on the grid of the source, in its window. Where the model was trained on slabs
    of volumes, they are drawn slab by slab.

    Args:
        model: A trained token transformer.
        tokenizer: The tokenizer whose indices it learnt.
        spec: How many, which labels, how they are drawn.
        folder: Where `sample_{i:04d}.nii.gz` go.
        source: What is translated, by a model that was trained to.
        text: What all are to show, as the encoder of the training's texts has it.

    Returns:
        One row per sample: sample, file, label, seed, hash of its indices.

    Raises:
        CheckpointError: The transformer learnt another tokenizer's indices, a label is unknown to
            it, it does not translate, or it cannot read the text.
    """
    if model.tokenizer_sha256 != tokenizer.sha256:
        raise CheckpointError(
            "the transformer learnt the indices of another tokenizer; train it again, or give the "
            "tokenizer it was trained with"
        )
    translated = None if source is None else _encoded(model, tokenizer, source)
    said = None if text is None else _said(model, text)
    for label in spec.labels if model.labels else ():
        label_conditions(model, label)  # all are known before the first sample is drawn
    rows = []
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("sample_*.nii.gz"):
        old.unlink()
    seeds = sample_seeds(spec.seed, spec.num_samples)
    for i, seed in enumerate(progress(seeds, name="samples", unit="sample")):
        # A data set without labels is asked for nothing, whatever the config names.
        label = spec.labels[i % len(spec.labels)] if spec.labels and model.labels else ""
        asked = replace(label_conditions(model, label), source=translated, text=said)
        grid = model.grid if translated is None else _grid(translated)
        indices = sample_indices(model.model, Prompt([seed], asked), grid=grid, spec=spec)
        path = folder / f"sample_{i:04d}.nii.gz"
        write_nifti(path, _decoded(model, tokenizer, indices[0], source))
        digest = array_sha256(indices[0].cpu().numpy().astype(np.int32))
        row = {"sample": i, "file": path.name, "label": label, "seed": seed}
        rows.append({**row, "indices_sha256": digest})
    return pd.DataFrame(rows)


def _encoded(model: Transformer, tokenizer: Tokenizer, source: SourceScan) -> Source:
    """Return the tokens and the label of a scan that is translated."""
    if not model.model.spec.source:
        raise CheckpointError(
            "the transformer was trained without sources (transformer.source): it draws volumes "
            "and translates none"
        )
    encoded = encode_volume(
        tokenizer,
        source.scan.volume.array,
        window=source.scan.window,
        windows_per_batch=_WINDOWS_PER_BATCH,
    )
    labels = label_conditions(model, source.label).labels
    return Source(encoded.indices[None].cpu(), labels, torch.ones(1, dtype=torch.bool))


def _said(model: Transformer, text: Float[Tensor, " E"]) -> Text:
    """Return the text of a sample."""
    size = model.model.spec.text_size
    if not size:
        raise CheckpointError(
            "the transformer was trained without texts (transformer.text): leave the text out"
        )
    if len(text) != size:
        raise CheckpointError(
            f"the text is a vector of {len(text)} numbers, the transformer was trained with "
            f"{size}; embed it with the encoder of the training's texts"
        )
    return Text(text[None].float(), torch.ones(1, dtype=torch.bool))


def _grid(source: Source) -> Shape:
    """Return the tokens along (D, H, W) of a source."""
    _, depth, height, width = source.indices.shape
    return depth, height, width


def _decoded(
    model: Transformer,
    tokenizer: Tokenizer,
    indices: Int[Tensor, "D H W"],
    source: SourceScan | None,
) -> Volume:
    """Return the volume of indices, int16, where it belongs."""
    domain = tokenizer.recipe.domain
    if source is not None:
        scan = source.scan
        values = decode_indices(tokenizer, indices, shape=scan.volume.shape, window=scan.window)
        ct3d = {"affine": scan.record.affine, "record": scan.record.model_dump(mode="json")}
        return to_volume(values, ct3d, domain=domain)
    window = tokenizer.recipe.window
    values = decode_indices(tokenizer, indices, shape=model.volume_shape, window=window)
    return to_volume(values, {"affine": model.affine}, domain=domain, stored_grid=True)


def label_conditions(model: Transformer, label: str) -> Conditions:
    """Return the conditions of one sample: a single finding, or nothing where `label` is empty.

    Raises:
        CheckpointError: The model does not know the label.
    """
    names = model.labels
    if label and label not in names:
        known = ", ".join(names) or "no labels at all"
        raise CheckpointError(f"label {label!r} is unknown to this model; it knows {known}")
    wanted = torch.tensor([[float(name == label) for name in names]]).reshape(1, len(names))
    return Conditions(wanted, torch.tensor([bool(label)]))
