"""Measure how far samples are from held-out volumes, each other and the training."""

from argparse import Namespace

import pandas as pd

from ct3dlib.cohort.store import stored_volumes
from ct3dlib.inference.evaluate_samples import evaluate_samples, read_samples
from ct3dlib.inference.loaded import load_tokenizer
from ct3dlib.training.distributed import choose_device
from workflow_scripts.step import Arguments, run, write_json


def main(args: Namespace) -> None:
    """Write metrics/generation.json."""
    tokenizer = load_tokenizer(args.tokenizer, choose_device(args.device))
    files = pd.read_csv(args.samples)["file"].tolist()
    samples = [volume.array for volume in read_samples(args.samples, files)]
    train, valid = stored_volumes(args.train), stored_volumes(args.valid)
    write_json(args.metrics, evaluate_samples(tokenizer, samples, train=train, valid=valid))


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .paths("tokenizer", "samples", "metrics")
        .lists("train", "valid")
        .text("device"),
    )
