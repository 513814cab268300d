import math
from collections.abc import Callable

import pytest
import torch
from monai.metrics.regression import SSIMMetric
from torch import Tensor

from ct3dlib.losses.structural import eagle_loss, focal_frequency_loss, gradient_loss, ssim_loss

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, Loss] = {
    "ssim": lambda a, b: ssim_loss(a, b, data_range=2.0),
    "gradient": gradient_loss,
    "eagle": eagle_loss,
    "focal_frequency": focal_frequency_loss,
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def _pair(shape: tuple[int, ...] = (2, 1, 5, 14, 17), seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = (2 * torch.rand(shape, generator=generator) - 1 for _ in range(2))
    return first, second


def _single(size: int, **voxels: float) -> Tensor:
    """Return one slice of zeros with values at `r<row>c<column>`."""
    volume = torch.zeros(1, 1, 1, size, size)
    for place, value in voxels.items():
        row, column = place[1:].split("c")
        volume[..., int(row), int(column)] = value
    return volume


@each_loss
def test_a_loss_is_zero_for_the_same_volumes_and_positive_for_others(loss: Loss):
    first, second = _pair()
    assert loss(first, first.clone()).item() == 0
    assert loss(first, second).item() > 1e-3


@each_loss
def test_a_loss_is_symmetric(loss: Loss):
    first, second = _pair()
    assert loss(first, second).item() == pytest.approx(loss(second, first).item(), rel=1e-6)


@each_loss
@pytest.mark.parametrize("values", [(0.0, 0.0), (-1.0, -1.0), (-1.0, 0.5)])
def test_a_loss_has_a_finite_gradient_on_constant_volumes(loss: Loss, values: tuple[float, float]):
    reconstructed, volumes = (torch.full((1, 1, 4, 12, 13), value) for value in values)
    value = loss(reconstructed.requires_grad_(), volumes)
    value.backward()
    assert math.isfinite(value.item())
    assert reconstructed.grad is not None
    assert torch.isfinite(reconstructed.grad).all()


@each_loss
@pytest.mark.parametrize("slices", [1, 2, 9, 17])
def test_a_loss_pulls_slabs_of_any_thickness_towards_the_original(loss: Loss, slices: int):
    first, volumes = _pair((1, 1, slices, 16, 18))
    reconstructed = (volumes + 0.2 * first).requires_grad_()
    value = loss(reconstructed, volumes)
    value.backward()
    closer = volumes + 0.1 * first
    assert loss(closer, volumes).item() < value.item()
    step = reconstructed.detach() - 1e-3 * reconstructed.grad / reconstructed.grad.abs().max()
    assert loss(step, volumes).item() < value.item()


@each_loss
def test_the_loss_of_one_slice_is_the_mean_over_slices_of_a_batch(loss: Loss):
    first, second = _pair((1, 1, 3, 15, 18))
    alone = [loss(first[:, :, d : d + 1], second[:, :, d : d + 1]).item() for d in range(3)]
    together = loss(first.transpose(0, 2), second.transpose(0, 2))
    assert together.item() == pytest.approx(sum(alone) / 3, rel=1e-5)


@each_loss
def test_a_loss_is_float32_whatever_the_volumes_and_autocast(loss: Loss):
    first, second = (volume.bfloat16() for volume in _pair())
    expected = loss(first.float(), second.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(first, second)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_ssim_equals_the_metric_of_monai(data_range: float):
    first, second = _pair((2, 1, 11, 14, 17))
    expected = SSIMMetric(3, data_range=data_range)(first, second).mean()
    loss = ssim_loss(first, second, data_range=data_range)
    assert loss.item() == pytest.approx(1 - expected.item(), abs=1e-6)


def test_ssim_of_one_slice_is_that_of_a_picture():
    first, second = _pair((2, 1, 1, 14, 17))
    expected = SSIMMetric(2, data_range=2.0)(first[:, :, 0], second[:, :, 0]).mean()
    loss = ssim_loss(first, second, data_range=2.0)
    assert loss.item() == pytest.approx(1 - expected.item(), abs=1e-6)


def test_ssim_of_constants_is_the_luminance_term():
    dark, bright = torch.full((1, 1, 3, 4, 5), -0.5), torch.full((1, 1, 3, 4, 5), 1.0)
    c1 = (0.01 * 2) ** 2
    luminance = (2 * -0.5 * 1 + c1) / (0.25 + 1 + c1)
    loss = ssim_loss(dark, bright, data_range=2.0)
    assert loss.item() == pytest.approx(1 - luminance, rel=1e-4)


def test_ssim_of_an_inverted_checkerboard_is_almost_two():
    signs = (-1.0) ** torch.arange(12)
    checks = (signs[:, None, None] * signs[:, None] * signs)[None, None]
    assert 1.99 < ssim_loss(-checks, checks, data_range=2.0).item() <= 2


def test_gradient_of_a_ramp_is_its_slope_averaged_over_the_axes():
    ramp = torch.arange(4.0).view(1, 1, 1, 1, 4) * 0.25
    flat = torch.zeros(1, 1, 2, 3, 4)
    assert gradient_loss(ramp.expand_as(flat), flat).item() == pytest.approx(0.25 / 3)
    assert gradient_loss(ramp.expand(1, 1, 1, 3, 4), flat[:, :, :1]).item() == pytest.approx(0.125)


def test_gradient_ignores_a_shift_and_sees_a_flipped_edge():
    ramp = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 1, 4, 3, 5)
    assert gradient_loss(ramp + 7, ramp).item() == 0
    assert gradient_loss(-ramp, ramp).item() == pytest.approx(2 / 3)


def _eagle_oracle(first: Tensor, second: Tensor) -> float:
    """Return the eagle loss of two pictures H W by loops and the definition of the transform."""
    scharr = [[-3, 0, 3], [-10, 0, 10], [-3, 0, 3]]
    total = 0.0
    for transposed in (False, True):
        kernel = torch.tensor(scharr, dtype=torch.float64)
        kernel = kernel.T if transposed else kernel
        spectra = []
        for picture in (first, second):
            rows, columns = picture.shape
            edged = torch.nn.functional.pad(picture[None, None].double(), (1, 1, 1, 1), "replicate")
            gradient = torch.tensor(
                [
                    [
                        float((edged[0, 0, r : r + 3, c : c + 3] * kernel).sum())
                        for c in range(columns)
                    ]
                    for r in range(rows)
                ]
            )
            n, m = rows // 3, columns // 3
            variance = torch.tensor(
                [
                    [float(gradient[3 * i : 3 * i + 3, 3 * j : 3 * j + 3].var()) for j in range(m)]
                    for i in range(n)
                ],
                dtype=torch.complex128,
            )
            left = torch.tensor(
                [[complex(0, -2 * math.pi * u * i / n) for i in range(n)] for u in range(n)]
            ).exp()
            right = torch.tensor(
                [[complex(0, -2 * math.pi * v * j / m) for v in range(m)] for j in range(m)]
            ).exp()
            left, right = left.to(torch.complex128), right.to(torch.complex128)
            spectra.append((left @ variance @ right).abs() / math.sqrt(n * m))
        for u in range(n):
            for v in range(m):
                squared = (min(u, n - u) / n) ** 2 + (min(v, m - v) / m) ** 2
                weight = 1 - math.exp(-squared / (2 * 0.5**2))
                total += weight * float((spectra[0] - spectra[1])[u, v].abs()) / (n * m)
    return total


def test_eagle_equals_its_definition():
    first, second = _pair((1, 1, 1, 13, 17))
    assert eagle_loss(first, second).item() == pytest.approx(
        _eagle_oracle(first[0, 0, 0], second[0, 0, 0]), rel=1e-4
    )


def test_eagle_ignores_brightness_and_sees_a_blurred_edge():
    sharp = torch.zeros(1, 1, 1, 12, 12)
    sharp[..., 7:] = 1
    blurred = torch.nn.functional.avg_pool3d(
        sharp, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False
    )
    assert eagle_loss(sharp + 3, sharp).item() == pytest.approx(0, abs=1e-3)
    assert eagle_loss(blurred, sharp).item() > 1


def test_eagle_turns_with_the_slice():
    first, second = _pair((1, 1, 2, 12, 15))
    turned = eagle_loss(first.transpose(3, 4), second.transpose(3, 4))
    assert turned.item() == pytest.approx(eagle_loss(first, second).item(), rel=1e-5)


def test_eagle_refuses_slices_smaller_than_a_patch():
    volumes = torch.zeros(1, 1, 8, 16, 2)
    with pytest.raises(ValueError, match=r"at least 3 x 3 pixels, not 16 x 2; enlarge the crop"):
        eagle_loss(volumes, volumes)


def test_focal_frequency_of_one_frequency_is_the_squared_error():
    wave = torch.cos(torch.pi * torch.arange(4.0)).view(1, 1, 1, 1, 4).expand(1, 1, 1, 4, 4)
    assert focal_frequency_loss(wave, torch.zeros_like(wave)).item() == pytest.approx(1, rel=1e-5)


def test_focal_frequency_weighs_the_smaller_of_two_frequencies_less():
    checks = torch.cos(torch.pi * torch.arange(4.0))
    error = (checks[:, None] * checks + 0.5 * torch.ones(4, 4)).view(1, 1, 1, 4, 4)
    # Spectrum: 4 at the highest frequency, 2 at 0; weights 1 and 1/2; 16 frequencies.
    expected = (1 * 16 + 0.5 * 4) / 16
    assert focal_frequency_loss(error, torch.zeros_like(error)).item() == pytest.approx(expected)


def test_focal_frequency_without_focus_is_the_mean_squared_error():
    first, second = _pair((2, 1, 5, 7, 8))
    loss = focal_frequency_loss(first, second, alpha=0.0)
    assert loss.item() == pytest.approx((first - second).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_focal_frequency_equals_loops_over_slices_of_three_directions(alpha: float):
    first, second = _pair((1, 1, 4, 6, 5))
    means = []
    for axis in range(3):
        terms = []
        for a, b in zip(first[0, 0].unbind(axis), second[0, 0].unbind(axis), strict=True):
            error = (torch.fft.fft2(a, norm="ortho") - torch.fft.fft2(b, norm="ortho")).abs()
            weight = error**alpha / (error**alpha).max()
            terms.append((weight * error**2).mean().item())
        means.append(sum(terms) / len(terms))
    loss = focal_frequency_loss(first, second, alpha=alpha)
    assert loss.item() == pytest.approx(sum(means) / 3, rel=1e-5)


def test_focal_frequency_passes_no_gradient_through_its_weights():
    error = _single(4, r0c0=1.0, r1c2=-0.5).requires_grad_()
    focal_frequency_loss(error, torch.zeros(1, 1, 1, 4, 4)).backward()
    frozen = _single(4, r0c0=1.0, r1c2=-0.5).requires_grad_()
    spectrum = torch.fft.fft2(frozen, norm="ortho").abs()
    weight = (spectrum / spectrum.amax()).detach()
    (weight * spectrum**2).mean().backward()
    torch.testing.assert_close(error.grad, frozen.grad)
