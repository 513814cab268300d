"""Feature vectors of slices, from files as others make them."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ct3dlib.config import GenerationSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.models.pretrained import alex_features, vgg16_features
from ct3dlib.models.slice_network import SliceNetwork, load_slice_network
from tests.models.networks import Moments, export
from tests.models.published import ALEX, VGG16, classifier_state

CPU = torch.device("cpu")


class Doubled(nn.Module):
    """Two tensors where one is wanted."""

    def forward(self, slices: Tensor) -> tuple[Tensor, Tensor]:
        return slices, slices


class Summed(nn.Module):
    """One number for the whole batch, and twice as many rows as there are slices."""

    def forward(self, slices: Tensor) -> Tensor:
        return torch.cat([slices, slices]).mean((2, 3))


class Masked(nn.Module):
    """A second tensor among its inputs."""

    def forward(self, slices: Tensor, mask: Tensor) -> Tensor:
        return (slices * mask).mean((2, 3))


def _slices(*shape: int) -> Tensor:
    return torch.rand(shape or (3, 1, 20, 24), generator=torch.Generator().manual_seed(0))


def _load(path: Path, network: str = "exported", size: int | None = None) -> SliceNetwork:
    spec = GenerationSpec.model_validate({"network": network, "weights": str(path), "size": size})
    found = load_slice_network(spec, CPU)
    assert found is not None
    return found


def test_no_network_is_named():
    assert load_slice_network(GenerationSpec(), CPU) is None


@pytest.mark.parametrize("channels", [1, 3])
def test_an_exported_network_gives_its_vectors_for_any_number_and_size(tmp_path, channels):
    path = export(tmp_path / "moments.pt2", Moments(), shape=(2, channels, 12, 16))
    network, slices = _load(path), _slices()
    assert network.channels == channels
    found = network.features(slices)
    torch.testing.assert_close(found, Moments()(slices))  # equal channels have the mean of one
    torch.testing.assert_close(network.features(slices[:1]), found[:1])
    assert not found.requires_grad


def test_a_feature_map_becomes_its_mean(tmp_path):
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 5, 3)
    path = export(tmp_path / "maps.pt2", convolution)
    maps = convolution(_slices().expand(-1, 3, -1, -1))
    torch.testing.assert_close(_load(path).features(_slices()), maps.mean((2, 3)).detach())


@pytest.mark.parametrize(
    ("name", "shapes", "build"), [("alex", ALEX, alex_features), ("vgg16", VGG16, vgg16_features)]
)
def test_published_weights_give_the_mean_of_the_last_map(tmp_path, name, shapes, build):
    path = tmp_path / f"{name}.pth"
    state = classifier_state(shapes)
    torch.save(state, path)
    slices = _slices(2, 1, 64, 72)
    with torch.no_grad():
        wanted = build(state, path)(slices)[-1].mean((2, 3))
    torch.testing.assert_close(_load(path, name).features(slices), wanted)


def test_slices_are_resized_without_aliasing(tmp_path):
    network = _load(export(tmp_path / "moments.pt2", Moments()), size=6)
    stripes = torch.zeros(1, 1, 24, 24)
    stripes[..., ::2] = 1.0
    mean, square, down, across = network.features(stripes)[0].tolist()
    assert mean == pytest.approx(0.5, abs=0.02)  # a quarter of the pixels would be 0 or 1
    assert square == pytest.approx(0.25, abs=0.02)
    assert (down, across) == (pytest.approx(0, abs=1e-6), pytest.approx(0, abs=0.06))


def test_a_network_for_one_size_alone_gets_it(tmp_path):
    path = export(tmp_path / "fixed.pt2", Moments(), shape=(3, 3, 8, 8), fixed=True)
    wanted = Moments()(F.interpolate(_slices(), (8, 8), mode="bilinear", antialias=True))
    torch.testing.assert_close(_load(path, size=8).features(_slices()), wanted)
    refused = r"fixed\.pt2: refuses slices of shape \[3, 3, 20, 24\] .* set generation\.size to"
    with pytest.raises(CheckpointError, match=refused):
        _load(path).features(_slices())
    with pytest.raises(CheckpointError, match=r"or export .* batch, height and width as Dim"):
        _load(path, size=8).features(_slices(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("network", "given"),
    [(Doubled(), "tuple"), (Summed(), r"\[6, 3\]"), (nn.Flatten(2), r"\[3, 3, 480\]")],
    ids=["tuple", "rows", "axes"],
)
def test_what_is_no_vector_a_slice_is_refused(tmp_path, network, given):
    path = export(tmp_path / "other.pt2", network)
    wanted = rf"other\.pt2: gives {given} for 3 slices, wanted \[3, F\] or .* its classifier"
    with pytest.raises(CheckpointError, match=wanted):
        _load(path).features(_slices())


def test_features_that_are_not_finite_are_refused(tmp_path):
    convolution = nn.Conv2d(3, 5, 3)
    nn.init.constant_(convolution.weight, torch.nan)
    path = export(tmp_path / "broken.pt2", convolution)
    with pytest.raises(CheckpointError, match=r"broken\.pt2: gives features that are not finite"):
        _load(path).features(_slices())


def test_a_network_of_other_inputs_is_refused(tmp_path):
    colour = export(tmp_path / "four.pt2", nn.Conv2d(4, 2, 1), shape=(2, 4, 8, 8), fixed=True)
    with pytest.raises(
        CheckpointError, match=r"four\.pt2: takes \[2, 4, 8, 8\], wanted one tensor"
    ):
        _load(colour)
    program = torch.export.export(Masked(), (torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)))
    torch.export.save(program, tmp_path / "two.pt2")
    with pytest.raises(CheckpointError, match=r"two\.pt2: takes \[2, 1, 8, 8\], \[2, 1, 8, 8\]"):
        _load(tmp_path / "two.pt2")


@pytest.mark.parametrize("damage", ["text", "cut", "weights alone", "empty"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "net.pt2"
    match damage:
        case "text":
            path.write_text("no network\n" * 50)
        case "cut":
            whole = export(tmp_path / "whole.pt2", Moments()).read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
        case "weights alone":
            torch.save(classifier_state({0: (4, 3, 3)}), path)
        case _:
            path.touch()
    wanted = r"net\.pt2: not a file of torch\.export \(.*\); export the network with"
    with pytest.raises(CheckpointError, match=wanted):
        _load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pt2: no such file; .* nothing is downloaded"):
        _load(tmp_path / "none.pt2")
    with pytest.raises(CheckpointError, match=r"none\.pth: no such file; .* nothing is downloaded"):
        _load(tmp_path / "none.pth", "alex")
