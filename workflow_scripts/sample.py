"""Draw volumes from the trained transformer."""

from argparse import Namespace

from ct3dlib.config import SamplesSpec
from ct3dlib.inference.generate import generate_samples
from ct3dlib.inference.loaded import load_tokenizer, load_transformer
from ct3dlib.training.distributed import choose_device
from workflow_scripts.step import Arguments, run


def main(args: Namespace) -> None:
    """Write the samples, then the table that names them."""
    device = choose_device(args.device)
    model = load_transformer(args.model, device)
    tokenizer = load_tokenizer(args.tokenizer, device)
    table = generate_samples(model, tokenizer, args.spec, folder=args.folder)
    partial = args.table.with_name(f"{args.table.name}.partial")
    table.to_csv(partial, index=False)
    partial.replace(args.table)


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(SamplesSpec)
        .paths("model", "tokenizer", "folder", "table")
        .text("device"),
    )
