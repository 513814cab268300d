"""What a catalog says of its volumes: findings, of which one has any number, or a class."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ct3dlib.cohort.store import records

# The 18 findings that CT-RATE labels, in the order of its label table.
LABELS: tuple[str, ...] = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)


def label_names(catalog: pd.DataFrame) -> tuple[str, ...]:
    """Return what a catalog says of its volumes: findings, or else classes; none where neither.

    Findings are those of CT-RATE, of which a volume has any number; of the classes (`label`: an
    organ, a modality) it has one.
    """
    if catalog["labels"].notna().to_numpy().any():
        return LABELS
    return tuple(sorted(catalog["label"].dropna().unique()))


def label_vectors(catalog: pd.DataFrame) -> dict[str, list[int] | None]:
    """Return 0 or 1 for each of `label_names`, by volume; None where a volume has no labels."""
    names = label_names(catalog)

    def vector(row: Mapping[str, Any]) -> list[int] | None:
        if names == LABELS:
            return row["labels"]
        return None if row["label"] is None else [int(row["label"] == name) for name in names]

    return {row["volume"]: vector(row) for row in records(catalog)}
