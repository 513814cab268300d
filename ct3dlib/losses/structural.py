"""How far the structure of a reconstruction is from its original's: windows, edges, spectra.

Letters: B batch, D H W voxels, S slices of a batch. Each loss is 0 where both volumes are equal and
is computed in float32. A volume of one slice has the loss of a picture.
"""

from itertools import combinations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_SSIM_WINDOW = 11
_EAGLE_PATCH = 3
_EAGLE_CUTOFF = 0.5
_SMALLEST = 1e-12


def ssim_loss(
    reconstructed: Float[Tensor, "B 1 D H W"],
    volumes: Float[Tensor, "B 1 D H W"],
    *,
    data_range: float,
) -> Float[Tensor, ""]:
    """Return 1 - SSIM, between 0 and 2, over Gaussian windows that lie wholly inside.

    Wang et al., doi:10.1109/TIP.2003.819861, eq. 13, deviation 1.5 voxels. Windows have 11 voxels
    along each axis, or the whole axis where it is shorter.

    Args:
        reconstructed: In the recipe's range.
        volumes: In the recipe's range.
        data_range: Largest value minus smallest of the recipe's range.
    """
    # MONAI takes seconds to import, and most losses have no such term.
    from monai.losses.ssim_loss import SSIMLoss

    window = [min(_SSIM_WINDOW, length) for length in volumes.shape[2:]]
    with torch.autocast(volumes.device.type, enabled=False):  # variances would cancel in bfloat16
        return SSIMLoss(3, data_range, win_size=window)(reconstructed.float(), volumes.float())


def gradient_loss(
    reconstructed: Float[Tensor, "B 1 D H W"], volumes: Float[Tensor, "B 1 D H W"]
) -> Float[Tensor, ""]:
    """Return the mean absolute error of the differences of neighbours, in units of the volumes.

    The mean of the axes that have neighbours; as the gradient difference loss of Mathieu et al.,
    arXiv:1511.05440, eq. 6 with alpha 1, but of signed differences: a flipped edge is an error.
    """
    error = reconstructed.float() - volumes.float()
    axes = [axis for axis in (2, 3, 4) if error.shape[axis] > 1]
    return torch.stack([error.diff(dim=axis).abs().mean() for axis in axes]).mean()


def eagle_loss(
    reconstructed: Float[Tensor, "B 1 D H W"], volumes: Float[Tensor, "B 1 D H W"]
) -> Float[Tensor, ""]:
    """Return how far the spectra of local gradient variances are apart, slice by slice.

    Sun et al., arXiv:2403.10695: the variance of each Scharr derivative over patches of 3 x 3
    pixels makes a map; of its orthonormal spectrum the magnitudes are compared, each weighted with
    1 - exp(-f^2 / (2 * 0.5^2)), f in cycles per patch. The mean over frequencies, the sum of both
    derivatives, in squared units of the volumes times 32^2: Scharr's kernel is not normalised.
    Rows and columns that fill no patch are left out.

    Raises:
        ValueError: A slice is smaller than one patch.
    """
    if min(volumes.shape[3:]) < _EAGLE_PATCH:
        raise ValueError(
            f"the eagle loss needs slices of at least {_EAGLE_PATCH} x {_EAGLE_PATCH} pixels, not "
            f"{volumes.shape[3]} x {volumes.shape[4]}; enlarge the crop or set its weight to 0"
        )
    first, second = (_variance_spectrum(v.float()) for v in (reconstructed, volumes))
    height, width = first.shape[2:]
    rows = torch.fft.fftfreq(height, device=volumes.device)
    columns = torch.fft.fftfreq(width, device=volumes.device)
    squared = rows[:, None] ** 2 + columns**2  # of f
    weight = 1 - torch.exp(-squared / (2 * _EAGLE_CUTOFF**2))
    return (weight * (first - second).abs()).mean(dim=(0, 2, 3)).sum()


def focal_frequency_loss(
    reconstructed: Float[Tensor, "B 1 D H W"],
    volumes: Float[Tensor, "B 1 D H W"],
    *,
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """Return the squared error of slice spectra, frequencies that are far off weighted most.

    Jiang et al., arXiv:2012.12821, eq. 8 and 9, of the slices along all three axes: the weight of a
    frequency is |error|^alpha over the largest of its slice, and no gradient passes through it. The
    mean of the directions whose slices have two axes longer than 1, in squared units of the
    volumes; with orthonormal transforms its size does not depend on theirs.

    Args:
        reconstructed: In the recipe's range.
        volumes: In the recipe's range.
        alpha: 0 weights all frequencies the same, which is the mean squared error.
    """
    error = reconstructed.float() - volumes.float()  # the transform is linear
    planes = [p for p in combinations((2, 3, 4), 2) if all(error.shape[axis] > 1 for axis in p)]
    return torch.stack([_focal(error, plane, alpha) for plane in planes]).mean()


def _focal(error: Float[Tensor, "B 1 D H W"], plane: tuple[int, int], alpha: float) -> Tensor:
    """Return the focal frequency loss of slices that span the axes `plane`."""
    spectrum = torch.fft.fft2(error, dim=plane, norm="ortho")
    power = spectrum.real.square() + spectrum.imag.square()
    weight = power.detach() ** (alpha / 2)
    largest = weight.amax(dim=plane, keepdim=True).clamp_min(_SMALLEST)
    return (weight / largest * power).mean()


def _variance_spectrum(volumes: Float[Tensor, "B 1 D H W"]) -> Float[Tensor, "S 2 h w"]:
    """Return the spectral magnitudes of the patch variances of both Scharr derivatives."""
    slices = volumes.transpose(1, 2).flatten(0, 1)  # S 1 H W
    across = slices.new_tensor([[-3.0, 0, 3], [-10, 0, 10], [-3, 0, 3]])
    kernels = torch.stack((across, across.T)).unsqueeze(1)  # 2 1 3 3
    with torch.autocast(volumes.device.type, enabled=False):
        gradients = F.conv2d(F.pad(slices, (1, 1, 1, 1), mode="replicate"), kernels)
    patches = gradients.unfold(2, _EAGLE_PATCH, _EAGLE_PATCH).unfold(3, _EAGLE_PATCH, _EAGLE_PATCH)
    return torch.fft.fft2(patches.var(dim=(4, 5)), norm="ortho").abs()
