"""What is wrong with a synthetic patient: findings drawn for the 18 labels of CT-RATE."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ct3dlib.cohort.labels import LABELS
from ct3dlib.datasets.phantom_anatomy import (
    LEFT_LOWER,
    LEFT_UPPER,
    LOBES,
    RIGHT_UPPER,
    SIDES,
    Anatomy,
    draw_anatomy,
    lobe_points,
)
from ct3dlib.datasets.phantom_space import Points, Position

Where = Literal["left", "right", "both", ""]

# Share of patients with each label, in the order of LABELS.
PREVALENCE = dict(
    zip(
        LABELS,
        (
            *(0.20, 0.32, 0.25, 0.18, 0.30, 0.20, 0.25, 0.28, 0.26),
            *(0.40, 0.32, 0.24, 0.28, 0.18, 0.20, 0.25, 0.20, 0.20),
        ),
        strict=True,
    )
)
_DEVICE_SIDES: dict[str, Where] = {"pacemaker": "left", "port": "right", "sternotomy": ""}
NODE_STATIONS: dict[str, Position] = {
    "right lower paratracheal": (-20.0, -8.0, 32.0),
    "prevascular": (14.0, -46.0, 34.0),
    "aortopulmonary": (36.0, -8.0, 8.0),
    "subcarinal": (4.0, 14.0, -30.0),
    "right hilar": (-44.0, 4.0, -32.0),
    "left hilar": (50.0, 10.0, -28.0),
}
CORONARIES: dict[str, list[Position]] = {
    "left anterior descending": [(16, -44, -50), (34, -62, -62), (52, -68, -80), (66, -62, -100)],
    "circumflex": [(22, -34, -50), (48, -18, -56), (66, -10, -70), (62, 2, -92)],
    "right coronary": [(-8, -50, -54), (-30, -58, -70), (-34, -56, -92), (-20, -44, -110)],
}


@dataclass(frozen=True)
class Finding:
    """One abnormality at one place.

    Args:
        label: One of LABELS.
        kind: Variant, as the report calls it.
        region: Id of its lobe; 0 outside the lungs.
        side: Of the patient.
        centre: Template mm.
        size: Diameter or thickness, mm.
        amount: Extent or severity, 0 to 1.
        seed: Of its fine structure.
    """

    label: str
    kind: str = ""
    region: int = 0
    side: Where = ""
    centre: Position = (0.0, 0.0, 0.0)
    size: float = 0.0
    amount: float = 0.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Patient:
    """A patient with all findings."""

    anatomy: Anatomy
    findings: tuple[Finding, ...]

    @property
    def labels(self) -> tuple[int, ...]:
        """1 for each of LABELS that the patient has."""
        present = {finding.label for finding in self.findings}
        return tuple(int(label in present) for label in LABELS)

    def of(self, label: str) -> tuple[Finding, ...]:
        """Return the findings of a label."""
        return tuple(finding for finding in self.findings if finding.label == label)


def side_of(region: int) -> Where:
    """Return the side of a lobe."""
    return "left" if region in (LEFT_UPPER, LEFT_LOWER) else "right"


class _Draw:
    """Draws findings of one patient."""

    def __init__(self, rng: np.random.Generator, anatomy: Anatomy) -> None:
        self.rng = rng
        self.anatomy = anatomy
        self._spots: dict[float, dict[int, Points]] = {}

    def seed(self) -> int:
        return int(self.rng.integers(2**31))

    def pick(self, *options: str) -> str:
        return options[int(self.rng.integers(len(options)))]

    def side(self) -> Where:
        return (*SIDES, "both")[int(self.rng.choice(3, p=[0.3, 0.35, 0.35]))]

    def lobes(self, least: int, most: int, *, among: tuple[int, ...] = LOBES) -> list[int]:
        count = int(self.rng.integers(least, most + 1))
        return [int(lobe) for lobe in self.rng.choice(among, count, replace=False)]

    def spot(self, lobe: int, depth: float) -> Position:
        """Return a place at least `depth` mm inside a lobe, or as deep as it gets."""
        if depth not in self._spots:
            self._spots[depth] = lobe_points(self.anatomy, self.rng, depth=depth)
        points = self._spots[depth][lobe]
        if len(points) == 0:
            return self.spot(lobe, depth - 3)
        x, y, z = points[int(self.rng.integers(len(points)))].tolist()
        return x, y, z


def _lung(draw: _Draw, label: str) -> list[Finding]:
    """Draw a finding that sits in lobes."""
    rng = draw.rng
    match label:
        case "Lung nodule":
            count = int(rng.choice([1, 2, 3, 4], p=[0.5, 0.25, 0.15, 0.1]))
            places = [int(lobe) for lobe in rng.choice(LOBES, count)]
            sizes = [float(rng.uniform(10 if i == 0 else 8, 25)) for i in range(count)]
            kinds = [draw.pick("solid", "spiculated", "calcified") for _ in places]
            depths = [3 * round(size / 6) + 3.0 for size in sizes]
        case "Lung opacity":
            places = draw.lobes(2, 4)
            sizes = [float(rng.uniform(34, 66)) for _ in places]
            kinds = ["ground-glass"] * len(places)
            depths = [6.0] * len(places)
        case "Consolidation":
            places = draw.lobes(1, 2)
            sizes = [float(rng.uniform(44, 78)) for _ in places]
            kinds = [draw.pick("segmental", "lobar") for _ in places]
            depths = [9.0] * len(places)
        case "Pulmonary fibrotic sequela":
            upper = (LEFT_UPPER, RIGHT_UPPER)
            places = draw.lobes(1, 2, among=LOBES if rng.random() < 0.4 else upper)
            sizes = [float(rng.uniform(30, 50)) for _ in places]
            kinds = ["fibrotic"] * len(places)
            depths = [12.0] * len(places)
        case _:  # Bronchiectasis
            places = draw.lobes(1, 3)
            sizes = [float(rng.uniform(2.0, 2.8)) for _ in places]
            kinds = [draw.pick("cylindrical", "varicose") for _ in places]
            depths = [12.0] * len(places)
    return [
        Finding(label, kind, lobe, side_of(lobe), draw.spot(lobe, depth), size, 1.0, draw.seed())
        for kind, lobe, size, depth in zip(kinds, places, sizes, depths, strict=True)
    ]


def _atelectasis(draw: _Draw, label: str) -> list[Finding]:
    if draw.rng.random() < 0.45:
        size = float(draw.rng.uniform(12, 24))
        return [Finding(label, "dependent", side=draw.side(), size=size, seed=draw.seed())]
    return [
        Finding(
            label, "linear", lobe, side_of(lobe), draw.spot(lobe, 9.0),
            float(draw.rng.uniform(50, 90)), 1.0, draw.seed(),
        )
        for lobe in draw.lobes(1, 3)
    ]  # fmt: skip


def _diffuse(draw: _Draw, label: str) -> list[Finding]:
    """Draw a finding of both lungs."""
    amount = float(draw.rng.uniform(0.4, 1))
    kinds = {
        "Emphysema": ("centrilobular", "paraseptal", "bullous"),
        "Peribronchial thickening": ("diffuse", "central"),
        "Interlobular septal thickening": ("smooth", "nodular"),
    }
    kind = draw.pick(*kinds.get(label, ("patchy",)))
    return [Finding(label, kind, side="both", amount=amount, seed=draw.seed())]


def _lymphadenopathy(draw: _Draw, label: str) -> list[Finding]:
    names = draw.rng.choice(list(NODE_STATIONS), int(draw.rng.integers(2, 5)), replace=False)
    return [
        Finding(
            label, str(name), centre=NODE_STATIONS[str(name)],
            size=float(draw.rng.uniform(13, 25)), seed=draw.seed(),
        )
        for name in names
    ]  # fmt: skip


def _coronary(draw: _Draw, label: str) -> list[Finding]:
    names = draw.rng.choice(list(CORONARIES), int(draw.rng.integers(1, 4)), replace=False)
    return [
        Finding(label, str(name), amount=float(draw.rng.uniform(0.35, 1)), seed=draw.seed())
        for name in names
    ]


def _single(draw: _Draw, label: str) -> list[Finding]:
    """Draw a finding that is there once."""
    rng = draw.rng
    kind, size = "", 0.0
    side: Where = ""
    amount = float(rng.uniform(0.35, 1))
    match label:
        case "Medical material":
            kind = draw.pick("pacemaker", "port", "sternotomy")
            side = _DEVICE_SIDES[kind]
        case "Arterial wall calcification":
            kind = draw.pick("aortic arch", "descending aorta", "thoracic aorta")
        case "Cardiomegaly":
            size = draw.anatomy.heart
        case "Pericardial effusion":
            size = draw.anatomy.pericardial_fluid
        case "Hiatal hernia":
            size = float(rng.uniform(36, 70))
        case _:  # Pleural effusion
            side, size = draw.side(), float(rng.uniform(14, 52))
    return [Finding(label, kind, side=side, size=size, amount=amount, seed=draw.seed())]


_SOURCES: dict[str, Callable[[_Draw, str], list[Finding]]] = {
    "Lung nodule": _lung,
    "Lung opacity": _lung,
    "Consolidation": _lung,
    "Pulmonary fibrotic sequela": _lung,
    "Bronchiectasis": _lung,
    "Atelectasis": _atelectasis,
    "Emphysema": _diffuse,
    "Mosaic attenuation pattern": _diffuse,
    "Peribronchial thickening": _diffuse,
    "Interlobular septal thickening": _diffuse,
    "Lymphadenopathy": _lymphadenopathy,
    "Coronary artery wall calcification": _coronary,
}


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw a patient: each label independently at its prevalence, then where and how large."""
    present = [label for label in LABELS if rng.random() < PREVALENCE[label]]
    return make_patient(rng, present)


def make_patient(rng: np.random.Generator, labels: list[str]) -> Patient:
    """Draw a patient with exactly the given labels."""
    large, fluid = "Cardiomegaly" in labels, "Pericardial effusion" in labels
    anatomy = draw_anatomy(
        rng,
        heart=(1.20, 1.36) if large else (0.88, 1.0),
        pericardial_fluid=float(rng.uniform(9, 20)) if fluid else 0.0,
    )
    draw = _Draw(rng, anatomy)
    findings = [found for label in labels for found in _SOURCES.get(label, _single)(draw, label)]
    return Patient(anatomy, tuple(findings))
