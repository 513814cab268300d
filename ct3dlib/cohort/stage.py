"""How every stage works through a shard: under a lock, a volume at a time, nothing done twice."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from ct3dlib.cohort.attempts import Attempts
from ct3dlib.cohort.store import (
    Kind,
    StoredArray,
    create_store,
    has_node,
    prune,
    store_of,
    write_table,
)
from ct3dlib.progress import progress

logger = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True)
class OpenShard:
    """The store of a shard while one process writes it."""

    store: Path
    attempts: Attempts

    def ensure(self, node: str, write: Callable[[], object]) -> None:
        """Call `write`, which puts `node` into the store, unless it is there as it was written.

        What is there is read back once: damage that a disk or a person did is mended by the next
        run of the shard's rule.

        Raises:
            VolumeError: `READER_CRASHED`, or what `write` raises.
        """
        if has_node(self.store, node):
            damage = StoredArray(self.store, node).damage()
            if not damage:
                return
            logger.warning("%s: made anew, it was damaged: %s", self.store / node, damage)
        with self.attempts.guard(node):
            write()


@contextmanager
def sole_writer(store: Path) -> Iterator[None]:
    """Hold a store against other processes, also those of other machines on a shared disk.

    The lock is the kernel's and ends with its process. A disk that knows no such locks gets a
    file that says who holds it; one that a dead machine left has to be deleted by hand.
    """
    lock = FileLock(store.with_name(f"{store.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s: waiting for the process that writes it (%s)", store, lock.lock_file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def fill_shard(
    rows: Sequence[Row],
    make_row: Callable[[Row, OpenShard], Row],
    *,
    status: Path,
    kind: Kind,
    columns: Mapping[str, str],
) -> pd.DataFrame:
    """Work through a shard and write its status table beside its store.

    Args:
        rows: One per volume.
        make_row: Stores one volume and returns its row of the table; a volume that cannot be used
            becomes a rejected row there, so that what it raises ends the shard.
        status: Where the table goes, written when all rows are done.
        kind: What the store holds.
        columns: Columns of the table and their types.

    Returns:
        The status table. Groups of the store that it does not name are removed.
    """
    store = store_of(status)
    store.parent.mkdir(parents=True, exist_ok=True)
    with sole_writer(store):
        create_store(store, kind)
        shard = OpenShard(store, Attempts(status.with_suffix(".attempts.json")))
        named = progress(rows, name=f"{kind} {status.stem}", unit="volume")
        done = [make_row(row, shard) for row in named]
        frame = pd.DataFrame(done, columns=list(columns)).astype(dict(columns))
        write_table(frame, status)
        prune(store, {row["node"] for row in done})
    counts = Counter(row["status"] for row in done)
    logger.info("%s: %s", status, ", ".join(f"{n} {name}" for name, n in counts.items()))
    return frame
