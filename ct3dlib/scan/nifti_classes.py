"""Names of the classes in a NIfTI label map: a label table in the header's extension.

The table is XML, as Connectome Workbench (extension code 30) and TotalSegmentator (0) write it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel
from nibabel.nifti1 import Nifti1Extension

from ct3dlib.errors import VolumeError

_CODE = 0  # an extension that no software has registered


def read_classes(path: Path) -> dict[int, str]:
    """Return the name of each number in a label map; empty where the file names none.

    Args:
        path: A NIfTI file that `read_nifti` reads.

    Raises:
        VolumeError: `BAD_LABELS`, the table cannot be read.
    """
    classes: dict[int, str] = {}
    image: Any = nibabel.load(path)
    for extension in image.header.extensions:
        if b"<LabelTable" not in extension.content:
            continue
        try:
            for label in ElementTree.fromstring(extension.content).iter("Label"):
                classes[int(label.attrib["Key"])] = (label.text or "").strip()
        except (ElementTree.ParseError, KeyError, ValueError) as error:
            raise VolumeError(
                "BAD_LABELS", f"{path}: the names of its classes cannot be read ({error})"
            ) from error
    return classes


def classes_extension(classes: Mapping[int, str]) -> Nifti1Extension:
    """Return the extension that names the classes of a label map."""
    root = ElementTree.Element("CaretExtension")
    table = ElementTree.SubElement(
        ElementTree.SubElement(root, "VolumeInformation", Index="0"), "LabelTable"
    )
    for number, name in classes.items():
        ElementTree.SubElement(table, "Label", Key=str(number)).text = name
    return Nifti1Extension(_CODE, ElementTree.tostring(root, encoding="utf-8"))
