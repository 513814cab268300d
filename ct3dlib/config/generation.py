"""Section of the network through which samples are compared with real volumes, slice by slice."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from ct3dlib.config.base import Spec

Plane = Literal["axial", "coronal", "sagittal"]


class GenerationSpec(Spec):
    """A given network for the distances of slices; without one there are none."""

    network: Literal["alex", "vgg16", "exported"] | None = Field(
        default=None,
        description="alex, vgg16: torchvision's, with its weights; exported: any, as a file of "
        "torch.export that takes N 1 H W or N 3 H W in [0, 1] and gives N F or N F h w.",
    )
    weights: str | None = Field(
        default=None, min_length=1, description="Local file of the network; nothing is downloaded."
    )
    size: PositiveInt | None = Field(
        default=None,
        description="Pixels of a side to which slices are resized; null: as they are.",
    )
    slices: PositiveInt = Field(
        default=32, description="Slices of a volume along each axis, at even distances."
    )
    planes: tuple[Plane, ...] = Field(default=("axial", "coronal", "sagittal"), min_length=1)

    @field_validator("weights")
    @classmethod
    def _expand_home(cls, value: str | None) -> str | None:
        return None if value is None else str(Path(value).expanduser())

    @model_validator(mode="after")
    def _check(self) -> "GenerationSpec":
        if self.network is not None and self.weights is None:
            raise ValueError(
                f"network {self.network} needs weights, a local file; nothing is downloaded"
            )
        if self.network is None and self.weights is not None:
            raise ValueError(
                f"weights {self.weights}: of which network? Set network to alex, vgg16 or exported"
            )
        if len(set(self.planes)) < len(self.planes):
            raise ValueError(f"planes {list(self.planes)}: one is named twice; name each once")
        return self
