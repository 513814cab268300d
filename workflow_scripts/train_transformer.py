"""Train the token transformer on the encoded train split and export its best weights."""

from argparse import Namespace

import torch

from ct3dlib.config import MaskGITNetworkSpec, TransformerSpec
from ct3dlib.errors import StoreError
from ct3dlib.inference.contract import check_tokens
from ct3dlib.inference.loaded import Tokenizer, load_tokenizer
from ct3dlib.objectives.maskgit import MaskGITObjective
from ct3dlib.training.token_items import TokenItems, split_items
from workflow_scripts.step import Arguments, run
from workflow_scripts.training import fit


def main(args: Namespace) -> None:
    """Train and export."""
    spec: TransformerSpec = args.spec
    items = split_items(args.tokens, "train", args.catalog, spec)
    validation = split_items(args.tokens, "tune", args.catalog, spec)
    grid = items.grid
    _check_conditions(items, spec)
    tokenizer = load_tokenizer(args.tokenizer, torch.device("cpu"))
    check_tokens(items.first, tokenizer)
    network = _network(spec, items, tokenizer)
    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    objective = MaskGITObjective(spec, network)
    described = items.first.attributes["ct3d"]
    contract = {
        "grid": list(grid),
        "volume_shape": described["volume_shape"],
        "affine": described["affine"],
        "labels": list(items.names),
        "tokenizer_sha256": tokenizer.sha256,
    }
    fit(objective, items, validation, args=args, contract=contract)


def _network(spec: TransformerSpec, items: TokenItems, tokenizer: Tokenizer) -> MaskGITNetworkSpec:
    """Return the transformer of these items: its section with what they hold."""
    return MaskGITNetworkSpec(
        **spec.model.model_dump(exclude={"bits_per_group"}),
        radices=spec.model.radices(tokenizer.model.spec.quantizer),
        num_labels=len(items.names),
        source=spec.source is not None,
        text_size=items.text_size,
        slab=spec.slab,
    )


def _check_conditions(items: TokenItems, spec: TransformerSpec) -> None:
    """Raise where the config asks for a condition that no item has."""
    if spec.source is not None and not items.has_sources:
        raise StoreError(
            "transformer.source: no study has two encoded volumes of different labels in the train "
            "split; give the catalog several modalities of a study, or set source to null"
        )
    if spec.text is not None and not items.has_texts:
        raise StoreError(
            f"transformer.text: {spec.text.embeddings} has a row for no encoded volume of the "
            f"train split; give it the catalog's ids (column `volume`), or set text to null"
        )


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(TransformerSpec)
        .paths("catalog", "tokens", "tokenizer", "run", "model")
        .text("code"),
    )
