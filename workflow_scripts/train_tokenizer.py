"""Train one tokenizer on its recipe's volumes, stage by stage, and export its best weights."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ct3dlib.cohort.store import StoredVolume, stored_volumes
from ct3dlib.config import RecipeSpec, TokenizerSpec
from ct3dlib.errors import CheckpointError, StoreError
from ct3dlib.inference.contract import check_recipe, check_volumes
from ct3dlib.inference.loaded import contract_of, sliding_of, tokenizer_contract
from ct3dlib.models import build_autoencoder
from ct3dlib.models.exported import Exported, load_model, save_model
from ct3dlib.models.perceptual import load_perceptual
from ct3dlib.objectives.tokenizer import TokenizerObjective
from ct3dlib.training.distributed import rank
from ct3dlib.training.items import CropItems, GridItems, WholeItems
from ct3dlib.training.loader import Items
from ct3dlib.training.loop import train
from workflow_scripts.step import Arguments, run
from workflow_scripts.training import digest

State = Mapping[str, Tensor]


def main(args: Namespace) -> None:
    """Train every stage from the weights of the one before, and export the last."""
    spec: TokenizerSpec = args.spec
    recipe: RecipeSpec = args.recipe
    volumes, held_out = stored_volumes(args.train), stored_volumes(args.tune)
    if not volumes:
        raise StoreError("no volume of the train split is stored; see its status tables")
    check_volumes(recipe, (*volumes, *held_out), model="this training")
    torch.set_num_threads(spec.threads)
    if spec.steps == 0:
        _adopt(spec, recipe, folder=args.model)
        return
    weights, history = _start(spec), []
    stages = spec.in_stages()
    for number, stage in enumerate(stages, start=1):
        objective, origin = _objective(stage, recipe, args.features, weights=weights)
        before = digest(*objective.model.encoding_modules())
        summary = train(
            objective,
            _items(stage, recipe, volumes, training=True),
            stage,
            run_dir=args.run / f"stage-{number}" if len(stages) > 1 else args.run,
            validation=_items(stage, recipe, held_out, training=False) if held_out else None,
            code=" ".join((args.code, *origin)),
        )
        weights = objective.model.state_dict()
        after = digest(*objective.model.encoding_modules())
        history.append({**asdict(summary), "encoder_before": before, "encoder_after": after})
    if rank() == 0 and weights is not None:
        model = build_autoencoder(spec.model)
        model.load_state_dict(weights)
        save_model(
            args.model,
            model,
            spec=spec.model,
            contract=tokenizer_contract(spec, recipe),
            training={**history[-1], "stages": history},
        )


def _objective(
    spec: TokenizerSpec, recipe: RecipeSpec, features: Path | None, *, weights: State | None
) -> tuple[TokenizerObjective, list[str]]:
    """Return the objective of a stage, the same on every rank, and hashes of what it starts from.

    Args:
        spec: Of the stage.
        recipe: Of its volumes.
        features: Folder of the pipeline's feature network.
        weights: To start from; drawn from the seed where there are none.
    """
    origin = []
    perceptual = None
    if spec.loss.perceptual:
        perceptual = load_perceptual(spec.perceptual, features, recipe=recipe)
        origin.append(perceptual.sha256)
    torch.manual_seed(spec.seed)
    objective = TokenizerObjective(spec, value_range=recipe.range, perceptual=perceptual)
    if weights is not None:
        objective.model.load_state_dict(weights)
        origin.append(digest(objective.model))
    return objective, origin


def _adopt(spec: TokenizerSpec, recipe: RecipeSpec, *, folder: Path) -> None:
    """Write the model that the section starts from, trained or imported, as it is.

    Its sliding windows are its own where the section names none.

    Raises:
        CheckpointError: It is of another model than the section's, or of another recipe.
    """
    found = _read_start(spec)
    its_own = RecipeSpec.model_validate(found.contract["recipe"])
    name, data = f"init_from {spec.init_from}", f"recipe {spec.recipe}"
    check_recipe(its_own, recipe.model_dump(mode="json"), model=name, data=data)
    if rank() == 0:
        save_model(
            folder,
            found.module,
            spec=spec.model,
            contract=contract_of(spec.model, recipe, spec.sliding_window or sliding_of(found)),
            training={**found.training, "taken_from": spec.init_from},
        )


def _start(spec: TokenizerSpec) -> State | None:
    """Return the weights to start from, if the section names any."""
    return None if spec.init_from is None else _read_start(spec).module.state_dict()


def _read_start(spec: TokenizerSpec) -> Exported:
    """Return the model that a section starts from."""
    found = load_model(Path(str(spec.init_from)))
    if found.spec != spec.model:
        raise CheckpointError(
            f"init_from: {spec.init_from} is of another model than this section's: "
            f"{found.spec.model_dump_json()}; copy its values into `model`"
        )
    return found


def _items(
    spec: TokenizerSpec, recipe: RecipeSpec, volumes: Sequence[StoredVolume], *, training: bool
) -> Items:
    """Return what is trained or validated on; validation takes crops at drawn places, too."""
    seen: dict[str, Any] = {"window": recipe.window, "range": recipe.range, "axes": recipe.axes}
    if spec.crop is None:
        return WholeItems(volumes, **seen)
    if spec.patching == "full" and training:
        return GridItems(volumes, patch=spec.crop, stride=spec.crop, **seen)
    return CropItems(volumes, crop=spec.crop, **seen)


if __name__ == "__main__":
    arguments = (
        Arguments(description=__doc__)
        .spec(TokenizerSpec)
        .spec(RecipeSpec, "recipe")
        .lists("train", "tune")
        .paths("run", "model")
        .text("code")
    )
    arguments.add_argument("--features", type=Path, help="model of the perceptual term")
    run(main, arguments)
