"""One DICOM file: its frames from the header, their pixels as HU.

Single-frame and enhanced multi-frame files look the same from here on: a list of frames, each
with its own position, orientation, spacing, slope and intercept (PS3.3 C.7.6.2, C.7.6.16).
"""

import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from jaxtyping import Float
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import get_decoder
from pydicom.uid import JPEGExtended12Bit

from ct3dlib.errors import VolumeError
from ct3dlib.scan.reading import check_size
