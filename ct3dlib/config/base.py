"""What all sections share. Triples and shapes are (D, H, W)."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

Triple = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
Shape = tuple[PositiveInt, PositiveInt, PositiveInt]
Fraction = Annotated[float, Field(ge=0, le=1)]
Split = Literal["train", "tune", "valid"]
SPLITS: tuple[Split, ...] = ("train", "tune", "valid")
Millimetres = Annotated[float, Field(ge=0.01, le=100)]
Spacing = tuple[Millimetres, Millimetres, Millimetres]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class Spec(BaseModel):
    """Base of every section: frozen, hashable, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
