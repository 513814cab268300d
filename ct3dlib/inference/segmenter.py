"""A trained segmenter on scans: the class of each voxel, and where lesions may be.

Letters: B volumes, K classes, D H W voxels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from ct3dlib.config import RecipeSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.metrics.detection import find_boxes
from ct3dlib.models.exported import load_model
from ct3dlib.models.segmenter import Segmenter
from ct3dlib.nn.intensity import windowed
from ct3dlib.regions.classes import LESION
from ct3dlib.scan.axes import from_model, to_model
from ct3dlib.scan.volume import Volume

# Boxes are around what the mask shows too. Less joins a lesion that a model is not sure of with all
# that surrounds it: one box, around nothing in particular.
LEAST_PROBABILITY = 0.5
_OVERLAP = 0.5
_COLUMNS = (
    *("score", "voxels", "i_start", "i_stop", "j_start", "j_stop", "k_start", "k_stop"),
    *("x_mm", "y_mm", "z_mm", "i_mm", "j_mm", "k_mm"),
)


@dataclass(frozen=True, eq=False)
class Segmented:
    """What a segmenter tells of a volume, on its grid.

    Args:
        classes: Id of each voxel's class, 0 the background.
        lesions: Probability that a voxel is one of a lesion; None where the model knows none.
    """

    classes: UInt8[np.ndarray, "D H W"]
    lesions: Float[np.ndarray, "D H W"] | None


@dataclass(frozen=True, eq=False)
class TrainedSegmenter:
    """A segmenter and the volumes it was trained on.

    Args:
        model: In eval mode.
        recipe: How its volumes were normalised, and the window and range it sees.
        classes: Their names, index = id.
    """

    model: Segmenter
    recipe: RecipeSpec
    classes: tuple[str, ...]

    def segment(
        self, values: Shaped[np.ndarray, "D H W"], window: tuple[float, float]
    ) -> Segmented:
        """Return the classes of a volume, whole where it has the model's shape, else in windows.

        Windows overlap by half and are blended by a Gaussian; what is smaller than a window is
        filled with the range's low end.

        Args:
            values: As stored, on canonical axes.
            window: Values that map to the recipe's range.
        """
        device = next(self.model.parameters()).device
        seen = torch.from_numpy(np.ascontiguousarray(to_model(values, self.recipe.axes)))
        volumes = windowed(
            seen[None, None].to(device),
            torch.tensor([window], device=device),
            onto=self.recipe.range,
        )
        with torch.no_grad():
            whole = tuple(volumes.shape[2:]) == self.model.spec.encoder.shape
            told = self._told(volumes) if whole else self.in_windows(volumes)
        classes = from_model(told[0].argmax(0).byte().cpu().numpy(), self.recipe.axes)
        if LESION not in self.classes:
            return Segmented(classes, None)
        lesions = told[0, self.classes.index(LESION)].cpu().numpy()
        return Segmented(classes, from_model(lesions, self.recipe.axes))

    def in_windows(self, volumes: Float[Tensor, "1 1 D H W"]) -> Float[Tensor, "1 K D H W"]:
        """Return the probabilities of a volume of any shape, from windows of the model's.

        Args:
            volumes: In the model's range and order of axes.
        """
        # MONAI takes seconds to import, and a volume of the recipe's shape needs no windows.
        from monai.inferers.utils import sliding_window_inference

        told = sliding_window_inference(
            volumes,
            self.model.spec.encoder.shape,
            1,
            self._told,
            overlap=_OVERLAP,
            mode="gaussian",
            cval=self.recipe.range[0],
        )
        return torch.as_tensor(told)

    def _told(self, volumes: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B K D H W"]:
        """Return the probabilities of volumes of the model's shape."""
        return self.model(volumes).float().softmax(1)


def load_segmenter(folder: Path, device: torch.device) -> TrainedSegmenter:
    """Load a trained segmenter onto a device.

    Raises:
        CheckpointError: It is missing or damaged, no segmenter, or its contract has holes.
    """
    loaded = load_model(folder)
    if not isinstance(loaded.module, Segmenter):
        raise CheckpointError(
            f"{folder}: a {type(loaded.module).__name__}, no segmenter; give what the rule "
            f"mae_segment trained"
        )
    try:
        recipe = RecipeSpec.model_validate(loaded.contract["recipe"])
        classes = tuple(loaded.contract["classes"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{folder}: its contract is incomplete ({error})") from error
    return TrainedSegmenter(loaded.module.to(device), recipe, classes)


def lesion_table(probabilities: Volume) -> pd.DataFrame:
    """Return the lesions of a scan, a row each, most probable first.

    Args:
        probabilities: On the scan's own grid, its axes being the file's k, j, i.

    Returns:
        `score`, the largest probability in a lesion; its `voxels`, which need not fill the box;
        `i_start`, `i_stop` and so on, the half-open box along the file's axes, counted from 0;
        `x_mm`, `y_mm`, `z_mm`, the centre of the box in LPS; `i_mm`, `j_mm`, `k_mm`, its sides.
    """
    rows = []
    for box in find_boxes(np.asarray(probabilities.array), threshold=LEAST_PROBABILITY):
        middle = (np.add(box.start, box.stop) - 1) / 2
        centre = (probabilities.affine @ np.append(middle, 1))[:3]
        sides = np.subtract(box.stop, box.start) * probabilities.spacing
        ends = [end for pair in zip(box.start[::-1], box.stop[::-1], strict=True) for end in pair]
        rows.append((box.score, box.voxels, *ends, *centre.round(3), *sides[::-1].round(3)))
    return pd.DataFrame(rows, columns=list(_COLUMNS))
