"""What a radiologist would write about a synthetic patient: report and question with answer."""

from dataclasses import dataclass

import numpy as np

from ct3dlib.datasets.phantom_findings import Patient
from ct3dlib.datasets.phantom_sentences import describe, name_lobes, pick

# Said where nothing is wrong; every label has its own place in the report.
_NORMAL = {
    "airway": ("Trachea and both main bronchi are open.", "The central airways are patent."),
    "Arterial wall calcification": (
        "The calibre of the thoracic aorta is normal.",
        "Mediastinal vascular structures have normal calibre.",
    ),
    "Cardiomegaly": ("Heart size is normal.", "The heart is of normal size and contour."),
    "Coronary artery wall calcification": ("", "No coronary calcification is seen."),
    "Pericardial effusion": (
        "No pericardial effusion is seen.",
        "There is no pericardial thickening or effusion.",
    ),
    "Hiatal hernia": (
        "The oesophagus is of normal calibre.",
        "No pathological wall thickening is seen in the oesophagus.",
    ),
    "Lymphadenopathy": (
        "No enlarged mediastinal or hilar lymph nodes are detected.",
        "There are no lymph nodes of pathological size in the mediastinum.",
    ),
    "Pleural effusion": (
        "No pleural effusion or thickening is seen.",
        "Both pleural spaces are free of fluid.",
    ),
    "Lung nodule": ("No nodule is seen in either lung.", "There is no suspicious lung nodule."),
    "Consolidation": ("", "No consolidation is detected in the lung parenchyma."),
    "Emphysema": ("", "There is no emphysema."),
    "Bronchiectasis": ("", "No bronchiectasis is seen."),
}
_ORDER = (
    "Medical material",
    "airway",
    "Arterial wall calcification",
    "Coronary artery wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Lymphadenopathy",
    "Hiatal hernia",
    "Pleural effusion",
    "Emphysema",
    "Mosaic attenuation pattern",
    "Lung opacity",
    "Consolidation",
    "Lung nodule",
    "Atelectasis",
    "Pulmonary fibrotic sequela",
    "Bronchiectasis",
    "Peribronchial thickening",
    "Interlobular septal thickening",
)
_QUESTIONS = (
    "What does this chest CT show?",
    "Which abnormalities are present in this scan?",
    "Describe the findings of this examination.",
    "What would you report for this non-contrast chest CT?",
)
_REASONS = (
    "Not given.",
    "Cough and fever.",
    "Shortness of breath.",
    "Follow-up of a lung lesion.",
    "Chest pain.",
    "Suspected pneumonia.",
)


@dataclass(frozen=True)
class Report:
    """The texts of one scan."""

    clinical: str
    technique: str
    findings: str
    impressions: str
    question: str
    answer: str


def write_report(patient: Patient, rng: np.random.Generator) -> Report:
    """Write the texts of a patient; they state the truth of every label.

    Args:
        patient: With all findings.
        rng: Chooses among wordings.
    """
    sentences: list[str] = []
    abnormal: list[str] = []
    for topic in _ORDER:
        found = patient.of(topic)
        said = [describe(found, rng)] if found else [pick(rng, _NORMAL.get(topic, ("",)))]
        abnormal += said if found else []
        sentences += said
    sentences += _abdomen_and_bones(patient, rng)
    impressions = [_conclude(label, patient) for label in _ORDER if patient.of(label)]
    answer = abnormal or ["No abnormality is detected in the chest."]
    return Report(
        clinical=pick(rng, _REASONS),
        technique="Axial sections of the chest were obtained without contrast material.",
        findings=" ".join(filter(None, sentences)),
        impressions=" ".join(impressions) or "Findings within normal limits.",
        question=pick(rng, _QUESTIONS),
        answer=" ".join(answer),
    )


def _conclude(label: str, patient: Patient) -> str:
    """Return the impression about a label that is present."""
    found = patient.of(label)
    first = found[0]
    match label:
        case "Medical material":
            return "Medical material in place."
        case "Lung nodule":
            plural = "nodules" if len(found) > 1 else "nodule"
            return f"Pulmonary {plural} in the {name_lobes(found)}."
        case "Lung opacity":
            return f"Ground-glass opacities in the {name_lobes(found)}."
        case "Pleural effusion":
            side = "Bilateral" if first.side == "both" else f"{first.side}-sided".capitalize()
            return f"{side} pleural effusion."
        case "Consolidation" | "Bronchiectasis" | "Pulmonary fibrotic sequela":
            name = {"Pulmonary fibrotic sequela": "Fibrotic sequelae"}.get(label, label)
            return f"{name} in the {name_lobes(found)}."
        case _:
            return f"{label}."


def _abdomen_and_bones(patient: Patient, rng: np.random.Generator) -> list[str]:
    anatomy = patient.anatomy
    liver = "Upper abdominal organs in the sections are unremarkable."
    if anatomy.liver_hu < 48:
        liver = "Liver density is decreased, consistent with steatosis."
    bones = pick(rng, ("Bone structures are intact.", "No lytic or destructive bone lesion."))
    if anatomy.age > 62:
        bones = "Degenerative changes are seen in the thoracic vertebrae."
    return [liver, bones]
