"""Files that appear whole or not at all, after a kill, a power cut and on a full disk."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ct3dlib.errors import StoreError

# No space, quota reached, file larger than allowed: to the user all three are a full disk.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def publish(partial: Path, final: Path) -> None:
    """Give a file or a folder its final name once all of it is on the disk.

    Without this order a power cut may leave the name and empty files under it.
    """
    for folder, _, files in os.walk(partial):
        for name in files:
            _sync(Path(folder, name))
        _sync(Path(folder))
    if partial.is_dir():
        shutil.rmtree(final, ignore_errors=True)
    else:
        _sync(partial)
    partial.replace(final)
    _sync(final.parent)


@contextmanager
def room_for(partial: Path, num_bytes: int) -> Iterator[None]:
    """Write something under a temporary name; a full disk takes it away again.

    Args:
        partial: File or folder that is written.
        num_bytes: What it needs at most.

    Raises:
        StoreError: The disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(partial.parent).free
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
        raise StoreError(
            f"{partial}: the disk is full ({error.strerror}): up to {num_bytes} bytes are needed, "
            f"{free} are free; make room or raise the quota, and run again"
        ) from error


def _sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
