"""Pretrain the masked autoencoder on whole volumes and export its best weights."""

from argparse import Namespace
from pathlib import Path

from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import MaeSpec, MaskedAutoencoderNetworkSpec, RecipeSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.inference.pretrained_encoder import load_start
from ct3dlib.models.mae import MaskedAutoencoder
from ct3dlib.objectives.mae import MaskedAutoencoderObjective
from ct3dlib.training.scan_items import ScanItems
from workflow_scripts.step import Arguments, run
from workflow_scripts.training import fit, prepare


def main(args: Namespace) -> None:
    """Train and export."""
    spec: MaeSpec = args.spec
    recipe: RecipeSpec = args.recipe
    items, validation = (
        ScanItems(stored_volumes(tables), recipe) for tables in (args.train, args.tune)
    )
    prepare(spec, [*items.volumes, *validation.volumes], recipe=recipe)
    network = MaskedAutoencoderNetworkSpec(
        **spec.model.model_dump(), shape=items.shape, range=recipe.range
    )
    objective = MaskedAutoencoderObjective(spec, network)
    if spec.init_from is not None:
        _start_from(Path(spec.init_from), objective.model, recipe)
    fit(
        objective,
        items,
        validation,
        args=args,
        contract={"recipe": recipe.model_dump(mode="json")},
        start=None if spec.init_from is None else objective.model,
    )


def _start_from(folder: Path, model: MaskedAutoencoder, recipe: RecipeSpec) -> None:
    """Take the weights of another masked autoencoder, which may have been of another grid.

    Raises:
        CheckpointError: It is none, or of another size.
    """
    found = load_start(folder, recipe).module
    if not isinstance(found, MaskedAutoencoder):
        raise CheckpointError(
            f"init_from: {folder} is a {type(found).__name__}, without the decoder that "
            f"pretraining needs; give a masked autoencoder"
        )
    model.load_from_(found)


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(MaeSpec)
        .spec(RecipeSpec, "recipe")
        .lists("train", "tune")
        .paths("run", "model")
        .text("code"),
    )
