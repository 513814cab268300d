"""Vision-language encoders whose vectors are planted: what a volume holds stands in its voxels.

A study's labels are the first 18 voxels of its volume, 100 where a finding is there. Its vector,
that of its text and those of its regions are made of these, so what is found can be foretold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer, models

from ct3dlib.cohort.labels import LABELS
from ct3dlib.cohort.store import stored_volumes
from ct3dlib.cohort.studies import Study
from ct3dlib.config import RecipeSpec
from ct3dlib.inference.embed_studies import Split
from ct3dlib.inference.vlm import TextTable, TrainedVlm
from ct3dlib.models.vlm import RegionLanguageModel, ScanEmbeddings
from ct3dlib.text.reasoning import Reasoning
from tests.stores import write_shard

RECIPE = RecipeSpec(window=(-1000, 1000), range=(0, 1), hu_state="hu", min_slices=2)
R = 20
E = len(LABELS) + R
Kind = Literal["planted", "random", "constant"]


class Bare(RegionLanguageModel):
    """The parts of a model that evaluation asks for."""

    def __init__(self, embedding_size: int = E) -> None:
        torch.nn.Module.__init__(self)
        self.spec = SimpleNamespace(embedding_size=embedding_size)
        self.log_scale = torch.nn.Parameter(torch.full((1,), np.log(10.0)))
        self.region_log_scale = torch.nn.Parameter(torch.full((1,), np.log(10.0)))


@dataclass(frozen=True, eq=False)
class Planted(TrainedVlm):
    """A model of planted, of random or of constant vectors."""

    kind: Kind = "planted"

    def embed_volumes(self, values, window, *, regions=None, valid=None, want_local=False):
        codes = [np.where(one[0, 0, 0, : len(LABELS)] > 50, 1, -1) for one in values.numpy()]
        known = np.array([(one != 255).any() for one in regions.numpy()])
        table = _vectors(self.kind, codes, 0)
        present = torch.from_numpy(np.repeat(known[:, None], R, 1))
        return ScanEmbeddings(*map(torch.from_numpy, table), present, None)

    def embed_texts(self, texts: Sequence[Reasoning]) -> TextTable:
        codes = [_code(text) for text in texts]
        whole, region = _vectors(self.kind, codes, 1)
        ids = np.array([hash(tuple(code)) for code in codes])
        return TextTable(
            global_=whole,
            region=region,
            mention=np.stack([np.resize(code > 0, R).astype(np.int8) for code in codes]),
            text_ids=ids,
            region_ids=np.repeat(ids[:, None], R, 1),
            truncated=0,
        )


def planted(kind: Kind = "planted") -> Planted:
    """Return a model."""
    return Planted(Bare(), RECIPE, Tokenizer(models.BPE()), "ab" * 32, kind)


def report(labels: Sequence[int]) -> Reasoning:
    """Return what is written of a study with these findings."""
    said = [
        f"{name} is {'' if has else 'not '}present."
        for name, has in zip(LABELS, labels, strict=True)
    ]
    return Reasoning("", tuple(said), "report")


def write_split(folder: Path, count: int, *, seed: int, masks: bool = True) -> Split:
    """Write studies of two scans each, two to a patient, no two with the same findings."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice(2 ** len(LABELS), count, replace=False)
    labels = {f"s{i:03d}": [int(n) >> k & 1 for k in range(18)] for i, n in enumerate(drawn)}
    arrays = {}
    for study, found in labels.items():
        for number in (1, 2):
            array = np.zeros((2, 3, 20), np.int16)
            array[0, 0, :18] = 100 * np.array(found)
            array[1, 0, 0] = number
            arrays[f"{study}_{number}"] = array
    volumes = stored_volumes([write_shard(folder / "volumes.parquet", "volumes", arrays, RECIPE)])
    drawn_masks = {name: np.ones((2, 3, 20), np.uint8) for name in arrays} if masks else {}
    regions = stored_volumes(
        [write_shard(folder / "regions.parquet", "regions", drawn_masks, RECIPE)] if masks else []
    )
    named = {volume.volume: volume for volume in volumes}
    return Split(
        studies=[
            Study(name, f"p{i // 2:03d}", (named[f"{name}_1"], named[f"{name}_2"]))
            for i, name in enumerate(labels)
        ],
        texts={name: report(found) for name, found in labels.items()},
        labels={name: labels[name.split("_")[0]] for name in arrays},
        regions=regions,
    )


def _code(text: Reasoning) -> np.ndarray:
    """Return 1 for findings that are there, -1 for those that are not, 0 for what is not said."""
    code = np.zeros(len(LABELS), int)
    for step in text.steps:
        said = f" {step.lower()}"
        for k, name in enumerate(LABELS):
            if f" {name.lower()}" in said:
                code[k] = -1 if " no " in said or " not " in said else 1
    return code


def _vectors(kind: Kind, codes: Sequence[np.ndarray], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of codes and of their regions, n E and n R E, of length 1."""
    whole = np.zeros((len(codes), E))
    region = np.zeros((len(codes), R, E))
    for i, code in enumerate(codes):
        if kind == "random":
            rng = np.random.default_rng([side, *(int(c) + 1 for c in code)])
            whole[i], region[i] = rng.normal(size=E), rng.normal(size=(R, E))
        elif kind == "constant":
            whole[i], region[i] = 1, 1
        else:
            whole[i, : len(code)] = code
            region[i, :, : len(code)] = code
            region[i, :, len(code) :] = 2 * np.eye(R)
    return tuple(
        (v / np.linalg.norm(v, axis=-1, keepdims=True)).astype(np.float32) for v in (whole, region)
    )
