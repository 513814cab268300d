"""What the rows of a stage's status table say first: `FIRST_COLUMNS`, whatever it stores."""

from ct3dlib.cohort.stage import Row
from ct3dlib.cohort.store import STATUS_COLUMNS
from ct3dlib.cohort.stored_array import StoredArray
from ct3dlib.errors import VolumeError

FIRST_COLUMNS = {**dict.fromkeys(STATUS_COLUMNS, "str"), "shape": "object"}


def stored_row(volume: str, array: StoredArray) -> Row:
    """Return the row of a stored volume from what stands in the store.

    Args:
        volume: Its name.
        array: The group that `write_node` made of it.

    Raises:
        StoreError: The group is missing or damaged.
    """
    return {
        "volume": volume,
        "status": "stored",
        "reason": "",
        "message": "",
        "node": array.node,
        "sha256": array.attributes["ct3d"]["sha256"],
        "shape": list(array.shape),
    }


def rejected_row(volume: str, error: VolumeError, *, message: str) -> Row:
    """Return the row of a volume that has no array.

    Args:
        volume: Its name.
        error: Why; its reason goes into the table.
        message: What the table says of it: the error's own text may name files that it must not.
    """
    return {
        **dict.fromkeys(STATUS_COLUMNS, ""),
        "volume": volume,
        "status": "rejected",
        "reason": error.reason,
        "message": message,
        "shape": None,
    }
