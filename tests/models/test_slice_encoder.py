from dataclasses import fields
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ct3dlib.config import SliceEncoderSpec
from ct3dlib.config.encoder import VisionTransformerSpec
from ct3dlib.errors import CheckpointError
from ct3dlib.models.slice_encoder import SliceEncoder, seen

SHAPE = (8, 6, 9)  # a grid of 4 x 2 x 3 = 24 tokens
SPACING = (6.0, 0.75, 0.75)
MODES = ["alternating", "divided", "joint", "hierarchical", "plane"]
ENCODER = VisionTransformerSpec(hidden_size=12, num_layers=3, num_heads=2)


def spec(**changes) -> SliceEncoderSpec:
    small = {"encoder": ENCODER, "patch_size": (2, 3, 3), "least_voxels": 2}
    return SliceEncoderSpec(**small | {"dropout": 0, "attention_dropout": 0} | changes)


def built(shape=SHAPE, spacing=SPACING, **changes) -> SliceEncoder:
    torch.manual_seed(0)
    encoder = SliceEncoder(spec(**changes), shape, spacing)
    for name, parameter in encoder.named_parameters():
        if "position" in name or "region_embedding" in name or name.endswith("table"):
            torch.nn.init.normal_(parameter)
    return encoder.eval()


def scans(*shape: int, channels: int = 1) -> torch.Tensor:
    return torch.rand(2, channels, *(shape or SHAPE), generator=torch.Generator().manual_seed(1))


def halves() -> torch.Tensor:
    """Return regions 1 and 20: the lower slices, and the upper ones but for the last two."""
    regions = torch.zeros(2, 1, *SHAPE, dtype=torch.uint8)
    regions[:, :, :4], regions[:, :, 4:6] = 1, 20
    return regions


def close(one, other) -> None:
    for field in fields(one):
        torch.testing.assert_close(getattr(one, field.name), getattr(other, field.name))


@pytest.mark.parametrize("mode", MODES)
def test_the_published_size_gives_features_of_documented_shapes(mode):
    with torch.device("meta"):
        encoder = SliceEncoder(SliceEncoderSpec(attention=mode), (64, 512, 512), SPACING)
        volumes = torch.empty(2, 1, 64, 512, 512)
        regions = torch.empty(2, 1, 64, 512, 512, dtype=torch.uint8)
        valid = torch.empty(2, 1, 64, 512, 512, dtype=torch.bool)
        found = encoder(volumes, regions, valid=valid, want_local=True)
    assert found.local is not None
    assert found.global_.shape == (2, 768)
    assert found.local.shape == (2, 16384, 768)
    assert found.region.shape == (2, 20, 768)
    assert found.present.shape == (2, 20)
    assert found.token_valid.shape == (2, 16384)


def test_local_features_lie_on_the_grid_of_the_volume():
    encoder, volumes = built(attention="plane"), scans()
    encoder.transformer = torch.nn.ModuleList()  # embedded patches, normalised, in their order
    found = encoder(volumes, want_local=True).local
    assert found is not None
    on_grid = found.unflatten(1, (4, 2, 3))
    place, weight = encoder.position_z[3] + encoder.position_plane[1, 2], encoder.patch_embed.weight
    patch = volumes[1, 0, 6:8, 3:6, 6:9].flatten()
    wanted = encoder.norm(weight @ patch + encoder.patch_embed.bias + place)
    torch.testing.assert_close(on_grid[1, 3, 1, 2], wanted)
    assert encoder(volumes).local is None


def test_planes_alone_know_no_order_of_slices_but_by_their_positions():
    order = [4, 5, 0, 1, 6, 7, 2, 3]  # whole patches of two slices
    encoder, volumes = built(attention="plane"), scans()
    plain = encoder(volumes, want_local=True).local
    torch.nn.init.zeros_(encoder.position_z)
    free = [encoder(x, want_local=True) for x in (volumes, volumes[:, :, order])]
    moved = free[0].local.unflatten(1, (4, 6))[:, [2, 0, 3, 1]].flatten(1, 2)
    torch.testing.assert_close(free[1].local, moved)
    torch.testing.assert_close(free[1].global_, free[0].global_)
    assert not torch.allclose(plain, free[0].local)


@pytest.mark.parametrize("mode", MODES)
def test_a_slice_is_seen_eight_slices_on_but_where_planes_are_alone(mode):
    encoder = built((16, 6, 9), attention=mode)
    for name, parameter in encoder.named_parameters():
        if name.endswith("out.weight"):  # divided blocks start as if there were no z
            torch.nn.init.normal_(parameter)
    volumes = scans(16, 6, 9)
    other = volumes.clone()
    other[:, :, 2] += 0.5
    found = [encoder(x, want_local=True).local.unflatten(1, (8, 6)) for x in (volumes, other)]
    changed = [(found[0][:, z] - found[1][:, z]).abs().max() > 1e-6 for z in range(8)]
    assert changed == ([True] * 8 if mode != "plane" else [z == 1 for z in range(8)])


def test_divided_blocks_start_within_planes():
    divided, plane, volumes = built(attention="divided"), built(attention="plane"), scans()
    kept = {k: v for k, v in divided.state_dict().items() if ".attentions.1." not in k}
    plane.load_state_dict(kept)
    close(divided(volumes, want_local=True), plane(volumes, want_local=True))


def test_a_token_is_told_the_shares_of_its_regions():
    encoder, volumes = built(), scans()
    encoder.transformer = torch.nn.ModuleList()
    encoder.norm = torch.nn.Identity()
    regions = torch.zeros(2, 1, *SHAPE, dtype=torch.uint8)
    regions[0, 0, 0, :3, :3], regions[0, 0, 1, 0, 0], regions[0, 0, 1, 1, 1] = 5, 7, 255
    told = encoder(volumes, regions, want_local=True).local
    plain = encoder(volumes, want_local=True).local
    shares = encoder.region_embedding[4] / 2 + encoder.region_embedding[6] / 18
    torch.testing.assert_close((told - plain)[0, 0], shares)
    assert not (told - plain)[0, 1:].any()
    assert not (told - plain)[1].any()
    silent = built(region_input=False)
    assert silent.region_embedding is None
    locals_ = [silent(volumes, r, want_local=True).local for r in (regions, None)]
    torch.testing.assert_close(*locals_)


def test_swapped_labels_swap_what_two_regions_are_made_of():
    encoder, volumes, regions = built(region_input=False), scans(), halves()
    swapped = regions.clone()
    swapped[regions == 1], swapped[regions == 20] = 20, 1
    with torch.no_grad():
        encoder.pool.queries[1] = encoder.pool.queries[20]
    one, other = encoder(volumes, regions).region, encoder(volumes, swapped).region
    torch.testing.assert_close(one[:, [0, 19]], other[:, [19, 0]])
    assert not torch.allclose(one[:, 0], one[:, 19])


def test_regions_that_nobody_knows_are_all_taken_to_be_there():
    encoder, volumes = built(), scans()
    free = encoder(volumes)
    assert free.present.all()
    assert not torch.isin(free.region, encoder.pool.absent).any()
    # Whatever the regions are, an item that is encoded without them is as one that has none.
    known = torch.tensor([True, False])
    mixed = encoder(volumes, halves(), known=known)
    torch.testing.assert_close(mixed.region[1], free.region[1])
    torch.testing.assert_close(mixed.global_[1], free.global_[1])
    torch.testing.assert_close(mixed.region[0], encoder(volumes, halves()).region[0])
    assert mixed.present.nonzero().tolist() == [[0, 0], [0, 19], [1, 0], [1, 19]]


def test_volumes_that_nobody_looked_into_are_as_those_without_regions():
    encoder, volumes, regions = built(), scans(), halves()
    regions[1] = 255
    regions[1, ..., 0] = 0  # as after a turn
    free = encoder(volumes)
    for known in (None, torch.tensor([True, True])):
        found = encoder(volumes, regions, known=known)
        torch.testing.assert_close(found.region[1], free.region[1])
        assert found.present.sum(1).tolist() == [2, 20]
    regions[1] = 0  # somebody looked and found nothing
    assert encoder(volumes, regions).present.sum(1).tolist() == [2, 0]


def test_a_region_of_too_few_voxels_is_absent():
    encoder, regions = built(), halves()
    regions[0, 0, 7, 5, 7:], regions[1, 0, 7, 5, 8] = 9, 9
    found = encoder(scans(), regions)
    assert found.present[:, 8].tolist() == [True, False]
    assert not torch.allclose(found.region[0, 8], encoder.pool.absent[8])
    torch.testing.assert_close(found.region[1, 8], encoder.pool.absent[8])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("masks", ["none", "empty", "some"])
def test_every_parameter_has_a_finite_gradient_whatever_is_known(mode, masks):
    encoder = built(attention=mode).train()
    regions = {"none": None, "some": halves(), "empty": torch.zeros_like(halves())}[masks]
    valid = torch.ones(2, 1, *SHAPE, dtype=torch.bool)
    valid[0] = False  # an item of padding alone
    found = encoder(scans(), regions, valid=valid, want_local=True)
    parts = (found.global_, found.region, found.local)
    assert all(part.isfinite().all() for part in parts)
    sum(part.square().sum() for part in parts).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_padding_changes_nothing_of_what_is_scan():
    encoder, volumes = built(), scans()
    valid = torch.ones(2, 1, *SHAPE, dtype=torch.bool)
    valid[:, :, 5:] = False  # slice 4 keeps its patch valid
    other = torch.where(torch.arange(8)[:, None, None] < 6, volumes, 0.5)
    found = [encoder(x, halves(), valid=valid) for x in (volumes, other)]
    close(*found)
    assert found[0].token_valid.tolist() == [[True] * 18 + [False] * 6] * 2
    assert not torch.allclose(found[0].global_, encoder(volumes, halves()).global_)


def test_volumes_of_no_whole_patches_are_filled_up_with_zeros():
    encoder, volumes = built((7, 5, 8)), scans(7, 5, 8)
    regions, valid = halves()[:, :, :7, :5, :8], torch.ones(2, 1, 7, 5, 8, dtype=torch.bool)
    padded = [torch.nn.functional.pad(x, (0, 1, 0, 1, 0, 1)) for x in (volumes, regions, valid)]
    found = encoder(volumes, regions, valid=valid, want_local=True)
    close(found, encoder(padded[0], padded[1], valid=padded[2], want_local=True))
    assert found.token_valid.all()
    close(found, encoder(volumes, regions, want_local=True))


def test_volumes_of_another_shape_take_stretched_positions():
    encoder, slices = built(), scans(2, 6, 9)
    encoder.transformer = torch.nn.ModuleList()
    encoder.norm = torch.nn.Identity()
    torch.nn.init.zeros_(encoder.patch_embed.weight)
    found = encoder(slices, want_local=True).local
    # One patch spans what four did: its middle lies between the second and the third.
    wanted = encoder.position_z[1:3].mean(0) + encoder.position_plane.flatten(0, 1)
    torch.testing.assert_close(found, wanted.expand(2, -1, -1))
    assert built()(slices, torch.ones_like(slices).byte()).region.isfinite().all()


@pytest.mark.parametrize("mode", MODES)
def test_recomputed_activations_give_the_same_loss_and_gradients(mode):
    found = []
    for recompute in (False, True):
        encoder = built(attention=mode, dropout=0.3, attention_dropout=0.3).train()
        for block in encoder.blocks() if recompute else ():
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        torch.manual_seed(5)
        features = encoder(scans(), halves())
        loss = features.global_.square().sum() + features.region.square().sum()
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in encoder.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_close_to_float32():
    encoder, volumes = built(), scans()
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(volumes, halves())
    full = encoder(volumes, halves())
    assert torch.equal(half.present, full.present)
    torch.testing.assert_close(half.region.float(), full.region, atol=0.05, rtol=0.05)


def test_layers_hold_every_parameter_once():
    for encoder in (built(), built(region_input=False)):
        layers = encoder.layers()
        assert len(layers) == 5
        listed = [id(p) for layer in layers for p in layer]
        assert sorted(listed) == sorted(map(id, encoder.parameters()))
        assert len(encoder.blocks()) == 3


def test_weights_move_to_another_shape_and_stretch_their_positions():
    ours, theirs = built((4, 12, 9), (3.0, 1.0, 1.0)), built()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    ours.load_from_(theirs)
    torch.testing.assert_close(ours.position_z[0], theirs.position_z[:2].mean(0))
    torch.testing.assert_close(ours.position_plane[[0, 3]], theirs.position_plane)
    torch.testing.assert_close(
        ours.position_plane[1], theirs.position_plane[0].lerp(theirs.position_plane[1], 0.25)
    )
    kept = [k for k in ours.state_dict() if "position" not in k]
    assert all(torch.equal(ours.state_dict()[k], theirs.state_dict()[k]) for k in kept)
    same = built()
    same.load_from_(theirs)
    close(same(scans(), halves()), theirs(scans(), halves()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "joint"}, "whose attention is joint .* into one of alternating"),
        ({"patch_size": (4, 3, 3)}, r"whose patch_size is \(4, 3, 3\) .* one of \(2, 3, 3\)"),
        ({"region_input": False}, "whose region_input is False .* into one of True"),
        ({"windows": ("lung", "bone")}, "of 2 windows cannot be taken into one of 1"),
        ({"spacing": None}, "whose spacing is None .* other in tokens; use a recipe"),
    ],
    ids=["attention", "patch", "regions", "windows", "spacing"],
)
def test_weights_of_another_network_are_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        built().load_from_(built(**changes))


def test_what_does_not_lie_on_the_grid_is_refused():
    encoder = built()
    with pytest.raises(ValueError, match=r"3 channels, wanted 1: one for each .*'wide'"):
        encoder(scans(channels=3))
    with pytest.raises(ValueError, match=r"regions of shape .*7, 6, 9\), wanted .*8, 6, 9\)"):
        encoder._check(scans(), halves()[:, :, 1:], None)
    with pytest.raises(ValueError, match="valid of shape"):
        encoder._check(scans(), None, halves()[:1].bool())
    with pytest.raises(ValueError, match=r"region ids \[21\]"):
        encoder(scans(), halves() + 20 * (halves() == 1).byte())


def test_hu_are_cut_to_the_windows_of_the_encoder():
    bounds = spec(windows=("mediastinal", "lung", (0, 100))).bounds
    hu = torch.tensor([-160, 240, 40, -900, -700, 50], dtype=torch.int16).view(1, 1, 1, 2, 3)
    found = seen(hu, torch.tensor([[0.0, 1.0]]), bounds).flatten(2)[0]
    torch.testing.assert_close(found[0, :3], torch.tensor([0.0, 1.0, 0.5]))
    assert not found[0, 3:5].any()
    torch.testing.assert_close(found[1, 3:5], torch.tensor([0.3, 650 / 1500]))
    torch.testing.assert_close(found[2], torch.tensor([0.0, 1.0, 0.4, 0.0, 0.0, 0.5]))


def test_a_constant_volume_is_a_finite_constant_of_its_value():
    hu = torch.full((2, 1, 2, 2, 2), 500, dtype=torch.int16)
    found = seen(hu, torch.zeros(2, 2), ((-1000.0, 1000.0),))
    torch.testing.assert_close(found, torch.full((2, 1, 2, 2, 2), 0.75))


def test_pictures_show_each_window_the_range_they_have():
    values = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 1, 3).repeat(2, 1, 1, 1, 1)
    window = torch.tensor([[0.0, 255.0], [0.0, 102.0]])
    found = seen(values, window, spec(windows=("lung", "bone")).bounds)
    assert found.shape == (2, 2, 1, 1, 3)
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor([[0, 0.2, 1]] * 2))
    torch.testing.assert_close(found[1, :, 0, 0], torch.tensor([[0, 0.5, 1]] * 2))
