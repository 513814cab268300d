"""Volumes drawn from a trained token transformer."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ct3dlib.cohort.hashes import array_sha256
from ct3dlib.config import SamplesSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.inference.loaded import Tokenizer, Transformer
from ct3dlib.inference.reconstruct import decode_indices
from ct3dlib.inference.sampler import Prompt, sample_indices, sample_seeds
from ct3dlib.progress import progress
from ct3dlib.scan.nifti import write_nifti
from ct3dlib.scan.volume import Volume


def generate_samples(
    model: Transformer, tokenizer: Tokenizer, spec: SamplesSpec, *, folder: Path
) -> pd.DataFrame:
    """Draw volumes and write them as NIfTI in HU on the grid of the training volumes.

    Args:
        model: A trained token transformer.
        tokenizer: The tokenizer whose indices it learnt.
        spec: How many, which labels, how they are drawn.
        folder: Where `sample_{i:04d}.nii.gz` go.

    Returns:
        One row per sample: sample, file, label, seed, hash of its indices.

    Raises:
        CheckpointError: The transformer learnt another tokenizer's indices, or a label is unknown
            to it.
    """
    if model.tokenizer_sha256 != tokenizer.sha256:
        raise CheckpointError(
            "the transformer learnt the indices of another tokenizer; train it again, or give the "
            "tokenizer it was trained with"
        )
    rows, domain = [], tokenizer.recipe.domain
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("sample_*.nii.gz"):
        old.unlink()
    seeds = sample_seeds(spec.seed, spec.num_samples)
    for i, seed in enumerate(progress(seeds, name="samples", unit="sample")):
        # A data set without labels is asked for nothing, whatever the config names.
        label = spec.labels[i % len(spec.labels)] if spec.labels and model.labels else ""
        prompt = label_prompt(model, label, seed=seed)
        indices = sample_indices(model.model, prompt, grid=model.grid, spec=spec)
        hu = decode_indices(
            tokenizer,
            indices[0],
            shape=model.volume_shape,
            window=tokenizer.recipe.window,
        )
        path = folder / f"sample_{i:04d}.nii.gz"
        low, high = (-1024, 3071) if domain == "hu" else (-32768, 32767)
        array = np.clip(np.rint(hu), low, high).astype(np.int16)
        write_nifti(path, Volume(array, model.affine, domain))
        digest = array_sha256(indices[0].cpu().numpy().astype(np.int32))
        row = {"sample": i, "file": path.name, "label": label, "seed": seed}
        rows.append({**row, "indices_sha256": digest})
    return pd.DataFrame(rows)


def label_prompt(model: Transformer, label: str, *, seed: int) -> Prompt:
    """Return what is asked of one sample: a single finding, or nothing where `label` is empty.

    Raises:
        CheckpointError: The model does not know the label.
    """
    names = model.labels
    if label and label not in names:
        known = ", ".join(names) or "no labels at all"
        raise CheckpointError(f"label {label!r} is unknown to this model; it knows {known}")
    wanted = torch.tensor([[float(name == label) for name in names]]).reshape(1, len(names))
    return Prompt([seed], wanted, torch.tensor([bool(label)]))
