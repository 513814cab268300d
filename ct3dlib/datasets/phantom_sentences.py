"""Sentences of a radiologist about the findings of a synthetic patient."""

import numpy as np

from ct3dlib.datasets.phantom_anatomy import (
    LEFT_LOWER,
    LEFT_UPPER,
    LOBES,
    RIGHT_LOWER,
    RIGHT_MIDDLE,
    RIGHT_UPPER,
)
from ct3dlib.datasets.phantom_findings import Finding

LOBE_NAMES = {
    LEFT_UPPER: "left upper lobe",
    LEFT_LOWER: "left lower lobe",
    RIGHT_UPPER: "right upper lobe",
    RIGHT_MIDDLE: "right middle lobe",
    RIGHT_LOWER: "right lower lobe",
}
_DEVICES = {
    "pacemaker": "A pacemaker is seen in the left pectoral region with its lead in the right "
    "ventricle.",
    "port": "A port chamber is seen in the right pectoral region, its catheter ends in the "
    "superior vena cava.",
    "sternotomy": "Sternotomy wires and surgical clips are present.",
}


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """Return one of several wordings."""
    return options[int(rng.integers(len(options)))]


def _join(names: list[str]) -> str:
    """Join names as English does, each once."""
    unique = list(dict.fromkeys(names))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} and {unique[-1]}"


def name_lobes(found: tuple[Finding, ...]) -> str:
    """Return the lobes of findings in words."""
    regions = sorted({finding.region for finding in found})
    return "both lungs" if regions == sorted(LOBES) else _join([LOBE_NAMES[r] for r in regions])


def _grade(amount: float) -> str:
    return "mild" if amount < 0.55 else "moderate" if amount < 0.8 else "marked"


def describe(found: tuple[Finding, ...], rng: np.random.Generator) -> str:
    """Return the sentences about the findings of one label."""
    match found[0].label:
        case "Lung nodule" | "Lung opacity" | "Consolidation" | "Atelectasis":
            return _describe_focal(found, rng)
        case "Pulmonary fibrotic sequela" | "Bronchiectasis":
            return _describe_scarred(found, rng)
        case "Emphysema" | "Mosaic attenuation pattern":
            return _describe_diffuse(found[0], rng)
        case "Peribronchial thickening" | "Interlobular septal thickening":
            return _describe_thickening(found[0], rng)
        case "Pleural effusion" | "Pericardial effusion":
            return _describe_fluid(found[0], rng)
        case _:
            return _describe_mediastinal(found, rng)


def _describe_focal(found: tuple[Finding, ...], rng: np.random.Generator) -> str:
    first, where = found[0], name_lobes(found) if found[0].region else ""
    match first.label:
        case "Lung nodule":
            parts = [
                f"A {_kind(finding.kind)}nodule of {finding.size:.0f} mm is seen in the "
                f"{LOBE_NAMES[finding.region]}."
                for finding in found
            ]
            return " ".join(parts)
        case "Lung opacity":
            return pick(
                rng,
                (
                    f"Patchy ground-glass opacities are observed in the {where}.",
                    f"There are areas of ground-glass density in the {where}.",
                ),
            )
        case "Consolidation":
            return pick(
                rng,
                (
                    f"Consolidation with air bronchograms is present in the {where}.",
                    f"A consolidated area containing air bronchograms is seen in the {where}.",
                ),
            )
        case _:
            if first.kind == "dependent":
                return f"Dependent atelectasis is seen in the {_lower(first)}."
            return f"Linear atelectasis is observed in the {where}."


def _kind(kind: str) -> str:
    return "" if kind == "solid" else f"{kind} "


def _lower(finding: Finding) -> str:
    """Return the lower lobes on a finding's side."""
    return "lower lobes of both lungs" if finding.side == "both" else f"{finding.side} lower lobe"


def _describe_scarred(found: tuple[Finding, ...], rng: np.random.Generator) -> str:
    where = name_lobes(found)
    if found[0].label == "Bronchiectasis":
        return f"{found[0].kind.capitalize()} bronchiectasis is seen in the {where}."
    return pick(
        rng,
        (
            f"Fibrotic bands and reticulation consistent with sequela are seen in the {where}.",
            f"Sequelae fibrotic changes with structural distortion are present in the {where}.",
        ),
    )


def _describe_diffuse(finding: Finding, rng: np.random.Generator) -> str:
    if finding.label == "Emphysema":
        bullae = " with apical bullae" if finding.kind == "bullous" else ""
        kind = "centrilobular" if finding.kind == "bullous" else finding.kind
        return (
            f"There is {_grade(finding.amount)} {kind} emphysema in both lungs{bullae}, "
            f"more prominent in the upper lobes."
        )
    return pick(
        rng,
        (
            "A mosaic attenuation pattern is seen in both lungs.",
            "Both lungs show mosaic attenuation, which may reflect small airway disease.",
        ),
    )


def _describe_thickening(finding: Finding, rng: np.random.Generator) -> str:
    grade = _grade(finding.amount)
    if finding.label == "Peribronchial thickening":
        return f"{grade.capitalize()} peribronchial thickening is observed in both lungs."
    return pick(
        rng,
        (
            f"There is {grade} {finding.kind} interlobular septal thickening in both lungs, "
            f"more evident in the lower lobes.",
            f"{finding.kind.capitalize()} thickening of the interlobular septa is seen in both "
            f"lungs, more evident in the lower lobes.",
        ),
    )


def _describe_fluid(finding: Finding, rng: np.random.Generator) -> str:
    thick = f"{finding.size:.0f} mm"
    if finding.label == "Pericardial effusion":
        return pick(
            rng,
            (
                f"Pericardial effusion reaching {thick} in thickness is observed.",
                f"There is pericardial fluid measuring up to {thick}.",
            ),
        )
    side = "bilateral" if finding.side == "both" else f"{finding.side}-sided"
    return pick(
        rng,
        (
            f"{side.capitalize()} pleural effusion of {thick} thickness is present.",
            f"There is {side} pleural effusion measuring {thick} at its thickest.",
        ),
    )


def _describe_mediastinal(found: tuple[Finding, ...], rng: np.random.Generator) -> str:
    first = found[0]
    match first.label:
        case "Medical material":
            return _DEVICES[first.kind]
        case "Arterial wall calcification":
            return (
                f"{_grade(first.amount).capitalize()} calcified plaques are seen in the wall "
                + (f"of the {first.kind}.")
            )
        case "Coronary artery wall calcification":
            names = _join([finding.kind for finding in found])
            return f"Calcifications are observed in the walls of the {names} coronary artery."
        case "Cardiomegaly":
            return pick(rng, ("The heart is enlarged.", "Heart size is increased."))
        case "Lymphadenopathy":
            names = _join([finding.kind for finding in found])
            largest = max(finding.size for finding in found)
            return f"Enlarged {names} lymph nodes are seen, the largest {largest:.0f} mm."
        case _:
            return f"A hiatal hernia of {first.size / 10:.1f} cm is observed."
