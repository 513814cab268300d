"""What a model or a table holds, as text for people."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from ct3dlib.cohort.location import Location
from ct3dlib.cohort.store import read_table, records
from ct3dlib.errors import StoreError
from ct3dlib.inference.loaded import Tokenizer, bit_order, load_tokenizer
from ct3dlib.models.autoencoder import VolumeAutoencoder
from ct3dlib.models.exported import load_model
from ct3dlib.models.tokenizer import CausalTokenizer


def describe_model(folder: Path) -> str:
    """Return what a model sees, its spec, the whole of its contract and its training.

    Raises:
        CheckpointError: The folder holds no whole model, or a tokenizer without a recipe.
    """
    model = load_model(folder)
    parameters = sum(p.numel() for p in model.module.parameters())
    parts = {
        "spec": model.spec.model_dump(mode="json"),
        "contract": dict(model.contract),
        "training": dict(model.training),
    }
    head = (
        f"{folder}: {type(model.module).__name__}, {parameters:,} parameters, {model.sha256[:12]}"
    )
    seen = []
    if isinstance(model.module, VolumeAutoencoder):
        seen = _preprocessing(load_tokenizer(folder, torch.device("cpu")))
    whole = [f"{k}: {json.dumps(v, indent=2)}" for k, v in parts.items()]
    return "\n".join([head, *seen, *whole])


def _preprocessing(tokenizer: Tokenizer) -> list[str]:
    """Return a line for each thing that happens to a volume on its way to tokens, in that order."""
    recipe, model = tokenizer.recipe, tokenizer.model
    unit = " HU" if recipe.domain == "hu" else ""
    window = f"{recipe.window[0]:g} to {recipe.window[1]:g}{unit}"
    if recipe.percentiles is not None:
        window = f"percentiles {recipe.percentiles[0]:g} to {recipe.percentiles[1]:g} of each"
    quantizer = model.quantizer
    codebook = "none; latents stay continuous"
    if quantizer is not None:
        codebook = (
            f"{quantizer.codebook_size:,} codes of {quantizer.channels} channels, "
            f"{quantizer.bits} bits, {bit_order(model.spec)}"
        )
    lines = {
        "values": recipe.domain,
        "clipped first": _span(recipe.clip_first),
        "spacing, mm": _triple(recipe.spacing),
        "size": _triple(recipe.size),
        "body margin, mm": None if recipe.body_margin is None else f"{recipe.body_margin:g}",
        "shape": _triple(recipe.shape),
        "centre": recipe.center,
        "window": window,
        "range": _span(recipe.range),
        "axes": f"{recipe.axes}, of volumes D H W",
        "windows": _windows(tokenizer),
        "voxels a latent": _triple(model.downsampling),
        "codebook": codebook,
    }
    return [f"  {name}: {value}" for name, value in lines.items() if value is not None]


def _windows(tokenizer: Tokenizer) -> str:
    """Return the windows in which volumes go through a model."""
    sliding = tokenizer.sliding
    if isinstance(tokenizer.model, CausalTokenizer):
        stride, *_ = tokenizer.model.downsampling
        return f"causal, {2 + stride} slices every {stride}"
    if sliding is None:
        return "none, volumes are seen whole"
    return f"{_triple(sliding.roi_size)}, overlap {sliding.overlap:g}, {sliding.mode}"


def _span(values: tuple[float, float] | None) -> str | None:
    """Return low and high as text."""
    return None if values is None else f"{values[0]:g} to {values[1]:g}"


def _triple(values: Sequence[int | float] | None) -> str | None:
    """Return values along D, H and W as text."""
    return None if values is None else " x ".join(f"{value:g}" for value in values)


def describe_table(path: Location) -> str:
    """Return the counts of a status table or catalog, its rejected rows, and a line per volume.

    Raises:
        StoreError: The file is not a table with volumes.
    """
    try:
        frame = read_table(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: not a model's folder and not a table ({error})") from error
    if "volume" not in frame.columns:
        raise StoreError(f"{path}: no column 'volume'; give a catalog or a status table")
    rows = records(frame)
    lines = [f"{path}: {len(rows)} volumes"]
    counts = Counter(row["status"] for row in rows if "status" in row)
    lines += [f"  {status}: {count}" for status, count in counts.items()]
    rejected = [row for row in rows if row.get("status") == "rejected"]
    lines += [f"  {row['volume']} rejected, {row['reason']}: {row['message']}" for row in rejected]
    problems = [row for row in rows if row.get("problem")]
    lines += [f"  {r['volume']} to be rejected, {r['problem_message']}" for r in problems]
    columns = [c for c in ("volume", "split", "shard", "shape", "spacing") if c in frame.columns]
    out = [*rejected, *problems]
    kept = [{c: row[c] for c in columns} for row in rows if row not in out]
    return "\n".join([*lines, pd.DataFrame(kept).to_string(index=False) if kept else ""])
