"""Sections of the data wing: the synthetic cohort, the catalog, recipes."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from ct3dlib.config.base import (
    SPLITS,
    Fraction,
    Seed,
    Shape,
    Spacing,
    Spec,
    Split,
)

Domain = Literal["hu", "mr", "window8", "uint8"]
Axes = Literal["dhw", "dwh"]
_BYTES = ("window8", "uint8")
Percent = Annotated[float, Field(ge=0, le=100)]
Dataset = Literal["ct_rate", "folder", "brats", "medmnist3d", "omniabnorm", "pictures"]
Fault = Literal["truncated", "nan", "no_metadata", "single_slice"]


class PhantomSpec(Spec):
    """The synthetic chest-CT cohort, written as a CT-RATE tree under the raw root."""

    train_patients: PositiveInt = Field(description="Patients in train/ (tune is drawn from them).")
    valid_patients: PositiveInt = Field(description="Patients in valid/.")
    reconstructions: tuple[PositiveInt, PositiveInt] = Field(
        default=(1, 2), description="Fewest and most reconstructions of one scan."
    )
    matrix: tuple[PositiveInt, PositiveInt] = Field(
        default=(144, 192), description="Smallest and largest rows = columns of a slice."
    )
    slice_spacing: tuple[PositiveFloat, PositiveFloat] = Field(
        default=(3.0, 5.0), description="Smallest and largest distance of slices, mm."
    )
    dicom_every: NonNegativeInt = Field(
        default=6, description="Every n-th series is DICOM; 0: none."
    )
    version: Literal["v1", "v2"] = Field(
        default="v1",
        description="v1: stored values, blank headers; v2: HU with geometry, in train_fixed/.",
    )
    faults: tuple[Fault, ...] = Field(
        default=(),
        description="Damaged series added to valid/, one each, to show how they are rejected.",
    )
    seed: Seed = 0

    @model_validator(mode="after")
    def _check(self) -> "PhantomSpec":
        for name in ("reconstructions", "matrix", "slice_spacing"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"phantom.{name} must not fall: ({low}, {high})")
        if self.version == "v2" and "no_metadata" in self.faults:
            raise ValueError("phantom.faults: no_metadata damages nothing in v2; remove it")
        return self


class CatalogSpec(Spec):
    """Which reader lists the raw root, and how patients are split and spread over shards."""

    dataset: Dataset
    tune: Fraction = Field(default=0.1, description="Share of patients kept to choose checkpoints.")
    valid: Fraction = Field(
        default=0.2,
        description="Share of patients that are reported (folder; CT-RATE brings its own).",
    )
    split_csv: str | None = Field(
        default=None,
        description="CSV under the raw root: `VolumeName`, `split` and optionally `patient`.",
    )
    min_slices: PositiveInt = Field(
        default=8, description="Slices of a volume that counts where a split must have a patient."
    )
    pseudonymise: bool = Field(
        default=False,
        description="Volumes, studies, patients and files under names that only the key resolves.",
    )
    shards: dict[Split, PositiveInt] = Field(description="Number of shards of each split.")
    seed: Seed = 0

    @model_validator(mode="after")
    def _check(self) -> "CatalogSpec":
        if set(self.shards) != set(SPLITS):
            raise ValueError(f"shards must name exactly {', '.join(SPLITS)}: {sorted(self.shards)}")
        if self.tune + self.valid >= 1:
            raise ValueError(f"tune + valid must stay under 1: {self.tune} + {self.valid}")
        return self


class RecipeSpec(Spec):
    """A named normalisation of volumes: one store, whose models see `window` as `range`."""

    domain: Domain = Field(
        default="hu", description="What values mean; series of another domain are rejected."
    )
    clip_first: tuple[float, float] | None = Field(
        default=None,
        description="Clip to this before resampling, HU, as CT-CLIP's inference; null: only after.",
    )
    body_margin: NonNegativeFloat | None = Field(
        default=None,
        description="Crop to the body's bounding box and this margin, mm; null: keep all of it.",
    )
    spacing: Spacing | None = Field(default=None, description="Resample to this spacing, mm.")
    size: Shape | None = Field(default=None, description="Or resample to this many voxels.")
    letterbox: bool = Field(
        default=False,
        description="size: rows and columns keep their proportions, what is left over is padded.",
    )
    slices: PositiveInt | None = Field(
        default=None,
        description="window8: of pictures around a key slice so many, it and its neighbours; it "
        "stands in for those that are missing. null: all there are.",
    )
    shape: Shape | None = Field(
        default=None, description="Then crop or pad to this shape; null: keep."
    )
    center: Literal["volume", "body"] = Field(
        default="volume", description="What stays in the middle of the crop: the grid or the body."
    )
    window: tuple[float, float] = Field(
        default=(-1000.0, 1000.0), description="HU that map to `range`."
    )
    percentiles: tuple[Percent, Percent] | None = Field(
        default=None,
        description="mr: percentiles of a volume's voxels above 0, in the window's place.",
    )
    range: tuple[float, float] = Field(default=(-1.0, 1.0), description="What models see.")
    axes: Axes = Field(
        default="dhw", description="Order in which models see the axes; dwh: BTB3D's."
    )
    hu_state: Literal["auto", "hu", "stored"] = Field(
        default="auto", description="Whether files hold HU, stored values, or each is found out."
    )
    min_slices: PositiveInt = Field(default=8, description="Series of fewer slices are rejected.")

    @model_validator(mode="before")
    @classmethod
    def _window_of_bytes(cls, values: Any) -> Any:
        """Give 8-bit values their one window where none is named."""
        if isinstance(values, Mapping) and values.get("domain") in _BYTES:
            return {"window": (0, 255), **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> "RecipeSpec":
        if self.spacing is not None and self.size is not None:
            raise ValueError("give spacing or size, not both")
        self._check_pictures()
        for name in ("window", "range", "clip_first", "percentiles"):
            low, high = getattr(self, name) or (0, 1)
            if not low < high:
                raise ValueError(f"{name} must rise: ({low}, {high})")
        if (self.domain == "mr") != (self.percentiles is not None):
            raise ValueError("percentiles belong to domain mr and to no other, e.g. [0.5, 99.5]")
        if self.domain != "hu" and (
            self.clip_first or self.body_margin is not None or self.center == "body"
        ):
            raise ValueError(
                f"clip_first, body_margin and center: body need HU, not the domain {self.domain!r}"
            )
        if self.domain in _BYTES and self.window != (0, 255):
            raise ValueError(f"the window of 8-bit values is [0, 255], not {list(self.window)}")
        return self

    def _check_pictures(self) -> None:
        if self.letterbox and (self.size is None or self.shape is not None):
            raise ValueError("letterbox fits pictures into size; give size, and no shape")
        if self.slices is None:
            return
        if self.domain != "window8":
            raise ValueError(f"slices are of pictures, domain window8, not {self.domain!r}")
        if self.size is not None and self.size[0] != self.slices:
            raise ValueError(
                f"size {list(self.size)} would blend {self.slices} slices; begin it with "
                f"{self.slices}"
            )

    @property
    def pads(self) -> bool:
        """Whether a volume may hold voxels that its scan has not."""
        return self.shape is not None or self.letterbox

    @property
    def seen_shape(self) -> Shape | None:
        """`shape` in the order of `axes`."""
        return self._seen(self.shape)

    @property
    def seen_whole(self) -> Shape | None:
        """Voxels of every volume in the order of `axes`; None where they differ."""
        return self._seen(self.shape or self.size)

    def _seen(self, shape: Shape | None) -> Shape | None:
        if shape is None or self.axes == "dhw":
            return shape
        depth, height, width = shape
        return depth, width, height
