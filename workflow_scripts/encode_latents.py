"""Store the latents of one shard's volumes."""

from argparse import Namespace

from ct3dlib.config import TokensSpec
from ct3dlib.inference.latents import store_latents_shard
from ct3dlib.inference.loaded import load_tokenizer
from ct3dlib.training.distributed import choose_device
from workflow_scripts.step import Arguments, run


def main(args: Namespace) -> None:
    """Encode the shard."""
    tokenizer = load_tokenizer(args.model, choose_device(args.device))
    store_latents_shard(args.volumes, tokenizer, args.spec, code=args.code, status=args.status)


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(TokensSpec)
        .paths("model", "volumes", "status")
        .text("code", "device"),
    )
