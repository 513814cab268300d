"""Section of the classifier that judges which findings or classes a volume shows."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from ct3dlib.config.base import Spec
from ct3dlib.config.training import AugmentSpec, TrainSpec


class VolumeClassifierSpec(Spec):
    """A 3D convolutional network over whole volumes."""

    name: Literal["volume_classifier"] = "volume_classifier"
    filters: Annotated[int, Field(ge=8, multiple_of=4)] = Field(
        default=12, description="Channels of the first level; each next one has twice as many."
    )
    num_levels: Annotated[int, Field(ge=1, le=6)] = Field(
        default=4, description="Each level halves the grid."
    )


class VolumeClassifierNetworkSpec(VolumeClassifierSpec):
    """A volume classifier with what it takes from its catalog."""

    num_labels: PositiveInt = Field(description="Findings or classes that it tells.")


class ClassifierSpec(TrainSpec):
    """Training of the classifier on the stored volumes that the tokens are made of."""

    model: VolumeClassifierSpec = VolumeClassifierSpec()
    augment: AugmentSpec = AugmentSpec(shift=3.0, intensity_shift=0.02, noise=0.01)
