"""Train the classifier that judges samples on real volumes and export its best weights."""

from argparse import Namespace

from ct3dlib.cohort.catalog import read_catalog
from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import ClassifierSpec, RecipeSpec, VolumeClassifierNetworkSpec
from ct3dlib.errors import StoreError
from ct3dlib.objectives.classify import ClassifyObjective
from ct3dlib.training.labelled_items import LabelledItems
from workflow_scripts.step import Arguments, run
from workflow_scripts.training import fit, prepare


def main(args: Namespace) -> None:
    """Train and export."""
    spec: ClassifierSpec = args.spec
    recipe: RecipeSpec = args.recipe
    catalog = read_catalog(args.catalog)
    items, validation = (
        LabelledItems(stored_volumes(tables), catalog, recipe=recipe)
        for tables in (args.train, args.tune)
    )
    if not len(items):
        raise StoreError(
            "no stored volume of the train split has labels; give the catalog labels, or set "
            "classifier to null"
        )
    prepare(spec, [*items.volumes.volumes, *validation.volumes.volumes], recipe=recipe)
    network = VolumeClassifierNetworkSpec(**spec.model.model_dump(), num_labels=len(items.names))
    objective = ClassifyObjective(
        spec, network, positive_weights=items.positive_weights, value_range=recipe.range
    )
    fit(
        objective,
        items,
        validation,
        args=args,
        contract={"recipe": recipe.model_dump(mode="json"), "labels": list(items.names)},
    )


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(ClassifierSpec)
        .spec(RecipeSpec, "recipe")
        .lists("train", "tune")
        .paths("catalog", "run", "model")
        .text("code"),
    )
