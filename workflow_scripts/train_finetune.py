"""Fine-tune a volume encoder on labels and export its best weights."""

from argparse import Namespace

from ct3dlib.cohort.catalog import read_catalog
from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import MaeFinetuneSpec, RecipeSpec
from ct3dlib.errors import StoreError
from ct3dlib.objectives.finetuning import (
    finetune_objective,
    load_start_encoder,
    predictor_contract,
    targets_of,
)
from ct3dlib.training.target_items import TargetItems
from workflow_scripts.step import Arguments, run
from workflow_scripts.training import fit, prepare


def main(args: Namespace) -> None:
    """Train and export."""
    spec: MaeFinetuneSpec = args.spec
    recipe: RecipeSpec = args.recipe
    targets = targets_of(spec, read_catalog(args.catalog))
    items, validation = (
        TargetItems(stored_volumes(tables), targets, recipe=recipe)
        for tables in (args.train, args.tune)
    )
    if not len(items):
        raise StoreError(
            "no stored volume of the train split has labels; give the catalog labels or a CSV "
            "(mae_finetune.labels), or set mae_finetune to null"
        )
    for name, column in zip(items.names, items.targets.T, strict=True):
        if column.isnan().all():
            raise StoreError(
                f"{name}: not known of any stored volume of the train split; fill the column in, "
                f"or leave it out of mae_finetune.labels.columns"
            )
    prepare(spec, [*items.scans.volumes, *validation.scans.volumes], recipe=recipe)
    start = load_start_encoder(spec, recipe)
    objective = finetune_objective(spec, recipe, items, start=start)
    fit(
        objective,
        items,
        validation,
        args=args,
        contract=predictor_contract(objective, recipe, items),
        start=start,
    )


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(MaeFinetuneSpec)
        .spec(RecipeSpec, "recipe")
        .lists("train", "tune")
        .paths("catalog", "run", "model")
        .text("code"),
    )
