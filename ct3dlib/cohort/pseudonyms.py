"""Names that tell nothing to those who do not hold the key.

A PatientID has few digits: whoever may try them all finds the one that a plain hash stands for.
These are keyed hashes (HMAC-SHA256, RFC 2104): the same text has the same name as long as the key
is the same, and without it no guess can be tried.
"""

import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from ct3dlib.errors import StoreError

Kind = Literal["patient", "study", "series", "volume"]
_KEY_BYTES = 32
_DIGITS = 12


@dataclass(frozen=True)
class Pseudonyms:
    """Keyed names.

    Args:
        path: The key's file, made when the first name is; None: no key, so anyone who knows a text
            finds its name.
        expected: Fingerprint of the key that earlier names were made with.

    Raises:
        StoreError: At the first name, where the key is away, damaged or another one.
    """

    path: Path | None = None
    expected: str | None = None

    def of(self, kind: Kind, text: str) -> str:
        """Return the name of a text: the kind's initial and 12 hex digits."""
        digest = hmac.digest(self._key, f"{kind}/{text}".encode(), "sha256")
        # A letter first: a name of digits alone becomes a number in some table some day.
        return f"{kind[0]}{digest.hex()[:_DIGITS]}"

    @property
    def folder(self) -> Path:
        """Where the key lies, and what else must not be passed on.

        Raises:
            ValueError: There is no key.
        """
        if self.path is None:
            raise ValueError("pseudonyms without a key hide nothing; give them the path of one")
        return self.path.parent

    @property
    def fingerprint(self) -> str | None:
        """What tells this key from others, null where no name was ever made."""
        return _fingerprint(self._key) if "_key" in self.__dict__ else self.expected

    @cached_property
    def _key(self) -> bytes:
        """The key, made where there was none and no name depends on it."""
        if self.path is None:
            return b""
        try:
            if self.expected is None and not os.path.lexists(self.path):
                _make_key(self.path)
            key = bytes.fromhex(self.path.read_text(encoding="ascii"))
        except (OSError, ValueError) as error:
            raise StoreError(f"{self.path}: no key ({error}); {_WAY_OUT}") from error
        if len(key) != _KEY_BYTES:
            raise StoreError(f"{self.path}: damaged, it has {len(key)} bytes; {_WAY_OUT}")
        if self.expected not in (None, _fingerprint(key)):
            raise StoreError(
                f"{self.path}: not the key that the patients of the catalog were named with; "
                f"{_WAY_OUT}"
            )
        return key


UNKEYED = Pseudonyms()
_WAY_OUT = (
    "bring the key back from where the catalog was first made, or delete it and the saved "
    "assignments beside the catalog to name and split all patients anew"
)


def _make_key(path: Path) -> None:
    """Write a new key that its owner alone may read; one that another process made stays."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix="key.") as stream:  # mode 0600
        stream.write(f"{secrets.token_hex(_KEY_BYTES)}\n")
        stream.flush()
        os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(stream.name, path)


def _fingerprint(key: bytes) -> str:
    """Return what tells one key from another and nothing else about it."""
    return hashlib.sha256(b"fingerprint/" + key).hexdigest()[:_DIGITS]
