"""Draw the stored volumes of one shard on a sheet for the eye."""

from argparse import Namespace

from ct3dlib.config import RecipeSpec
from ct3dlib.report.contact_sheet import draw_sheet
from workflow_scripts.step import Arguments, run


def main(args: Namespace) -> None:
    """Write the sheet under a temporary name and rename it."""
    recipe: RecipeSpec = args.spec
    sheet = draw_sheet(args.volumes, None if recipe.percentiles else recipe.window)
    partial = args.sheet.with_name(f"{args.sheet.name}.partial")
    partial.write_bytes(sheet)
    partial.replace(args.sheet)


if __name__ == "__main__":
    run(main, Arguments(description=__doc__).spec(RecipeSpec).paths("volumes", "sheet"))
