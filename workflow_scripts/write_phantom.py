"""Generate the synthetic chest-CT cohort as a CT-RATE tree under the raw root."""

from argparse import Namespace

from filelock import FileLock

from ct3dlib.config import PhantomSpec
from ct3dlib.datasets.phantom import write_cohort
from workflow_scripts.step import Arguments, run


def main(args: Namespace) -> None:
    """Write the cohort, once what an earlier run left behind has ended."""
    args.root.mkdir(parents=True, exist_ok=True)
    with FileLock(args.root / ".phantom.lock"):
        write_cohort(args.root, args.spec, workers=args.workers)


if __name__ == "__main__":
    arguments = Arguments(description=__doc__).spec(PhantomSpec).paths("root")
    arguments.add_argument("--workers", type=int, default=1)
    run(main, arguments)
