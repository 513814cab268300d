"""Weights in the layouts that others publish, against their networks written out."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ct3dlib.errors import CheckpointError
from ct3dlib.models.pretrained import (
    alex_features,
    medicalnet_features,
    read_state,
    vgg16_features,
)
from tests.models.published import ALEX, VGG16, classifier_state, medicalnet_state

FILE = Path("weights.pth")


def _normalised(slices: Tensor) -> Tensor:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return torch.cat([(slices - m) / s for m, s in zip(mean, std, strict=True)], dim=1)


def _alex(state: Mapping[str, Tensor], slices: Tensor) -> list[Tensor]:
    x, found = _normalised(slices), []
    for number, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
        if number in (3, 6):
            x = F.max_pool2d(x, 3, 2)
        weight, bias = (state[f"features.{number}.{name}"] for name in ("weight", "bias"))
        x = F.conv2d(x, weight, bias, stride, padding).relu()
        found.append(x)
    return found


def _vgg16(state: Mapping[str, Tensor], slices: Tensor) -> list[Tensor]:
    x, found = _normalised(slices), []
    for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
        for number in block:
            weight, bias = (state[f"features.{number}.{name}"] for name in ("weight", "bias"))
            x = F.conv2d(x, weight, bias, padding=1).relu()
        found.append(x)
        x = F.max_pool2d(x, 2)
    return found


def _medicalnet(state: Mapping[str, Tensor], volumes: Tensor) -> list[Tensor]:
    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv3d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(x: Tensor, name: str) -> Tensor:
        parts = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = (state[f"{name}.{p}"].view(1, -1, 1, 1, 1) for p in parts)
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    mean = volumes.mean((1, 2, 3, 4), keepdim=True)
    std = volumes.std((1, 2, 3, 4), keepdim=True, correction=0)
    x = norm(conv((volumes - mean) / std, "conv1", 2), "bn1").relu()
    found = [x]
    x = F.max_pool3d(x, 3, 2, 1)
    for stage in range(1, 5):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            if f"{name}.conv1.weight" not in state:
                continue
            stride = 2 if stage > 1 and block == 0 else 1
            kept = x
            if f"{name}.downsample.0.weight" in state:
                kept = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            elif stride == 2:
                thin = x[:, :, ::2, ::2, ::2]
                kept = torch.cat((thin, torch.zeros_like(thin)), dim=1)
            x = norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1").relu()
            x = (norm(conv(x, f"{name}.conv2"), f"{name}.bn2") + kept).relu()
        found.append(x)
    return found


@pytest.mark.parametrize(
    ("make", "reference", "shapes", "numel"),
    [
        (alex_features, _alex, ALEX, 2_469_696),
        (vgg16_features, _vgg16, VGG16, 14_714_688),
    ],
    ids=["alex", "vgg16"],
)
def test_features_of_slices_are_those_of_the_network_written_out(make, reference, shapes, numel):
    state = classifier_state(shapes)
    network = make(state, FILE).eval()
    assert sum(p.numel() for p in network.parameters()) == numel  # as torchvision's have
    slices = torch.rand(2, 1, 64, 80, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, wanted = network(slices), reference(state, slices)
    assert len(found) == len(wanted) == 5
    for one, other in zip(found, wanted, strict=True):
        assert other.std() > 0.01
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_small_slices_are_enlarged_until_the_shorter_side_has_64_pixels():
    state = classifier_state(ALEX)
    slices = torch.rand(1, 1, 20, 30, generator=torch.Generator().manual_seed(1))
    larger = F.interpolate(slices, (64, 96), mode="bilinear", align_corners=False)
    with torch.no_grad():
        found = alex_features(state, FILE)(slices)
        for one, other in zip(found, _alex(state, larger), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [10, 18])
def test_features_of_volumes_and_their_gradient_are_those_of_the_network_written_out(depth):
    state = medicalnet_state(depth)
    network = medicalnet_features({**state, "conv_seg.0.weight": torch.zeros(2)}, FILE).eval()
    volumes = torch.randn(2, 1, 9, 20, 24, generator=torch.Generator().manual_seed(1))
    gradients = []
    for function in (network, lambda x: _medicalnet(state, x)):
        x = volumes.clone().requires_grad_()
        levels = function(x)
        sum(level.square().mean() for level in levels).backward()
        gradients.append((levels, x.grad))
    (found, gradient), (wanted, true_gradient) = gradients
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    scale = true_gradient.abs().max().item()
    torch.testing.assert_close(gradient, true_gradient, rtol=0, atol=1e-3 * scale)


def test_a_uniform_volume_has_finite_features():
    network = medicalnet_features(medicalnet_state(10), FILE).eval()
    assert all(level.isfinite().all() for level in network(torch.full((1, 1, 8, 16, 16), 0.3)))


@pytest.mark.parametrize("nested", [False, True], ids=["bare", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "wrapped"])
def test_what_wrappers_put_around_weights_is_taken_off(tmp_path, nested, prefix):
    state = {f"{prefix}conv1.weight": torch.arange(3.0)}
    torch.save({"epoch": 3, "state_dict": state} if nested else state, tmp_path / "a.pth")
    found, sha256 = read_state(tmp_path / "a.pth")
    assert list(found) == ["conv1.weight"]
    assert torch.equal(found["conv1.weight"], torch.arange(3.0))
    assert re.fullmatch("[0-9a-f]{64}", sha256)


def test_files_that_hold_no_weights_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pth: no such file; .* nothing is downloaded"):
        read_state(tmp_path / "none.pth")
    path = tmp_path / "a.pth"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(
        CheckpointError, match=r"a\.pth: not a file of weights alone \(.*\); get it"
    ):
        read_state(path)
    torch.save({"conv1.weight": torch.zeros(9)}, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"a\.pth: not a file of weights alone"):
        read_state(path)
    torch.save({"model": Path("a")}, path)  # needs code to be unpickled
    with pytest.raises(CheckpointError, match=r"a\.pth: not a file of weights alone"):
        read_state(path)
    for document in ([torch.zeros(2)], {"epoch": 3}):
        torch.save(document, path)
        with pytest.raises(CheckpointError, match=r"a\.pth: holds no state dict; save the"):
            read_state(path)


def test_each_tensor_that_does_not_fit_is_named():
    state = classifier_state(ALEX)
    del state["features.3.bias"]
    state["features.12.weight"] = torch.zeros(1)
    state["features.0.weight"] = torch.zeros(64, 1, 11, 11)
    message = re.escape(
        "weights.pth: does not fit AlexNet: 0.weight is [64, 1, 11, 11], wanted [64, 3, 11, 11]; "
        "missing 3.bias; unknown 12.weight; give a file of AlexNet"
    )
    with pytest.raises(CheckpointError, match=message):
        alex_features(state, FILE)
    with pytest.raises(CheckpointError, match=r"does not fit VGG-16: .*missing 28\.weight"):
        vgg16_features(classifier_state(ALEX), FILE)


def test_another_residual_network_is_refused():
    state = medicalnet_state(10)
    with pytest.raises(CheckpointError, match="does not fit MedicalNet's resnet10: missing conv1"):
        medicalnet_features({k: v for k, v in state.items() if k != "conv1.weight"}, FILE)
    state["layer2.1.conv1.weight"] = torch.zeros(1)
    with pytest.raises(
        CheckpointError, match=r"have \[1, 2, 1, 1\] blocks, wanted .* give MedicalNet's resnet_10"
    ):
        medicalnet_features(state, FILE)


def test_counts_of_batches_are_optional():
    state = medicalnet_state(10)
    counted = {**state, "bn1.num_batches_tracked": torch.tensor(5)}
    volumes = torch.rand(1, 1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one, other = (medicalnet_features(s, FILE).eval()(volumes)[-1] for s in (state, counted))
    assert torch.equal(one, other)
