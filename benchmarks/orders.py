"""How near samples come to held-out volumes: our orders beside prod9's, with the same weights.

The peer commits the likeliest index of the most certain positions first, without any draw. Takes a
finished run with enough held-out volumes, such as that of `make cohort`; the figure is the kernel
distance of `metrics/generation.json`.

    python benchmarks/orders.py --run cohort --json metrics/benchmarks.json
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from ingest import publish
from store import record

from ct3dlib.cohort.store import StoredVolume, stored_volumes
from ct3dlib.config import SamplesSpec
from ct3dlib.inference.decode import find_model
from ct3dlib.inference.evaluate_samples import evaluate_samples, read_samples
from ct3dlib.inference.generate import generate_samples
from ct3dlib.inference.loaded import Tokenizer, Transformer, load_transformer

PEER = {"order": "confidence", "schedule": "log2", "temperature": 0.0, "choice_temperature": 0.0}
OURS = {
    "halton": {"order": "halton", "schedule": "arccos"},
    "random": {"order": "random", "schedule": "arccos"},
    "confidence": {"order": "confidence", "schedule": "cosine"},
}


def distance(
    model: Transformer,
    tokenizer: Tokenizer,
    spec: SamplesSpec,
    *,
    train: list[StoredVolume],
    valid: list[StoredVolume],
) -> float:
    """Return the kernel distance of samples from held-out volumes."""
    with tempfile.TemporaryDirectory() as name:
        table = generate_samples(model, tokenizer, spec, folder=Path(name))
        drawn = read_samples(Path(name) / "samples.csv", table["file"].tolist())
        samples = [volume.array for volume in drawn]
    return evaluate_samples(tokenizer, samples, train=train, valid=valid)["kid"]


def compare(run: Path, *, num_samples: int, guidance: float) -> list[dict[str, Any]]:
    """Sample in every order with the same seeds and labels and return the claims' records."""
    device = torch.device("cpu")
    model = load_transformer(run / "models/transformer", device)
    tokenizer = find_model(run / "models", model.tokenizer_sha256, device)
    train, valid = (
        stored_volumes(sorted((run / "data/volumes").glob(f"*/{split}/*.parquet")))
        for split in ("train", "valid")
    )
    labels = ("Pleural effusion", "Cardiomegaly", "Atelectasis", "Pericardial effusion")
    base = SamplesSpec(num_samples=num_samples, guidance=guidance, labels=labels)
    found = {
        name: distance(model, tokenizer, base.model_copy(update=changes), train=train, valid=valid)
        for name, changes in {"peer": PEER, **OURS}.items()
    }
    return [record(f"orders/{name}", found[name], found["peer"], "KID") for name in OURS]


def main() -> None:
    """Print the table and write the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--num-samples", type=int, default=24)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--json", type=Path, help="file that the records are joined to")
    args = parser.parse_args()
    publish(compare(args.run, num_samples=args.num_samples, guidance=args.guidance), args.json)


if __name__ == "__main__":
    main()
