"""Label maps on disk as other programs leave them."""

from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from ct3dlib.scan.nifti_classes import classes_extension

# Spacing (3, 2, 1.5) mm, D to superior, H to posterior, W to the patient's left; LPS mm.
UPRIGHT = np.array([[0, 0, 1.5, -20], [0, 2.0, 0, 7], [3.0, 0, 0, 100], [0, 0, 0, 1]])
_A, _B = np.deg2rad([10, 7])
_ABOUT_X = [[1, 0, 0], [0, np.cos(_A), -np.sin(_A)], [0, np.sin(_A), np.cos(_A)]]
_ABOUT_Z = [[np.cos(_B), -np.sin(_B), 0], [np.sin(_B), np.cos(_B), 0], [0, 0, 1]]
_TURN = np.pad(np.array(_ABOUT_Z) @ _ABOUT_X, (0, 1))
_TURN[3, 3] = 1
OBLIQUE = _TURN @ UPRIGHT
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def save_labels(
    path: Path,
    labels: NDArray[np.generic],
    affine: NDArray[np.float64] | None = UPRIGHT,
    *,
    classes: Mapping[int, str] | None = None,
    sform: bool = True,
) -> Path:
    """Write D H W labels in their dtype; affine None: a blank header; sform False: a qform only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ras = None if affine is None else _RAS_TO_LPS @ affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(labels.transpose(2, 1, 0), ras, dtype=labels.dtype)
    image.set_sform(ras, code=0 if ras is None or not sform else 1)
    image.set_qform(ras, code=0 if ras is None or sform else 1)
    if classes is not None:
        image.header.extensions.append(classes_extension(classes))
    nibabel.save(image, path)
    return path
