"""Errors that a user's files and data can cause. `ValueError` stays for a bad argument."""


class Ct3dError(Exception):
    """Base of every error that the library raises on purpose about files and data."""


class ConfigError(Ct3dError, ValueError):
    """A key of the config is unknown, or a value does not fit."""


class VolumeError(Ct3dError):
    """One volume cannot be used; a step turns it into a rejected row.

    Args:
        reason: Code of the reason, upper case, one of those listed in docs/data.md.
        message: Names the file, the value found and what was wanted, then the way out.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["VolumeError"], tuple[str, str]]:
        """Keep both arguments when the error crosses a process border."""
        return type(self), (self.reason, str(self))


class DatasetError(Ct3dError):
    """A raw data set as a whole cannot be read: a missing root, table or column."""


class StoreError(Ct3dError):
    """A Zarr store, status table or catalog is missing, stale or damaged."""


class CheckpointError(Ct3dError):
    """A model file is missing, damaged, of another kind, or does not fit the data."""


class TrainingError(Ct3dError):
    """A training cannot start or go on: a loss that is not finite, a metric nobody logs."""
