"""Which volume a shard's process was at when it died, so that a killer volume is found."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ct3dlib.errors import VolumeError

MAX_DEATHS = 2


class Attempts:
    """Deaths per volume, in a small file beside the shard's store.

    A volume is written down before it is worked on and struck out afterwards, whatever came of
    it: only a process that died at it (a reader's segmentation fault, out of memory) leaves it.
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
    def guard(self, volume: str) -> Iterator[None]:
        """Work on a volume.

        Raises:
            VolumeError: `READER_CRASHED`: the process died at this volume twice.
        """
        deaths = self._deaths.get(volume, 0)
        if deaths >= MAX_DEATHS:
            raise VolumeError(
                "READER_CRASHED",
                f"{volume}: the process died {deaths} times while working on it; look at the file, "
                f"or delete {self._path} to try again",
            )
        self._write({**self._deaths, volume: deaths + 1})
        try:
            yield
        finally:
            self._write({k: v for k, v in self._deaths.items() if k != volume})

    def _write(self, deaths: dict[str, int]) -> None:
        self._deaths = deaths
        if not deaths:
            self._path.unlink(missing_ok=True)
            return
        partial = self._path.with_name(f"{self._path.name}.partial")
        partial.write_text(json.dumps(deaths))
        partial.replace(self._path)
