import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ct3dlib.config import (
    CausalTokenizerSpec,
    LFQSpec,
    PerceptualSpec,
    RecipeSpec,
    SliceFeaturesSpec,
)
from ct3dlib.errors import CheckpointError
from ct3dlib.losses.perceptual import perceptual_loss
from ct3dlib.models import build_model
from ct3dlib.models.exported import load_model, save_model
from ct3dlib.models.perceptual import PerceptualNetwork, load_perceptual
from ct3dlib.models.pretrained import (
    alex_features,
    medicalnet_features,
    read_state,
    vgg16_features,
)
from ct3dlib.models.slice_features import SliceFeatures
from tests.models.published import ALEX, VGG16, classifier_state, medicalnet_state

RECIPE = RecipeSpec(window=(-1000, 1000), range=(-1, 1))
SLICES = PerceptualSpec()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _saved(tmp_path / "features", RECIPE)


def _saved(folder: Path, recipe: RecipeSpec) -> Path:
    torch.manual_seed(0)
    spec = SliceFeaturesSpec(filters=8, num_levels=3)
    contract = {"recipe": recipe.model_dump(mode="json")}
    save_model(folder, SliceFeatures(spec), spec=spec, contract=contract, training={})
    return folder


def _hu(shape: tuple[int, ...] = (2, 1, 5, 12, 16)) -> Tensor:
    return 3000 * torch.rand(shape, generator=torch.Generator().manual_seed(1)) - 1500


def _in_range(hu: Tensor, recipe: RecipeSpec) -> Tensor:
    (low, high), (bottom, top) = recipe.window, recipe.range
    return (hu - low) / (high - low) * (top - bottom) + bottom


def test_the_slices_named_are_looked_at_in_their_order(folder):
    network = load_perceptual(SLICES, folder, recipe=RECIPE)
    volumes = _in_range(_hu(), RECIPE)
    found = network(volumes, torch.tensor([[3, 0], [4, 4]]))
    chosen = torch.stack([volumes[0, :, 3], volumes[0, :, 0], volumes[1, :, 4], volumes[1, :, 4]])
    for one, other in zip(found, load_model(folder).module(chosen), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "recipe",
    [RecipeSpec(window=(-1200, 800), range=(0, 1)), RecipeSpec(window=(-160, 240), range=(-3, 2))],
    ids=["shifted", "narrow"],
)
def test_a_recipe_of_another_window_shows_the_same_hu(folder, recipe):
    slices = torch.tensor([[0, 1], [2, 3]])
    wanted = load_perceptual(SLICES, folder, recipe=RECIPE)(_in_range(_hu(), RECIPE), slices)
    found = load_perceptual(SLICES, folder, recipe=recipe)(_in_range(_hu(), recipe), slices)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


class Holder(nn.Module):
    """A module with a weight of its own beside the network."""

    def __init__(self, network: PerceptualNetwork) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.ones(1))
        self.network = network


def test_the_weights_are_neither_trained_nor_saved_but_move_along(folder):
    holder = Holder(load_perceptual(SLICES, folder, recipe=RECIPE))
    assert list(holder.state_dict()) == ["own"]
    assert [name for name, _ in holder.named_parameters()] == ["own"]
    (inner,) = holder.train().network._held
    assert not any(module.training for module in inner.modules())
    moved = copy.deepcopy(holder).to(torch.float64)
    features = moved.network(_hu().double(), torch.tensor([[0], [1]]))
    assert {level.dtype for level in features} == {torch.float64}
    assert {p.dtype for p in inner.parameters()} == {torch.float32}  # the copy has its own


def test_the_gradient_passes_through_and_leaves_the_weights_alone(folder):
    network = load_perceptual(SLICES, folder, recipe=RECIPE)
    volumes = _in_range(_hu(), RECIPE)
    reconstructed = (0.9 * volumes).requires_grad_()
    slices = torch.tensor([[0, 2], [1, 3]])
    with torch.no_grad():
        wanted = network(volumes, slices)
    loss = perceptual_loss(network(reconstructed, slices), wanted)
    loss.backward()
    assert loss > 0
    gradient = reconstructed.grad
    assert gradient is not None
    reached = gradient.abs().amax(dim=(1, 3, 4)) > 0  # B D
    assert reached.tolist() == [
        [True, False, True, False, False],
        [False, True, False, True, False],
    ]
    assert all(p.grad is None for p in network._held[0].parameters())


def test_a_blurred_volume_is_further_away_than_an_equal_one(folder):
    network = load_perceptual(SLICES, folder, recipe=RECIPE)
    volumes = _in_range(_hu(), RECIPE)
    slices = torch.tensor([[0, 2], [1, 3]])
    blurred = nn.functional.avg_pool3d(volumes, (1, 3, 3), 1, (0, 1, 1))
    halfway = (volumes + blurred) / 2
    wanted = network(volumes, slices)
    near, far = (perceptual_loss(network(v, slices), wanted).item() for v in (halfway, blurred))
    assert perceptual_loss(network(volumes, slices), wanted).item() == 0
    assert 0 < near < far


@pytest.mark.parametrize(
    ("network", "state", "make"),
    [
        ("alex", classifier_state(ALEX), alex_features),
        ("vgg16", classifier_state(VGG16), vgg16_features),
        ("medicalnet", medicalnet_state(10), medicalnet_features),
    ],
    ids=["alex", "vgg16", "medicalnet"],
)
def test_networks_of_others_see_values_from_0_to_1(tmp_path, network, state, make):
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    recipe = RecipeSpec(window=(-1000, 1000), range=(-2, 3))
    spec = PerceptualSpec(network=network, weights=str(path))
    found = load_perceptual(spec, None, recipe=recipe)
    unit = torch.rand(1, 1, 8, 32, 32, generator=torch.Generator().manual_seed(1))
    seen = unit if network == "medicalnet" else unit[0, :, [5, 2]].movedim(0, 1)
    with torch.no_grad():
        features = found(5 * unit - 2, torch.tensor([[5, 2]]))
        for one, other in zip(features, make(state, path).eval()(seen), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert found.sha256 == read_state(path)[1]


def test_a_network_without_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"network slices: no weights; train .* local path"):
        load_perceptual(SLICES, None, recipe=RECIPE)
    with pytest.raises(CheckpointError, match=r"spec\.json: no such file; train the model"):
        load_perceptual(SLICES, tmp_path, recipe=RECIPE)
    spec = PerceptualSpec(network="vgg16", weights=str(tmp_path / "vgg16.pth"))
    with pytest.raises(
        CheckpointError, match=r"vgg16\.pth: no such file; .* nothing is downloaded"
    ):
        load_perceptual(spec, None, recipe=RECIPE)


def test_the_folder_of_another_model_is_refused(tmp_path):
    spec = CausalTokenizerSpec(
        filters=4,
        num_res_blocks=1,
        channel_multipliers=(1,),
        temporal_downsample=(),
        norm_groups=2,
        quantizer=LFQSpec(bits=4),
    )
    save_model(tmp_path, build_model(spec), spec=spec, contract={}, training={})
    with pytest.raises(
        CheckpointError, match="name causal, wanted slice_features; give the folder"
    ):
        load_perceptual(PerceptualSpec(weights=str(tmp_path)), None, recipe=RECIPE)


def test_features_of_unknown_volumes_are_refused(tmp_path):
    spec = SliceFeaturesSpec(filters=8, num_levels=2)
    save_model(tmp_path, SliceFeatures(spec), spec=spec, contract={}, training={})
    with pytest.raises(CheckpointError, match="its contract has no recipe; train it again"):
        load_perceptual(SLICES, tmp_path, recipe=RECIPE)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            RecipeSpec(domain="uint8", window=(0, 255)),
            "trained on volumes of domain hu, these have uint8; train .* perceptual.network",
        ),
        (RecipeSpec(axes="dwh"), "trained on volumes of axes dhw, these have dwh; train the"),
    ],
    ids=["domain", "axes"],
)
def test_features_of_other_volumes_are_refused(folder, recipe, message):
    with pytest.raises(CheckpointError, match=message):
        load_perceptual(SLICES, folder, recipe=recipe)
