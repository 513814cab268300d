"""The masked autoencoder: its size, what it sees, what it predicts."""

import pytest
import torch

from ct3dlib.config import (
    MaskedAutoencoderNetworkSpec,
    MaskedAutoencoderSpec,
    VolumeEncoderNetworkSpec,
)
from ct3dlib.errors import CheckpointError
from ct3dlib.losses.patches import masked_patch_loss
from ct3dlib.models.mae import MaskedAutoencoder
from ct3dlib.models.volume_encoder import VolumeEncoder
from ct3dlib.nn.patches import patchify
from ct3dlib.nn.position import resize_table

TINY = {
    "encoder": {"hidden_size": 48, "num_layers": 2, "num_heads": 3},
    "decoder": {"hidden_size": 24, "num_layers": 1, "num_heads": 2},
    "patch_size": [4, 8, 8],
    "shape": [8, 32, 48],
}


def model(**changes) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(
        MaskedAutoencoderNetworkSpec.model_validate({**TINY, **changes})
    ).eval()


def volumes(seed: int = 0, shape=(2, 1, 8, 32, 48)) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def masks_of(network: MaskedAutoencoder, seed: int = 0):
    return network.draw_masks(torch.rand(2, 48, generator=torch.Generator().manual_seed(seed)))


def test_the_published_size_has_its_numbers():
    spec = MaskedAutoencoderNetworkSpec(shape=(256, 256, 256))
    with torch.device("meta"):
        network = MaskedAutoencoder(spec)
    count = {"encoder": 0, "decoder": 0}
    for name, tensor in network.state_dict().items():
        count[name.split(".")[0]] += tensor.numel()
    assert count == {"encoder": 310_703_104, "decoder": 29_944_320}
    assert network.encoder.position.numel() == 4_195_328
    assert (spec.network.num_patches, spec.num_visible) == (4096, 1024)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("tiny", (192, 12, 3)),
        ("small", (384, 12, 6)),
        ("base", (768, 12, 12)),
        ("large", (1024, 24, 16)),
    ],
)
def test_sizes_have_names(name, numbers):
    encoder = MaskedAutoencoderSpec.model_validate({"encoder": name}).encoder
    assert (encoder.hidden_size, encoder.num_layers, encoder.num_heads) == numbers


def test_the_encoder_sees_visible_patches_alone():
    network, seen = model(), []
    network.encoder.blocks[0].register_forward_pre_hook(
        lambda _, given: seen.append(given[0].shape[1])
    )
    masks = masks_of(network)
    before = network.encoder(volumes(), masks.visible)
    assert seen == [1 + int(48 * 0.25)]
    changed = network.with_masked(volumes(), masks, torch.zeros(2, 36, 256))
    torch.testing.assert_close(network.encoder(changed, masks.visible), before, rtol=0, atol=0)


def test_masks_are_a_share_of_the_patches_each_once_and_each_volumes_own():
    network = model()
    masks = masks_of(network)
    both = torch.cat((masks.visible, masks.masked), dim=1)
    assert both.sort(dim=1).values.tolist() == [list(range(48))] * 2
    assert masks.visible.shape == (2, 12)
    assert not torch.equal(masks.visible[0], masks.visible[1])
    torch.testing.assert_close(masks_of(network).masked, masks.masked)
    assert not torch.equal(masks_of(network, 1).masked, masks.masked)


def test_the_order_of_visible_patches_does_not_matter():
    network, masks = model(), masks_of(model())
    turned = masks._replace(visible=masks.visible.flip(1))
    torch.testing.assert_close(network(volumes(), turned), network(volumes(), masks))


def test_predictions_follow_the_order_of_masked_patches():
    network, masks = model(), masks_of(model())
    turned = masks._replace(masked=masks.masked.flip(1))
    torch.testing.assert_close(network(volumes(), turned).flip(1), network(volumes(), masks))


def test_a_prediction_depends_on_where_it_is():
    network = model()
    found = network(volumes(), masks_of(network))
    assert found.std(dim=1).mean() > 1e-3


@pytest.mark.parametrize("norm_pix", [False, True])
def test_predictions_are_in_the_range_unless_normalised(norm_pix):
    network = model(norm_pix=norm_pix)
    with torch.no_grad():
        network.decoder.predict.bias.fill_(3.0)
    found = network(volumes(), masks_of(network))
    assert (found.amax() <= 1) == (not norm_pix)


def test_masked_patches_come_to_their_places():
    network = model()
    masks = masks_of(network)
    patches = patchify(volumes(), network.spec.patch_size)
    masked = patches.take_along_dim(masks.masked[..., None], dim=1)
    other = volumes(1)
    mixed = network.with_masked(other, masks, masked)
    kept = patchify(other, network.spec.patch_size).take_along_dim(masks.visible[..., None], dim=1)
    cut = patchify(mixed, network.spec.patch_size)
    torch.testing.assert_close(cut.take_along_dim(masks.masked[..., None], dim=1), masked)
    torch.testing.assert_close(cut.take_along_dim(masks.visible[..., None], dim=1), kept)
    torch.testing.assert_close(network.with_masked(volumes(), masks, masked), volumes())


def test_all_patches_are_encoded_in_their_order():
    network = model()
    every = torch.arange(48).expand(2, -1)
    torch.testing.assert_close(network.encoder(volumes()), network.encoder(volumes(), every))


def test_it_learns_to_continue_a_pattern():
    network = model(norm_pix=False).train()
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 48).expand(2, 1, 8, 32, 48).clone()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        masks = network.draw_masks(torch.rand(2, 48, generator=generator))
        target = patchify(ramp, network.spec.patch_size).take_along_dim(
            masks.masked[..., None], dim=1
        )
        loss = masked_patch_loss(network(ramp, masks), target, norm_pix=False).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    mean_alone = (ramp - ramp.mean()).square().mean()
    assert losses[-1] < 0.2 * mean_alone
    assert all(p.grad is not None for p in network.parameters())


def test_a_shape_that_is_no_number_of_patches_is_refused_or_padded():
    with pytest.raises(ValueError, match=r"\(8, 32, 50\) voxels is no whole number of patches of"):
        model(shape=[8, 32, 50])
    network = model(shape=[7, 32, 50], pad=True, range=[-1, 1])
    assert network.spec.network.grid == (2, 4, 7)
    given = volumes(shape=(1, 1, 7, 32, 50))
    patches = network.encoder.patches(given)
    assert patches.shape == (1, 56, 256)
    # The last patch holds 3 slices and 2 columns of the volume; the rest is the range's low end.
    last = patches[0, -1].reshape(4, 8, 8)
    torch.testing.assert_close(last[:3, :, :2], given[0, 0, 4:, 24:, 48:])
    assert (last[3:] == -1).all()
    assert (last[:, :, 2:] == -1).all()
    masks = network.draw_masks(torch.rand(1, 56))
    true = network.masked_patches(given, masks)
    torch.testing.assert_close(network.with_masked(given, masks, true), given)


def test_predictions_lie_in_the_models_range():
    network = model(range=[-1, 1])
    found = network(volumes(), masks_of(network))
    assert -1 < found.min() < 0 < found.max() < 1


def test_volumes_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"volumes of \(8, 32, 40\) voxels, this model takes"):
        model().encoder(volumes(shape=(1, 1, 8, 32, 40)))


def test_patches_are_embedded_as_a_strided_convolution_does():
    network = model()
    embed = network.encoder.patch_embed
    kernel = embed.weight.view(48, 1, 4, 8, 8)
    found = torch.nn.functional.conv3d(volumes(), kernel, embed.bias, stride=(4, 8, 8))
    wanted = embed(network.encoder.patches(volumes()))
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), wanted, rtol=1e-5, atol=1e-5)


def test_a_normalised_prediction_is_shown_with_the_patchs_own_mean_and_contrast():
    network = model(norm_pix=True)
    masks = masks_of(network)
    shown = network.masked_patches(network.filled(volumes(), masks), masks)
    patches, predicted = network.masked_patches(volumes(), masks), network(volumes(), masks)
    wanted = patches.mean(-1, keepdim=True) + patches.std(-1, keepdim=True) * predicted
    torch.testing.assert_close(shown, wanted)
    hidden = network.masked_patches(network.hidden(volumes(), masks), masks)
    assert (hidden == 0.5).all()


def test_weights_of_another_grid_are_taken_with_positions_stretched():
    small, large = model(), model(shape=[16, 32, 48])
    large.load_from_(small)
    torch.testing.assert_close(
        large.encoder.blocks[0].qkv.weight, small.encoder.blocks[0].qkv.weight
    )
    for part in ("encoder", "decoder"):
        ours, theirs = (network.get_submodule(part).position for network in (large, small))
        wanted = resize_table(theirs, (2, 4, 6), to=(4, 4, 6))
        torch.testing.assert_close(ours, wanted)
    with pytest.raises(CheckpointError, match="an encoder whose patch_size is"):
        model(patch_size=[4, 8, 16]).load_from_(small)
    with pytest.raises(CheckpointError, match="a decoder of hidden_size=24"):
        model(decoder={"hidden_size": 48, "num_layers": 1, "num_heads": 2}).load_from_(small)


def test_layers_hold_every_parameter_once():
    encoder = model().encoder
    layers = [parameter for layer in encoder.layers() for parameter in layer]
    assert {id(p) for p in layers} == {id(p) for p in encoder.parameters()}
    assert len(layers) == len({id(p) for p in layers})
    assert len(encoder.layers()) == 4


def test_stages_are_the_tokens_after_some_blocks():
    encoder = model().encoder
    first, last = encoder.stages(volumes(), (1, 2))
    tokens = encoder.blocks[0](encoder.embed(volumes()))[:, 1:]
    torch.testing.assert_close(first.flatten(2).transpose(1, 2), tokens)
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), encoder(volumes())[:, 1:])
    assert first.shape == (2, 48, 2, 4, 6)


@pytest.mark.parametrize(("grid", "ratio"), [((3, 4, 4), 0.9), ((2, 5, 5), 0.6), ((1, 1, 7), 0.5)])
def test_visible_patches_are_a_whole_number_rounded_down(grid, ratio):
    shape = [n * p for n, p in zip(grid, (4, 8, 8), strict=True)]
    network = model(shape=shape, mask_ratio=ratio)
    count = grid[0] * grid[1] * grid[2]
    masks = network.draw_masks(torch.rand(1, count))
    assert masks.visible.shape[1] == network.spec.num_visible == int(count * (1 - ratio))
    assert masks.masked.shape[1] == count - int(count * (1 - ratio))


def test_1025_of_4097_tokens_are_seen_of_the_published_grid():
    decoder = {"hidden_size": 6, "num_layers": 1, "num_heads": 1}
    network, seen = model(shape=[16, 16, 16], patch_size=[1, 1, 1], decoder=decoder), []
    network.encoder.blocks[0].register_forward_pre_hook(
        lambda _, given: seen.append(given[0].shape[1])
    )
    masks = network.draw_masks(torch.rand(1, 4096))
    network.encoder(torch.rand(1, 1, 16, 16, 16), masks.visible)
    assert seen == [1025]


@pytest.mark.parametrize(
    ("size", "millions"), [("tiny", 6.1), ("small", 22.9), ("base", 88.2), ("large", 306.5)]
)
def test_parameters_are_those_of_a_vision_transformer(size, millions):
    """Patches, class token, 12 C^2 + 13 C for each block (MLP ratio 4), and the last norm."""
    network = VolumeEncoderNetworkSpec.model_validate({"encoder": size, "shape": [256] * 3})
    with torch.device("meta"):
        encoder = VolumeEncoder(network)
    width, layers = network.encoder.hidden_size, network.encoder.num_layers
    wanted = 4097 * width + width + layers * (12 * width**2 + 13 * width) + 2 * width
    assert sum(p.numel() for p in encoder.parameters()) == wanted
    assert round(wanted / 1e6, 1) == millions
