"""Where a table or a store lies: a path on this machine, or a URL that fsspec opens."""

import posixpath
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.core import url_to_fs

from ct3dlib.errors import StoreError


@dataclass(frozen=True)
class Url:
    """A URL to read from, with as much of `Path` as reading a store needs.

    Args:
        text: `s3://bucket/a`, `https://host/a`, `memory://a`; no query.
    """

    text: str

    def __truediv__(self, name: str) -> "Url":
        """Return the URL of something below this one."""
        return Url(f"{self.text.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.text

    @property
    def name(self) -> str:
        """Last part of the URL."""
        return posixpath.basename(self.text.rstrip("/"))

    @property
    def suffix(self) -> str:
        """Ending of the name with its dot, "" where there is none."""
        return posixpath.splitext(self.name)[1]

    def with_suffix(self, suffix: str) -> "Url":
        """Return the URL with another ending."""
        text = self.text.rstrip("/")
        return Url(text.removesuffix(self.suffix) + suffix)

    def exists(self) -> bool:
        """Return whether there is a file of at least a byte.

        Raises:
            OSError: The server does not say.
        """
        try:
            self._fetch(1)
        except FileNotFoundError:
            return False
        return True

    def read_bytes(self) -> bytes:
        """Return the content of the file.

        Raises:
            OSError: There is none, or the server does not give it.
        """
        return self._fetch(None)

    def read_text(self) -> str:
        """Return the content of the file as text, UTF-8.

        Raises:
            OSError: There is none, or the server does not give it.
        """
        return self.read_bytes().decode()

    def _fetch(self, stop: int | None) -> bytes:
        """Return the first bytes of the file, or all."""
        system, path = url_to_fs(self.text)
        try:
            return bytes(system.cat_file(path, start=None if stop is None else 0, end=stop))
        except client_errors() as error:
            raise OSError(f"{self.text}: {error}") from error


Location = Path | Url


def location(text: str) -> Location:
    """Return where a path or a URL points; `file://` is a path.

    Raises:
        StoreError: Nothing here opens such URLs.
    """
    scheme, found, rest = text.partition("://")
    if not found:
        return Path(text)
    if scheme == "file":
        return Path(unquote(urlsplit(text).path))
    if "?" in rest:
        raise StoreError(f"{text}: a store has no query; give the URL up to the ?")
    try:
        fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:
        raise StoreError(
            f"{text}: cannot read {scheme}:// ({error}); install the package that it names, or "
            f"copy the store to a disk"
        ) from error
    return Url(text)


def client_errors() -> tuple[type[Exception], ...]:
    """Return what a web server's refusal raises."""
    from aiohttp import ClientError  # 0.3 s to import, only where something went wrong

    return (ClientError,)
