"""Features of axial slices, learnt from the anatomy alone.

Letters: B slices, C channels, K regions, H W pixels, h w the grid of the last level.
"""

from jaxtyping import Float
from torch import Tensor, nn

from ct3dlib.config import SliceFeaturesSpec

NORM_GROUPS = 8


class Level(nn.Module):
    """Convolve, halving the grid where `stride` is 2, and add a normalised convolution of it.

    Nothing is normalised on the way from a pixel to the output, so features keep absolute
    intensities; no statistic spans more than one slice.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.residual = nn.Sequential(
            nn.GroupNorm(NORM_GROUPS, out_channels),
            nn.SiLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Return the features of the level."""
        x = self.enter(x)
        return x + self.residual(x)


class SliceFeatures(nn.Module):
    """Feature maps of slices at falling resolution, and the regions that they show."""

    def __init__(self, spec: SliceFeaturesSpec) -> None:
        super().__init__()
        self.spec = spec
        inputs = (1, *spec.widths[:-1])
        self.levels = nn.ModuleList(
            Level(before, after, stride=2 if level else 1)
            for level, (before, after) in enumerate(zip(inputs, spec.widths, strict=True))
        )
        self.head = nn.Sequential(
            nn.GroupNorm(NORM_GROUPS, spec.widths[-1]),
            nn.SiLU(),
            nn.Conv2d(spec.widths[-1], spec.num_regions, 1),
        )

    def forward(self, slices: Float[Tensor, "B 1 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """Return the feature map of each level, finest first; sides are halved rounding up.

        Args:
            slices: In the range of the recipe that the network is trained on, of any size.
        """
        features = []
        x: Tensor = slices
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features

    def region_logits(self, slices: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B K h w"]:
        """Return the logits of the region ids in each cell of the last level."""
        return self.head(self(slices)[-1])
