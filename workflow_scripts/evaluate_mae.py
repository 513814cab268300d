"""Measure and draw how a masked autoencoder fills in what it does not see."""

from argparse import Namespace

from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import RecipeSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.inference.evaluate_mae import evaluate_mae, fill
from ct3dlib.models.exported import load_model
from ct3dlib.models.mae import MaskedAutoencoder
from ct3dlib.report.mae import draw_filled
from ct3dlib.training.distributed import choose_device
from workflow_scripts.step import Arguments, run, write_json


def main(args: Namespace) -> None:
    """Draw two volumes, then write the errors."""
    loaded = load_model(args.model)
    if not isinstance(loaded.module, MaskedAutoencoder):
        raise CheckpointError(
            f"{args.model}: a {type(loaded.module).__name__}, not a masked autoencoder"
        )
    model = loaded.module.to(choose_device(args.device))
    recipe = RecipeSpec.model_validate(loaded.contract["recipe"])
    volumes = stored_volumes(args.valid)
    metrics = evaluate_mae(model, recipe, volumes)
    # Volumes are sorted by patient: the first one and the middle one are of two.
    chosen = [volumes[i] for i in sorted({0, len(volumes) // 2})]
    shown = [(one, fill(model, recipe, one, index=i)) for i, one in enumerate(chosen)]
    args.example.parent.mkdir(parents=True, exist_ok=True)
    args.example.write_bytes(draw_filled(shown, value_range=recipe.range))
    write_json(args.metrics, {"reconstruction": metrics})


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .paths("model", "example", "metrics")
        .text("device")
        .lists("valid"),
    )
