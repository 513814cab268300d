"""The text at the start of NRRD and MetaImage files: where their voxels are and how packed.

Sources: the NRRD format (teem.sourceforge.net/nrrd/format.html) and MetaIO's documentation
(itk.org/Wiki/MetaIO/Documentation).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from ct3dlib.errors import VolumeError
from ct3dlib.scan.reading import cut_short

_BLOCK = 1 << 14
_LONGEST = 1 << 20
_LONGEST_NAME = 256
_META_END = b"elementdatafile"


@dataclass(frozen=True)
class TextHeader:
    """What a header says of its voxels; what its fields mean for the grid is left to `read_grid`.

    Args:
        path: The header's file.
        kind: Which of the two formats.
        fields: Values by name, names in lower case without blanks.
        data: File of the voxels; `path` where they follow the header.
        offset: First byte of the voxels; null: they are the file's last bytes.
        deflated: Whether they are a gzip or zlib stream.
        big_endian: Byte order.
    """

    path: Path
    kind: Literal["nrrd", "metaimage"]
    fields: Mapping[str, str]
    data: Path
    offset: int | None
    deflated: bool
    big_endian: bool

    @property
    def files(self) -> tuple[Path, ...]:
        """The header, and the file of the voxels where it is another one."""
        return (self.path,) if self.data == self.path else (self.path, self.data)


def read_text_header(path: Path) -> TextHeader:
    """Return what the text header of a file says; no voxel is read.

    Raises:
        VolumeError: `FILE_MISSING`, `FILE_TRUNCATED`, `FILE_UNREADABLE`, or `UNSAFE_PATH` where
            the file of the voxels does not lie beside or below the header.
    """
    if not path.is_file():
        raise VolumeError("FILE_MISSING", f"{path}: no such file; correct the catalog")
    try:
        with path.open("rb") as stream:
            start = stream.read(_BLOCK)
            nrrd = start.startswith(b"NRRD000")
            while (end := _end(start, nrrd=nrrd)) is None and len(start) < _LONGEST:
                if not (block := stream.read(_BLOCK)):
                    break
                start += block
    except OSError as error:
        raise VolumeError("FILE_UNREADABLE", f"{path}: {error}; fetch it again") from error
    if not start:
        raise cut_short(path, "it is empty")
    fields = _fields(start[:end], ":" if nrrd else "=")
    if not nrrd and not fields.keys() & {"ndims", "objecttype"}:
        raise VolumeError(
            "FILE_UNREADABLE", f"{path}: neither an NRRD nor a MetaImage header; fetch it again"
        )
    if end is None and not (nrrd and "datafile" in fields):
        raise cut_short(path, f"no end of the header within {len(start)} bytes")
    end = len(start) if end is None else end
    return _nrrd(path, fields, end) if nrrd else _metaimage(path, fields, end)


def _end(start: bytes, *, nrrd: bool) -> int | None:
    """Return the first byte after the header: NRRD ends at a blank line, MetaImage at a field."""
    place = 0
    while (stop := start.find(b"\n", place)) >= 0:
        line = start[place:stop].strip()
        place = stop + 1
        if not line if nrrd else line.lower().startswith(_META_END):
            return place
    return len(start) if not nrrd and start[place:].lower().startswith(_META_END) else None


def _fields(text: bytes, separator: str) -> dict[str, str]:
    """Return the fields of a header; comments, and key:=value pairs of NRRD, are left out."""
    fields = {}
    for line in text.decode("latin-1").split("\n"):
        name, found, value = line.partition(separator)
        if found and not line.startswith("#") and not (separator == ":" and value.startswith("=")):
            fields["".join(name.split()).lower()] = value.strip()
    return fields


def _nrrd(path: Path, fields: Mapping[str, str], end: int) -> TextHeader:
    """Return the header of an NRRD file."""
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise VolumeError(
            "FILE_UNREADABLE",
            f"{path}: encoding {encoding!r}, wanted raw or gzip; write it anew with one of them",
        )
    name = fields.get("datafile")
    data = path if name is None else _beside(path, name)
    skip = _whole(path, fields, "byteskip")
    if _whole(path, fields, "lineskip") or (skip and encoding != "raw") or skip < -1:
        raise VolumeError(
            "FILE_UNREADABLE",
            f"{path}: a line skip, or a byte skip of packed voxels, is not read; write it anew",
        )
    first = end if name is None else 0
    return TextHeader(
        path=path,
        kind="nrrd",
        fields=fields,
        data=data,
        offset=None if skip == -1 else first + skip,
        deflated=encoding != "raw",
        big_endian=fields.get("endian", "little").lower() == "big",
    )


def _metaimage(path: Path, fields: Mapping[str, str], end: int) -> TextHeader:
    """Return the header of a MetaImage file."""
    if not _true(fields, "binarydata", default=True):
        raise VolumeError(
            "FILE_UNREADABLE", f"{path}: voxels as text; write it anew with BinaryData = True"
        )
    name = fields.get("elementdatafile", "")
    local = name.lower() == "local"
    skip = _whole(path, fields, "headersize")
    if skip < -1:
        raise VolumeError("FILE_UNREADABLE", f"{path}: HeaderSize {skip}; write the header anew")
    first = end if local else 0
    order = "elementbyteordermsb" if "elementbyteordermsb" in fields else "binarydatabyteordermsb"
    return TextHeader(
        path=path,
        kind="metaimage",
        fields=fields,
        data=path if local else _beside(path, name),
        offset=None if skip == -1 else skip or first,
        deflated=_true(fields, "compresseddata"),
        big_endian=_true(fields, order),
    )


def _beside(path: Path, name: str) -> Path:
    """Return the one file of voxels that a header names."""
    if not 0 < len(name) < _LONGEST_NAME or "%" in name or name.upper().startswith("LIST"):
        raise VolumeError(
            "FILE_UNREADABLE",
            f"{path}: its voxels lie in {name[:80] or 'no file'!r}, wanted one file; write them "
            f"into one",
        )
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or ":" in name:
        raise VolumeError(
            "UNSAFE_PATH",
            f"{path}: its voxels lie in {name}, wanted a file beside it; move it there and "
            f"correct the header",
        )
    data = path.parent / pure
    if not data.is_file():
        raise VolumeError(
            "FILE_MISSING",
            f"{path}: its voxels lie in {name}, and there is no such file; put it"
            f" beside the header",
        )
    return data


def _whole(path: Path, fields: Mapping[str, str], name: str) -> int:
    """Return a field as a whole number; 0 where it is missing."""
    text = fields.get(name, "0")
    try:
        return int(text)
    except ValueError as error:
        raise VolumeError(
            "FILE_UNREADABLE", f"{path}: {name} is {text!r}, no number; write the header anew"
        ) from error


def _true(fields: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    """Return a field of MetaImage as a truth value; its first letter counts."""
    text = fields.get(name)
    return default if text is None else text[:1].lower() in ("t", "1")
