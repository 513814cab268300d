"""Section `regions`: who says which voxel belongs to which part of the body."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, StringConstraints, model_validator

from ct3dlib.config.base import Fraction, Millimetres, Name, Spec

Provider = Literal["labelmap", "totalsegmentator", "classical"]
Numbering = Literal["totalsegmentator_v2", "regions"]
Sha256 = Annotated[str, StringConstraints(to_lower=True, pattern=r"^[0-9a-fA-F]{64}$")]


class ClassicalRegionsSpec(Spec):
    """Regions by thresholds, components and morphology; no weights."""

    spacing: Millimetres = Field(default=3.0, description="Working grid, mm isotropic.")


class LabelMapSpec(Spec):
    """Label maps that lie on this machine, as CT-RATE ships TotalSegmentator's."""

    folder: str = Field(
        min_length=1,
        description="Of the label maps; relative to raw_root. Looked for are the place of the scan "
        "in a tree of the same shape and the name of the volume: a NIfTI file, or a folder with "
        "one file per class.",
    )
    strip: NonNegativeInt = Field(
        default=0, description="Leading folders of a scan's path that the tree here does not have."
    )
    numbering: Numbering | None = Field(
        default=None,
        description="What the numbers mean in files that do not name their classes; null: such "
        "files are refused.",
    )

    def is_below(self, raw_root: str) -> bool:
        """Return whether the folder lies in the raw root, links followed."""
        root = Path(raw_root).resolve()
        return (root / self.folder).resolve().is_relative_to(root)


class TotalSegmentatorSpec(Spec):
    """TotalSegmentator as a command of its own Python environment."""

    command: tuple[str, ...] = Field(
        default=("TotalSegmentator",),
        min_length=1,
        description="How it is called, e.g. [conda, run, -n, ts, TotalSegmentator].",
    )
    fast: bool = Field(default=False, description="Its 3 mm model in place of the 1.5 mm one.")
    device: Literal["gpu", "cpu", "mps"] = "gpu"


class Medsam2Spec(Spec):
    """MedSAM2 draws regions anew, prompted by what a provider found."""

    weights: str = Field(
        min_length=1,
        description="MedSAM2's .pt file on this machine, or hf://OWNER/REPOSITORY/FILE (needs the "
        "extra `hub`).",
    )
    sha256: Sha256 = Field(description="Of that file; another one is refused.")
    regions: tuple[Name, ...] | None = Field(
        default=None, description="What it draws; null: all that a box can prompt."
    )
    prompt: Literal["box", "mask"] = "box"
    margin: Fraction = Field(default=0.05, description="Added to a box on each side, of its size.")
    reach: NonNegativeInt = Field(
        default=2, description="Slices that it may go beyond the provider's."
    )
    patience: PositiveInt = Field(
        default=3, description="Slices in a row without the object that end a track."
    )
    accept: Fraction = Field(
        default=0.7, description="Least Dice with the provider's region; else that one is kept."
    )
    slices_at_a_time: PositiveInt = Field(default=16, description="Of the picture encoder.")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "bf16"


class RegionsSpec(Spec):
    """Region ids 0-20 on the grid of one recipe."""

    recipe: Name
    providers: tuple[Provider, ...] = Field(
        default=("classical",),
        min_length=1,
        description="Asked in this order: each gives the regions that none before it knows of.",
    )
    labelmap: LabelMapSpec | None = None
    totalsegmentator: TotalSegmentatorSpec = TotalSegmentatorSpec()
    classical: ClassicalRegionsSpec = ClassicalRegionsSpec()
    medsam2: Medsam2Spec | None = Field(
        default=None, description="Refines what the providers found; null: it stays as it is."
    )

    @model_validator(mode="after")
    def _check(self) -> "RegionsSpec":
        if len(set(self.providers)) < len(self.providers):
            raise ValueError(f"providers: one stands twice in {list(self.providers)}")
        if "labelmap" in self.providers and self.labelmap is None:
            raise ValueError(
                "providers names labelmap and nothing says where label maps lie; set "
                "labelmap.folder"
            )
        return self

    @property
    def gpus(self) -> int:
        """GPUs that a job asks for."""
        refines = self.medsam2 is not None and self.medsam2.device != "cpu"
        predicts = "totalsegmentator" in self.providers and self.totalsegmentator.device == "gpu"
        return int(refines or predicts)
