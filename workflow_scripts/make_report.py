"""Write the report of a finished run as one HTML page."""

from argparse import Namespace

import torch

from ct3dlib.config import ReportSpec
from ct3dlib.inference.loaded import load_tokenizer
from ct3dlib.report.build import Inputs, build_report
from workflow_scripts.step import Arguments, run


def main(args: Namespace) -> None:
    """Write the page under a temporary name and rename it."""
    inputs = Inputs(
        catalog=args.catalog,
        volumes=args.volumes,
        statistics=args.statistics,
        regions=args.regions,
        tokens=args.tokens,
        examples=args.examples,
        samples=args.samples,
        metrics=args.metrics,
        runs=args.runs,
        mae=args.mae,
    )
    tokenizer = load_tokenizer(args.tokenizer, torch.device("cpu"))
    page = build_report(inputs, tokenizer, args.spec, name=args.tokenizer.name)
    partial = args.report.with_name(f"{args.report.name}.partial")
    partial.write_text(page)
    partial.replace(args.report)


if __name__ == "__main__":
    run(
        main,
        Arguments(description=__doc__)
        .spec(ReportSpec)
        .lists("volumes", "statistics", "regions", "tokens", "examples", "metrics", "runs", "mae")
        .paths("catalog", "tokenizer", "samples", "report"),
    )
