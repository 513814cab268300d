"""Which patients a synthetic cohort has, and how many series each."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ct3dlib.config import Fault, PhantomSpec

Part = Literal["train", "valid"]
PARTS: tuple[Part, Part] = ("train", "valid")


@dataclass(frozen=True)
class Job:
    """One patient to make.

    Args:
        part: Train or valid.
        number: Of the patient in its part, from 1.
        first: Number of its first series in its part, from 1.
        reconstructions: Of its scan.
        fault: Damage to its only series.
    """

    part: Part
    number: int
    first: int
    reconstructions: int
    fault: Fault | None = None

    @property
    def patient(self) -> str:
        """Id, as `train_1`."""
        return f"{self.part}_{self.number}"


def plan(spec: PhantomSpec) -> list[Job]:
    """Return the patients of a cohort: train, valid, then the damaged ones of valid."""
    jobs = []
    for index, part in enumerate(PARTS):
        first = 1
        count = spec.train_patients if part == "train" else spec.valid_patients
        for number in range(1, count + 1):
            rng = np.random.default_rng([spec.seed, index, number, 0])
            made = int(rng.integers(spec.reconstructions[0], spec.reconstructions[1] + 1))
            jobs.append(Job(part, number, first, made))
            first += made
    start = spec.valid_patients + 1
    return jobs + [Job("valid", start + i, 0, 1, fault) for i, fault in enumerate(spec.faults)]
