"""Score the segmenter on held-out volumes."""

from argparse import Namespace

import torch

from ct3dlib.cohort.store import stored_volumes
from ct3dlib.config import MaeSegmentSpec
from ct3dlib.inference.evaluate_segmenter import evaluate_segmenter
from ct3dlib.inference.segmenter import load_segmenter
from ct3dlib.regions.classes import stored_masks, with_masks
from ct3dlib.report.mae import draw_masks
from ct3dlib.training.distributed import choose_device
from workflow_scripts.step import Arguments, run, write_json


def main(args: Namespace) -> None:
    """Draw two volumes, then write the scores."""
    spec: MaeSegmentSpec = args.spec
    torch.set_num_threads(spec.threads)
    masks = stored_masks(spec.masks, regions=args.regions, lesions=args.lesions)
    train, held_out = (with_masks(stored_volumes(t), masks) for t in (args.train, args.valid))
    segmenter = load_segmenter(args.model, choose_device(spec.device))
    metrics = evaluate_segmenter(segmenter, held_out, train=train)
    window = segmenter.recipe.window
    shown = [
        (
            one.volume,
            one.read_classes(),
            segmenter.segment(one.volume.read(), one.volume.own_window or window).classes,
        )
        # Sorted by patient: the first one and the middle one are of two.
        for one in (held_out[i] for i in sorted({0, len(held_out) // 2}))
    ]
    args.example.parent.mkdir(parents=True, exist_ok=True)
    args.example.write_bytes(draw_masks(shown, window=window))
    write_json(args.metrics, metrics)


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(MaeSegmentSpec)
        .lists("train", "valid", "regions", "lesions")
        .paths("model", "example", "metrics"),
    )
