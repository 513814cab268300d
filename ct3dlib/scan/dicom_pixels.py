"""The pixels of one DICOM file as HU.

pydicom and its plugins decode; GDCM inside ITK takes the syntaxes that they lack (lossless and
12-bit JPEG, the retired kinds).
"""

import logging
import zlib

import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
)

from ct3dlib.errors import VolumeError
from ct3dlib.scan.dicom_file import BROKEN, Header, quiet
from ct3dlib.scan.reading import cut_short

logger = logging.getLogger(__name__)

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def read_planes(header: Header) -> NDArray[np.float32]:
    """Decode a file's pixels, each frame with its own slope and intercept.

    MONOCHROME1 asks for another display, not for other values: nothing is inverted.

    Returns:
        N H W in the order of `header.frames`: HU, or stored values where a frame has no rescale.

    Raises:
        VolumeError: `FILE_TRUNCATED`, `FILE_UNREADABLE` or `UNSUPPORTED_SYNTAX`.
    """
    if not _decodable(header.syntax):
        return _planes_by_itk(header)
    try:
        with quiet():
            dataset = pydicom.dcmread(header.path, force=True)
            if not any(tag in dataset for tag in _PIXELS):
                raise cut_short(header.path, "its pixel data are missing or cut short")
            if "TransferSyntaxUID" not in dataset.file_meta:
                dataset.file_meta.TransferSyntaxUID = _syntax_seen(dataset)
            stored = dataset.pixel_array
    except zlib.error as error:
        raise cut_short(header.path, str(error)) from error
    except BROKEN as error:
        if "less than expected" in str(error):
            raise cut_short(header.path, str(error)) from error
        # What pydicom says may hold the value of a tag.
        logger.info("%s: %s", header.path, error)
        raise VolumeError(
            "FILE_UNREADABLE",
            f"{header.path}: pixels cannot be decoded ({type(error).__name__}); fetch it again",
        ) from error
    planes = _shaped(header, stored)
    for plane, frame in zip(planes, header.frames, strict=True):
        slope, intercept = frame.rescale or (1.0, 0.0)
        plane *= np.float32(slope)
        plane += np.float32(intercept)
    return planes


def _syntax_seen(dataset: Dataset) -> UID:
    """Return the transfer syntax of a file that does not state it, as it was parsed."""
    implicit, little = dataset.original_encoding
    if not little:
        return ExplicitVRBigEndian
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def _decodable(syntax: str) -> bool:
    """Return whether pydicom decodes a transfer syntax; 12-bit JPEG is beyond its plugins."""
    if not syntax:
        return True
    try:
        return syntax != JPEGExtended12Bit and get_decoder(UID(syntax)).is_available
    except NotImplementedError:
        return False


def _planes_by_itk(header: Header) -> NDArray[np.float32]:
    """Decode a single frame by GDCM inside ITK, which rescales it too."""
    uid = UID(header.syntax)
    name = "a private transfer syntax" if uid.is_private else uid.name
    if header.multi_frame:
        raise VolumeError(
            "UNSUPPORTED_SYNTAX",
            f"{header.path}: several frames in {name}, which no decoder here reads; transcode it",
        )
    try:
        image = SimpleITK.ReadImage(str(header.path), imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise VolumeError(
            "UNSUPPORTED_SYNTAX",
            f"{header.path}: {name} cannot be decoded, or the file is cut short; transcode it or "
            f"fetch it again",
        ) from error
    return _shaped(header, SimpleITK.GetArrayFromImage(image))


def _shaped(header: Header, decoded: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return decoded pixels as float32 N H W, where there are as many as the header states."""
    shape = len(header.frames), header.rows, header.columns
    if decoded.size != np.prod(shape):
        raise VolumeError(
            "FILE_UNREADABLE",
            f"{header.path}: {decoded.size} pixels, its header states {shape}; fetch it again",
        )
    return decoded.reshape(shape).astype(np.float32)
