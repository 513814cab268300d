"""Which findings or classes does a volume show?

Letters: B volumes, C channels, D H W voxels, L labels.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ct3dlib.config import VolumeClassifierNetworkSpec

_NORM_GROUPS = 4


class VolumeClassifier(nn.Module):
    """Levels that halve the grid, then the mean and the largest value of each channel.

    The mean sees what is spread over the volume, the largest value what is in one place.
    """

    def __init__(self, spec: VolumeClassifierNetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        widths = [spec.filters * 2**level for level in range(spec.num_levels)]
        levels = [
            _level(before, after, stride=2)
            for before, after in zip((1, *widths[:-1]), widths, strict=True)
        ]
        self.levels = nn.Sequential(*levels, _level(widths[-1], widths[-1], stride=1))
        self.head = nn.Linear(2 * widths[-1], spec.num_labels)

    def forward(self, volumes: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "B L"]:
        """Return the logit of each label.

        Args:
            volumes: In the range of the recipe that the network is trained on, of any size.
        """
        features = self.levels(volumes).flatten(2)  # B C N
        return self.head(torch.cat((features.mean(2), features.amax(2)), dim=1))


def _level(in_channels: int, out_channels: int, *, stride: int) -> nn.Sequential:
    """Return a convolution with its norm and activation."""
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=1),
        nn.GroupNorm(_NORM_GROUPS, out_channels),
        nn.SiLU(),
    )
