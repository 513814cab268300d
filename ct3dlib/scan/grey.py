"""Pictures of 8 bits as grey values: their headers, their luminance, what is wrong with them."""

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ct3dlib.errors import VolumeError
from ct3dlib.scan.reading import cut_short

_FORMATS = ("PNG", "JPEG")
_DEEP = ("I", "F")  # and their variants, as I;16
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")  # 8 bits a channel or fewer


def read_grey(path: Path) -> UInt8[np.ndarray, "H W"]:
    """Return a picture's luminance, 0 black to 255 white.

    Colour becomes luminance (ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B), transparency is dropped,
    EXIF orientation is not applied: the rows of the file are the rows of the array.

    Raises:
        VolumeError: `FILE_MISSING`, `FILE_TRUNCATED`, `FILE_UNREADABLE`, `TOO_LARGE`, `NOT_8_BIT`
            or `NOT_SCALAR`.
    """
    with open_picture(path) as picture:
        try:
            grey = picture if picture.mode == "L" else picture.convert("RGBA")
            return np.array(grey.convert("L"))
        except (OSError, SyntaxError, ValueError) as error:
            raise _damaged(path, error) from error


def open_picture(path: Path) -> Image.Image:
    """Open a picture; its header is read, no pixel.

    Raises:
        VolumeError: As `read_grey`.
    """
    if not path.is_file():
        raise VolumeError("FILE_MISSING", f"{path}: no such file; correct the path or the catalog")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(path, formats=_FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise VolumeError(
            "TOO_LARGE", f"{path}: more pixels than any slice has ({error}); scale it down"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:  # no picture at all is an OSError too
        raise _damaged(path, error) from error
    if picture.mode not in _MODES:
        mode = picture.mode
        picture.close()
        reason = "NOT_8_BIT" if mode.startswith(_DEEP) else "NOT_SCALAR"
        raise VolumeError(
            reason, f"{path}: pixels of mode {mode}, wanted grey or RGB of 8 bits; convert it"
        )
    return picture


def _damaged(path: Path, error: Exception) -> VolumeError:
    """Return the error of a picture that cannot be decoded; Pillow tells a cut only in words."""
    if path.stat().st_size == 0 or "truncated" in str(error).lower():
        return cut_short(path, "it ends within the picture")
    return VolumeError(
        "FILE_UNREADABLE", f"{path}: no PNG or JPEG picture, or damaged ({error}); fetch it again"
    )
