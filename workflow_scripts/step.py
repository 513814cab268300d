"""The command line that every step shares, its log, and its tie to the run that started it.

A step is `python -m workflow_scripts.NAME --spec JSON` plus named paths: it parses, calls the
library once and exits 0 only when its outputs are whole.
"""

import argparse
import contextlib
import json
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import ValidationError

from ct3dlib.config import Spec
from ct3dlib.errors import Ct3dError

logger = logging.getLogger("ct3d")

# A step that its parent left may finish what it is writing; then it is ended.
_GRACE_S = 20


class Arguments(argparse.ArgumentParser):
    """A step's command line; `add_*` return the parser, so that calls chain."""

    def spec(self, model: type[Spec], name: str = "spec") -> "Arguments":
        """Add a spec given as JSON."""

        def parse(text: str) -> Spec:
            try:
                return model.model_validate_json(text)
            except ValidationError as error:
                raise argparse.ArgumentTypeError(str(error)) from error

        self.add_argument(f"--{name}", type=parse, required=True, help=f"{model.__name__} as JSON")
        return self

    def paths(self, *names: str) -> "Arguments":
        """Add named paths."""
        for name in names:
            self.add_argument(f"--{name}", type=Path, required=True)
        return self

    def lists(self, *names: str) -> "Arguments":
        """Add named lists of paths, which may be empty."""
        for name in names:
            self.add_argument(f"--{name}", type=Path, nargs="*", required=True)
        return self

    def text(self, *names: str) -> "Arguments":
        """Add named strings."""
        for name in names:
            self.add_argument(f"--{name}", required=True)
        return self


def run(main: Callable[[argparse.Namespace], None], arguments: Arguments) -> None:
    """Run a step: parse the command line, call `main`, turn a known error into one clear line."""
    args = arguments.parse_args()
    rank = os.environ.get("RANK", "0")
    logging.basicConfig(
        level=logging.INFO if rank == "0" else logging.WARNING,
        format="%(asctime)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    signal.signal(signal.SIGTERM, _terminate)
    _die_with_parent()
    try:
        main(args)
    except (Ct3dError, ValueError) as error:
        # A ValueError may be a fault of ours: then its traceback is wanted too.
        logger.error(
            "%s: %s", type(error).__name__, error, exc_info=not isinstance(error, Ct3dError)
        )
        sys.exit(1)


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    partial.replace(path)


def _terminate(signum: int, frame: FrameType | None) -> None:
    """Leave by an exception, so that what is open is closed and struck out."""
    del frame
    sys.exit(128 + signum)


def _wait_for_end(pid: int) -> None:
    """Return when a process has ended."""
    if not hasattr(os, "pidfd_open"):  # not Linux
        while True:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return
            time.sleep(1)
    with contextlib.suppress(ProcessLookupError):
        poll = select.poll()
        poll.register(os.pidfd_open(pid), select.POLLIN)
        poll.poll()


def _die_with_parent() -> None:
    """End this process when the Snakemake process named by CT3D_PARENT ends, however it ends."""
    pid = os.environ.get("CT3D_PARENT", "").rpartition(":")[2]
    if not pid:
        return

    def watch() -> None:
        _wait_for_end(int(pid))
        logger.warning("the run that started this step is gone; ending")
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(_GRACE_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
