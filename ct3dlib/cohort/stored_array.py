"""One stored array: read by the part, its damage found, the way out named."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ct3dlib.cohort.arrays import open_array
from ct3dlib.cohort.hashes import array_sha256, attributes_sha256
from ct3dlib.cohort.location import Location, Url, client_errors
from ct3dlib.errors import StoreError

# A path stays a path and a URL a URL.
Place = TypeVar("Place", Path, Url, Location)


def store_of(status: Place) -> Place:
    """Return the store that a status table lies beside."""
    return status.with_suffix(".zarr")


def table_of(store: Place) -> Place:
    """Return the status table that lies beside a store."""
    return store.with_suffix(".parquet")


@dataclass(frozen=True)
class StoredArray:
    """The array of one group, opened when first read; can be pickled to loader processes."""

    store: Location
    node: str

    @property
    def place(self) -> Location:
        """Where the group is."""
        return self.store / self.node

    @cached_property
    def _array(self) -> Any:
        """Open the array; a slice of it reads only the chunks it touches."""
        place = self.place / "0"
        if not (place / "zarr.json").exists():
            raise StoreError(f"{place}: not in the store; {self._way_out}")
        array = open_array(place)
        # Without its file an array would read as its fill value: a body of air.
        if not (place / f"c{'.0' * array.ndim}").exists():
            raise StoreError(f"{place}: its values are gone; {self._way_out}")
        return array

    @property
    def _way_out(self) -> str:
        """What to do about damage."""
        return f"delete {table_of(self.store)} and run again: it is made anew"

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open handle behind: it must not cross a process border."""
        return {"store": self.store, "node": self.node}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the fields past the frozen setters."""
        self.__dict__.update(state)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self._array.shape)

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the group.

        Raises:
            StoreError: They are missing, damaged, edited, or cannot be fetched.
        """
        place = self.place / "zarr.json"
        try:
            found = json.loads(place.read_text())["attributes"]
            as_written = found["ct3d"]["attributes_sha256"] == attributes_sha256(found)
        except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            raise StoreError(
                f"{place}: damaged or out of reach, {error!r}; {self._way_out}"
            ) from error
        if not as_written:
            raise StoreError(f"{place}: edited since it was written; {self._way_out}")
        return found

    def read(self, *slices: slice) -> NDArray[Any]:
        """Return a part of the array, the whole without slices.

        Raises:
            StoreError: A chunk is seen to be damaged, or cannot be fetched.
        """
        try:
            return np.asarray(self._array[slices or ...])
        except (ValueError, RuntimeError, OSError, *client_errors()) as error:
            raise StoreError(
                f"{self.place}: damaged or out of reach, {error}; {self._way_out}"
            ) from error

    def damage(self) -> str:
        """Return what is wrong with values or attributes, "" where they are as written.

        All values are read.
        """
        try:
            same = array_sha256(self.read()) == self.attributes["ct3d"]["sha256"]
        except StoreError as error:
            return str(error)
        return (
            "" if same else f"{self.place}: holds other values than were written; {self._way_out}"
        )
