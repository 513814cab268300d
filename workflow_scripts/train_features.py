"""Train the slice features on the regions of one recipe's volumes and export the best weights."""

from argparse import Namespace

from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import RecipeSpec
from ct3dlib.config.features import FeaturesSpec
from ct3dlib.errors import StoreError
from ct3dlib.objectives.slice_features import SliceFeaturesObjective
from ct3dlib.training.slice_items import SliceItems, pair_regions
from workflow_scripts.step import Arguments, run
from workflow_scripts.training import fit, prepare


def main(args: Namespace) -> None:
    """Train and export."""
    spec: FeaturesSpec = args.spec
    recipe: RecipeSpec = args.recipe
    items, validation = (
        SliceItems(
            pair_regions(stored_volumes(volumes), stored_volumes(regions)),
            crop=spec.crop,
            window=recipe.window,
            range=recipe.range,
            axes=recipe.axes,
        )
        for volumes, regions in ((args.train, args.train_regions), (args.tune, args.tune_regions))
    )
    if not len(items):
        raise StoreError("no volume of the train split has regions; see its status tables")
    volumes = [volume for volume, _ in (*items.pairs, *validation.pairs)]
    prepare(spec, volumes, recipe=recipe)
    objective = SliceFeaturesObjective(spec, value_range=recipe.range)
    fit(
        objective,
        items,
        validation,
        args=args,
        contract={"recipe": recipe.model_dump(mode="json")},
    )


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(FeaturesSpec)
        .spec(RecipeSpec, "recipe")
        .lists("train", "tune", "train_regions", "tune_regions")
        .paths("run", "model")
        .text("code"),
    )
