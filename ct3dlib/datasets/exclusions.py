"""Lists of what is left out: a volume, scan or patient a line."""

from pathlib import Path

from ct3dlib.datasets.tables import volume_key
from ct3dlib.errors import DatasetError


def read_exclusions(path: Path) -> dict[str, bool]:
    """Return the names of a list, and whether each is left out; the first line of a name counts.

    A name may stand as a path and with its ending; `#` starts a comment, and a line that begins
    with `!` takes in again what another list, or a line of its scan or patient, leaves out.

    Raises:
        DatasetError: The file cannot be read.
    """
    found: dict[str, bool] = {}
    for line in _read_lines(path):
        text = line.partition("#")[0].strip()
        if key := volume_key(text.removeprefix("!").rpartition("/")[2]):
            found.setdefault(key, not text.startswith("!"))
    return found


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a list."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path}: no such file; write a name a line into it, or correct its path"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); save it as UTF-8 text") from error
