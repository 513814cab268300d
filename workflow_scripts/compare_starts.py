"""Fine-tune on few patients, from the pretrained encoder and from scratch, and score both."""

from argparse import Namespace

from ct3dlib.cohort.catalog import read_catalog
from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import MaeFinetuneSpec, RecipeSpec
from ct3dlib.errors import ConfigError
from ct3dlib.objectives.finetuning import load_start_encoder, targets_of
from ct3dlib.objectives.small_budget import Split, compare_starts
from ct3dlib.training.target_items import TargetItems
from workflow_scripts.step import Arguments, run, write_json
from workflow_scripts.training import digest, prepare


def main(args: Namespace) -> None:
    """Write {"small_budget": {start: {finding: [AUROC of each seed]}}}."""
    spec: MaeFinetuneSpec = args.spec
    recipe: RecipeSpec = args.recipe
    start = load_start_encoder(spec, recipe)
    if start is None:
        raise ConfigError(
            "mae_finetune.small_budget compares init_from with a training from scratch; set "
            "init_from, or small_budget to null"
        )
    catalog = read_catalog(args.catalog)
    targets = targets_of(spec, catalog)
    items, held_out = (
        TargetItems(stored_volumes(tables), targets, recipe=recipe)
        for tables in (args.train, args.valid)
    )
    prepare(spec, [*items.scans.volumes, *held_out.scans.volumes], recipe=recipe)
    patients = dict(zip(catalog["volume"], catalog["patient"], strict=True))
    split = Split(items, held_out, patients, targets, recipe)
    code = f"{args.code} {digest(start)}"
    found = compare_starts(spec, split, start=start, run_dir=args.run, code=code)
    write_json(args.metrics, {"small_budget": found})


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(MaeFinetuneSpec)
        .spec(RecipeSpec, "recipe")
        .lists("train", "valid")
        .paths("catalog", "run", "metrics")
        .text("code"),
    )
