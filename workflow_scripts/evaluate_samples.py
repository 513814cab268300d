"""Measure how far samples are from held-out volumes, each other and the training."""

from argparse import Namespace
from pathlib import Path

import pandas as pd

from ct3dlib.cohort.catalog import read_catalog
from ct3dlib.cohort.labels import label_vectors
from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import GenerationSpec
from ct3dlib.inference.evaluate_samples import evaluate_samples, read_samples
from ct3dlib.inference.judge import judge_samples, judge_volumes, load_judge
from ct3dlib.inference.loaded import load_tokenizer
from ct3dlib.models.slice_network import load_slice_network
from ct3dlib.training.distributed import choose_device
from workflow_scripts.step import Arguments, run, write_json


def main(args: Namespace) -> None:
    """Write metrics/generation.json."""
    device = choose_device(args.device)
    tokenizer = load_tokenizer(args.tokenizer, device)
    network = load_slice_network(args.spec, device)
    table = pd.read_csv(args.samples, keep_default_na=False)
    samples = [volume.array for volume in read_samples(args.samples, table["file"].tolist())]
    train, valid = stored_volumes(args.train), stored_volumes(args.valid)
    found = evaluate_samples(tokenizer, samples, train=train, valid=valid, network=network)
    if args.classifier is not None:
        judge = load_judge(args.classifier, device)
        labels = label_vectors(read_catalog(args.catalog))
        found["label_balanced_accuracy"] = judge_samples(judge, samples, table["label"].tolist())
        found["held_out_balanced_accuracy"] = judge_volumes(judge, valid, labels)
    write_json(args.metrics, found)


if __name__ == "__main__":
    arguments = (
        Arguments(description=__doc__)
        .spec(GenerationSpec)
        .paths("catalog", "tokenizer", "samples", "metrics")
        .lists("train", "valid")
        .text("device")
    )
    arguments.add_argument("--classifier", type=Path, help="judge of the samples' labels")
    run(main, arguments)
