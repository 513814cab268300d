"""Files below a folder, in a fixed order."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

_UNFINISHED = (".partial", ".lock", ".tmp", ".part", ".incomplete")
_NOT_DICOM = {
    *(".csv", ".gz", ".gif", ".htm", ".html", ".ini", ".jpeg", ".jpg", ".json", ".log", ".md"),
    *(".nii", ".npy", ".npz", ".pdf", ".png", ".py", ".tar", ".tsv", ".txt", ".xlsx", ".xml"),
    *(".yaml", ".yml", ".zip", ".nrrd", ".nhdr", ".mha", ".mhd", ".raw", ".zraw"),
}


def walk(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder in sorted order, without hidden and unfinished ones.

    Linked folders are followed, each once; a link that leads nowhere is a file. Pipes, sockets and
    devices, and folders that may not be read, are left out with a warning.
    """
    yield from _walk(folder, set())


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Yield the files of a folder, then those of its folders; `seen` grows with each."""
    try:
        state = folder.stat()
        if (state.st_dev, state.st_ino) in seen:
            return
        seen.add((state.st_dev, state.st_ino))
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("%s: left out, the folder cannot be read (%s)", folder, error.strerror)
        return
    inner = []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            inner.append(folder / entry.name)
        elif entry.name.startswith("~") or entry.name.lower().endswith(_UNFINISHED):
            continue
        elif _is_file(entry):
            yield folder / entry.name
        else:
            logger.warning("%s: left out, it is no regular file", folder / entry.name)
    for one in inner:
        yield from _walk(one, seen)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a folder or a link to one; a loop of links is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a regular file, or a link to one or to nothing."""
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:
        return True


def may_be_dicom(path: Path) -> bool:
    """Return whether a file's name does not rule DICOM out."""
    return path.suffix.lower() not in _NOT_DICOM
