"""Train a segmentation decoder over a volume encoder and export its best weights."""

from argparse import Namespace

from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import MaeSegmentSpec, RecipeSpec, SegmenterNetworkSpec
from ct3dlib.errors import StoreError
from ct3dlib.objectives.finetuning import encoder_network, load_start_encoder
from ct3dlib.objectives.segment import SegmentObjective
from ct3dlib.regions.classes import class_names, stored_masks, with_masks
from ct3dlib.training.mask_items import MaskItems
from workflow_scripts.step import Arguments, run
from workflow_scripts.training import fit, prepare


def main(args: Namespace) -> None:
    """Train and export."""
    spec: MaeSegmentSpec = args.spec
    recipe: RecipeSpec = args.recipe
    masks = stored_masks(spec.masks, regions=args.regions, lesions=args.lesions)
    items, validation = (
        MaskItems(with_masks(stored_volumes(tables), masks), recipe)
        for tables in (args.train, args.tune)
    )
    if not len(items):
        raise StoreError(
            f"no stored volume of the train split has {' and '.join(spec.masks)}; see the status "
            f"tables, or set mae_segment.masks to what there is"
        )
    prepare(spec, [*items.volumes, *validation.volumes], recipe=recipe)
    start = load_start_encoder(spec, recipe)
    classes = class_names(spec.masks)
    network = SegmenterNetworkSpec(
        encoder=encoder_network(spec, recipe, shape=items.shape, start=start),
        filters=spec.filters,
        num_classes=len(classes),
    )
    objective = SegmentObjective(spec, network)
    if start is not None:
        objective.model.encoder.load_from_(start)
    fit(
        objective,
        items,
        validation,
        args=args,
        contract={"recipe": recipe.model_dump(mode="json"), "classes": list(classes)},
        start=start,
    )


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(MaeSegmentSpec)
        .spec(RecipeSpec, "recipe")
        .lists("train", "tune", "regions", "lesions")
        .paths("run", "model")
        .text("code"),
    )
