"""Store the embeddings of one shard's volumes."""

from argparse import Namespace

from ct3dlib.config import EmbeddingsSpec
from ct3dlib.inference.embed import load_volume_encoder
from ct3dlib.inference.embedding_tables import embed_shard
from ct3dlib.inference.scans import stored_readers
from ct3dlib.training.distributed import choose_device
from workflow_scripts.step import Arguments, run


def main(args: Namespace) -> None:
    """Embed the shard."""
    spec: EmbeddingsSpec = args.spec
    encoder = load_volume_encoder(args.model, choose_device(args.device))
    embed_shard(
        encoder,
        stored_readers([args.volumes], encoder.recipe, model=encoder.name),
        regional=spec.regional,
        batch_size=spec.volumes_per_batch,
        table=args.table,
    )


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(EmbeddingsSpec)
        .paths("model", "volumes", "table")
        .text("device"),
    )
