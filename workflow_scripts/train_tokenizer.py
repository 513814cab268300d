"""Train one tokenizer on crops of its recipe's volumes and export its best weights."""

from argparse import Namespace
from dataclasses import asdict

import torch

from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import RecipeSpec, TokenizerSpec
from ct3dlib.errors import StoreError
from ct3dlib.inference.contract import check_volumes
from ct3dlib.models.exported import save_model
from ct3dlib.objectives.tokenizer import TokenizerObjective
from ct3dlib.training.distributed import rank
from ct3dlib.training.items import CropItems
from ct3dlib.training.loop import train
from workflow_scripts.step import Arguments, run


def main(args: Namespace) -> None:
    """Train and export."""
    spec: TokenizerSpec = args.spec
    recipe: RecipeSpec = args.recipe
    items, validation = (
        CropItems(stored_volumes(tables), crop=spec.crop, window=recipe.window, range=recipe.range)
        for tables in (args.train, args.tune)
    )
    if not len(items):
        raise StoreError("no volume of the train split is stored; see its status tables")
    check_volumes(recipe, (*items.volumes, *validation.volumes), model="this training")
    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    objective = TokenizerObjective(spec, value_range=recipe.range)
    summary = train(
        objective,
        items,
        spec,
        run_dir=args.run,
        validation=validation if len(validation) else None,
        code=args.code,
    )
    if rank() == 0:
        contract = {
            "recipe": recipe.model_dump(mode="json"),
            "windowing": "windows of 2 + t slices, stride t, t the slices of a token",
            "bit_order": "msb_first_channel0",
            "axis_order": "dhw",
        }
        save_model(
            args.model,
            objective.model,
            spec=spec.model,
            contract=contract,
            training=asdict(summary),
        )


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(TokenizerSpec)
        .spec(RecipeSpec, "recipe")
        .lists("train", "tune")
        .paths("run", "model")
        .text("code"),
    )
