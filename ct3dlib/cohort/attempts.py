"""Which volume a shard's process was at when it died, so that a killer volume is found."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ct3dlib.errors import StoreError, VolumeError

MAX_DEATHS = 2


class Attempts:
    """Deaths per volume, in a small file beside the shard's store.

    A volume is written down, by the name of what is to be stored, before it is worked on. It is
    struck out when it is done or was found to be bad, when the store or the disk failed, and when
    a person or the run ends the process. What stays killed the process: a reader's segmentation
    fault, out of memory, an error nobody foresaw.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._deaths: dict[str, int] = {}
        if path.exists():
            try:
                self._deaths = dict(json.loads(path.read_text()))
            except ValueError:
                path.unlink()

    @contextmanager
    def guard(self, node: str) -> Iterator[None]:
        """Work on a volume.

        Raises:
            VolumeError: `READER_CRASHED`: the process died at this volume twice.
        """
        deaths = self._deaths.get(node, 0)
        if deaths >= MAX_DEATHS:
            raise VolumeError(
                "READER_CRASHED",
                f"{node}: the process died {deaths} times while working on it; look at the file, "
                f"or delete {self._path} and the status table beside it to try again",
            )
        others = {k: v for k, v in self._deaths.items() if k != node}
        self._write({**others, node: deaths + 1})
        try:
            yield
        except (VolumeError, StoreError, OSError, SystemExit, KeyboardInterrupt):
            self._write(others)
            raise
        self._write(others)

    def _write(self, deaths: dict[str, int]) -> None:
        self._deaths = deaths
        if not deaths:
            self._path.unlink(missing_ok=True)
            return
        partial = self._path.with_name(f"{self._path.name}.partial")
        partial.write_text(json.dumps(deaths))
        partial.replace(self._path)
